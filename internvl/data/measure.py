"""How long and how many tiles the samples of a mixture are, without decoding a pixel."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from internvl.data.examples import ExampleMaker
from internvl.data.mixture import Mixture
from internvl.data.packing import Item, Limits
from internvl.data.schema import DataError


def measure_items(
    mixture: Mixture, maker: ExampleMaker, limits: Limits, samples: int | None = None
) -> Iterator[Item]:
    """Measure samples in the order of the first epoch.

    A sample over a limit counts as one that fills a row; one that cannot be used is left out, and
    counted where it matters, while training and by `validate`.

    Args:
        mixture: the datasets.
        maker: renders the samples.
        limits: what a row may hold.
        samples: how many to look at; None for all.
    """
    for key in islice(mixture.order(0), samples):
        try:
            sample, spec = mixture.sample(key)
            size = maker.measure(sample, spec, mixture.rng(0, key))
        except DataError:
            continue
        tokens, tiles = min(size.tokens, limits.max_tokens), min(size.tiles, limits.max_tiles)
        yield Item(tokens, tiles, key)
