"""The sub-commands of `internvl filter`: run, review, report, explain.

Exit codes: 0 done; 1 `explain` found the sample flagged; 2 the configuration, the data or a folder
is not as it should be.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

Out = Annotated[Path, typer.Argument(metavar="OUT", help="Output folder of a run.")]
Values = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A value of the configuration, as in YAML."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def run(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="YAML file, see recipes/filter.")
    ],
    values: Values = None,
    as_json: AsJson = False,
) -> None:
    """Filter a corpus, or go on where a run was stopped."""
    from internvl.filtering import pipeline
    from internvl.filtering.config import load_config

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    parsed = load_config(config, dict(_assignment(each) for each in values or []))
    statistics = pipeline.run(parsed)
    if statistics is None:
        typer.echo(
            f"submitted; when its jobs have ended, the output is in {parsed.output}", err=as_json
        )
        return
    _tell(parsed.folder, statistics, as_json=as_json)


def review(
    out: Out,
    page: Annotated[bool, typer.Option("--page", help="On a page, in a browser.")] = False,
    port: Annotated[int, typer.Option(help="Of the page; any that is free if 0.")] = 0,
    rule: Annotated[
        list[str] | None, typer.Option(help="Only what this rule flagged; can be repeated.")
    ] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="Only of this dataset; can be repeated.")
    ] = None,
    everything: Annotated[
        str | None,
        typer.Option("--all", metavar="WORD", help="Accept or reject all of it without asking."),
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Sort the rows by the decisions, asking nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --apply: print JSON.")] = False,
) -> None:
    """Decide on flagged samples: accepted ones stay, rejected ones go."""
    from internvl.filtering import pipeline
    from internvl.filtering import review as module
    from internvl.filtering.config import saved_config

    which = module.Which(tuple(rule or ()), tuple(dataset or ()))
    if as_json and not apply:
        raise ValueError("--json prints the counts of --apply; give both, or neither.")
    if apply:
        _tell(out, pipeline.apply_decisions(saved_config(out)), as_json=as_json)
        return
    if everything is not None:
        typer.echo(f"decided  {module.decide_all(out, which, _word(everything))}")
    elif page:
        _serve(out, which, port)
    else:
        typer.echo(f"decided  {module.review(out, which)}")
    typer.echo(f"next     internvl filter review {out} --apply")


def report(out: Out, as_json: AsJson = False) -> None:
    """Write the report on a run again, and tell its counts."""
    from internvl.filtering.report import write_report
    from internvl.filtering.statistics import read_statistics

    write_report(out)
    _tell(out, read_statistics(out), as_json=as_json)


def explain(
    sample: Annotated[
        str, typer.Argument(metavar="SAMPLE", help="FILE:LINE, or - for standard input.")
    ],
    config: Annotated[
        Path | None, typer.Option(metavar="CONFIG", help="Whose rules; all with their defaults.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What each rule says about one sample, and how far the others are; exit code 1 if flagged."""
    from internvl.filtering import explain as module
    from internvl.filtering.config import load_config
    from internvl.filtering.pipeline import rule_settings
    from internvl.filtering.records import to_record

    settings = rule_settings(load_config(config).rules if config else {})
    text = sys.stdin.read() if sample == "-" else None
    record, bad = to_record(module.read_sample(sample, text))
    found = list(module.explain(record, bad, settings))
    typer.echo(module.to_json(found) if as_json else module.describe(record, found))
    if any(each.state == "flagged" for each in found):
        raise typer.Exit(1)


def _assignment(text: str) -> tuple[str, Any]:
    import yaml

    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text!r} is no KEY=VALUE, such as executor.workers=8.")
    return name, yaml.safe_load(value)


def _word(text: str) -> Literal["accept", "reject"]:
    if text not in ("accept", "reject"):
        raise ValueError(f"--all is {text!r}; expected accept or reject.")
    return "accept" if text == "accept" else "reject"


def _serve(out: Path, which: Any, port: int) -> None:
    from internvl.filtering.review_page import ReviewServer

    with ReviewServer(out, which, port=port) as server:
        typer.echo(f"open     {server.url}   (Ctrl-C ends)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("")


def _tell(out: Path, statistics: Any, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(statistics, ensure_ascii=False))
        return
    typer.echo(
        "read {read:,} = kept {kept:,} + removed {removed:,} + queued {queued:,}".format(
            **statistics
        )
    )
    for name, rule in statistics["rules"].items():
        typer.echo(f"  {name:24} {rule['flagged']:>9,}")
    typer.echo(f"report   {out / 'report.html'}")
    if statistics["queued"]:
        typer.echo(f"next     internvl filter review {out}")


COMMANDS: tuple[Any, ...] = (run, review, report, explain)
