"""Random JPEG compression (report section 3.4): the only augmentation, as it moves no pixel.

Applied to images of datasets that ask for it, never to video frames, so that all frames of a clip
keep one quality (report section 4.1).
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

QUALITIES = (75, 100)


def random_jpeg(
    image: Image.Image, rng: np.random.Generator, qualities: tuple[int, int] = QUALITIES
) -> Image.Image:
    """Compress an image as JPEG and read it again.

    Args:
        image: any mode that JPEG knows; RGB in this project.
        rng: draws the quality.
        qualities: lowest and highest quality, both possible.
    """
    low, high = qualities
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=int(rng.integers(low, high + 1)))
    with Image.open(io.BytesIO(stream.getvalue())) as compressed:
        return compressed.convert(image.mode)
