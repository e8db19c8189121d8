"""Stages: what learns, what is still, and that nothing is kept for what is still."""

from __future__ import annotations

import pytest
import torch

from internvl import hub
from internvl.training.stages import STAGES, Stage, apply_stage, set_drop_path, set_modes, trainable
from tests import support

IDENTITY, DROP = torch.nn.Identity, hub.ring0("modeling_intern_vit").InternDropPath


@pytest.mark.parametrize(
    ("name", "learns"),
    [("1", {"mlp"}), ("1.5", {"vit", "mlp"}), ("2", {"vit", "mlp", "llm"})],
)
def test_each_stage_trains_its_parts(name, learns):
    model = support.load("qwen2")
    apply_stage(model, STAGES[name])
    counts = trainable(model)
    assert {part for part, count in counts.items() if count} == learns
    model.train()
    set_modes(model)
    modes = {"vit": model.vision_model, "mlp": model.mlp1, "llm": model.language_model}
    assert {part for part, module in modes.items() if module.training} == learns
    ids = torch.tensor([[5, *[support.IMG_CONTEXT_ID] * 16, 6, 7]])
    tile = torch.zeros(1, 3, 112, 112)
    model(input_ids=ids, pixel_values=tile, labels=ids, use_cache=False).loss.backward()
    moved = {part for part, module in modes.items()
             if any(p.grad is not None for p in module.parameters())}  # fmt: skip
    assert moved == learns


def test_a_frozen_encoder_keeps_no_graph():
    model = support.load("qwen2")
    apply_stage(model, STAGES["1"])
    model.train()
    set_modes(model)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        output = model.vision_model(torch.zeros(2, 3, 112, 112)).last_hidden_state
    assert not output.requires_grad
    assert not kept


def test_layers_behind_select_layer_are_frozen():
    model = support.load("qwen2")
    model.select_layer = -2
    apply_stage(model, STAGES["2"])
    layers = model.vision_model.encoder.layers
    assert not any(w.requires_grad for w in layers[-1].parameters())
    assert all(w.requires_grad for w in layers[-2].parameters())


def test_drop_path_grows_with_depth_and_is_off_when_frozen():
    model = support.load("qwen2")
    set_drop_path(model, 0.4)
    layers = model.vision_model.encoder.layers
    rates = [0.0 if isinstance(x.drop_path1, IDENTITY) else x.drop_path1.rate for x in layers]
    expected = [0.4 * index / (len(layers) - 1) for index in range(len(layers))]
    assert rates == pytest.approx(expected)
    assert isinstance(layers[-1].drop_path2, DROP)
    tile = torch.rand(8, 3, 112, 112)
    apply_stage(model, STAGES["1"])
    model.train()
    set_modes(model)
    once, again = (model.extract_feature(tile) for _ in range(2))
    assert torch.equal(once, again)
    apply_stage(model, STAGES["1.5"])
    model.train()
    set_modes(model)
    once, again = (model.extract_feature(tile) for _ in range(2))
    assert not torch.equal(once, again)
    set_drop_path(model, 0.0)
    assert all(isinstance(layer.drop_path1, IDENTITY) for layer in layers)


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="expected some of"):
        Stage("x", ("projector",))
    with pytest.raises(ValueError, match="expected some of"):
        Stage("x", ())
    with pytest.raises(ValueError, match="probability"):
        set_drop_path(support.load("qwen2"), 1.5)
