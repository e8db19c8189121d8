"""Equation 5, and the loss without logits."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from internvl import hub
from internvl.data.examples import Example
from internvl.training.losses import LossWeights, cut_cross_entropy, token_weights
from tests import support

functional = hub.ring0("functional_internvl_chat")
# Two responses of 4 and 1 tokens in a conversation of 5 supervised tokens.
RESPONSE = np.array([-1, -1, 0, 0, 0, 0, -1, 1], np.int32)


def example():
    ids = np.arange(len(RESPONSE))
    return Example(
        ids, np.where(RESPONSE < 0, -100, ids), RESPONSE, np.empty((0, 8, 8, 3), np.uint8)
    )


@pytest.mark.parametrize(
    ("averaging", "per", "long", "short"),
    [
        ("token", "response", 1, 1),
        ("sample", "response", 1 / 4, 1),
        ("square", "response", 1 / 2, 1),
        ("sample", "conversation", 1 / 5, 1 / 5),
        ("square", "conversation", 5**-0.5, 5**-0.5),
    ],
)
def test_weights_are_those_of_equation_5(averaging, per, long, short):
    weights = LossWeights(averaging, per)(example())
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, [0, 0, long, long, long, long, 0, short], rtol=1e-6)


def test_averaging_weighs_responses_as_the_report_says():
    """By token a response counts with x, by sample with 1, by square with the root of x."""
    for exponent, expected in ((0.0, 9.0), (1.0, 1.0), (0.5, 3.0)):
        weights = token_weights(np.zeros(9, np.int64), exponent)
        assert weights.sum() == pytest.approx(expected)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="cube"):
        LossWeights("cube")
    with pytest.raises(ValueError, match="turn"):
        LossWeights("square", "turn")


@pytest.mark.parametrize("name", support.NAMES)
@pytest.mark.parametrize("chunk", [3, 1024])
def test_the_loss_without_logits_is_the_same(name, chunk, monkeypatch):
    model = support.load(name)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 900, (2, 24), generator=generator)
    labels = ids.clone()
    labels[:, :9] = -100
    weight = torch.rand(2, 24, generator=generator)
    batch = {"input_ids": ids, "labels": labels, "loss_weight": weight, "num_items_in_batch": 7.0}
    before = functional.chunked_loss.__defaults__
    monkeypatch.setattr(functional.chunked_loss, "__defaults__", (*before[:-2], chunk, None))
    found = {}
    for skip in (False, True):
        model.zero_grad()
        result = model(**batch, skip_logits=skip)
        assert (result.logits is None) == skip
        result.loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found[skip] = result.loss.detach(), {n: g.clone() for n, g in gradients.items()}
    torch.testing.assert_close(found[True][0], found[False][0], rtol=1e-6, atol=0)
    assert set(found[True][1]) == set(found[False][1])
    for key, gradient in found[False][1].items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(found[True][1][key], gradient, rtol=0, atol=2e-6 * scale)


def test_logits_are_never_whole():
    """The largest tensor that the loss makes has a chunk of rows, not all."""
    rows, seen = 64, []

    class Head(torch.nn.Linear):
        def forward(self, hidden):
            logits = super().forward(hidden)
            seen.append(logits.shape[0])
            return logits

    head = Head(8, 100)
    hidden = torch.randn(1, rows + 1, 8, requires_grad=True)
    labels = torch.randint(0, 100, (1, rows + 1))
    labels[0, 1:33] = -100
    functional.chunked_loss(hidden, head, labels, chunk=10).backward()
    assert max(seen) == 10
    assert sum(seen) == 2 * 32  # forward and again in backward, supervised positions only


def test_a_kernel_takes_the_place_of_the_chunks():
    """The contract that fused kernels are called by, with one in plain torch."""
    model = support.load("qwen2")
    ids = torch.randint(0, 900, (1, 12), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :5] = -100
    expected = model(input_ids=ids, labels=labels, skip_logits=True).loss
    shapes = []

    def kernel(hidden, weight, targets):
        shapes.append((hidden.shape, weight.shape, targets.shape))
        return torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="none")

    model.loss_kernel = kernel
    found = model(input_ids=ids, labels=labels, skip_logits=True).loss
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    D, V = model.config.llm_config.hidden_size, model.get_output_embeddings().weight.shape[0]
    assert shapes == [((7, D), (V, D), (7,))]


@pytest.mark.gpu
def test_the_fused_kernel_gives_the_loss_of_the_chunks():
    pytest.importorskip("cut_cross_entropy")
    model = support.load("qwen2").cuda()
    ids = torch.randint(0, 900, (1, 64), device="cuda")
    expected = model(input_ids=ids, labels=ids, skip_logits=True).loss
    model.loss_kernel = cut_cross_entropy()
    found = model(input_ids=ids, labels=ids, skip_logits=True).loss
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)


def test_a_missing_kernel_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cut_cross_entropy", None)
    with pytest.raises(ImportError, match="pip install cut-cross-entropy"):
        cut_cross_entropy()


def test_a_batch_without_labels_has_a_loss_of_zero_and_gradients():
    head = torch.nn.Linear(8, 100)
    hidden = torch.randn(1, 5, 8, requires_grad=True)
    labels = torch.full((1, 5), -100)
    functional.chunked_loss(hidden, head, labels, num_items_in_batch=3.0).backward()
    assert float(hidden.grad.abs().sum()) == 0
    assert head.weight.grad is not None
