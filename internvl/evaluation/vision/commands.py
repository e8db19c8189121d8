"""The sub-command `internvl eval vision probe`.

For several processes: `torchrun --nproc-per-node N -m internvl eval vision probe ...`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer

Images = "Folder with train/ and val/ (or test/), each with a folder per class."


def probe(
    data: Annotated[Path, typer.Argument(metavar="DATA", help=Images)],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the run.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="PATH_OR_ID",
            help="InternViT, or chat checkpoint whose encoder is taken; the demo if not given.",
        ),
    ] = None,
    subfolder: Annotated[str | None, typer.Option(help="Folder within the model's.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    kind: Annotated[str, typer.Option(help="linear or attention.")] = "linear",
    size: Annotated[
        int | None, typer.Option(min=1, help="Side of the images; that of the model.")
    ] = None,
    layer: Annotated[
        int | None, typer.Option(help="Hidden state to read; that of the model, -1 the last.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Over the training images.")] = 10,
    warmup_epochs: Annotated[int, typer.Option(min=0, help="Of them with a rising rate.")] = 1,
    batch: Annotated[int, typer.Option(min=2, help="Images of a step, all processes.")] = 1024,
    lr: Annotated[
        float, typer.Option(help="Peak rate at a batch of 512; it grows with the batch.")
    ] = 0.1,
    ema: Annotated[float, typer.Option(help="Decay of the averaged weights; 0 for none.")] = 0.998,
    mixup: Annotated[float, typer.Option(help="Alpha of mixup; 0 for none.")] = 0.8,
    cutmix: Annotated[float, typer.Option(help="Alpha of CutMix; 0 for none.")] = 1.0,
    smoothing: Annotated[float, typer.Option("--label-smoothing", help="0 for none.")] = 0.1,
    cache_features: Annotated[
        bool,
        typer.Option(
            "--cache-features",
            help="Encode each image once: fast, but no crops, flips, mixup or CutMix.",
        ),
    ] = False,
    cache_gib: Annotated[float, typer.Option(help="Most memory for cached features.")] = 8.0,
    val_labels: Annotated[
        Path | None, typer.Option(help="Labels of a flat val/: val.txt, LOC_val_solution.csv.")
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIR",
            help="imagenet-real, -v2, -a, -r or -sketch to score as well; can be repeated.",
        ),
    ] = None,
    test: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIR",
            help="Folder of class folders to score as well; can be repeated.",
        ),
    ] = None,
    real_labels: Annotated[Path | None, typer.Option(help="real.json of ReaL.")] = None,
    eval_every: Annotated[int, typer.Option(min=1, help="Epochs between two scores.")] = 1,
    random_encoder: Annotated[
        int | None,
        typer.Option(metavar="SEED", help="New weights of the same shape: the baseline."),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Of the encoder's weights; auto: as they are stored.")
    ] = "float32",
    autocast: Annotated[
        str | None, typer.Option(help="Compute the encoder in bfloat16 or float16.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, mps ...")] = "auto",
    encoder_batch: Annotated[int, typer.Option(min=1, help="Images encoded at once.")] = 16,
    workers: Annotated[int, typer.Option(min=0, help="Processes that load images.")] = 4,
    save_steps: Annotated[int, typer.Option(min=1, help="Steps between saved states.")] = 500,
    seed: Annotated[int, typer.Option(min=0, help="Of head, order, crops and mixing.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from a stopped run.")] = False,
) -> None:
    """Train a linear or attention-pooling probe on a frozen encoder and score it (Table 14)."""
    from internvl.evaluation.vision import encoder as encoders
    from internvl.evaluation.vision.mixing import Mixing
    from internvl.evaluation.vision.probe import Data, Probe, describe
    from internvl.evaluation.vision.processes import find_processes
    from internvl.evaluation.vision.recipe import Recipe
    from internvl.evaluation.vision.training import Run

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    if cache_features:
        mixup = cutmix = 0.0
    recipe = Recipe(
        kind=kind,
        epochs=epochs,
        warmup_epochs=warmup_epochs,
        batch=batch,
        base_lr=lr,
        ema=ema,
        mixing=Mixing(mixup, cutmix, smoothing),
        cache_features=cache_features,
        seed=seed,
    )
    described = Data(data, val_labels, _folders(variant), real_labels, _folders(test))
    processes = find_processes(device)
    encoder = encoders.load_encoder(
        model,
        subfolder=subfolder,
        revision=revision,
        image_size=size,
        layer=layer,
        dtype=dtype,
        autocast=_autocast(autocast),
        device=processes.device,
    )
    if random_encoder is not None:
        encoder = encoders.random_encoder(encoder, random_encoder)
    run = Run(
        out=out,
        encoder_batch=encoder_batch,
        workers=workers,
        save_steps=save_steps,
        resume=resume,
        cache_gib=cache_gib,
        processes=processes,
    )
    source = model or "demo"
    if random_encoder is not None:
        source = f"new weights of the shape of {source}, seed {random_encoder}"
    result = Probe(encoder, described, recipe, run, source=source, eval_every=eval_every)()
    if processes.first:
        typer.echo(describe(result))
    processes.leave()


def _folders(assignments: list[str] | None) -> dict[str, Path]:
    found = {}
    for text in assignments or []:
        name, equals, folder = text.partition("=")
        if not equals:
            raise ValueError(f"{text!r} is no NAME=DIR, such as imagenet-a=data/imagenet-a.")
        found[name] = Path(folder)
    return found


def _autocast(name: str | None) -> Any:
    import torch

    known = {None: None, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise ValueError(f"--autocast is {name!r}, expected bfloat16 or float16.")
    return known[name]


COMMANDS: tuple[Any, ...] = (probe,)
