"""Distillation of a small InternViT from a large one: InternViT-300M-448px-Distill (Table 1).

    pictures, one 448 px tile each -> teacher, frozen (N, 1 + P, C_t) ------------------.
                                   `-> student (N, 1 + P, C_s) -> bridge (N, 1 + P, C_t) -> 1 - cos

The report says (section 2.2): a cosine distillation loss, InternViT-6B-448px-V1.5 as the teacher,
fixed 448 px, and weights of CLIP-ViT-Large-336px to start from "where applicable". It leaves open
which features are compared, how 1024 channels meet 3200, data, length and learning rate. Here:

    features   the last hidden states, class token and patches alike: what the chat model reads
    widths     a linear layer after the student, trained with it and thrown away
    the rest   in the recipe, recipes/distill/internvit-300m.yaml, and not InternVL's

Starting from CLIP weights is not built in; `student` may be any InternViT folder.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from internvl import hub
from internvl.settings import build
from internvl.source_files import read_json, resolve
from internvl.training.recipes import Optimizer, Save, Schedule

if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.getLogger(__name__)

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def cosine_distillation(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Cosine distillation loss (Table 1, "Cosine"), averaged over tokens t of tiles n:

        L = mean over n, t of 1 - <s_nt, z_nt> / (|s_nt| |z_nt|)

    It is 0 where the two point the same way, whatever their lengths, and 2 where they are opposed.

    Args:
        student: s, (N, 1 + P, C), of any dtype; computed in float32.
        teacher: z, (N, 1 + P, C); no gradient flows into it.

    Returns:
        A scalar, float32.

    Raises:
        ValueError: shapes that differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"the student gives {tuple(student.shape)} and the teacher {tuple(teacher.shape)}; "
            "both need the same tiles and patches, and a bridge where their widths differ."
        )
    cosine = F.cosine_similarity(student.float(), teacher.detach().float(), dim=-1)  # (N, 1 + P)
    return (1.0 - cosine).mean()


class Bridged(nn.Module):
    """A student whose features have the width of its teacher's.

    Args:
        student: `InternVisionModel` of width C_s.
        width: C_t of the teacher.
        seed: of the bridge, which is there only where the widths differ.
    """

    def __init__(self, student: Any, width: int, seed: int = 42) -> None:
        super().__init__()
        self.student = student
        own: int = student.config.hidden_size
        self.bridge = nn.Identity() if own == width else _bridge(own, width, seed)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Map normalised tiles (N, 3, S, S) to (N, 1 + P, C_t)."""
        return self.bridge(self.student(pixel_values).last_hidden_state)


def _bridge(own: int, width: int, seed: int) -> nn.Linear:
    """A linear layer that keeps the scale, from a seed."""
    bridge = nn.Linear(own, width)
    generator = torch.Generator().manual_seed(seed)
    nn.init.normal_(bridge.weight, std=1 / math.sqrt(own), generator=generator)
    nn.init.zeros_(bridge.bias)
    return bridge


# ---------------------------------------------------------------------- the recipe
@dataclass(frozen=True)
class DistillRecipe:
    """One run of distillation.

    Attributes:
        student: folder or Hub id of an InternViT; with a config.json and no weights, a new one.
        teacher: folder or Hub id of an InternViT, or of a chat checkpoint, whose encoder is taken.
        images: folder that is searched through for pictures.
        steps: optimiser steps.
        batch: pictures per optimiser step, over all devices.
        per_device: pictures that a device holds at once.
        optimizer: how weights are changed; AdamW.
        schedule: how the learning rate goes.
        drop_path: stochastic depth of the student.
        dtype: "bfloat16" computes in it with weights kept in float32; "float32" everything.
        gradient_checkpointing: compute activations again in the backward pass.
        workers: data processes per rank.
        save: checkpoints.
        log_every: steps between losses that are kept.
        seed: of everything.
    """

    student: str
    teacher: str
    images: str
    steps: int
    batch: int = 1024
    per_device: int = 16
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(lr=1e-3))
    schedule: Schedule = field(default_factory=Schedule)
    drop_path: float = 0.0
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    gradient_checkpointing: bool = False
    workers: int = 4
    save: Save = field(default_factory=Save)
    log_every: int = 10
    seed: int = 42

    def __post_init__(self) -> None:
        """Refuse what no run could do."""
        for name in ("steps", "batch", "per_device", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if self.optimizer.name != "adamw":
            raise ValueError(f"optimizer.name is {self.optimizer.name!r}; expected 'adamw'.")


def load_distill_recipe(path: str | Path) -> DistillRecipe:
    """Read a recipe; paths in it are as the run finds them.

    Raises:
        ValueError: unknown keys, or values that no run could have.
        ImportError: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise ImportError("recipes need PyYAML: pip install 'internvl[train]'") from error
    content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    recipe: DistillRecipe = build(DistillRecipe, content, str(path))
    return recipe


# ---------------------------------------------------------------------- data
class Tiles(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Pictures, each as one square tile: the fixed resolution of Table 1.

    Args:
        images: paths, or whatever else the image processor opens.
        side: of a tile in pixels.
    """

    def __init__(self, images: Sequence[Any], side: int) -> None:
        module = hub.ring0("preprocessor.image_processing_internvl_chat")
        self.images = images
        self.processor = module.InternVLChatImageProcessor(
            size=side, max_tiles=1, use_thumbnail=False
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """pixel_values (3, S, S)."""
        tiles = self.processor([self.images[index]], return_tensors="pt")["pixel_values"]
        return {"pixel_values": tiles[0]}


def find_pictures(folder: str | Path) -> list[Path]:
    """All pictures in a folder and those below it, in a fixed order.

    Raises:
        ValueError: there is none.
    """
    found = (path for path in Path(folder).rglob("*") if path.suffix.lower() in PICTURES)
    pictures = sorted(path for path in found if path.is_file())
    if not pictures:
        raise ValueError(f"{folder} holds no picture ({', '.join(PICTURES)}).")
    return pictures


# ---------------------------------------------------------------------- the run
@dataclass(frozen=True)
class Distillation:
    """What a run gave.

    Attributes:
        student: the `InternVisionModel`, trained; the object that was passed.
        losses: (step, mean loss since the one before), in order.
        images: number of pictures.
        steps: optimiser steps.
    """

    student: Any
    losses: tuple[tuple[int, float], ...]
    images: int
    steps: int


def distill(
    student: Any,
    teacher: Any,
    images: Sequence[Any],
    recipe: DistillRecipe,
    *,
    folder: str | Path,
    resume: bool = False,
) -> Distillation:
    """Train a student to give the features of a teacher.

    Args:
        student: `InternVisionModel`; trained in place.
        teacher: `InternVisionModel` with the same tiles and patches; stays as it is.
        images: paths, or whatever else the image processor opens.
        recipe: numbers of the run; its `student`, `teacher` and `images` are not looked at.
        folder: where checkpoints go.
        resume: go on from the last checkpoint in `folder`.

    Raises:
        ValueError: no pictures, different numbers of patches, or a batch that does not divide over
            the devices.
    """
    _check(student, teacher, images)
    student.train()
    if recipe.gradient_checkpointing:
        student.gradient_checkpointing_enable()
    trainer = _trainer(student, teacher, images, recipe, Path(folder))
    trainer.train(resume_from_checkpoint=resume or None)
    student.eval()
    losses = [
        (int(entry["step"]), entry["loss"])
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    return Distillation(student, tuple(losses), len(images), trainer.state.global_step)


def run(path: str | Path, out: str | Path, *, resume: bool = False) -> Distillation:
    """Run a recipe, and write the student as a self-contained InternViT folder.

    Args:
        path: the recipe.
        out: the folder to make; checkpoints go to OUT-training.
        resume: go on from the last checkpoint.

    Raises:
        FileExistsError: `out` holds something.
        ValueError: as in `load_distill_recipe` and `distill`.
    """
    from internvl.checkpoints.export import export_loaded
    from internvl.checkpoints.staging import refuse_existing

    out, recipe = Path(out).expanduser(), load_distill_recipe(path)
    refuse_existing(out)
    student, teacher = open_student(recipe), open_encoder(recipe.teacher)
    images = find_pictures(recipe.images)
    training = out.with_name(f"{out.name}-training")
    distilled = distill(student, teacher, images, recipe, folder=training, resume=resume)
    processor = Tiles([], student.config.image_size).processor
    # The weights are float32 while training; what is written is what the encoder is used in.
    student.to(getattr(torch, recipe.dtype))
    export_loaded(
        hub.Loaded(student, processor, None),
        out,
        origin=f"Distilled from `{recipe.teacher}` on {len(images)} pictures with the cosine loss.",
    )
    return distilled


def describe(distillation: Distillation) -> str:
    """Say in a line what was reached."""
    (_, first), (_, last) = distillation.losses[0], distillation.losses[-1]
    return (
        f"distilled  {distillation.steps} steps over {distillation.images} pictures: "
        f"1 - cos fell from {first:.4f} to {last:.4f}"
    )


def open_encoder(source: str | Path) -> Any:
    """Load an InternViT, or the encoder of a chat checkpoint, in float32."""
    model = hub.load(source, dtype=torch.float32).model
    return getattr(model, "vision_model", model)


def open_student(recipe: DistillRecipe) -> Any:
    """Load the student, or make a new one of its config, in float32."""
    folder = resolve(recipe.student)
    stored = open_encoder(folder) if any(folder.glob("*.safetensors")) else None
    config = stored.config if stored else hub.build_config(read_json(folder / "config.json"))
    config.drop_path_rate = recipe.drop_path
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        student = hub.ring0("modeling_intern_vit").InternVisionModel(config).float()
    if stored is not None:
        student.load_state_dict(stored.state_dict())
    return student


def _check(student: Any, teacher: Any, images: Sequence[Any]) -> None:
    if not len(images):
        raise ValueError("there are no pictures to distil on.")
    sides = [(m.config.image_size, m.config.patch_size) for m in (student, teacher)]
    if sides[0] != sides[1]:
        raise ValueError(
            f"the student has tiles of {sides[0][0]} px with patches of {sides[0][1]}, the teacher "
            f"{sides[1][0]} and {sides[1][1]}; their tokens stand for different places. Resize the "
            "position embedding of one (`resize_pos_embeddings`)."
        )


def _trainer(
    student: Any, teacher: Any, images: Sequence[Any], recipe: DistillRecipe, folder: Path
) -> Trainer:
    """The Trainer of a run."""
    from transformers import Trainer, TrainingArguments

    class DistillTrainer(Trainer):
        """Keeps the teacher out of the model, so that neither optimiser nor checkpoints hold it."""

        def compute_loss(
            self,
            model: Any,
            inputs: dict[str, torch.Tensor],
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            pixels = inputs["pixel_values"]
            with torch.no_grad():
                wanted = teacher(pixels).last_hidden_state
            features = model(pixels)
            loss = cosine_distillation(features, wanted)
            return (loss, {"features": features}) if return_outputs else loss

    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.per_device,
        learning_rate=recipe.optimizer.lr,
        weight_decay=recipe.optimizer.weight_decay,
        adam_beta1=recipe.optimizer.betas[0],
        adam_beta2=recipe.optimizer.betas[1],
        adam_epsilon=recipe.optimizer.eps,
        max_grad_norm=recipe.optimizer.max_grad_norm,
        lr_scheduler_type=recipe.schedule.name,
        lr_scheduler_kwargs=dict(recipe.schedule.options),
        warmup_steps=recipe.schedule.warmup,
        bf16=recipe.dtype == "bfloat16",
        dataloader_num_workers=recipe.workers,
        save_steps=recipe.save.every,
        save_total_limit=recipe.save.keep,
        logging_steps=recipe.log_every,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.accelerator.is_available(),
        use_cpu=not torch.accelerator.is_available(),  # several CPU processes need it said
        report_to="none",
        seed=recipe.seed,
    )
    arguments.gradient_accumulation_steps = _accumulation(
        recipe, arguments.world_size * max(1, arguments.n_gpu)
    )
    teacher.eval().requires_grad_(False).to(arguments.device)
    model = Bridged(student, teacher.config.hidden_size, recipe.seed)
    tiles = Tiles(images, student.config.image_size)
    return DistillTrainer(model=model, args=arguments, train_dataset=tiles)


def _accumulation(recipe: DistillRecipe, devices: int) -> int:
    """Micro-steps of a step."""
    steps, rest = divmod(recipe.batch, recipe.per_device * devices)
    if rest or not steps:
        raise ValueError(
            f"batch is {recipe.batch}, which is no multiple of {recipe.per_device} pictures on "
            f"each of {devices} devices; change per_device."
        )
    return steps
