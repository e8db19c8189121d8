"""The sub-commands of `internvl data`: validate, pack, mixture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from internvl.data.mixture_command import mixture

Meta = Annotated[Path, typer.Argument(metavar="META", help="Meta file, see docs/data.md.")]
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="PATH_OR_ID", help="Whose tokenizer and tiles; the demo's."),
]
Limit = Annotated[
    int | None, typer.Option(min=1, help="Samples of each dataset; all if not given.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def pack(
    meta: Meta,
    model: Model = None,
    context: Annotated[int, typer.Option(min=1, help="Tokens of a row.")] = 16384,
    max_tiles: Annotated[int, typer.Option(min=1, help="Tiles of a row.")] = 48,
    samples: Annotated[int, typer.Option(min=1, help="Samples to measure.")] = 20_000,
    buffer: Annotated[
        int, typer.Option(min=1, help="Open packs of the rules that keep some.")
    ] = 20,
    window: Annotated[int, typer.Option(min=2, help="Samples of the rule best_fit.")] = 64,
    report: Annotated[
        Path | None, typer.Option(metavar="PICTURE", help="Draw the fill into this PNG or SVG.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure samples and tell how full each packing rule makes its rows."""
    from internvl import hub
    from internvl.data import pack_report
    from internvl.data.examples import ExampleMaker
    from internvl.data.measure import measure_items
    from internvl.data.mixture import Mixture, load_meta
    from internvl.data.packing import Limits

    limits = Limits(context, max_tiles)
    mixture, maker = Mixture(load_meta(meta)), ExampleMaker(hub.prepare(model))
    items = measure_items(mixture, maker, limits, samples)
    reports = pack_report.compare_rules(items, limits, buffer=buffer, window=window)
    numbers = [each.as_dict() for each in reports]
    typer.echo(json.dumps(numbers) if as_json else pack_report.text_table(reports))
    if report is not None:
        typer.echo(f"drawn  {pack_report.draw(reports, report)}", err=as_json)


def validate(
    meta: Meta,
    model: Model = None,
    limit: Limit = None,
    context: Annotated[int, typer.Option(min=1, help="Tokens of a row.")] = 16384,
    max_tiles: Annotated[int, typer.Option(min=1, help="Tiles of a row.")] = 48,
    pixels: Annotated[
        bool, typer.Option("--pixels", help="Decode images and videos, not only their headers.")
    ] = False,
    preview: Annotated[
        Path | None, typer.Option(metavar="HTML", help="Write samples with their loss mask here.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look at every row: counts, histograms, faults by line; exit code 1 if there are faults."""
    from internvl import hub
    from internvl.data import validate as module
    from internvl.data.examples import ExampleMaker
    from internvl.data.mixture import Mixture, load_meta
    from internvl.data.packing import Limits
    from internvl.data.preview import write_preview

    prepared = hub.prepare(model)
    mixture, maker = Mixture(load_meta(meta)), ExampleMaker(prepared)
    limits = Limits(context, max_tiles)
    report = module.validate(mixture, maker, limit=limit, limits=limits, pixels=pixels)
    typer.echo(json.dumps(report.as_dict()) if as_json else module.describe(report))
    if preview is not None:
        write_preview(preview, mixture, maker, prepared.tokenizer)
        typer.echo(f"written  {preview}", err=as_json)
    if report.total_faults:
        raise typer.Exit(1)


COMMANDS: tuple[Any, ...] = (validate, pack, mixture)
