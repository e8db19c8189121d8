"""The trainer: transformers.Trainer on the stream of packs.

    PackStream -> get_batch_samples -> sum of weights over the step -> forward -> loss / sum -> step

What it adds to the base class:

* The normaliser of the loss is the sum of the loss weights over all micro-batches and ranks of a
  step (equation 5), so that accumulation and ranks change nothing.
* Batches are packs. They are not dealt out by accelerate: each rank and worker reads a share of its
  own, and its place in the data is part of a checkpoint.
* Frozen parts stay in eval mode; the log has tokens, tiles, fill and skips; a loss that is not
  finite stops the run and names its samples; a checkpoint is a repository that loads, and appears
  under its name only when it is complete.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import rotate_checkpoints

from internvl import hub
from internvl.checkpoints.export import complete, export_loaded
from internvl.data.stream import PackStream, ShardState
from internvl.training.callbacks import Ema
from internvl.training.optim import make_optimizer
from internvl.training.recipes import Recipe
from internvl.training.stages import chat_model, set_modes

logger = logging.getLogger(__name__)

DATA_STATE = "data_state_rank{rank}.json"


class NotFinite(RuntimeError):
    """A loss that is NaN or infinite; the message names the samples."""


class PackTrainer(Trainer):
    """Trains an InternVLChatModel, or a PeftModel around one, on packs.

    Args:
        loaded: model, processor and tokenizer; the model is frozen as the stage says.
        recipe: what to do.
        stream: packs of this rank; endless.
        evaluator: called with the trainer, returns figures; None for no evaluation.
        average: of the weights, also among the callbacks; None for none.
        dtype: of the final checkpoint; None for that of the weights in memory.
        **options: as `transformers.Trainer`.
    """

    def __init__(
        self,
        loaded: hub.Loaded,
        recipe: Recipe,
        stream: PackStream,
        *,
        evaluator: Any = None,
        average: Ema | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        self.loaded, self.recipe, self.stream = loaded, recipe, stream
        self.evaluator, self.average, self.dtype = evaluator, average, dtype
        self.source = Path(recipe.model) if Path(recipe.model).is_dir() else None
        self._states: list[dict[str, Any]] = []
        self._next_worker = 0
        self._counts = _Counts(recipe.context, recipe.max_tiles)
        # The base class wants a set to evaluate on; `evaluate` here has its own.
        held_out = None if evaluator is None else [0]
        super().__init__(model=loaded.model, train_dataset=stream, eval_dataset=held_out, **options)
        if self._sharded and (average is not None or recipe.optimizer.name == "muon"):
            raise ValueError(
                "ema and the optimizer muon work on whole weights, and this run shards them; take "
                "them out of the recipe, or launch without FSDP and DeepSpeed."
            )

    # ------------------------------------------------------------------ data
    def get_train_dataloader(self) -> DataLoader:
        """Batches of this rank; accelerate must not deal them out again."""
        workers, accumulation = self.recipe.workers, self.args.gradient_accumulation_steps
        self._next_worker = self.stream.first_worker
        fresh = vars(ShardState())
        self._states = list(self.stream.states) or [fresh for _ in range(max(1, workers))]
        return DataLoader(
            self.stream,
            batch_size=None,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=_prefetch(accumulation, workers) if workers else None,
            # Else the loader would draw from the generator that a resumed run has just restored.
            generator=torch.Generator().manual_seed(self.recipe.seed),
        )

    def restore(self, checkpoint: Path) -> None:
        """Take up what the base class does not know of a checkpoint: data and average.

        Raises:
            ValueError: the checkpoint is of another number of ranks.
        """
        ranks = len(list(checkpoint.glob(DATA_STATE.format(rank="*"))))
        world = self.args.world_size
        if ranks != world:
            raise ValueError(
                f"{checkpoint} was written by {ranks} ranks and this run has {world}; start as "
                "many, or the order of the data would change."
            )
        path = checkpoint / DATA_STATE.format(rank=self.args.process_index)
        state = json.loads(path.read_text(encoding="utf-8"))
        self.stream.states, self.stream.first_worker = state["workers"], state["next_worker"]
        if self.average is not None:
            self.average.load(checkpoint)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """As the base class; also keeps the place in the data."""
        batches, total = super().get_batch_samples(epoch_iterator, num_batches, device)
        for batch in batches:
            info = batch["info"]
            self._states[info["worker"]] = info["state"]
            self._next_worker = (info["worker"] + 1) % len(self._states)
            self._counts.add(info)
        return batches, total

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Sum of the loss weights of a step, over its micro-batches and all ranks (equation 5)."""
        if not batch_samples or "loss_weight" not in batch_samples[0] or self.recipe.is_official:
            return None  # the official code normalises every micro-step by itself
        total = sum(batch["loss_weight"][:, 1:].double().sum() for batch in batch_samples)
        total = total.float().to(device)
        if self.args.world_size > 1:
            total = self.accelerator.gather(total).sum()
        return total / (self.get_tp_size() * self.get_cp_size() * self.get_sp_size())

    # ------------------------------------------------------------------ a step
    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Loss of a batch, without its logits."""
        set_modes(model)  # the base class has just put everything in training mode
        inputs = {key: value for key, value in inputs.items() if key != "info"}
        official = {"loss_reduction_all_gather": True} if self.recipe.is_official else {}
        inputs = {**inputs, **official, "skip_logits": True, "use_cache": False}
        return super().compute_loss(
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
        )

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Any:
        """A micro-step.

        Raises:
            NotFinite: the loss is NaN or infinite.
        """
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            samples = [self._describe(key) for key in inputs["info"]["keys"]]
            raise NotFinite(
                f"the loss is {float(loss)} at step {self.state.global_step + 1} on rank "
                f"{self.args.process_index}; the pack holds {', '.join(samples)}. Look at these "
                "samples, lower the learning rate, or resume from the last checkpoint."
            )
        return loss

    def _describe(self, key: list[int]) -> str:
        spec = self.stream.mixture.specs[key[1]]
        return f"{spec.name} row {key[2] + 1}"

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimiser of the recipe."""
        if self.optimizer is None:
            model = self.model if model is None else model
            decayed = self.get_decay_parameter_names(model)
            self.optimizer = make_optimizer(model, self.recipe.optimizer, decayed)
        return self.optimizer

    # ------------------------------------------------------------------ log and evaluation
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the base class, with what the data did since the last line."""
        if "loss" in logs:
            logs = {**logs, **self._counts.report(self._sum)}
        super().log(logs, start_time)

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """Loss and answers on the held-out data of the recipe."""
        metrics = {f"eval_{name}": value for name, value in self.evaluator(self).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over ranks."""
        if self.args.world_size > 1:
            values = values.to(self.args.device)
            dist.all_reduce(values)
        return values.cpu()

    # ------------------------------------------------------------------ checkpoints
    @property
    def _sharded(self) -> bool:
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    @property
    def _out(self) -> Path:
        return Path(self.args.output_dir or ".")

    def _get_output_dir(self, trial: Any) -> str:
        """Checkpoints are written beside their place and moved there when complete."""
        return str(self._out / ".partial")

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        out, name = self._out, f"checkpoint-{self.state.global_step}"
        written = out / ".partial" / name
        if self.args.should_save:
            shutil.rmtree(out / ".partial", ignore_errors=True)
        self._wait()
        super()._save_checkpoint(model, trial)
        state = {"next_worker": self._next_worker, "workers": self._states}
        written.mkdir(parents=True, exist_ok=True)
        path = written / DATA_STATE.format(rank=self.args.process_index)
        path.write_text(json.dumps(state), encoding="utf-8")
        if self.average is not None and self.args.should_save:
            self.average.save(written)
        self._wait()
        if self.args.should_save:
            shutil.rmtree(out / name, ignore_errors=True)
            written.rename(out / name)
            shutil.rmtree(out / ".partial", ignore_errors=True)
            limit = self.args.save_total_limit
            rotate_checkpoints(output_dir=str(out), save_total_limit=limit, use_mtime=True)
        self._wait()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict=state_dict)
        if self.args.should_save and not hasattr(self.model, "peft_config"):
            folder = Path(output_dir or self._out)
            model = chat_model(self.accelerator.unwrap_model(self.model))
            loaded = hub.Loaded(model, self.loaded.processor, self.loaded.tokenizer)
            complete(folder, loaded, source=self.source)

    def finish(self, folder: Path) -> None:
        """Write the end of the run as a self-contained repository.

        Adapters are merged, and kept beside it in `adapter/`; an average takes the place of the
        weights.
        """
        model = self.accelerator.unwrap_model(self.model_wrapped)
        if self.average is not None:
            self.average.swap(model)
        adapted = hasattr(model, "peft_config")
        state = None
        if self._sharded and not adapted:
            state = self.accelerator.get_state_dict(self.model_wrapped)
        if adapted:
            self.save_model(str(folder.with_name("adapter")))
        if self.args.should_save and not (self._sharded and adapted):
            export_loaded(
                replace(self.loaded, model=model),
                folder,
                origin=f"Trained from `{Path(self.recipe.model).name}`, stage "
                f"{self.recipe.stage.name}, {self.state.global_step} steps.",
                source=self.source,
                state=state,
                dtype=self.dtype,
            )
        elif self.args.should_save:
            logger.warning("adapters of a sharded run are not merged; use `internvl export`.")
        self._wait()

    def _wait(self) -> None:
        if self.args.world_size > 1:
            dist.barrier()


def _prefetch(accumulation: int, workers: int) -> int:
    """Packs that a worker makes ahead: those of a step, within reason."""
    return min(16, max(2, -(-accumulation // workers)))


class _Counts:
    """What went through since the last line of the log."""

    NAMES = ("packs", "samples", "tokens", "tiles", "supervised")

    def __init__(self, context: int, max_tiles: int) -> None:
        self.context, self.max_tiles = context, max_tiles
        self.totals: Counter[str] = Counter()
        self.skipped: dict[int, tuple[int, int]] = {}
        self.began = time.monotonic()

    def add(self, info: dict[str, Any]) -> None:
        """Count a pack."""
        self.totals["packs"] += 1
        for name in self.NAMES[1:]:
            self.totals[name] += info[name]
        state = info["state"]
        self.skipped[info["worker"]] = sum(state["skipped"].values()), state["seen"]

    def report(self, total: Any) -> dict[str, float]:
        """Rates, fill and skips over all ranks; begins anew."""
        skipped = [sum(values) for values in zip(*self.skipped.values(), strict=True)] or [0, 0]
        local = [self.totals[name] for name in self.NAMES]
        sums = total(torch.tensor([*local, *skipped], dtype=torch.float64)).tolist()
        packs, samples, tokens, tiles, supervised, left_out, seen = sums
        seconds = max(1e-9, time.monotonic() - self.began)
        self.totals.clear()
        self.began = time.monotonic()
        packs = max(1.0, packs)
        return {
            "tokens_per_second": round(tokens / seconds, 1),
            "tiles_per_second": round(tiles / seconds, 1),
            "samples_per_pack": round(samples / packs, 2),
            "token_fill": round(tokens / packs / self.context, 4),
            "tile_fill": round(tiles / packs / self.max_tiles, 4),
            "supervised_share": round(supervised / max(1.0, tokens), 4),
            "skipped": left_out,
            "skipped_share": round(left_out / max(1.0, seen), 5),
        }


def last_checkpoint(out: Path) -> Path | None:
    """The newest complete checkpoint of a run."""
    found = [path for path in out.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
