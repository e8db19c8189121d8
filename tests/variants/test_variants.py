"""Every published size, built on the meta device from variants/ and held against the published
layout; and the files of variants/ against each other."""

from __future__ import annotations

import functools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import GenerationConfig

from internvl import hub
from internvl.checkpoints import build_variants, published
from tests.support import ROOT, configuration, conversation, modeling, modeling_vit
from tests.variants import layout

VARIANTS = ROOT / "variants"
ALL = (*layout.CHAT, *layout.VISION)
TEMPLATES = {
    "InternVL2_5-": "internvl2_5",
    "InternVL2-1B": "Hermes-2",
    "InternVL2-40B": "Hermes-2",
    "InternVL2-4B": "phi3-chat",
    "Mini-InternVL-Chat-4B": "phi3-chat",
    "": "internlm2-chat",
}
images = hub.ring0("preprocessor.image_processing_internvl_chat").InternVLChatImageProcessor


def read(name: str, file: str) -> dict[str, Any]:
    return json.loads((VARIANTS / name / file).read_text(encoding="utf-8"))


@functools.cache
def config(name: str):
    kind = (
        configuration.InternVLChatConfig
        if name in layout.CHAT
        else hub.ring0("configuration_intern_vit").InternVisionConfig
    )
    return kind.from_pretrained(VARIANTS / name)


@functools.cache
def weights(name: str) -> dict[str, tuple[int, ...]]:
    kind = modeling.InternVLChatModel if name in layout.CHAT else modeling_vit.InternVisionModel
    with torch.device("meta"):
        model = kind(config(name))
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def test_every_published_checkpoint_has_a_folder():
    assert sorted(path.name for path in VARIANTS.iterdir()) == sorted(ALL)


@pytest.mark.parametrize("name", ALL)
def test_weights_have_the_published_names_and_shapes(name):
    assert weights(name) == layout.shapes(name)


@pytest.mark.parametrize("name", layout.COUNTS)
def test_parameters_and_tensors_are_as_many_as_published(name):
    built = weights(name)
    assert (sum(map(math.prod, built.values())), len(built)) == layout.COUNTS[name]


def test_bytes_of_the_8b_are_those_of_its_published_index():
    assert 2 * sum(map(math.prod, weights("InternVL2_5-8B").values())) == 16_150_730_752


def test_48_layer_encoders_have_the_parameters_of_the_report():
    for name in ("InternViT-6B-224px", "InternViT-6B-448px-V1-0"):
        assert round(sum(map(math.prod, weights(name).values())) / 1e9, 1) == 5.9


def test_the_root_is_the_78b():
    for path in (VARIANTS / "InternVL2_5-78B").iterdir():
        assert path.read_bytes() == (ROOT / path.name).read_bytes(), path.name


# ------------------------------------------------------------------------------ config.json
@pytest.mark.parametrize("name", ALL)
def test_every_field_of_config_json_reaches_the_config(name, tmp_path):
    fields, loaded = read(name, "config.json"), config(name)
    assert loaded.dtype == torch.bfloat16
    parts = [(fields, loaded)]
    if name in layout.CHAT:
        parts += [(fields["vision_config"], loaded.vision_config)]
        parts += [(fields["llm_config"], loaded.llm_config)]
    for written, part in parts:
        for key, value in written.items():
            if not key.endswith(("_config", "torch_dtype")) and not key.startswith("rope_"):
                assert getattr(part, key) == value, key
    loaded.save_pretrained(tmp_path)
    assert type(loaded).from_pretrained(tmp_path) == loaded


@pytest.mark.parametrize("name", layout.CHAT)
def test_rotary_settings_reach_the_language_model(name):
    fields, loaded = read(name, "config.json")["llm_config"], config(name).llm_config
    parameters = getattr(loaded, "rope_parameters", None) or {"rope_theta": loaded.rope_theta}
    assert parameters["rope_theta"] == fields["rope_theta"]
    scaling = fields["rope_scaling"]
    if scaling is None:
        assert parameters.get("rope_type", "default") == "default"
    elif scaling["type"] == "dynamic":
        assert loaded.rope_scaling == scaling
    else:  # transformers calls "su" longrope; one factor per pair of channels of a head
        kept = getattr(loaded, "rope_parameters", None) or loaded.rope_scaling
        assert (scaling["type"], kept["type"]) == ("su", "longrope")
        for key in ("short_factor", "long_factor"):
            assert kept[key] == scaling[key] == sorted(scaling[key])
            assert len(kept[key]) == loaded.hidden_size // loaded.num_attention_heads // 2


def test_rotary_settings_are_those_of_the_base_models():
    found = {
        name: (llm["rope_theta"], (llm["rope_scaling"] or {}).get("factor"))
        for name in layout.CHAT
        for llm in [read(name, "config.json")["llm_config"]]
        if llm["model_type"] == "internlm2"
    }
    twenty = {"InternVL2_5-26B": (5e7, 2.5), "InternVL2-26B": (1e6, 3.0)}
    twenty["InternVL-Chat-V1-5"] = twenty["InternVL2-26B"]
    assert found == dict.fromkeys(found, (1e6, 2.0)) | twenty
    assert len(found) == 8


@pytest.mark.parametrize("name", ALL)
def test_auto_map_names_classes_that_exist(name):
    for target in read(name, "config.json")["auto_map"].values():
        module, kind = target.split(".")
        assert f"class {kind}(" in (ROOT / f"{module}.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", layout.CHAT)
def test_ids_fit_the_vocabulary(name):
    fields, vocabulary = read(name, "config.json"), layout.CHAT[name][-1]
    # Nine tokens were added last; `<IMG_CONTEXT>` is the third of them.
    assert fields["img_context_token_id"] == vocabulary - 9 + 2
    generation = GenerationConfig.from_pretrained(VARIANTS / name)
    assert len(generation.eos_token_id) == 2
    ids = [*generation.eos_token_id, generation.pad_token_id, generation.bos_token_id]
    assert max(ids) < vocabulary - 9
    assert not generation.do_sample
    assert generation.temperature in (None, 1.0)


# ------------------------------------------------------------------------------ prompts, pixels
@pytest.mark.parametrize("name", layout.CHAT)
def test_template_is_the_one_it_was_trained_with(name):
    template = next(value for start, value in TEMPLATES.items() if name.startswith(start))
    assert read(name, "config.json")["template"] == template
    assert read(name, "processor_config.json")["template"] == template
    jinja = (VARIANTS / name / "chat_template.jinja").read_text(encoding="utf-8")
    assert jinja == conversation.chat_template(conversation.get_conv_template(template))


@pytest.mark.parametrize("name", ALL)
def test_processor_files_agree_with_the_config(name):
    whole, settings = config(name), images(**read(name, "preprocessor_config.json"))
    if name in layout.VISION:
        assert settings.tile_size == whole.image_size
        tiling = (1, 1, False)
    else:
        assert settings.tile_size == whole.tile_size
        tiling = (whole.min_dynamic_patch, whole.max_dynamic_patch, whole.use_thumbnail)
        tokens = read(name, "processor_config.json")["image_seq_length"]
        assert tokens == whole.num_image_token == 256
        normalisation = (whole.image_mean, whole.image_std)  # of tiles that come as bytes
        assert normalisation == (settings.image_mean, settings.image_std)
        video = read(name, "video_preprocessor_config.json")
        assert video["size"] == video["crop_size"] == {"height": 448, "width": 448}
    assert (settings.min_tiles, settings.max_tiles, settings.use_thumbnail) == tiling
    # 3 x 4 tiles and the thumbnail, or the whole image for an encoder alone.
    picture = Image.fromarray(np.zeros((300, 400, 3), np.uint8))
    encoded = settings(picture)
    tiles, side = (1, whole.image_size) if name in layout.VISION else (13, 448)
    assert encoded["num_tiles"] == [tiles]
    assert tuple(np.shape(encoded["pixel_values"])) == (tiles, 3, side, side)


# ------------------------------------------------------------------------------ the generator
def test_files_are_what_the_table_says():
    assert build_variants.main(["--check"]) == 0


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository that has the processor files only, and what the generator wrote into it."""
    for kind in ("preprocessor", "processor", "video_preprocessor"):
        shutil.copy(ROOT / f"{kind}_config.json", tmp_path)
    assert build_variants.main([], tmp_path) == 0
    return tmp_path


def test_check_names_what_drifted(repository, caplog):
    assert build_variants.main(["--check"], repository) == 0
    folder = repository / "variants" / "InternVL2-1B"
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "chat_template.jinja").unlink()
    (folder / "notes.txt").write_text("", encoding="utf-8")
    (repository / "generation_config.json").write_text("{}", encoding="utf-8")
    assert build_variants.main(["--check"], repository) == 1
    found = caplog.text
    for name in ("config.json differs", "chat_template.jinja is missing", "notes.txt is not"):
        assert f"variants/InternVL2-1B/{name}" in found
    assert " generation_config.json differs" in found
    assert len(build_variants.differences(repository)) == 4


def test_writing_repairs_what_drifted(repository):
    (repository / "variants" / "InternVL2-1B" / "config.json").unlink()
    assert build_variants.main([], repository) == 0
    assert build_variants.differences(repository) == []


# ------------------------------------------------------------------------------ the documentation
def rows(heading: str) -> dict[str, str]:
    """Table rows of docs/checkpoints.md under a heading, by the name in their first cell."""
    page = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    section = page.split(f"## {heading}\n")[1].split("\n## ")[0]
    return {line.split("`")[1]: line for line in section.splitlines() if line.startswith("| `")}


@pytest.mark.parametrize("name", ALL)
def test_docs_have_a_row_for_every_checkpoint(name):
    row = rows("Chat models" if name in layout.CHAT else "Vision encoders")[name]
    parameters, tensors = sum(map(math.prod, weights(name).values())), len(weights(name))
    assert f"| {parameters:,} | {tensors:,} |" in row


@pytest.mark.parametrize("model", published.CHAT_MODELS, ids=lambda model: model.name)
def test_docs_name_parts_and_every_inferred_field(model):
    row = rows("Chat models")[model.name]
    for part in (model.vision.name, model.language.name, model.template):
        assert part in row
    named = rows("Inferred values").get(model.name, "")
    for field in model.inferred:
        assert f"`{field.removeprefix('llm_config.')}`" in named
