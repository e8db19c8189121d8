"""What InternVLChatModel computes without weights: pixel unshuffle, the loss, packing, tile checks.

# B samples   T text positions   V vocabulary   N tiles   ph, pw  patch rows, columns   C width
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

IGNORE_INDEX = -100


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
    logits = logits[:, :-1].flatten(0, 1).float()
    targets = labels[:, 1:].flatten().to(logits.device)
    losses = F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="none")
    if loss_weight is None:
        weights = (targets != IGNORE_INDEX).to(losses.dtype)
    else:
        weights = torch.as_tensor(loss_weight, dtype=torch.float32, device=losses.device)[
            :, 1:
        ].flatten()
    total = weights.sum()
    if all_gather and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
        total = total / torch.distributed.get_world_size()
    if num_items_in_batch is not None:
        total = torch.as_tensor(num_items_in_batch, device=losses.device)
    return (losses * weights).sum() / total


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
    attention_mask: torch.Tensor | None, position_ids: torch.Tensor, use_cache: bool | None
) -> tuple[torch.Tensor | None, bool | None]:
    """Make transformers see packed rows: it does so only without a mask and without a cache, else
    silently not.

    A row is packed when more than one unmasked position is 0. Returns the mask and `use_cache` to
    go on with.
    """
    if attention_mask is not None and attention_mask.ndim != 2:
        return attention_mask, use_cache
    if attention_mask is None:
        if use_cache is None:
            return None, False
        starts = position_ids == 0
    else:
        starts = (position_ids == 0) & attention_mask.bool().to(position_ids.device)
    if torch.compiler.is_compiling() or not bool((starts.sum(-1) > 1).any()):
        return attention_mask, use_cache
    if use_cache:
        raise ValueError(
            "position_ids restart within a row (packed samples) and use_cache=True: a cache "
            "cannot keep packed samples "
            "apart; pass use_cache=False."
        )
    return None, False
