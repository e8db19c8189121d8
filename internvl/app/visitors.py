"""All visitors of a process: kept apart by key, bounded in number, in memory and in time."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from internvl.app.engine import Engine
from internvl.app.line import BusyError
from internvl.app.uploads import Uploads
from internvl.app.visitor import Visitor

logger = logging.getLogger(__name__)

_REMEMBERED = 1000


@dataclass
class _Entry:
    visitor: Visitor
    used: float


class Visitors:
    """Visitors by key, least recently used first; safe to call from several threads.

    A visitor whose answer is under way is never forgotten.

    Args:
        engine: the model they share.
        folder: where their files lie.
        clock: seconds, for `idle_seconds`.
    """

    def __init__(
        self, engine: Engine, folder: Path, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.engine, self.clock = engine, clock
        self.uploads = Uploads(folder, engine.bounds.disk_bytes)
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._forgotten: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def get(self, key: str) -> Visitor:
        """The visitor of a key; a new one for a new key.

        Raises:
            BusyError: all places are taken by visitors who are being answered.
        """
        with self._lock:
            if key not in self._entries:
                self._make_room()
                self._entries[key] = _Entry(Visitor(self.engine), self.clock())
            self._entries.move_to_end(key)
            self._entries[key].used = self.clock()
            return self._entries[key].visitor

    def was_forgotten(self, key: str) -> bool:
        """Whether the visitor of a key was there before and had to go; told once."""
        with self._lock:
            return self._forgotten.pop(key, False) is None

    def claim(self, key: str, files: Iterable[Path]) -> None:
        """Note whose files these are.

        Those of a visitor who left meanwhile are noted for nobody, so that `Uploads.sweep` takes
        them.

        Raises:
            ValueError: as in `Uploads.claim`.
        """
        with self._lock:
            if key in self._entries:
                self.uploads.claim(key, files)

    def remove(self, key: str) -> None:
        """Forget a visitor who left: stop the answer, remove the files.

        A connection that was lost, as that of a laptop that sleeps, looks the same; who comes back
        is told.
        """
        with self._lock:
            entry = self._entries.pop(key, None)
            if entry is not None:
                entry.visitor.stop()
                if entry.visitor.exchanges:
                    self._note(key)
            self.uploads.release(key)

    def tidy(self) -> None:
        """Forget who was away for too long, and keep the memory of the others within bounds.

        The least recently used give back what can be computed again first; if that is not enough,
        they are forgotten.
        """
        bounds = self.engine.bounds
        with self._lock:
            idle = self.clock() - bounds.idle_seconds
            for key in [k for k, entry in self._entries.items() if entry.used < idle]:
                self._forget(key, "not used for long")
            total = sum(entry.visitor.nbytes for entry in self._entries.values())
            for release in (True, False):
                for key in list(self._entries):
                    if total <= bounds.memory_bytes:
                        return
                    visitor = self._entries[key].visitor
                    if visitor.busy:
                        continue
                    before = visitor.nbytes
                    if release:
                        visitor.release()
                        total -= before - visitor.nbytes
                    elif self._forget(key, "no memory left"):
                        total -= before

    def close(self) -> None:
        """Forget everybody."""
        for key in list(self._entries):
            self.remove(key)

    def _make_room(self) -> None:
        while len(self._entries) >= self.engine.bounds.visitors:
            if not any(self._forget(key, "too many visitors") for key in list(self._entries)):
                raise BusyError(
                    "There are too many visitors right now. Please try again in a few minutes."
                )

    def _forget(self, key: str, reason: str) -> bool:
        if self._entries[key].visitor.busy:
            return False
        logger.info("a dialogue was forgotten: %s", reason)
        del self._entries[key]
        self.uploads.release(key)
        self._note(key)
        return True

    def _note(self, key: str) -> None:
        self._forgotten[key] = None
        while len(self._forgotten) > _REMEMBERED:
            self._forgotten.popitem(last=False)
