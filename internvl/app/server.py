"""The server: one process, one model, one folder for what visitors send."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import shutil
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internvl.app.bounds import Bounds
from internvl.app.engine import Engine
from internvl.app.examples import FOLDER, load_examples
from internvl.app.headers import Headers
from internvl.app.theme import STYLES, theme
from internvl.app.visitors import Visitors

logger = logging.getLogger(__name__)

TITLE = "InternVL"
_TIDY_SECONDS = 30


@dataclass
class Server:
    """A running app.

    Attributes:
        url: where it is.
        blocks: of Gradio.
        visitors: who is there.
    """

    url: str
    blocks: Any
    visitors: Visitors

    def __post_init__(self) -> None:
        self._over = threading.Event()
        threading.Thread(target=self._sweep, daemon=True).start()

    def wait(self) -> None:
        """Until Ctrl-C."""
        try:
            while not self._over.wait(3600):
                pass
        except KeyboardInterrupt:
            pass
        self.close()

    def close(self) -> None:
        """Stop, and remove what visitors sent."""
        self._over.set()
        self.blocks.close(verbose=False)
        self.visitors.close()

    def _sweep(self) -> None:
        while not self._over.wait(_TIDY_SECONDS):
            try:
                self.visitors.tidy()
                self.visitors.uploads.sweep(self.visitors.engine.bounds.idle_seconds)
            except Exception:  # the next round may go well; without any, nothing is ever removed
                logger.exception("tidying up failed")


@functools.cache
def private_folder() -> Path:
    """The folder of this process for uploads: made once, within GRADIO_TEMP_DIR if that is set, and
    removed when the process ends."""
    folder = tempfile.mkdtemp(prefix="internvl-app-", dir=os.environ.get("GRADIO_TEMP_DIR"))
    os.environ["GRADIO_TEMP_DIR"] = folder  # where Gradio looks, at each request
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder).resolve()


def build(engine: Engine) -> tuple[Any, Visitors]:
    """Make the page.

    Args:
        engine: the model.

    Returns:
        A `gr.Blocks` with its queue, and its visitors.

    Raises:
        ImportError: Gradio is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    # Gradio would keep a record of every event, and sum all of them up after each.
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1")
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(10**9))
    folder = private_folder()  # before Gradio is imported, which asks for it
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ImportError("the app needs Gradio: pip install 'internvl[app]'") from error
    from internvl.app import api, layout
    from internvl.app.blocks import Blocks
    from internvl.app.events import Events

    visitors, bounds = Visitors(engine, folder), engine.bounds
    # No `delete_cache`: Gradio knows no owners, and would remove files that are still in use.
    title = f"{TITLE}: {engine.name}"
    with Blocks(title=title, analytics_enabled=False, fill_width=True) as demo:
        page = layout.build(engine, load_examples())
        api.connect(visitors)  # first: the names are given to whoever comes first
        Events(page, visitors).connect(demo)
    visitors.uploads.keep(layout.example_files(page))
    # The engine keeps the line. This one only bounds what waits for a thread.
    demo.queue(max_size=8 * bounds.waiting, default_concurrency_limit=None, api_open=False)
    return demo, visitors


def start(engine: Engine, *, host: str = "127.0.0.1", port: int | None = None) -> Server:
    """Serve a model; returns once the page can be opened.

    Args:
        engine: the model.
        host: address to listen at; "0.0.0.0" for every one of the machine.
        port: where; the first free one from 7860 on when None.

    Raises:
        ImportError: Gradio is not installed.
        OSError: the port is taken.
    """
    demo, visitors = build(engine)
    from starlette.middleware import Middleware

    _, url, _ = demo.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        inline=False,
        inbrowser=False,
        prevent_thread_lock=True,
        max_threads=2 * engine.bounds.waiting + 32,
        max_file_size=engine.bounds.file_bytes,
        state_session_capacity=engine.bounds.visitors,
        allowed_paths=[str(FOLDER)] if FOLDER.is_dir() else [],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        footer_links=["api"],
        theme=theme(),
        css_paths=STYLES,
        app_kwargs={"middleware": [Middleware(Headers)]},
        # Gradio would ask itself for the page, and refuse to start where that takes over 3 s.
        _frontend=False,
    )
    return Server(url, demo, visitors)


def load_engine(source: str | None, bounds: Bounds, **options: Any) -> Engine:
    """Load a checkpoint for the app.

    Args:
        source: folder or Hub id; None for the demo.
        bounds: of the app.
        **options: of `hub.load`.

    Raises:
        ValueError: as `hub.load`, or a vision encoder.
    """
    from internvl import hub

    return Engine(hub.load(source, **options), source, bounds)
