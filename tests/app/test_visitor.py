"""One visitor's dialogue: what the session says, whole steps only, and nothing lost on the way."""

from __future__ import annotations

import itertools
import threading
import time

import pytest
import torch
from PIL import Image

from internvl.answers import COT_OPEN
from internvl.app import visitor as module
from internvl.app.bounds import Bounds
from internvl.app.engine import Engine
from internvl.app.line import BusyError
from internvl.app.options import Options
from internvl.app.visitor import Visitor
from internvl.chat.session import ChatSession
from tests.app.conftest import BOX, EXAMPLES, babble

SHORT = Options(max_new_tokens=40)


@pytest.fixture
def visitor(engine: Engine) -> Visitor:
    return Visitor(engine)


def ask(visitor: Visitor, question: str, *names: str, options: Options = SHORT) -> str:
    """Ask to the end; the answer."""
    return last(visitor.ask(question, [EXAMPLES / name for name in names], options)).answer


def last(exchanges):
    """The final state of an exchange."""
    *_, final = exchanges
    return final


def said(visitor: Visitor) -> list[tuple[str, str]]:
    """The dialogue, once as the visitor sees it and once as the session has it."""
    shown = [(each.question, each.answer) for each in visitor.exchanges]
    assert [answer for _, answer in shown] == [turn.answer for turn in visitor.session.turns]
    return shown


# ---------------------------------------------------------------------- answers
def test_answers_are_those_of_a_session(visitor, loaded):
    session = ChatSession(loaded.model, loaded.processor, keep_grounding=True)
    script = [
        ("What color is the circle?", ["circle.png"], []),
        (BOX, ["six.jpg"], []),
        ("And now?", ["left.png", "right.jpg"], ["moving.mp4"]),
    ]
    for question, images, videos in script:
        expected = session.ask(
            question,
            [EXAMPLES / name for name in images],
            [EXAMPLES / name for name in videos],
            max_new_tokens=40,
        )
        assert ask(visitor, question, *videos, *images) == expected  # in any order of files
    assert [turn.answer for turn in visitor.session.turns] == [t.answer for t in session.turns]


def test_an_answer_grows(visitor):
    states = []
    for exchange in visitor.ask(BOX, [EXAMPLES / "six.jpg"], SHORT):
        states.append((exchange.state, exchange.answer))
    assert [state for state, _ in states[:2]] == ["waiting", "writing"]
    texts = [text for _, text in states]
    assert all(after.startswith(before) for before, after in itertools.pairwise(texts))
    assert len(set(texts)) > 5
    assert states[-1][0] == "done"


def test_a_second_image_in_the_second_turn(visitor):
    assert ask(visitor, "What color is the object?", "circle.png") == "red"
    assert ask(visitor, "What color is this one?", "star.jpg") == "yellow"
    assert [media.label for media in visitor.media()] == ["circle.png", "star.jpg"]
    assert visitor.exchanges[-1].reply.encoded_tiles == 1


def test_boxes_belong_to_the_latest_image_or_the_one_that_is_named(visitor):
    ask(visitor, BOX, "six.jpg")
    exchange = visitor.exchanges[-1]
    assert [box.label for box in exchange.boxes] == ["purple cross"]
    assert exchange.boxed.label == "six.jpg"
    assert all(0 <= value <= 600 for value in exchange.boxes[0].xyxy)
    ask(visitor, f"Image-1: {BOX}", "circle.png")
    assert visitor.exchanges[-1].boxes
    assert visitor.exchanges[-1].boxed.label == "six.jpg"
    ask(visitor, BOX)
    assert visitor.exchanges[-1].boxed.label == "circle.png"


def test_votes_keep_the_answer_of_the_majority(visitor):
    exchange = last(
        visitor.ask("What color is it?", [EXAMPLES / "circle.png"], Options(votes=4, seed=3))
    )
    assert (exchange.answer, exchange.finish) == ("red", "vote")
    assert len(exchange.voted.texts) == 4
    assert said(visitor) == [("What color is it?", "red")]
    assert [word.text for word in visitor.words()] == ["red"]


def test_the_seed_decides_what_is_sampled(visitor):
    def sampled(seed):
        options = Options(sample=True, temperature=3, top_p=1, seed=seed, max_new_tokens=8)
        answer = ask(visitor, "Describe it.", "six.jpg", options=options)
        visitor.clear()
        return answer

    assert sampled(1) == sampled(1)
    assert len({sampled(seed) for seed in range(4)}) > 1


def test_reasoning_is_asked_for_with_the_prompt_of_the_report(visitor):
    ask(visitor, "How many objects?", "six.jpg", options=Options(cot=True, max_new_tokens=8))
    assert visitor.exchanges[0].question == "How many objects?"
    assert visitor.session.turns[0].question == f"How many objects?\n{COT_OPEN}"


def test_the_system_prompt_is_that_of_the_question(visitor):
    own = visitor.engine.system_message
    ask(visitor, "Is 2 a number?", options=Options(system_prompt="Be brief.", max_new_tokens=4))
    assert visitor.session.system_message == "Be brief."
    ask(visitor, "Is 3 a number?", options=Options(system_prompt="  ", max_new_tokens=4))
    assert visitor.session.system_message == own


def test_the_system_prompt_of_what_failed_or_went_is_not_kept(visitor):
    brief, rude = (
        Options(system_prompt=f"Be {how}.", max_new_tokens=40) for how in ("brief", "rude")
    )
    ask(visitor, BOX, "six.jpg", options=brief)
    expected = visitor.attention(0)
    with pytest.raises(ValueError, match="of the model's context"):
        ask(visitor, "1 " * 4200, options=rude)
    assert visitor.session.system_message == "Be brief."
    exchanges = visitor.ask("And now?", [], rude)
    next(exchanges)
    visitor.stop()
    list(exchanges)
    assert visitor.session.system_message == "Be brief."
    ask(visitor, "And now?", options=rude)
    visitor.undo()
    seen = visitor.attention(0)
    assert seen is not expected  # computed again, under the prompt of its answer
    assert torch.equal(seen.weights, expected.weights)


# ---------------------------------------------------------------------- stopping
def test_a_stopped_answer_keeps_what_was_said(visitor):
    step = threading.Semaphore(6)
    with babble(visitor.engine, step):
        exchanges = visitor.ask("Talk.", [EXAMPLES / "circle.png"], Options(max_new_tokens=500))
        for exchange in exchanges:
            if len(exchange.answer.split()) >= 2:
                visitor.stop()
                step.release(500)
    assert exchange.state == "done"
    assert exchange.finish == "stopped"
    assert 0 < len(exchange.answer.split()) < 20
    assert said(visitor) == [("Talk.", exchange.answer)]
    assert ask(visitor, "What color is the circle?") == "red"  # and goes on from there


def test_stopped_before_a_word_leaves_nothing(visitor):
    ask(visitor, "What color is the circle?", "circle.png")
    for options in (SHORT, Options(votes=3, max_new_tokens=8)):
        exchanges = visitor.ask("What shape is it?", [], options)
        next(exchanges)
        visitor.stop()
        exchange = last(exchanges)
        assert (exchange.state != "done", exchange.finish) == (True, "stopped")
        assert [question for question, _ in said(visitor)] == ["What color is the circle?"]


def test_a_closed_generator_leaves_a_whole_dialogue(visitor):
    step = threading.Semaphore(8)
    with babble(visitor.engine, step):
        exchanges = visitor.ask("Talk.", [], Options(max_new_tokens=500))
        for exchange in exchanges:
            if exchange.answer:
                break
        step.release(500)
        exchanges.close()
    assert not visitor.busy
    assert len(said(visitor)) == 1
    exchanges = visitor.ask("Again.", [], SHORT)
    next(exchanges)
    exchanges.close()  # before anything was said
    assert len(said(visitor)) == 1
    with visitor.engine.turn():  # the model is free
        pass


def test_a_stop_while_files_are_read_counts(visitor, monkeypatch):
    original = module.read_image

    def read(*arguments):
        visitor.stop()
        return original(*arguments)

    monkeypatch.setattr(module, "read_image", read)
    exchange = last(visitor.ask("What color is it?", [EXAMPLES / "circle.png"], SHORT))
    assert (exchange.finish, exchange.answer, visitor.exchanges) == ("stopped", "", [])


def test_a_stop_in_the_line_leaves_the_tokenizer_to_whoever_has_the_model(visitor, monkeypatch):
    ask(visitor, "What color is the circle?", "circle.png")
    before = said(visitor)
    exchanges = visitor.retry(0, SHORT)
    with visitor.engine.turn():  # somebody else has the model
        next(exchanges)
        visitor.stop()
        with monkeypatch.context() as patch:
            patch.setattr(visitor.session, "answer_with", _fail)
            assert last(exchanges).finish == "stopped"
    assert said(visitor) == before


# ---------------------------------------------------------------------- asking again
def test_retry_edit_and_undo(visitor):
    ask(visitor, "What color is the circle?", "circle.png")
    ask(visitor, "What shape is it?")
    ask(visitor, "Where is the circle?")
    last(visitor.retry(1, SHORT))
    assert said(visitor) == [("What color is the circle?", "red"), ("What shape is it?", "circle")]
    last(visitor.edit(0, "What shape is it?", SHORT))
    assert said(visitor) == [("What shape is it?", "circle")]
    assert [file.name for file in visitor.exchanges[0].files] == ["circle.png"]
    gone = visitor.undo()
    assert (gone.question, [file.name for file in gone.files]) == (
        "What shape is it?",
        ["circle.png"],
    )
    assert said(visitor) == []
    assert visitor.undo() is None
    with pytest.raises(IndexError, match="the chat has 0"):
        visitor.retry(0, SHORT)


def test_what_fails_leaves_the_dialogue_as_it_was(visitor):
    ask(visitor, "What color is the circle?", "circle.png")
    ask(visitor, "What shape is it?", options=Options(max_tiles=2, max_new_tokens=40))
    before, limits = said(visitor), visitor.session.limits
    too_much = "1 " * 4200
    with pytest.raises(ValueError, match="more than the 4096 of the model's context"):
        last(visitor.ask(too_much, [], Options(max_tiles=1)))
    with pytest.raises(ValueError, match="of the model's context"):
        last(visitor.edit(0, too_much, SHORT))
    handle = visitor.engine.model.language_model.register_forward_hook(_fail)
    with pytest.raises(ZeroDivisionError):
        last(visitor.retry(0, SHORT))
    handle.remove()
    assert said(visitor) == before
    assert visitor.session.limits == limits
    assert ask(visitor, "Where is the circle?") == "center"


def _fail(*_):
    raise ZeroDivisionError


def test_clear_ends_an_answer_and_forgets(visitor):
    step = threading.Semaphore(6)
    with babble(visitor.engine, step) as talker:
        exchanges = visitor.ask("Talk.", [EXAMPLES / "circle.png"], Options(max_new_tokens=900))
        thread = threading.Thread(target=lambda: list(exchanges))
        thread.start()
        assert talker.started.wait(20)
        with pytest.raises(BusyError, match="still answering"):
            last(visitor.ask("And?", [], SHORT))
        with pytest.raises(BusyError, match="still answering"):
            visitor.undo()
        threading.Timer(0.2, step.release, [900]).start()
        visitor.clear()
        thread.join(20)
    assert not thread.is_alive()
    assert (visitor.exchanges, visitor.session.turns, visitor.nbytes) == ([], (), 0)


# ---------------------------------------------------------------------- tiles and costs
def test_another_tile_limit_cuts_all_images_again(visitor, tmp_path):
    wide = tmp_path / "wide.png"
    Image.open(EXAMPLES / "six.jpg").resize((900, 300)).save(wide)
    last(visitor.ask("How many?", [wide], Options(max_tiles=3, max_new_tokens=4)))
    assert visitor.media()[0].num_tiles == [4]
    wide.unlink()  # what was read is kept
    last(visitor.ask("Sure?", [], Options(max_tiles=1, max_new_tokens=4)))
    assert visitor.media()[0].num_tiles == [1]
    last(visitor.retry(0, Options(max_tiles=2, max_new_tokens=4)))
    assert visitor.media()[0].num_tiles == [3]


def test_the_cost_is_told_without_the_model(visitor, loaded):
    ask(visitor, "What color is the circle?", "circle.png")
    session = ChatSession(loaded.model, loaded.processor, keep_grounding=True)
    session.ask("What color is the circle?", EXAMPLES / "circle.png", max_new_tokens=40)
    expected = session.account("And this?", EXAMPLES / "six.jpg", max_new_tokens=40)
    with visitor.engine.turn():  # somebody else has it
        assert visitor.account("And this?", [EXAMPLES / "six.jpg"], SHORT) == expected
    assert len(visitor.exchanges) == 1


def test_a_file_is_read_once_and_kept_while_it_is_needed(visitor, monkeypatch):
    read = []
    original = module.read_image
    monkeypatch.setattr(module, "read_image", lambda *a: read.append(a[1].name) or original(*a))
    circle, star = EXAMPLES / "circle.png", EXAMPLES / "star.jpg"
    visitor.read([circle], SHORT)
    visitor.read([circle, star], SHORT)
    last(visitor.ask("What color is it?", [circle], SHORT))  # the star was taken away again
    visitor.account("And?", [circle], SHORT)
    assert read == ["circle.png", "star.jpg"]
    visitor.read([star], SHORT)
    assert read[2:] == ["star.jpg"]


def test_a_file_that_is_there_twice_is_two_images(visitor, loaded):
    session = ChatSession(loaded.model, loaded.processor, keep_grounding=True)
    expected = session.ask("How many?", [EXAMPLES / "circle.png"] * 2, max_new_tokens=40)
    assert visitor.account("How many?", [EXAMPLES / "circle.png"] * 2, SHORT).visual_tokens == 32
    assert ask(visitor, "How many?", "circle.png", "circle.png") == expected
    assert visitor.exchanges[0].reply.prompt_tokens == session.last.prompt_tokens
    assert [media.label for media in visitor.media()] == ["circle.png", "circle.png"]


def test_only_some_files_are_decoded_at_a_time(loaded, monkeypatch):
    engine = Engine(loaded, None, Bounds(decoding=2))
    original, running, most = module.read_image, [], []

    def read(*arguments):
        running.append(1)
        most.append(len(running))
        time.sleep(0.05)
        running.pop()
        return original(*arguments)

    monkeypatch.setattr(module, "read_image", read)
    threads = [
        threading.Thread(target=Visitor(engine).read, args=([EXAMPLES / "circle.png"], SHORT))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert (len(most), max(most)) == (6, 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken.png", "broken.png is not a readable image"),
        ("cut.jpg", "cut.jpg cannot be read: 'cut.jpg' is not a readable image: .*truncated"),
        ("empty.jpg", "empty.jpg is empty"),
        ("text.pdf", "text.pdf is not a readable image: expected PNG"),
        ("list.mp4", "list.mp4 is not a readable video: expected MP4"),
        ("large.png", "large.png has 1.0 MB; files may have up to 1 MB"),
        ("missing.png", "missing.png is no longer here"),
    ],
)
def test_files_that_cannot_be_used(visitor, files, tmp_path, name, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
        last(visitor.ask("What is it?", [tmp_path / name], SHORT))
    assert str(tmp_path) not in str(raised.value)  # nobody learns where files lie
    assert visitor.exchanges == []


def test_pictures_with_too_many_pixels_and_too_many_files(loaded):
    small = Visitor(Engine(loaded, None, Bounds(pixels=100_000, files=2, media_bytes=2_000_000)))
    with pytest.raises(ValueError, match=r"0 megapixels; images may have up to 0\.1"):
        ask(small, "What is it?", "six.jpg")
    with pytest.raises(ValueError, match="3 files with one question; up to 2"):
        ask(small, "What is it?", "circle.png", "star.jpg", "three.png")
    tight = Visitor(Engine(loaded, None, Bounds(media_bytes=1_000_000)))
    ask(tight, "What is it?", "circle.png")
    with pytest.raises(ValueError, match="take 2 MB of memory; up to 1 are possible"):
        ask(tight, "What is it?", "six.jpg")


@pytest.mark.parametrize(
    ("question", "message"),
    [(" \n", "type a question"), ("x" * 20_001, "has 20001 characters; it may have up to 20000")],
)
def test_questions_that_cannot_be_asked(visitor, question, message):
    with pytest.raises(ValueError, match=message):
        ask(visitor, question)


# ---------------------------------------------------------------------- attention
def test_words_and_their_attention(visitor):
    assert visitor.words() == []
    ask(visitor, "Is 2 a number?")
    assert visitor.words() == []  # no image, nothing to look at
    ask(visitor, BOX, "six.jpg")
    assert [word.text for word in visitor.words()[:2]] == ["purple", "cross"]
    seen = visitor.attention(0)
    without = visitor.nbytes - seen.weights.nbytes
    assert visitor.attention(0) is seen
    assert visitor.attention(1) is not seen
    visitor._seen = None
    assert visitor.nbytes == without  # the weights are counted
    cells = seen.maps()[0][0].of()
    row, col = divmod(int(cells.argmax()), cells.shape[1])
    assert row < 4  # the cross is in the upper left quarter
    assert col < 4
    with pytest.raises(IndexError, match="has no word 99"):
        visitor.attention(99)
    visitor.release()
    assert visitor.attention(0).on_tiles()[0].allclose(seen.on_tiles()[0])


def test_words_wait_for_nobody(visitor):
    ask(visitor, BOX, "six.jpg")
    ask(visitor, "And now?")
    with visitor.engine.turn():  # somebody else has the model
        visitor.undo()
        assert [word.text for word in visitor.words()[:2]] == ["purple", "cross"]
        waiting = visitor.ask("And now?", [], SHORT)
        next(waiting)
        with pytest.raises(BusyError, match="still answering"):
            visitor.words()
        waiting.close()


def test_attention_is_that_of_the_last_answer(visitor):
    ask(visitor, "What color is the circle?", "circle.png")
    ask(visitor, "What color is the circle?")
    later = visitor.attention(0)
    visitor.undo()
    earlier = visitor.attention(0)
    assert earlier.word == later.word  # the same word at the same place, of another answer
    assert earlier is not later


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_tiles": 0}, "Tiles per image is 0; expected 1 to 40"),
        ({"max_new_tokens": 5000}, "Longest answer is 5000; expected 1 to 2048"),
        ({"temperature": "hot"}, "Temperature is 'hot'; expected a number"),
        ({"temperature": float("nan")}, "Temperature is nan"),
        ({"votes": 2.5}, "Votes is 2.5; expected a whole number"),
        ({"seed": -1}, "Seed is -1"),
        ({"system_prompt": "x" * 20_001}, "system prompt has 20001 characters"),
    ],
)
def test_options_out_of_range(engine, values, message):
    with pytest.raises(ValueError, match=message):
        Options(**values).checked(engine)


def test_options_of_a_request(engine):
    assert Options.of({"max_tiles": 2.0, "votes": 1}).checked(engine).max_tiles == 2
    usual = Options().checked(engine)
    assert (usual.max_tiles, usual.num_frames, usual.max_new_tokens) == (3, 4, 1024)
    assert usual.generation()["do_sample"] is False
    with pytest.raises(ValueError, match=r"Unknown options \['top_k'\]"):
        Options.of({"top_k": 3})
