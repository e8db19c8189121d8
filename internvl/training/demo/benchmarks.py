"""Benchmarks for the demo: drawn here, written as the real ones are, so that all of the path from
a benchmark's file to its score can be tried offline in minutes.

    OUT/suite.json      name, row of benchmarks.toml, file, rows, seed: `internvl eval run --suite`
    OUT/<name>.tsv      as VLMEvalKit's: images in base64, lists as literals
    OUT/<name>.jsonl    as the official scripts' and the Hub's: images as files
    OUT/images, video   what JSONL files and video sets name

Pictures come from seeds and material that training never uses. Row k of a benchmark is the same
however many there are, and whoever else is written. docs/demo_benchmarks.md has the scores.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from internvl.training.demo import benchmark_rows as rows
from internvl.training.demo.benchmark_rows import Maker, Row
from internvl.training.demo.evaluate import Held
from internvl.training.demo.release import MAX_TILES

logger = logging.getLogger(__name__)

SEED = 707_001
COUNT = 200
SUITE = "suite.json"
FRAMES = 4  # that the demo's clips have in training
RATE = 8  # frames a second
_TRIES = 1000
_CONSTANTS = 40


@dataclass(frozen=True)
class Local:
    """One of the benchmarks.

    Attributes:
        name: of its file.
        benchmark: row of benchmarks.toml whose prompt and metric it uses.
        kind: "tsv" or "jsonl".
        make: draws the rows of one picture.
        archives: whether it needs the package archives.
    """

    name: str
    benchmark: str
    kind: str
    make: Maker
    archives: bool = False

    @property
    def file(self) -> str:
        """Name of its file."""
        return f"{self.name}.{self.kind}"


BENCHMARKS: dict[str, Local] = {
    each.name: each
    for each in (
        Local("grounding", "refcoco", "jsonl", rows.regions),
        Local("grounding_table", "refcoco_plus", "tsv", rows.regions_table),
        Local("objects", "pope", "tsv", rows.objects),
        Local("pairs", "mme", "tsv", rows.pairs),
        Local("twins", "hallusionbench", "tsv", rows.illusions),
        Local("circular", "mmbench", "tsv", rows.choices),
        Local("five_options", "mme_realworld", "tsv", rows.own_prompt),
        Local("marked_images", "mmmu_val", "tsv", rows.marked_images),
        Local("two_images", "mantis", "jsonl", rows.several_images),
        Local("two_images_letter", "blink", "tsv", rows.images_by_letter),
        Local("clips", "mvbench", "tsv", rows.clips),
        Local("clips_own", "cgbench", "tsv", rows.clips_own_prompt),
        Local("documents", "docvqa", "tsv", rows.documents, archives=True),
        Local("charts", "chartqa", "tsv", rows.charts, archives=True),
        Local("reading", "ocrbench", "tsv", rows.ocr, archives=True),
        Local("scene_text", "textvqa", "tsv", rows.scene_text, archives=True),
    )
}


# ---------------------------------------------------------------------- drawing
def draw(local: Local, count: int, held: Held | None, *, seed: int = SEED) -> Iterator[Row]:
    """The rows of a benchmark: `count`, and what completes the last picture's.

    Args:
        local: which.
        count: rows.
        held: what the archives hold; None for a benchmark that needs none of it.
        seed: of the pictures and questions.

    Raises:
        ValueError: it needs the archives, and `held` is None.
    """
    if local.archives and held is None:
        raise ValueError(f"{local.name} is made of the package archives; pass what they hold.")
    key = list(BENCHMARKS).index(local.name)
    made = number = 0
    while made < count:
        rng = np.random.default_rng([seed, key, number])
        found = next(
            (each for each in (local.make(rng, number, held) for _ in range(_TRIES)) if each), None
        )
        if found is None:
            raise ValueError(f"{local.name}: no scene allowed question {number} (seed {seed}).")
        yield from found
        made, number = made + len(found), number + 1


# ---------------------------------------------------------------------- files
def build(
    out: str | Path,
    *,
    count: int = COUNT,
    held: Held | None = None,
    only: Sequence[str] | None = None,
    seed: int = SEED,
) -> Path:
    """Write benchmarks and their suite file.

    Args:
        out: target folder; a file that is there is written again.
        count: rows of each.
        held: what the archives hold; without it, those that need it are left out.
        only: these alone.
        seed: of all of them.

    Returns:
        The suite file.

    Raises:
        ValueError: a name that does not exist, fewer than one row, or a benchmark in `only` that
            needs the archives without `held`.
    """
    if unknown := [name for name in only or () if name not in BENCHMARKS]:
        raise ValueError(f"no benchmarks {unknown}; known are {list(BENCHMARKS)}.")
    if count < 1:
        raise ValueError(f"count is {count}; expected at least 1.")
    wanted = [BENCHMARKS[name] for name in only or BENCHMARKS]
    if only is None and held is None:
        wanted = [each for each in wanted if not each.archives]
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for local in tqdm(wanted, desc="benchmarks", unit="file", disable=None):
        found = list(draw(local, count, held, seed=seed))
        (_write_table if local.kind == "tsv" else _write_lines)(local, found, folder)
        entries.append(_entry(local, len(found), seed))
        logger.info("%s: %d rows as %s", local.file, len(found), local.benchmark)
    content = {"name": "demo", "seed": seed, "benchmarks": entries}
    return _replace(folder / SUITE, (json.dumps(content, indent=2) + "\n").encode())


def _entry(local: Local, count: int, seed: int) -> dict[str, Any]:
    """What the suite file says of a benchmark. More tiles or frames than in training hurt the demo
    (docs/demo_benchmarks.md), so its limits stand beside the row of the real benchmark."""
    entry: dict[str, Any] = {
        "name": local.name, "benchmark": local.benchmark, "file": local.file, "rows": count,
        "seed": seed,
    }  # fmt: skip
    if local.make in (rows.clips, rows.clips_own_prompt):
        return entry | {"frames": [FRAMES]}
    return entry | {"max_tiles": MAX_TILES}


def _write_table(local: Local, found: Sequence[Row], folder: Path) -> None:
    """A TSV of VLMEvalKit: images as base64 PNG, several of them and other lists as literals."""
    columns = list(dict.fromkeys(name for row in found for name in row if name != "frames"))
    text = io.StringIO()
    table = csv.DictWriter(text, columns, delimiter="\t", lineterminator="\n", restval="")
    table.writeheader()
    for row in found:
        if "frames" in row:
            path = folder / "video" / row["video"]
            path.parent.mkdir(exist_ok=True)
            _replace(path, _encoded(row["frames"]))
        cells = {name: _cell(value) for name, value in row.items() if name != "frames"}
        table.writerow(cells)
    _replace(folder / local.file, text.getvalue().encode())


def _write_lines(local: Local, found: Sequence[Row], folder: Path) -> None:
    """JSON Lines whose images are files, by their path from the folder of the file."""
    lines = []
    for number, row in enumerate(found):
        cells = dict(row)
        for name in ("image", "images"):
            if name in row:
                several = row[name] if name == "images" else [row[name]]
                paths = [
                    _save(image, folder, f"images/{local.name}/{number:06d}-{k}.png")
                    for k, image in enumerate(several)
                ]
                cells[name] = paths if name == "images" else paths[0]
        lines.append(json.dumps(cells, ensure_ascii=False) + "\n")
    _replace(folder / local.file, "".join(lines).encode())


def _cell(value: Any) -> Any:
    if isinstance(value, Image.Image):
        return base64.b64encode(_png(value)).decode()
    if isinstance(value, (list, tuple)):
        return repr([_cell(each) for each in value])
    return value


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=6)
    return stream.getvalue()


def _save(image: Image.Image, folder: Path, name: str) -> str:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    _replace(folder / name, _png(image))
    return name


def _replace(path: Path, content: bytes) -> Path:
    """Write a file as a whole: a temporary one beside it, renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)
    return path


def _encoded(frames: Sequence[Image.Image]) -> bytes:
    """An MP4 of H.264 (mpeg4 where that is missing), sides rounded down to even numbers.

    Raises:
        ImportError: PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError("videos need PyAV: pip install 'internvl[video]'.") from error
    stream_of = io.BytesIO()
    name = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with av.open(stream_of, "w", format="mp4") as container:
        stream: Any = container.add_stream(name, rate=RATE)
        stream.width, stream.height = (side // 2 * 2 for side in frames[0].size)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # the same bytes on every machine
        for image in frames:
            even = image.crop((0, 0, stream.width, stream.height))
            for packet in stream.encode(av.VideoFrame.from_image(even)):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return stream_of.getvalue()


# ---------------------------------------------------------------------- scores
def table(suite: str | Path, runs: str | Path) -> str:
    """Scores of `internvl eval run --suite` as a Markdown table, beside the best constant answer.

    Args:
        suite: the suite file.
        runs: folder of its runs.

    Raises:
        FileNotFoundError: a benchmark has not been run.
    """
    from internvl.evaluation import benchmarks as real
    from internvl.evaluation.records import read_predictions
    from internvl.evaluation.scoring import score

    heads = "benchmark", "written as", "n", "score", "95 % interval", "best constant", "unparsed %"
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for entry in json.loads(Path(suite).read_text("utf-8"))["benchmarks"]:
        folder = Path(runs) / entry["name"]
        clip = folder / f"frames-{FRAMES}"
        predictions = read_predictions((clip if clip.exists() else folder) / "predictions.jsonl")
        row = real.get(entry["benchmark"])
        found = score(predictions, row.metric)
        unit = "" if found.unit_name == "percent" else f" {found.unit_name.partition(' ')[0]}"
        cells = [
            entry["name"], f"{row.name}, `{row.metric}`", str(found.n),
            f"{found.score:.1f}{unit}", f"{found.low:.1f} to {found.high:.1f}",
            f"{constant(predictions, row.metric):.1f}", f"{100 * found.unparsed:.1f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def constant(predictions: Sequence[Any], metric: str) -> float:
    """The best score that one and the same text gets on all rows: the commonest references, and the
    letters of the options."""
    from internvl.evaluation.records import Response
    from internvl.evaluation.scoring import score

    counts = Counter(answer for each in predictions for answer in each.answers)
    letters = {letter for each in predictions for letter in each.choices}
    texts = dict.fromkeys([*sorted(letters), *(text for text, _ in counts.most_common(_CONSTANTS))])
    same = (
        [replace(each, responses=(Response(text, 1, "stop"),)) for each in predictions]
        for text in texts
    )
    return max(score(each, metric, resamples=1).score for each in same)


def replace_between(path: Path, name: str, text: str) -> None:
    """Put a text between the two marks `<!-- name: begin -->` and `<!-- name: end -->` of a page.

    Raises:
        ValueError: the marks are missing.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    page = path.read_text("utf-8")
    head, found, rest = page.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{path} lacks the lines {begin!r} and {end!r}; add them.")
    _replace(path, f"{head}{begin}\n{text}\n{end}{tail}".encode())
