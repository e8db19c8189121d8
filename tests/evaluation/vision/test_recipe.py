"""The numbers of the recipe: learning rates of the official log, the average of the weights."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from internvl.evaluation.vision.heads import Head
from internvl.evaluation.vision.mixing import Mixing
from internvl.evaluation.vision.recipe import Recipe, average_of, learning_rate, update_average

# Update of the schedule -> rate, as log_rank0.txt of the linear probe of InternViT-6B-224px prints
# it behind the step of that number (OpenGVLab/InternVL, classification/work_dirs/
# intern_vit_6b_1k_224): 1,251 steps an epoch, batch 1,024.
OFFICIAL = {
    240: "0.038369",
    600: "0.095923",
    1251 + 480: "0.190700",
    1251 + 750: "0.187638",
    1251 + 1110: "0.182932",
    9 * 1251 + 1170: "0.000021",
    9 * 1251 + 1200: "0.000008",
    9 * 1251 + 1250: "0.000000",
}


def test_learning_rates_are_those_of_the_official_log():
    # The log prints the rate after the update behind a step, which is the one of the next step.
    found = {u: f"{learning_rate(u + 1, 1251, Recipe()):.6f}" for u in OFFICIAL}
    assert found == OFFICIAL


def test_the_first_step_after_the_first_update_still_has_no_rate():
    assert [learning_rate(step, 10, Recipe()) for step in (0, 1)] == [0.0, 0.0]
    assert learning_rate(2, 10, Recipe()) == pytest.approx(0.02)


def test_the_peak_grows_with_the_batch():
    assert Recipe().peak_lr == pytest.approx(0.2)
    assert Recipe(batch=64).peak_lr == pytest.approx(0.0125)
    without = Recipe(batch=512, warmup_epochs=0, epochs=2)
    assert learning_rate(0, 10, without) == pytest.approx(0.1)
    assert learning_rate(11, 10, without) == pytest.approx(0.05)
    assert learning_rate(19, 10, without) == pytest.approx(0.05 * (1 + math.cos(math.pi * 0.9)))


def test_defaults_are_the_recipe():
    recipe = Recipe()
    assert (recipe.epochs, recipe.warmup_epochs, recipe.batch) == (10, 1, 1024)
    assert (recipe.momentum, recipe.clip_grad, recipe.ema) == (0.9, 5.0, 0.998)
    assert recipe.mixing == Mixing(0.8, 1.0, 0.1)
    assert recipe.augmentation == "random resized crop, flip, mixup 0.8, cutmix 1.0"


def test_average_of_the_weights():
    head = Head("linear", 4, ["a", "b"], 1)
    average = average_of(head)
    first = copy.deepcopy(head.state_dict())
    values = [first["classifier.weight"]]
    for step in range(3):
        with torch.no_grad():
            head.classifier.weight.fill_(float(step))
            head.norm.running_mean.fill_(1.0)
            head.norm.num_batches_tracked.fill_(step)
        update_average(average, head, 0.9)
        values.append(torch.full_like(values[0], float(step)))
    expected = 0.9**3 * values[0] + 0.1 * (0.81 * values[1] + 0.9 * values[2] + values[3])
    torch.testing.assert_close(average.classifier.weight, expected)
    torch.testing.assert_close(average.norm.running_mean, torch.full((8,), 1 - 0.9**3))
    assert average.norm.num_batches_tracked == 2
    assert not average.classifier.weight.requires_grad
    assert torch.equal(head.classifier.weight, values[3])


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"kind": "mlp"}, "expected one of"),
        ({"epochs": 0}, "at least one epoch"),
        ({"epochs": 1, "warmup_epochs": 1}, "1 of 1 epochs are warm-up"),
        ({"base_lr": 0.0}, "positive rates"),
        ({"batch": 1}, "a batch of at least 2"),
        ({"ema": 1.0}, "expected \\[0, 1\\)"),
        ({"cache_features": True}, "cannot be cached while pictures are mixed"),
    ],
)
def test_nonsense_is_refused(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        Recipe(**settings)
