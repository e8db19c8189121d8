"""A run: recipe -> model, stage, stream -> trainer -> checkpoints -> a repository that loads.

The same call serves a laptop and a cluster: ranks come from `accelerate launch` or `torchrun`, and
a recipe's batch is in packed sequences, so that the number of devices decides only how many
micro-batches each accumulates.
"""

from __future__ import annotations

import json
import logging
import math
import os
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments, set_seed

from internvl import hub
from internvl.checkpoints.adapters import lora_config
from internvl.data.examples import ExampleMaker
from internvl.data.measure import measure_items
from internvl.data.mixture import Mixture, load_meta
from internvl.data.packing import make_packer
from internvl.data.stream import PackStream
from internvl.training.callbacks import Ema, StopOnSignal
from internvl.training.evaluate import Evaluator
from internvl.training.losses import cut_cross_entropy
from internvl.training.recipes import Recipe
from internvl.training.stages import apply_stage, set_drop_path, trainable
from internvl.training.trainer import PackTrainer, last_checkpoint

logger = logging.getLogger(__name__)

FINAL = "final"
# Samples measured to tell how many packs an epoch has.
_MEASURED = 20_000


def train(recipe: Recipe, out: str | Path, *, resume: bool = False) -> Path:
    """Train as a recipe says.

    Args:
        recipe: what to do.
        out: folder of the run: checkpoints, log, and `final/` at the end.
        resume: go on from the newest checkpoint in `out`, if there is one.

    Returns:
        The folder of the final checkpoint, a self-contained repository; the newest checkpoint if
        the run was asked to stop before its end.

    Raises:
        FileExistsError: `out` holds a run, and `resume` is off.
        ValueError: a batch that the ranks cannot share, or data that cannot be used.
        NotFinite: a loss that is not.
    """
    out = Path(out).expanduser().absolute()
    checkpoint = last_checkpoint(out)
    if (out / FINAL).exists() and resume:
        logger.info("%s is complete", out)
        return out / FINAL
    if (checkpoint is not None or (out / FINAL).exists()) and not resume:
        raise FileExistsError(
            f"{out} holds a run; pass --resume to go on with it, or name another."
        )
    world = int(os.environ.get("WORLD_SIZE", "1"))
    accumulation = _accumulation(recipe, world)
    set_seed(recipe.seed)
    loaded = _load(recipe)
    prepared = hub.prepare(recipe.model)
    mixture = Mixture(
        load_meta(recipe.data), seed=recipe.seed, weighting=recipe.weighting, repeat=recipe.repeat
    )
    maker = ExampleMaker(prepared, recipe.examples)
    steps = _steps(recipe, mixture, maker)
    arguments = _arguments(recipe, out, steps, accumulation)
    stream = PackStream(
        mixture, maker, recipe.weigh, recipe.stream,
        rank=arguments.process_index, world=arguments.world_size,
    )  # fmt: skip
    average = None if recipe.ema is None else Ema(recipe.ema)
    evaluator = None
    if recipe.evaluation is not None:
        evaluator = Evaluator(loaded, prepared, recipe, out)
    callbacks = [StopOnSignal(), *([average] if average else [])]
    trainer = PackTrainer(
        loaded, recipe, stream, args=arguments, callbacks=callbacks, evaluator=evaluator,
        average=average, dtype=_stored_dtype(prepared.config),
    )  # fmt: skip
    _describe(recipe, loaded, mixture, steps, accumulation, arguments)
    if checkpoint is not None:
        trainer.restore(checkpoint)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if trainer.state.global_step < steps:
        return last_checkpoint(out) or out
    trainer.finish(out / FINAL)
    return out / FINAL


def _load(recipe: Recipe) -> hub.Loaded:
    """The model, frozen as the stage says, with its adapters."""
    # Weights are kept in float32 whatever they are computed in: AdamW's steps are smaller than
    # what bfloat16 can tell apart.
    loaded = hub.load(recipe.model, dtype="float32", attn_implementation=recipe.attention)
    model = loaded.model
    set_drop_path(model, recipe.drop_path)
    if recipe.loss_kernel is not None:
        model.loss_kernel = cut_cross_entropy()
    model.img_context_token_id = loaded.tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    if recipe.lora is None:
        apply_stage(model, recipe.stage)
        return loaded
    from peft import get_peft_model

    lora = recipe.lora
    settings = lora_config(
        model.config, lora.part, lora.r, alpha=lora.alpha, dropout=lora.dropout,
        train_mlp1=lora.train_mlp1,
    )  # fmt: skip
    return replace(loaded, model=get_peft_model(model, settings))


def _stored_dtype(config: Any) -> torch.dtype | None:
    """The dtype of the checkpoint that a run starts from, which its end has too."""
    stored = config.dtype
    return getattr(torch, stored) if isinstance(stored, str) else stored


def _accumulation(recipe: Recipe, world: int) -> int:
    """Micro-batches of one pack that each rank adds up to a step."""
    if recipe.batch % world:
        raise ValueError(
            f"a batch of {recipe.batch} packed sequences cannot be shared by {world} ranks; change "
            "the number of ranks, or `batch`."
        )
    return recipe.batch // world


def _steps(recipe: Recipe, mixture: Mixture, maker: ExampleMaker) -> int:
    """Optimiser steps of the run."""
    if recipe.steps is not None:
        return recipe.steps
    if recipe.tokens is not None:
        return math.ceil(recipe.tokens / (recipe.batch * recipe.context))
    assert recipe.epochs is not None
    packs = count_packs(mixture, maker, recipe)
    return max(1, round(recipe.epochs * packs / recipe.batch))


def count_packs(mixture: Mixture, maker: ExampleMaker, recipe: Recipe) -> float:
    """Packs of an epoch, from the sizes of its samples; estimated beyond 20,000 of them."""
    options = recipe.stream
    packer = make_packer(options.rule, options.limits, buffer=options.buffer, window=options.window)
    measured = min(_MEASURED, len(mixture))
    items = measure_items(mixture, maker, options.limits, measured)
    packs = sum(len(packer.add(item)) for item in items) + len(packer.flush())
    return packs * len(mixture) / measured


def _arguments(recipe: Recipe, out: Path, steps: int, accumulation: int) -> TrainingArguments:
    schedule, evaluation = recipe.schedule, recipe.evaluation
    warmup = schedule.warmup
    return TrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=accumulation,
        learning_rate=recipe.optimizer.lr,
        weight_decay=recipe.optimizer.weight_decay,
        max_grad_norm=recipe.optimizer.max_grad_norm,
        lr_scheduler_type=schedule.name,
        lr_scheduler_kwargs=dict(schedule.options),
        warmup_steps=int(warmup) if warmup >= 1 else math.ceil(warmup * steps),
        bf16=recipe.dtype == "bfloat16",
        **_checkpointing(recipe.gradient_checkpointing),
        save_strategy="steps",
        save_steps=recipe.save.every,
        save_total_limit=recipe.save.keep,
        eval_strategy="no" if evaluation is None else "steps",
        eval_steps=None if evaluation is None else evaluation.every,
        logging_steps=recipe.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        report_to=_reports(),
        ignore_data_skip=True,  # the stream itself knows where it stood
        remove_unused_columns=False,
        dataloader_num_workers=recipe.workers,
        ddp_find_unused_parameters=False,
        use_cpu=not torch.accelerator.is_available(),
        seed=recipe.seed,
    )


def _checkpointing(wanted: bool) -> dict[str, Any]:
    """Gradient checkpointing, under the name that this transformers 5 has for it."""
    known = {each.name for each in fields(TrainingArguments)}
    name = "activation_checkpointing"
    name = name if name in known else "gradient_checkpointing"
    return {name: wanted, f"{name}_kwargs": {"use_reentrant": False}}


def _reports() -> list[str]:
    """TensorBoard where it is installed."""
    from transformers.integrations import is_tensorboard_available

    return ["tensorboard"] if is_tensorboard_available() else []


def _describe(
    recipe: Recipe,
    loaded: hub.Loaded,
    mixture: Mixture,
    steps: int,
    accumulation: int,
    arguments: Any,
) -> None:
    """Log what is about to happen, and keep it with the run."""
    if arguments.process_index:
        return
    out = Path(arguments.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    (out / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n", encoding="utf-8")
    logger.info(
        "stage %s trains %s; %d samples an epoch from %d datasets; %d steps of %d packs "
        "(%d ranks x %d)",
        recipe.stage.name, trainable(loaded.model), len(mixture), len(mixture.specs), steps,
        recipe.batch, arguments.world_size, accumulation,
    )  # fmt: skip
