"""Logits, losses and gradients equal those of the official code."""

from __future__ import annotations

import pytest
import torch

from tests import support

CASES = {
    "text": None,
    "image_single": "C",
    "image_multitile": "A",
    "two_images": "AB",
    "video4": "frames",
}


@pytest.fixture
def model(name, attention):
    return support.load(name, attn_implementation=attention)


@torch.no_grad()
def test_logits(name, model):
    """fp32 logits within 1e-4; measured worst case 3e-5."""
    expected = support.golden(name)
    for case, images in CASES.items():
        if f"logits.{case}.input_ids" not in expected:
            continue
        logits = model(
            pixel_values=support.pixels(name, images),
            input_ids=expected[f"logits.{case}.input_ids"],
            attention_mask=expected[f"logits.{case}.attention_mask"],
        ).logits
        torch.testing.assert_close(
            logits[:, -2:], expected[f"logits.{case}.last_logits"], atol=1e-4, rtol=0, msg=case
        )


@torch.no_grad()
def test_logits_of_a_left_padded_batch(name, model):
    expected = support.golden(name)
    logits = model(
        input_ids=expected["logits.left_padded.input_ids"],
        attention_mask=expected["logits.left_padded.attention_mask"],
        position_ids=expected["logits.left_padded.position_ids"],
    ).logits
    torch.testing.assert_close(
        logits[:, -2:], expected["logits.left_padded.last_logits"], atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("kind", ["plain", "weighted"])
def test_loss_and_gradients(name, model, kind):
    expected, record = support.golden(name), support.golden_json(name, "train")[kind]
    loss = model(
        pixel_values=support.pixels(name, "train"),
        input_ids=expected["train.input_ids"],
        attention_mask=expected["train.attention_mask"],
        image_flags=expected["train.image_flags"],
        labels=expected["train.labels"],
        loss_weight=expected["train.loss_weight"].tolist() if kind == "weighted" else None,
    ).loss
    assert float(loss) == pytest.approx(record["loss"], rel=1e-5)
    loss.backward()
    norms = {key: float(p.grad.norm()) for key, p in model.named_parameters()}
    assert norms.keys() == record["per_param"].keys()
    total = record["total"]
    for key, norm in norms.items():
        # Relative to the whole gradient where a parameter hardly has one.
        assert norm == pytest.approx(record["per_param"][key], rel=1e-4, abs=1e-6 * total), key
    if kind == "plain":
        stored = [key for key in expected if key.startswith("train.grad.")]
        assert stored
        for key in stored:
            gradient = model.get_parameter(key.removeprefix("train.grad.")).grad
            scale = float(expected[key].abs().max())
            torch.testing.assert_close(gradient, expected[key], atol=1e-4 * scale, rtol=1e-4)
