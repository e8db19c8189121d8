"""What a request costs, before anything runs: tiles, tokens, cache memory, and whether it fits.

Request + config -> Account -> `explain`, or an error that says what to lower and by how much
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from internvl import hub
from internvl.chat.media import Media
from internvl.chat.request import Request, conversation_of, render
from internvl.chat.tiles_picture import plural
from internvl.context import context_length, kv_bytes_per_token


class ContextError(ValueError):
    """A request is too long for the model; the message says what to lower, and by how much."""


@dataclass(frozen=True)
class Account:
    """Cost of a request.

    Attributes:
        prompt_tokens: ids of the prompt.
        visual_tokens: `<IMG_CONTEXT>` among them.
        max_new_tokens: longest answer.
        context: positions that the language model is made for.
        kv_bytes_per_token: keys and values of one position, over all layers.
    """

    prompt_tokens: int
    visual_tokens: int
    max_new_tokens: int
    context: int
    kv_bytes_per_token: int

    @property
    def text_tokens(self) -> int:
        """Tokens that are not visual."""
        return self.prompt_tokens - self.visual_tokens

    @property
    def excess(self) -> int:
        """Positions too many; 0 when prompt and answer fit."""
        return max(0, self.prompt_tokens + self.max_new_tokens - self.context)

    @property
    def kv_bytes(self) -> int:
        """Bytes of the key-value cache after the longest answer."""
        return (self.prompt_tokens + self.max_new_tokens) * self.kv_bytes_per_token


def account_for(
    ids: list[int], config: Any, image_token: int, max_new_tokens: int, bytes_per_number: int = 2
) -> Account:
    """Account for a prompt.

    Args:
        ids: of the prompt.
        config: of the chat model.
        image_token: id of `<IMG_CONTEXT>`.
        max_new_tokens: longest answer.
        bytes_per_number: of keys and values; 2 for bfloat16.
    """
    return Account(
        prompt_tokens=len(ids),
        visual_tokens=ids.count(image_token),
        max_new_tokens=max_new_tokens,
        context=context_length(config.llm_config),
        kv_bytes_per_token=kv_bytes_per_token(config.llm_config, bytes_per_number),
    )


def check_context(account: Account, media: list[Media], processor: Any) -> None:
    """Refuse a request that does not fit, and say what would make it fit.

    Args:
        account: of the request.
        media: its images and videos.
        processor: of the checkpoint.

    Raises:
        ContextError: prompt and longest answer need more positions than the model has.
    """
    if account.excess:
        raise ContextError(
            f"the prompt has {account.prompt_tokens} tokens ({account.visual_tokens} visual) and "
            f"the answer may have {account.max_new_tokens}, together {account.excess} more than "
            f"the {account.context} of the model's context; {advice(account, media, processor)}."
        )


def advice(account: Account, media: list[Media], processor: Any) -> str:
    """What to lower, and by how much, for a request that does not fit."""
    if not account.excess:
        return "nothing has to be lowered"
    ways = [
        _fewer_tiles(account.excess, media, processor),
        _fewer_frames(account.excess, media, processor),
    ]
    if account.max_new_tokens > account.excess:
        ways.append(f"max_new_tokens={account.max_new_tokens - account.excess}")
    if account.text_tokens > account.excess:
        ways.append(f"{account.excess} fewer tokens of text, of earlier turns for instance")
    enough = [way for way in ways if way]
    if not enough:
        return (
            "lower several at once: max_tiles (fewest tokens with max_tiles=1), num_frames, "
            "max_new_tokens, the number of images, or the earlier turns"
        )
    return "any one of these is enough: " + "; ".join(enough)


def _fewer_tiles(excess: int, media: list[Media], processor: Any) -> str | None:
    """The greatest `max_tiles` that saves enough."""
    tilings = [each.tiling for each in media if each.tiling is not None]
    most = max((tiling.rows * tiling.cols for tiling in tilings), default=1)
    images = processor.image_processor
    tiles = sum(tiling.tiles for tiling in tilings)
    for limit in range(most - 1, 0, -1):
        limits = {"max_tiles": limit, "min_tiles": min(images.min_tiles, limit)}
        left = sum(images.count_tiles(t.image.height, t.image.width, **limits) for t in tilings)
        if (tiles - left) * processor.image_seq_length >= excess:
            return f"max_tiles={limit} ({plural(left, 'tile')} instead of {tiles})"
    return None


def _fewer_frames(excess: int, media: list[Media], processor: Any) -> str | None:
    """The greatest `num_frames` that saves enough; the words before a frame are not counted."""
    frames = [len(each.num_tiles) for each in media if each.is_video]
    for limit in range(max(frames, default=1) - 1, 0, -1):
        left = sum(min(limit, count) for count in frames)
        if (sum(frames) - left) * (processor.image_seq_length + 2) >= excess:
            return f"num_frames={limit} ({plural(left, 'frame')} instead of {sum(frames)})"
    return None


def explain(prepared: hub.Prepared, request: Request, generation: dict[str, Any]) -> dict[str, Any]:
    """Say exactly what a model would be given, and what that costs.

    Args:
        prepared: from `hub.prepare`.
        request: from `compose`.
        generation: settings of the generation.

    Returns:
        `template`, `images` (size, grid, tiles, visual tokens of each image or video), `prompt`
        (runs of `<IMG_CONTEXT>` written as `<IMG_CONTEXT>x256`), `tokens` (total, visual, text),
        `context` (limit, needed, fits, advice), `kv_cache` (bytes per token, bytes of the prompt,
        bytes with the longest answer, in bfloat16), `generation`.

    Raises:
        ValueError: tags and images that do not agree in number.
    """
    conversation = hub.ring0("conversation")
    config, tokenizer = prepared.config, prepared.tokenizer
    template = conversation_of(config)
    pieces = render(request, template, config.num_image_token)
    account = account_for(
        conversation.encode(pieces, tokenizer),
        config,
        tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        generation["max_new_tokens"],
    )
    shown = (f"{p.text}x{p.repeat}" if p.repeat > 1 else p.text for p in pieces)
    per_token = account.kv_bytes_per_token
    return {
        "template": template.name,
        "images": [_media_account(media, config.num_image_token) for media in request.media],
        "prompt": "".join(shown),
        "tokens": {
            "total": account.prompt_tokens,
            "visual": account.visual_tokens,
            "text": account.text_tokens,
        },
        "context": {
            "limit": account.context,
            "needed": account.prompt_tokens + account.max_new_tokens,
            "fits": not account.excess,
            "advice": advice(account, request.media, prepared.processor),
        },
        "kv_cache": {
            "bytes_per_token": per_token,
            "prompt_bytes": account.prompt_tokens * per_token,
            "bytes": account.kv_bytes,
        },
        "generation": {**generation, "stop": template.end_of_turn},
    }


def _media_account(media: Media, per_tile: int) -> dict[str, Any]:
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
    tokens, context, cache = account["tokens"], account["context"], account["kv_cache"]
    lines.append(
        f"prompt      {tokens['total']} tokens: {tokens['visual']} visual, {tokens['text']} text"
    )
    fits = "fits" if context["fits"] else f"does not fit; {context['advice']}"
    lines.append(
        f"context     {context['needed']} of {context['limit']} with the longest answer: {fits}"
    )
    lines.append(
        f"kv cache    {mebibytes(cache['prompt_bytes'])} for the prompt, "
        f"{mebibytes(cache['bytes'])} with the longest answer, in bfloat16"
    )
    settings = ", ".join(f"{key}={value}" for key, value in account["generation"].items())
    return "\n".join([*lines, f"generation  {settings}", "", account["prompt"]])


def mebibytes(count: int) -> str:
    """Write a number of bytes for people."""
    return f"{count / 2**20:.1f} MiB"
