"""Which frames of a video the model is shown: arithmetic on a frame count and a frame rate.

* `uniform`  the model card's `get_index` (also MVBench): midpoints of equal segments.
* `middle`   the training code's evaluation policy: the middle frame of each of equal integer
  intervals.
* `random`   the training code's training policy: one frame from each interval, drawn by an explicit
  generator.
* `fps`      one frame every 1 / fps seconds, at the middle of the interval.

`uniform` and `middle` are equal to the official code frame by frame; where it repeats frames (more
asked than there are), so do they.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

SAMPLINGS = ("uniform", "middle", "random", "fps")


@dataclass(frozen=True)
class FrameChoice:
    """What is asked of a video.

    Attributes:
        sampling: one of SAMPLINGS.
        num_frames: how many frames; with `fps` the most, None for no such limit.
        bound: first and last second looked at; None for the whole video.
        fps: frames per second to take; for `fps` only.
        generator: source of randomness; for `random` only.
        max_frames: an `fps` choice of more frames is an error.
    """

    sampling: str = "uniform"
    num_frames: int | None = 8
    bound: Sequence[float] | None = None
    fps: float | None = None
    generator: np.random.Generator | None = None
    max_frames: int = 1024

    def __post_init__(self) -> None:
        """Refuse what no video could satisfy."""
        if self.sampling not in SAMPLINGS:
            raise ValueError(f"sampling={self.sampling!r}; expected one of {', '.join(SAMPLINGS)}.")
        if self.num_frames is not None and self.num_frames < 1:
            raise ValueError(f"num_frames={self.num_frames}; expected at least 1.")
        if self.num_frames is None and self.sampling != "fps":
            raise ValueError(
                f"sampling={self.sampling!r} needs num_frames; only 'fps' does without."
            )
        if self.sampling == "fps" and not (self.fps and self.fps > 0):
            raise ValueError(f"sampling='fps' needs fps > 0, got {self.fps}.")
        if self.sampling == "random" and not isinstance(self.generator, np.random.Generator):
            raise ValueError(
                "sampling='random' needs generator=numpy.random.default_rng(seed); no global "
                "randomness is used."
            )
        if self.bound is not None and (
            len(self.bound) != 2 or not 0 <= self.bound[0] <= self.bound[1]
        ):
            raise ValueError(
                f"bound={self.bound!r}; expected (first second, last second), 0 <= first <= last."
            )


def choose_frames(choice: FrameChoice, total: int, rate: float | None) -> list[int]:
    """Choose frames, in ascending order.

    Args:
        choice: what is asked.
        total: frames in the video.
        rate: frames per second of the video; needed for `bound` and `fps`.

    Returns:
        Indices in [0, total), with repetitions when more frames are asked for than there are.

    Raises:
        ValueError: a video without frames, an unknown rate that is needed, a bound outside the
            video, or an `fps` choice of more than `max_frames` frames.
    """
    if total < 1:
        raise ValueError("the video has no frames.")
    if rate is None or rate <= 0:
        if choice.bound is not None or choice.sampling == "fps":
            raise ValueError(
                "the frame rate of the video is unknown, and bound and fps need it; use "
                "num_frames alone."
            )
        rate = 1.0
    first, last = frame_range(choice.bound, total, rate)
    if choice.sampling == "uniform":
        return uniform_indices(first, last, choice.num_frames or 1)
    if choice.sampling == "fps":
        return _fps_indices(choice, first, last, rate)
    length = last - first + 1
    starts = interval_starts(length, choice.num_frames or 1)
    if choice.sampling == "middle":
        picked = [(low + high - 1) // 2 for low, high in pairwise(starts)]
    else:
        assert choice.generator is not None
        picked = [int(choice.generator.integers(low, high)) for low, high in pairwise(starts)]
    padding = [length - 1] * ((choice.num_frames or 1) - len(picked))
    return [first + index for index in picked + padding]


def frame_range(bound: Sequence[float] | None, total: int, rate: float) -> tuple[int, int]:
    """First and last frame of a stretch given in seconds.

    Raises:
        ValueError: the stretch begins after the last frame.
    """
    if bound is None:
        return 0, total - 1
    first, last = round(bound[0] * rate), min(round(bound[1] * rate), total - 1)
    if first > last:
        raise ValueError(
            f"bound={tuple(bound)!r} begins at frame {first}, but the video has {total} frames "
            f"({total / rate:.2f} s at {rate:g} frames per second)."
        )
    return first, last


def uniform_indices(first: int, last: int, num_frames: int) -> list[int]:
    """Midpoints of `num_frames` segments of [first, last], rounded as by the model card."""
    segment = float(last - first) / num_frames
    # Two roundings, half to even and then down, in float64: the official result to the frame.
    return [int(first + segment / 2 + round(segment * k)) for k in range(num_frames)]


def interval_starts(length: int, num_frames: int) -> list[int]:
    """Bounds of min(num_frames, length) intervals that cover `length` frames, none empty."""
    count = min(num_frames, length)
    # float64 as in the official code: np.linspace rounds a few bounds down that integer division
    # would not.
    return [int(bound) for bound in np.linspace(0, length, count + 1)]


def _fps_indices(choice: FrameChoice, first: int, last: int, rate: float) -> list[int]:
    """One frame per 1 / fps seconds; a cap thins the whole stretch rather than cut its end."""
    assert choice.fps is not None
    length = last - first + 1
    step = 1.0 / choice.fps
    wanted = int(length / rate * choice.fps) + 2
    limit = choice.num_frames or choice.max_frames
    if wanted > 4 * limit + 16:  # far beyond the limit: no need to list them
        indices = list(range(limit + 1))
    else:
        seconds = np.arange(step / 2, length / rate + step / 2, step)
        indices = [int(index) for index in np.around(seconds * rate) if index < length]
    if not indices:  # shorter than half a step
        return [(first + last) // 2]
    if len(indices) <= limit:
        return [first + index for index in indices]
    if choice.num_frames is None:
        raise ValueError(
            f"fps={choice.fps:g} of {length / rate:.0f} s is more than "
            f"max_frames={choice.max_frames} frames; "
            "lower fps, give a bound, or cap it with num_frames."
        )
    return uniform_indices(first, last, choice.num_frames)
