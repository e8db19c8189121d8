"""The sub-command `internvl eval vision segment` (report section 7.2).

For several processes: `torchrun --nproc-per-node N -m internvl eval vision segment ...`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer


def segment(
    root: Annotated[Path, typer.Argument(metavar="DATA", help="Folder of the data set.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder of the run.", show_default=False)
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="PATH_OR_ID", help="InternViT or chat checkpoint; else the demo."
        ),
    ] = None,
    subfolder: Annotated[str | None, typer.Option(help="Folder within the model's.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    mode: Annotated[
        str, typer.Option(help="linear: a linear probe; head: UperNet, encoder frozen; full: all.")
    ] = "linear",
    layout: Annotated[str, typer.Option(help="ade20k, coco_stuff or folders.")] = "ade20k",
    size: Annotated[int, typer.Option(min=1, help="Side of the crops in pixels.")] = 504,
    iterations: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 80_000,
    batch: Annotated[int, typer.Option(min=1, help="Crops of a step, over all devices.")] = 16,
    accumulation: Annotated[
        int, typer.Option(min=1, help="Parts that a device splits its share into.")
    ] = 1,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 4e-5,
    warmup: Annotated[
        int | None, typer.Option(min=0, help="Steps of warm-up; 1,500 of 80,000 if not given.")
    ] = None,
    channels: Annotated[int, typer.Option(min=1, help="Width of UperNet.")] = 1536,
    precision: Annotated[str, typer.Option(help="Of the encoder: float32 or bfloat16.")] = (
        "float32"
    ),
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, more time; mode full.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, mps ...")] = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Data processes per device.")] = 4,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 1000,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint, if there is one.")
    ] = False,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Only score the model that is in --out.")
    ] = False,
) -> None:
    """Train and score a semantic segmentation head (Table 15); mIoU of the validation split."""
    from internvl.evaluation.vision.processes import find_processes
    from internvl.evaluation.vision.segmentation import run, state
    from internvl.evaluation.vision.segmentation.layouts import find
    from internvl.evaluation.vision.segmentation.settings import Settings
    from internvl.settings import build

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    if evaluate:
        settings = build(Settings, state.read_description(out)["settings"], "settings")
    else:
        settings = Settings(
            mode=mode,  # type: ignore[arg-type]  # checked by Settings
            crop=size,
            iterations=iterations,
            batch=batch,
            accumulation=accumulation,
            lr=lr,
            warmup=warmup,
            channels=channels,
            precision=precision,  # type: ignore[arg-type]  # checked by Settings
            gradient_checkpointing=gradient_checkpointing,
            seed=seed,
        )
    test = find(layout, root, "val")
    about = {"model": model or "demo", "layout": layout}
    processes = find_processes(device)
    source = (model, subfolder, revision, settings)  # no name for the encoder: `run` lets go of it
    if evaluate:
        results = run.evaluate_only(_encoder(*source), test, out, about=about, processes=processes)
    else:
        work = run.Work(resume=resume, workers=workers, save_every=save_every)
        data = find(layout, root, "train")
        results = run.segment(
            _encoder(*source), data, test, settings, out, work=work, about=about,
            processes=processes,
        )  # fmt: skip
    if processes.first:
        typer.echo(describe(results))


def _encoder(model: str | None, subfolder: str | None, revision: str | None, settings: Any) -> Any:
    """The encoder, on the CPU, with bfloat16 weights only where they do not learn."""
    import torch

    from internvl.evaluation.vision.encoder import load_encoder

    learns, half = settings.mode == "full", settings.precision == "bfloat16"
    return load_encoder(
        model,
        subfolder=subfolder,
        revision=revision,
        freeze=not learns,
        dtype="bfloat16" if half and not learns else "float32",
        autocast=torch.bfloat16 if half else None,
    )


def describe(results: dict[str, Any]) -> str:
    """The results for people."""

    def text(value: float | None) -> str:
        return "     -" if value is None else f"{value:6.2f}"

    lines = [f"{text(each['iou'])}  {each['name']}" for each in results["classes"]]
    total = ", ".join(f"{name} {text(results[name]).strip()}" for name in ("miou", "macc", "aacc"))
    return "\n".join([*lines, f"{results['mode']}, {results['test_images']} images: {total}"])


COMMANDS: tuple[Any, ...] = (segment,)
