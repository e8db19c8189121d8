"""The tables and badges of README.md, from the files that they are about.

python docs/scripts/readme.py            # writes them between their markers
python docs/scripts/readme.py --check    # exit code 1 when one differs
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "README.md"
_SHIELD = "https://img.shields.io/badge"
_CARDS = (24, 80)
# Of demo/README.md: a task, and how it is headed here.
_TASKS = {
    "colour": "color", "count 1-9": "count to 9", "description": "describe", "box": "box",
    "word": "printed word", "three digits": "three digits", "chart: value": "bar chart",
    "flag, unseen style": "flag", "more of two images": "two images", "motion": "video",
}  # fmt: skip
# Of docs/performance.json: benchmark and row, and what they are called here.
_SPEEDS = (
    ("turns", "turn 2", "second turn of a dialogue about an image"),
    ("samples", "8 answers against 8 calls", "eight sampled answers"),
    ("end_to_end", "first token against the textbook path", "image to first token"),
    ("end_to_end", "first token against the native path", "image to first token"),
    ("batch", "16 questions against plain left padding", "16 questions of mixed length"),
    ("decode", "default generate", "plain decoding, a token"),
)
_PEERS = {
    "chat() with the whole history": "`chat()` with the whole history",
    "8 calls": "eight calls",
    "textbook path": "eager attention, logits of all positions",
    "generate of the language model": "the language model alone",
}


def badges() -> str:
    """What is tested, as shields."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    new, old = _pins("v5"), _pins("v4")
    shown = {
        "python": (project["requires-python"], "pyproject.toml"),
        "transformers": (f"{old['transformers']} | {new['transformers']}", "requirements"),
        "torch": (new["torch"], "requirements/v5.txt"),
        "code": (project["license"], "LICENSE"),
    }
    return "\n".join(
        f"[![{name} {value}]({_SHIELD}/{_escape(name)}-{_escape(value)}-0d9488)]({target})"
        for name, (value, target) in shown.items()
    )


def _pins(line: str) -> dict[str, str]:
    text = (ROOT / "requirements" / f"{line}.txt").read_text("utf-8")
    return dict(re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE))


def _escape(text: str) -> str:
    return quote(text.replace("-", "--").replace("_", "__"))


def checkpoints() -> str:
    """The chat models of InternVL 2.5: parts, size, fewest GPUs."""
    from internvl.checkpoints import memory
    from internvl.checkpoints.build_scaling import fewest
    from internvl.checkpoints.device_map import GIB
    from internvl.checkpoints.plan import published_config
    from internvl.checkpoints.published import CHAT_MODELS

    rows = []
    for model in (each for each in CHAT_MODELS if each.name.startswith("InternVL2_5")):
        config = published_config(model.name)
        cards = [f"{fewest(config, card, 'bf16').split()[0]} x {card} GiB" for card in _CARDS]
        rows.append(
            [
                f"`{model.name}`",
                model.vision.name.removeprefix("InternViT-").partition("-")[0],
                model.language.name,
                f"{memory.parameters(config) / 1e9:.1f} B",
                f"{memory.parts(config, 'bf16').total / GIB:.1f} GiB",
                *cards,
            ]
        )
    head = ["checkpoint", "InternViT", "language model", "parameters", "bf16", "fits on", "or"]
    return _table(head, rows)


def demo() -> str:
    """What the demo gets right, out of demo/README.md."""
    text = (ROOT / "demo" / "README.md").read_text("utf-8")
    right = dict(re.findall(r"^\| ([^|]+) \| \d+ \| ([\d.]+) \|", text, re.MULTILINE))
    return _table(list(_TASKS.values()), [[right[task] for task in _TASKS]])


def speed() -> str:
    """Ratios of CPU time, out of docs/performance.json."""
    records = json.loads((ROOT / "docs" / "performance.json").read_text("utf-8"))
    rows = []
    for benchmark, name, called in _SPEEDS:
        row = next(each for each in records[benchmark]["rows"] if each["row"] == name)
        value = row["value"] if row["metric"].endswith("peer / ours") else 1 / row["value"]
        rows.append([called, _PEERS.get(row["peer"], row["peer"]), f"{value:.2g} times as fast"])
    return _table(["on a CPU", "against", ""], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(head), ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines).replace("|  |", "| |")


PARTS: dict[str, Callable[[], str]] = {
    "badges": badges, "demo": demo, "checkpoints": checkpoints, "speed": speed,
}  # fmt: skip


def render(text: str) -> str:
    """The page with its parts as they should be.

    Raises:
        ValueError: a marker is missing.
    """
    for name, part in PARTS.items():
        begin, end = f"<!-- {name}: begin, docs/scripts/readme.py -->", f"<!-- {name}: end -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"{PAGE.name} needs one {begin} and one {end}.")
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{part()}\n{end}{rest.partition(end)[2]}"
    return text


def main(arguments: list[str]) -> int:
    """Write or compare."""
    text = PAGE.read_text("utf-8")
    wanted = render(text)
    if "--check" in arguments:
        return int(text != wanted)
    PAGE.write_text(wanted, "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
