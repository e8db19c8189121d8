"""`internvl data mixture`: the report's datasets, and a meta file of those on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from internvl.data.catalogue import Entry, load_catalogue


def mixture(
    stage: Annotated[str | None, typer.Option(help="pretrain or finetune.")] = None,
    task: Annotated[str | None, typer.Option(help="Such as OCR or Mathematics.")] = None,
    modality: Annotated[
        str | None,
        typer.Option(help="single_image, multi_image, single_or_multi_image, video or text."),
    ] = None,
    language: Annotated[str | None, typer.Option(help="Such as zh.")] = None,
    name: Annotated[str | None, typer.Option(help="Of one dataset.")] = None,
    meta: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="Write a meta file of those that are in the folder."),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--from", metavar="FOLDER", help="Folder with datasets.")
    ] = None,
    values: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME.KEY=VALUE",
            help="Of the meta file, e.g. ChartQA.repeat_time=2; *.KEY for all.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the meta file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:  # fmt: skip
    """The datasets of the report (Tables 4 and 5), and a meta file of those that are on disk."""
    catalogue = load_catalogue()
    entries = catalogue.select(
        stage=stage, task=task, modality=modality, language=language, name=name
    )
    if (meta is None) != (folder is None):
        raise ValueError("--meta OUT and --from FOLDER go together.")
    if meta is not None and folder is not None:
        _write(entries, meta, folder, values or [], force=force)
        return
    if values:
        raise ValueError("--set changes a meta file; give --meta OUT and --from FOLDER, too.")
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in entries], ensure_ascii=False))
        return
    typer.echo(describe(entries))
    if stage is task is modality is language is name is None:
        shares = ", ".join(f"{k} {v:g} %" for k, v in catalogue.token_shares.items())
        samples = ", ".join(f"{k} {v / 1e6:g} M" for k, v in catalogue.samples.items())
        typer.echo(f"\nsamples of the fine-tuning mixture: {samples}\nits tokens: {shares}")


def describe(entries: Sequence[Entry]) -> str:
    """Entries as a table, a heading for each row of the report's tables."""
    rows = [("", "languages", "ref.", "n_max", "jpeg", "licence", "where")]
    heads: dict[int, str] = {}
    before = None
    for each in entries:
        place = (each.stage, each.modality, each.task)
        if place != before:
            heads[len(rows)] = " / ".join(place)
            before = place
        where = each.hub or each.page or ("unknown" if each.cites else "not published, or unknown")
        rows.append((
            each.name, " ".join(each.languages) or "?", ",".join(map(str, each.cites)) or "-",
            str(each.n_max or "-"), "yes" if each.augment else "no", each.licence or "unknown",
            where,
        ))  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for number, row in enumerate(rows):
        if number in heads:
            lines += ["", heads[number]]
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join([*lines, "", f"{len(entries)} entries"])


def _write(
    entries: Sequence[Entry], out: Path, folder: Path, values: Sequence[str], *, force: bool
) -> None:
    from internvl.data.meta_builder import build_meta

    if out.exists() and not force:
        raise FileExistsError(f"{out} is there already; --force replaces it.")
    built = build_meta(entries, folder, out, _overrides(values))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(built.meta, indent=2, ensure_ascii=False) + "\n", "utf-8")
    rows = sum(entry["length"] for entry in built.meta.values())
    typer.echo(f"written  {out}: {len(built.meta)} datasets, {rows:,} rows")
    if built.missing:
        typer.echo(f"missing  {len(built.missing)}: {', '.join(built.missing)}")
    for path, near in built.strange.items():
        hint = f"; is it {near}?" if near else ""
        typer.echo(f"left out {path}: no dataset of that name was asked for{hint}")


def _overrides(values: Sequence[str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for each in values:
        place, equals, text = each.partition("=")
        name, dot, key = place.rpartition(".")
        if not equals or not dot or not name:
            raise ValueError(f"--set {each!r} is no NAME.KEY=VALUE, e.g. ChartQA.repeat_time=2.")
        found.setdefault(name, {})[key] = _value(text)
    return found


def _value(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return text if isinstance(value, Mapping) else value
