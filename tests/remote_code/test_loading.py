"""The repository loads as users load it: Auto classes, fresh process, folders and Hub cache."""

from __future__ import annotations

import shutil

import pytest

from tests import support
from tests.remote_code.process import run, write_repository


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict:
    """What the checkpoint answers from a plain local folder."""
    base = tmp_path_factory.mktemp("plain")
    write_repository(base / "repository")
    result = run('print(json.dumps(answers("repository")[-1]))', base)
    assert result["chat"] == result["generate"]
    return result


def same(result: dict, expected: dict) -> None:
    assert result["chat"] == expected["chat"]
    assert result["generate"] == expected["generate"]
    assert result["logits"] == pytest.approx(expected["logits"], abs=1e-5)


def test_folder_with_dots_and_spaces(tmp_path, expected):
    write_repository(tmp_path / "InternVL2.5-8B v1.0")
    same(run('print(json.dumps(answers("InternVL2.5-8B v1.0")[-1]))', tmp_path), expected)


def test_hub_cache(tmp_path, expected):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--InternVL2_5-Tiny"
    write_repository(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    same(run('print(json.dumps(answers("someone/InternVL2_5-Tiny")[-1]))', tmp_path), expected)


def test_subfolder_takes_the_code_from_the_root(tmp_path, expected):
    support.copy_code(tmp_path / "repository")
    # As in this repository, the root has files of its own, for larger tiles; 4.57 finds the
    # processor class there.
    for file in support.ROOT.glob("*processor_config.json"):
        shutil.copy(file, tmp_path / "repository")
    write_repository(tmp_path / "other")
    (tmp_path / "repository" / "demo").mkdir()
    for file in (tmp_path / "other").iterdir():
        if file.is_file() and file.suffix != ".py":
            shutil.copy(file, tmp_path / "repository" / "demo")
    same(run('print(json.dumps(answers("repository", subfolder="demo")[-1]))', tmp_path), expected)


def test_save_and_load_again(tmp_path, expected):
    """One process saves model and processor into a folder; another loads it without the source."""
    write_repository(tmp_path / "repository")
    save = """
model, tokenizer, processor, _ = answers("repository")
model.save_pretrained("saved", max_shard_size="500KB")
processor.save_pretrained("saved")
print(json.dumps(len(model.state_dict())))
"""
    assert run(save, tmp_path)
    shutil.rmtree(tmp_path / "repository")
    shutil.rmtree(tmp_path / "modules")
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) >= 3
    # 4.57 makes the slow tokenizer of `use_fast=False` from these; 5.x does not write them.
    assert {"vocab.json", "merges.txt"} <= {file.name for file in (tmp_path / "saved").iterdir()}
    same(run('print(json.dumps(answers("saved")[-1]))', tmp_path), expected)


def test_every_auto_class_and_every_loading_argument_of_the_model_cards(tmp_path):
    write_repository(tmp_path / "repository")
    code = """
common = dict(low_cpu_mem_usage=True, trust_remote_code=True)
card = dict(torch_dtype=torch.bfloat16, use_flash_attn=True)
loaded = [
    AutoModel.from_pretrained("repository", **card, **common),
    AutoModel.from_pretrained("repository", dtype="auto", use_flash_attn=False, **common),
    AutoModelForCausalLM.from_pretrained("repository", **common),
    AutoModelForImageTextToText.from_pretrained("repository", **common),
]
config = AutoConfig.from_pretrained("repository", trust_remote_code=True)
built = AutoModel.from_config(config, trust_remote_code=True)
models = [*loaded, built]
unwanted = {"timm", "torchvision", "peft", "av", "einops", "flash_attn"}
print(json.dumps(dict(
    classes=[type(m).__name__ for m in models],
    first=str(loaded[0].dtype),
    parameters=len({sum(p.numel() for p in m.parameters()) for m in models}),
    imported=sorted(unwanted & sys.modules.keys()),
)))
"""
    result = run(code, tmp_path)
    assert set(result["classes"]) == {"InternVLChatModel"}
    assert result["first"] == "torch.bfloat16"
    assert result["parameters"] == 1
    assert result["imported"] == []


def test_pipeline(tmp_path, expected):
    write_repository(tmp_path / "repository")
    code = """
from transformers import pipeline
kwargs = dict(trust_remote_code=True, dtype=torch.float32)
pipe = pipeline("image-text-to-text", model="repository", **kwargs)
greedy = dict(do_sample=False)
out = pipe(text=message, max_new_tokens=8, return_full_text=False, generate_kwargs=greedy)
print(json.dumps(out[0]["generated_text"]))
"""
    answer = run(code, tmp_path)
    assert answer.split("<|im_end|>")[0].strip() == expected["generate"]


def test_a_vision_encoder_folder(tmp_path):
    """InternViT folders hold keys without the `vision_model.` prefix and their own auto_map."""
    write_repository(tmp_path / "repository", "qwen2_vit6b")
    code = """
import pathlib, shutil
whole = AutoModel.from_pretrained("repository", trust_remote_code=True, dtype=torch.float32).eval()
whole.vision_model.save_pretrained("encoder")
fields = json.loads(pathlib.Path("encoder/config.json").read_text())
fields["auto_map"] = {
    "AutoConfig": "configuration_intern_vit.InternVisionConfig",
    "AutoModel": "modeling_intern_vit.InternVisionModel",
}
pathlib.Path("encoder/config.json").write_text(json.dumps(fields))
for file in ("configuration_intern_vit.py", "modeling_intern_vit.py"):
    shutil.copy(f"repository/{file}", "encoder")
alone = AutoModel.from_pretrained("encoder", trust_remote_code=True).eval()
pixels = torch.randn(1, 3, 56, 56)
with torch.no_grad():
    same = torch.equal(alone(pixels).pooler_output, whole.vision_model(pixels).pooler_output)
print(json.dumps([type(alone).__name__, same]))
"""
    assert run(code, tmp_path) == ["InternVisionModel", True]
