"""Spreading over devices: offloaded parts give the same ids, and the 78B fits on simulated GPUs."""

from __future__ import annotations

import math

import pytest
import torch
from accelerate import infer_auto_device_map, init_empty_weights

from tests import support

SETTINGS = {"max_new_tokens": 6, "do_sample": False}
GIB = 2**30


def official_split_model(layers: int, devices: list) -> dict:
    """The map of the model cards: first device half a share, and last layer, norm and head on it
    too.

    It names the modules of every family, so some of its keys do not exist in a given model.
    """
    share = math.ceil(layers / (len(devices) - 0.5))
    counts = [math.ceil(share * 0.5)] + [share] * (len(devices) - 1)
    device_map, layer = {}, 0
    for device, count in zip(devices, counts, strict=True):
        for _ in range(count):
            device_map[f"language_model.model.layers.{layer}"] = device
            layer += 1
    for name in (
        "vision_model",
        "mlp1",
        "language_model.model.tok_embeddings",
        "language_model.model.embed_tokens",
        "language_model.model.rotary_emb",
        "language_model.model.norm",
        "language_model.output",
        "language_model.lm_head",
        f"language_model.model.layers.{layers - 1}",
    ):
        device_map[name] = devices[0]
    return device_map


@pytest.mark.parametrize("kind", ["blocks", "embeddings", "official"])
def test_offloading_to_disk_gives_the_same_answer(name, kind, tmp_path):
    tokenizer, tiles = support.tokenizer(name), support.pixels(name, "A")
    plain = support.load(name)
    expected = plain.chat(tokenizer, tiles, "What?", SETTINGS)
    text = plain.chat(tokenizer, None, "What?", SETTINGS)
    layers = plain.config.llm_config.num_hidden_layers
    if kind == "official":
        device_map = official_split_model(layers, ["cpu", "disk"])
    else:
        on_disk = {
            "blocks": ("mlp1", "layers.1", "vision_model.encoder.layers.0", "norm"),
            "embeddings": ("embed", "lm_head", "output", "vision_model.embeddings"),
        }[kind]
        modules = ["mlp1", "vision_model.embeddings"]
        modules += [
            f"vision_model.encoder.layers.{i}"
            for i in range(len(plain.vision_model.encoder.layers))
        ]
        modules += [
            f"language_model.{n}" for n, _ in plain.language_model.named_children() if n != "model"
        ]
        children = plain.language_model.model.named_children()
        modules += [f"language_model.model.{n}" for n, _ in children if n != "layers"]
        modules += [f"language_model.model.layers.{i}" for i in range(layers)]
        device_map = {
            module: "disk" if any(part in module for part in on_disk) else "cpu"
            for module in modules
        }
        assert "disk" in device_map.values()
    model = support.load(name, device_map=device_map, offload_folder=tmp_path)
    assert any(p.device.type == "meta" for p in model.parameters())
    assert model.chat(tokenizer, tiles, "What?", SETTINGS) == expected
    assert "".join(model.chat_stream(tokenizer, tiles, "What?", SETTINGS)) == expected
    assert model.chat(tokenizer, None, "What?", SETTINGS) == text


@pytest.fixture(scope="module")
def the_78b():
    config = support.configuration.InternVLChatConfig.from_pretrained(support.ROOT)
    with init_empty_weights():
        return support.modeling.InternVLChatModel(config).to(torch.bfloat16)


def test_the_78b_has_its_parameters(the_78b):
    assert sum(p.numel() for p in the_78b.parameters()) == 78_408_318_336


@pytest.mark.parametrize("gpus", [2, 3, 4, 8])
def test_the_78b_is_planned_over_80_gib_gpus(the_78b, gpus, monkeypatch):
    # The inventory is simulated: accelerate would strike out GPUs that this machine does not have.
    monkeypatch.setattr("accelerate.utils.modeling.get_max_memory", lambda max_memory: max_memory)
    total = 2 * sum(p.numel() for p in the_78b.parameters())  # bytes in bfloat16
    share = int(1.1 * total / gpus)
    device_map = infer_auto_device_map(
        the_78b,
        max_memory={i: min(share, 78 * GIB) for i in range(gpus)},
        no_split_module_classes=the_78b._no_split_modules,
        dtype=torch.bfloat16,
    )
    assert set(device_map.values()) == set(range(gpus))

    def device_of(parameter: str) -> int:
        (device,) = {d for m, d in device_map.items() if f"{parameter}.".startswith(f"{m}.")}
        return device

    placed: dict[int, int] = dict.fromkeys(range(gpus), 0)
    for parameter, value in the_78b.named_parameters():
        placed[device_of(parameter)] += value.numel() * 2
    assert sum(placed.values()) == total
    assert max(placed.values()) <= 78 * GIB
    # Every visual token passes from the encoder through the projector: they sit together.
    assert device_of("mlp1.1.weight") == device_of("vision_model.encoder.layers.44.ls1") == 0


def test_the_official_map_covers_the_78b(the_78b):
    device_map = official_split_model(80, list(range(4)))
    for parameter, _ in the_78b.named_parameters():
        assert any(f"{parameter}.".startswith(f"{module}.") for module in device_map), parameter
