"""What a visitor may choose for an answer, checked before anything runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from internvl.app.engine import Engine
from internvl.chat.media import Limits
from internvl.chat.sampling import SAMPLING


@dataclass(frozen=True)
class Options:
    """Settings of a question; None leaves one to the checkpoint.

    Attributes:
        max_tiles: most tiles of an image, thumbnail not counted.
        num_frames: frames of a video.
        max_new_tokens: longest answer.
        sample: draw tokens at random instead of taking the likeliest.
        temperature: of the sampling.
        top_p: share of the probability that is sampled from.
        repetition_penalty: 1 for none.
        seed: of the sampling; None for another one each time.
        system_prompt: in place of the checkpoint's; "" and None for that.
        cot: ask for reasoning with the prompt of the report.
        votes: sample so many answers and keep the majority's; 1 for a single answer.
    """

    max_tiles: int | None = None
    num_frames: int | None = None
    max_new_tokens: int | None = None
    sample: bool = False
    temperature: float = SAMPLING["temperature"]
    top_p: float = SAMPLING["top_p"]
    repetition_penalty: float = 1.0
    seed: int | None = None
    system_prompt: str | None = None
    cot: bool = False
    votes: int = 1

    def checked(self, engine: Engine) -> Options:
        """The same with whole numbers where they belong, every value within its range.

        Args:
            engine: the model that is asked.

        Raises:
            ValueError: a value that is no number or out of range; the message is for the visitor.
        """
        bounds = engine.bounds
        longest = engine.new_tokens
        wanted = engine.generation["max_new_tokens"] if self.max_new_tokens is None else None
        system = (self.system_prompt or "").strip()
        if len(system) > bounds.question_characters:
            raise ValueError(
                f"The system prompt has {len(system)} characters; it may have up to "
                f"{bounds.question_characters}."
            )
        return replace(
            self,
            max_tiles=_whole("Tiles per image", self.max_tiles, engine.max_tiles, 1, 40),
            num_frames=_whole(
                "Frames per video", self.num_frames, engine.num_frames, 1, bounds.frames
            ),
            max_new_tokens=_whole(
                "Longest answer", self.max_new_tokens, min(wanted or 0, longest), 1, longest
            ),
            sample=bool(self.sample),
            temperature=_number("Temperature", self.temperature, 0.01, 5),
            top_p=_number("Top p", self.top_p, 0.01, 1),
            repetition_penalty=_number("Repetition penalty", self.repetition_penalty, 0.5, 2),
            seed=None if self.seed is None else _whole("Seed", self.seed, 0, 0, 2**32 - 1),
            system_prompt=system or None,
            cot=bool(self.cot),
            votes=_whole("Votes", self.votes, 1, 1, bounds.votes),
        )

    @classmethod
    def of(cls, values: dict[str, Any]) -> Options:
        """Options from the names and values of a request.

        Raises:
            ValueError: a name that is not one of them.
        """
        known = {each.name for each in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"Unknown options {unknown}; known are {sorted(known)}.")
        return cls(**values)

    @property
    def limits(self) -> Limits:
        """How images and videos are read."""
        return Limits(max_tiles=self.max_tiles, num_frames=self.num_frames)

    def generation(self) -> dict[str, Any]:
        """Settings for `ChatSession`."""
        settings: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": self.sample or self.votes > 1,
            "repetition_penalty": self.repetition_penalty,
        }
        if settings["do_sample"]:
            settings |= {"temperature": self.temperature, "top_p": self.top_p}
        return settings


def _number(name: str, value: Any, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}; expected a number from {least:g} to {most:g}.")
    if not least <= value <= most:
        raise ValueError(f"{name} is {value:g}; expected {least:g} to {most:g}.")
    return float(value)


def _whole(name: str, value: Any, default: int, least: int, most: int) -> int:
    if value is None:
        return default
    number = _number(name, value, least, most)
    if number != int(number):
        raise ValueError(f"{name} is {number:g}; expected a whole number.")
    return int(number)
