"""Options of the commands that load a checkpoint to talk with it, as `hub.load` takes them."""

from __future__ import annotations

from typing import Annotated

import typer

Subfolder = Annotated[
    str | None, typer.Option(help="Folder within the model's folder or repository.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub repository.")]
Dtype = Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")]
DeviceMap = Annotated[
    str,
    typer.Option(help="auto: over all accelerators, the CPU if there is none; or cpu, mps, ..."),
]
AttnImplementation = Annotated[str | None, typer.Option(help="sdpa, eager, flash_attention_2 ...")]
Adapter = Annotated[str | None, typer.Option(help="Folder or Hub id of a PEFT adapter.")]
Quantization = Annotated[
    str | None, typer.Option(help="bnb-int8, bnb-nf4, torchao-int8 or torchao-int4.")
]


def device_map_of(name: str) -> str | None:
    """`auto` spreads a model over accelerators; without one, the CPU takes it whole."""
    import torch

    if name in ("", "cpu") or (name == "auto" and not torch.accelerator.is_available()):
        return None
    return name
