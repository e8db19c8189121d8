"""Sliding-window inference, as MMSegmentation's `slide_inference`.

pixels (N, 3, H, W) -> overlapping windows -> logits of each -> their mean, pixel by pixel
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

Window = tuple[int, int, int, int]


def windows(height: int, width: int, *, crop: int, stride: int) -> list[Window]:
    """Windows (top, left, bottom, right) that cover an image.

    They start every `stride` pixels; the last of a row or column is moved back to end at the
    border. An image smaller than a window is one window of its own size.

    Args:
        height: of the image in pixels.
        width: of the image in pixels.
        crop: side of a window.
        stride: pixels between windows.

    Raises:
        ValueError: a stride that leaves gaps, or none.
    """
    if not 0 < stride <= crop:
        raise ValueError(f"stride is {stride}; expected 1 to {crop}, the side of a window.")

    def starts(length: int) -> list[int]:
        count = max(length - crop + stride - 1, 0) // stride + 1
        return [max(min(index * stride + crop, length) - crop, 0) for index in range(count)]

    return [
        (top, left, min(top + crop, height), min(left + crop, width))
        for top in starts(height)
        for left in starts(width)
    ]


def slide(
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    pixel_values: torch.Tensor,
    *,
    crop: int,
    stride: int,
) -> torch.Tensor:
    """Logits of whole images from windows.

    Args:
        logits_of: maps (N, 3, h, w) to (N, K, h', w'), which is upsampled bilinearly.
        pixel_values: (N, 3, H, W), normalised.
        crop: side of a window.
        stride: pixels between windows.

    Returns:
        (N, K, H, W), float32.
    """
    N, _, H, W = pixel_values.shape
    total: torch.Tensor | None = None
    count = pixel_values.new_zeros((1, 1, H, W), dtype=torch.float32)
    for top, left, bottom, right in windows(H, W, crop=crop, stride=stride):
        window = pixel_values[:, :, top:bottom, left:right]
        logits = F.interpolate(
            logits_of(window).float(), size=window.shape[2:], mode="bilinear", align_corners=False
        )
        if total is None:
            total = logits.new_zeros((N, logits.shape[1], H, W))
        total[:, :, top:bottom, left:right] += logits
        count[:, :, top:bottom, left:right] += 1
    assert total is not None  # there is always a window
    return total / count.to(total.device)
