"""From pieces of a prompt to token ids: the twin of the encoding in conversation.py.

The Hub loader resolves no import between the root and this folder, so the few functions that both
sides need stand in both; a test compares them over random dialogues. What is control is looked up,
what is text is encoded as text, whatever it spells: no user can write a control token.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

IMG_START_TOKEN = "<img>"
IMG_END_TOKEN = "</img>"
IMG_CONTEXT_TOKEN = "<IMG_CONTEXT>"
IMAGE_PLACEHOLDER = "<image>"
VIDEO_PLACEHOLDER = "<video>"
# The tags of the grounding format stay special in anybody's text: they are how a region is asked
# for.
GROUNDING_TAGS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")


class Piece(NamedTuple):
    """`text` repeated `repeat` times, looked up if `control`, else encoded as text."""

    text: str
    control: bool
    repeat: int = 1


def visual_pieces(num_tiles: int, num_image_token: int) -> list[Piece]:
    """One image of `num_tiles` tiles, `num_image_token` visual tokens each, between its tags."""
    return [
        Piece(IMG_START_TOKEN, True),
        Piece(IMG_CONTEXT_TOKEN, True, num_tiles * num_image_token),
        Piece(IMG_END_TOKEN, True),
    ]


def merge_text(pieces: Sequence[Piece]) -> list[Piece]:
    """Join adjacent text pieces, so that the tokenizer sees the runs it would see in the string."""
    merged: list[Piece] = []
    for piece in pieces:
        if not piece.text or not piece.repeat:
            continue
        if merged and not piece.control and not merged[-1].control:
            merged[-1] = Piece(merged[-1].text + piece.text, False)
        else:
            merged.append(piece)
    return merged


def prompt_text(pieces: Sequence[Piece]) -> str:
    """The prompt as one string, every visual token written out."""
    return "".join(piece.text * piece.repeat for piece in pieces)


def control_tokens(tokenizer: Any) -> list[str]:
    """Special tokens of a tokenizer, longest first: what is control in a template's own text."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    special |= set(tokenizer.all_special_tokens)
    return sorted(special, key=lambda token: (-len(token), token))


def split_control(text: str, tokens: Sequence[str]) -> Iterator[Piece]:
    """Split trusted text into the control tokens it spells and the text between them."""
    pattern = "|".join(map(re.escape, tokens))
    for part in re.split(f"({pattern})", text) if pattern else [text]:
        if part:
            yield Piece(part, part in tokens)


def encode(pieces: Sequence[Piece], tokenizer: Any, *, add_bos: bool = True) -> list[int]:
    """Encode pieces: control by lookup, text as text.

    Args:
        pieces: the prompt, adjacent text merged.
        tokenizer: any transformers tokenizer, slow or fast.
        add_bos: put the beginning-of-sequence token first if the tokenizer puts one; never twice.

    Returns:
        The ids of the prompt.

    Raises:
        ValueError: a control token that the tokenizer does not have.
    """
    known = tokenizer.get_added_vocab()
    runs = list(_split_grounding(pieces, known))
    ids = beginning_of_sequence(tokenizer) if add_bos else []
    if ids and runs and runs[0].control and runs[0].text == tokenizer.bos_token:
        ids = []
    strip_next = False
    for index, piece in enumerate(runs):
        if piece.control:
            token = control_id(piece.text, known, tokenizer)
            ids += [token] * piece.repeat
            strip_next = _strips(tokenizer, token, "rstrip")
            continue
        text = piece.text.lstrip() if strip_next else piece.text
        strip_next = False
        follower = runs[index + 1] if index + 1 < len(runs) else None
        if follower is not None and follower.control:
            token = control_id(follower.text, known, tokenizer)
            text = text.rstrip() if _strips(tokenizer, token, "lstrip") else text
        if text:
            ids += tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids


def _split_grounding(pieces: Sequence[Piece], known: dict[str, int]) -> Iterator[Piece]:
    """Cut the grounding tags out of the text; those that the tokenizer lacks stay part of it."""
    tags = [tag for tag in GROUNDING_TAGS if tag in known]
    for piece in pieces:
        if piece.control:
            yield piece
        else:
            yield from split_control(piece.text, tags)


def control_id(token: str, known: dict[str, int], tokenizer: Any) -> int:
    """Look a control token up, in the added tokens first and then in the vocabulary.

    Raises:
        ValueError: the tokenizer does not have it.
    """
    if token in known:
        return known[token]
    index = tokenizer.convert_tokens_to_ids(token)
    if index is None or tokenizer.convert_ids_to_tokens(index) != token:
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path!r} has no token {token!r}, which the prompt "
            "needs; use the tokenizer of the checkpoint, or correct its chat template."
        )
    return index


def beginning_of_sequence(tokenizer: Any) -> list[int]:
    """The id that the tokenizer puts before a sequence, if it puts one."""
    ids = tokenizer("")["input_ids"]
    return [int(ids[0])] if ids and ids[0] == tokenizer.bos_token_id else []


def _strips(tokenizer: Any, token: int, side: str) -> bool:
    """Whether an added token swallows the white space on that side of it (Phi-3's do)."""
    added = tokenizer.added_tokens_decoder.get(token)
    return bool(added is not None and getattr(added, side, False))
