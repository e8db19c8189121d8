"""The chosen frames of a video, one at a time: a long one costs no more memory than a short one.

A file is indexed first (its packets are read, none is decoded), which gives the exact number of
frames, the time of each and the keyframes. From that follows what is cheaper: to decode from the
start, or to jump to the keyframe before each wanted frame. Both give the same frames.

Video files need PyAV (`av`). Animated images (GIF, PNG, WebP), folders and lists of images and
arrays do not.
"""

from __future__ import annotations

import bisect
import io
import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageSequence

from .image_sources import (
    SourcePolicy,
    array_to_image,
    check_pixels,
    describe,
    load_rgb,
    open_image,
    read_source,
)

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"}
)
# A playlist would make ffmpeg open the files and URLs it lists; with this only the bytes at hand
# are read.
_NO_OTHER_FILES = {"protocol_whitelist": "pipe"}
Chooser = Callable[[int, "float | None"], list[int]]
Transform = Callable[[Image.Image], Any]


@dataclass(frozen=True)
class DecodeLimits:
    """What a video may cost, and what happens to frames that cannot be decoded.

    Attributes:
        timeout: seconds of wall clock for opening, indexing and decoding one video; None for no
            limit.
        on_bad_frame: "raise", or "nearest": take the closest of the chosen frames that could be
            decoded.
        seek: True or False forces or forbids jumping to keyframes; None takes the cheaper way.
    """

    timeout: float | None = 120.0
    on_bad_frame: str = "raise"
    seek: bool | None = None

    def __post_init__(self) -> None:
        """Refuse unknown policies."""
        if self.on_bad_frame not in ("raise", "nearest"):
            raise ValueError(f"on_bad_frame={self.on_bad_frame!r}; expected 'raise' or 'nearest'.")


@dataclass
class Clip:
    """The chosen frames of one video.

    Attributes:
        frames: what the transform made of each chosen frame.
        indices: their places in the video.
        total: frames in the video.
        rate: frames per second; None if unknown.
    """

    frames: list[Any] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    total: int = 0
    rate: float | None = None


class _Clock:
    def __init__(self, name: str, timeout: float | None) -> None:
        self.name, self.timeout = name, timeout
        self.end = None if timeout is None else time.monotonic() + timeout

    def check(self) -> None:
        if self.end is not None and time.monotonic() > self.end:
            raise TimeoutError(
                f"decoding video {self.name} took longer than timeout={self.timeout:g} s; raise "
                "timeout, ask for fewer "
                "frames or give a bound."
            )


def read_clip(
    source: Any,
    choose: Chooser,
    transform: Transform,
    *,
    policy: SourcePolicy,
    limits: DecodeLimits,
) -> Clip:
    """Read the chosen frames of a video.

    Args:
        source: path or bytes of a video or an animated image, data URL, URL (if the policy allows
            it), a folder of images (in the order of the numbers in their names), a list of images,
            or an array (T, H, W, C) or tensor (T, C, H, W) of frames.
        choose: given the number of frames and the frame rate (None if unknown), returns ascending
            indices.
        transform: applied to each chosen frame, an RGB image.
        policy: how images are read; `max_pixels` also limits video frames.
        limits: what the video may cost.

    Returns:
        The clip.

    Raises:
        FileNotFoundError: a path that does not exist.
        ImportError: a video file, and PyAV is not installed.
        TimeoutError: the time limit was exceeded.
        ValueError: no video, or chosen frames that cannot be decoded.
    """
    clock = _Clock(describe(source), limits.timeout)
    if isinstance(source, (np.ndarray, torch.Tensor, list, tuple)):
        return _from_frames(list(source), choose, transform, policy, clock)
    content = read_source(source, policy)
    if content is None:
        raise ValueError(
            f"{describe(source)} is not a video; expected a path, bytes, a list of frames or an "
            "array (T, H, W, 3)."
        )
    if isinstance(content, Path) and content.is_dir():
        return _from_frames(_folder(content), choose, transform, policy, clock)
    stream = content.open("rb") if isinstance(content, Path) else io.BytesIO(content)
    with stream:
        try:
            if _is_image(stream):
                return _from_animation(stream, choose, transform, policy, clock)
            return _from_video(stream, choose, transform, policy, limits, clock)
        except (ValueError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            raise ValueError(f"{describe(source)}: {error}") from error


def _folder(folder: Path) -> list[Path]:
    """Image files of a folder, 2.jpg before 10.jpg."""
    files = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise ValueError(
            f"folder {str(folder)!r} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})."
        )
    parts = re.compile(r"(\d+)")
    return sorted(
        files,
        key=lambda path: [(int(p), "") if p.isdigit() else (-1, p) for p in parts.split(path.name)],
    )


def _from_frames(
    frames: Sequence[Any],
    choose: Chooser,
    transform: Transform,
    policy: SourcePolicy,
    clock: _Clock,
) -> Clip:
    clip = Clip(total=len(frames), indices=choose(len(frames), None))
    made: dict[int, Any] = {}
    for index in clip.indices:
        clock.check()
        if index not in made:
            frame = frames[index]
            try:
                if isinstance(frame, (np.ndarray, torch.Tensor)):
                    frame = array_to_image(frame)
                made[index] = transform(load_rgb(frame, policy))
            except ValueError as error:
                raise ValueError(f"frame {index + 1} of {len(frames)}: {error}") from error
    clip.frames = [made[index] for index in clip.indices]
    return clip


def _is_image(stream: Any) -> bool:
    """Whether a file begins like an image that Pillow may animate (or show as one frame)."""
    head = stream.read(12)
    stream.seek(0)
    return (
        head[:4] in (b"GIF8", b"\x89PNG")
        or head[:3] == b"\xff\xd8\xff"
        or (head[:4], head[8:]) == (b"RIFF", b"WEBP")
    )


def _from_animation(
    stream: Any, choose: Chooser, transform: Transform, policy: SourcePolicy, clock: _Clock
) -> Clip:
    with open_image(stream, policy.max_pixels) as image:
        total = getattr(image, "n_frames", 1)
        durations = []
        for frame in ImageSequence.Iterator(image):  # durations stand in the frames
            clock.check()
            durations.append(frame.info.get("duration", 0))
        seconds = sum(durations) / 1000
        clip = Clip(total=total, rate=total / seconds if seconds > 0 else None)
        clip.indices = choose(clip.total, clip.rate)
        made: dict[int, Any] = {}
        for index in sorted(set(clip.indices)):
            clock.check()
            image.seek(index)
            made[index] = transform(load_rgb(image.copy(), policy))
    clip.frames = [made[index] for index in clip.indices]
    return clip


@dataclass
class _Index:
    """What a file holds: times of the frames in display order, and the positions of its keyframes.

    A bare stream has packets without times: then `times` is empty and frames are counted as they
    come.
    """

    total: int
    times: list[int]
    keys: list[int]

    def key_before(self, position: int) -> int:
        at = bisect.bisect_right(self.keys, position) - 1
        return self.keys[at] if at >= 0 else 0


def _from_video(
    stream: Any,
    choose: Chooser,
    transform: Transform,
    policy: SourcePolicy,
    limits: DecodeLimits,
    clock: _Clock,
) -> Clip:
    av = _pyav()
    made: dict[int, Any] = {}
    try:
        with av.open(stream, options=_NO_OTHER_FILES) as container:
            track = _track(container, policy)
            index = _index(container, track, clock)
            rate = track.average_rate or track.guessed_rate
            clip = Clip(total=index.total, rate=float(rate) if rate else None)
            clip.indices = choose(clip.total, clip.rate)
            wanted = sorted(set(clip.indices))
            for key, group in _runs(index, wanted, limits.seek):
                container.seek(index.times[key], stream=track, backward=True, any_frame=False)
                _decode(container, track, index, group, made, transform, clock)
        missing = [position for position in wanted if position not in made]
        if missing:  # all of them without a jump; after jumps those that some formats do not find
            stream.seek(0)
            with av.open(stream, options=_NO_OTHER_FILES) as container:
                _decode(
                    container, _track(container, policy), index, missing, made, transform, clock
                )
    except av.error.FFmpegError as error:
        raise ValueError(f"it cannot be decoded: {error.strerror or error}") from error
    clip.frames = _fill(clip.indices, made, clip.total, limits.on_bad_frame, clock.name)
    return clip


def _pyav() -> Any:
    """PyAV, imported when the first video file comes."""
    try:
        import av
    except ImportError as error:
        raise ImportError(
            "video files need PyAV, which is not installed: pip install av (the [video] extra)."
        ) from error
    return av


def _track(container: Any, policy: SourcePolicy) -> Any:
    """The first video stream of a file, its size checked before a frame is decoded."""
    if not container.streams.video:
        raise ValueError("the file has no video stream.")
    track = container.streams.video[0]
    track.thread_type = "AUTO"
    check_pixels(track.codec_context.height or 1, track.codec_context.width or 1, policy.max_pixels)
    return track


def _index(container: Any, track: Any, clock: _Clock) -> _Index:
    """Read every packet of a stream without decoding it.

    Raises:
        ValueError: the stream has no frames.
    """
    moments: list[int | None] = []
    keys: set[int] = set()
    try:
        for packet in container.demux(track):
            clock.check()
            if (
                packet.size == 0 or packet.is_discard
            ):  # the end, or outside the edit list: never shown
                continue
            moment = packet.pts if packet.pts is not None else packet.dts
            moments.append(moment)
            if packet.is_keyframe and moment is not None:
                keys.add(moment)
    except (
        _pyav().error.FFmpegError
    ) as error:  # a torn end: what was indexed until here can be shown
        logger.warning("video %s ends early: %s", clock.name, error)
    if not moments:
        raise ValueError("the file has no video frames.")
    times = sorted({moment for moment in moments if moment is not None})
    if None in moments:
        return _Index(len(moments), [], [])
    return _Index(
        len(times), times, [position for position, moment in enumerate(times) if moment in keys]
    )


def _runs(index: _Index, wanted: Sequence[int], seek: bool | None) -> list[tuple[int, list[int]]]:
    """Runs of wanted frames with the keyframe to jump to; none if jumping does not pay."""
    if seek is False or not index.keys:
        return []
    runs: list[tuple[int, list[int]]] = []
    for position in wanted:
        key = index.key_before(position)
        if runs and runs[-1][0] >= key:
            runs[-1][1].append(position)
        else:
            runs.append((key, [position]))
    # A jump costs about as much as decoding a few frames: the decoder starts again.
    cost = sum(group[-1] - key + 4 for key, group in runs)
    return runs if seek or cost < wanted[-1] + 1 else []


def _decode(
    container: Any,
    track: Any,
    index: _Index,
    group: Sequence[int],
    made: dict[int, Any],
    transform: Transform,
    clock: _Clock,
) -> None:
    """Decode until the last frame of a group; frames that do not decode are left out of `made`."""
    place = {index.times[position]: position for position in group} if index.times else {}
    pending = set(group)
    last = group[-1]
    count = 0
    for packet in container.demux(track):
        clock.check()
        for frame in _decode_packet(packet):
            moment = frame.pts if frame.pts is not None else frame.dts
            position = place.get(moment) if index.times else count
            count += 1
            if position in pending:
                pending.discard(position)
                if not frame.is_corrupt:
                    made[position] = transform(frame.to_image())
            beyond = (
                moment is not None and moment > index.times[last] if index.times else count > last
            )
            if not pending or beyond:
                return


def _decode_packet(packet: Any) -> Sequence[Any]:
    try:
        return packet.decode()
    except EOFError:
        return []
    except _pyav().error.FFmpegError as error:
        logger.debug("packet at %s does not decode: %s", packet.pts, error)
        return []


def _fill(
    indices: Sequence[int], made: dict[int, Any], total: int, on_bad_frame: str, name: str
) -> list[Any]:
    """The frames in the order asked for, holes treated by policy.

    Raises:
        ValueError: frames are missing and the policy is "raise", or all are.
    """
    bad = sorted({index for index in indices if index not in made})
    if bad and (on_bad_frame == "raise" or not made):
        raise ValueError(
            f"frames {bad} of {total} (counted from 0) cannot be decoded: the file is damaged or "
            "cut short; "
            "repair it, or pass on_bad_frame='nearest'."
        )
    if bad:
        logger.warning(
            "video %s: frames %s cannot be decoded, the nearest chosen ones stand for them.",
            name,
            bad,
        )
    nearest = {index: min(made, key=lambda good: (abs(good - index), good)) for index in bad}
    return [made[nearest.get(index, index)] for index in indices]
