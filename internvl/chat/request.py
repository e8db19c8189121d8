"""From images, videos and questions to what `InternVLChatModel.chat` is given, and to an account of
it.

    sources -> Media (tiles) -> Turn -> Request (question with `<image>` tags, history, tiles) ->
    chat / explain

The tags are written as the chat template writes them: one image in the dialogue is `<image>` and a
line break, several are labelled `Image-1: `, `Image-2: ` ... over all turns, a video is one line
`Frame-1: <image>` per frame. So the command line, `chat()` and the processor give the model the
same ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from internvl import hub
from internvl.chat.tiles_picture import Tiling, plural

DEFAULT_GENERATION = {"max_new_tokens": 1024, "do_sample": False}


@dataclass(frozen=True)
class Limits:
    """How media are read; None leaves a setting to the checkpoint.

    Attributes:
        max_tiles: most tiles of an image, thumbnail not counted.
        num_frames: frames of a video.
        allow_urls: fetch http(s) URLs.
    """

    max_tiles: int | None = None
    num_frames: int | None = None
    allow_urls: bool = False

    def options(self, *names: str) -> dict[str, Any]:
        """The settings among `names` that are set."""
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Media:
    """An image or a video, ready for the model.

    Attributes:
        label: where it comes from, short.
        is_video: one tile per frame, and a line of text for each.
        pixel_values: (n, 3, S, S), normalised tiles.
        num_tiles: tiles of the image, or a 1 for each frame.
        tiling: how the image is cut; None for a video.
    """

    label: str
    is_video: bool
    pixel_values: torch.Tensor
    num_tiles: list[int]
    tiling: Tiling | None = None


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
        pixel_values: (N, 3, S, S) tiles of all turns, or None.
        num_tiles: tiles of each image or frame of all turns.
        media: images and videos of all turns, in order.
    """

    question: str
    history: list[tuple[str, str]] | None
    pixel_values: torch.Tensor | None
    num_tiles: list[int]
    media: list[Media] = field(default_factory=list)


def is_remote(source: str) -> bool:
    """Whether a word on the command line is a URL or a data URL."""
    return source.lower().startswith(("http://", "https://", "data:"))


def short_name(source: Any) -> str:
    """A name for a source that fits on a line."""
    if isinstance(source, (str, Path)):
        text = str(source)
        if text.lower().startswith("data:"):
            return text[:24] + "..."
        return text if is_remote(text) else Path(text).name
    return type(source).__name__


def read_image(processor: Any, source: Any, limits: Limits | None = None) -> Media:
    """Read an image and cut it into tiles.

    Args:
        processor: of the checkpoint.
        source: path, URL (if the limits allow it), data URL, bytes, PIL image, array or tensor.
        limits: see `Limits`.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: not a readable image.
    """
    limits = limits or Limits()
    images = processor.image_processor
    sources = hub.ring0("preprocessor.image_sources")
    policy = sources.SourcePolicy(
        max_pixels=images.max_pixels,
        exif_orientation=images.exif_orientation,
        alpha_color=None if images.alpha_color is None else tuple(images.alpha_color),
        allow_urls=limits.allow_urls,
    )
    picture = sources.load_rgb(source, policy)
    options = limits.options("max_tiles")
    if limits.max_tiles is not None:
        options["min_tiles"] = min(images.min_tiles, limits.max_tiles)
    tiles = images(picture, return_tensors="pt", **options)
    grid = images.select_grid(picture.height, picture.width, **options)
    label = short_name(source)
    tiling = Tiling(
        label, picture, grid.rows, grid.cols, images.tile_size, tiles["num_tiles"][0] > grid.tiles
    )
    return Media(label, False, tiles["pixel_values"], list(tiles["num_tiles"]), tiling)


def read_video(processor: Any, source: Any, limits: Limits | None = None) -> Media:
    """Read a video: one tile per chosen frame.

    Args:
        processor: of the checkpoint.
        source: path, folder of images, bytes, URL (if the limits allow it) or frames.
        limits: see `Limits`.

    Raises:
        FileNotFoundError: a path that does not exist.
        ImportError: a video file, and PyAV is not installed.
        ValueError: not a readable video.
    """
    options = (limits or Limits()).options("num_frames", "allow_urls")
    tiles = processor.video_processor([source], return_tensors="pt", **options)
    return Media(
        short_name(source), True, tiles["pixel_values_videos"], [1] * tiles["num_frames"][0]
    )


def compose(turns: Sequence[Turn], frame_prefix: str = "Frame-{index}: ") -> Request:
    """Put turns into the form that `chat` takes; the last one is the question.

    A question that holds as many `<image>` tags as its turn has images and frames says itself where
    they stand.

    Args:
        turns: at least one; all but the last with an answer.
        frame_prefix: what stands before a frame; `{index}` counts the frames of a video from 1.

    Raises:
        ValueError: there are no turns.
    """
    if not turns:
        raise ValueError("there is no turn, so nothing is asked; give a question.")
    media = [each for turn in turns for each in turn.media]
    labelled = sum(not each.is_video for each in media) > 1
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


def explain(prepared: hub.Prepared, request: Request, generation: dict[str, Any]) -> dict[str, Any]:
    """Say exactly what a model would be given.

    Args:
        prepared: from `hub.prepare`.
        request: from `compose`.
        generation: settings of the generation.

    Returns:
        `template`, `images` (size, grid, tiles, visual tokens of each image or video), `prompt`
        (runs of `<IMG_CONTEXT>` written as `<IMG_CONTEXT>x256`), `tokens` (total, visual, text),
        `generation`.

    Raises:
        ValueError: tags and images that do not agree in number.
    """
    conversation = hub.ring0("conversation")
    template = conversation.get_conv_template(prepared.config.template)
    if prepared.config.system_message is not None:
        template.system_message = prepared.config.system_message
    per_tile = prepared.config.num_image_token
    asked = [*(request.history or []), (request.question, "")]
    remaining = list(request.num_tiles)
    turns: list[tuple[str, Any]] = []
    for question, answer in asked:
        turns += [
            (template.roles[0], _with_visuals(question, remaining)),
            (template.roles[1], answer),
        ]
    if remaining:
        raise ValueError(
            f"{len(request.num_tiles)} images and frames, but the questions have {len(remaining)} "
            "`<image>` tags fewer; write one for each, or none at all."
        )
    pieces = conversation.render(template, turns, per_tile)
    ids = conversation.encode(pieces, prepared.tokenizer)
    visual = sum(
        piece.repeat for piece in pieces if piece.control and piece.text == "<IMG_CONTEXT>"
    )
    shown = (f"{p.text}x{p.repeat}" if p.repeat > 1 else p.text for p in pieces)
    return {
        "template": template.name,
        "images": [_account(media, per_tile) for media in request.media],
        "prompt": "".join(shown),
        "tokens": {"total": len(ids), "visual": visual, "text": len(ids) - visual},
        "generation": {**generation, "stop": template.end_of_turn},
    }


def _with_visuals(question: str, remaining: list[int]) -> list[Any]:
    """Replace the tags of a question by images, taken off the front of `remaining`."""
    visual = hub.ring0("conversation").Visual
    head, *tails = question.split("<image>")
    content: list[Any] = [head]
    for tail in tails:
        if not remaining:
            raise ValueError(
                "the question has more `<image>` tags than there are images and frames; remove "
                "some."
            )
        content += [visual(remaining.pop(0)), tail]
    return [part for part in content if part != ""]


def _account(media: Media, per_tile: int) -> dict[str, Any]:
    tiles = sum(media.num_tiles)
    base = {"source": media.label, "kind": "video" if media.is_video else "image", "tiles": tiles}
    if media.tiling is not None:
        base |= {
            "height": media.tiling.image.height,
            "width": media.tiling.image.width,
            "rows": media.tiling.rows,
            "cols": media.tiling.cols,
            "thumbnail": media.tiling.thumbnail,
        }
    else:
        base["frames"] = len(media.num_tiles)
    return {**base, "visual_tokens": tiles * per_tile}


def describe(account: dict[str, Any]) -> str:
    """Write what `explain` returned as text."""
    lines = [f"template    {account['template']}"]
    for index, each in enumerate(account["images"], 1):
        if each["kind"] == "video":
            how = plural(each["frames"], "frame")
        else:
            grid = f"{plural(each['rows'], 'row')} x {plural(each['cols'], 'column')}"
            grid += " + thumbnail" if each["thumbnail"] else ""
            how = f"{each['width']} x {each['height']} px, {grid}"
        counts = f"{plural(each['tiles'], 'tile')}, {each['visual_tokens']} visual tokens"
        lines.append(f"{each['kind']} {index:<5} {each['source']}: {how} = {counts}")
    tokens = account["tokens"]
    lines.append(
        f"prompt      {tokens['total']} tokens: {tokens['visual']} visual, {tokens['text']} text"
    )
    settings = ", ".join(f"{key}={value}" for key, value in account["generation"].items())
    return "\n".join([*lines, f"generation  {settings}", "", account["prompt"]])
