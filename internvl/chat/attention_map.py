"""Where in the images a word of an answer came from: attention, brought back to pixels.

    dialogue + answer -> attention of the positions that wrote the word (L, heads, T)
    -> visual tokens (N, Q) -> patches (N, ph, pw) -> cells of the image (rows * ph, cols * pw)
    -> pixels (H, W)

The token at position t is written by the row t - 1. The way back inverts, step by step, what the
image went through: pixel unshuffle merged patches into tokens, tiling cut the image stretched to
its grid, and the thumbnail showed it once more. Nothing is interpolated here, and sums are kept:
the cells of an image sum to the attention that its tiles received.

Attention tells where a layer read, not why it answered; the report makes no claim about it.

    # N tiles   Q visual tokens per tile   ph, pw  patch rows, columns of a tile   L layers
    # T text positions   H, W  pixels   r  patches per side of a visual token
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from internvl import hub
from internvl.chat.media import Media
from internvl.chat.prompt import PromptMaker
from internvl.chat.session import ChatSession

Part = Literal["image", "tiles", "thumbnail"]


# ---------------------------------------------------------------------- geometry
def token_of_patch(patches: int, ratio: float, version: str) -> torch.Tensor:
    """Which visual token of its tile each patch went into.

    Found by sending the numbers of the patches through pixel unshuffle itself, so that it is the
    inverse for both of its orders.

    Args:
        patches: per side of a tile.
        ratio: `downsample_ratio` of the model.
        version: `ps_version` of the model.

    Returns:
        (ph, pw) token numbers.
    """
    numbers = torch.arange(patches * patches).reshape(1, patches, patches, 1)
    unshuffle = hub.ring0("functional_internvl_chat").unshuffle_pixels
    merged = unshuffle(numbers, ratio, version).flatten(0, 2)  # (Q, r * r) patch numbers
    owner = torch.empty(patches * patches, dtype=torch.long)
    owner[merged.flatten()] = torch.arange(len(merged)).repeat_interleave(merged.shape[1])
    return owner.reshape(patches, patches)


@dataclass(frozen=True)
class Cells:
    """Attention on the patches of an image.

    Attributes:
        tiles: (rows * ph, cols * pw) patches of the tiles, put together as the image was cut.
        thumbnail: (ph, pw) patches of the thumbnail, each of which covers rows x cols of the cells
            above; None without one.
        patches_per_token: patches down, and across, that one visual token stands for.
    """

    tiles: torch.Tensor
    thumbnail: torch.Tensor | None
    patches_per_token: int = 1

    def of(self, part: Part = "image") -> torch.Tensor:
        """Attention per cell, (rows * ph, cols * pw), summing to that of the part.

        Args:
            part: "tiles", "thumbnail", or "image" for both together.

        Raises:
            ValueError: the thumbnail of an image that has none, or no such part.
        """
        if part == "tiles":
            return self.tiles
        if part not in ("image", "thumbnail"):
            raise ValueError(f"part is {part!r}; expected image, tiles or thumbnail.")
        if self.thumbnail is None:
            if part == "thumbnail":
                raise ValueError("the image is one tile, so it has no thumbnail; ask for 'tiles'.")
            return self.tiles
        rows = self.tiles.shape[0] // self.thumbnail.shape[0]
        cols = self.tiles.shape[1] // self.thumbnail.shape[1]
        spread = self.thumbnail.repeat_interleave(rows, 0).repeat_interleave(cols, 1)
        spread = spread / (rows * cols)
        return spread if part == "thumbnail" else self.tiles + spread


def cells_of(weights: torch.Tensor, rows: int, cols: int, owner: torch.Tensor) -> Cells:
    """Put the visual tokens of an image where its patches are.

    Args:
        weights: (n, Q) attention on the tokens of its tiles, thumbnail last.
        rows: tiles down.
        cols: tiles across.
        owner: (ph, pw) from `token_of_patch`.

    Raises:
        ValueError: tiles that are neither those of the grid nor one more.
    """
    n, Q = weights.shape
    if n not in (rows * cols, rows * cols + 1):
        raise ValueError(
            f"{n} tiles for a grid of {rows} x {cols}; expected {rows * cols}, or one more with a "
            "thumbnail."
        )
    ph, pw = owner.shape
    patches = weights[:, owner] * (Q / owner.numel())  # (n, ph, pw): a token's share per patch
    grid = patches[: rows * cols].unflatten(0, (rows, cols)).swapaxes(1, 2)
    return Cells(
        tiles=grid.reshape(rows * ph, cols * pw),
        thumbnail=patches[rows * cols] if n > rows * cols else None,
        patches_per_token=math.isqrt(owner.numel() // Q),
    )


def to_pixels(cells: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The cell under each pixel of the image before tiling.

    Args:
        cells: (rows * ph, cols * pw).
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        (H, W) values of `cells`.
    """
    down = (2 * torch.arange(height) + 1) * cells.shape[0] // (2 * height)  # by the pixel's middle
    across = (2 * torch.arange(width) + 1) * cells.shape[1] // (2 * width)
    return cells[down[:, None], across[None]]


# ---------------------------------------------------------------------- words
@dataclass(frozen=True)
class Word:
    """A word of an answer, and the tokens `first` to `end` - 1 of the answer that spell it."""

    text: str
    first: int
    end: int


def words_of(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[Word]:
    """Split an answer into words with their tokens.

    A word ends at white space, at a token without text (a tag, the end of the turn), and after
    each token of a script that has no spaces.

    Args:
        ids: of the answer.
        decode: ids to text, special tokens left out.
    """
    words: list[Word] = []
    start = read = 0
    fresh = True  # the next piece begins a word
    for index, token in enumerate(ids):
        if not decode([token]):
            start = read = index + 1
            fresh = True
            continue
        before, now = decode(ids[start:read]), decode(ids[start : index + 1])
        if len(now) <= len(before) or now.endswith("\ufffd"):
            continue  # a character that is not complete yet
        piece = now[len(before) :]
        if not piece.strip():
            fresh = True
        elif words and not (fresh or piece[0].isspace() or _spaceless(words[-1].text[-1], piece)):
            words[-1] = replace(words[-1], text=words[-1].text + piece.rstrip(), end=index + 1)
            fresh = piece[-1].isspace()
        else:
            words.append(Word(piece.strip(), read, index + 1))
            fresh = piece[-1].isspace()
        start, read = read, index + 1
    return words


def _spaceless(last: str, piece: str) -> bool:
    """Whether a piece after a character begins a word although no space stands between."""
    return any("\u3040" <= c <= "\u30ff" or "\u3400" <= c <= "\u9fff" for c in (last, piece[0]))


# ---------------------------------------------------------------------- attention
@contextlib.contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """Let a language model compute its attention weights one by one, and switch back after.

    Nobody else may run the model meanwhile.

    Args:
        model: the chat model.
    """
    language = model.language_model
    before = language.config._attn_implementation
    language.set_attn_implementation("eager")
    try:
        yield
    finally:
        language.set_attn_implementation(before)


@torch.no_grad()
def attention_of(model: Any, embeds: torch.Tensor, first: int) -> torch.Tensor:
    """Attention of the last positions, averaged over them.

    What stands before them goes through the model's own attention into a cache; only the rows
    that are asked for are computed one by one, so the memory is that of rows x T numbers per head
    and layer, not of T x T.

    Args:
        model: the chat model.
        embeds: (1, T, D) embeddings, images in place.
        first: the first of the positions.

    Returns:
        (L, heads, T) in float32 on the CPU; each row sums to 1.

    Raises:
        ValueError: no positions.
    """
    T = embeds.shape[1]
    if not 0 <= first < T:
        raise ValueError(f"position {first} of {T}; expected 0 to {T - 1}.")
    generation = hub.ring0("generation_internvl_chat")
    regime, config = generation.rotary_regime, model.config.llm_config
    # Keys made under another rotary table would be of no use.
    kept = first if regime(config, first + 1) == regime(config, T) else 0
    cache = None
    if kept:
        cache = generation.prefill(model, {"inputs_embeds": embeds[:, : kept + 1]}, None)
    with eager_attention(model):
        output = model(
            inputs_embeds=embeds[:, kept:],
            past_key_values=cache,
            use_cache=cache is not None,
            output_attentions=True,
            logits_to_keep=1,
        )
    layers = [layer[0, :, first - kept :].float().mean(1).cpu() for layer in output.attentions]
    return torch.stack(layers)


@dataclass(frozen=True)
class WordAttention:
    """What the rows that wrote a word attended to.

    Attributes:
        word: the word.
        media: images and videos of the dialogue up to the answer.
        weights: (L, heads, N, Q) attention on their visual tokens.
        owner: (ph, pw), see `token_of_patch`.
    """

    word: Word
    media: tuple[Media, ...]
    weights: torch.Tensor
    owner: torch.Tensor

    def on_tiles(self, layer: int | None = None, head: int | None = None) -> list[torch.Tensor]:
        """(n, Q) attention on the tiles or frames of each image or video.

        Args:
            layer: one of the layers; None for the mean of all.
            head: one of the heads; None for the mean of all.
        """
        chosen = self.weights if layer is None else self.weights[[layer]]
        chosen = chosen if head is None else chosen[:, [head]]
        mean = chosen.mean((0, 1))  # (N, Q)
        return list(mean.split([len(each.pixel_values) for each in self.media]))

    def maps(self, layer: int | None = None, head: int | None = None) -> list[list[Cells]]:
        """Cells of each image, and of each frame of each video; arguments as in `on_tiles`."""
        found = []
        for media, weights in zip(self.media, self.on_tiles(layer, head), strict=True):
            if media.tiling is None:
                found.append([cells_of(frame[None], 1, 1, self.owner) for frame in weights])
            else:
                grid = media.tiling
                found.append([cells_of(weights, grid.rows, grid.cols, self.owner)])
        return found


def words_of_turn(session: ChatSession, turn: int, ids: Sequence[int] | None = None) -> list[Word]:
    """Words of an answer of a dialogue.

    Args:
        session: the dialogue.
        turn: which of its turns.
        ids: of the answer as it was generated (`Reply.ids`); encoded anew when None.
    """
    maker = _maker(session)
    ids = _ids_of_answer(session, turn) if ids is None else ids
    return words_of(ids, maker.decoder(keep_grounding=False).text)


@torch.no_grad()
def word_attention(
    session: ChatSession, turn: int, word: Word, ids: Sequence[int] | None = None
) -> WordAttention:
    """Attention of the rows that wrote a word, on the images of the dialogue up to there.

    The dialogue is not changed, and its cache is not used: one prefill of the prompt and a pass
    over the tokens of the word.

    Args:
        session: the dialogue.
        turn: which of its turns.
        word: of `words_of_turn`.
        ids: as given there.

    Raises:
        IndexError: no such turn.
        ValueError: a dialogue without images up to there, or a word that is not of the answer.
    """
    turns = session.turns
    if not -len(turns) <= turn < len(turns):
        raise IndexError(f"there is no turn {turn}; the dialogue has {len(turns)}.")
    turn = range(len(turns))[turn]
    answer = _ids_of_answer(session, turn) if ids is None else ids
    if not 0 <= word.first < word.end <= len(answer):
        raise ValueError(
            f"{word} is not of this answer, which has {len(answer)} tokens; take it from "
            "words_of_turn() with the same ids."
        )
    maker, model = _maker(session), session.model
    asked = [*turns[:turn], replace(turns[turn], answer="")]
    request = maker.compose(asked, session.image_labels)
    if request.pixel_values is None:
        raise ValueError("the dialogue has no image up to this answer, so there is nothing to map.")
    prompt = maker.ids(request, session.system_message)
    keys = [key for each in request.media for key in each.keys]
    features, _ = session.features.encode(model, request.pixel_values, keys)
    read = [*prompt, *answer[: word.end - 1]]  # the last of them wrote the word's last token
    embeds = maker.inputs(read, features)["inputs_embeds"]
    weights = attention_of(model, embeds, len(prompt) + word.first - 1)
    visual = torch.tensor(prompt) == maker.image_token
    on_images = weights[:, :, : len(prompt)][:, :, visual]
    vision = model.config.vision_config
    return WordAttention(
        word=word,
        media=tuple(request.media),
        weights=on_images.unflatten(-1, (-1, model.num_image_token)),
        owner=token_of_patch(
            model.config.tile_size // vision.patch_size, model.downsample_ratio, model.ps_version
        ),
    )


def _maker(session: ChatSession) -> PromptMaker:
    return PromptMaker(session.model, session.processor, session.tokenizer)


def _ids_of_answer(session: ChatSession, turn: int) -> list[int]:
    conversation = hub.ring0("conversation")
    pieces = [conversation.Piece(session.turns[turn].answer, False)]
    return conversation.encode(pieces, session.tokenizer, add_bos=False)
