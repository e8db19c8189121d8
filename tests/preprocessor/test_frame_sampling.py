"""Frame choices against the official functions, and their limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.preprocessor.helpers import frame_sampling
from tests.preprocessor.helpers import video_processing as video

counts = st.integers(1, 2000)
wanted = st.integers(1, 80)


def choose(total: int, rate: float | None = 25.0, **choice) -> list[int]:
    return frame_sampling.choose_frames(frame_sampling.FrameChoice(**choice), total, rate)


def card(bound, fps, max_frame, num_segments):
    """The model card's get_index, as it stands there."""
    start, end = (bound[0], bound[1]) if bound else (-100000, 100000)
    start_idx = max(0, round(start * fps))
    end_idx = min(round(end * fps), max_frame)
    seg_size = float(end_idx - start_idx) / num_segments
    return [int(start_idx + (seg_size / 2) + np.round(seg_size * k)) for k in range(num_segments)]


def middle(num_frames, vlen):
    """The training code's sample="middle", as it stands there."""
    acc = min(num_frames, vlen)
    bounds = np.linspace(start=0, stop=vlen, num=acc + 1).astype(int)
    ranges = [(each, bounds[k + 1] - 1) for k, each in enumerate(bounds[:-1])]
    picked = [int((x[0] + x[1]) // 2) for x in ranges]
    return picked + [picked[-1]] * (num_frames - len(picked))


@pytest.mark.parametrize(
    ("total", "options", "expected"),
    [
        (300, {"num_frames": 8}, [18, 55, 93, 130, 168, 205, 242, 280]),
        (4, {"num_frames": 8}, [0, 0, 1, 1, 2, 2, 2, 3]),
        (1, {"num_frames": 8}, [0] * 8),
        (300, {"num_frames": 4, "bound": (1, 4)}, [34, 53, 72, 90]),
        (300, {"num_frames": 8, "sampling": "middle"}, [18, 55, 93, 130, 168, 205, 243, 280]),
        (5, {"num_frames": 8, "sampling": "middle"}, [0, 1, 2, 3, 4, 4, 4, 4]),
    ],
)
def test_recorded_choices(total, options, expected):
    assert choose(total, **options) == expected


@given(total=counts, frames=wanted)
def test_uniform_is_the_model_cards(total, frames):
    assert choose(total, num_frames=frames) == card(None, 25.0, total - 1, frames)


@given(
    total=counts,
    frames=wanted,
    first=st.floats(0, 30),
    length=st.floats(0, 30),
    rate=st.sampled_from([25.0, 29.97, 12.5, 60.0]),
)
def test_uniform_with_a_bound_is_the_model_cards(total, frames, first, length, rate):
    bound = (first, first + length)
    if round(first * rate) > min(round(bound[1] * rate), total - 1):
        with pytest.raises(ValueError, match="begins at frame"):
            choose(total, rate, num_frames=frames, bound=bound)
    else:
        assert choose(total, rate, num_frames=frames, bound=bound) == card(
            bound, rate, total - 1, frames
        )


@given(total=counts, frames=wanted)
def test_middle_is_the_training_codes(total, frames):
    # The official code pads with the last picked frame; with one frame per interval that is the
    # last of the video, so both readings of "last" agree.
    assert choose(total, num_frames=frames, sampling="middle") == middle(frames, total)


@given(total=counts, frames=wanted, seed=st.integers(0, 99))
def test_random_draws_one_frame_per_interval_from_the_generator(total, frames, seed):
    picked = choose(
        total, num_frames=frames, sampling="random", generator=np.random.default_rng(seed)
    )
    again = choose(
        total, num_frames=frames, sampling="random", generator=np.random.default_rng(seed)
    )
    assert picked == again
    starts = frame_sampling.interval_starts(total, frames)
    assert len(picked) == frames
    for low, high, index in zip(starts, starts[1:], picked, strict=False):
        assert low <= index < high
    assert picked[len(starts) - 1 :] == [total - 1] * (frames - len(starts) + 1)


def test_random_reaches_every_frame():
    generator = np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        seen |= set(choose(20, num_frames=4, sampling="random", generator=generator))
    assert seen == set(range(20))


@given(total=counts, frames=wanted, sampling=st.sampled_from(["uniform", "middle"]))
def test_choices_ascend_within_the_video(total, frames, sampling):
    picked = choose(total, num_frames=frames, sampling=sampling)
    assert len(picked) == frames
    assert picked == sorted(picked)
    assert picked[0] >= 0
    assert picked[-1] < total


@given(
    total=counts, rate=st.sampled_from([25.0, 29.97, 60.0]), fps=st.sampled_from([0.5, 1, 2, 5, 25])
)
def test_fps_is_the_training_codes(total, rate, fps):
    # The training code's sample="fpsX", as it stands there.
    duration, delta = total / rate, 1 / fps
    seconds = np.arange(0 + delta / 2, duration + delta / 2, delta)
    expected = [index for index in np.around(seconds * rate).astype(int) if index < total]
    picked = choose(total, rate, sampling="fps", fps=fps, num_frames=None, max_frames=10**6)
    assert picked == (expected or [(total - 1) // 2])


def test_fps_takes_one_frame_per_step():
    assert choose(100, 25.0, sampling="fps", fps=1, num_frames=None) == [12, 38, 62, 88]
    assert choose(100, 25.0, sampling="fps", fps=1, num_frames=None, bound=(2, 4)) == [62, 88]
    # Shorter than half a step: still one frame.
    assert choose(3, 25.0, sampling="fps", fps=1, num_frames=None) == [1]
    # A cap thins the whole video; it does not cut its end off.
    capped = choose(1000, 25.0, sampling="fps", fps=5, num_frames=4)
    assert capped == choose(1000, 25.0, num_frames=4)


def test_fps_of_a_long_video_is_an_error_and_costs_nothing():
    with pytest.raises(ValueError, match="more than max_frames=1024 frames"):
        choose(10**9, 25.0, sampling="fps", fps=20, num_frames=None)
    with pytest.raises(ValueError, match="more than max_frames=3 frames"):
        choose(100, 25.0, sampling="fps", fps=1, num_frames=None, max_frames=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": "best"}, "sampling='best'"),
        ({"num_frames": 0}, "num_frames=0"),
        ({"num_frames": None}, "needs num_frames"),
        ({"sampling": "fps"}, "needs fps > 0"),
        ({"sampling": "fps", "fps": -1}, "needs fps > 0"),
        ({"sampling": "random"}, "generator=numpy"),
        ({"sampling": "random", "generator": 7}, "generator=numpy"),
        ({"bound": (3, 1)}, "first second, last second"),
        ({"bound": (-1, 1)}, "first second, last second"),
        ({"bound": (1,)}, "first second, last second"),
    ],
)
def test_impossible_choices_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        frame_sampling.FrameChoice(**options)


def test_videos_that_cannot_be_chosen_from():
    with pytest.raises(ValueError, match="no frames"):
        choose(0)
    for options in ({"bound": (0, 1)}, {"sampling": "fps", "fps": 1}):
        with pytest.raises(ValueError, match="frame rate of the video is unknown"):
            choose(10, None, **options)
    assert choose(10, None, num_frames=2) == choose(10, 25.0, num_frames=2)


def test_settings_that_cannot_be_followed():
    with pytest.raises(ValueError, match="needs fps"):
        video.InternVLChatVideoProcessor(sampling="fps")
    with pytest.raises(ValueError, match="on_bad_frame"):
        video.InternVLChatVideoProcessor(on_bad_frame="skip")
