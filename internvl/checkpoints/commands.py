"""The sub-commands of `internvl` for checkpoints: adopt, verify, export, convert, publish, plan.

Each reads its options, calls the module of its name and prints what that describes; errors are left
to `internvl.cli`, which registers them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

Source = Annotated[str, typer.Argument(metavar="SOURCE", help="Folder or Hub id.")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")]
Subfolder = Annotated[str | None, typer.Option(help="Folder within the source.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub repository.")]
ShardSize = Annotated[str, typer.Option("--max-shard-size", help="Most bytes of a weight file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Template = Annotated[
    str | None, typer.Option(help="Prompt template, for a config.json that names none.")
]


def adopt(
    source: Source,
    out: Out,
    subfolder: Subfolder = None,
    revision: Revision = None,
    template: Template = None,
    copy: Annotated[bool, typer.Option("--copy", help="Copy weights, do not link them.")] = False,
    max_shard_size: ShardSize = "5GB",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, and write nothing.")] = False,
) -> None:
    """Make published weights, or a fine-tune of the official code, a folder that loads today."""
    from internvl.checkpoints import adopt as module

    adopted = module.adopt(
        source,
        out,
        subfolder=subfolder,
        revision=revision,
        template=template,
        copy=copy,
        max_shard_size=max_shard_size,
        dry_run=dry_run,
    )
    typer.echo(module.describe(adopted, dry_run=dry_run))


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to check.")],
    values: Annotated[
        bool, typer.Option("--values/--no-values", help="Read all weights, look for NaN.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Check weights, config, tokenizer, template and code; exit code 1 on a defect."""
    from internvl.checkpoints import verify as module

    report = module.verify(folder, values=values)
    typer.echo(json.dumps(report.as_dict(), indent=2) if as_json else module.describe(report))
    if report.defects:
        raise typer.Exit(1)


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder, Hub id, or `demo`.")],
    out: Out,
    subfolder: Subfolder = None,
    revision: Revision = None,
    merge_adapter: Annotated[
        str | None,
        typer.Option("--merge-adapter", metavar="ADAPTER", help="PEFT adapter to merge."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")] = "auto",
    max_shard_size: ShardSize = "5GB",
) -> None:
    """Write a model as a self-contained folder, in another dtype or with an adapter merged."""
    from internvl.checkpoints import export as module

    exported = module.export(
        None if model == "demo" and not Path(model).is_dir() else model,
        out,
        subfolder=subfolder,
        revision=revision,
        merge_adapter=merge_adapter,
        dtype=dtype,
        max_shard_size=max_shard_size,
    )
    typer.echo(module.describe(exported))


COMMANDS: tuple[Any, ...] = (adopt, verify, export)
