"""`hub.load`: checkpoints of every family, in every kind of place, with our classes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from internvl import hub
from tests import support


@pytest.fixture
def picture() -> Image.Image:
    return Image.linear_gradient("L").resize((200, 100)).convert("RGB")


def answer(loaded: hub.Loaded, picture: Image.Image, question: str = "What is this?") -> str:
    tiles = loaded.processor.image_processor(picture, return_tensors="pt")
    return loaded.model.chat(
        loaded.tokenizer, tiles["pixel_values"], question, {"max_new_tokens": 6, "do_sample": False}
    )


def copied(name: str, folder: Path) -> Path:
    shutil.copytree(support.checkpoint(name), folder)
    return folder


def vision_folder(name: str, folder: Path) -> Path:
    """The vision encoder of a checkpoint as the published InternViT repositories have it."""
    source = support.checkpoint(name)
    weights = {}
    for file in source.glob("*.safetensors"):
        weights |= load_file(file)
    prefix = "vision_model."
    folder.mkdir()
    vision = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    save_file(vision, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text("utf-8"))["vision_config"]
    config["auto_map"] = {"AutoModel": "modeling_intern_vit.InternVisionModel"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_every_family_loads_as_the_golden_tests_load_it(name):
    loaded = hub.load(support.checkpoint(name), dtype="float32")
    assert type(loaded.model) is support.modeling.InternVLChatModel
    assert not loaded.model.training
    assert loaded.model.dtype == torch.float32
    expected = support.load(name).state_dict()
    found = loaded.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert loaded.tokenizer.get_vocab() == support.tokenizer(name).get_vocab()
    context = loaded.tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    assert loaded.model.context_token_id == context


def test_dtype_follows_the_config_unless_told():
    assert hub.load(support.checkpoint("qwen2")).model.dtype == torch.bfloat16
    assert hub.load(support.checkpoint("qwen2"), dtype=torch.float16).model.dtype == torch.float16
    with pytest.raises(ValueError, match="dtype is 'float99'"):
        hub.load(support.checkpoint("qwen2"), dtype="float99")


def test_attention_reaches_both_parts(attention):
    config = hub.load(support.checkpoint("qwen2"), attn_implementation=attention).model.config
    assert config.vision_config._attn_implementation == attention
    assert config.llm_config._attn_implementation == attention


def test_device_map(name, picture):
    parts = {"vision_model": "cpu", "mlp1": "cpu", "language_model": "disk"}
    spread = hub.load(support.checkpoint(name), dtype="float32", device_map=parts)
    assert spread.model.hf_device_map == parts
    whole = hub.load(support.checkpoint(name), dtype="float32")
    assert answer(spread, picture) == answer(whole, picture)


def test_processor_of_a_published_checkpoint_comes_from_its_config(name, picture):
    loaded = hub.load(support.checkpoint(name))
    config, processor = loaded.model.config, loaded.processor
    images = processor.image_processor
    assert images.tile_size == config.force_image_size
    assert (images.min_tiles, images.max_tiles) == (1, 12)
    assert images.use_thumbnail == config.use_thumbnail
    assert processor.image_seq_length == loaded.model.num_image_token
    assert processor.template == config.template
    assert processor.video_processor.tile_size == images.tile_size
    template = support.conversation.chat_template(
        support.conversation.get_conv_template(config.template)
    )
    assert processor.chat_template == template == loaded.tokenizer.chat_template
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image", "image": picture}]}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert inputs["pixel_values"].shape[0] == sum(inputs["num_tiles"]) > 1


def test_config_without_tiling_gives_one_tile(tmp_path, picture):
    folder = copied("qwen2", tmp_path / "plain")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {"dynamic_image_size": False, "system_message": "Be brief."}
    (folder / "config.json").write_text(json.dumps(config))
    prepared = hub.prepare(folder)
    assert prepared.processor.image_processor(picture)["num_tiles"] == [1]
    assert "'Be brief.'" in prepared.processor.chat_template


def test_settings_of_our_own_files_win(tmp_path):
    folder = copied("qwen2", tmp_path / "own")
    published = hub.prepare(folder)
    published.processor.image_processor.max_tiles = 3
    published.processor.video_processor.num_frames = 5
    files = {
        "preprocessor_config.json": published.processor.image_processor.to_dict(),
        "video_preprocessor_config.json": published.processor.video_processor.to_dict(),
        "processor_config.json": {**published.processor.to_dict(), "frame_prefix": "F{index}="},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    processor = hub.prepare(folder).processor
    assert processor.image_processor.max_tiles == 3
    assert processor.video_processor.num_frames == 5
    assert processor.frame_prefix == "F{index}="
    assert processor.chat_template == "{{ messages[0]['content'] }}"


def test_clip_processor_of_a_published_checkpoint_is_not_looked_at(tmp_path):
    folder = copied("qwen2", tmp_path / "clip")
    clip = {"image_processor_type": "CLIPFeatureExtractor", "size": 64, "image_mean": [0, 0, 0]}
    (folder / "preprocessor_config.json").write_text(json.dumps(clip))
    assert hub.prepare(folder).processor.image_processor.tile_size == 112


@pytest.mark.parametrize(
    "name", ["InternVL2.5-8B v1.0", "models--x--y", "ünï côdé", "InternVL2_5-8B"]
)
def test_folder_names_do_not_matter(tmp_path, name, picture):
    folder = copied("qwen2", tmp_path / name)
    expected = answer(hub.load(support.checkpoint("qwen2")), picture)
    assert answer(hub.load(str(folder)), picture) == expected
    assert answer(hub.load(tmp_path, subfolder=name), picture) == expected


def test_vision_encoder_alone(tmp_path, name):
    folder = vision_folder(name, tmp_path / "InternViT")
    loaded = hub.load(folder, dtype="float32")
    assert type(loaded.model) is support.modeling_vit.InternVisionModel
    assert loaded.tokenizer is None
    side = support.tile_size(name)
    tiles = loaded.processor(Image.new("RGB", (300, 90), "red"), return_tensors="pt")
    assert tiles["pixel_values"].shape == (1, 3, side, side)
    whole = support.load(name).vision_model
    with torch.no_grad():
        found = loaded.model(tiles["pixel_values"]).last_hidden_state
        assert torch.equal(found, whole(tiles["pixel_values"]).last_hidden_state)


def internlm2_folder(folder: Path) -> Path:
    """The InternLM2 checkpoint with a tokenizer as the published ones have it."""
    sentencepiece = pytest.importorskip("sentencepiece")
    ignored = shutil.ignore_patterns("*token*", "vocab.json", "merges.txt")
    shutil.copytree(support.checkpoint("internlm2"), folder, ignore=ignored)
    corpus = [f"sample {i}: what is {i} plus {i * 7}? the answer is {i * 8}." for i in range(300)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        minloglevel=2,
    )
    added = {
        str(400 + i): {"content": token, "special": True}
        for i, token in enumerate(
            ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")
        )
    }
    config = {
        "tokenizer_class": "InternLM2Tokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
        "added_tokens_decoder": added,
        "chat_template": "{{ 'You are Qwen' }}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_internlm2_tokenizer_is_ours_and_not_that_of_the_folder(tmp_path, picture, monkeypatch):
    folder = internlm2_folder(tmp_path / "InternVL2_5-8B")
    marker = tmp_path / "marker"
    (folder / "tokenization_internlm2.py").write_text(f"open({str(marker)!r}, 'w')")
    loaded = hub.load(folder, dtype="float32")
    assert type(loaded.tokenizer).__module__ == "internvl_hub.tokenization_internlm2"
    assert loaded.model.context_token_id == 404
    assert "Qwen" not in loaded.tokenizer.chat_template
    inputs = loaded.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image", "image": picture}]}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert inputs["input_ids"][0, 0] == loaded.tokenizer.bos_token_id
    with torch.no_grad():
        inputs.pop("num_tiles")
        assert loaded.model(**inputs).logits.isfinite().all()
    assert not marker.exists()
    monkeypatch.setitem(sys.modules, "internvl_hub.tokenization_internlm2", None)
    with pytest.raises(ImportError, match=r"internvl\[internlm\]"):
        hub.load(folder)


def test_the_demo_is_the_default(tmp_path, monkeypatch, picture):
    monkeypatch.setattr(hub, "DEMO", copied("phi3", tmp_path / "demo"))
    assert hub.load().model.config.template == "phi3-chat"
    monkeypatch.setattr(hub, "DEMO", tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="absent"):
        hub.load()


def test_adapter(tmp_path, picture):
    peft = pytest.importorskip("peft")
    base = hub.load(support.checkpoint("qwen2"), dtype="float32")
    plain = answer(base, picture)
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    tuned = peft.get_peft_model(base.model, lora)
    expected = tuned.chat(
        base.tokenizer,
        base.processor.image_processor(picture, return_tensors="pt")["pixel_values"],
        "What is this?",
        {"max_new_tokens": 6, "do_sample": False},
    )
    tuned.save_pretrained(tmp_path / "adapter")
    loaded = hub.load(support.checkpoint("qwen2"), dtype="float32", adapter=tmp_path / "adapter")
    assert answer(loaded, picture) == expected != plain
    with pytest.raises(ValueError, match=r"adapter in .* does not fit"):
        hub.load(support.checkpoint("internlm2"), adapter=tmp_path / "adapter")
    shutil.copy(support.checkpoint("qwen2") / "config.json", tmp_path / "adapter")
    with pytest.raises(ValueError, match="is a PEFT adapter"):
        hub.load(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    (tmp_path / "adapter" / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="pickled adapters are refused"):
        hub.load(support.checkpoint("qwen2"), adapter=tmp_path / "adapter")
