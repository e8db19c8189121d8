"""`internvl app`: the web demo."""

from __future__ import annotations

import logging
import signal
from typing import Annotated

import typer

from internvl import cli_loading
from internvl.app.bounds import GIBI, MEBI, Bounds

_USUAL = Bounds()

Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL", help="Folder or Hub id; the demo if not given.", show_default=False
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
    subfolder: cli_loading.Subfolder = None,
    revision: cli_loading.Revision = None,
    dtype: cli_loading.Dtype = "auto",
    device_map: cli_loading.DeviceMap = "auto",
    attn_implementation: cli_loading.AttnImplementation = None,
    adapter: cli_loading.Adapter = None,
    quantization: cli_loading.Quantization = None,
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
        device_map=cli_loading.device_map_of(device_map),
        attn_implementation=attn_implementation,
        adapter=adapter,
        quantization=quantization,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that uploads go then, too
    server = start(engine, host=host, port=port)
    typer.echo(f"{engine.name} is at {server.url} (Ctrl-C ends it)")
    server.wait()


COMMANDS = (app,)
