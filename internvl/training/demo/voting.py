"""Does a majority vote help the demo? (report, section 5.1; docs/test_time_scaling.md)

Questions of which it answers 40 to 80 % greedily are answered 16 times by sampling, from one
prefill each, at two temperatures. `measure` asks and counts, `draw` makes the picture of it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from internvl import hub
from internvl.chat.sampling import SAMPLING
from internvl.evaluation import curves, scoring
from internvl.evaluation.asking import seed_of
from internvl.evaluation.records import Prediction, Response
from internvl.evaluation.scaling import Scaling, scaling
from internvl.training.demo import dialogues, evaluate, questions, reading, scenes
from internvl.training.demo.dialogues import Dialogue
from internvl.training.demo.evaluate import Case, Held, Maker
from internvl.training.demo.labels import LETTERS
from internvl.training.demo.questions import ShapeFacts
from internvl.training.demo.scenes import pick

logger = logging.getLogger(__name__)
Rng = np.random.Generator

SEED = 161_616
ANSWERS = 16
TEMPERATURES = (SAMPLING["temperature"], 1.0)
METRIC = "exact"
MAX_NEW_TOKENS = 32
SHOWN = (1, 4, 16)  # k in the table
_SMALL = 28  # pixels, height of a small sign
_FEW_CHARACTERS, _MOST_CHARACTERS = 3, 6


# ---------------------------------------------------------------------- tasks
def _no_word(rng: Rng, held: Held) -> Dialogue:
    length = int(rng.integers(_FEW_CHARACTERS, _MOST_CHARACTERS + 1))
    text = "".join(pick(rng, LETTERS) for _ in range(length))
    picture = dialogues.word_drawing(rng, held.material, text).image
    return Dialogue((reading.about_text(rng, text, "word"),), (picture,))


def _small_print(rng: Rng, held: Held) -> Dialogue | None:
    made = evaluate.TASKS["word"](rng, held)
    if made is None:
        return None
    (picture,) = made.pictures
    width = max(8, round(picture.width * _SMALL / picture.height))
    return Dialogue(made.turns, (picture.resize((width, _SMALL)),))


def _some_of_many(rng: Rng, held: Held) -> Dialogue | None:
    scene = scenes.shape_scene(rng, int(rng.integers(7, 10)))
    found = questions.SHAPE_BY_TASK["count_sub"](rng, ShapeFacts(scene))
    return None if found is None else Dialogue((found,), (scenes.draw_scene(scene, rng),))


# Chosen by the greedy accuracy of other cases of the same kind, before any vote was counted.
TASKS: dict[str, Maker] = {
    "word": evaluate.TASKS["word"],
    "small print": _small_print,
    "letters that are no word": _no_word,
    "three digits": evaluate.TASKS["three digits"],
    "some of 7-9 shapes": _some_of_many,
    "emoji, unseen style": evaluate.TASKS["emoji, unseen style"],
}


def cases(task: str, count: int, held: Held, folder: Path) -> list[Case]:
    """Questions of a task with their pictures as files; the same ones for the same folder name."""
    key = list(TASKS).index(task)
    found: list[Case] = []
    rng = np.random.default_rng([SEED, key])
    while len(found) < count:
        made = TASKS[task](rng, held)
        if made is not None:
            found.append(evaluate.write(Case(task, made), folder, key * 100_000 + len(found)))
    return found


# ---------------------------------------------------------------------- asking
@torch.inference_mode()
def ask(
    loaded: hub.Loaded, written: Sequence[Case], temperature: float, answers: int
) -> list[Prediction]:
    """Answer every question; once and greedily at temperature 0, else `answers` times.

    The seed of a question follows from its number, and stands in each of its answers.
    """
    generation: dict[str, Any] = {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": temperature > 0}
    if temperature:
        generation |= {**SAMPLING, "temperature": temperature, "num_return_sequences": answers}
    stop = loaded.tokenizer.convert_tokens_to_ids(loaded.model.conv_template.end_of_turn)
    name = f"temperature {temperature:g}" if temperature else "greedy"
    found = []
    for number, case in enumerate(tqdm(written, desc=f"{written[0].task}, {name}", disable=None)):
        seed = seed_of(SEED, f"{case.task}/{number}", 0) if temperature else None
        batch = loaded.processor.image_processor([str(case.files[0])], return_tensors="pt")
        tiles = batch["pixel_values"].to(loaded.model.dtype)
        with torch.random.fork_rng(devices=[]):  # transformers samples from the global generator
            if seed is not None:
                torch.manual_seed(seed)
            ((prompt, rows),) = loaded.model.batch_ids(
                loaded.tokenizer, tiles, [case.question(0)], generation,
                num_patches_list=[list(batch["num_tiles"])],
            )  # fmt: skip
        responses = tuple(
            Response(
                loaded.tokenizer.decode(ids, skip_special_tokens=True).strip(), len(ids),
                "stop" if ids and ids[-1] == stop else "length", seed,
            )
            for ids in rows
        )  # fmt: skip
        found.append(
            Prediction(
                str(number), "demo", "", case.question(0), tuple(batch["num_tiles"]), (), prompt,
                responses, (case.expected,),
            )
        )  # fmt: skip
    return found


def measure(
    loaded: hub.Loaded,
    folder: Path,
    held: Held,
    *,
    count: int,
    answers: int = ANSWERS,
    temperatures: Sequence[float] = TEMPERATURES,
    tasks: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Curves of every task and temperature, beside one greedy answer to the same questions.

    Args:
        loaded: the checkpoint.
        folder: where the pictures go.
        held: what the questions are made of.
        count: questions per task.
        answers: samples per question.
        temperatures: of the sampling.
        tasks: these alone.

    Returns:
        A row each: task, temperature, greedy score, curves, and the vote of all answers against
        the greedy one (paired).
    """
    rows = []
    for task in tasks or TASKS:
        written = cases(task, count, held, folder)
        greedy = ask(loaded, written, 0.0, 1)
        for temperature in temperatures:
            sampled = ask(loaded, written, temperature, answers)
            row = {
                "task": task,
                "temperature": temperature,
                "greedy": scoring.score(greedy, METRIC).score,
                "over_greedy": scoring.compare(sampled, greedy, METRIC).as_dict(),
                "scaling": scaling(sampled, METRIC).as_dict(),
            }
            rows.append(_rounded(row))
            logger.info("%s, temperature %g", task, temperature)
    return rows


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value


# ---------------------------------------------------------------------- showing
def save(rows: Sequence[Mapping[str, Any]], path: Path, **about: Any) -> None:
    """Write the rows as JSON, one a line, after what they are of."""
    head = "".join(f"  {json.dumps(name)}: {json.dumps(value)},\n" for name, value in about.items())
    body = ",\n".join(f"    {json.dumps(row)}" for row in rows)
    path.write_text(f'{{\n{head}  "rows": [\n{body}\n  ]\n}}\n', "utf-8")


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of `save`."""
    return json.loads(path.read_text("utf-8"))["rows"]


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Draw the curves, a panel per task, with the greedy score. Needs matplotlib."""
    panels: dict[str, dict[str, Scaling]] = {}
    for row in rows:
        name = f"temperature {row['temperature']:g}"
        panels.setdefault(row["task"], {})[name] = Scaling.from_dict(row["scaling"])
    levels = {row["task"]: {"one greedy answer": row["greedy"]} for row in rows}
    return curves.draw_scaling(panels, path, levels=levels)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The Markdown table of docs/test_time_scaling.md."""
    ks = [k for k in SHOWN if k <= min(row["scaling"]["answers"] for row in rows)]
    heads = ["task", "T", "greedy", *(f"maj@{k}" for k in ks), f"maj@{ks[-1]} - maj@1"]
    heads += [f"maj@{ks[-1]} - greedy", f"pass@{ks[-1]}", "tokens"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        found, other = Scaling.from_dict(row["scaling"]), row["over_greedy"]
        last = found.majority.at(ks[-1])
        cells = [row["task"], f"{row['temperature']:g}", f"{row['greedy']:.1f}"]
        cells += [f"{found.majority.at(k).value:.1f}" for k in ks]
        cells.append(_difference(last.gain, last.gain_low, last.gain_high))
        cells.append(_difference(other["difference"], other["low"], other["high"]))
        cells += [f"{found.passed.at(ks[-1]).value:.1f}", f"{last.tokens:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _difference(value: float, low: float | None, high: float | None) -> str:
    span = "" if low is None or high is None else f" ({_signed(low)} to {_signed(high)})"
    return f"{_signed(value)}{span}"


def _signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}"  # never -0.0
