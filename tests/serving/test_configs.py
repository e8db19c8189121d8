"""The servers read the same model out of every config of ours, and the one that is meant."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from internvl import hub
from internvl.checkpoints.adopt import adopt
from internvl.checkpoints.export import export
from internvl.checkpoints.published import CHAT_MODELS
from tests import support
from tests.serving import readers
from tests.serving.readers import Served

FOLDERS = {
    **{model.name: support.ROOT / "variants" / model.name for model in CHAT_MODELS},
    "root": support.ROOT,
    "demo": hub.DEMO,
    **{f"golden-{name}": support.checkpoint(name) for name in support.NAMES},
}
Config = support.configuration.InternVLChatConfig


def meant(folder: Path) -> Served:
    """The model that config.json describes, field by field."""
    fields = json.loads((folder / "config.json").read_text())
    vision, text = fields["vision_config"], fields["llm_config"]
    tile = fields["force_image_size"]
    full = {
        "dropout": 0.0, "drop_path_rate": 0.0, "norm_type": "rms_norm", "initializer_factor": 0.1,
        "layer_norm_eps": 1e-6, "hidden_act": "gelu", "patch_size": 14, **vision,
    }  # fmt: skip
    return Served(
        text["architectures"][0],
        readers._vision(full),
        readers._text(text),
        text["rope_theta"],
        tile,
        (tile // 14) ** 2 // 4,
    )


def config_of(folder: Path, **options: Any) -> Any:
    """As AutoConfig gives it."""
    return Config.from_pretrained(folder, **options)


def check(folder: Path, expected: Served) -> None:
    """Every server reads `expected`, or says that it has no such language model."""
    fields = json.loads((folder / "config.json").read_text())
    preprocessor = folder / "preprocessor_config.json"
    pixels = json.loads((preprocessor if preprocessor.is_file() else
                         support.ROOT / preprocessor.name).read_text())  # fmt: skip
    seen = {
        readers.VLLM: lambda: readers.vllm(config_of(folder, has_no_defaults_at_init=True)),
        readers.SGLANG: lambda: readers.sglang(fields),
        readers.LMDEPLOY_TURBOMIND: lambda: readers.lmdeploy(config_of(folder), turbomind=True),
    }
    for supported, read in seen.items():
        if expected.language_model in supported:
            assert read() == expected
        else:
            with pytest.raises((NotImplementedError, KeyError, AssertionError)):
                read()
    assert readers.lmdeploy(config_of(folder)) == expected
    assert readers.llama_cpp(fields, pixels) == expected


@pytest.mark.parametrize("name", FOLDERS)
def test_config(name, tmp_path):
    folder = FOLDERS[name]
    expected = meant(folder)
    if not name.startswith("golden"):
        check(folder, expected)
    # What save_pretrained writes on this version of transformers; golden files are of 2024.
    config_of(folder).save_pretrained(tmp_path)
    check(tmp_path, expected)


def test_readers_notice():
    """Each field counts: without it, or with another value, the readers fail or see it."""
    fields = json.loads((hub.DEMO / "config.json").read_text())
    expected = meant(hub.DEMO)
    for part, name in (
        ("llm_config", "architectures"),
        ("vision_config", "norm_type"),
        ("vision_config", "hidden_size"),
        ("llm_config", "vocab_size"),
    ):
        less = {**fields, part: {k: v for k, v in fields[part].items() if k != name}}
        with pytest.raises((KeyError, AttributeError, AssertionError)):
            assert readers.sglang(less) == expected
    bare = {**fields, "llm_config": {**fields["llm_config"], "rope_theta": 10.0}}
    assert readers.sglang(bare) != expected
    scaled = {"architectures": ["InternLM2ForCausalLM"], "rope_scaling": {"type": "dynamic",
              "factor": 2.0, "rope_type": "dynamic"}}  # fmt: skip
    with pytest.raises(AssertionError):
        readers.sglang({**fields, "llm_config": {**fields["llm_config"], **scaled}})


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Folders that `adopt` and `export` wrote, of each family."""
    root = tmp_path_factory.mktemp("serving")
    for name in ("qwen2", "internlm2", "phi3"):
        adopt(support.checkpoint(name), root / f"adopted-{name}")
    export(root / "adopted-qwen2", root / "exported-qwen2")
    shutil.rmtree(root / "__pycache__", ignore_errors=True)
    return {path.name: path for path in sorted(root.iterdir())}


@pytest.mark.parametrize(
    "name", ["adopted-qwen2", "adopted-internlm2", "adopted-phi3", "exported-qwen2"]
)
def test_self_contained_folder(folders, name):
    folder = folders[name]
    check(folder, meant(support.checkpoint(name.partition("-")[2])))
    # All of them stop where generation_config.json says, whatever the tokenizer's eos is.
    prepared = hub.prepare(folder)
    conversation = support.conversation.get_conv_template(prepared.config.template)
    stop = prepared.tokenizer.convert_tokens_to_ids(conversation.end_of_turn)
    assert stop in json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
