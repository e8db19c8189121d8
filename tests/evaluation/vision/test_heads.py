"""The heads: shapes and initial values of the official ones, and attention pooling by hand."""

from __future__ import annotations

import math

import pytest
import torch

from internvl.evaluation.vision.encoder import Features
from internvl.evaluation.vision.heads import AttentionPooling, Head

CLASSES = [str(k) for k in range(10)]


def features(width: int = 12) -> Features:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(3, 1 + 6, width, generator=generator)
    return Features(tokens[:, 0], tokens[:, 1:], (2, 3))


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_linear_head_has_the_size_that_the_official_log_states():
    # "number of params: 6413800", log_rank0.txt of the linear probe of InternViT-6B-224px
    with torch.device("meta"):
        head = Head("linear", 3200, [str(k) for k in range(1000)], 25)
    assert count(head) == 6_413_800


def test_attention_head_of_the_6b_has_the_layers_of_the_official_one():
    with torch.device("meta"):
        head = Head("attention", 3200, [str(k) for k in range(1000)], 25)
    norms, projections = 3 * 2 * 3200, 4 * (3200 * 3200 + 3200)
    assert count(head.pool) == norms + projections
    assert count(head) == norms + projections + 2 * 3200 + 3200 * 1000 + 1000


@pytest.mark.parametrize("kind", ["linear", "attention"])
def test_initial_values(kind):
    head = Head(kind, 320, [str(k) for k in range(200)], 4)
    assert (head.norm.eps, head.norm.momentum, head.norm.affine) == (1e-6, 0.1, True)
    assert head.classifier.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not head.classifier.bias.any()
    if kind == "attention":
        assert all(
            norm.eps == 1e-5
            for norm in (head.pool.norm_query, head.pool.norm_key, head.pool.norm_value)
        )
        for layer in (head.pool.query, head.pool.key, head.pool.value):
            assert not layer.bias.any()
            assert layer.weight.abs().max() <= 1 / math.sqrt(320)


def test_linear_head_reads_class_token_and_mean_of_the_patches():
    given = features()
    head = Head("linear", 12, CLASSES, 3).eval()
    with torch.no_grad():
        head.norm.running_mean.uniform_()
        head.norm.weight.uniform_()
    inputs = head.inputs(given)
    assert torch.equal(inputs, torch.cat([given.class_token, given.patches.mean(1)], 1))
    normal = (inputs - head.norm.running_mean) / torch.sqrt(head.norm.running_var + 1e-6)
    expected = (normal * head.norm.weight) @ head.classifier.weight.T
    torch.testing.assert_close(head(inputs), expected)


def test_attention_pooling_equals_a_naive_one():
    pool = AttentionPooling(12, 3)
    with torch.no_grad():
        for parameter in pool.parameters():
            parameter.uniform_(-1, 1)
    tokens = features().tokens
    expected = torch.empty(3, 12)
    with torch.no_grad():
        for n, image in enumerate(tokens):
            query = pool.query(pool.norm_query(sum(image) / len(image)))
            pooled = []
            for head in range(3):
                part = slice(4 * head, 4 * head + 4)
                keys = [pool.key(pool.norm_key(token))[part] for token in image]
                values = [pool.value(pool.norm_value(token))[part] for token in image]
                weights = [math.exp(float(query[part] @ key) / math.sqrt(4)) for key in keys]
                pooled.append(
                    sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
                )
            expected[n] = pool.proj(torch.cat(pooled))
        torch.testing.assert_close(pool(tokens), expected)


def test_attention_head_reads_all_tokens():
    given = features()
    head = Head("attention", 12, CLASSES, 3).eval()
    assert torch.equal(head.inputs(given), given.tokens)
    assert head(head.inputs(given)).shape == (3, 10)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("mean", 12, CLASSES, 3), "expected one of"),
        (("linear", 12, ["a"], 3), "at least two"),
        (("linear", 12, ["a", "a", "b"], 3), "2 of them different"),
        (("attention", 12, CLASSES, 5), "5 heads do not divide the width 12"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        Head(*arguments)
