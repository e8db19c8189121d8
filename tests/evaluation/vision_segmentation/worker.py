"""One process of a run of two: `torchrun worker.py DATA OUT MODE`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from safetensors.torch import save_file

from internvl.evaluation.vision.processes import find_processes
from internvl.evaluation.vision.segmentation import run, state
from internvl.evaluation.vision.segmentation.layouts import find
from internvl.evaluation.vision.segmentation.settings import Settings
from tests.evaluation.vision_segmentation.small import make_encoder


def settings_of(mode: str) -> Settings:
    """Four steps of eight crops; a process has two of them per part."""
    return Settings(
        mode=mode, crop=56, iterations=4, batch=8, accumulation=2, lr=1e-2, channels=8, warmup=1
    )


def main(root: str, out: str, mode: str) -> None:
    """Train, evaluate, and leave the weights of this process."""
    logging.basicConfig(level=logging.INFO)
    processes = find_processes("cpu")
    encoder = make_encoder(freeze=mode != "full")
    data, test = (find("folders", root, split) for split in ("train", "val"))
    kept = []
    new = run.new_segmenter
    run.new_segmenter = lambda *args: kept.append(new(*args)) or kept[-1]
    run.segment(encoder, data, test, settings_of(mode), Path(out, "run"), processes=processes)
    weights = {
        name: value.contiguous()
        for name, value in state.own_weights(kept[0].model, frozen=encoder.frozen).items()
        if "running" not in name and "tracked" not in name
    }
    save_file(weights, Path(out, f"{processes.rank}.safetensors"))


if __name__ == "__main__":
    main(*sys.argv[1:])
