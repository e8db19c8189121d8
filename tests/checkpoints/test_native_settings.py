"""What transformers' own InternVL cannot express is refused by name, and so is the reverse."""

from __future__ import annotations

import json
import shutil

import pytest
import transformers
from transformers import AutoConfig

from internvl import hub
from internvl.checkpoints.build_variants import files
from internvl.checkpoints.convert import convert
from internvl.checkpoints.native.fields import published_settings
from internvl.checkpoints.native.settings import native_config
from internvl.checkpoints.published import CHAT_MODELS
from internvl.checkpoints.settings import upgrade_config
from tests import support
from tests.checkpoints.native import altered

OLD = int(transformers.__version__.split(".")[0]) < 5
TO_NATIVE = {
    "ps_version": ("qwen2", {"ps_version": "v1"}, "ps_version is 'v1'"),
    "downsample_ratio": ("qwen2", {"downsample_ratio": 1 / 3}, r"downsample_ratio is 0\.333"),
    "pad2square": ("qwen2", {"pad2square": True}, "pad2square is true"),
    "use_thumbnail": ("qwen2", {"use_thumbnail": False}, "use_thumbnail is false"),
    "select_layer": ("qwen2", {"select_layer": 0}, "select_layer is 0"),
    "llm_lora": ("qwen2", {"use_llm_lora": 16}, r"LoRA layers .* \(use_llm_lora in config.json\)"),
    "template": ("qwen2", {"template": None}, "names no prompt template"),
    "qk_norm": ("qwen2_vit6b", {"vision": {"layer_norm_eps": 1e-5}}, "layer_norm_eps is 1e-05"),
}
TO_OFFICIAL = {
    "mean_pooling": ("vision_config", "use_mean_pooling", False),
    "mask_token": ("vision_config", "use_mask_token", True),
    "dropout": ("vision_config", "hidden_dropout_prob", 0.1),
    "not_square": ("vision_config", "image_size", [112, 56]),
    "activation": (None, "projector_hidden_act", "relu"),
    "class_token": (None, "vision_feature_select_strategy", "full"),
    "layers": (None, "vision_feature_layer", [1, 2]),
}


@pytest.mark.parametrize("case", TO_NATIVE)
def test_what_native_cannot_express_is_refused(case, tmp_path):
    name, changes, match = TO_NATIVE[case]
    source = altered(support.checkpoint(name), tmp_path / "source", **changes)
    with pytest.raises(ValueError, match=match):
        convert(source, tmp_path / "out", to="native")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.skipif(not OLD, reason="the native class of 5.x takes any layer")
def test_other_layers_are_refused_on_4(tmp_path):
    source = altered(support.checkpoint("qwen2"), tmp_path / "source", select_layer=-2)
    with pytest.raises(ValueError, match="select_layer is -2, and the class of transformers 4"):
        convert(source, tmp_path / "out", to="native")


@pytest.mark.parametrize(
    ("setting", "value"), [("upscale", False), ("total_tiles", 8)], ids=["upscale", "total_tiles"]
)
def test_settings_of_our_image_processor_that_native_lacks(setting, value, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(hub.DEMO, source)
    path = source / "preprocessor_config.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(fields | {setting: value}), encoding="utf-8")
    with pytest.raises(ValueError, match=f"{setting} is {str(value).lower()}"):
        convert(source, tmp_path / "out", to="native")


def test_whole_images_need_no_thumbnail(tmp_path):
    changes = {"dynamic_image_size": False, "use_thumbnail": False}
    source = altered(support.checkpoint("qwen2"), tmp_path / "source", **changes)
    convert(source, tmp_path / "native", to="native")
    fields = json.loads((tmp_path / "native" / "preprocessor_config.json").read_text("utf-8"))
    assert (fields["max_patches"], fields["crop_to_patches"]) == (1, False)
    convert(tmp_path / "native", tmp_path / "back", to="official")
    found = json.loads((tmp_path / "back" / "config.json").read_text("utf-8"))
    assert {name: found[name] for name in changes} == changes


def test_drop_path_is_noted_and_comes_back(tmp_path):
    vision = {"drop_path_rate": 0.25, "dropout": 0.5}
    source = altered(support.checkpoint("qwen2"), tmp_path / "source", vision=vision)
    report = convert(source, tmp_path / "native", to="native")
    assert any("drop_path_rate 0.25" in note for note in report.notes)
    native = json.loads((tmp_path / "native" / "config.json").read_text("utf-8"))
    assert native["vision_config"]["projection_dropout"] == 0.5
    convert(tmp_path / "native", tmp_path / "back", to="official")
    found = json.loads((tmp_path / "back" / "config.json").read_text("utf-8"))["vision_config"]
    assert {name: found[name] for name in vision} == vision


@pytest.fixture(scope="module")
def native_fields():
    config = support.load("qwen2").config
    config.img_context_token_id = support.IMG_CONTEXT_ID
    return native_config(config)


@pytest.mark.parametrize("case", TO_OFFICIAL)
def test_what_ours_cannot_express_is_refused(case, native_fields, tmp_path):
    part, name, value = TO_OFFICIAL[case]
    fields = json.loads(json.dumps(native_fields))
    published_settings(fields, tmp_path, "internvl2_5")  # without the change it can
    (fields if part is None else fields[part])[name] = value
    with pytest.raises(ValueError, match=f"cannot express this: .*{name} is"):
        published_settings(fields, tmp_path, "internvl2_5")


def test_a_config_as_transformers_5_saves_it(native_fields, tmp_path):
    """Rotary settings in one dict, the image processor within processor_config.json, no note."""
    fields = json.loads(json.dumps(native_fields)) | {"dtype": "float16"}
    text = fields["text_config"]
    text["rope_parameters"] = {"rope_theta": text.pop("rope_theta"), "rope_type": "default"}
    del text["rope_scaling"]
    fields["vision_feature_layer"] = -2
    images = {"size": {"height": 56, "width": 56}, "max_patches": 6, "image_mean": [0.5, 0.5, 0.5]}
    content = json.dumps({"image_processor": images})
    (tmp_path / "processor_config.json").write_text(content, encoding="utf-8")
    found = published_settings(fields, tmp_path, "internvl2_5")
    assert found["llm_config"]["rope_theta"] == 1e6
    assert found["llm_config"]["rope_scaling"] is None
    assert "rope_parameters" not in found["llm_config"]
    assert found["vision_config"]["image_size"] == 112
    expected = {
        "force_image_size": 56,
        "image_mean": [0.5, 0.5, 0.5],
        "max_dynamic_patch": 6,
        "ps_version": "v2",
        "select_layer": -2,
        "torch_dtype": "float16",
    }
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("model", [m.name for m in CHAT_MODELS])
def test_every_published_config_is_one_that_transformers_reads(model):
    """The facts of each, as transformers' own config class has them."""
    path = hub.REPOSITORY / "variants" / model / "config.json"
    config = hub.build_config(upgrade_config(json.loads(files()[path])))
    fields = native_config(config)
    fields.pop("model_type")
    native = AutoConfig.for_model("internvl", **fields)
    assert native.vision_config.use_qk_norm == config.vision_config.qk_normalization
    assert native.vision_config.num_hidden_layers in (24, 45)
    assert native.image_seq_length == 256
    assert native.text_config.vocab_size == config.llm_config.vocab_size
    assert native.image_token_id == config.img_context_token_id
    assert not native.tie_word_embeddings
