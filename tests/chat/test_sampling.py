"""Votes: sampled from one prefill, counted by the rules of `internvl.answers`."""

from __future__ import annotations

import pytest
import torch

from internvl import answers, hub
from internvl.chat.sampling import choices_in, reasoning_prompt, vote
from internvl.chat.session import ChatSession
from tests import support

QUESTION = "Which animal is it?\nA. cat\nB. dog\nC. bird"


@pytest.fixture
def session() -> ChatSession:
    loaded = hub.load(support.checkpoint("qwen2"), dtype="float32")
    return ChatSession(loaded.model, loaded.processor, generation={"max_new_tokens": 12})


def say(session: ChatSession, texts: list[str]) -> list[int]:
    """Let each row of a generation say one of the texts; returns the rows of each pass."""
    end = session.tokenizer.convert_tokens_to_ids("<|im_end|>")
    encode = session.tokenizer
    rows = [[*encode(text, add_special_tokens=False)["input_ids"], end] for text in texts]
    passes: list[int] = []
    step = {"now": -1}

    def speak(module, args, output):
        passes.append(output.logits.shape[0])
        if output.logits.shape[0] != len(rows):  # the prefill
            return
        step["now"] += 1
        output.logits[:] = -1e4
        for row, ids in enumerate(rows):
            output.logits[row, -1, ids[min(step["now"], len(ids) - 1)]] = 1e4

    session.model.language_model.register_forward_hook(speak)
    return passes


def test_the_majority_becomes_the_turn(session):
    said = ["Answer: B", "It is a cat, or a dog.", "\\boxed{A}", "I say (B)", "A", "dog"]
    passes = say(session, said)
    result = vote(session, QUESTION, votes=6)
    assert result.texts == said
    assert result.answers == ["B", None, "A", "B", "A", "B"]
    assert (result.answer, result.text) == ("B", "Answer: B")
    assert result.vote == answers.Vote("B", {"b": 3, "a": 2}, 1, False)
    assert [turn.answer for turn in session.turns] == ["Answer: B"]
    assert session.turns[0].question == QUESTION
    assert passes[0] == 1  # one prefill
    assert set(passes[1:]) == {6}


def test_nobody_has_an_answer(session):
    say(session, ["A or B", "B or A"])
    result = vote(session, QUESTION, votes=2)
    assert (result.answer, result.text) == (None, "A or B")
    assert result.vote.unparsed == 2


def test_numbers(session):
    say(session, ["It is 1/2", "0.5", "maybe 3"])
    result = vote(session, "How much?", votes=3, kind="number")
    assert result.answer == "1/2"
    assert result.vote.counts == {"1/2": 2, "3": 1}


def test_reasoning(session):
    say(session, ["x Answer: \\boxed{C}"] * 2)
    result = vote(session, QUESTION, votes=2, cot=True)
    assert result.answer == "C"
    assert session.turns[0].question == f"{QUESTION}\n{answers.COT_MULTIPLE_CHOICE}"
    assert reasoning_prompt("How many?") == f"How many?\n{answers.COT_OPEN}"
    session.reset()
    with pytest.raises(ValueError, match="votes is 0"):
        vote(session, QUESTION, votes=0)


def test_seed(session):
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        session.reset()
        results.append(vote(session, "Well?", votes=4, temperature=2.0).texts)
    assert results[0] == results[1] != results[2]


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        (QUESTION, {"A": "cat", "B": "dog", "C": "bird"}),
        ("Which? (A) 1 (B) 2 (C) 3", {"A": "1", "B": "2", "C": "3"}),
        ("Which?\nA) red, B) blue", {"A": "red", "B": "blue"}),
        ("Is vitamin C. good?", {}),
        ("A. only one", {}),
        ("Which plan B. or A.", {}),
        ("Who is A. B. Smith?", {}),
        ("What is it?", {}),
    ],
    ids=["lines", "brackets", "comma", "c", "one", "order", "initials", "none"],
)
def test_choices_of_a_question(question, expected):
    assert choices_in(question) == expected
