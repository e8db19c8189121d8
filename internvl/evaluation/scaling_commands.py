"""The sub-commands of `internvl eval` for several answers per question: votes, max, best-of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, or its predictions.")]
Key = Annotated[str | None, typer.Option("--benchmark", help="Score as this one; the run's own.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def votes(
    run: Run,
    benchmark: Key = None,
    answers: Annotated[
        str | None, typer.Option("--answers", metavar="K,K", help="Such as 1,2,4,8; all.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="PICTURE", help="Draw the curves: .svg or .png.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell what a vote of k answers brings: maj@k, pass@k, tokens, truncated and unparsed shares.

    RUN is one of `internvl eval run --mode vote --samples N`.
    """
    from internvl.evaluation import curves, scaling

    row, predictions = _read(run, benchmark)
    ks = None if answers is None else [int(each) for each in answers.split(",")]
    found = scaling.scaling(predictions, row.metric, ks=ks)
    typer.echo(json.dumps(found.as_dict()) if as_json else f"{row.name}: {found.describe()}")
    if plot is not None:
        drawn = curves.draw_scaling({row.name: {"samples": found}}, plot)
        typer.echo(f"drawn  {drawn}", err=as_json)


def maximum(
    direct: Run,
    cot: Annotated[Path, typer.Argument(metavar="COT", help="Run of the same file, --mode cot.")],
    benchmark: Key = None,
    as_json: AsJson = False,
) -> None:
    """Take the higher score of a direct and a CoT run, as the report does for MMMU; say so.

    Of MMMU-Pro the higher one of each setting is taken, and then their mean.
    """
    from dataclasses import asdict

    from internvl.evaluation import scaling, scoring

    row, one = _read(direct, benchmark)
    two = _read(cot, row.key)[1]
    scoring.check_pair(one, two)
    scores = {
        mode: scoring.score(rows, row.metric) for mode, rows in (("direct", one), ("cot", two))
    }
    settings = [name for name in scores["direct"].parts if name.startswith("setting/")]
    if row.metric == "mmmu_pro" and settings:
        parts = {name: {m: each.parts[name] for m, each in scores.items()} for name in settings}
        found = scaling.higher_of_parts(parts)
    else:
        found = scaling.higher({mode: each.score for mode, each in scores.items()})
    typer.echo(json.dumps(asdict(found)) if as_json else found.describe())


def best_of(
    run: Run,
    scorer: Annotated[
        str, typer.Option(metavar="MODULE:FUNCTION", help="(question, images, response) -> float.")
    ],
    benchmark: Key = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="File of the run, for a scorer that looks at images."),
    ] = None,
    media: Annotated[str | None, typer.Option(help="Folder of the images that rows name.")] = None,
    as_json: AsJson = False,
) -> None:
    """Let a scorer of yours choose among the answers of each question, and score its choice."""
    from internvl.evaluation import best_of_n, scoring
    from internvl.evaluation.samples import Source, read_samples

    row, predictions = _read(run, benchmark)
    chosen_by = best_of_n.load_scorer(scorer)
    images = None
    if data is not None:
        images = {each.id: each.images for each in read_samples(Source(data, media=media))}
    scores = best_of_n.response_scores(predictions, chosen_by, images)
    found = scoring.score(predictions, row.metric, choose=best_of_n.by_scores(scores))
    typer.echo(json.dumps(found.as_dict()) if as_json else f"{row.name}: {found.describe()}")


def _read(path: Path, benchmark: str | None) -> tuple[Any, Any]:
    """The benchmark of a run, and its predictions.

    Raises:
        ValueError: no rule scores the benchmark.
    """
    from internvl.evaluation import benchmarks
    from internvl.evaluation.records import read_predictions

    predictions = read_predictions(path / "predictions.jsonl" if path.is_dir() else path)
    row = benchmarks.get(benchmark or predictions[0].benchmark)
    if not row.metric:
        raise ValueError(f"{row.key} is scored by {row.scoring}; no rule here can count its votes.")
    return row, predictions


COMMANDS: dict[str, Any] = {"votes": votes, "max": maximum, "best-of": best_of}
