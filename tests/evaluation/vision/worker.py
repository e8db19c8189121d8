"""`internvl eval vision probe` as a module, for torchrun; STOP_AT ends it at that step."""

from __future__ import annotations

import os

import typer

from internvl.evaluation.vision.commands import probe
from internvl.evaluation.vision.training import Trainer

_update = Trainer._update


def _stopping(trainer: Trainer, *arguments: object) -> None:
    if trainer.step == int(os.environ["STOP_AT"]):
        raise SystemExit(3)
    _update(trainer, *arguments)


if __name__ == "__main__":
    if "STOP_AT" in os.environ:
        Trainer._update = _stopping
    app = typer.Typer()
    app.command()(probe)
    app()
