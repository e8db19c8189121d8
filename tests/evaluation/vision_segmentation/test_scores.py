from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from internvl.evaluation.vision.segmentation.miou import Confusion


def scores_of(predicted, truth, classes):
    confusion = Confusion(classes)
    confusion.update(torch.tensor(predicted), torch.tensor(truth))
    return confusion.scores()


def test_by_hand():
    found = scores_of([[0, 0, 1], [1, 1, 2]], [[0, 1, 1], [1, 255, 0]], 3)
    # class 0: 1 right, union {(0,0), (0,1), (1,2)} = 3; class 1: 2 right, union 3; class 2: 0 of 1.
    assert found.iou == pytest.approx((100 / 3, 200 / 3, 0.0))
    assert found.miou == pytest.approx(100 / 3)
    assert found.accuracy[:2] == pytest.approx((50.0, 200 / 3))
    assert math.isnan(found.accuracy[2])  # predicted, but not in the truth
    assert found.macc == pytest.approx((50 + 200 / 3) / 2)
    assert found.aacc == pytest.approx(60.0)  # 3 of 5: the ignored pixel is not counted
    assert found.pixels == (2, 3, 0)


def test_classes_that_do_not_occur_are_left_out():
    found = scores_of([0, 0, 1], [0, 0, 1], 150)
    assert found.miou == 100.0
    assert math.isnan(found.iou[2])


def test_against_a_naive_loop():
    rng = np.random.default_rng(0)
    confusion, right, union, total = Confusion(7), [0] * 7, [0] * 7, [0] * 7
    for _ in range(3):  # counted over images, not averaged
        shape = tuple(rng.integers(5, 20, 2))
        truth = rng.choice([*range(7), 255], shape)
        predicted = np.where(rng.random(shape) < 0.5, truth % 255, rng.integers(0, 7, shape))
        predicted = np.where(predicted > 6, 0, predicted)
        confusion.update(torch.from_numpy(predicted), torch.from_numpy(truth))
        for p, t in zip(predicted.ravel(), truth.ravel(), strict=True):
            if t == 255:
                continue
            total[t] += 1
            union[t] += 1
            if p == t:
                right[t] += 1
            else:
                union[p] += 1
    found = confusion.scores()
    assert found.iou == pytest.approx([100 * r / u for r, u in zip(right, union, strict=True)])
    assert found.miou == pytest.approx(100 * np.mean(np.divide(right, union)))
    assert found.macc == pytest.approx(100 * np.mean(np.divide(right, total)))
    assert found.aacc == pytest.approx(100 * sum(right) / sum(total))


def test_counts_are_exact_beyond_what_float32_holds():
    confusion = Confusion(2)
    confusion.matrix[0, 0] = 2**24
    confusion.update(torch.tensor([0]), torch.tensor([0]))
    assert confusion.matrix.dtype == torch.int64
    assert int(confusion.matrix[0, 0]) == 2**24 + 1


def test_faults_are_named():
    confusion = Confusion(3)
    with pytest.raises(ValueError, match=r"\(2,\).*\(3,\)"):
        confusion.update(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="truth has classes from 0 to 3"):
        confusion.update(torch.tensor([0, 0]), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="prediction has classes from 0 to 7"):
        confusion.update(torch.tensor([0, 7]), torch.tensor([0, 2]))
    confusion.update(torch.tensor([0, 7]), torch.tensor([0, 255]))  # nobody asked there
    with pytest.raises(ValueError, match="no labelled pixel"):
        Confusion(3).scores()
