"""Examples to what a step is given: rows of packed samples that do not see each other.

    examples (T_i,) of a row -> one row (1, T), positions restarting at each sample
    several rows             -> (B, T), padded to the longest

Samples of a row are told apart by `position_ids`, which restart at 0, and by nothing else: there is
no attention mask, because the model reads positions only where there is none, and a mask of ones
would join the samples (report section 4.2, "Pack"). Padding is one more sample of its row, with
positions of its own. Nothing can attend to it but itself, and it has neither labels nor weight.

# B rows   T text positions   N tiles   S tile side
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from internvl.data.examples import Example

IGNORE_INDEX = -100


def collate(
    examples: Sequence[Example],
    *,
    weights: Sequence[np.ndarray] | None = None,
    rows: Sequence[int] | None = None,
    flash: bool = False,
    pad_id: int = 0,
) -> dict[str, Any]:
    """Make a batch of packed rows.

    The first token of a sample is never a target: what stands before it in the row is another
    sample. Its label and its weight are taken out.

    Args:
        examples: the samples, row after row.
        weights: for each sample (T_i,), weights of its labels, 0 where there is no label; None for
            the `loss_weight` of the examples.
        rows: samples of each row; None for one row of all.
        flash: add the borders of the samples as flash-attn wants them. It needs them for several
            rows, and saves looking for them with one.
        pad_id: id that fills short rows; must not be that of `<IMG_CONTEXT>`.

    Returns:
        `input_ids`, `labels`, `position_ids` (B, T) int64, `loss_weight` (B, T) float32,
        `pixel_values` (N, 3, S, S) uint8 and `image_flags` (N,) int64: all 1, or, in a batch
        without images, a single tile with 0, so that every rank runs the vision encoder. With
        `flash`, `cu_seq_lens_q` and `cu_seq_lens_k` int32, borders over the flattened rows with
        padding counted as a sample, and `max_length_q` and `max_length_k`.

    Raises:
        ValueError: no examples, rows that do not add up, or weights that do not fit the labels.
    """
    import torch

    if weights is None:
        weights = [_own_weight(example) for example in examples]
    _check(examples, weights)
    slices = _slices(len(examples), rows)
    runs = _runs([example.tokens for example in examples], slices)
    B, T = len(runs), sum(runs[0])

    def table(columns: Sequence[np.ndarray], padding: int, dtype: Any) -> torch.Tensor:
        filled = np.full((B, T), padding, dtype)
        for row, samples in zip(filled, slices, strict=True):
            values = np.concatenate(columns[samples])
            row[: len(values)] = values
        return torch.from_numpy(filled)

    flat = [length for row in runs for length in row]
    positions = np.concatenate([np.arange(length) for length in flat]).reshape(B, T)
    labels = [_without_first(example.labels, IGNORE_INDEX) for example in examples]
    pixel_values, image_flags = _tiles(examples)
    batch: dict[str, Any] = {
        "input_ids": table([example.input_ids for example in examples], pad_id, np.int64),
        "labels": table(labels, IGNORE_INDEX, np.int64),
        "position_ids": torch.from_numpy(positions),
        "loss_weight": table([_without_first(w, 0) for w in weights], 0, np.float32),
        "pixel_values": pixel_values,
        "image_flags": image_flags,
    }
    return {**batch, **_borders(flat)} if flash else batch


def _own_weight(example: Example) -> np.ndarray:
    if example.loss_weight is None:
        raise ValueError(
            f"example {example.key} has no loss_weight; set it, or pass `weights` to collate."
        )
    return example.loss_weight


def _check(examples: Sequence[Example], weights: Sequence[np.ndarray]) -> None:
    if not examples:
        raise ValueError("there are no examples to collate; a pack has at least one.")
    if len(weights) != len(examples):
        raise ValueError(
            f"got {len(weights)} arrays of weights for {len(examples)} examples; pass one each."
        )
    for example, weight in zip(examples, weights, strict=True):
        T = example.tokens
        if T == 0 or not len(example.labels) == len(weight) == T:
            raise ValueError(
                f"example {example.key} has {T} ids, {len(example.labels)} labels and "
                f"{len(weight)} weights; expected as many of each, and at least one."
            )
        if not (np.isfinite(weight) & (weight >= 0)).all():
            raise ValueError(f"example {example.key} has a weight that is negative or not finite.")
        if weight[example.labels == IGNORE_INDEX].any():
            raise ValueError(
                f"example {example.key} has weights where it has no labels; they would count in "
                "the normaliser of the loss. Set them to 0."
            )


def _slices(samples: int, rows: Sequence[int] | None) -> list[slice]:
    """The samples of each row."""
    rows = [samples] if rows is None else rows
    if sum(rows) != samples or min(rows, default=0) < 1:
        raise ValueError(
            f"rows of {list(rows)} samples for {samples} examples; expected at least one sample a "
            "row, and every example in a row."
        )
    ends = np.cumsum(rows).tolist()
    return [slice(end - count, end) for end, count in zip(ends, rows, strict=True)]


def _runs(lengths: list[int], slices: list[slice]) -> list[list[int]]:
    """Lengths of the samples of each row, padding being the last where there is some."""
    T = max(sum(lengths[samples]) for samples in slices)
    padding = [T - sum(lengths[samples]) for samples in slices]
    return [
        lengths[samples] + ([rest] if rest else [])
        for samples, rest in zip(slices, padding, strict=True)
    ]


def _without_first(column: np.ndarray, neutral: int) -> np.ndarray:
    column = column.copy()
    column[0] = neutral
    return column


def _tiles(examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tiles (N, 3, S, S) uint8 and their flags (N,); one black tile with flag 0 if there are none.

    The official code gives every sample without images a tile of its own, which takes room in the
    pack; here a batch has at most one.
    """
    import torch

    shapes = {example.tiles.shape[1:] for example in examples}
    if len(shapes) > 1:
        raise ValueError(
            f"examples have tiles of shapes {sorted(shapes)}; make all with one checkpoint."
        )
    tiles = np.concatenate([example.tiles for example in examples])
    flags = torch.ones(len(tiles), dtype=torch.int64)
    if not len(tiles):
        tiles, flags = (
            np.zeros((1, *tiles.shape[1:]), tiles.dtype),
            torch.zeros(1, dtype=torch.int64),
        )
    return torch.from_numpy(np.ascontiguousarray(tiles.transpose(0, 3, 1, 2))), flags


def _borders(lengths: Sequence[int]) -> dict[str, Any]:
    """Where samples begin and end, in the arguments of flash-attn."""
    import torch

    borders = torch.tensor([0, *np.cumsum(lengths).tolist()], dtype=torch.int32)
    longest = max(lengths)
    return {
        "cu_seq_lens_q": borders,
        "cu_seq_lens_k": borders,
        "max_length_q": longest,
        "max_length_k": longest,
    }
