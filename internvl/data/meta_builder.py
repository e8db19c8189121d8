"""A meta file of the report's datasets that somebody has on disk.

    FOLDER/chartqa.jsonl                 rows; media below FOLDER/chartqa if there is such a folder,
                                         else below FOLDER
    FOLDER/ChartQA/rows.jsonl            rows; media below FOLDER/ChartQA
    FOLDER/chart-qa/*.parquet            rows with embedded images

A name fits whatever its case, blanks and signs. Nothing is guessed: a folder with two files of rows
is an error, and what is missing, or fits no dataset, is told.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from internvl.data.catalogue import Entry
from internvl.data.mixture import DatasetSpec
from internvl.data.sources import open_source

_ROWS = (".jsonl", ".parquet")
_SETTINGS = {each.name for each in fields(DatasetSpec)} - {"name", "root", "annotation", "length"}


@dataclass(frozen=True)
class Built:
    """A meta file, and what is to be told about it.

    Attributes:
        meta: its content, paths relative to the folder that it is for.
        missing: datasets that were asked for and are not there.
        strange: files and folders that fit no dataset that was asked for, with the nearest name.
    """

    meta: Mapping[str, Mapping[str, Any]]
    missing: tuple[str, ...]
    strange: Mapping[str, str]


@dataclass(frozen=True)
class _Found:
    annotation: Path
    root: Path


def build_meta(
    entries: Sequence[Entry],
    folder: Path,
    out: Path,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> Built:
    """Look for datasets and describe those that are there.

    A dataset that stands in several rows of the tables is one entry, with the largest n_max.

    Args:
        entries: datasets that are asked for.
        folder: what they are in.
        out: where the meta file will be; paths are relative to its folder.
        overrides: by name of the dataset, settings of its entry such as `repeat_time`; "*" for all.

    Raises:
        FileNotFoundError: no such folder, or none of the datasets in it.
        ValueError: several files of rows for one dataset, or overrides that mean nothing.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; expected one with a dataset per entry.")
    wanted = _by_name(entries)
    overrides = _checked(overrides or {}, wanted)
    there, strange = _look(folder, wanted)
    if not there:
        raise FileNotFoundError(
            f"{folder} has none of the {len(wanted)} datasets, e.g. {next(iter(wanted))}; "
            "expected NAME.jsonl, or NAME/ with one *.jsonl or with *.parquet."
        )
    meta = {}
    for name, entry in wanted.items():
        if name not in there:
            continue
        base = Path(os.path.abspath(out.parent))
        settings = {**overrides.get("*", {}), **overrides.get(name, {})}
        meta[name] = _describe(entry, there[name], base) | settings
        DatasetSpec(**{"name": name, **meta[name]})  # refuses values that cannot be
    missing = tuple(name for name in wanted if name not in there)
    return Built(meta, missing, strange)


def slug(name: str) -> str:
    """A name without case, blanks and signs; + is spelled, since it tells names apart."""
    return re.sub(r"[^0-9a-z]+", "", name.lower().replace("+", "plus"))


def _by_name(entries: Iterable[Entry]) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for each in entries:
        first = found.get(each.name, each)
        tiles = max((e.n_max for e in (first, each) if e.n_max is not None), default=None)
        found[each.name] = replace(first, n_max=tiles, augment=first.augment or each.augment)
    return found


def _checked(
    overrides: Mapping[str, Mapping[str, Any]], wanted: Mapping[str, Entry]
) -> dict[str, Mapping[str, Any]]:
    """The overrides by the names of the report."""
    names = {slug(name): name for name in wanted}
    found: dict[str, Mapping[str, Any]] = {}
    for name, settings in overrides.items():
        if name != "*" and slug(name) not in names:
            raise ValueError(f"settings are given for {name!r}{_hint(name, wanted)}")
        if unknown := sorted(set(settings) - _SETTINGS):
            raise ValueError(f"{name!r} has settings {unknown}; known are {sorted(_SETTINGS)}.")
        own = names.get(slug(name), name)
        found[own] = {**found.get(own, {}), **settings}
    return found


def _hint(name: str, wanted: Iterable[str]) -> str:
    near = _near(name, wanted)
    return ", which was not asked for" + (f"; did you mean {near!r}?" if near else ".")


def _near(name: str, wanted: Iterable[str]) -> str:
    """The name that is most like another; empty if none is."""
    names = {slug(each): each for each in wanted}
    near = difflib.get_close_matches(slug(name), names, n=1)
    return names[near[0]] if near else ""


def _look(folder: Path, wanted: Mapping[str, Entry]) -> tuple[dict[str, _Found], dict[str, str]]:
    names = {slug(name): name for name in wanted}
    there: dict[str, _Found] = {}
    strange: dict[str, str] = {}
    media = {slug(path.name): path for path in folder.iterdir() if path.is_dir()}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        name = names.get(slug(path.stem if path.suffix in _ROWS else path.name))
        found = _rows_of(path, media)
        if name is None:
            if found is not None:
                strange[path.name] = _near(path.stem, wanted)
        elif found is not None:
            if name in there:
                raise ValueError(
                    f"dataset {name!r} is there twice, {there[name].annotation} and "
                    f"{found.annotation}; move one away."
                )
            there[name] = found
    return there, strange


def _rows_of(path: Path, media: Mapping[str, Path]) -> _Found | None:
    """The rows that a file or folder holds; None if it holds none."""
    if path.is_file():
        if path.suffix not in _ROWS:
            return None
        return _Found(path, media.get(slug(path.stem), path.parent))
    if not path.is_dir():
        return None
    lines = sorted(path.glob("*.jsonl"))
    tables = any(path.rglob("*.parquet"))
    if len(lines) > 1 or (lines and tables):
        raise ValueError(
            f"{path} holds several files of rows, {[each.name for each in lines]}"
            f"{' and Parquet' if tables else ''}; leave one, or put each into a folder."
        )
    if lines:
        return _Found(lines[0], path)
    return _Found(path, path) if tables else None


def _describe(entry: Entry, found: _Found, base: Path) -> dict[str, Any]:
    def relative(path: Path) -> str:
        return Path(os.path.relpath(path, base)).as_posix()

    described: dict[str, Any] = {
        "root": relative(found.root),
        "annotation": relative(found.annotation),
        "data_augment": entry.augment,
        "repeat_time": entry.repeat,
        "length": len(open_source(str(found.annotation))),
    }
    if entry.n_max is not None:
        described["max_dynamic_patch"] = entry.n_max
    return described
