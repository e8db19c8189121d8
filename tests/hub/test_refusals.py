"""What `hub.load` refuses, and that nothing of a source is ever executed."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from internvl import hub
from tests import support


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of a small checkpoint in one weight file."""
    target = tmp_path / "checkpoint"
    source = support.checkpoint("qwen2")
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors*"))
    weights = {}
    for file in source.glob("*.safetensors"):
        weights |= load_file(file)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def edit_config(folder: Path, **fields) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **fields}))


def edit_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


class _Marker:
    """Pickles into a call that writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "executed"))


def test_pickled_weights_are_refused_and_not_read(folder, tmp_path):
    marker = tmp_path / "marker"
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Marker(marker)))
    with pytest.raises(ValueError, match=r"pickled weights only \(pytorch_model.bin\)"):
        hub.load(folder)
    assert not marker.exists()


def test_pickles_beside_safetensors_are_not_read(folder, tmp_path):
    marker = tmp_path / "marker"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Marker(marker)))
    assert hub.load(folder).model.config.template == "internvl2_5"
    assert not marker.exists()


def code_that_writes(marker: Path) -> str:
    return f"from pathlib import Path\nPath({str(marker)!r}).write_text('executed')\n"


def test_code_of_the_source_is_not_executed(folder, tmp_path):
    marker = tmp_path / "marker"
    for name in (
        "configuration_internvl_chat.py",
        "modeling_internvl_chat.py",
        "tokenization_x.py",
    ):
        (folder / name).write_text(code_that_writes(marker))
    (folder / "preprocessor").mkdir()
    (folder / "preprocessor" / "processing_x.py").write_text(code_that_writes(marker))
    processor = {"auto_map": {"AutoProcessor": "preprocessor/processing_x.X"}}
    (folder / "processor_config.json").write_text(json.dumps(processor))
    images = {"auto_map": {"AutoImageProcessor": "preprocessor/processing_x.Y"}}
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    loaded = hub.load(folder)
    assert type(loaded.processor).__name__ == "InternVLChatProcessor"
    assert not marker.exists()


def test_tokenizer_code_is_refused(folder, tmp_path):
    marker = tmp_path / "marker"
    (folder / "tokenization_x.py").write_text(code_that_writes(marker))
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8"))
    config |= {"auto_map": {"AutoTokenizer": ["tokenization_x.X", None]}, "tokenizer_class": "X"}
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="trust_source_code=True"):
        hub.load(folder)
    assert not marker.exists()


def test_custom_generate_is_refused(folder, tmp_path):
    # transformers 4.57 would run it, for a local folder, without asking.
    marker = tmp_path / "marker"
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code_that_writes(marker))
    with pytest.raises(ValueError, match="custom_generate"):
        hub.load(folder)
    assert not marker.exists()


@pytest.mark.parametrize("subfolder", [None, "inner/most"])
def test_trusted_code_is_executed(folder, tmp_path, subfolder):
    root = folder
    if subfolder:
        root = tmp_path / "root"
        shutil.copytree(folder, root / subfolder)
    support.copy_code(root)
    fields = {"processor_class": "InternVLChatProcessor", "image_seq_length": 16}
    fields["auto_map"] = {
        "AutoProcessor": "preprocessor/processing_internvl_chat.InternVLChatProcessor"
    }
    inner = root / (subfolder or "")
    for place in {root, inner}:  # 4.57 finds the class in the root's
        (place / "processor_config.json").write_text(json.dumps(fields))
    images = hub.prepare(folder).processor.image_processor.to_dict()
    (inner / "preprocessor_config.json").write_text(json.dumps(images))
    loaded = hub.load(root, subfolder=subfolder, dtype="float32", trust_source_code=True)
    assert type(loaded.model).__module__.startswith("transformers_modules")
    assert type(loaded.processor).__module__.startswith("transformers_modules")
    text = loaded.model.chat(loaded.tokenizer, None, "Hi", {"max_new_tokens": 3})
    ours = hub.load(folder, dtype="float32")
    assert text == ours.model.chat(ours.tokenizer, None, "Hi", {"max_new_tokens": 3})


def test_weights_that_do_not_fit_are_named(folder):
    def change(weights):
        del weights["mlp1.1.bias"]
        weights["surplus.weight"] = torch.zeros(1)
        weights["mlp1.0.weight"] = torch.zeros(3)

    edit_weights(folder, change)
    with pytest.raises(ValueError, match="do not fit its config") as caught:
        hub.load(folder)
    message = str(caught.value)
    assert "missing keys: mlp1.1.bias" in message
    assert "unexpected keys: surplus.weight" in message
    assert "mismatched keys: mlp1.0.weight" in message  # 5.x adds the shapes


def test_missing_shards_are_named(tmp_path):
    folder = tmp_path / "shards"
    shutil.copytree(support.checkpoint("qwen2"), folder)
    (folder / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks model-00002-of-00004.safetensors of the 4"):
        hub.load(folder)


def test_truncated_weights_are_named(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"model.safetensors is damaged or incomplete"):
        hub.load(folder)


def test_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no model.safetensors"):
        hub.load(folder)
    assert hub.prepare(folder).processor.image_seq_length == 16  # which needs none


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"template": "vicuna"}, "template 'vicuna' is unknown"),
        ({"template": None}, "config.json has no `template`"),
        ({"model_type": "llava"}, "model_type 'llava'"),
        ({"model_type": "internvl"}, "transformers' own InternVL"),
        ({"template": "phi3-chat", "system_message": ""}, None),
        ({"ps_version": "v3"}, "ps_version is 'v3'"),
    ],
)
def test_configs(folder, fields, complaint):
    edit_config(folder, **fields)
    if complaint is None:
        assert hub.load(folder).processor.template == "phi3-chat"
        return
    for door in (hub.load, hub.prepare):
        with pytest.raises(ValueError, match=complaint):
            door(folder)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_config_that_is_no_object(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config.json"):
        hub.load(folder)


def test_tokenizer_of_the_language_model_alone(folder):
    for name in ("tokenizer.json", "tokenizer_config.json", "added_tokens.json"):
        path = folder / name
        path.write_text(path.read_text("utf-8").replace("<IMG_CONTEXT>", "<OTHER>"))
    (folder / "special_tokens_map.json").unlink()
    with pytest.raises(ValueError, match="has no <IMG_CONTEXT>"):
        hub.load(folder)


def test_tokenizer_beyond_the_embedding(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    config["llm_config"]["vocab_size"] = 1000
    path.write_text(json.dumps(config))

    def change(weights):
        for key in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
            weights[key] = weights[key][:1000].clone()

    edit_weights(folder, change)
    with pytest.raises(ValueError, match="ids up to 1017, but the embedding has 1000 rows"):
        hub.load(folder)


def test_no_tokenizer(folder):
    for file in [*folder.glob("*token*"), folder / "vocab.json", folder / "merges.txt"]:
        file.unlink()
    with pytest.raises(ValueError, match="add the checkpoint's tokenizer"):
        hub.load(folder)


def test_files_that_contradict_each_other(folder):
    fields = {"processor_class": "InternVLChatProcessor", "image_seq_length": 256}
    (folder / "processor_config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"image_seq_length in processor_config.json is 256"):
        hub.load(folder)


def test_a_normalisation_that_the_model_does_not_know(folder):
    half = {"image_processor_type": "InternVLChatImageProcessor", "image_mean": [0.5, 0.5, 0.5]}
    tiles = {"size": 112, "max_tiles": 6}
    (folder / "preprocessor_config.json").write_text(json.dumps({**half, **tiles}))
    with pytest.raises(ValueError, match=r"image_mean in preprocessor_config.json is \[0.5, 0.5"):
        hub.load(folder)
    fields = json.loads((folder / "config.json").read_text())
    fields["image_mean"] = [0.5, 0.5, 0.5]
    (folder / "config.json").write_text(json.dumps(fields))
    assert hub.prepare(folder).config.image_mean == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("source", ["no such/place/at all", "../nowhere", "a/b/c"])
def test_places_that_do_not_exist(source):
    with pytest.raises(FileNotFoundError, match="neither a folder nor the id"):
        hub.load(source)


def test_subfolder_that_does_not_exist(folder):
    with pytest.raises(FileNotFoundError, match="nothing"):
        hub.load(folder, subfolder="nothing")
