"""From turns with images and videos to what `InternVLChatModel.chat` is given.

    Media (tiles) -> Turn -> Request (question with `<image>` tags, history, tiles) -> chat, or
    pieces -> ids

The tags are written as the chat template writes them: one image in the dialogue is `<image>` and a
line break, several are labelled `Image-1: `, `Image-2: ` ... over all turns, a video is one line
`Frame-1: <image>` per frame. So the command line, `chat()` and the processor give the model the
same ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from internvl import hub
from internvl.chat.media import Media

DEFAULT_GENERATION = {"max_new_tokens": 1024, "do_sample": False}


@dataclass(frozen=True)
class Turn:
    """A question with its media, and its answer once there is one."""

    question: str
    media: Sequence[Media] = ()
    answer: str = ""


@dataclass(frozen=True)
class Request:
    """Arguments of `InternVLChatModel.chat`.

    Attributes:
        question: with its `<image>` tags.
        history: earlier questions, with theirs, and answers.
        pixel_values: (N, 3, S, S) uint8 tiles of all turns, or None.
        num_tiles: tiles of each image or frame of all turns.
        media: images and videos of all turns, in order.
    """

    question: str
    history: list[tuple[str, str]] | None
    pixel_values: torch.Tensor | None
    num_tiles: list[int]
    media: list[Media] = field(default_factory=list)


def compose(
    turns: Sequence[Turn],
    frame_prefix: str = "Frame-{index}: ",
    *,
    image_labels: bool | str = True,
) -> Request:
    """Put turns into the form that `chat` takes; the last one is the question.

    A question that holds as many `<image>` tags as its turn has images and frames says itself where
    they stand.

    Args:
        turns: at least one; all but the last with an answer.
        frame_prefix: what stands before a frame; `{index}` counts the frames of a video from 1.
        image_labels: True labels images when the dialogue has several, "always" a single one too,
            False none.

    Raises:
        ValueError: there are no turns.
    """
    if not turns:
        raise ValueError("there is no turn, so nothing is asked; give a question.")
    media = [each for turn in turns for each in turn.media]
    images = sum(not each.is_video for each in media)
    labelled = image_labels == "always" or (bool(image_labels) and images > 1)
    questions, seen = [], 0
    for turn in turns:
        questions.append(_tagged(turn, labelled, seen, frame_prefix))
        seen += sum(not each.is_video for each in turn.media)
    return Request(
        question=questions[-1],
        history=[(q, turn.answer) for q, turn in zip(questions, turns[:-1], strict=False)] or None,
        pixel_values=torch.cat([each.pixel_values for each in media]) if media else None,
        num_tiles=[n for each in media for n in each.num_tiles],
        media=media,
    )


def _tagged(turn: Turn, labelled: bool, seen: int, frame_prefix: str) -> str:
    """The question with a tag for each of its images and frames."""
    places = sum(len(each.num_tiles) for each in turn.media)
    if places and turn.question.count("<image>") == places:
        return turn.question
    lines = []
    for each in turn.media:
        if each.is_video:
            lines += [
                frame_prefix.replace("{index}", str(i + 1)) + "<image>\n"
                for i in range(len(each.num_tiles))
            ]
        else:
            seen += 1
            lines.append((f"Image-{seen}: " if labelled else "") + "<image>\n")
    return "".join(lines) + turn.question


def generation_settings(checkpoint: dict[str, Any], **given: Any) -> dict[str, Any]:
    """Settings of a request: ours, replaced by those of generation_config.json, replaced by `given`
    (None: not given).

    The checkpoint's token ids stay out: the template says what ends an answer.
    """
    known = {k: v for k, v in checkpoint.items() if k in _SHARED_SETTINGS and v is not None}
    return {**DEFAULT_GENERATION, **known, **{k: v for k, v in given.items() if v is not None}}


_SHARED_SETTINGS = (
    "max_new_tokens",
    "do_sample",
    "num_beams",
    "repetition_penalty",
    "temperature",
    "top_k",
    "top_p",
)


def conversation_of(config: Any) -> Any:
    """The prompt template of a chat config, with the system message that the config sets."""
    template = hub.ring0("conversation").get_conv_template(config.template)
    if config.system_message is not None:
        template.system_message = config.system_message
    return template


def render(request: Request, template: Any, tokens_per_tile: int) -> list[Any]:
    """Write a request in the frame of a template.

    Args:
        request: from `compose`.
        template: a Conversation.
        tokens_per_tile: visual tokens Q.

    Returns:
        Pieces, for `conversation.encode`.

    Raises:
        ValueError: tags and images that do not agree in number.
    """
    conversation = hub.ring0("conversation")
    remaining = iter(request.num_tiles)
    turns: list[tuple[str, Any]] = []
    for question, answer in [*(request.history or []), (request.question, "")]:
        turns.append((template.roles[0], conversation.place_visuals(question, remaining)))
        turns.append((template.roles[1], answer))
    if left := len(list(remaining)):
        raise ValueError(
            f"{len(request.num_tiles)} images and frames, but the questions have {left} "
            "`<image>` tags fewer; write one for each, or none at all."
        )
    return conversation.render(template, turns, tokens_per_tile)
