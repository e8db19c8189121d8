"""How a probe is trained: the numbers of section 7.1.2 of the report, and of the official code.

    peak rate = 0.1 * batch / 512, that is 0.2 at a batch of 1024
    SGD with Nesterov momentum 0.9, no weight decay, gradients clipped at a norm of 5
    10 epochs, the first of them a linear warm-up from 0, then a cosine to 0
    an average of the weights with decay 0.998

The report names optimiser, rate, momentum and epochs. Nesterov, clipping, averaging and mixing are
in `classification/` of OpenGVLab/InternVL: optimizer.py, config.py, the configurations of the
probes, and the log of one of them, whose learning rates the tests here compare.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

import torch

from internvl.evaluation.vision.heads import KINDS, Head
from internvl.evaluation.vision.mixing import Mixing

_BASE_BATCH = 512  # that `base_lr` is for


@dataclass(frozen=True)
class Recipe:
    """The settings of a probe.

    Attributes:
        kind: "linear" or "attention".
        epochs: over the training pictures.
        warmup_epochs: of them, with a rising rate.
        batch: pictures of a step, over all processes.
        base_lr: peak rate at a batch of 512; it grows with the batch.
        momentum: of SGD.
        clip_grad: largest norm of the gradients.
        ema: decay of the average of the weights; 0 for none.
        mixing: of pictures and labels.
        cache_features: encode every picture once, without augmentation. Features of crops, flips
            and mixtures cannot be had from those of the pictures, so this is another recipe.
        seed: of the head, the order, the crops and the mixing.

    Raises:
        ValueError: numbers that make no sense, or a cache with augmentation.
    """

    kind: str = "linear"
    epochs: int = 10
    warmup_epochs: int = 1
    batch: int = 1024
    base_lr: float = 0.1
    momentum: float = 0.9
    clip_grad: float = 5.0
    ema: float = 0.998
    mixing: Mixing = field(default_factory=Mixing)
    cache_features: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}, expected one of {KINDS}.")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(
                f"{self.warmup_epochs} of {self.epochs} epochs are warm-up; expected fewer than "
                "all, and at least one epoch."
            )
        if self.base_lr <= 0 or self.clip_grad <= 0 or self.batch < 2 or self.seed < 0:
            raise ValueError(
                f"base_lr {self.base_lr}, clip_grad {self.clip_grad}, batch {self.batch}, seed "
                f"{self.seed}; expected positive rates, a batch of at least 2 (BatchNorm), and a "
                "seed of at least 0."
            )
        if not 0 <= self.momentum < 1 or not 0 <= self.ema < 1:
            raise ValueError(f"momentum {self.momentum}, ema {self.ema}; expected [0, 1).")
        if self.cache_features and self.mixing.of_pixels:
            raise ValueError(
                "features cannot be cached while pictures are mixed; pass mixup 0 and cutmix 0."
            )

    @property
    def peak_lr(self) -> float:
        """The highest learning rate."""
        return self.base_lr * self.batch / _BASE_BATCH

    @property
    def augmentation(self) -> str:
        """What is done to the pictures of the training, in words."""
        if self.cache_features:
            return "none: features of the resized and centre-cropped pictures, cached"
        names = ["random resized crop", "flip"]
        names += [f"mixup {self.mixing.mixup}"] if self.mixing.mixup else []
        names += [f"cutmix {self.mixing.cutmix}"] if self.mixing.cutmix else []
        return ", ".join(names)


def learning_rate(step: int, steps_per_epoch: int, recipe: Recipe) -> float:
    """The rate of a step, counted from 0.

    With n steps in all, w of them warm-up, and u updates of the schedule so far:

        u < w:  peak * u / w          else:  peak / 2 * (1 + cos(pi * u / n))

    The cosine runs over all n steps, so the rate falls by 2 % when it takes over (timm's
    `CosineLRScheduler` without `warmup_prefix`). The official loop updates the schedule after the
    optimiser, with the number of the step just done: step s trains at u = s - 1, step 0 at u = 0.

    Args:
        step: number of the step.
        steps_per_epoch: whole batches of an epoch.
        recipe: gives peak, epochs and warm-up.
    """
    u = max(step - 1, 0)
    warmup, total = recipe.warmup_epochs * steps_per_epoch, recipe.epochs * steps_per_epoch
    if u < warmup:
        return recipe.peak_lr * u / warmup
    return recipe.peak_lr / 2 * (1 + math.cos(math.pi * u / total))


def average_of(head: Head) -> Head:
    """A copy of a head to hold the average of its weights."""
    average = copy.deepcopy(head).eval()
    return average.requires_grad_(False)


@torch.no_grad()
def update_average(average: Head, head: Head, decay: float) -> None:
    """average <- decay * average + (1 - decay) * head: weights and BatchNorm's statistics alike.

    BatchNorm's count of batches, an integer that nothing reads, is copied.

    Args:
        average: is written to.
        head: is read.
        decay: share that stays.
    """
    new = head.state_dict()
    for name, old in average.state_dict().items():
        if old.is_floating_point():
            old.copy_(old * decay + (1.0 - decay) * new[name])
        else:
            old.copy_(new[name])
