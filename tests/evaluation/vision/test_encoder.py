"""The encoder of a probe: the weights of the checkpoint, the right layer, frozen."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from internvl import hub
from internvl.evaluation.vision.encoder import Encoder, load_encoder, random_encoder
from internvl.training.progressive import vision_digest
from tests import support


@pytest.fixture(scope="module")
def demo() -> Encoder:
    return load_encoder()


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))


def test_it_is_the_encoder_of_the_chat_model(demo, pixels):
    model = hub.load(dtype="float32").model
    with torch.no_grad():
        expected = model.vision_model(pixels).last_hidden_state
    found = demo.features(pixels)
    assert torch.equal(found.class_token, expected[:, 0])
    assert torch.equal(found.patches, expected[:, 1:])
    assert torch.equal(found.tokens, expected)
    assert found.grid == (8, 8)
    assert demo.image_size == 112
    assert demo.mean == tuple(model.config.image_mean)
    assert demo.std == tuple(model.config.image_std)


def test_a_folder_of_an_encoder_alone_loads_too(demo, pixels, tmp_path):
    demo.model.save_pretrained(tmp_path)
    alone = load_encoder(tmp_path)
    assert alone.fingerprint() == demo.fingerprint()
    assert torch.equal(alone.features(pixels).tokens, demo.features(pixels).tokens)
    assert alone.image_size == 112


def test_layer_is_that_of_the_language_model_unless_named(tmp_path):
    folder = tmp_path / "chat"
    shutil.copytree(support.checkpoint("qwen2"), folder)
    config = json.loads((folder / "config.json").read_text())
    blocks = config["vision_config"]["num_hidden_layers"]
    (folder / "config.json").write_text(json.dumps({**config, "select_layer": -2}))
    earlier = load_encoder(folder)
    pixels = torch.randn(1, 3, earlier.image_size, earlier.image_size)
    assert earlier.layer == blocks - 1
    assert torch.equal(
        earlier.features(pixels).tokens, earlier.features(pixels, layer=blocks - 1).tokens
    )
    assert load_encoder(folder, layer=-1).layer == blocks
    assert load_encoder(support.checkpoint("qwen2")).layer == blocks


@pytest.mark.parametrize("layer", [0, 1, 3, -1, -3])
def test_layers_count_hidden_states(demo, pixels, layer):
    with torch.no_grad():
        hidden = demo.model(pixels, output_hidden_states=True).hidden_states
    assert torch.equal(demo.features(pixels, layer=layer).tokens, hidden[layer])


def test_maps_are_the_patches_as_pictures(demo, pixels):
    third, first, last = demo.maps(pixels, [3, 1, -1])
    for found, layer in ((third, 3), (first, 1), (last, 6)):
        patches = demo.features(pixels, layer=layer).patches
        assert found.shape == (2, demo.width, 8, 8)
        assert torch.equal(found[:, :, 2, 5], patches[:, 2 * 8 + 5])
    assert torch.equal(demo.maps(pixels, [-1])[0], last)
    wide = demo.maps(torch.zeros(1, 3, 28, 56), [6])[0]
    assert wide.shape == (1, demo.width, 2, 4)


def test_frozen_means_eval_mode_and_no_gradients(demo, pixels):
    demo.train()
    assert not any(module.training for module in demo.modules())
    assert not any(parameter.requires_grad for parameter in demo.parameters())
    assert not demo.features(pixels).patches.requires_grad
    free = random_encoder(demo, 0, freeze=False)
    assert free.training
    assert free.features(pixels).patches.requires_grad


def test_fingerprint_sees_one_bit(demo):
    other = random_encoder(demo, 0)
    before = other.fingerprint()
    assert before == random_encoder(demo, 0).fingerprint()
    assert before != random_encoder(demo, 1).fingerprint()
    with torch.no_grad():
        bits = other.model.encoder.layers[3].mlp.fc1.weight.view(torch.int32)
        bits[5, 7] ^= 1
    assert other.fingerprint() != before


def test_fingerprint_is_that_of_the_files():
    assert load_encoder(dtype="auto").fingerprint() == vision_digest(hub.DEMO)


def test_new_weights_leave_the_global_generator_alone(demo):
    state = torch.get_rng_state()
    random_encoder(demo, 3)
    assert torch.equal(torch.get_rng_state(), state)


def test_another_size_interpolates_the_positions():
    small = load_encoder(image_size=56)
    assert small.image_size == 56
    assert small.features(torch.zeros(1, 3, 56, 56)).grid == (4, 4)


def test_autocast_computes_in_its_dtype_and_returns_float32(demo, pixels):
    half = load_encoder(autocast=torch.bfloat16)
    found, exact = half.features(pixels).patches, demo.features(pixels).patches
    assert found.dtype == torch.float32
    difference = ((found - exact).norm() / exact.norm()).item()
    assert 1e-4 < difference < 0.05  # bfloat16 has 8 bits; measured 0.011


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"image_size": 100}, "multiple of the patch size 14"),
        ({"layer": 7}, "has 6 blocks"),
        ({"layer": -8}, "expected -7 to 6"),
    ],
)
def test_what_does_not_fit_is_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        load_encoder(**options)


def test_pixels_of_another_shape_are_refused(demo):
    with pytest.raises(ValueError, match="multiples of the patch size 14"):
        demo.features(torch.zeros(1, 3, 112, 100))


def test_an_incomplete_encoder_is_refused(tmp_path):
    shutil.copytree(support.checkpoint("qwen2"), tmp_path / "chat")
    index = tmp_path / "chat" / "model.safetensors.index.json"
    shards = json.loads(index.read_text())["weight_map"]
    name = next(name for name in shards if name.startswith("vision_model."))
    tensors = load_file(tmp_path / "chat" / shards[name])
    del tensors[name]
    save_file(tensors, tmp_path / "chat" / shards[name], metadata={"format": "pt"})
    with pytest.raises(ValueError, match=re.escape(name.removeprefix("vision_model."))):
        load_encoder(tmp_path / "chat")
