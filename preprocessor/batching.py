"""Batches: media dealt out to their prompts and read, prompts expanded, encoded and padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from .chat_messages import Media, Part
from .encoding import Piece, encode, prompt_text, visual_pieces
from .image_processing_internvl_chat import is_image
from .video_processing_internvl_chat import list_videos


def fill_places(samples: list[list[Part]], kind: str, media: Any) -> None:
    """Put the images or videos of a call into the places that name none.

    Raises:
        ValueError: their numbers differ.
    """
    places = [
        [
            part
            for part in sample
            if isinstance(part, Media) and part.kind == kind and part.source is None
        ]
        for sample in samples
    ]
    needed = [len(group) for group in places]
    given = _deal(media, needed, kind)
    for number, (group, sources) in enumerate(zip(places, given, strict=True), start=1):
        if len(group) != len(sources):
            raise ValueError(
                f"prompt {number} of {len(samples)} has {len(group)} places for {kind}s (<{kind}> "
                "in "
                f"the text, or items that name none), but {len(sources)} {kind}s were given for "
                "it; "
                f"write one <{kind}> per {kind}."
            )
        for place, source in zip(group, sources, strict=True):
            place.source = source


def _deal(media: Any, needed: list[int], kind: str) -> list[list[Any]]:
    """Sort images or videos by prompt: as they are nested, or by the number of places."""
    if media is None:
        return [[] for _ in needed]
    if kind == "image":
        flat = [media] if is_image(media) else list(media)
        nested = [None if each is None else _as_list(each) for each in flat]
        per_prompt = any(each is None or not is_image(each) for each in flat)
    else:
        flat = list_videos(media)
        nested = [list(each) if isinstance(each, (list, tuple)) else None for each in flat]
        per_prompt = len(flat) == len(needed) and all(
            each is not None and len(each) == count
            for each, count in zip(nested, needed, strict=True)
        )
    if per_prompt:
        if len(flat) != len(needed):
            raise ValueError(
                f"{kind}s are nested in {len(flat)} lists, but there are {len(needed)} prompts; "
                "give one list per prompt."
            )
        return [each or [] for each in nested]
    if len(needed) == 1:
        return [flat]
    if len(flat) != sum(needed):
        raise ValueError(
            f"the prompts have {sum(needed)} places for {kind}s in all ({needed}), but {len(flat)} "
            f"{kind}s were given; write one <{kind}> per {kind}."
        )
    waiting = iter(flat)
    return [[next(waiting) for _ in range(count)] for count in needed]


def _as_list(images: Any) -> list[Any]:
    return [images] if is_image(images) else list(images)


# The uint8 tiles of every Media by its id(): one array (n, S, S, 3) per image or frame.
Stacks = dict[int, list[np.ndarray]]


def read_images(samples: list[list[Part]], processor: Any, options: dict[str, Any]) -> Stacks:
    """Read the images of all prompts.

    Args:
        samples: parts of each prompt; `total_tiles` is shared by the images of one.
        processor: the image processor.
        options: its options; `min_tiles` and `max_tiles` give way to those that an item carries.

    Raises:
        ValueError: an image that cannot be read.
    """
    grouped = [[p for p in s if isinstance(p, Media) and p.kind == "image"] for s in samples]
    places = [media for group in grouped for media in group]
    if not places:
        return {}
    options = dict(options)
    for key in ("min_tiles", "max_tiles"):
        if any(key in media.options for media in places):
            options[key] = _per_item(places, key, options.get(key) or getattr(processor, key))
    tiles = processor.read_tiles(
        [[media.source for media in group] for group in grouped], **options
    )
    return {id(media): [stack] for media, stack in zip(places, tiles, strict=True)}


def _per_item(places: Sequence[Media], key: str, default: int | Sequence[int]) -> list[int]:
    defaults = [default] * len(places) if isinstance(default, int) else list(default)
    if len(defaults) != len(places):
        raise ValueError(f"{key} has {len(defaults)} entries for {len(places)} images.")
    return [media.options.get(key, each) for media, each in zip(places, defaults, strict=True)]


def read_videos(samples: list[list[Part]], processor: Any, options: dict[str, Any]) -> Stacks:
    """Read the videos of all prompts, one stack of one tile per frame.

    Args:
        samples: parts of each prompt.
        processor: the video processor.
        options: its options; those that an item carries come first.

    Raises:
        ValueError: a video that cannot be read.
    """
    places = [p for s in samples for p in s if isinstance(p, Media) and p.kind == "video"]
    stacks: Stacks = {}
    for number, media in enumerate(places, start=1):
        try:
            clip = processor.read(media.source, **{**options, **media.options})
        except ValueError as error:
            raise ValueError(f"video {number} of {len(places)}: {error}") from error
        stacks[id(media)] = [frame[None] for frame in clip.frames]
    return stacks


def expand(
    sample: list[Part], stacks: Stacks, image_seq_length: int, frame_prefix: str
) -> Iterator[Piece]:
    """Write the visual tokens of every image and frame into its place, one line per frame."""
    for part in sample:
        if isinstance(part, Piece):
            yield part
            continue
        for index, stack in enumerate(stacks[id(part)], start=1):
            if part.kind == "video":
                newline = "\n" if index > 1 else ""
                yield Piece(newline + frame_prefix.replace("{index}", str(index)), False)
            yield from visual_pieces(len(stack), image_seq_length)


def encode_batch(
    prompts: list[list[Piece]], tokenizer: Any, options: dict[str, Any]
) -> dict[str, Any]:
    """Encode prompts and pad them to one length.

    Args:
        prompts: pieces of each prompt, adjacent text merged.
        tokenizer: the tokenizer; its padding settings are neither used nor changed.
        options: text options of the processor's `__call__`.

    Returns:
        `input_ids` and `attention_mask` (B, T); `prompt` if asked for.

    Raises:
        ValueError: a prompt longer than `max_length` with truncation asked for, or padding that is
            impossible.
    """
    add_bos = options.get("add_special_tokens", True)
    rows = [encode(pieces, tokenizer, add_bos=add_bos) for pieces in prompts]
    limit = options.get("max_length")
    longest = max(map(len, rows))
    if options.get("truncation") and limit is not None and longest > limit:
        raise ValueError(
            f"a prompt has {longest} tokens and max_length is {limit}; cutting it would tear "
            "images apart. Lower max_tiles or num_frames, shorten the text, or raise max_length."
        )
    padding = options.get("padding", True)
    padding = getattr(padding, "value", padding)
    kind = options.get("return_tensors")
    kind = getattr(kind, "value", kind)
    masks = [[1] * len(row) for row in rows]
    if padding in (True, "longest", "max_length"):
        target = limit if padding == "max_length" and limit is not None else longest
        rows, masks = _pad(rows, max(target, longest), tokenizer, options)
    elif kind in ("pt", "np") and len(set(map(len, rows))) > 1:
        raise ValueError("prompts of different lengths make no tensor; pass padding=True.")
    content: dict[str, Any] = {"input_ids": rows, "attention_mask": masks}
    if options.get("return_attention_mask") is False:
        del content["attention_mask"]
    if kind == "pt":
        content = {key: torch.tensor(value, dtype=torch.long) for key, value in content.items()}
    elif kind == "np":
        content = {key: np.array(value, dtype=np.int64) for key, value in content.items()}
    if options.get("return_prompt"):
        content["prompt"] = [prompt_text(pieces) for pieces in prompts]
    return content


def _pad(
    rows: list[list[int]], target: int, tokenizer: Any, options: dict[str, Any]
) -> tuple[list[list[int]], list[list[int]]]:
    """Pad rows to a length, on the left by default; returns them and their masks."""
    multiple = options.get("pad_to_multiple_of") or 1
    target = -(-target // multiple) * multiple
    side = options.get("padding_side") or "left"
    if side not in ("left", "right"):
        raise ValueError(f"padding_side={side!r}; expected 'left' or 'right'.")
    token = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if token is None and any(len(row) < target for row in rows):
        raise ValueError("the tokenizer has neither a pad nor an eos token to pad with; set one.")
    padded, masks = [], []
    for row in rows:
        gap, ones = target - len(row), [1] * len(row)
        padded.append([token] * gap + row if side == "left" else row + [token] * gap)
        masks.append([0] * gap + ones if side == "left" else ones + [0] * gap)
    return padded, masks
