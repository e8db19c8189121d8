from __future__ import annotations

import pytest
import torch

from internvl.evaluation.vision.segmentation import models, optim
from internvl.evaluation.vision.segmentation.settings import Settings
from tests.evaluation.vision_segmentation.small import make_encoder


def test_rate_in_closed_form():
    # mmcv: lr(t) = base (1 - t/T), times 1 - (1 - t/W)(1 - r) below W.
    official = {"iterations": 80_000, "warmup": 1500}
    assert optim.rate_factor(0, **official) == pytest.approx(1e-6, rel=1e-9)
    halfway = (1 - 750 / 80_000) * (1 - 0.5 * (1 - 1e-6))
    assert optim.rate_factor(750, **official) == pytest.approx(halfway, rel=1e-12)
    assert optim.rate_factor(1500, **official) == 1 - 1500 / 80_000  # the peak is below 1
    assert optim.rate_factor(40_000, **official) == 0.5
    assert optim.rate_factor(79_999, **official) == pytest.approx(1 / 80_000, rel=1e-9)
    rates = [optim.rate_factor(step, **official) for step in range(0, 80_000, 100)]
    assert max(rates) == rates[15]


def test_rate_without_warmup_and_with_power():
    assert optim.rate_factor(0, iterations=10, warmup=0) == 1
    assert optim.rate_factor(5, iterations=10, warmup=0, power=2.0) == 0.25
    for step in (-1, 10):
        with pytest.raises(ValueError, match="0 to 9"):
            optim.rate_factor(step, iterations=10, warmup=0)


def groups_by_name(mode: str, **fields):
    encoder = make_encoder(freeze=mode != "full")
    settings = Settings(mode=mode, crop=56, channels=8, lr=1.0, iterations=10, **fields)
    model = models.build(encoder, settings, ("a", "b"), seed=0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = optim.parameter_groups(model, encoder.num_layers, settings)
    return {names[id(p)]: group for group in groups for p in group["params"]}, model


def test_layer_decay_and_weight_decay():
    found, model = groups_by_name("full")
    assert found.keys() == dict(model.named_parameters()).keys()  # everything learns
    inside = "backbone.encoder.model."
    L = 4
    expected = {  # name: (depth, weight decay)
        f"{inside}embeddings.patch_embedding.weight": (0, 0.05),
        f"{inside}embeddings.position_embedding": (0, 0.05),  # as official in effect
        f"{inside}embeddings.class_embedding": (0, 0.05),
        f"{inside}embeddings.patch_embedding.bias": (0, 0.0),
        f"{inside}encoder.layers.0.attn.qkv.weight": (1, 0.05),
        f"{inside}encoder.layers.0.ls1": (1, 0.0),
        f"{inside}encoder.layers.3.mlp.fc2.bias": (4, 0.0),
        "backbone.up1.0.weight": (L + 1, 0.05),
        "backbone.up1.1.weight": (L + 1, 0.0),  # a norm
        "decode_head.classifier.weight": (L + 1, 0.05),
        "auxiliary_head.classifier.bias": (L + 1, 0.0),
    }
    for name, (depth, decay) in expected.items():
        group = found[name]
        assert group["peak_lr"] == pytest.approx(0.95 ** (L + 1 - depth), rel=1e-12), name
        assert group["weight_decay"] == decay, name


@pytest.mark.parametrize(("mode", "decay"), [("linear", 0.0), ("head", 0.05)])
def test_a_frozen_encoder_is_in_no_group(mode, decay):
    found, _ = groups_by_name(mode)
    assert not any("encoder.model." in name for name in found)
    assert {group["peak_lr"] for group in found.values()} == {1.0}
    weights = [group for name, group in found.items() if name.endswith("classifier.weight")]
    assert [group["weight_decay"] for group in weights] == [decay] * len(weights)


def test_all_groups_follow_the_schedule():
    found, _ = groups_by_name("full")
    groups = list({id(group): group for group in found.values()}.values())
    optimizer = torch.optim.AdamW(groups)
    settings = Settings(mode="full", iterations=10, warmup=2)
    factor = optim.set_rates(optimizer, 5, settings)
    assert factor == 0.5
    assert all(group["lr"] == 0.5 * group["peak_lr"] for group in optimizer.param_groups)


def test_settings_of_the_report():
    linear, head, full = (Settings(mode=mode) for mode in ("linear", "head", "full"))
    for each in (linear, head, full):
        assert (each.crop, each.iterations, each.batch, each.lr) == (504, 80_000, 16, 4e-5)
        assert (each.resolved_warmup, each.channels, each.stride(14)) == (1500, 1536, 322)
    assert [each.resolved_weight_decay for each in (linear, head, full)] == [0, 0.05, 0.05]
    assert [each.resolved_layer_decay for each in (linear, head, full)] == [1, 1, 0.95]
    assert [each.resolved_drop_path for each in (linear, head, full)] == [0, 0, 0.4]
    assert Settings(**full.as_dict()).as_dict() == full.as_dict()
    assert Settings(mode="full", iterations=800).resolved_warmup == 15


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "probe"}, "linear, head, full"),
        ({"mode": "head", "precision": "float16"}, "bfloat16"),
        ({"mode": "head", "batch": 0}, "batch is 0"),
        ({"mode": "head", "lr": 0.0}, "lr is 0"),
        ({"mode": "head", "seed": -1}, "seed is -1"),
        ({"mode": "head", "warmup": 20, "iterations": 20}, "warmup is 20"),
        ({"mode": "head", "layer_decay": 0.9}, "leave it out"),
        ({"mode": "linear", "drop_path": 0.1}, "frozen encoder"),
    ],
)
def test_settings_refuse_nonsense(fields, message):
    with pytest.raises(ValueError, match=message):
        Settings(**fields)
