"""The line of questions for the one model: first come, first served, and not too long."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from internvl.chat.tiles_picture import plural


class BusyError(RuntimeError):
    """The model, or the dialogue, is at work for another question."""


class Place:
    """Where a question stands.

    Args:
        line: the line.
    """

    def __init__(self, line: Line) -> None:
        self._line = line

    def wait(self, seconds: float) -> int:
        """How many are before, the one who is served included; waits while that does not change.

        Args:
            seconds: longest wait.

        Returns:
            0 when it is the turn of this place.
        """
        line = self._line
        with line.moved:
            before = line.places.index(self)
            if before:
                line.moved.wait_for(lambda: line.places.index(self) != before, seconds)
            return line.places.index(self)


class Line:
    """Those who wait, and the one who is served.

    Args:
        most: how many may wait.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.places: list[Place] = []
        self.moved = threading.Condition()

    @contextlib.contextmanager
    def place(self) -> Iterator[Place]:
        """Stand in line until the block is left, whether served or not.

        Raises:
            BusyError: too many wait.
        """
        place = Place(self)
        with self.moved:
            if len(self.places) > self.most:
                raise BusyError(
                    f"The model is busy: {plural(self.most, 'question')} in line already. Please "
                    "try again in a minute."
                )
            self.places.append(place)
        try:
            yield place
        finally:
            with self.moved:
                self.places.remove(place)
                self.moved.notify_all()

    @contextlib.contextmanager
    def turn(self, patience: float) -> Iterator[None]:
        """Stand in line and be served within the block.

        Args:
            patience: longest wait in seconds.

        Raises:
            BusyError: too many wait, or it takes too long.
        """
        with self.place() as place:
            end = time.monotonic() + patience
            while place.wait(max(0.0, end - time.monotonic())):
                if time.monotonic() >= end:
                    raise BusyError(
                        "The model is busy for longer than usual. Please try again in a minute."
                    )
            yield
