"""Lengths of synthetic samples, for measuring how full packing leaves its rows.

Test data: the numbers drawn here stand behind every published figure of packing, so they must not
change. A sample is (tokens, tiles) under the limits of the report's Table 3, 16,384 tokens and 48
tiles a row, at 258 tokens a tile. The distributions are invented for this project, not InternVL's:
the report publishes none.
"""

from __future__ import annotations

import numpy as np

MAX_TOKENS, MAX_TILES = 16384, 48
SHARES = {  # text, low-resolution image, document, multi-image, video
    "stage2": (0.18, 0.38, 0.18, 0.16, 0.10),
    "image": (0.05, 0.85, 0.08, 0.02, 0.0),
    "video": (0.1, 0.3, 0.1, 0.1, 0.4),
}


def samples(mix: str, n: int = 20_000, seed: int = 0) -> list[tuple[int, int]]:
    rng = np.random.RandomState(seed)
    out = []
    for kind in rng.choice(5, n, p=SHARES[mix]):
        text = int(np.clip(rng.lognormal(5.2, 1.0), 20, 6000))
        if kind == 0:
            tiles = 0
            text = int(np.clip(rng.lognormal(6.3, 1.0), 30, 16000))
        elif kind == 1:
            grid = int(
                rng.choice(
                    [1, 2, 3, 4, 6, 8, 9, 12], p=[0.18, 0.14, 0.1, 0.16, 0.18, 0.08, 0.06, 0.10]
                )
            )
            tiles = grid + (grid > 1)
        elif kind == 2:
            grid = int(
                rng.choice(
                    [6, 8, 12, 15, 16, 18, 20, 24], p=[0.2, 0.15, 0.25, 0.08, 0.1, 0.08, 0.07, 0.07]
                )
            )
            tiles = grid + 1
            text = int(np.clip(rng.lognormal(5.8, 1.0), 30, 8000))
        elif kind == 3:
            images, tiles = int(rng.randint(2, 9)), 0
            for _ in range(images):
                grid = int(rng.randint(1, max(1, 24 // images) + 1))
                tiles += grid + (grid > 1)
        else:
            tiles = int(rng.randint(8, 33))
        tiles = min(tiles, MAX_TILES)
        out.append((min(MAX_TOKENS, text + tiles * 258), tiles))
    return out
