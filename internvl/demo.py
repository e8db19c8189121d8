"""``python -m internvl.demo``: the demo checkpoint answers the questions of
examples/questions.json."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from internvl import grounding, hub

EXAMPLES = hub.REPOSITORY / "examples"
ENOUGH = 0.8  # share of right answers below which the command fails
OVERLAP = 0.5  # of a box with the expected one, above which it is right
SETTINGS = {"max_new_tokens": 32, "do_sample": False}


def load_tiles(loaded: Any, entry: dict, folder: Path) -> tuple[Any, list[int], str]:
    """The tiles of an example, tiles per image, and the text with the ``<image>`` tags.

    Args:
        loaded: What ``hub.load`` returned.
        entry: One element of questions.json.
        folder: Where its files are.
    """
    if "video" in entry:
        frames = loaded.processor.video_processor(
            str(folder / entry["video"]), num_frames=4, return_tensors="pt"
        )
        tiles = frames["pixel_values_videos"].flatten(0, -4)
        counts, label = [1] * len(tiles), "Frame-{}: "
    else:
        names = entry.get("images") or [entry["image"]]
        batch = loaded.processor.image_processor(
            [str(folder / name) for name in names], return_tensors="pt"
        )
        tiles, counts = batch["pixel_values"], list(batch["num_tiles"])
        label = entry.get("labels", "Image-{}: " if len(names) > 1 else "")
    tags = "".join(f"{label.format(k + 1)}<image>\n" for k in range(len(counts)))
    return tiles.to(loaded.model.device, loaded.model.dtype), counts, tags


def is_right(answer: str, expected: str) -> bool:
    """Whether an answer is the expected one: the same text, or boxes that overlap its boxes."""
    wanted = grounding.parse_boxes(expected, height=1000, width=1000)
    if not wanted:
        return answer == expected
    found = grounding.parse_boxes(answer, height=1000, width=1000)
    return len(found) == len(wanted) and all(
        grounding.iou(a, b) > OVERLAP for a, b in zip(found, wanted, strict=True)
    )


def run(loaded: Any, folder: Path = EXAMPLES, entries: list[dict] | None = None) -> list[dict]:
    """Ask every question; one record ``{files, question, answer, expected, right}`` per question.

    Args:
        loaded: What ``hub.load`` returned.
        folder: Folder with questions.json and the files it names.
        entries: Questions instead of those of the folder.
    """
    if entries is None:
        entries = json.loads((folder / "questions.json").read_text("utf-8"))
    records = []
    for entry in entries:
        tiles, counts, tags = load_tiles(loaded, entry, folder)
        files = entry.get("video") or " + ".join(entry.get("images") or [entry["image"]])
        history = None
        for index, turn in enumerate(entry.get("turns") or [entry]):
            question = turn["question"] if index else tags + turn["question"]
            answer, history = loaded.model.chat(
                loaded.tokenizer, tiles, question, SETTINGS, history=history, return_history=True,
                num_patches_list=counts,
            )  # fmt: skip
            records.append(
                {
                    "files": files if index == 0 else "  (next turn)",
                    "question": turn["question"],
                    "answer": answer,
                    "expected": turn["expected"],
                    "right": is_right(answer, turn["expected"]),
                }
            )
    return records


def main(arguments: list[str] | None = None) -> int:
    """Print question, answer and expected answer; return 0 when at least 80 % are right."""
    parser = argparse.ArgumentParser(prog="python -m internvl.demo", description=__doc__)
    parser.add_argument("--model", help="folder or Hub id; the demo of this repository by default")
    parser.add_argument("--examples", type=Path, default=EXAMPLES)
    args = parser.parse_args(arguments)
    records = run(hub.load(args.model), args.examples)
    for record in records:
        mark = "ok " if record["right"] else "NO "
        line = f"{mark}{record['files']:<24} {record['question']}\n"
        sys.stdout.write(f"{line}{'':27} {record['answer']}  (expected: {record['expected']})\n")
    right = sum(record["right"] for record in records)
    sys.stdout.write(f"{right} of {len(records)} answers as expected\n")
    return 0 if right >= ENOUGH * len(records) else 1


if __name__ == "__main__":
    sys.exit(main())
