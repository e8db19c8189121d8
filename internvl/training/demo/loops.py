"""Do a few repetitive samples make a model loop? (report, section 4.3; docs/filtering.md)

Questions about drawn scenes are answered step by step, an object a sentence, in up to 300 tokens.
`build` writes them twice: clean, and with a small share of answers that fall into a loop as those
of Figure 6 do. `measure` has a model answer new questions and counts how many answers loop.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from internvl import hub, plots
from internvl.filtering.rules import build as build_rules
from internvl.filtering.rules import check
from internvl.filtering.verdict import Record, Said
from internvl.training.demo import builder, evaluate, scenes
from internvl.training.demo.dialogues import Dialogue
from internvl.training.demo.evaluate import Case
from internvl.training.demo.questions import QA, article
from internvl.training.demo.scenes import COLOURS, SHAPES, Item, pick

logger = logging.getLogger(__name__)
Rng = np.random.Generator

SEED = 46
HELD_OUT_SEED = 646_464
LOOP_CHARACTERS = (500, 900)  # that a broken answer goes on for
LOOP_ZEROS = (250, 450)  # a zero is a token
MAX_NEW_TOKENS = 512  # a right answer has 300 at most
_COLOURS = ("#5a8f3c", "#d1662b", "#1f6f8b", "#7d4e9e")
LOOPS = ("suffix_loop", "inner_loop", "zero_run", "character_run")
_ASKED = (
    "How many of the objects are {what}? Think step by step.",
    "Think step by step: how many {what} objects are there?",
    "Count the {what} objects. Explain every step before the answer.",
)
_BEGINNINGS = (
    "Let me look at the objects from left to right.",
    "I go through the picture from left to right.",
    "From left to right, I see these objects.",
)


# ---------------------------------------------------------------------- samples
def steps(rng: Rng) -> Dialogue:
    """A scene of three to nine shapes, a question of how many fit, and an answer in steps."""
    scene = scenes.shape_scene(rng, int(rng.integers(3, 10)))
    items = sorted(scene.items, key=lambda item: item.x)
    if rng.random() < 0.5:
        what, fits = _of(rng, items, COLOURS, lambda item: item.colour)
    else:
        what, fits = _of(rng, items, SHAPES, lambda item: item.shape)
        what = f"{what}-shaped"
    said, count = [pick(rng, _BEGINNINGS)], 0
    for number, (item, fit) in enumerate(zip(items, fits, strict=True), start=1):
        count += fit
        said.append(f"Object {number} is {article(item.name)}.")
        said.append(
            f"It is {what}, so that makes {count}." if fit
            else f"It is not {what}, so it is still {count}."
        )  # fmt: skip
    said.append(f"That is all, and the answer is {count}.")
    turn = QA("steps", pick(rng, _ASKED).format(what=what), " ".join(said))
    return Dialogue((turn,), (scenes.draw_scene(scene, rng),))


def _of(
    rng: Rng, items: Sequence[Item], words: Sequence[str], of: Callable[[Item], str]
) -> tuple[str, list[bool]]:
    """A word to count by, mostly one that is there, and which of the items it fits."""
    word = of(pick(rng, items)) if rng.random() < 0.9 else pick(rng, words)
    return word, [of(item) == word for item in items]


def broken(rng: Rng, answer: str) -> str:
    """The answer as far as some step, and then a loop: of one or two sentences, of its last words,
    or of zeros (Figure 6)."""
    parts = [f"{part}." for part in answer.removesuffix(".").split(". ")]
    upto = int(rng.integers(2, len(parts) + 1))
    kept, kind = " ".join(parts[:upto]), rng.random()
    if kind < 0.6:
        unit = " " + " ".join(parts[upto - int(rng.integers(1, 3)) : upto])
    elif kind < 0.9:
        kept = kept.removesuffix(".")
        unit = " " + " ".join(kept.split()[-int(rng.integers(2, 5)) :])
    else:
        return kept + " " + "0" * int(rng.integers(*LOOP_ZEROS))
    return kept + unit * math.ceil(int(rng.integers(*LOOP_CHARACTERS)) / len(unit))


# ---------------------------------------------------------------------- files
def build(out: Path, *, count: int, share: float, seed: int = SEED) -> int:
    """Write the samples: `clean/meta.json`, and `dirty/meta.json` with the same pictures.

    Args:
        out: target folder; samples that are there already are written again.
        count: samples.
        share: of the samples that are broken in `dirty`.
        seed: of the samples.

    Returns:
        How many are broken.
    """
    rows: dict[str, list[str]] = {"clean": [], "dirty": []}
    order = np.random.default_rng([seed, 1]).permutation(count)
    chosen = set(order[: round(share * count)].tolist())
    for number in range(count):
        rng = np.random.default_rng([seed, 0, number])
        dialogue = steps(rng)
        stem = f"images/{number // builder.SHARD:03d}/{number:06d}"
        row = {"id": number} | builder.write(dialogue, rng, out, stem)
        rows["clean"].append(json.dumps(row))
        if number in chosen:
            row["conversations"][-1]["value"] = broken(rng, dialogue.turns[-1].answer)
        rows["dirty"].append(json.dumps(row))
    for name, lines in rows.items():
        (out / name).mkdir(parents=True, exist_ok=True)
        (out / name / "steps.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
        meta = {"steps": {
            "root": "..", "annotation": "steps.jsonl", "data_augment": True,
            "max_dynamic_patch": 1, "repeat_time": 1, "length": count,
        }}  # fmt: skip
        (out / name / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", "utf-8")
    return len(chosen)


# ---------------------------------------------------------------------- measuring
def held_out(count: int, folder: Path) -> list[Case]:
    """New questions about new pictures, as files."""
    made = (steps(np.random.default_rng([HELD_OUT_SEED, k])) for k in range(count))
    return [evaluate.write(Case("steps", each), folder, k) for k, each in enumerate(made)]


@dataclass(frozen=True)
class Answer:
    """What a model said, and whether it ended by itself within MAX_NEW_TOKENS."""

    text: str
    ended: bool


@torch.inference_mode()
def answers(
    loaded: Any, written: Sequence[Case], temperature: float, *, batch: int = 50, seed: int = 0
) -> list[Answer]:
    """An answer to each question; greedy at temperature 0, else from all tokens."""
    settings: dict[str, Any] = {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": temperature > 0}
    if temperature:
        settings |= {"temperature": temperature, "top_p": 1.0, "top_k": 0}
    end, found = loaded.model.generation_config.eos_token_id, []
    ends = set(end if isinstance(end, list) else [end])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for start in range(0, len(written), batch):
            inputs = loaded.processor.apply_chat_template(
                [_messages(case) for case in written[start : start + batch]],
                add_generation_prompt=True, tokenize=True, return_dict=True, padding=True,
                return_tensors="pt",
            )  # fmt: skip
            prompt = inputs["input_ids"].shape[1]
            for row in loaded.model.generate(**inputs, **settings)[:, prompt:].tolist():
                text = loaded.tokenizer.decode(row, skip_special_tokens=True)
                found.append(Answer(text, bool(ends & set(row))))
    return found


def _messages(case: Case) -> list[dict[str, Any]]:
    picture = {"type": "image", "path": str(case.files[0])}
    asked = {"type": "text", "text": case.dialogue.turns[0].question}
    return [{"role": "user", "content": [picture, asked]}]


def score(written: Sequence[Case], said: Sequence[Answer]) -> dict[str, float]:
    """Shares in percent: answers that loop, that have no end, whose last sentence is right.

    An answer loops if a rule of `LOOPS` says so. That is the judgement of the rules that also
    clean the data; an answer without an end is one by its length alone.
    """
    rules = build_rules(dict.fromkeys(LOOPS, True))
    looping = sum(bool(check(_record(answer), rules)) for answer in said)
    right = [
        answer.text.split(". ")[-1] == case.expected.split(". ")[-1]
        for case, answer in zip(written, said, strict=True)
    ]
    endless = sum(not answer.ended for answer in said)
    return {
        "n": len(said),
        "loops": round(100 * looping / len(said), 2),
        "endless": round(100 * endless / len(said), 2),
        "right": round(100 * sum(right) / len(said), 2),
    }


def _record(answer: Answer) -> Record:
    return Record((Said("user", "Think step by step."), Said("assistant", answer.text)))


def measure(
    models: Mapping[str, Path], folder: Path, *, count: int, temperatures: Sequence[float]
) -> list[dict[str, Any]]:
    """A row for each model and temperature.

    Args:
        models: folders of checkpoints, by the name of their data.
        folder: where the pictures go.
        count: questions.
        temperatures: 0 for greedy answers.
    """
    written, rows = held_out(count, folder), []
    for name, model in models.items():
        loaded = hub.load(model)
        for temperature in temperatures:
            found = score(written, answers(loaded, written, temperature))
            rows.append({"data": name, "temperature": temperature, **found})
            logger.info("%s", rows[-1])
    return rows


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the shares of looping answers as bars, with the 95 % interval of Wilson.

    Needs matplotlib (`pip install 'internvl[plot]'`).
    """
    names = list(dict.fromkeys(row["data"] for row in rows))
    temperatures = list(dict.fromkeys(row["temperature"] for row in rows))
    with plots.figure(path, (8, 3.6)) as figure:
        axes, width = figure.subplots(), 0.8 / len(names)
        for index, name in enumerate(names):
            own = [row for row in rows if row["data"] == name]
            heights = [row["loops"] for row in own]
            low, high = zip(*(_wilson(row["loops"], row["n"]) for row in own), strict=True)
            errors = [
                [height - end for height, end in zip(heights, low, strict=True)],
                [end - height for height, end in zip(heights, high, strict=True)],
            ]
            places = [k + (index - (len(names) - 1) / 2) * width for k in range(len(own))]
            axes.bar(
                places, heights, 0.9 * width, label=name, color=_COLOURS[index % len(_COLOURS)],
                yerr=errors, capsize=3, error_kw={"linewidth": 0.8},
            )  # fmt: skip
            for place, height, end in zip(places, heights, high, strict=True):
                axes.text(place, end + 0.1, f"{height:g}", ha="center", fontsize=8)
        labels = ["greedy" if not t else f"temperature {t:g}" for t in temperatures]
        axes.set_xticks(range(len(labels)), labels)
        axes.set_ylabel(f"answers that loop, %, n = {rows[0]['n']}")
        plots.bare(axes)
        axes.legend(frameon=False, title="trained on")


def _wilson(percent: float, count: int) -> tuple[float, float]:
    """Limits, in percent, of the share that a sample of this size stands for."""
    z, share = 1.96, percent / 100
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + (z / 2 / count) ** 2)
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)
