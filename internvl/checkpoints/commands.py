"""The sub-commands of `internvl` for checkpoints: adopt, verify, export, convert, publish, plan.

Each reads its options, calls the module of its name and prints what that describes; errors are left
to `internvl.cli`, which registers them.
"""

from __future__ import annotations

import json
from dataclasses import asdict
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
    as_json: AsJson = False,
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
    typer.echo(_json(adopted) if as_json else module.describe(adopted, dry_run=dry_run))


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
    as_json: AsJson = False,
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
    typer.echo(_json(exported) if as_json else module.describe(exported))


def convert(
    source: Source,
    out: Out,
    to: Annotated[str, typer.Option(help="native (transformers' own InternVL) or official.")],
    subfolder: Subfolder = None,
    revision: Revision = None,
    template: Template = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Compare the logits of both.")
    ] = True,
    max_shard_size: ShardSize = "5GB",
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint in transformers' own InternVL layout, or back in the published one."""
    from internvl.checkpoints import convert as module

    report = module.convert(
        source,
        out,
        to=to,
        template=template,
        subfolder=subfolder,
        revision=revision,
        max_shard_size=max_shard_size,
        check=check,
    )
    typer.echo(_json(report) if as_json else module.describe(report))


def plan(
    model: Annotated[
        str, typer.Argument(metavar="MODEL|SIZE", help="78B, InternVL2-8B, a folder or a Hub id.")
    ],
    gpus: Annotated[str, typer.Option(help="4x80GiB, or 24GiB,80GiB.")] = "1x80GiB",
    dtype: Annotated[str, typer.Option(help="bf16, fp16, fp32, int8 or int4.")] = "bf16",
    images: Annotated[int, typer.Option(min=0, help="Images of a sample.")] = 1,
    max_tiles: Annotated[
        int | None, typer.Option(min=1, help="Most tiles of an image, thumbnail not counted.")
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=1, help="Positions of a sample, visual ones included.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples at once.")] = 1,
    train: Annotated[
        str | None, typer.Option(help="stage1, stage1.5 or stage2: plan training.")
    ] = None,
    revision: Revision = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw what fills each GPU: a .png or .svg.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell whether a model fits on GPUs, and how to run it there; exit code 1 if it does not."""
    from internvl.checkpoints import plan as module

    planned = module.plan(
        model,
        gpus=gpus,
        dtype=dtype,
        images=images,
        max_tiles=max_tiles,
        context=context,
        batch=batch,
        train=train,
        revision=revision,
    )
    if plot is not None:
        from internvl.checkpoints import plan_picture

        plan_picture.draw([planned], plot)
    typer.echo(json.dumps(planned.as_dict(), indent=2) if as_json else module.describe(planned))
    if planned.engine is None:
        raise typer.Exit(1)


def publish(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder, or a clone of this.")],
    repo: Annotated[str, typer.Option(metavar="ID", help="Hub id, owner/name.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be sent, and send nothing.")
    ] = False,
    include_workshop: Annotated[
        bool, typer.Option("--include-workshop", help="Of a clone: package, tests, docs too.")
    ] = False,
    private: Annotated[
        bool, typer.Option("--private/--public", help="Of a repository that is made anew.")
    ] = True,
    revision: Annotated[str | None, typer.Option(help="Branch to commit to.")] = None,
    force: Annotated[bool, typer.Option("--force", help="In spite of warnings.")] = False,
    message: Annotated[str, typer.Option(help="Message of the commit.")] = "Upload a checkpoint",
    as_json: AsJson = False,
) -> None:
    """Check a folder and upload it to the Hub; exit code 1 if a dry run finds an error."""
    from internvl.checkpoints import publish as module

    if dry_run:
        upload = module.plan_upload(folder, repo, include_workshop=include_workshop)
        typer.echo(_json(upload) if as_json else module.describe(upload))
        if upload.errors:
            raise typer.Exit(1)
        return
    published = module.publish(
        folder,
        repo,
        include_workshop=include_workshop,
        private=private,
        revision=revision,
        force=force,
        message=message,
    )
    said = f"published  {published.files} files as {published.url}"
    typer.echo(_json(published) if as_json else said)


def _json(found: Any) -> str:
    return json.dumps(asdict(found), indent=2, default=str)


COMMANDS: tuple[Any, ...] = (adopt, verify, export, convert, plan, publish)
