"""What InternVLChatModel computes without weights: pixels, unshuffle, the loss, packing, batches.

# B samples   T text positions   V vocabulary   N tiles   ph, pw  patch rows, columns   C width
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

IGNORE_INDEX = -100
# Vision tokens (class token included) that go through the encoder at once. A CPU is fastest with
# one tile of 1,025; an accelerator wants many, and 32 of them bound the memory of a long video.
_VIT_TOKENS = {"cpu": 2048}
_VIT_TOKENS_ACCELERATOR = 32 * 1025
# Padding that a batch may have, as a share of the positions computed.
MAX_WASTE = 0.15


def normalize_pixels(
    pixel_values: torch.Tensor, mean: Sequence[float], std: Sequence[float]
) -> torch.Tensor:
    """Normalise uint8 tiles (N, 3, H, W) on their device: (x / 255 - mean) / std in float32.

    The operations and their order are those of the image processor, so the values are the same to
    the bit; the bytes are a quarter of float32 on the way to the device.
    """

    def column(values: Sequence[float]) -> torch.Tensor:
        # A tensor, not a scalar: division by a scalar may become a multiplication by its inverse.
        return torch.tensor(values, dtype=torch.float32, device=pixel_values.device)[:, None, None]

    return pixel_values.float().div_(column([255.0])).sub_(column(mean)).div_(column(std))


def default_vit_batch_size(device: torch.device, tokens_per_tile: int) -> int:
    """Tiles that go through the vision encoder at once when nobody says how many.

    Args:
        device: where the encoder is.
        tokens_per_tile: 1 + P.
    """
    return max(1, _VIT_TOKENS.get(device.type, _VIT_TOKENS_ACCELERATOR) // tokens_per_tile)


def distinct_tiles(pixel_values: torch.Tensor) -> tuple[list[int], list[int]]:
    """Find tiles that occur several times.

    Args:
        pixel_values: (N, 3, H, W).

    Returns:
        The index of each distinct tile's first occurrence, and for each tile the place of its equal
        among those.
    """
    sums = pixel_values.flatten(1).sum(1, dtype=torch.float64).tolist()
    kept: list[int] = []
    places: list[int] = []
    candidates: dict[float, list[int]] = {}
    for index, total in enumerate(sums):
        equals = (
            place
            for place in candidates.get(total, [])
            if torch.equal(pixel_values[kept[place]], pixel_values[index])
        )
        place = next(equals, len(kept))
        if place == len(kept):
            kept.append(index)
            candidates.setdefault(total, []).append(place)
        places.append(place)
    return kept, places


def plan_batches(
    lengths: Sequence[int], batch_size: int | None = None, max_waste: float = MAX_WASTE
) -> list[list[int]]:
    """Group samples of like length, in as few batches as keep the padding small.

    Each batch is padded to its longest sample. Among all ways to cut the samples, sorted by length,
    into k batches, the one with the fewest positions is taken, for the smallest k whose share of
    padding is at most `max_waste`.

    Args:
        lengths: tokens of each sample.
        batch_size: most samples in a batch; None for no limit.
        max_waste: share of the positions that may be padding.

    Returns:
        Indices of the samples of each batch, in their given order; the longest batch first.

    Raises:
        ValueError: a batch size below 1.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1, or None.")
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    windows = [order[start : start + _WINDOW] for start in range(0, len(order), _WINDOW)]
    batches = [
        batch
        for window in windows
        for batch in _cut(window, [lengths[i] for i in window], batch_size, max_waste)
    ]
    return [sorted(batch) for batch in reversed(batches)]


# The search below is quadratic; samples beyond this many are searched apart, after sorting.
_WINDOW = 256


def _cut(
    samples: list[int], lengths: list[int], batch_size: int | None, max_waste: float
) -> list[list[int]]:
    """Cut samples sorted by length into batches; see `plan_batches`."""
    n, useful = len(samples), sum(lengths)
    widest = n if batch_size is None else min(n, batch_size)
    # positions[j]: fewest for the first j samples in k batches; cuts[k][j]: where the last begins.
    positions: list[float] = [0.0] + [float("inf")] * n
    cuts: list[list[int]] = []
    while True:
        previous, positions = positions, [float("inf")] * (n + 1)
        cut = [0] * (n + 1)
        for j in range(1, n + 1):
            for i in range(max(0, j - widest), j):
                cost = previous[i] + (j - i) * lengths[j - 1]
                if cost < positions[j]:
                    positions[j], cut[j] = cost, i
        cuts.append(cut)
        possible = positions[n] < float("inf")
        if possible and (positions[n] - useful <= max_waste * positions[n] or len(cuts) == n):
            break
    batches, end = [], n
    for cut in reversed(cuts):
        batches.append(samples[cut[end] : end])
        end = cut[end]
    return batches[::-1]


def unshuffle_pixels(grid: torch.Tensor, ratio: float, version: str) -> torch.Tensor:
    """Pixel unshuffle (report section 2.1): merge r x r neighbouring patches into one visual token,
    r = 1 / ratio.

    Args:
        grid: (N, ph, pw, C), rows first; ph and pw divisible by r.
        ratio: 0.5 in every published model.
        version: "v2" gives (N, ph / r, pw / r, r * r * C); "v1" leaves the two grid axes swapped,
            as the weights of InternVL-Chat 1.0 to 1.2 were trained.

    Returns:
        Tokens whose channels are ordered (row in the token, column in the token, C).

    Raises:
        ValueError: a grid that r does not divide.
    """
    N, ph, pw, C = grid.shape
    r = round(1 / ratio)
    if ph % r or pw % r:
        raise ValueError(
            f"a grid of {ph} x {pw} patches cannot be merged {r} x {r}; pass tiles whose sides "
            "are multiples of "
            f"{r} patches."
        )
    tokens = grid.reshape(N, ph // r, r, pw // r, r, C).permute(0, 1, 3, 2, 4, 5)
    tokens = tokens.reshape(N, ph // r, pw // r, r * r * C)
    return tokens if version == "v2" else tokens.transpose(1, 2).contiguous()


def supervised_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    loss_weight: torch.Tensor | list | None = None,
    num_items_in_batch: torch.Tensor | float | None = None,
    all_gather: bool = False,
) -> torch.Tensor:
    """Next-token cross-entropy: sum(w * ce) / S over the labels that are not -100.

    Without `loss_weight`, w = 1. S is `num_items_in_batch` when given (the sum of w over the whole
    step), else the sum of w here; `all_gather` replaces the latter by its mean over the ranks, so
    that averaging gradients over ranks gives the global weighted mean (report section 3.3.2).

    Args:
        logits: (B, T, V).
        labels: (B, T) ids, -100 where nothing is to be learnt.
        loss_weight: (B, T) weights aligned with `labels`.
        num_items_in_batch: normaliser from the trainer.
        all_gather: average the normaliser over the process group.
    """
    targets = labels[:, 1:].flatten().to(logits.device)
    losses = F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(),
        targets,
        ignore_index=IGNORE_INDEX,
        reduction="none",
    )
    weights = _shifted_weights(labels, loss_weight).to(losses.device)
    return (losses * weights).sum() / _normaliser(weights, num_items_in_batch, all_gather)


def chunked_loss(
    hidden: torch.Tensor,
    head: nn.Module,
    labels: torch.Tensor,
    loss_weight: torch.Tensor | list | None = None,
    num_items_in_batch: torch.Tensor | float | None = None,
    all_gather: bool = False,
    chunk: int = 1024,
    kernel: Callable[..., torch.Tensor] | None = None,
) -> torch.Tensor:
    """`supervised_loss` from hidden states, without ever holding all logits.

    Only positions with a label go through the head, `chunk` at a time, and again when gradients are
    computed; the head is called as a module, so that sharded training can gather it.

    Args:
        hidden: (B, T, D) last hidden states.
        head: from (..., D) to (..., V).
        labels: as in `supervised_loss`.
        loss_weight: as in `supervised_loss`.
        num_items_in_batch: as in `supervised_loss`.
        all_gather: as in `supervised_loss`.
        chunk: positions whose logits are held at once.
        kernel: gives the cross-entropies (M,) of hidden states (M, D), the weight (V, D) of the
            head and targets (M,) in place of the chunks; a fused one of a GPU, say.
    """
    targets = labels[:, 1:].flatten().to(hidden.device)
    weights = _shifted_weights(labels, loss_weight).to(hidden.device)
    total = _normaliser(weights, num_items_in_batch, all_gather)
    learnt = targets != IGNORE_INDEX
    hidden = hidden[:, :-1].flatten(0, 1)[learnt]
    targets, weights = targets[learnt], weights[learnt]

    def one(hidden: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        logits = head(hidden).float()
        return (F.cross_entropy(logits, targets, reduction="none") * weights).sum()

    if not len(targets):  # the head takes part on every rank
        return head(hidden[:0]).sum() * 0 + hidden.sum() * 0
    if kernel is not None:
        return (kernel(hidden, head.weight, targets).float() * weights).sum() / total
    chunks = zip(hidden.split(chunk), targets.split(chunk), weights.split(chunk), strict=True)
    return sum(checkpoint(one, *each, use_reentrant=False) for each in chunks) / total


def _shifted_weights(labels: torch.Tensor, loss_weight: torch.Tensor | list | None) -> torch.Tensor:
    """Weights (B * (T - 1),) of the predictions, aligned with `labels` after the first."""
    if loss_weight is None:
        return (labels[:, 1:] != IGNORE_INDEX).float().flatten()
    return torch.as_tensor(loss_weight, dtype=torch.float32, device=labels.device)[:, 1:].flatten()


def _normaliser(
    weights: torch.Tensor, num_items_in_batch: torch.Tensor | float | None, all_gather: bool
) -> torch.Tensor:
    """S of `supervised_loss`."""
    if num_items_in_batch is not None:
        return torch.as_tensor(num_items_in_batch, device=weights.device)
    total = weights.sum()
    if all_gather and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
        total = total / torch.distributed.get_world_size()
    return total


def check_num_tiles(
    num_tiles: list[int] | torch.Tensor | None, pixel_values: torch.Tensor | None
) -> None:
    """Check that images and tiles were not parted on the way from the processor.

    Raises:
        ValueError: `num_tiles` does not sum to the tiles.
    """
    if num_tiles is None:
        return
    tiles = 0 if pixel_values is None else pixel_values.shape[0]
    if (total := sum(map(int, num_tiles))) != tiles:
        raise ValueError(
            f"num_tiles sums to {total} but pixel_values has {tiles} tiles; pass both as the "
            "processor returned them."
        )


def kept_tiles(image_flags: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Boolean (N,) of the tiles that are real.

    Raises:
        ValueError: not one flag per tile.
    """
    kept = image_flags.reshape(-1).to(features.device) == 1
    if kept.shape[0] != features.shape[0]:
        raise ValueError(
            f"image_flags has {kept.shape[0]} entries but there are {features.shape[0]} tiles; "
            "the collator must emit one "
            "flag per tile (1 = real, 0 = padding)."
        )
    return kept


def isolate_packed_rows(
    attention_mask: Any,
    position_ids: torch.Tensor | None,
    use_cache: bool | None,
    *,
    past_key_values: Any = None,
    borders: torch.Tensor | None = None,
    attention: str | None = None,
) -> tuple[Any, bool | None]:
    """Make transformers see packed rows, or raise: it does so only without a mask and without a
    cache, else silently not.

    A row is packed when the positions of two neighbouring unmasked tokens do not follow each other.
    A compiled graph cannot look at values; there, rows are kept apart if they come as
    `internvl.data.collate` makes them, without a mask and without a cache.

    Args:
        attention_mask: (B, T) or longer, a 4-D or other ready-made mask, or None.
        position_ids: (B, T) positions, or None.
        use_cache: as in `forward`.
        past_key_values: as in `forward`.
        borders: `cu_seq_lens_q`, which flash attention alone reads.
        attention: the attention implementation of the language model.

    Returns:
        The mask and `use_cache` to go on with.

    Raises:
        ValueError: packed rows with a cache, with a 4-D mask that joins the samples, or, for flash
            attention, several of them without borders; borders without positions.
    """
    if position_ids is None:
        if borders is not None:
            raise ValueError(
                "cu_seq_lens_q was given without position_ids: only flash attention reads it, and "
                "positions would run on; pass position_ids that restart at 0 at each sample."
            )
        return attention_mask, use_cache
    rows, T = position_ids.shape
    # Flash attention finds the samples by their positions only where there is one row.
    blind = borders is None and rows > 1 and "flash" in (attention or "")
    if attention_mask is None and use_cache is None and past_key_values is None and not blind:
        return None, False
    if T == 1 or torch.compiler.is_compiling():
        return attention_mask, use_cache
    if getattr(attention_mask, "ndim", 4) != 2 and attention_mask is not None:
        if isinstance(attention_mask, torch.Tensor) and past_key_values is None:
            _check_packed_mask(attention_mask, position_ids)
        return attention_mask, use_cache
    restarts = position_ids.diff(dim=-1) != 1  # (B, T - 1)
    if attention_mask is not None:
        kept = attention_mask[:, -T:].bool().to(position_ids.device)
        restarts = restarts & kept[:, 1:] & kept[:, :-1]
    if not bool(restarts.any()):
        return attention_mask, False if attention_mask is None and use_cache is None else use_cache
    if use_cache or past_key_values is not None:
        raise ValueError(
            "position_ids restart within a row (packed samples) and "
            f"{'use_cache=True' if use_cache else 'past_key_values'}: a cache cannot keep packed "
            "samples apart; pass use_cache=False and no past_key_values."
        )
    if blind:
        raise ValueError(
            f"{attention} cannot keep the packed samples of {rows} rows apart by position_ids "
            "alone; pass cu_seq_lens_q, cu_seq_lens_k, max_length_q and max_length_k, or one row."
        )
    return None, False


def _check_packed_mask(mask: torch.Tensor, position_ids: torch.Tensor) -> None:
    """Refuse a mask (B or 1, heads or 1, T, T) by which a sample sees another one of its row."""
    samples = (position_ids == 0).cumsum(-1)  # (B, T)
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    apart = samples[:, None, :, None] != samples[:, None, None, :]  # (B, 1, T, T)
    if bool((seen & apart.to(seen.device)).any()):
        raise ValueError(
            "position_ids restart within a row (packed samples), but attention_mask lets one "
            "sample see another; leave the mask out, and the positions keep them apart."
        )
