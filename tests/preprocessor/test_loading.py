"""The processor through files: saving, loading, the Auto classes, and transformers' pipeline."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import ImageTextToTextPipeline

from tests import support
from tests.preprocessor import helpers
from tests.preprocessor.helpers import picture

FOLDER = support.ROOT / "preprocessor"
JSON_FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {
        "role": "user",
        "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "a <img> 猫?"}],
    },
]


def ids(processor, **options):
    made = processor.apply_chat_template(
        MESSAGES, tokenize=True, return_dict=True, add_generation_prompt=True, **options
    )
    return made["input_ids"]


def siblings(file: Path) -> set[str]:
    """Names of the files beside `file` that it imports."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    assert all(node.level == 1 and node.module and "." not in node.module for node in found), file
    return {node.module for node in found}


@pytest.mark.parametrize("entry", ["image_processing", "video_processing", "processing"])
def test_entry_files_name_everything_they_need(entry):
    file = FOLDER / f"{entry}_internvl_chat.py"
    named = siblings(file)
    needed, waiting = set(), set(named)
    while waiting:
        needed |= waiting
        waiting = {each for name in waiting for each in siblings(FOLDER / f"{name}.py")} - needed
    assert named == needed, "the Hub loader of 4.57 copies only what the entry file imports itself"


def test_settings_survive_saving(tmp_path):
    processor = helpers.processor("internlm2-chat", frame_prefix="F{index} ", image_labels=False)
    processor.image_processor.max_tiles = 3
    processor.video_processor.num_frames = 5
    processor.save_pretrained(tmp_path)
    again = helpers.processing.InternVLChatProcessor.from_pretrained(tmp_path)
    for part in (lambda p: p, lambda p: p.image_processor, lambda p: p.video_processor):
        # Where the code stands is not a setting.
        before, after = ({**part(p).to_dict(), "auto_map": None} for p in (processor, again))
        assert after == before
    assert again.video_processor.num_frames == 5
    assert again.chat_template == processor.chat_template
    assert ids(again) == ids(processor)
    for name in JSON_FILES:
        assert len(json.loads((tmp_path / name).read_text())["auto_map"]) == 1
    other = helpers.processing.InternVLChatProcessor.from_pretrained(
        tmp_path, max_tiles=1, num_frames=2, template="Hermes-2"
    )
    assert other.image_processor.max_tiles == 1
    assert other.video_processor.num_frames == 2
    assert other.template == "Hermes-2"


def test_without_a_video_file_the_images_settings_hold(tmp_path):
    helpers.processor(size=42).save_pretrained(tmp_path)
    (tmp_path / "video_preprocessor_config.json").unlink()
    again = helpers.processing.InternVLChatProcessor.from_pretrained(tmp_path)
    assert again.video_processor.tile_size == 42
    helpers.video_processing.InternVLChatVideoProcessor(size=14).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has tiles of 14 pixels and .* of 42"):
        helpers.processing.InternVLChatProcessor.from_pretrained(tmp_path)


def test_saved_tokenizers_name_no_class_of_one_version_alone(tmp_path):
    helpers.processor().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert content["tokenizer_class"] != "TokenizersBackend"
    assert not isinstance(content.get("extra_special_tokens"), list)
    written = tmp_path / "tokenizer_config.json"
    written.write_text(
        json.dumps({"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<img>"]})
    )
    helpers.tokenizer_files.make_portable(tmp_path)
    assert json.loads(written.read_text()) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": ["<img>"],
    }


def test_the_file_of_the_repository():
    content = json.loads((support.ROOT / "processor_config.json").read_text())
    assert content.pop("auto_map") == {
        "AutoProcessor": "preprocessor/processing_internvl_chat.InternVLChatProcessor"
    }
    defaults = helpers.processing.InternVLChatProcessor(
        helpers.image_processor(), support.tokenizer("qwen2")
    )
    expected = defaults.to_dict()
    expected.pop("auto_map", None)
    assert content == expected


FRESH = """
import json, sys
from transformers import AutoImageProcessor, AutoProcessor
from PIL import Image
source, target = sys.argv[1:]
processor = AutoProcessor.from_pretrained(source, trust_remote_code=True, max_tiles=2)
images = AutoImageProcessor.from_pretrained(source, trust_remote_code=True)
picture = {"type": "image", "image": Image.new("RGB", (900, 300))}
messages = [{"role": "user", "content": [picture, {"type": "text", "text": "a <img> ?"}]}]
options = {"tokenize": True, "return_dict": True, "add_generation_prompt": True}
def encode(processor):
    return processor.apply_chat_template(messages, **options)
made = encode(processor)
processor.save_pretrained(target)
again = AutoProcessor.from_pretrained(target, trust_remote_code=True)
assert encode(again)["input_ids"] == made["input_ids"]
assert again.video_processor.num_frames == processor.video_processor.num_frames == 7
modules = [type(each).__module__ for each in (processor, images, again)]
report = {"ids": made["input_ids"], "tiles": made["num_tiles"], "modules": modules}
print(json.dumps(report | {"max_tiles": images.max_tiles}))
"""


def test_auto_classes_in_a_fresh_process(tmp_path):
    repository = tmp_path / "InternVL2.5-8B v1.0"
    shutil.copytree(
        FOLDER, repository / "preprocessor", ignore=shutil.ignore_patterns("__pycache__")
    )
    helpers.processor(size=448).save_pretrained(tmp_path / "saved")
    for file in (tmp_path / "saved").glob("*"):
        if file.suffix != ".py":
            shutil.copy(file, repository)
    for name in JSON_FILES:  # the settings of the saved processor, the auto_map of the repository
        content = json.loads((repository / name).read_text())
        content["auto_map"] = json.loads((support.ROOT / name).read_text())["auto_map"]
        if "num_frames" in content:
            content["num_frames"] = 7
        (repository / name).write_text(json.dumps(content))
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "PYTHONPATH": "",
    }
    target = tmp_path / "flat"
    command = [sys.executable, "-W", "ignore", "-c", FRESH, str(repository), str(target)]
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    report = json.loads(run.stdout.splitlines()[-1])
    assert all(module.startswith("transformers_modules") for module in report["modules"])
    assert ".preprocessor." in report["modules"][0]
    assert report["tiles"] == [3]
    assert report["max_tiles"] == 12
    chat = support.conversation.get_conv_template("internvl2_5")
    turns = [
        (chat.roles[0], [support.conversation.Visual(3), "\na <img> ?"]),
        (chat.roles[1], None),
    ]
    pieces = support.conversation.render(chat, turns, num_image_token=2)
    assert report["ids"] == [support.conversation.encode(pieces, support.tokenizer("qwen2"))]
    assert not (target / "preprocessor").exists()
    assert (target / "tiling.py").is_file()


@pytest.mark.filterwarnings("ignore")
def test_the_pipeline_of_transformers_answers_as_chat_does():
    model, tokenizer = support.load("qwen2"), support.tokenizer("qwen2")
    processor = helpers.processor(size=112)
    processor.image_seq_length = model.num_image_token
    pipe = ImageTextToTextPipeline(model=model, processor=processor, tokenizer=tokenizer)
    greedy = {"max_new_tokens": 6, "do_sample": False}
    content = [{"type": "image", "image": picture()}, {"type": "text", "text": "What is it?"}]
    messages = [{"role": "user", "content": content}]
    (answer,) = pipe(text=messages, return_full_text=False, generate_kwargs=dict(greedy))
    tiles = processor.image_processor(picture(), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model.chat(tokenizer, tiles, "What is it?", greedy)
    assert answer["generated_text"].strip() == expected
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    (answer,) = pipe(
        images=picture(), text=prompt, return_full_text=False, generate_kwargs=dict(greedy)
    )
    assert answer["generated_text"].strip() == expected
