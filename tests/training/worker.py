"""A few steps of SGD on packs given in advance, for tests/training/test_ranks.py.

`train` in one process, or `torchrun -m tests.training.worker OUT META` in several.
"""

from __future__ import annotations

import os
import sys
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import TrainingArguments

from internvl import hub
from internvl.data.collate import collate
from internvl.data.examples import ExampleMaker
from internvl.data.mixture import Mixture, load_meta
from internvl.data.stream import PackStream
from internvl.training.recipes import parse_recipe
from internvl.training.stages import apply_stage, set_drop_path
from internvl.training.trainer import PackTrainer

STEPS, BATCH = 2, 4


def packs_of(recipe, meta):
    """The packs of all steps: first those without pictures, then those with, in turn."""
    maker = ExampleMaker(hub.prepare(), recipe.examples)
    packs: dict[bool, list] = {True: [], False: []}
    for spec in load_meta(meta):
        stream = PackStream(Mixture([spec]), maker, recipe.weigh, recipe.stream)
        shard = stream._shard(0, 1)
        for pack in islice(shard.packs(), STEPS * BATCH):
            packs[any(example.num_tiles for example in pack)].append(pack)
    return [pack for pair in zip(packs[False], packs[True], strict=False) for pack in pair]


class Given(PackStream):
    """Deals packs out: the even ones, all text, to one rank and the odd ones to the other."""

    def __init__(self, packs, recipe, meta, *, rank, world, rows):
        maker = ExampleMaker(hub.prepare(), recipe.examples)
        mixture = Mixture(load_meta(meta))
        super().__init__(mixture, maker, recipe.weigh, recipe.stream, rank=rank, world=world)
        self.packs, self.rows = packs, rows

    def __iter__(self):
        info = {"worker": 0, "state": {"skipped": {}, "seen": 1}, "keys": [], "samples": 1,
                "tokens": 1, "tiles": 1, "supervised": 1}  # fmt: skip
        if self.rows:
            for start in range(0, len(self.packs), BATCH):
                group = self.packs[start : start + BATCH]
                examples = [example for pack in group for example in pack]
                yield {**collate(examples, rows=[len(pack) for pack in group]), "info": info}
            return
        for pack in self.packs[self.rank :: self.world]:
            yield {**collate(pack), "info": info}


def train(out: Path, meta: Path, *, rows: bool = False) -> dict[str, torch.Tensor]:
    """Weights after the steps, and the losses; `rows` puts the packs of a step in one batch."""
    limits = {"context": 200, "max_tiles": 4, "workers": 0}
    recipe = parse_recipe(
        {"model": str(hub.DEMO), "data": str(meta), "steps": STEPS, "batch": BATCH, **limits}
    )
    loaded = hub.load(dtype="float32")
    apply_stage(loaded.model, recipe.stage)
    set_drop_path(loaded.model, 0.0)
    args = TrainingArguments(
        output_dir=str(out), max_steps=STEPS, per_device_train_batch_size=1, use_cpu=True,
        logging_steps=1, save_strategy="no", report_to=[], lr_scheduler_type="constant",
        disable_tqdm=True, remove_unused_columns=False, ddp_find_unused_parameters=False,
        max_grad_norm=0.0,
    )  # fmt: skip
    args.gradient_accumulation_steps = 1 if rows else BATCH // args.world_size
    stream = Given(
        packs_of(recipe, meta)[: STEPS * BATCH], recipe, meta,
        rank=args.process_index, world=args.world_size, rows=rows,
    )  # fmt: skip
    sgd = torch.optim.SGD(loaded.model.parameters(), lr=0.05)
    trainer = PackTrainer(loaded, recipe, stream, args=args, optimizers=(sgd, None))
    trainer.train()
    weights = {name: w.detach().clone() for name, w in loaded.model.named_parameters()}
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {**weights, "losses": torch.tensor(losses)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    result = train(Path(sys.argv[1]), Path(sys.argv[2]))
    if os.environ.get("RANK") == "0":
        save_file(result, Path(sys.argv[1]) / "result.safetensors")
