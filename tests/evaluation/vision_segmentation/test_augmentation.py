from __future__ import annotations

import numpy as np
import pytest
import torch

from internvl.evaluation.vision.segmentation import transforms

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
CROP = 32


class Fixed(np.random.Generator):
    """A generator whose flips and colour steps are chosen, the rest drawn."""

    def __init__(self, seed: int, *, flip: bool, colours: bool = False) -> None:
        super().__init__(np.random.PCG64(seed))
        self.flip, self.colours = flip, colours

    def random(self, *args, **kwargs):
        return 0.0 if self.flip else 0.9

    def integers(self, low, high=None, **kwargs):
        if (low, high) == (2, None) and not self.colours:
            return 0
        return super().integers(low, high, **kwargs)


def chequered(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Fields of 16 pixels whose grey value says their class: image = 20 * class."""
    rows, columns = np.arange(height) // 16, np.arange(width) // 16
    mask = ((rows[:, None] * 5 + columns) % 12).astype(np.uint8)
    return np.repeat(mask[..., None] * 20, 3, axis=2).astype(np.uint8), mask


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shape", [(64, 96), (96, 64), (20, 90)])
def test_image_and_mask_move_together(flip, shape):
    image, mask = chequered(*shape)
    for seed in range(12):
        rng = Fixed(seed, flip=flip)
        pixels, labels = transforms.augment(image, mask, rng, crop=CROP, mean=MEAN, std=STD)
        assert pixels.shape == (3, CROP, CROP)
        assert labels.shape == (CROP, CROP)
        assert (pixels.dtype, labels.dtype) == (torch.float32, torch.int64)
        padded = labels == 255
        assert (pixels[:, padded] == 0).all()  # 0 after normalisation: the mean colour
        grey = (pixels[0] * STD[0] + MEAN[0]) * 255 / 20
        # Between two fields the image is smooth and the mask is not: within them both agree.
        agree = (grey - labels).abs()[~padded] < 0.06
        assert agree.float().mean() > 0.6
        assert (grey.round() == labels)[~padded].float().mean() > 0.7


def test_flip_is_a_mirror():
    image, mask = chequered(64, 96)
    plain, mirrored = (
        transforms.augment(image, mask, Fixed(5, flip=flip), crop=CROP, mean=MEAN, std=STD)
        for flip in (False, True)
    )
    width = int((plain[1][0] != 255).sum())
    assert width == CROP  # the crop is full, so nothing was padded
    for straight, turned in zip(plain, mirrored, strict=True):
        assert torch.equal(straight, turned.flip(-1))


def test_half_of_the_crops_are_mirrored_and_sizes_spread():
    sizes, mirrored = set(), 0
    image, mask = np.zeros((16, 64, 3), np.uint8), np.zeros((16, 64), np.uint8)
    mask[:, 32:] = 1
    for seed in range(60):
        rng = np.random.default_rng(seed)
        _, labels = transforms.augment(image, mask, rng, crop=CROP, mean=MEAN, std=STD)
        real = labels[0][labels[0] != 255]
        sizes.add(int((labels[:, 0] != 255).sum()))
        mirrored += int(real[0] == 1)
    assert min(sizes) == 16  # ratio 0.5: the shorter side is half a crop, the rest is padded
    assert max(sizes) == CROP
    assert 15 <= mirrored <= 45


@pytest.mark.parametrize(
    ("shape", "ratio", "expected"),
    [
        # mmcv.imrescale with scale (int(2016 r), int(504 r)): 504 / 512 and so on.
        ((512, 683), 1.0, (504, 672)),
        ((683, 512), 1.0, (672, 504)),
        ((512, 683), 0.5, (252, 336)),
        ((512, 683), 2.0, (1008, 1345)),
        ((100, 1000), 1.0, (202, 2016)),  # the long side limits
    ],
)
def test_training_sizes(shape, ratio, expected):
    assert transforms.training_size(*shape, crop=504, ratio=ratio) == expected


def test_evaluation_sizes():
    assert transforms.evaluation_sizes(512, 683, crop=504, patch=14) == ((504, 672), (504, 672))
    assert transforms.evaluation_sizes(500, 375, crop=504, patch=14) == ((672, 504), (672, 504))
    assert transforms.evaluation_sizes(480, 641, crop=504, patch=14) == ((504, 673), (504, 686))
    pixels = transforms.evaluation_pixels(
        np.full((30, 47, 3), 128, np.uint8), crop=56, patch=14, mean=MEAN, std=STD
    )
    assert pixels.shape == (3, 56, 98)
    assert float(pixels[0, 0, 0]) == pytest.approx((128 / 255 - 0.5) / 0.2, abs=1e-6)


def test_resizing_is_opencv():
    # What OpenCV 5.0.0 gives for this pattern; its fixed-point arithmetic may differ by 1.
    grey = (np.arange(60) * 37 % 251).reshape(4, 5, 3).astype(np.uint8)
    linear = [
        [9, 72, 139, 189, 119, 138, 202],
        [80, 143, 151, 51, 130, 155, 147],
        [150, 94, 72, 121, 200, 172, 92],
    ]
    nearest = [
        [0, 0, 111, 222, 222, 82, 193],
        [53, 53, 164, 24, 24, 135, 246],
        [106, 106, 217, 77, 77, 188, 48],
    ]
    found = transforms.resize_image(grey, (3, 7))[..., 0].astype(int)
    assert np.abs(found - linear).max() <= 1
    assert transforms.resize_mask(grey[..., 0], (3, 7)).tolist() == nearest


def test_crops_avoid_one_class():
    mask = np.zeros((80, 80), np.uint8)
    mask[40:, 40:] = 1
    share = []
    for seed in range(40):
        top, left = transforms.choose_crop(mask, 40, np.random.default_rng(seed))
        part = mask[top : top + 40, left : left + 40]
        share.append(np.bincount(part.ravel(), minlength=2).max() / part.size)
    # At random two thirds of the crops are above; ten tries leave next to none.
    assert np.mean(np.array(share) >= 0.75) < 0.1
    nothing = np.zeros((80, 80), np.uint8)  # cannot be met: the last place is taken
    assert transforms.choose_crop(nothing, 40, np.random.default_rng(0)) != (0, 0)
    labelled = np.full((40, 43), 255, np.uint8)  # 255 does not count as a class
    labelled[:, :2], labelled[:, 2:4] = 0, 1
    places = {transforms.choose_crop(labelled, 40, np.random.default_rng(s))[1] for s in range(20)}
    assert places == {0, 1}  # from column 2 on there is one class only


def test_colours_change_and_places_do_not():
    rng = np.random.default_rng(5)
    image = np.full((8, 8, 3), (200, 90, 40), np.uint8)
    image[:, 4:] = (30, 60, 160)
    found = [transforms.distort(image, np.random.default_rng(seed)) for seed in range(64)]
    assert all(each.dtype == np.uint8 and each.shape == image.shape for each in found)
    for each in found:  # a colour stays one colour, wherever it was
        assert (each[:, :4] == each[0, 0]).all()
        assert (each[:, 4:] == each[0, 4]).all()
    unchanged = sum(np.array_equal(each, image) for each in found)
    assert 0 < unchanged < 20  # no step: 1 in 16
    assert len({tuple(each[0, 0]) for each in found}) > 30
    assert np.array_equal(image[0, 0], (200, 90, 40))  # the caller's stays as it is
    grey = np.full((4, 4, 3), 120, np.uint8)
    values = [transforms.distort(grey, rng) for _ in range(64)]
    assert all(np.ptp(each, axis=2).max() == 0 for each in values)  # no hue to turn
    # Brightness by 32 and contrast by half at most, in either order.
    assert min(each.min() for each in values) >= int((120 - 32) * 0.5) - 1
    assert max(each.max() for each in values) <= int((120 + 32) * 1.5) + 1
    assert len({int(each[0, 0, 0]) for each in values}) > 20


def test_the_generator_decides_everything():
    image, mask = chequered(64, 96)
    first, again, other = (
        transforms.augment(image, mask, np.random.default_rng(seed), crop=CROP, mean=MEAN, std=STD)
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
