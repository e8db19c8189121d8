"""Test-time scaling (report section 5.1, Figure 9): reason step by step, sample, vote.

    question -> prompt for reasoning -> N answers from one prefill -> final answers -> majority

What a final answer is, when two are the same and who wins a tie is decided in `internvl.answers`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from internvl import answers as final_answers
from internvl.chat.session import ChatSession

# VLMEvalKit's sampling; the report names neither temperature nor number of samples.
SAMPLING = {"do_sample": True, "temperature": 0.6, "top_p": 0.95}
# Reasoning takes its time; a text cut before its last line has no answer and does not vote.
REASONING_TOKENS = 4096
# "A. red", "(B) blue", "C) green", one after the other, or in a line.
_CHOICE = re.compile(r"(?:(?<=\s)|^)\(?([A-Z])[.):\u3001\uff0e\uff09]\s*")


@dataclass(frozen=True)
class Voted:
    """What a vote gave.

    Attributes:
        text: the first of the texts that ends in the winning answer; what the dialogue keeps.
        answer: the winning answer; None when no text had one.
        texts: all answers, as the model gave them.
        answers: the final answer of each text, None where none was found.
        vote: the count.
    """

    text: str
    answer: str | None
    texts: list[str]
    answers: list[str | None]
    vote: final_answers.Vote


def choices_in(question: str) -> dict[str, str]:
    """Options of a multiple-choice question: letter and text.

    They have to begin with A and go on in the order of the alphabet; there are at least two of
    them, each with a text. Anything else gives an empty dict.
    """
    found = list(_CHOICE.finditer(question))
    options: dict[str, str] = {}
    for index, match in enumerate(found):
        if match[1] != chr(ord("A") + len(options)):
            continue
        end = next(
            (m.start() for m in found[index + 1 :] if m[1] == chr(ord(match[1]) + 1)), len(question)
        )
        options[match[1]] = question[match.end() : end].strip(" \t\n,;")
    return options if len(options) > 1 and all(options.values()) else {}


def reasoning_prompt(question: str, *, multiple_choice: bool | None = None) -> str:
    """A question with the report's prompt for reasoning (Figure 9) after it.

    Args:
        question: the question.
        multiple_choice: which of the two prompts; None looks whether the question lists options.
    """
    if multiple_choice is None:
        multiple_choice = bool(choices_in(question))
    return final_answers.with_cot(question, multiple_choice=multiple_choice)


def reasoning_room(session: ChatSession, asked: str, images: Any, videos: Any) -> int:
    """Tokens for reasoning: 4,096, or as many as the context leaves."""
    account = session.account(asked, images, videos)
    return max(1, min(REASONING_TOKENS, account.context - account.prompt_tokens))


def vote(
    session: ChatSession,
    question: str,
    images: Any = None,
    videos: Any = None,
    *,
    votes: int = 8,
    cot: bool = False,
    kind: final_answers.Kind = "auto",
    choices: Mapping[str, str] | None = None,
    **generation: Any,
) -> Voted:
    """Answer a question several times and take the majority; the dialogue keeps one text of it.

    Args:
        session: the dialogue.
        question: as in `ChatSession.ask`.
        images: as in `ChatSession.ask`.
        videos: as in `ChatSession.ask`.
        votes: answers to sample, from one prefill.
        cot: ask for reasoning with the report's prompt.
        kind: what a final answer is, see `answers.extract_answer`.
        choices: options of a multiple-choice question; those that the question lists when None.
        **generation: of the sampling; temperature 0.6 and top_p 0.95 otherwise, and up to 4,096
            new tokens with `cot`, if the context has room.

    Returns:
        What the vote gave. When no text has a final answer, `text` is the first one.

    Raises:
        ValueError: fewer than one vote, or as in `ChatSession.ask`.
    """
    if votes < 1:
        raise ValueError(f"votes is {votes}; expected at least 1.")
    options = choices_in(question) if choices is None else dict(choices)
    asked = reasoning_prompt(question, multiple_choice=bool(options)) if cot else question
    media = session.read(images, videos)
    given = {**SAMPLING, **generation}
    if cot and given.get("max_new_tokens") is None:
        given["max_new_tokens"] = reasoning_room(session, asked, *media)
    texts = session.sample(asked, *media, answers=votes, **given)
    finals = [final_answers.extract_answer(text, kind, options or None) for text in texts]
    result = final_answers.majority_vote(finals)
    chosen = finals.index(result.winner) if result.winner is not None else 0
    if texts[chosen]:
        session.answer_with(asked, texts[chosen], *media)
    return Voted(texts[chosen], result.winner, texts, finals, result)
