from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from internvl.evaluation.vision.segmentation.slide import slide, windows


def test_windows_of_the_official_sizes():
    # 504 x 700: two columns, the second one moved back to end at the border.
    assert windows(504, 700, crop=504, stride=322) == [(0, 0, 504, 504), (0, 196, 504, 700)]
    assert windows(504, 504, crop=504, stride=322) == [(0, 0, 504, 504)]
    assert windows(504, 505, crop=504, stride=322) == [(0, 0, 504, 504), (0, 1, 504, 505)]
    assert [w[1] for w in windows(504, 1200, crop=504, stride=322)] == [0, 322, 644, 696]


def test_every_pixel_is_in_a_window():
    for height, width, crop, stride in ((30, 47, 10, 7), (9, 31, 10, 10), (10, 10, 10, 1)):
        seen = torch.zeros(height, width)
        for top, left, bottom, right in windows(height, width, crop=crop, stride=stride):
            assert 0 <= top < bottom <= height
            assert 0 <= left < right <= width
            assert (bottom - top, right - left) == (min(crop, height), min(crop, width))
            seen[top:bottom, left:right] = 1
        assert seen.all()
    for stride in (0, 11):
        with pytest.raises(ValueError, match="stride"):
            windows(30, 30, crop=10, stride=stride)


def coarse(pixels: torch.Tensor) -> torch.Tensor:
    """Something that looks at its whole window, at half the resolution."""
    return F.avg_pool2d(pixels, 2) + pixels.mean((1, 2, 3), keepdim=True)


def test_one_window_is_the_whole_image():
    pixels = torch.randn(2, 3, 12, 8, generator=torch.Generator().manual_seed(0))
    whole = F.interpolate(coarse(pixels), size=(12, 8), mode="bilinear", align_corners=False)
    assert torch.equal(slide(coarse, pixels, crop=12, stride=5), whole)


def test_overlaps_are_averaged():
    # Windows at columns 0, 3 and 4 of six (crop 2, stride 1 ... by hand below): each answers with
    # a constant, its own mean.
    pixels = torch.arange(6.0).reshape(1, 1, 1, 6).expand(1, 1, 4, 6).contiguous()

    def mean(window: torch.Tensor) -> torch.Tensor:
        return window.mean((1, 2, 3)).reshape(1, 1, 1, 1)

    # crop 4, stride 3: columns 0-3 (mean 1.5) and 2-5 (mean 3.5); two columns are in both.
    logits = slide(mean, pixels, crop=4, stride=3)
    assert logits.shape == (1, 1, 4, 6)
    assert logits[0, 0, 0].tolist() == [1.5, 1.5, 2.5, 2.5, 3.5, 3.5]


def test_overlaps_in_both_directions():
    pixels = torch.randn(1, 2, 11, 13, generator=torch.Generator().manual_seed(1))
    total, count = torch.zeros(1, 2, 11, 13), torch.zeros(11, 13)
    for top in (0, 3, 5):
        for left in (0, 3, 6, 7):
            window = pixels[:, :, top : top + 6, left : left + 6]
            up = F.interpolate(coarse(window), size=(6, 6), mode="bilinear", align_corners=False)
            total[:, :, top : top + 6, left : left + 6] += up
            count[top : top + 6, left : left + 6] += 1
    torch.testing.assert_close(slide(coarse, pixels, crop=6, stride=3), total / count)
