"""The vision encoder gives what the official one gives."""

from __future__ import annotations

import pytest
import torch

from tests import support

# Measured: 0 with eager attention, 3e-6 with sdpa.
TOLERANCE = 2e-5


@pytest.fixture
def model(name, attention):
    return support.load(name, attn_implementation=attention)


@torch.no_grad()
def test_every_hidden_state(name, model):
    expected = support.golden(name)
    tiles = support.pixels(name, "A")[:1]
    output = model.vision_model(tiles, output_hidden_states=True)
    for index, hidden in enumerate(output.hidden_states):
        torch.testing.assert_close(
            hidden, expected[f"vit.hidden_states.{index}"], atol=TOLERANCE, rtol=0
        )
    torch.testing.assert_close(
        output.last_hidden_state, expected["vit.last_hidden_state"], atol=TOLERANCE, rtol=0
    )
    assert torch.equal(output.pooler_output, output.last_hidden_state[:, 0])
    assert len(output.hidden_states) == model.config.vision_config.num_hidden_layers + 1


@torch.no_grad()
def test_features_of_both_shuffle_versions_and_of_earlier_layers(name, model):
    expected = support.golden(name)
    tiles = support.pixels(name, "A")[:1]
    for attribute, value, key in [
        ("ps_version", "v2", "vit.extract_feature"),
        ("ps_version", "v1", "vit.extract_feature.ps_v1"),
        ("select_layer", -2, "vit.extract_feature.select_-2"),
        ("select_layer", -3, "vit.extract_feature.select_-3"),
    ]:
        before = getattr(model, attribute)
        setattr(model, attribute, value)
        torch.testing.assert_close(
            model.extract_feature(tiles), expected[key], atol=TOLERANCE, rtol=0
        )
        setattr(model, attribute, before)


@torch.no_grad()
def test_other_resolutions(name, model):
    expected = support.golden(name)
    keys = [k for k in expected if k.startswith("vit.res_") and k.endswith("last_hidden_state")]
    assert len(keys) == (1 if support.tile_size(name) == 112 else 2)  # 56 px: not square, too
    for key in keys:
        resolution = key.split(".")[1]
        tiles = support.pixels(name, resolution)
        hidden = model.vision_model(tiles).last_hidden_state
        torch.testing.assert_close(hidden, expected[key], atol=TOLERANCE, rtol=0)
        if (feature := f"vit.{resolution}.extract_feature") in expected:
            torch.testing.assert_close(
                model.extract_feature(tiles), expected[feature], atol=TOLERANCE, rtol=0
            )


@torch.no_grad()
def test_bfloat16(name):
    model = support.load(name, dtype=torch.bfloat16, attn_implementation="eager")
    features = model.extract_feature(support.pixels(name, "A")[:1])
    assert features.dtype == torch.bfloat16
    torch.testing.assert_close(
        features.float(), support.golden(name)["vit.bf16.extract_feature"], atol=0.02, rtol=0.02
    )


@torch.no_grad()
def test_selecting_an_earlier_layer_runs_only_the_layers_it_needs(name):
    model = support.load(name)
    ran = []
    for index, layer in enumerate(model.vision_model.encoder.layers):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    model.select_layer = -2
    model.extract_feature(support.pixels(name, "C"))
    assert ran == list(range(model.config.vision_config.num_hidden_layers - 1))
    model.select_layer = 7
    with pytest.raises(ValueError, match="select_layer is 7"):
        model.extract_feature(support.pixels(name, "C"))


@torch.no_grad()
def test_resizing_the_positions_permanently(name):
    model = support.load(name).vision_model
    side = support.tile_size(name)
    expected = support.golden(name)["vit.resized_position_embedding"]
    wanted = int((expected.shape[1] - 1) ** 0.5) * 14
    model.resize_pos_embeddings(side, wanted, 14)
    torch.testing.assert_close(model.embeddings.position_embedding, expected, atol=1e-6, rtol=0)
    assert model.config.image_size == wanted
    with pytest.raises(ValueError, match="pass the size the model was built for"):
        model.resize_pos_embeddings(side, wanted, 14)


def test_the_encoder_loads_alone_from_a_chat_checkpoint_and_from_its_own_folder(name, tmp_path):
    chat = support.load(name)
    alone = support.modeling_vit.InternVisionModel.from_pretrained(
        support.checkpoint(name), dtype=torch.float32
    )
    alone.save_pretrained(
        tmp_path
    )  # keys without the `vision_model.` prefix, as InternViT is published
    again = support.modeling_vit.InternVisionModel.from_pretrained(tmp_path)
    expected = chat.vision_model.state_dict()
    for model in (alone, again):
        state = model.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], expected[key]) for key in state)


def test_gradient_checkpointing_changes_nothing(name):
    tiles = support.pixels(name, "C")
    gradients = []
    for checkpointing in (False, True):
        model = support.load(name).train().vision_model
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(tiles).last_hidden_state.square().sum().backward()
        gradients.append({key: p.grad for key, p in model.named_parameters()})
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][key])


def test_drop_path_grows_with_depth_and_acts_in_training_only():
    config = support.modeling_vit.InternVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_attention_heads=2,
        num_hidden_layers=3,
        image_size=28,
        drop_path_rate=0.5,
    )
    model = support.modeling_vit.InternVisionModel(config)
    rates = [getattr(layer.drop_path1, "rate", 0.0) for layer in model.encoder.layers]
    assert rates == [0.0, 0.25, 0.5]
    drop = model.encoder.layers[2].drop_path1.train()
    kept = drop(torch.ones(4000, 1, 1)).flatten()
    assert set(kept.tolist()) == {0.0, 2.0}
    assert abs(float(kept.mean()) - 1) < 0.1
    assert torch.equal(drop.eval()(torch.ones(3, 1)), torch.ones(3, 1))


def test_bad_configurations_and_inputs_are_named():
    with pytest.raises(ValueError, match="norm_type is 'group_norm'"):
        support.modeling_vit.InternVisionConfig(norm_type="group_norm")
    with pytest.raises(ValueError, match="not divisible by num_attention_heads"):
        support.modeling_vit.InternVisionConfig(hidden_size=100, num_attention_heads=3)
    model = support.load("qwen2")
    with pytest.raises(ValueError, match=r"expected .tiles, channels, height, width"):
        model.vision_model(torch.zeros(3, 112, 112))
    with pytest.raises(ValueError, match="cannot be merged 2 x 2"):
        model.extract_feature(torch.zeros(1, 3, 42, 42))
