"""The sub-commands of `internvl train`.

`internvl train RECIPE.yaml` is short for `internvl train run RECIPE.yaml`. For several processes
start it by `accelerate launch -m internvl train ...` or `torchrun -m internvl train ...`.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

Out = Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")]
Source = Annotated[str, typer.Argument(metavar="SRC", help="Folder or Hub id.")]
Seed = Annotated[int, typer.Option(help="Of the new projector.")]
ShardSize = Annotated[str, typer.Option("--max-shard-size", help="Most bytes of a weight file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class RecipeGroup(TyperGroup):
    """A group that takes the name of a YAML file for `run` with it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `run` before a recipe."""
        if args and args[0] not in self.commands and args[0].endswith((".yaml", ".yml")):
            args = ["run", *args]
        return super().parse_args(ctx, args)


def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML file, see recipes/.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the run; runs/<recipe> if not given."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint, if there is one.")
    ] = False,
    max_steps: Annotated[
        int | None,
        typer.Option(min=1, help="Stop after that many steps, whatever the recipe says."),
    ] = None,
    values: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A value of the recipe, as in YAML."),
    ] = None,
) -> None:
    """Train as a recipe says, and write OUT/final, a checkpoint that loads."""
    from internvl.training.recipes import load_recipe
    from internvl.training.run import train

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    overrides = dict(_assignment(each) for each in values or [])
    if max_steps is not None:
        overrides |= {"steps": max_steps, "tokens": None, "epochs": None}
    parsed = load_recipe(recipe, overrides)
    folder = out or Path("runs", *recipe.with_suffix("").parts[-2:])
    typer.echo(f"written  {train(parsed, folder, resume=resume)}")


def _assignment(text: str) -> tuple[str, Any]:
    import yaml

    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text!r} is no KEY=VALUE, such as optimizer.lr=1e-5.")
    return name, yaml.safe_load(value)


def transfer_vit(
    source: Source,
    destination: Annotated[
        str, typer.Argument(metavar="DST", help="Checkpoint with the larger LLM: folder or Hub id.")
    ],
    out: Out,
    keep_mlp1: Annotated[
        bool, typer.Option("--keep-mlp1", help="Take the projector along, where the widths allow.")
    ] = False,
    seed: Seed = 42,
    max_shard_size: ShardSize = "5GB",
    as_json: AsJson = False,
) -> None:
    """Move an aligned InternViT under a larger language model (report section 3.3)."""
    from internvl.training import progressive as module

    moved = module.transfer_vit(
        source, destination, out, keep_mlp1=keep_mlp1, seed=seed, max_shard_size=max_shard_size
    )
    typer.echo(_json(moved) if as_json else module.describe(moved))


def assemble(
    out: Out,
    vit: Annotated[str, typer.Option(help="InternViT, or a chat checkpoint whose ViT is taken.")],
    llm: Annotated[str, typer.Option(help="Qwen2, Llama, InternLM2 or Phi-3 with its tokenizer.")],
    vit_depth: Annotated[
        int | None, typer.Option(min=1, help="Keep that many layers of the ViT.")
    ] = None,
    tile_size: Annotated[
        int | None, typer.Option(min=1, help="Side of a tile; that of the ViT if not given.")
    ] = None,
    template: Annotated[str, typer.Option(help="Prompt template.")] = "internvl2_5",
    max_dynamic_patch: Annotated[int, typer.Option(min=1, help="Most tiles of an image.")] = 12,
    new_rows: Annotated[str, typer.Option(help="Rows of new tokens: mean or official.")] = "mean",
    add_template_tokens: Annotated[
        bool, typer.Option("--add-template-tokens", help="Add those of the template, too.")
    ] = False,
    untie: Annotated[
        bool, typer.Option("--untie", help="Give a tied output layer a tensor of its own.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="Of the weights written; that of the LLM.")] = "auto",
    seed: Seed = 42,
    max_shard_size: ShardSize = "5GB",
    as_json: AsJson = False,
) -> None:
    """Make a new checkpoint of a vision encoder and a language model."""
    from internvl.training import assemble as module

    options = module.Options(
        vit_depth=vit_depth,
        tile_size=tile_size,
        template=template,
        max_dynamic_patch=max_dynamic_patch,
        new_rows=new_rows,  # type: ignore[arg-type]  # checked by Options
        add_template_tokens=add_template_tokens,
        untie=untie,
        dtype=dtype,
        seed=seed,
        max_shard_size=max_shard_size,
    )
    assembled = module.assemble(vit, llm, out, options)
    typer.echo(_json(assembled) if as_json else module.describe(assembled))


def _json(found: Any) -> str:
    return json.dumps(asdict(found), indent=2, default=str)


def distill(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML file.")],
    out: Out,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from a stopped run.")] = False,
) -> None:
    """Train a small vision encoder to give the features of a large one (report Table 1)."""
    from internvl.training import distill as module

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    typer.echo(module.describe(module.run(recipe, out, resume=resume)))


def curves(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, or a JSON of --json.")
    ],
    out: Annotated[Path, typer.Option(metavar="PICTURE", help="PNG or SVG to draw.")],
    as_json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the numbers here.")
    ] = None,
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Begin every run at step 0, to compare them.")
    ] = False,
) -> None:
    """Draw the losses of one or several runs."""
    from internvl.training import curves as module

    found = [curve for run in runs for curve in module.read(run)]
    typer.echo(f"drawn  {module.draw(found, out, overlay=overlay)}")
    if as_json is not None:
        module.save(found, as_json)


COMMANDS: tuple[Any, ...] = (run, transfer_vit, assemble, distill, curves)
