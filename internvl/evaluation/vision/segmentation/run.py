"""A whole run: encoder and data -> trained model -> scores -> results.json.

segment    train, then evaluate
restore    the model that `segment` wrote
evaluate   scores of a model on a split
"""

from __future__ import annotations

import logging
import math
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from internvl.evaluation.vision.encoder import Encoder
from internvl.evaluation.vision.processes import Processes
from internvl.evaluation.vision.segmentation import models, state
from internvl.evaluation.vision.segmentation.layouts import Data
from internvl.evaluation.vision.segmentation.miou import Confusion, Scores
from internvl.evaluation.vision.segmentation.settings import Settings
from internvl.evaluation.vision.segmentation.slide import slide
from internvl.evaluation.vision.segmentation.training import Crops, Losses, train
from internvl.evaluation.vision.segmentation.transforms import evaluation_pixels
from internvl.settings import build as settings_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """How a run is carried out; nothing here changes its result.

    Attributes:
        resume: go on from the newest checkpoint of the folder, if there is one.
        workers: data processes per device; 0 loads in the training process.
        save_every: steps between checkpoints.
        log_every: steps between losses that are kept.
    """

    resume: bool = False
    workers: int = 0
    save_every: int = 1000
    log_every: int = 50

    def __post_init__(self) -> None:
        for name, least in (("workers", 0), ("save_every", 1), ("log_every", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}.")


@dataclass(frozen=True)
class Segmenter:
    """A model, and what is needed to use it.

    Attributes:
        model: `LinearProbe` or `UperNet`.
        encoder: the part of it that looks.
        settings: of its training.
        class_names: K names.
    """

    model: models.LinearProbe | models.UperNet
    encoder: Encoder
    settings: Settings
    class_names: tuple[str, ...]

    @torch.no_grad()
    def predict(self, image: np.ndarray) -> torch.Tensor:
        """Classes (H, W) of an image.

        Windows of the size of the training crops, logits brought to the size of the image, then
        argmax.

        Args:
            image: (H, W, 3), uint8, RGB.
        """
        encoder, settings = self.encoder, self.settings
        pixels = evaluation_pixels(
            image,
            crop=settings.crop,
            patch=encoder.patch_size,
            mean=encoder.mean,
            std=encoder.std,
        ).to(encoder.device)
        self.model.eval()
        logits = slide(
            lambda window: self.model.logits(window)[0],
            pixels[None],
            crop=settings.crop,
            stride=settings.stride(encoder.patch_size),
        )
        size = image.shape[:2]
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        return logits[0].argmax(0)


def new_segmenter(
    encoder: Encoder,
    settings: Settings,
    class_names: tuple[str, ...],
    device: torch.device | None = None,
) -> Segmenter:
    """A model with new heads on what an encoder knows.

    Args:
        encoder: stays as it is.
        settings: mode, crop, widths and seed.
        class_names: K names.
        device: of the model; that of the encoder when None.

    Raises:
        ValueError: see `models.prepared` and `models.build`.
    """
    own = models.prepared(encoder, crop=settings.crop, drop_path=settings.resolved_drop_path)
    own = own.to(device or own.device)
    if settings.gradient_checkpointing and settings.mode == "full":
        own.model.gradient_checkpointing_enable()
    model = models.build(own, settings, class_names, seed=settings.seed)
    return Segmenter(model, own, settings, class_names)


def evaluate(segmenter: Segmenter, data: Data, processes: Processes | None = None) -> Scores:
    """Scores on a split, each image at its own size.

    Args:
        segmenter: the model.
        data: the split.
        processes: that share the images.

    Raises:
        ValueError: a split with other classes.
    """
    processes = processes or Processes(device=segmenter.encoder.device)
    if data.class_names != segmenter.class_names:
        raise ValueError(
            f"the model knows {len(segmenter.class_names)} classes and the data "
            f"{len(data.class_names)}, or their names differ; evaluate on the data set that the "
            "model was trained for."
        )
    confusion = Confusion(len(data.class_names), processes.device)
    mine = range(processes.rank, len(data.pairs), processes.count)
    for index in tqdm(mine, desc="evaluate", disable=not processes.first):
        image, mask = data.load(index)
        confusion.update(segmenter.predict(image), torch.from_numpy(mask).to(processes.device))
    processes.add(confusion.matrix)
    return confusion.scores()


def segment(
    encoder: Encoder,
    data: Data,
    test: Data,
    settings: Settings,
    folder: Path,
    *,
    work: Work | None = None,
    about: Mapping[str, Any] | None = None,
    processes: Processes | None = None,
) -> dict[str, Any]:
    """Train a segmentation model, evaluate it, write both to a folder.

    Args:
        encoder: frozen in "linear" and "head", not in "full"; stays as it is, and may be on
            another device.
        data: what the model learns from.
        test: what it is scored on.
        settings: of the run.
        folder: is made; holds the files that `state` describes.
        work: how the run is carried out.
        about: further facts for results.json, names of encoder and data for instance.
        processes: that share the run; one alone when None.

    Returns:
        The content of results.json.

    Raises:
        ValueError: a folder with another run; see also `models.build` and `layouts.Data.load`.
        RuntimeError: a frozen encoder that is not what it was.
    """
    work, processes = work or Work(), processes or Processes(device=encoder.device)
    if state.checkpoints(folder) and not work.resume:
        raise ValueError(f"{folder} holds a run; resume it, or choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    segmenter = new_segmenter(encoder, settings, data.class_names, processes.device)
    del encoder  # nobody else may hold it, and it can be large
    own = segmenter.encoder
    before = own.fingerprint()
    facts = {
        "encoder": before,
        "frozen": own.frozen,
        "num_layers": own.num_layers,
        "images": data.digest(),
        "classes": list(data.class_names),
        "processes": processes.count,
    }
    crops = Crops(data, crop=settings.crop, mean=own.mean, std=own.std, seed=settings.seed)
    start = time.monotonic()
    losses = train(
        segmenter.model,
        crops,
        settings,
        folder,
        processes=processes,
        facts=facts,
        resume=work.resume,
        workers=work.workers,
        save_every=work.save_every,
        log_every=work.log_every,
    )
    seconds = time.monotonic() - start
    after = own.fingerprint()
    if own.frozen and after != before:
        raise RuntimeError(
            f"the frozen encoder changed while the heads were trained ({before} became {after}); "
            "the results would not be those of the encoder that was given."
        )
    if processes.first:
        _write_model(segmenter, facts, folder)
    scores = evaluate(segmenter, test, processes)
    results = {
        **(about or {}),
        "mode": settings.mode,
        **_numbers(scores, data.class_names),
        "train_images": len(data.pairs),
        "test_images": len(test.pairs),
        "encoder": {"before": before, "after": after, "frozen": own.frozen},
        **_training(segmenter, losses, seconds),
        "settings": settings.as_dict(),
        "work": {**asdict(work), "processes": processes.count, "device": processes.device.type},
        "versions": _versions(),
    }
    if processes.first:
        state.write_json(folder / state.RESULTS, results)
    return results


def restore(encoder: Encoder, folder: Path, device: torch.device | None = None) -> Segmenter:
    """The model that `segment` wrote.

    Args:
        encoder: the one that it was trained on; in "full" it gives the shape only.
        folder: of the run.
        device: of the model; that of the encoder when None.

    Raises:
        FileNotFoundError: no model there.
        ValueError: another encoder than that of the run.
    """
    description = state.read_description(folder)
    settings = settings_of(Settings, description["settings"], state.DESCRIPTION)
    segmenter = new_segmenter(encoder, settings, tuple(description["classes"]), device)
    frozen = segmenter.encoder.frozen
    if frozen and segmenter.encoder.fingerprint() != description["encoder"]:
        raise ValueError(
            f"{folder} was trained on another encoder (fingerprint {description['encoder'][:12]}, "
            f"got {segmenter.encoder.fingerprint()[:12]}), or in another precision; give that one."
        )
    path = folder / state.WEIGHTS
    state.put_weights(segmenter.model, state.read_weights(path), frozen=frozen, source=path)
    return segmenter


def evaluate_only(
    encoder: Encoder,
    test: Data,
    folder: Path,
    *,
    about: Mapping[str, Any] | None = None,
    processes: Processes | None = None,
) -> dict[str, Any]:
    """Scores of the model in a folder; nothing is written.

    Args:
        encoder: see `restore`.
        test: what it is scored on.
        folder: of the run.
        about: further facts.
        processes: that share the images.
    """
    segmenter = restore(encoder, folder, processes.device if processes else None)
    del encoder
    return {
        **(about or {}),
        "mode": segmenter.settings.mode,
        **_numbers(evaluate(segmenter, test, processes), test.class_names),
        "test_images": len(test.pairs),
        "versions": _versions(),
    }


def _write_model(segmenter: Segmenter, facts: Mapping[str, Any], folder: Path) -> None:
    weights = state.own_weights(segmenter.model, frozen=segmenter.encoder.frozen)
    state.write_weights(folder / state.WEIGHTS, weights)
    description = {
        "settings": segmenter.settings.as_dict(),
        "classes": list(segmenter.class_names),
        "encoder": facts["encoder"],
    }
    state.write_json(folder / state.DESCRIPTION, description)


def _numbers(scores: Scores, names: tuple[str, ...]) -> dict[str, Any]:
    """Scores for JSON: NaN, of classes that do not occur, becomes null."""

    def number(value: float) -> float | None:
        return None if math.isnan(value) else round(value, 3)

    rows = zip(names, scores.iou, scores.accuracy, scores.pixels, strict=True)
    return {
        "miou": number(scores.miou),
        "macc": number(scores.macc),
        "aacc": number(scores.aacc),
        "classes": [
            {"name": name, "iou": number(iou), "accuracy": number(accuracy), "pixels": pixels}
            for name, iou, accuracy, pixels in rows
        ],
    }


def _training(segmenter: Segmenter, losses: Losses, seconds: float) -> dict[str, Any]:
    parameters = list(segmenter.model.parameters())
    return {
        "trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "parameters": sum(p.numel() for p in parameters),
        "losses": losses.kept,
        "training_seconds": round(seconds, 1),
    }


def _versions() -> dict[str, str]:
    names = ("torch", "transformers", "numpy", "pillow")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
