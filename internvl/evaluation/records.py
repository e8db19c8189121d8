"""What an evaluation reads, and what it writes: samples, predictions, and files of them.

    benchmark file -> Sample -> (prompt, tiles, model) -> Prediction -> predictions.jsonl -> scores

A predictions file is JSONL, one line per sample in the order of the benchmark, and holds all that
scoring needs: `internvl eval score` never opens an image. It is the same, byte for byte, however
often the run was interrupted; what differs between runs (times) is kept in another file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Sample:
    """One row of a benchmark.

    Attributes:
        id: unique within the benchmark.
        question: as the data set has it, without any instruction of ours.
        answers: accepted answers; for multiple choice the letter. Empty where the test set keeps
            them.
        images: path, bytes or PIL image each, in the order of the question.
        video: path of a video file or of a folder of frames; None for images and text.
        choices: letter -> text of the options, in order; empty for open questions.
        fields: every other column (hint, category, split, l2-category, ...), by its name.
    """

    id: str
    question: str
    answers: tuple[str, ...] = ()
    images: tuple[Any, ...] = ()
    video: Any = None
    choices: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Response:
    """One answer of the model.

    Attributes:
        text: as decoded, special tokens dropped but for grounding tags.
        tokens: generated ids, the one that ended the answer included.
        finish_reason: "stop", or "length" when the longest answer was reached first.
        seed: of the sampling; None for a greedy answer.
    """

    text: str
    tokens: int
    finish_reason: str
    seed: int | None = None


@dataclass(frozen=True)
class Prediction:
    """A sample with what was asked and what came back.

    Attributes:
        id: of the sample.
        benchmark: its key in benchmarks.toml.
        config: hash of the configuration of the run.
        prompt: the question as sent, `<image>` tags included.
        num_tiles: tiles of each image or frame.
        image_sizes: (height, width) in pixels of each image, as the user gave it.
        prompt_tokens: ids of the whole prompt.
        responses: the answers; one, or N samples.
        answers: accepted answers, as in `Sample`.
        choices: as in `Sample`.
        fields: as in `Sample`.
    """

    id: str
    benchmark: str
    config: str
    prompt: str
    num_tiles: tuple[int, ...]
    image_sizes: tuple[tuple[int, int], ...]
    prompt_tokens: int
    responses: tuple[Response, ...]
    answers: tuple[str, ...] = ()
    choices: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The first response."""
        return self.responses[0].text

    def as_line(self) -> str:
        """One line of JSON, without its end."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_line(cls, line: str) -> Prediction:
        """Read what `as_line` wrote.

        Raises:
            ValueError: not JSON, or not a prediction; the message names what is missing.
        """
        try:
            raw = json.loads(line)
            return cls(
                **{
                    **raw,
                    "num_tiles": tuple(raw["num_tiles"]),
                    "image_sizes": tuple((h, w) for h, w in raw["image_sizes"]),
                    "responses": tuple(Response(**each) for each in raw["responses"]),
                    "answers": tuple(raw["answers"]),
                }
            )
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"not a prediction ({type(error).__name__}: {error}): {line[:80]!r}; expected a "
                "line that `internvl eval run` wrote."
            ) from error


def read_predictions(path: str | Path) -> list[Prediction]:
    """Read a predictions file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a damaged line (its number is named), an id that comes twice, or no line at all.
    """
    found: dict[str, Prediction] = {}
    # Not splitlines: it also cuts at U+2028 and the like, which an answer may hold.
    for number, line in enumerate(Path(path).read_text("utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            prediction = Prediction.from_line(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        if prediction.id in found:
            raise ValueError(f"{path}, line {number}: the id {prediction.id!r} comes twice.")
        found[prediction.id] = prediction
    if not found:
        raise ValueError(f"{path} holds no prediction.")
    return list(found.values())


def lines(predictions: Iterable[Prediction]) -> Iterator[str]:
    """Lines of a predictions file, with their ends."""
    for prediction in predictions:
        yield prediction.as_line() + "\n"
