"""Benchmark files to samples: TSV, JSON, JSONL, Parquet, or a data set of the Hub.

    file -> rows (column -> cell) -> Sample: id, question, images or video, choices, answers, fields

The columns are those of VLMEvalKit's TSVs, of the official JSONL files and of the data sets on the
Hub; docs/evaluation.md lists them. Cells are taken as they are written. In particular `None`, `NA`
and `1` stay text, where VLMEvalKit, which lets pandas guess, loses an option that reads `None` and
turns `1` into `1.0` as soon as the column has a gap.
"""

from __future__ import annotations

import ast
import base64
import binascii
import hashlib
import json
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from internvl.evaluation.records import Sample

IDS = ("index", "id", "question_id", "questionId", "data_id")
QUESTIONS = ("question", "questions", "sent", "text", "query")
ANSWERS = ("answer", "answers", "bbox", "gt_answer", "label")
OPTIONS = ("options", "choices", "candidates")
IMAGES = ("image", "images", "image_path", "img_path")
VIDEOS = ("video", "video_path")
LETTERS = tuple(string.ascii_uppercase)
# A cell of at most so many characters in the column `image` names another row (VLMEvalKit).
LONGEST_REFERENCE = 64


@dataclass(frozen=True)
class Source:
    """Where samples come from.

    Attributes:
        path: file, or the name of a data set on the Hub.
        split: split of a data set on the Hub.
        name: configuration of a data set on the Hub ("standard (10 options)").
        media: folder of images and videos that rows name; that of the file when None.
        where: column -> value; other rows are left out (`split` of MMMU_DEV_VAL).
    """

    path: str
    split: str | None = None
    name: str | None = None
    media: str | None = None
    where: Mapping[str, str] = field(default_factory=dict)


def read_samples(source: Source | str | Path, *, limit: int | None = None) -> list[Sample]:
    """Read the samples of a benchmark.

    Args:
        source: a file (.tsv, .csv, .json, .jsonl, .parquet), or the id of a data set.
        limit: only the first so many rows.

    Raises:
        FileNotFoundError: a file that does not exist.
        ImportError: the data set is on the Hub, and `datasets` is not installed.
        ValueError: a file of another kind, a row without question or picture, an id that comes
            twice; the row is named.
    """
    where = source if isinstance(source, Source) else Source(str(source))
    rows = _rows(where)
    path = Path(where.path)
    folders = [Path(where.media)] if where.media else []
    if path.is_file():
        folders += [path.parent, path.parent / "images", path.parent / "video"]
    samples: dict[str, Sample] = {}
    for number, row in enumerate(rows):
        if limit is not None and len(samples) >= limit:
            break
        if any(str(row.get(name)) != value for name, value in where.where.items()):
            continue
        if where.name is not None:  # MMMU-Pro is scored per setting, which is its configuration
            row = {"setting": where.name, **row}
        try:
            sample = to_sample(row, number, folders)
        except ValueError as error:
            raise ValueError(f"{where.path}, row {number + 1}: {error}") from error
        if sample.id in samples:
            raise ValueError(f"{where.path}, row {number + 1}: the id {sample.id!r} comes twice.")
        samples[sample.id] = sample
    if not samples:
        of_those = f" with {dict(where.where)}" if where.where else ""
        raise ValueError(f"{where.path} holds no rows{of_those}.")
    return list(_resolved(samples).values())


# ---------------------------------------------------------------------- rows
def _rows(source: Source) -> Iterable[Mapping[str, Any]]:
    path = Path(source.path)
    kind = path.suffix.lower()
    if not path.exists():
        if kind in (".tsv", ".csv", ".json", ".jsonl", ".parquet") or source.path.count("/") != 1:
            raise FileNotFoundError(
                f"there is no file {source.path!r}; name a .tsv, .json, .jsonl or .parquet file, "
                "or a data set of the Hub as `owner/name`."
            )
        return _hub_rows(source)
    if kind in (".tsv", ".csv"):
        return _table_rows(path, "\t" if kind == ".tsv" else ",")
    if kind == ".parquet":
        return _parquet_rows(path)
    if kind in (".json", ".jsonl"):
        return _json_rows(path)
    raise ValueError(
        f"{path} is no benchmark file; expected .tsv, .csv, .json, .jsonl or .parquet."
    )


def _table_rows(path: Path, separator: str) -> Iterator[Mapping[str, Any]]:
    import pandas as pd

    table = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False)
    for row in table.to_dict("records"):
        # An empty cell is a missing one; nothing else is.
        yield {str(name): value for name, value in row.items() if value != ""}


def _parquet_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=64):
            yield from batch.to_pylist()


def _json_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    text = path.read_text("utf-8-sig")
    if path.suffix.lower() == ".json":
        rows = json.loads(text)
        yield from rows.values() if isinstance(rows, dict) else rows
        return
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from error


def _hub_rows(source: Source) -> Iterator[Mapping[str, Any]]:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"{source.path} is a data set of the Hub, which needs `datasets`: "
            "pip install 'internvl[eval]'."
        ) from error
    if source.split is None:
        raise ValueError(f"name the split of the data set {source.path} (--split).")
    rows = datasets.load_dataset(source.path, source.name, split=source.split)
    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Image):  # bytes: decoded once, by our own rules
            rows = rows.cast_column(name, datasets.Image(decode=False))
    return iter(rows)


# ---------------------------------------------------------------------- a row
def to_sample(row: Mapping[str, Any], number: int, folders: Sequence[Path] = ()) -> Sample:
    """Read one row.

    Args:
        row: column -> value.
        number: of the row, its id when it has none.
        folders: where names of images and videos are looked up.

    Raises:
        ValueError: there is no question, or an image or video that does not exist.
    """
    cells = {name: value for name, value in row.items() if value is not None}
    used: set[str] = set()

    def first(names: Sequence[str]) -> Any:
        for name in names:
            if name in cells:
                used.add(name)
                return cells[name]
        return None

    identity = first(IDS)
    video = first(VIDEOS)
    images = _images(cells, used, folders)
    question = first(QUESTIONS)
    if question is None and not images:
        raise ValueError(f"no question; looked for {', '.join(QUESTIONS)} in {sorted(cells)}.")
    choices = _choices(cells, used)
    answers = _answers(first(ANSWERS))
    return Sample(
        id=str(number if identity is None else identity),
        question="" if question is None else str(question),
        answers=_as_letters(answers, choices),
        images=images,
        video=None if video is None else _found(str(video), folders),
        choices=choices,
        fields={name: value for name, value in cells.items() if name not in used},
    )


def _choices(cells: Mapping[str, Any], used: set[str]) -> dict[str, str]:
    letters = {letter: str(cells[letter]) for letter in LETTERS if letter in cells}
    if letters:
        used.update(letters)
        return letters
    for name in OPTIONS:
        if name not in cells:
            continue
        used.add(name)
        options = _literal(cells[name])
        if isinstance(options, Mapping):
            return {str(letter).upper(): str(text) for letter, text in options.items()}
        if isinstance(options, (list, tuple)):
            texts = [_without_letter(str(text), i) for i, text in enumerate(options)]
            return dict(zip(LETTERS, texts, strict=False))
        lines = [
            line for line in str(options).splitlines() if line.strip()
        ]  # MMIU: "A: ...\nB: ..."
        return {
            x: _without_letter(line, i)
            for i, (x, line) in enumerate(zip(LETTERS, lines, strict=False))
        }
    return {}


def _without_letter(text: str, index: int) -> str:
    """`(A) red`, `A. red` and `A: red` to `red`, where A is the letter of the place."""
    text = text.strip()
    letter = LETTERS[index] if index < len(LETTERS) else ""
    for start in (f"({letter})", f"{letter}.", f"{letter}:", f"{letter})"):
        if letter and text.startswith(start):
            return text[len(start) :].strip()
    return text


def _answers(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    value = _literal(value)
    if isinstance(value, (list, tuple)):
        if value and all(isinstance(each, (int, float)) for each in value):  # a box
            return (json.dumps(list(value)),)
        return tuple(str(each) for each in value)
    return (str(value),)


def _as_letters(answers: tuple[str, ...], choices: Mapping[str, str]) -> tuple[str, ...]:
    """The letter of an answer that is given as the text of its option."""
    if not choices or len(answers) != 1:
        return answers
    answer = answers[0].strip()
    if answer in choices:
        return (answer,)
    bare = answer.strip("().").upper()
    if bare in choices:
        return (bare,)
    named = [letter for letter, text in choices.items() if text.strip() == answer]
    return (named[0],) if len(named) == 1 else answers


def _literal(value: Any) -> Any:
    """A list or dict that a text cell spells out; the value itself otherwise."""
    if not isinstance(value, str) or value[:1] not in "[{(":
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(found, (list, dict)):
            return found
    return value


# ---------------------------------------------------------------------- pictures
def _images(cells: Mapping[str, Any], used: set[str], folders: Sequence[Path]) -> tuple[Any, ...]:
    for name in IMAGES:
        if name not in cells:
            continue
        if not name.endswith("_path"):  # a path also groups questions: MME pairs them by it
            used.add(name)
        value = _literal(cells[name])
        several = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_image(each, folders) for each in several)
    numbered = sorted(
        (name for name in cells if name.startswith("image_") and name[6:].isdigit()),
        key=lambda name: int(name[6:]),
    )
    used.update(numbered)
    return tuple(_image(cells[name], folders) for name in numbered)


def _image(value: Any, folders: Sequence[Path]) -> Any:
    """Bytes, a path, or the id of the row that has the picture (a str, resolved later)."""
    if isinstance(value, Mapping):  # datasets' and Parquet's struct
        if value.get("bytes") is not None:
            return bytes(value["bytes"])
        value = value.get("path")
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if not isinstance(value, str):
        if hasattr(value, "convert"):  # a PIL image
            return value
        raise ValueError(f"an image is a {type(value).__name__}; expected base64, bytes or a path.")
    if len(value) > LONGEST_REFERENCE and not _is_name(value):
        try:
            return base64.b64decode(value, validate=True)
        except binascii.Error as error:
            raise ValueError(f"an image is no base64: {value[:24]!r}... ({error})") from error
    for folder in folders:
        if (folder / value).is_file():
            return folder / value
    if Path(value).is_file():
        return Path(value)
    return value


def _is_name(value: str) -> bool:
    return Path(value[-8:]).suffix.lower() in (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")


def _found(name: str, folders: Sequence[Path]) -> Path:
    for folder in (*folders, Path()):
        if (folder / name).exists():
            return folder / name
    raise ValueError(f"there is no video {name!r} in {[str(folder) for folder in folders]}.")


def _resolved(samples: dict[str, Sample]) -> dict[str, Sample]:
    """Replace an image that is the id of another row by that row's image."""
    done = {}
    for key, sample in samples.items():
        images = []
        for each in sample.images:
            other = samples.get(each) if isinstance(each, str) else None
            if isinstance(each, str) and (other is None or not other.images):
                raise ValueError(
                    f"sample {key}: the image {each!r} is neither a file, nor base64, nor the id "
                    "of a row with an image; pass the folder of the images (--media)."
                )
            images.append(other.images[0] if other is not None else each)
        done[key] = replace(sample, images=tuple(images))
    return done


# ---------------------------------------------------------------------- fingerprint
def fingerprint(samples: Sequence[Sample]) -> str:
    """A digest of samples: texts and embedded images by content, files by name and size."""
    digest = hashlib.blake2b(digest_size=16)
    for sample in samples:
        head = [sample.id, sample.question, sample.answers, dict(sample.choices)]
        head.append(dict(sample.fields))  # prompts and metrics read some of them
        digest.update(json.dumps(head, ensure_ascii=False, default=str).encode())
        for each in (*sample.images, sample.video):
            digest.update(_content(each))
    return digest.hexdigest()


def _content(medium: Any) -> bytes:
    if isinstance(medium, bytes):
        return medium
    if isinstance(medium, Path):
        size = medium.stat().st_size if medium.is_file() else 0
        return f"{medium.name}:{size}".encode()
    return medium.tobytes() if hasattr(medium, "tobytes") else b""
