"""`internvl app`: the web demo."""

from __future__ import annotations

import logging
import signal
from typing import Annotated

import typer

from internvl.app.bounds import GIBI, MEBI, Bounds

_USUAL = Bounds()

Model = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]", help="Folder or Hub id; the demo if not given.", show_default=False
    ),
]


def app(
    model: Model = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 for the whole network.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="The first free one from 7860 on if not given."),
    ] = None,
    subfolder: Annotated[
        str | None, typer.Option(help="Folder within the model's folder or repository.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a Hub repository.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")] = "auto",
    device_map: Annotated[
        str,
        typer.Option(
            help="auto: over all accelerators, the CPU if there is none; or cpu, mps, ..."
        ),
    ] = "auto",
    attn_implementation: Annotated[
        str | None, typer.Option(help="sdpa, eager, flash_attention_2 ...")
    ] = None,
    adapter: Annotated[str | None, typer.Option(help="Folder or Hub id of a PEFT adapter.")] = None,
    quantization: Annotated[
        str | None, typer.Option(help="bnb-int8, bnb-nf4, torchao-int8 or torchao-int4.")
    ] = None,
    max_upload: Annotated[
        float, typer.Option(min=0.1, help="Largest file, in MB.")
    ] = _USUAL.file_bytes / MEBI,
    queue: Annotated[
        int, typer.Option(min=1, help="Questions that may wait for the model.")
    ] = _USUAL.waiting,
    visitors: Annotated[
        int, typer.Option(min=1, help="Dialogues that are kept at a time.")
    ] = _USUAL.visitors,
    memory: Annotated[
        float, typer.Option(min=0.1, help="GiB for the dialogues of all visitors.")
    ] = _USUAL.memory_bytes / GIBI,
    idle: Annotated[
        float, typer.Option(min=1, help="Minutes after which an unused dialogue is forgotten.")
    ] = _USUAL.idle_seconds / 60,
) -> None:
    """Open a chat in the browser, on the demo or on any checkpoint; Ctrl-C ends it."""
    from internvl.app.server import load_engine, start

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    bounds = Bounds(
        file_bytes=int(max_upload * MEBI),
        waiting=queue,
        visitors=visitors,
        memory_bytes=int(memory * GIBI),
        idle_seconds=idle * 60,
    )
    engine = load_engine(
        model,
        bounds,
        subfolder=subfolder,
        revision=revision,
        dtype=dtype,
        device_map=_device_map(device_map),
        attn_implementation=attn_implementation,
        adapter=adapter,
        quantization=quantization,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that uploads go then, too
    server = start(engine, host=host, port=port)
    typer.echo(f"{engine.name} is at {server.url} (Ctrl-C ends it)")
    server.wait()


def _device_map(name: str) -> str | None:
    """`auto` spreads a model over accelerators; without one, the CPU takes it whole."""
    import torch

    if name in ("", "cpu") or (name == "auto" and not torch.accelerator.is_available()):
        return None
    return name


COMMANDS = (app,)
