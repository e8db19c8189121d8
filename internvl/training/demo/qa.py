"""Stages 1 and 2: question-answer training of projector and decoder, then of the whole model.

Stage 1 leaves the pre-trained ViT alone; stage 2 trains everything, the ViT at a quarter of the
rate and with the dense labels as an auxiliary loss.
"""

from __future__ import annotations

import copy
import json
import logging
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from internvl.training.demo import digits, feed
from internvl.training.demo.dense import WIDTH, dense_loss, load_state, save_state
from internvl.training.demo.mixture import KINDS, QAData
from internvl.training.demo.network import DemoModel, DemoShape, normalise
from internvl.training.demo.optim import optimisers, schedule, set_rates
from internvl.training.demo.packing import IGNORE, Packed, visible
from internvl.training.demo.parallel import FlatGradients, Group

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class QAPlan:
    """Hyper-parameters of the question-answer training."""

    steps: int = 1860
    frozen: int = 1050  # steps of stage 1, the ViT at rest
    tiles: int = 64
    seed: int = 23
    lr_matrix: float = 2e-3
    lr_rest: float = 1e-3
    vision_rate: float = 0.25
    dense_weight: float = 0.3
    warmup: int = 60
    flat: float = 0.68
    average: float = 0.99  # decay of the moving average of the weights
    evaluate_every: int = 200
    save_every: int = 100


class Trainee(nn.Module):
    """The model and, for stage 2, the dense head of stage 0."""

    def __init__(self, shape: DemoShape):
        super().__init__()
        self.model = DemoModel(shape)
        self.head = nn.Linear(shape.vision_width, WIDTH)

    def logits(
        self, batch: Packed, context_id: int, *, frozen: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Answer logits (B, M, V) and the ViT features (N, P, C), None without pictures."""
        model, features = self.model, None
        visual = torch.zeros(0, model.shape.width)
        if len(batch.tiles):
            with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
                features = model.vision_model(normalise(torch.from_numpy(batch.tiles)))
            visual = model.visual(features)
        embeds = model.embed(torch.from_numpy(batch.ids), visual, context_id)
        allowed = visible(torch.from_numpy(batch.slots))
        positions, rows = torch.from_numpy(batch.positions), torch.from_numpy(batch.rows)
        return model.language_model(embeds, positions, allowed, rows), features


def qa_loss(trainee: Trainee, batch: Packed, context_id: int, plan: QAPlan, frozen: bool) -> Tensor:
    """Mean cross-entropy of the answer tokens, plus the weighted dense loss when the ViT learns."""
    logits, features = trainee.logits(batch, context_id, frozen=frozen)
    targets = torch.from_numpy(batch.targets).flatten()
    loss = F.cross_entropy(logits.flatten(0, 1), targets, ignore_index=IGNORE)
    if not frozen and features is not None and plan.dense_weight:
        dense = dense_loss(trainee.head(features), torch.from_numpy(batch.maps))
        loss = loss + plan.dense_weight * dense
    return loss


@torch.no_grad()
def packed_accuracy(trainee: Trainee, batches: list[Packed], context_id: int) -> dict[str, float]:
    """Per task: share of questions whose every answer token is the most likely one (greedy
    decoding).

    Questions of second and third turns are counted under ``later`` as well.
    """
    right: dict[str, list[bool]] = defaultdict(list)
    for batch in batches:
        logits, _ = trainee.logits(batch, context_id, frozen=True)
        good = (logits.argmax(-1) == torch.from_numpy(batch.targets)).numpy()
        verdict = [True] * len(batch.asked)
        for owner, fine in zip(batch.owners.flatten(), good.flatten(), strict=True):
            if owner >= 0 and not fine:
                verdict[owner] = False
        for (task, turn), fine in zip(batch.asked, verdict, strict=True):
            right[task].append(fine)
            if turn:
                right["later"].append(fine)
    return {task: round(sum(v) / len(v), 4) for task, v in sorted(right.items())}


def start_model(plan: QAPlan, stage0: Path, vocabulary: int) -> Trainee:
    """A fresh decoder and projector on the ViT and head of a stage-0 checkpoint."""
    trainee = Trainee(DemoShape(vocabulary=vocabulary))
    trainee.model.initialise(plan.seed)
    trained = torch.load(stage0, weights_only=True)["model"]
    vision = {k.removeprefix("vision_model."): v for k, v in trained.items() if "vision_model" in k}
    trainee.model.vision_model.load_state_dict(vision)
    trainee.head.load_state_dict({"weight": trained["head.weight"], "bias": trained["head.bias"]})
    return trainee


def train_qa(plan: QAPlan, out: Path, tokenizer_file: Path, cache: Path, workers: int = 1) -> None:
    """Run (or resume) stages 1 and 2 in one process of a group; rank 0 writes ``qa.pt``,
    ``qa.jsonl``.

    Args:
        plan: Hyper-parameters.
        out: Folder of the run, with ``stage0.pt``.
        tokenizer_file: The demo's tokenizer.json.
        cache: Folder of the digit archives.
        workers: Data processes beside this one.
    """
    group, path = Group(), out / "qa.pt"
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    context_id = tokenizer.token_to_id("<IMG_CONTEXT>")
    trainee = start_model(plan, out / "stage0.pt", tokenizer.get_vocab_size())
    optims = optimisers(trainee, group, lr_matrix=plan.lr_matrix, lr_rest=plan.lr_rest)
    gradients, step = FlatGradients(trainee), 0
    smooth = copy.deepcopy(trainee.model)
    if path.exists():
        state = load_state(path, trainee, optims)
        step = state["step"]
        smooth.load_state_dict(state["smooth"])
    train = digits.load("train", cache)
    data = QAData(tokenizer, train, plan.tiles // group.world, schedule_seed=plan.seed)
    held_out = held_out_batches(tokenizer, digits.load("test", cache)) if group.rank == 0 else []
    stream = feed.batches(data, seed=plan.seed + 1000 * group.rank, start=step, workers=workers)
    began, first = time.monotonic(), step
    while step < plan.steps and not group.stopping():
        _, batch = next(stream)
        frozen = step < plan.frozen
        factor = schedule(step / plan.steps, step, warmup=plan.warmup, flat=plan.flat)
        set_rates(optims, factor, vision=0.0 if frozen else plan.vision_rate)
        gradients.zero()
        loss = qa_loss(trainee, batch, context_id, plan, frozen)
        loss.backward()
        gradients.average(group)
        for optim in optims:
            optim.step()
        step += 1
        if group.rank:
            continue
        torch._foreach_lerp_(
            [p.data for p in smooth.parameters()],
            [p.data for p in trainee.model.parameters()],
            1 - plan.average,
        )
        if step % 20 == 0:
            pace = (time.monotonic() - began) / (step - first)
            logger.info("stage 1/2 step %d loss %.3f %.2f s/step", step, float(loss), pace)
        done = step == plan.steps
        if step % plan.save_every == 0 or done:
            save_state(path, trainee, optims, step, smooth=smooth.state_dict())
        if step % plan.evaluate_every == 0 or done:
            _report(trainee, smooth, held_out, context_id, step, out / "qa.jsonl")
    if group.rank == 0:
        save_state(path, trainee, optims, step, smooth=smooth.state_dict())


def held_out_batches(tokenizer: Tokenizer, test: digits.Digits, tiles: int = 64) -> list[Packed]:
    """Packed batches of every kind from seeds and digits that training never sees."""
    times = {"shapes": 3, "digits": 2, "pair": 2, "video": 2}
    batches = []
    for number, kind in enumerate(KINDS):
        data = QAData(tokenizer, test, tiles, kind=kind)
        for index in range(times.get(kind, 1)):
            batches.append(data(feed.step_rng(31337 + number, index), index))
    return batches


def _report(trainee, smooth, batches, context_id, step: int, log: Path) -> None:
    """Log the held-out accuracy of the averaged weights."""
    averaged = Trainee(trainee.model.shape)
    averaged.model.load_state_dict(smooth.state_dict())
    accuracy = packed_accuracy(averaged, batches, context_id)
    logger.info("stage 1/2 step %d %s", step, accuracy)
    with log.open("a") as file:
        file.write(json.dumps({"step": step, "accuracy": accuracy}) + "\n")
