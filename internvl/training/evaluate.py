"""What a run looks at while it trains: the loss on held-out packs, and held-out answers."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from internvl import hub
from internvl.data.examples import Example, ExampleMaker
from internvl.data.mixture import Mixture, load_meta
from internvl.data.schema import DataError
from internvl.data.stream import PackStream
from internvl.training.recipes import Evaluation, Recipe
from internvl.training.stages import chat_model

logger = logging.getLogger(__name__)


class Evaluator:
    """Evaluates a model on held-out data; the same data each time.

    Args:
        loaded: model, processor and tokenizer.
        prepared: of the same checkpoint.
        recipe: with an `evaluation`.
        out: folder that the answers are written to.
    """

    def __init__(self, loaded: hub.Loaded, prepared: Any, recipe: Recipe, out: Path) -> None:
        if recipe.evaluation is None:
            raise ValueError("the recipe has no evaluation.")
        self.options: Evaluation = recipe.evaluation
        self.loaded, self.recipe, self.out = loaded, recipe, out
        self.mixture = Mixture(load_meta(self.options.data), seed=recipe.seed)
        self.maker = ExampleMaker(prepared, recipe.examples)

    def __call__(self, trainer: Any) -> dict[str, float]:
        """Figures of the model as it is; leaves it in training mode if it was in it."""
        model = trainer.model_wrapped
        was_training = model.training
        model.eval()
        try:
            metrics = {"loss": self._loss(trainer, model)}
            if self.options.answers and not trainer.is_fsdp_enabled:
                metrics |= self._answers(trainer)
        finally:
            model.train(was_training)
        return metrics

    @torch.no_grad()
    def _loss(self, trainer: Any, model: Any) -> float:
        """Weighted mean loss over the packs; every rank takes its share of them."""
        args = trainer.args
        share = max(1, self.options.packs // args.world_size)
        stream = PackStream(
            self.mixture, self.maker, self.recipe.weigh, self.recipe.stream,
            rank=args.process_index, world=args.world_size,
        )  # fmt: skip
        sums = torch.zeros(2, dtype=torch.float64)
        for batch in islice(stream, share):
            inputs = trainer._prepare_inputs({k: v for k, v in batch.items() if k != "info"})
            weight = float(batch["loss_weight"][:, 1:].sum())
            loss = model(**inputs, skip_logits=True, use_cache=False, num_items_in_batch=1.0).loss
            sums += torch.tensor([float(loss), weight], dtype=torch.float64)
        total, weight = trainer._sum(sums).tolist()
        return total / weight

    def _answers(self, trainer: Any) -> dict[str, float]:
        """Share of samples whose first answer is the reference; they are written to a file."""
        if not trainer.is_world_process_zero():
            return {}
        model = chat_model(trainer.accelerator.unwrap_model(trainer.model))
        rows = []
        for key in islice(self.mixture.order(0), self.options.answers):
            try:
                sample, spec = self.mixture.sample(key)
                spec = replace(spec, data_augment=False)
                example = self.maker.make(sample, spec, self.mixture.rng(0, key), key)
            except DataError as error:
                logger.warning("left out of the evaluation: %s", error)
                continue
            reference, answer = self._answer(model, example)
            rows.append({"where": sample.where, "reference": reference, "answer": answer})
        exact = sum(row["reference"].strip() == row["answer"].strip() for row in rows)
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / f"answers-{trainer.state.global_step}.jsonl"
        path.write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
        )
        return {"exact_answers": exact / max(1, len(rows))}

    @torch.no_grad()
    def _answer(self, model: Any, example: Example) -> tuple[str, str]:
        """The first answer of an example, and the greedy answer to the same prompt."""
        learnt = np.flatnonzero(example.response == 0)
        prompt = example.input_ids[: learnt[0]]
        places = int((prompt == self.maker.context_id).sum())
        tiles = example.tiles[: places // self.maker.tokens_per_tile].transpose(0, 3, 1, 2)
        device = next(model.parameters()).device
        end = int(example.input_ids[learnt[-1]])  # the end of the turn
        made = model.generate(
            input_ids=torch.from_numpy(prompt)[None].to(device),
            pixel_values=torch.from_numpy(tiles.copy()).to(device) if len(tiles) else None,
            max_new_tokens=self.options.max_new_tokens,
            do_sample=False,
            eos_token_id=end,
        )
        new = made[0, len(prompt) :].tolist()
        new = new[: new.index(end)] if end in new else new
        decode = self.loaded.tokenizer.decode
        return decode(example.input_ids[learnt[:-1]].tolist()), decode(new)
