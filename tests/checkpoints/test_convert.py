"""`internvl.checkpoints.convert`: to transformers' own InternVL and back, every family."""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil

import pytest
import torch
import transformers
from einops import rearrange
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

from internvl import hub
from internvl.checkpoints.convert import convert
from internvl.checkpoints.native import check as native_check
from internvl.checkpoints.native.names import INTERNLM2_QKV, Fused, NameMap
from internvl.checkpoints.settings import code_files, upgrade_config
from tests import support
from tests.checkpoints.native import altered, llama_checkpoint, native_processor
from tests.checkpoints.sources import weights

FAMILIES = (*support.NAMES, "llama", "demo")
CASES = {"text": None, "image_single": "C", "image_multitile": "A", "two_images": "AB"}
needs_5 = pytest.mark.skipif(
    int(transformers.__version__.split(".")[0]) < 5,
    reason="the native class of 4.57 fails for a vision_feature_layer other than -1",
)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Converts a family once: (source, native folder, report)."""
    root = tmp_path_factory.mktemp("native")
    made = {}

    def place(family):
        if family not in made:
            if family == "llama":
                source = llama_checkpoint(root / "llama_source")
            else:
                source = hub.DEMO if family == "demo" else support.checkpoint(family)
            report = convert(source, root / family, to="native", max_shard_size="1MB")
            made[family] = (source, root / family, report)
        return made[family]

    return place


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def config_of(folder):
    return read(folder / "config.json")


def load_native(folder):
    model, info = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    return model.eval()


def altered_native(native, folder, **fields):
    """A copy of a native checkpoint with other fields in its config.json."""
    shutil.copytree(native, folder)
    (folder / "config.json").write_text(json.dumps(config_of(native) | fields), encoding="utf-8")
    return folder


# ---------------------------------------------------------------------- there and back
@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back_changes_nothing(family, places, tmp_path):
    source, native, report = places(family)
    assert report.tensors == len(weights(native))
    assert report.bytes == sum(t.nbytes for t in weights(native).values())
    # Written in fp32 by the same kernels: measured 0 on both lines.
    assert report.logits.keys() == {"text", "one tile", "five tiles"}
    assert max(report.logits.values()) < 1e-4
    assert not list(native.rglob("*.py"))
    back = tmp_path / "back"
    assert max(convert(native, back, to="official").logits.values()) < 1e-4
    assert all((back / name).is_file() for name in code_files())
    before, after = weights(source), weights(back)
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert after[name].dtype == value.dtype
        assert torch.equal(after[name], value), name
    stored = str(next(iter(before.values())).dtype).removeprefix("torch.")
    wanted, found = upgrade_config(config_of(source), dtype=stored), config_of(back)
    assert config_of(native)["torch_dtype"] == wanted["torch_dtype"]
    assert found.pop("img_context_token_id") == hub.prepare(source).processor.image_token_id
    wanted.pop("img_context_token_id")
    wanted["llm_config"].setdefault("rope_scaling", None)  # which is what no field means
    assert found == wanted
    before, after = hub.prepare(source), hub.prepare(back)
    assert after.tokenizer.get_vocab() == before.tokenizer.get_vocab()
    assert after.processor.chat_template == before.processor.chat_template
    for part in ("image_processor", "video_processor"):
        parts = [getattr(each.processor, part).to_dict() for each in (before, after)]
        assert {**parts[0], "auto_map": None} == {**parts[1], "auto_map": None}


@torch.no_grad()
def test_the_native_model_gives_the_logits_of_the_official_code(name, places):
    """fp32 within 1e-4 of what the official code computed; measured worst case 3e-5."""
    native = load_native(places(name)[1])
    assert type(native).__name__ == "InternVLForConditionalGeneration"
    expected = support.golden(name)
    for case, images in CASES.items():
        inputs = {
            "input_ids": expected[f"logits.{case}.input_ids"],
            "attention_mask": expected[f"logits.{case}.attention_mask"],
        }
        if images:
            inputs["pixel_values"] = support.pixels(name, images)
        torch.testing.assert_close(
            native(**inputs).logits[:, -2:],
            expected[f"logits.{case}.last_logits"],
            atol=1e-4,
            rtol=0,
            msg=case,
        )


def test_internlm2_without_the_note_is_a_llama(places, tmp_path):
    _, native, _ = places("internlm2")
    copy = altered_native(native, tmp_path / "copy", internvl_chat=None)
    with pytest.raises(ValueError, match=r"names no prompt template; pass .*internlm2-chat"):
        convert(copy, tmp_path / "out", to="official")
    report = convert(copy, tmp_path / "out", to="official", template="internlm2-chat")
    assert max(report.logits.values()) < 1e-4
    config = config_of(tmp_path / "out")
    assert config["llm_config"]["model_type"] == "llama"
    assert config["llm_config"]["rope_scaling"]["factor"] == 2.0
    assert config["template"] == "internlm2-chat"
    loaded = hub.load(tmp_path / "out", dtype="float32")
    assert loaded.model.num_image_token == 16
    with pytest.raises(ValueError, match="names template 'internlm2-chat', got 'Hermes-2'"):
        convert(native, tmp_path / "other", to="official", template="Hermes-2")


def test_what_was_changed_natively_comes_back_changed(places, tmp_path):
    """Trained and saved by transformers, which keeps the note, in its own prefixes and files."""
    source, native, _ = places("internlm2")
    model = load_native(native)
    rows = model.model.language_model.layers[1].self_attn.k_proj.weight
    with torch.no_grad():
        rows *= 3
    model.config.vision_config.layer_scale_init_value = 0.5
    saved = tmp_path / "saved"
    model.save_pretrained(saved, max_shard_size="1MB")
    AutoTokenizer.from_pretrained(native).save_pretrained(saved)
    AutoImageProcessor.from_pretrained(native).save_pretrained(saved)
    images = read(saved / "preprocessor_config.json")
    nested = {"image_processor": images | {"max_patches": 6}}  # as transformers 5 nests it
    (saved / "processor_config.json").write_text(json.dumps(nested), encoding="utf-8")
    convert(saved, tmp_path / "back", to="official")
    name = "language_model.model.layers.1.attention.wqkv.weight"
    before, after = weights(source)[name], weights(tmp_path / "back")[name]
    # k key heads of (g queries, key, value), as the official modeling_internlm2.py cuts them.
    before, after = (rearrange(w, "(k gs d) c -> k gs d c", gs=5, d=16) for w in (before, after))
    assert torch.equal(after[:, 3], before[:, 3] * 3)
    assert torch.equal(after[:, [0, 1, 2, 4]], before[:, [0, 1, 2, 4]])
    config = config_of(tmp_path / "back")
    assert config["llm_config"]["model_type"] == "internlm2"
    assert config["torch_dtype"] == "float32"
    assert config["max_dynamic_patch"] == 6
    assert config["vision_config"]["initializer_factor"] == 0.5
    vocabulary = hub.prepare(tmp_path / "back").tokenizer.get_vocab()
    assert "<video>" not in vocabulary  # which transformers added beyond the embedding
    assert vocabulary == hub.prepare(source).tokenizer.get_vocab()


# ---------------------------------------------------------------------- answers
def message(role, *content):
    """A message whose content is a list, which the native processor of 4.57 demands."""
    items = (
        {"type": "text", "text": item}
        if isinstance(item, str)
        else {"type": "image", "image": item}
        for item in content
    )
    return {"role": role, "content": list(items)}


@pytest.mark.parametrize("question", ["What color is the circle?", "Where is the circle?"])
def test_the_demo_answers_natively_as_ours(places, question):
    """transformers' classes from end to end: template, tiles, model, generate, decoding."""
    native = places("demo")[1]
    processor, model = native_processor(native), load_native(native)
    image = Image.open(support.ROOT / "examples" / "circle.png")
    inputs = processor.apply_chat_template(
        [message("user", image, question)],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    output = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    text = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    ours = hub.load(dtype="float32")
    tiles = ours.processor.image_processor(image, return_tensors="pt")["pixel_values"]
    options = {"max_new_tokens": 20, "do_sample": False}
    assert text == ours.model.chat(ours.tokenizer, tiles, f"<image>\n{question}", options)
    expected = read(support.ROOT / "examples" / "questions.json")
    answers = {e["question"]: e["expected"] for e in expected if e.get("image") == "circle.png"}
    assert text.strip(".").lower() == answers[question]


@pytest.mark.parametrize("size", [(100, 80), (448, 224), (333, 777), (900, 610)])
def test_the_native_processor_gives_our_ids_and_pixels(places, size):
    source, native, _ = places("qwen2")
    ours, theirs = hub.prepare(source).processor, native_processor(native)
    picture = Image.linear_gradient("L").resize(size).convert("RGB")
    dialogue = [
        message("system", "Be brief."),
        message("user", picture, "Compare  <b>them</b>.\n你好 🙂"),
        message("assistant", "They are alike."),
        message("user", picture, "Sure?"),
    ]
    options = {
        "add_generation_prompt": True,
        "tokenize": True,
        "return_dict": True,
        "return_tensors": "pt",
    }
    expected = ours.apply_chat_template(dialogue, **options)
    found = theirs.apply_chat_template(dialogue, **options)
    assert torch.equal(found["input_ids"], expected["input_ids"])
    assert torch.equal(found["pixel_values"], expected["pixel_values"])


@pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None,
    reason="AutoProcessor loads the native video processor, which needs torchvision",
)
def test_auto_processor_loads(places):
    processor = AutoProcessor.from_pretrained(places("demo")[1])
    assert type(processor).__name__ == "InternVLProcessor"
    assert processor.image_seq_length == 16
    assert processor.image_processor.max_patches == 1


# ---------------------------------------------------------------------- rotary settings, layers
ROTARY = {
    "internlm2_dynamic": ("internlm2", {"max_position_embeddings": 48}),
    "internlm2_linear": ("internlm2", {"rope_scaling": {"type": "linear", "factor": 3.0}}),
    "phi3_su_short": ("phi3", {"original_max_position_embeddings": 4096}),
    "phi3_su_long": ("phi3", {"original_max_position_embeddings": 40}),
}
SU = {
    "max_position_embeddings": 131072,
    "rope_scaling": {
        "type": "su",
        "short_factor": [1.0 + i / 8 for i in range(8)],
        "long_factor": [1.0 + i for i in range(8)],
    },
}


@pytest.mark.parametrize("case", ROTARY)
def test_scaled_rotary_embeddings(case, tmp_path):
    """Inputs of 24, 40 and 104 positions, below and beyond where the scaling starts.

    Measured: 0, but 5e-5 for "linear", where the two divide in another order.
    """
    name, llm = ROTARY[case]
    llm = (SU if name == "phi3" else {}) | llm
    source = altered(support.checkpoint(name), tmp_path / "source", llm=llm)
    report = convert(source, tmp_path / "native", to="native")
    assert max(report.logits.values()) < 1e-4
    told = [note for note in report.notes if "beyond 48 positions" in note]
    assert len(told) == (case == "internlm2_dynamic")
    convert(tmp_path / "native", tmp_path / "back", to="official", check=False)
    scaling = upgrade_config(config_of(source))["llm_config"]["rope_scaling"]
    assert config_of(tmp_path / "back")["llm_config"]["rope_scaling"] == scaling


@needs_5
@pytest.mark.parametrize("layer", [-2, -4, 2])
def test_select_layer(layer, tmp_path):
    source = altered(support.checkpoint("qwen2"), tmp_path / "source", select_layer=layer)
    report = convert(source, tmp_path / "native", to="native")
    assert max(report.logits.values()) < 1e-4
    convert(tmp_path / "native", tmp_path / "back", to="official", check=False)
    assert config_of(tmp_path / "back")["select_layer"] == layer


@pytest.mark.parametrize("name", ["qwen2", "qwen2_vit6b"])
def test_tiles_of_another_size_than_the_position_embedding(name, tmp_path):
    side = {"qwen2": 56, "qwen2_vit6b": 112}[name]
    source = altered(support.checkpoint(name), tmp_path / "source", force_image_size=side)
    assert max(convert(source, tmp_path / "native", to="native").logits.values()) < 1e-4
    convert(tmp_path / "native", tmp_path / "back", to="official", check=False)
    assert config_of(tmp_path / "back")["force_image_size"] == side


# ---------------------------------------------------------------------- shapes and names
@pytest.mark.parametrize("shape", [(160, 96), (160,)], ids=["weight", "bias"])
def test_rows_of_a_fused_projection(shape):
    """As einops cuts them in the official InternLM2 code, and as torch chunks those of the ViT."""
    fused = torch.randn(shape)
    q, k, v = Fused(2, (3, 1, 1)).split(fused)
    grouped = rearrange(fused, "(h gs d) ... -> h gs d ...", gs=5, d=16)
    assert torch.equal(q, rearrange(grouped[:, :3], "h gs d ... -> (h gs d) ..."))
    assert torch.equal(k, rearrange(grouped[:, 3], "h d ... -> (h d) ..."))
    assert torch.equal(v, rearrange(grouped[:, 4], "h d ... -> (h d) ..."))
    assert torch.equal(Fused(2, (3, 1, 1)).join([q, k, v]), fused)
    thirds = Fused(1, (1, 1, 1)).split(fused[:159])
    assert all(map(torch.equal, thirds, fused[:159].chunk(3)))


def test_every_name_has_one_place(name):
    config = support.load(name).config
    names = NameMap(config)
    official = weights(support.checkpoint(name))
    targets = [target for each in official for target in names.native(each)[0]]
    assert len(set(targets)) == len(targets)
    assert (INTERNLM2_QKV in names.fused) == (name == "internlm2")
    with pytest.raises(ValueError, match=r"vision_model\.extra is not the name"):
        names.native("vision_model.extra")


# ---------------------------------------------------------------------- what is caught
def test_a_changed_tensor_is_caught(places, tmp_path):
    source, native, _ = places("qwen2")
    copy = altered_native(native, tmp_path / "copy")
    for file in copy.glob("*.safetensors"):
        stored = {name: value.clone() for name, value in load_file(file).items()}
        for name in stored:
            if name.endswith("linear_1.bias"):
                stored[name][0] += 0.5
        save_file(stored, file, metadata={"format": "pt"})
    config = hub.build_config(config_of(source) | {"img_context_token_id": support.IMG_CONTEXT_ID})
    with pytest.raises(ValueError, match="the logits of one tile differ by"):
        native_check.compare_logits(source, copy, config, native=copy)


def test_a_changed_template_is_caught(places, tmp_path):
    source, native, _ = places("qwen2")
    copy = altered_native(native, tmp_path / "copy")
    jinja = copy / "chat_template.jinja"
    jinja.write_text(jinja.read_text(encoding="utf-8").replace("'<|im_end|>\\n'", "'<|im_end|>'"))
    with pytest.raises(ValueError, match="encode a dialogue as"):
        native_check.compare_prompts(hub.prepare(source), copy)


@pytest.mark.parametrize("to", ["native", "official"])
def test_a_missing_tensor_is_named_and_nothing_is_left(to, places, tmp_path):
    source, native, _ = places("qwen2_vit6b")
    folder, origin = tmp_path / "damaged", source if to == "native" else native
    shutil.copytree(origin, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    stored = weights(origin)
    lost = next(name for name in stored if name.endswith("q_norm.weight"))
    stored.pop(lost)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"1 missing: {lost}"):
        convert(folder, tmp_path / "out", to=to)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged"]


def test_refused_calls(places, tmp_path):
    source, native, _ = places("qwen2")
    with pytest.raises(ValueError, match="to is 'hf', expected one of"):
        convert(source, tmp_path / "out", to="hf")
    with pytest.raises(ValueError, match="model_type 'internvl', expected 'internvl_chat'"):
        convert(native, tmp_path / "out", to="native")
    with pytest.raises(ValueError, match="model_type 'internvl_chat', expected 'internvl'"):
        convert(source, tmp_path / "out", to="official")
    with pytest.raises(FileExistsError, match="not an empty folder"):
        convert(source, native, to="native")
    assert not list(tmp_path.iterdir())


def test_without_the_check_it_says_so(places, tmp_path, caplog):
    source, native, _ = places("qwen2")
    killed = tmp_path / "out.partial"  # as a run that was killed leaves it
    (killed / "folder").mkdir(parents=True)
    (killed / "folder" / "stale.txt").write_text("")
    (killed / "journal.json").write_text('{"made_by": "internvl.checkpoints.staging"}')
    with caplog.at_level(logging.WARNING, logger="internvl"):
        report = convert(source, tmp_path / "out", to="native", check=False, max_shard_size="1MB")
    assert report.logits is None
    assert "were not compared" in caplog.text
    names = {path.name for path in native.iterdir()}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert "model.safetensors.index.json" in names
    assert all(file.stat().st_size < 1.01e6 for file in native.glob("model-*.safetensors"))
