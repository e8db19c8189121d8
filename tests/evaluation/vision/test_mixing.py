"""Mixup, CutMix and label smoothing against their equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from internvl.evaluation.vision.mixing import Mixing, soft_labels

LABELS = torch.tensor([0, 2, 1, 2])
PIXELS = torch.arange(4.0)[:, None, None, None].expand(4, 3, 20, 30).contiguous()


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_soft_labels_are_the_equation():
    found = soft_labels(LABELS, 4, lam=0.75, smoothing=0.1)
    own, other = 0.75 * 0.9 + 0.025, 0.25 * 0.9 + 0.025
    expected = [[own, 0.025, other, 0.025], [0.025, other, own, 0.025]]  # with images 3 and 2
    torch.testing.assert_close(found[:2], torch.tensor(expected))
    torch.testing.assert_close(found.sum(1), torch.ones(4))


def test_mixup_weighs_pictures_and_labels_alike():
    pixels, labels = Mixing(0.8, 0.0, 0.0)(PIXELS, LABELS, 3, rng())
    lam = labels[0, 0].item()
    torch.testing.assert_close(pixels[0], torch.full((3, 20, 30), (1 - lam) * 3))
    torch.testing.assert_close(pixels[1], torch.full((3, 20, 30), lam * 1 + (1 - lam) * 2))
    assert labels[0].tolist() == pytest.approx([lam, 0, 1 - lam])


@pytest.mark.parametrize("seed", range(8))
def test_cutmix_pastes_a_box_and_weighs_labels_by_its_area(seed):
    pixels, labels = Mixing(0.0, 1.0, 0.0)(PIXELS, LABELS, 3, rng(seed))
    foreign = pixels[0] != 0
    for own, (image, other) in enumerate(zip(pixels, (3.0, 2.0, 1.0, 0.0), strict=True)):
        assert set(image.unique().tolist()) <= {float(own), other}
    rows, cols = foreign[0].any(1).nonzero().flatten(), foreign[0].any(0).nonzero().flatten()
    assert len(rows) * len(cols) == foreign[0].sum()  # a full rectangle
    assert torch.equal(foreign[0], foreign[2])
    assert labels[0, 0].item() == pytest.approx(1 - foreign[0].float().mean().item(), abs=1e-6)


def test_both_take_turns_at_random():
    mixing, cut = Mixing(0.8, 1.0, 0.0), 0
    generator = rng()
    for _ in range(200):
        pixels, _ = mixing(PIXELS[:, :, :4, :4], LABELS, 3, generator)
        cut += bool(set(pixels[0].unique().tolist()) <= {0.0, 3.0})
    assert 70 < cut < 130


def test_what_is_given_is_not_written_to():
    before = PIXELS.clone()
    for mixing in (Mixing(0.8, 0.0), Mixing(0.0, 1.0)):
        mixing(PIXELS, LABELS, 3, rng())
    assert torch.equal(PIXELS, before)


def test_none_is_none():
    pixels, labels = Mixing.none()(PIXELS, LABELS, 3, rng())
    assert pixels is PIXELS
    assert torch.equal(labels, torch.nn.functional.one_hot(LABELS, 3).float())
    assert not Mixing(smoothing=0.1, mixup=0, cutmix=0).of_pixels


@pytest.mark.parametrize("values", [(-1, 0, 0), (0, -1, 0), (0, 0, 1.0)])
def test_nonsense_is_refused(values):
    with pytest.raises(ValueError, match="expected alphas >= 0"):
        Mixing(*values)
