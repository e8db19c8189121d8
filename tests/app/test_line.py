"""The line before the model: in order, not too long, and nobody is lost in it."""

from __future__ import annotations

import contextlib
import threading

import pytest

from internvl.app.line import BusyError, Line


def test_first_come_first_served():
    line = Line(8)
    with contextlib.ExitStack() as first:
        first.enter_context(line.place())
        served: list[int] = []
        joined = threading.Barrier(2)

        def wait(number: int) -> None:
            with line.place() as place:
                joined.wait()
                while place.wait(20):
                    pass
                served.append(number)

        threads = []
        for number in range(5):  # one after the other into the line
            threads.append(threading.Thread(target=wait, args=(number,)))
            threads[-1].start()
            joined.wait()
        first.close()
        for thread in threads:
            thread.join(20)
    assert served == [0, 1, 2, 3, 4]
    assert line.places == []


def test_a_place_knows_who_is_before():
    line = Line(3)
    with line.place() as first, line.place() as second, line.place() as third:
        assert [each.wait(0) for each in (first, second, third)] == [0, 1, 2]
        assert third.wait(0.01) == 2  # nothing moved


def test_who_gives_up_is_stepped_over():
    line = Line(3)
    with line.place(), contextlib.ExitStack() as second, line.place() as third:
        second.enter_context(line.place())  # behind the third
        with contextlib.suppress(ZeroDivisionError), line.place() as fourth:
            assert fourth.wait(0) == 3
            raise ZeroDivisionError
        second.close()
        assert third.wait(0) == 1
        assert len(line.places) == 2


def test_too_many_are_turned_away():
    line = Line(1)
    with line.place(), line.place(), pytest.raises(BusyError, match="busy: 1 question in line"):
        line.place().__enter__()
    with line.place() as place:  # and welcome again
        assert place.wait(0) == 0


def test_patience_ends():
    line = Line(2)
    with line.place():
        with pytest.raises(BusyError, match="busy for longer"), line.turn(0.05):
            pass
        assert len(line.places) == 1
    with line.turn(0.05):
        assert len(line.places) == 1
    assert line.places == []
