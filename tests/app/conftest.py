"""What the tests of the app share: the demo behind it, a server, a model that talks on and on."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from internvl import hub
from internvl.app.bounds import MEBI, Bounds
from internvl.app.engine import Engine
from tests import support

EXAMPLES = support.ROOT / "examples"
BOX = (
    "Please provide the bounding box coordinate of the region this sentence describes: "
    "<ref>purple cross</ref>"
)
SMALL = Bounds(file_bytes=MEBI, waiting=2, patience_seconds=20)


@pytest.fixture(scope="session")
def loaded() -> hub.Loaded:
    """The demo in float32."""
    return hub.load(dtype="float32")


@pytest.fixture
def engine(loaded: hub.Loaded) -> Engine:
    """The demo for visitors, without a server."""
    return Engine(loaded, None, SMALL)


class Babble:
    """Makes a model say words without end, and never the same ones in a row.

    Args:
        model: the chat model.
        step: set for each token; None for as fast as it goes.
    """

    def __init__(self, model: Any, tokenizer: Any, step: threading.Semaphore | None) -> None:
        vocabulary = tokenizer.get_vocab()
        self.ids = sorted(i for token, i in vocabulary.items() if token[1:].isalpha() and i > 300)
        self.random, self.step, self.said = random.Random(0), step, 0
        self.started = threading.Event()
        self.handle = model.language_model.register_forward_hook(self)

    def __call__(self, module: Any, args: Any, output: Any) -> None:
        """Make one word the likeliest."""
        if self.step is not None:
            self.step.acquire(timeout=20)
        output.logits[:, -1] = -1e4
        for row in output.logits:
            row[-1, self.random.choice(self.ids)] = 1e4
        self.said += 1
        self.started.set()


@contextlib.contextmanager
def babble(engine: Engine, step: threading.Semaphore | None = None) -> Iterator[Babble]:
    """A model that answers without end, until the block is left."""
    talker = Babble(engine.model, engine.loaded.tokenizer, step)
    try:
        yield talker
    finally:
        talker.handle.remove()
        if step is not None:  # let go of whoever still waits
            step.release(10_000)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Files that cannot be used, each in its way."""
    contents = {
        "broken.png": b"\x89PNG\r\n\x1a\n nothing follows",
        "empty.jpg": b"",
        "text.pdf": b"%PDF-1.4 not an image",
        "list.mp4": b"#EXTM3U\nfile:///etc/hostname\n",
        "large.png": b"0" * (SMALL.file_bytes + 1),
        "cut.jpg": (EXAMPLES / "six.jpg").read_bytes()[:9000],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return {name: tmp_path / name for name in contents}


@pytest.fixture(scope="module")
def server(loaded: hub.Loaded) -> Iterator[Any]:
    """A running app with small bounds, for the tests of a file."""
    pytest.importorskip("gradio", reason="the app needs Gradio: pip install 'internvl[app]'")
    from internvl.app.server import start

    with pytest.MonkeyPatch.context() as patch:
        # Who left is noticed at the next beat of Gradio's heart.
        patch.setenv("GRADIO_HEARTBEAT_INTERVAL", "0.3")
        running = start(Engine(loaded, None, SMALL))
        yield running
        running.close()
