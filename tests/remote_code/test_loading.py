"""The repository loads as users load it: Auto classes in a fresh process, from folders and from a Hub cache.

Each case runs in a process of its own, offline and with its own module cache, because transformers keeps the code
it loaded for the life of a process.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import support

PRELUDE = """
import json, sys, torch, transformers
from transformers import (AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor,
                          AutoTokenizer)
from PIL import Image
torch.manual_seed(0)
picture = Image.effect_mandelbrot((150, 100), (-2, -1.2, 1, 1.2), 40).convert("RGB")
settings = dict(max_new_tokens=8, do_sample=False)

def answers(where, **options):
    kwargs = dict(trust_remote_code=True, **options)
    model = AutoModel.from_pretrained(where, dtype=torch.float32, **kwargs).eval()
    tokenizer = AutoTokenizer.from_pretrained(where, use_fast=False, **kwargs)
    processor = AutoProcessor.from_pretrained(where, **kwargs)
    tiles = processor.image_processor(picture, return_tensors="pt")
    chat = model.chat(tokenizer, tiles["pixel_values"], "<image>\\nWhat?", settings)
    message = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What?"}]}]
    inputs = processor.apply_chat_template(message, tokenize=True, return_dict=True, return_tensors="pt",
                                           add_generation_prompt=True)
    with torch.no_grad():
        last = model(**{k: inputs[k] for k in ("input_ids", "attention_mask", "pixel_values")}).logits[0, -1]
    new = model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1]:]
    text = processor.batch_decode(new, skip_special_tokens=True)[0].split("<|im_end|>")[0].strip()
    return model, tokenizer, processor, dict(chat=chat, generate=text, logits=last.tolist())
"""


def run(code: str, cache: Path, **environment: str) -> dict:
    """Run code after the prelude in a fresh process; it prints one JSON object last."""
    env = {
        **os.environ,
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(cache / "modules"),
        "PYTHONPATH": "",
        **environment,
    }
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PRELUDE + code],
        env=env,
        cwd=cache,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout.strip().splitlines()[-1])


def write_repository(folder: Path, name: str = "qwen2") -> Path:
    """A Hub repository: this code, a golden checkpoint, and processor files for its tile size."""
    support.copy_code(folder)
    shutil.copytree(support.checkpoint(name), folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    root = json.loads((support.ROOT / "config.json").read_text())
    config |= {"auto_map": root["auto_map"], "img_context_token_id": support.IMG_CONTEXT_ID}
    (folder / "config.json").write_text(json.dumps(config))
    side = support.tile_size(name)
    for file in ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"):
        fields = json.loads((support.ROOT / file).read_text())
        for key in ("size", "crop_size"):
            if key in fields:
                fields[key] = {"height": side, "width": side}
        if "image_seq_length" in fields:
            fields["image_seq_length"] = (side // 28) ** 2
        if "template" in fields:
            fields["template"] = config["template"]
        (folder / file).write_text(json.dumps(fields))
    template = support.conversation.get_conv_template(config["template"])
    jinja = support.conversation.chat_template(template)
    (folder / "chat_template.jinja").write_text(jinja, encoding="utf-8")
    return folder


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
    write_repository(tmp_path / "other")
    (tmp_path / "repository" / "demo").mkdir()
    for file in (tmp_path / "other").iterdir():
        if file.is_file() and file.suffix != ".py":
            shutil.copy(file, tmp_path / "repository" / "demo")
    same(run('print(json.dumps(answers("repository", subfolder="demo")[-1]))', tmp_path), expected)


def test_save_and_load_again(tmp_path, expected):
    """What one process saves, model and processor into one folder, another loads without the source."""
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
    same(run('print(json.dumps(answers("saved")[-1]))', tmp_path), expected)


def test_every_auto_class_and_every_loading_argument_of_the_model_cards(tmp_path):
    write_repository(tmp_path / "repository")
    code = """
common = dict(low_cpu_mem_usage=True, trust_remote_code=True)
loaded = [
    AutoModel.from_pretrained("repository", torch_dtype=torch.bfloat16, use_flash_attn=True, **common),
    AutoModel.from_pretrained("repository", dtype="auto", use_flash_attn=False, **common),
    AutoModelForCausalLM.from_pretrained("repository", **common),
    AutoModelForImageTextToText.from_pretrained("repository", **common),
]
config = AutoConfig.from_pretrained("repository", trust_remote_code=True)
built = AutoModel.from_config(config, trust_remote_code=True)
print(json.dumps(dict(classes=[type(m).__name__ for m in [*loaded, built]], first=str(loaded[0].dtype),
    parameters=len({sum(p.numel() for p in m.parameters()) for m in [*loaded, built]}),
    missing=[m for m in ("timm", "torchvision", "peft", "av", "einops", "flash_attn") if m in sys.modules])))
"""
    result = run(code, tmp_path)
    assert set(result["classes"]) == {"InternVLChatModel"}
    assert result["first"] == "torch.bfloat16"
    assert result["parameters"] == 1
    assert result["missing"] == []


def test_pipeline(tmp_path, expected):
    write_repository(tmp_path / "repository")
    code = """
from transformers import pipeline
pipe = pipeline("image-text-to-text", model="repository", trust_remote_code=True, dtype=torch.float32)
message = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What?"}]}]
out = pipe(text=message, max_new_tokens=8, return_full_text=False, generate_kwargs=dict(do_sample=False))
print(json.dumps(out[0]["generated_text"]))
"""
    answer = run(code, tmp_path)
    assert answer.split("<|im_end|>")[0].strip() == expected["generate"]
