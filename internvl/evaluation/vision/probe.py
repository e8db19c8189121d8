"""A probe from end to end (report section 7.1, Table 14): train a head, score it, write it down.

    OUT/heads.safetensors   the trained head and its average, with the classes
    OUT/result.json         accuracies, recipe, data, fingerprint of the encoder, versions
    OUT/log.jsonl           learning rate and loss of every tenth step
    OUT/state.safetensors   to go on from

The accuracies are those of the last epoch. The official ones are of the epoch whose average did
best on the validation set, which `best` names here without making it the result.
"""

from __future__ import annotations

import hashlib
import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from internvl.evaluation.vision.accuracy import evaluate_images, plain_inputs, score
from internvl.evaluation.vision.checkpoint import STATE, save_heads, write_json
from internvl.evaluation.vision.encoder import Encoder
from internvl.evaluation.vision.folders import (
    LabelledImages,
    read_test,
    read_training,
    read_validation,
)
from internvl.evaluation.vision.heads import Head, build_head
from internvl.evaluation.vision.recipe import Recipe
from internvl.evaluation.vision.training import LOG, Run, Trainer
from internvl.evaluation.vision.variants import get_variant, read_variant

logger = logging.getLogger(__name__)

RESULT = "result.json"
_PACKAGES = ("internvl", "torch", "transformers", "numpy", "pillow", "safetensors")


@dataclass(frozen=True)
class Data:
    """What a probe is trained and scored on.

    Attributes:
        root: with train/ and val/ (or test/), see `folders`.
        val_labels: file with the labels of a flat val/.
        variants: name -> folder of the ImageNet variants to score.
        real_labels: real.json of ReaL.
        tests: name -> folder of class folders, of other test sets with the classes of `root`.

    Raises:
        ValueError: no such variant, or a name that comes twice.
    """

    root: Path
    val_labels: Path | None = None
    variants: Mapping[str, Path] = field(default_factory=dict)
    real_labels: Path | None = None
    tests: Mapping[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.variants:
            get_variant(name)
        taken = sorted({"val", *self.variants} & set(self.tests))
        if taken:
            raise ValueError(f"the name {taken[0]!r} of a test set is taken; choose another.")

    def read_tests(self, classes: Sequence[str]) -> dict[str, LabelledImages]:
        """Variants and other test sets by name, labelled for a head with these classes.

        Raises:
            FileNotFoundError: a folder or file that does not exist.
            ValueError: classes that the head does not have.
        """
        found = {
            name: read_variant(name, root, classes, self.real_labels)
            for name, root in self.variants.items()
        }
        return found | {name: read_test(root, classes) for name, root in self.tests.items()}


class Probe:
    """A head on a frozen encoder, with the data it is for.

    Args:
        encoder: frozen.
        data: see `Data`; all of it is read, before anything is computed.
        recipe: see `Recipe`.
        run: see `Run`.
        source: name of the encoder, for the result.
        eval_every: epochs between two scores on the validation set; the last one is always scored.

    Raises:
        FileNotFoundError: a folder that does not exist.
        ValueError: data that do not fit each other, or a folder that holds another run.
    """

    def __init__(
        self,
        encoder: Encoder,
        data: Data,
        recipe: Recipe,
        run: Run,
        *,
        source: str = "",
        eval_every: int = 1,
    ) -> None:
        if (run.out / STATE).exists() and not run.resume:
            raise ValueError(
                f"{run.out} holds a run already; go on with it (--resume), or name another."
            )
        self.encoder, self.recipe, self.run = encoder, recipe, run
        self.source, self.eval_every = source, eval_every
        self.images, classes = read_training(data.root)
        self.validation = read_validation(data.root, classes, data.val_labels)
        self.tests = data.read_tests(classes)  # before hours of training
        self.fingerprint = encoder.fingerprint()
        head = build_head(recipe.kind, encoder, classes, recipe.seed)
        facts = {
            "encoder": self.fingerprint,
            "image_size": encoder.image_size,
            "layer": encoder.layer,
            "pictures": _digest(self.images),
        }
        if run.processes.first:
            run.out.mkdir(parents=True, exist_ok=True)
            if not run.resume:
                (run.out / LOG).unlink(missing_ok=True)
        self.trainer = Trainer(encoder, head, self.images, recipe, run, facts)
        self._plain: list[Any] | None = None

    @property
    def heads(self) -> dict[str, Head]:
        """The head as trained, and the average of its weights where there is one."""
        average = self.trainer.average
        return {"last": self.trainer.head} | ({} if average is None else {"ema": average})

    def __call__(self) -> dict[str, Any]:
        """Train, score, and write the result.

        Returns:
            What OUT/result.json holds.

        Raises:
            ValueError: a picture that cannot be read.
            RuntimeError: the encoder is not what it was.
        """
        self.trainer.train(self._after_epoch)
        accuracy: dict[str, Any] = {"val": self.trainer.history[-1]["val"]}
        for name, images in self.tests.items():
            accuracy[name] = {
                which: evaluate_images(
                    head, self.encoder, images, batch=self.run.encoder_batch,
                    workers=self.run.workers, processes=self.run.processes, title=name,
                ).as_dict()
                for which, head in self.heads.items()
            }  # fmt: skip
        if self.encoder.fingerprint() != self.fingerprint:
            raise RuntimeError("the weights of the encoder changed while its probe was trained.")
        result = self._result(accuracy)
        if self.run.processes.first:
            save_heads(self.run.out, self.heads, {"encoder": result["encoder"]})
            write_json(self.run.out / RESULT, result)
        self.run.processes.wait()
        return result

    def _after_epoch(self, trainer: Trainer) -> dict[str, Any]:
        epoch = trainer.step // trainer.order.steps_per_epoch
        if epoch % self.eval_every and epoch != self.recipe.epochs:
            return {}
        found = score(self.heads, self._validation_inputs(), processes=self.run.processes)
        return {"val": {name: accuracy.as_dict() for name, accuracy in found.items()}}

    def _validation_inputs(self) -> Any:
        """What the head reads of the validation set; kept when features are cached anyway."""
        if self._plain is not None:
            return self._plain
        inputs = plain_inputs(
            self.trainer.head, self.encoder, self.validation, batch=self.run.encoder_batch,
            workers=self.run.workers, processes=self.run.processes, title="validation",
        )  # fmt: skip
        if self.recipe.cache_features:
            self._plain = list(inputs)
            return self._plain
        return inputs

    def _result(self, accuracy: dict[str, Any]) -> dict[str, Any]:
        encoder, recipe = self.encoder, self.recipe
        scored = [each for each in self.trainer.history if "val" in each]
        best = {
            name: max(scored, key=lambda each: each["val"][name]["top1"]) for name in self.heads
        }
        return {
            "probe": recipe.kind,
            "encoder": {
                "source": self.source,
                "sha256": self.fingerprint,
                "unchanged": True,  # or __call__ would not have come here
                "image_size": encoder.image_size,
                "layer": encoder.layer,
                "blocks": encoder.num_layers,
                "width": encoder.width,
                "dtype": _name(next(encoder.parameters()).dtype),
                "autocast": encoder.autocast and _name(encoder.autocast),
            },
            "data": {
                "train": len(self.images),
                "val": len(self.validation),
                "classes": len(self.trainer.head.classes),
            },
            "recipe": {
                **asdict(recipe),
                "peak_lr": recipe.peak_lr,
                "steps": recipe.epochs * self.trainer.order.steps_per_epoch,
                "augmentation": recipe.augmentation,
                "processes": self.run.processes.count,
            },
            "accuracy": accuracy,
            "best": {
                name: {"epoch": each["epoch"], "top1": each["val"][name]["top1"]}
                for name, each in best.items()
            },
            "history": self.trainer.history,
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in _PACKAGES},
            },
        }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _digest(images: LabelledImages) -> str:
    """The sha256 over names and labels of pictures, wherever their folder is."""
    lines = "".join(
        f"{Path(source).parent.name}/{Path(source).name} {label}\n"
        for source, label in zip(images.sources, images.labels, strict=True)
    )
    return hashlib.sha256(lines.encode()).hexdigest()


def describe(result: Mapping[str, Any]) -> str:
    """A result in a few lines for people."""
    encoder, data, recipe = result["encoder"], result["data"], result["recipe"]
    lines = [
        f"{result['probe']} probe of {encoder['source']}, {encoder['image_size']} px, layer "
        f"{encoder['layer']} of {encoder['blocks']}; weights unchanged",
        f"{data['train']} training images, {data['classes']} classes, {recipe['steps']} steps of "
        f"{recipe['batch']}; augmentation: {recipe['augmentation']}",
    ]
    for name, heads in result["accuracy"].items():
        for which, each in heads.items():
            low, high = each["interval"]
            lines.append(
                f"{name:16} {which:5} top-1 {each['top1']:6.2f} [{low:.2f}, {high:.2f}]  "
                f"top-5 {each['top5']:6.2f}  of {each['n']}"
            )
    return "\n".join(lines)
