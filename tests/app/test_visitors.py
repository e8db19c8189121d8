"""Visitors apart from each other, and all of them within bounds."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from internvl.app.bounds import MEBI, Bounds
from internvl.app.engine import Engine
from internvl.app.line import BusyError
from internvl.app.options import Options
from internvl.app.uploads import Uploads
from internvl.app.visitors import Visitors
from tests.app.conftest import EXAMPLES, babble

SHORT = Options(max_new_tokens=4)


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def place(loaded, folder: Path, clock: Clock, **bounds) -> Visitors:
    return Visitors(Engine(loaded, None, Bounds(**bounds)), folder, clock)


def talk(visitors: Visitors, key: str, question: str, name: str) -> str:
    *_, exchange = visitors.get(key).ask(question, [EXAMPLES / name], SHORT)
    return exchange.answer


def upload(folder: Path, name: str) -> Path:
    """A file as Gradio stores it: in a folder named after its content."""
    file = folder / name.split(".")[0] / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes((EXAMPLES / name).read_bytes())
    return file


# ---------------------------------------------------------------------- apart
def test_dialogues_never_mix(loaded, tmp_path, clock):
    visitors = place(loaded, tmp_path, clock)
    assert talk(visitors, "anna", "What color is the object?", "circle.png") == "red"
    assert talk(visitors, "ben", "What color is the object?", "star.jpg") == "yellow"
    anna, ben = visitors.get("anna"), visitors.get("ben")
    assert [media.label for media in anna.media()] == ["circle.png"]
    assert [media.label for media in ben.media()] == ["star.jpg"]
    assert anna.session.features is not ben.session.features
    *_, exchange = anna.ask("What shape is it?", [], SHORT)
    assert exchange.answer == "circle"
    *_, exchange = ben.ask("What shape is it?", [], SHORT)
    assert exchange.answer == "star"


def test_answers_of_two_visitors_take_turns(loaded, tmp_path, clock):
    visitors = place(loaded, tmp_path, clock)
    anna, ben = visitors.get("anna"), visitors.get("ben")
    with babble(visitors.engine):
        first = anna.ask("Talk.", [], Options(max_new_tokens=50))
        for exchange in first:
            if exchange.answer:
                break
        second = ben.ask("Talk.", [], SHORT)
        assert [next(second).before, next(second).before] == [0, 1]
        said = len(exchange.answer)
        next(first)
        assert (ben.exchanges[0].answer, len(anna.exchanges[0].answer) > said) == ("", True)
        list(first)
        *_, exchange = second
        assert (exchange.state, exchange.before) == ("done", 0)
    assert [len(v.exchanges[0].reply.ids) for v in (anna, ben)] == [50, 4]


def test_who_waits_can_stop_and_a_full_line_changes_nothing(loaded, tmp_path, clock):
    visitors = place(loaded, tmp_path, clock, waiting=1)
    talk(visitors, "ben", "What color is the object?", "star.jpg")
    ben, carl = visitors.get("ben"), visitors.get("carl")
    with visitors.engine.turn():
        waiting = ben.retry(0, SHORT)
        next(waiting)
        with pytest.raises(BusyError, match="busy: 1 question in line"):
            list(carl.ask("And?", [], SHORT))
        assert (carl.exchanges, carl.busy) == ([], False)
        ben.stop()
        *_, exchange = waiting
        assert exchange.finish == "stopped"
    assert [each.answer for each in ben.exchanges] == ["yellow"]  # what was there before


# ---------------------------------------------------------------------- bounds
def test_the_least_recent_visitor_makes_room(loaded, tmp_path, clock):
    visitors = place(loaded, tmp_path, clock, visitors=2)
    anna = visitors.get("anna")
    visitors.get("ben")
    assert visitors.get("anna") is anna
    visitors.get("carl")
    assert ("anna" in visitors, "ben" in visitors, len(visitors)) == (True, False, 2)
    assert visitors.was_forgotten("ben")
    assert not visitors.was_forgotten("ben")  # told once
    assert not visitors.was_forgotten("anna")


def test_who_is_being_answered_is_never_forgotten(loaded, tmp_path, clock):
    visitors = place(loaded, tmp_path, clock, visitors=1, idle_seconds=10, memory_bytes=1)
    answer = visitors.get("anna").ask("What is it?", [EXAMPLES / "six.jpg"], SHORT)
    next(answer)
    clock.now = 100
    visitors.tidy()
    assert "anna" in visitors
    with pytest.raises(BusyError, match="too many visitors"):
        visitors.get("ben")
    *_, exchange = answer
    assert exchange.state == "done"
    visitors.get("ben")
    assert "anna" not in visitors


def test_who_is_away_is_forgotten(loaded, tmp_path, clock):
    visitors = place(loaded, tmp_path, clock, idle_seconds=60)
    file = upload(tmp_path, "circle.png")
    visitors.get("anna")
    visitors.claim("anna", [file])
    clock.now = 59
    visitors.get("ben")
    visitors.tidy()
    assert "anna" in visitors
    clock.now = 70
    visitors.tidy()
    assert ("anna" in visitors, "ben" in visitors, file.exists()) == (False, True, False)


def test_memory_is_given_back_before_dialogues_are(loaded, tmp_path, clock):
    visitors = place(loaded, tmp_path, clock)
    for key in ("anna", "ben"):
        talk(visitors, key, "What color is the object?", "circle.png")
    anna, ben = visitors.get("anna"), visitors.get("ben")
    full, held = anna.nbytes, anna.session.memory()
    caches = held["kv_bytes"] + held["feature_bytes"]
    assert caches > 0
    small = Visitors(Engine(loaded, None, Bounds(memory_bytes=2 * full - 1)), tmp_path, clock)
    small._entries = visitors._entries
    visitors.get("ben")  # so that anna is the least recent
    small.tidy()
    assert anna.session.memory()["kv_bytes"] == 0
    assert ben.session.memory()["kv_bytes"] > 0
    assert len(small) == 2
    *_, exchange = anna.ask("What shape is it?", [], SHORT)  # computed again
    assert exchange.answer == "circle"
    tiny = Visitors(Engine(loaded, None, Bounds(memory_bytes=ben.nbytes + 1)), tmp_path, clock)
    tiny._entries = visitors._entries
    small.get("ben")
    tiny.tidy()
    assert ("anna" in tiny, "ben" in tiny) == (False, True)


def test_keys_and_values_of_one_dialogue_are_bounded(loaded, tmp_path, clock):
    visitors = place(loaded, tmp_path, clock, memory_bytes=64 * MEBI)
    session = visitors.get("anna").session
    assert session.max_kv_bytes + session.features.max_bytes < 64 * MEBI


# ---------------------------------------------------------------------- files
def test_files_go_with_their_last_owner(tmp_path):
    uploads = Uploads(tmp_path)
    shared, own = upload(tmp_path, "circle.png"), upload(tmp_path, "star.jpg")
    uploads.claim("anna", [shared, own])
    uploads.claim("ben", [shared])  # the same picture, sent by two
    uploads.release("anna")
    assert (shared.exists(), own.exists(), own.parent.exists()) == (True, False, False)
    uploads.release("ben")
    assert not shared.exists()
    assert uploads.owned("ben") == []


def test_files_elsewhere_and_those_of_the_page_stay(tmp_path):
    folder = tmp_path / "uploads"
    uploads = Uploads(folder)
    example, outside = upload(folder, "six.jpg"), upload(tmp_path, "circle.png")
    uploads.keep([example])
    uploads.claim("anna", [example, outside, folder / ".." / "circle" / "circle.png"])
    assert uploads.owned("anna") == []
    uploads.release("anna")
    uploads.sweep(0)
    assert example.exists()
    assert outside.exists()


def test_files_for_who_left_belong_to_nobody(loaded, tmp_path, clock):
    visitors = place(loaded, tmp_path, clock)
    answer = visitors.get("anna").ask("What is it?", [EXAMPLES / "six.jpg"], SHORT)
    next(answer)
    visitors.remove("anna")
    list(answer)  # it ends, and its picture is made
    picture = upload(tmp_path, "circle.png")
    visitors.claim("anna", [picture])
    assert visitors.uploads.owned("anna") == []
    visitors.uploads.sweep(-1)
    assert not picture.exists()


def test_who_lost_the_connection_is_told(loaded, tmp_path, clock):
    visitors = place(loaded, tmp_path, clock)
    talk(visitors, "anna", "What color is the object?", "circle.png")
    visitors.get("ben")
    for key in ("anna", "ben", "carl"):
        visitors.remove(key)
    told = [visitors.was_forgotten(key) for key in ("anna", "ben", "carl")]
    assert told == [True, False, False]  # the others had said nothing


def test_the_files_of_one_owner_are_bounded(tmp_path):
    small, large = upload(tmp_path, "circle.png"), upload(tmp_path, "six.jpg")
    uploads = Uploads(tmp_path, small.stat().st_size + large.stat().st_size - 1)
    uploads.claim("anna", [small])
    uploads.claim("anna", [small])  # counted once
    with pytest.raises(ValueError, match=r"The files of this chat take .* Please start a new chat"):
        uploads.claim("anna", [large])
    assert uploads.owned("anna") == [small]
    uploads.claim("ben", [large])
    uploads.release("anna")
    uploads.claim("anna", [large])


def test_some_files_can_be_released(tmp_path):
    uploads = Uploads(tmp_path)
    first, second = upload(tmp_path, "circle.png"), upload(tmp_path, "star.jpg")
    uploads.claim("anna", [first, second])
    uploads.release("anna", [first])
    assert (first.exists(), second.exists()) == (False, True)
    uploads.release("ben", [second])  # not his
    assert second.exists()


def test_old_files_without_an_owner_are_swept(tmp_path):
    uploads = Uploads(tmp_path)
    old, new, owned = (upload(tmp_path, name) for name in ("circle.png", "star.jpg", "six.jpg"))
    uploads.claim("anna", [owned])
    for file in (old, owned):
        os.utime(file, (time.time() - 100,) * 2)
    uploads.sweep(60)
    assert (old.exists(), new.exists(), owned.exists()) == (False, True, True)


@pytest.mark.parametrize("name", ["pixels", "visitors", "memory_bytes", "idle_seconds"])
def test_bounds_refuse_nonsense(name):
    with pytest.raises(ValueError, match=f"{name} is 0; expected 1 or more"):
        Bounds(**{name: 0})


def test_a_vision_encoder_cannot_chat(loaded):
    with pytest.raises(ValueError, match="vision encoder, which cannot chat"):
        Engine(type(loaded)(loaded.model, loaded.processor, None), "OpenGVLab/InternViT")
