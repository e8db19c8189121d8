"""Recipes: a training run as a YAML file, read into frozen dataclasses that refuse nonsense.

`recipes/` has one for every column of Table 3 of the report. Where the report and the official code
differ, a recipe means the report; `preset: official` means the code in all of it:

    what                     report                      official
    loss weights over        each response               the conversation
    JPEG compression of      the image                   each tile
    packing                  section 4.2                 first fit over tiles
    sample over a limit      cut into several            text truncated, or left out
    repeat factor            any r in (0, 4], sampled    first rows for r < 1, whole numbers above
    normaliser of the loss   the whole step              each micro-step
    a recipe's own values    as they stand               those under `official:`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from internvl.data.examples import ExampleOptions
from internvl.data.skips import SkipPolicy
from internvl.data.stream import StreamOptions
from internvl.settings import build, read_yaml
from internvl.training.losses import LossWeights
from internvl.training.stages import STAGES, Stage


@dataclass(frozen=True)
class Optimizer:
    """How weights are changed.

    Attributes:
        name: "adamw", as in the report, or "muon": Muon for the matrices of ViT and LLM, AdamW for
            the rest.
        lr: peak learning rate (of AdamW).
        weight_decay: decoupled weight decay.
        betas: of AdamW.
        eps: of AdamW.
        max_grad_norm: gradients are clipped to that norm.
        muon_lr: learning rate of Muon; None for `lr`.
        vision_scale: learning rate of the ViT over that of the rest; 1 in the report.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 4e-5
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    max_grad_norm: float = 1.0
    muon_lr: float | None = None
    vision_scale: float = 1.0


@dataclass(frozen=True)
class Schedule:
    """How the learning rate goes.

    Attributes:
        name: a scheduler of transformers ("cosine", "linear", "constant_with_warmup",
            "warmup_stable_decay", ...).
        warmup: share of the steps, or steps if above 1.
        options: for the scheduler, as in `lr_scheduler_kwargs`.
    """

    name: str = "cosine"
    warmup: float = 0.03
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Packing:
    """How rows are filled, see `internvl.data.packing`."""

    rule: Literal["report", "best_fit", "official"] = "report"
    buffer: int = 20
    window: int = 64


@dataclass(frozen=True)
class Save:
    """When checkpoints are written, and how many are kept."""

    every: int = 100
    keep: int = 3


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters in place of whole weights.

    Attributes:
        r: rank.
        alpha: scale times r; None for 2 r.
        dropout: before the factors.
        part: "llm", "vision" or "both".
        train_mlp1: also train the projector, whole.
    """

    r: int = 16
    alpha: int | None = None
    dropout: float = 0.05
    part: Literal["llm", "vision", "both"] = "llm"
    train_mlp1: bool = False


@dataclass(frozen=True)
class Evaluation:
    """What is looked at while training.

    Attributes:
        data: meta file of held-out data.
        every: steps between evaluations.
        packs: packs whose loss is averaged.
        answers: samples that are answered and compared with their first answer.
        max_new_tokens: longest answer.
    """

    data: str
    every: int = 500
    packs: int = 32
    answers: int = 0
    max_new_tokens: int = 64


@dataclass(frozen=True)
class Recipe:
    """One run.

    Attributes:
        model: folder or Hub id of the checkpoint that the run starts from.
        data: meta file.
        stage: "1", "1.5", "2", or {"train": [parts]}.
        tokens: training tokens, or
        steps: optimiser steps, or
        epochs: passes over the mixture; exactly one of the three.
        batch: packed sequences per optimiser step, over all devices.
        context: l_max, tokens of a packed sequence.
        max_tiles: t_max, tiles of a packed sequence.
        packing: how they are filled.
        loss: "token", "sample" or "square" averaging (equation 5).
        preset: "report" or "official", see the module.
        optimizer: how weights are changed.
        schedule: how the learning rate goes.
        drop_path: "ViT Drop Path" of Table 3.
        dtype: "bfloat16" computes in it with weights kept in float32; "float32" everything.
        gradient_checkpointing: compute activations again in the backward pass.
        attention: implementation, as in transformers; None for its choice.
        loss_kernel: "cce" computes the loss with cut-cross-entropy, on CUDA; None in chunks.
        weighting: "len" or "sqrt", see `internvl.data.mixture`.
        frames: fewest and most frames drawn from a video.
        skips: how many samples may be left out.
        workers: data processes per rank.
        save: checkpoints.
        evaluation: held-out data, or None.
        ema: decay of an average of the weights that is written beside them; None for none.
        lora: adapters, or None.
        log_every: steps between lines of the log.
        seed: of everything.
        table3_epochs: "Training Epochs" of Table 3, for the record.
        official: values that `preset: official` puts in place of the others.
    """

    model: str
    data: str
    stage: Stage = STAGES["2"]
    tokens: float | None = None
    steps: int | None = None
    epochs: float | None = None
    batch: int = 512
    context: int = 16384
    max_tiles: int = 48
    packing: Packing = Packing()
    loss: Literal["token", "sample", "square"] = "square"
    preset: Literal["report", "official"] = "report"
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    drop_path: float = 0.0
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    gradient_checkpointing: bool = True
    attention: str | None = None
    loss_kernel: Literal["cce"] | None = None
    weighting: Literal["len", "sqrt"] = "len"
    frames: tuple[int, int] = (8, 32)
    skips: SkipPolicy = field(default_factory=SkipPolicy)
    workers: int = 4
    save: Save = Save()
    evaluation: Evaluation | None = None
    ema: float | None = None
    lora: Lora | None = None
    log_every: int = 10
    seed: int = 42
    table3_epochs: float | None = None
    official: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what no run could do."""
        lengths = [name for name in ("tokens", "steps", "epochs") if getattr(self, name)]
        if len(lengths) != 1:
            raise ValueError(
                f"one of tokens, steps and epochs says how long to train; got {lengths}."
            )
        for name in ("batch", "context", "max_tiles", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if self.optimizer.lr <= 0:
            raise ValueError(f"optimizer.lr is {self.optimizer.lr}; expected more than 0.")
        if self.lora is not None and self.ema is not None:
            raise ValueError("ema averages whole weights; it does not go with lora.")

    # ------------------------------------------------------------------ what the preset means
    @property
    def is_official(self) -> bool:
        """Whether the recipe means the official code."""
        return self.preset == "official"

    @property
    def weigh(self) -> LossWeights:
        """Weights of the loss."""
        return LossWeights(self.loss, "conversation" if self.is_official else "response")

    @property
    def examples(self) -> ExampleOptions:
        """How samples become examples."""
        low, high = self.frames
        return ExampleOptions(low, high, jpeg_per="tile" if self.is_official else "image")

    @property
    def stream(self) -> StreamOptions:
        """How examples become rows."""
        return StreamOptions(
            max_tokens=self.context,
            max_tiles=self.max_tiles,
            rule="official" if self.is_official else self.packing.rule,
            buffer=self.packing.buffer,
            window=self.packing.window,
            over_length="truncate" if self.is_official else "cut",
            flash=self.attention is not None and self.attention.startswith("flash"),
            skips=self.skips,
        )

    @property
    def repeat(self) -> Literal["sampled", "official"]:
        """How repeat factors are taken."""
        return "official" if self.is_official else "sampled"


def load_recipe(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe.

    Args:
        path: YAML file. Its paths `model` and `data` are relative to it when such a file is there.
        overrides: values in place of the file's, "optimizer.lr" naming a value within a value.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unknown keys, values of another type, or values that no run could have.
        ImportError: PyYAML is not installed.
    """
    path = Path(path)
    content = read_yaml(path, overrides, what="recipe", extra="train")
    try:
        return parse_recipe(content, path.parent)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def parse_recipe(content: Mapping[str, Any], folder: Path | None = None) -> Recipe:
    """Make a recipe of what a YAML file holds.

    Args:
        content: keys and values.
        folder: what relative paths are looked for in.

    Raises:
        ValueError: as in `load_recipe`.
    """
    content = dict(content)
    if content.get("preset") == "official":
        for name, value in dict(content.get("official") or {}).items():
            content[name] = _merged(content.get(name), value)
    content["stage"] = _stage(content.get("stage", "2"))
    recipe: Recipe = build(Recipe, content, "recipe")
    if folder is None:
        return recipe

    def near(value: str) -> str:
        return str(folder / value) if (folder / value).exists() else value

    evaluation = recipe.evaluation
    if evaluation is not None:
        evaluation = replace(evaluation, data=near(evaluation.data))
    model, data = near(recipe.model), near(recipe.data)
    return replace(recipe, model=model, data=data, evaluation=evaluation)


def _stage(value: Any) -> Stage:
    if isinstance(value, Stage):
        return value
    if isinstance(value, Mapping) and set(value) <= {"name", "train"} and "train" in value:
        parts = tuple(value["train"])
        return Stage(str(value.get("name", "+".join(parts))), parts)
    if str(value) in STAGES:
        return STAGES[str(value)]
    raise ValueError(f"stage is {value!r}; expected one of {sorted(STAGES)}, or {{train: [...]}}.")


def _merged(old: Any, new: Any) -> Any:
    return {**old, **new} if isinstance(old, Mapping) and isinstance(new, Mapping) else new
