"""AutoVideoProcessor of InternVL: a video in, one tile per chosen frame out (report, section 3.1).

A frame is not cut into tiles: it is resized to one, whatever its shape, because a video has many.
Loading this class through AutoVideoProcessor asks for torchvision on every version of transformers;
the class itself does not use it, and InternVLChatProcessor builds it without.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_utils import BatchFeature
from transformers.video_processing_utils import BaseVideoProcessor

# The Hub loader copies only what an entry file imports itself: name every sibling needed, also
# indirectly.
from .fetching import is_url  # noqa: F401
from .frame_sampling import FrameChoice, choose_frames
from .image_processing_internvl_chat import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    normalize_tiles,
    square_side,
    to_output,
)
from .image_sources import SourcePolicy
from .tiling import Grid, split
from .video_decoding import Clip, DecodeLimits, read_clip


class InternVLChatVideoProcessor(BaseVideoProcessor):
    """Chooses frames of a video and turns each into one tile.

    Args:
        size: side S of a tile, {"height": S, "width": S}.
        crop_size: the same side; for readers of CLIP-style files.
        image_mean: mean per channel of values in [0, 1].
        image_std: deviation per channel.
        num_frames: frames of a video, unless the call says otherwise.
        sampling: how they are chosen: "uniform" (the model card's), "middle", "random" or "fps".
        fps: frames per second for sampling="fps".
        max_frames: an "fps" choice of more frames is an error.
        timeout: seconds of wall clock to decode one video; None for no limit.
        on_bad_frame: "raise", or "nearest" to let the closest chosen frame stand for one that
            cannot be decoded.
        max_pixels: larger frames are refused.
        resample: filter of the resize; 3, bicubic, is the official one.
        do_normalize: False gives the uint8 tiles.
        **kwargs: further fields of video_preprocessor_config.json, kept as attributes.

    Raises:
        ValueError: a setting that cannot be followed.
    """

    model_input_names = ["pixel_values_videos"]  # noqa: RUF012  (transformers' contract)
    # Saving copies the code, whichever way this class was loaded.
    _auto_class = "AutoVideoProcessor"

    _FIELDS = (
        "crop_size",
        "do_normalize",
        "fps",
        "image_mean",
        "image_std",
        "max_frames",
        "max_pixels",
        "num_frames",
        "on_bad_frame",
        "resample",
        "sampling",
        "size",
        "timeout",
    )

    def __init__(
        self,
        size: Any = None,
        crop_size: Any = None,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
        num_frames: int = 8,
        sampling: str = "uniform",
        fps: float | None = None,
        max_frames: int = 1024,
        timeout: float | None = 120.0,
        on_bad_frame: str = "raise",
        max_pixels: int = 300_000_000,
        resample: int = 3,
        do_normalize: bool = True,
        **kwargs: Any,
    ) -> None:
        kwargs.pop("allow_urls", None)
        for key in (
            "video_processor_type",
            "image_processor_type",
            "feature_extractor_type",
            "processor_class",
        ):
            kwargs.pop(key, None)
        side = square_side(448 if size is None else size)
        if crop_size is not None and square_side(crop_size) != side:
            raise ValueError(
                f"crop_size={crop_size!r} differs from size={size!r}; a frame is not cropped, "
                "make them equal."
            )
        super().__init__(**kwargs)
        self.size = {"height": side, "width": side}
        self.crop_size = {"height": side, "width": side}
        self.image_mean = [float(value) for value in image_mean]
        self.image_std = [float(value) for value in image_std]
        self.num_frames, self.sampling, self.fps, self.max_frames = (
            num_frames,
            sampling,
            fps,
            max_frames,
        )
        self.timeout, self.on_bad_frame = timeout, on_bad_frame
        self.max_pixels, self.resample, self.do_normalize = max_pixels, int(resample), do_normalize
        self.allow_urls = False
        DecodeLimits(timeout=timeout, on_bad_frame=on_bad_frame)
        if sampling != "random":  # a generator comes with the call
            FrameChoice(sampling=sampling, num_frames=num_frames, fps=fps, max_frames=max_frames)

    @property
    def tile_size(self) -> int:
        """Side S of a tile in pixels."""
        return self.size["height"]

    def __call__(self, videos: Any, **kwargs: Any) -> BatchFeature:
        """Same as `preprocess`."""
        return self.preprocess(videos, **kwargs)

    def preprocess(self, videos: Any, return_tensors: Any = None, **options: Any) -> BatchFeature:
        """Turn videos into tiles, one per frame.

        Args:
            videos: one video, or a list of videos: a path, bytes, a data URL, a folder of images, a
                list of frames or an array (T, H, W, C). A list of images is one video.
            return_tensors: None or "np" for a numpy array, "pt" for a torch tensor.
            **options: num_frames, sampling, fps, bound (first and last second), generator (numpy,
                for "random"), max_frames, timeout, on_bad_frame, seek, max_pixels, do_normalize,
                resample, allow_urls, url_max_bytes, url_timeout, for this call;
                return_metadata=True adds `video_metadata`. `fps` alone implies sampling="fps", then
                num_frames is the most frames. Frames given as a list or an array are all taken
                unless num_frames, fps or sampling is given.

        Returns:
            `pixel_values_videos` (all frames, 3, S, S), float32 or with do_normalize=False uint8,
            and `num_frames`, a list with the number of frames of each video.

        Raises:
            FileNotFoundError: a path that does not exist.
            ImportError: a video file, and PyAV is not installed.
            TimeoutError: decoding took too long.
            ValueError: a video that cannot be read, or options that contradict each other.
            TypeError: an unknown option.
        """
        with_metadata = options.pop("return_metadata", False)
        settings = self._settings(options)
        sources = list_videos(videos)
        clips = []
        for number, video in enumerate(sources, start=1):
            try:
                clips.append(self.read(video, **options))
            except ValueError as error:
                raise ValueError(f"video {number} of {len(sources)}: {error}") from error
        side = self.tile_size
        frames = [tile for clip in clips for tile in clip.frames]
        stacked = np.stack(frames) if frames else np.empty((0, side, side, 3), dtype=np.uint8)
        if settings["do_normalize"]:
            values = normalize_tiles(stacked, settings["image_mean"], settings["image_std"])
        else:
            values = np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))
        content = {
            "pixel_values_videos": to_output(values, return_tensors),
            "num_frames": [len(clip.frames) for clip in clips],
        }
        if with_metadata:
            content["video_metadata"] = [
                {"frames_indices": clip.indices, "total_num_frames": clip.total, "fps": clip.rate}
                for clip in clips
            ]
        return BatchFeature(content)

    def read(self, video: Any, **options: Any) -> Clip:
        """Read the chosen frames of one video as uint8 tiles (S, S, 3); options: `preprocess`."""
        settings = self._settings(options)
        side, resample = self.tile_size, Image.Resampling(settings["resample"])

        def to_tile(image: Image.Image) -> np.ndarray:
            return split(image, Grid(1, 1), tile=side, thumbnail=False, resample=resample)[0]

        def choose(total: int, rate: float | None) -> list[int]:
            explicit = any(
                options.get(key) is not None for key in ("num_frames", "fps", "sampling")
            )
            if is_frames(video) and not explicit:
                return list(range(total))
            return choose_frames(self._choice(options, settings), total, rate)

        urls = {key: settings[key] for key in ("url_max_bytes", "url_timeout") if key in settings}
        policy = SourcePolicy(
            max_pixels=settings["max_pixels"], allow_urls=settings["allow_urls"], **urls
        )
        limits = DecodeLimits(settings["timeout"], settings["on_bad_frame"], settings.get("seek"))
        return read_clip(video, choose, to_tile, policy=policy, limits=limits)

    def fetch_videos(self, video_url_or_urls: Any, sample_indices_fn: Any = None) -> Any:
        """Load videos by this processor's own rules for URLs, as lists of uint8 tiles."""
        if isinstance(video_url_or_urls, (list, tuple)):
            return [self.fetch_videos(each) for each in video_url_or_urls]
        return self.read(video_url_or_urls).frames

    def to_dict(self) -> dict[str, Any]:
        """Content of video_preprocessor_config.json, the same on every transformers."""
        content: dict[str, Any] = {name: getattr(self, name) for name in self._FIELDS}
        content["video_processor_type"] = type(self).__name__
        auto_map = getattr(self, "auto_map", None) or {}
        if "AutoVideoProcessor" in auto_map:
            content["auto_map"] = {"AutoVideoProcessor": auto_map["AutoVideoProcessor"]}
        return content

    @classmethod
    def _options(cls) -> frozenset[str]:
        own = {"bound", "generator", "seek", "allow_urls", "url_max_bytes", "url_timeout"}
        return frozenset(cls._FIELDS) - {"size", "crop_size"} | own

    def _settings(self, options: dict[str, Any]) -> dict[str, Any]:
        """The settings of a call: those of the processor, replaced by the call's own."""
        options = {key: value for key, value in options.items() if key not in _IGNORED}
        unknown = sorted(set(options) - self._options())
        if unknown:
            raise TypeError(f"unknown options {unknown}; known are {sorted(self._options())}.")
        given = {
            key: value for key, value in options.items() if value is not None or key == "timeout"
        }
        return {
            **{name: getattr(self, name) for name in self._FIELDS},
            "allow_urls": self.allow_urls,
            **given,
        }

    @staticmethod
    def _choice(options: dict[str, Any], settings: dict[str, Any]) -> FrameChoice:
        sampling = settings["sampling"]
        if options.get("fps") is not None and options.get("sampling") is None:
            sampling = "fps"
        # The number of frames of the settings is meant for the other samplings; with fps only the
        # call's own counts.
        count = options.get("num_frames") if sampling == "fps" else settings["num_frames"]
        return FrameChoice(
            sampling=sampling,
            num_frames=count,
            bound=settings.get("bound") or None,
            fps=settings["fps"],
            generator=settings.get("generator"),
            max_frames=settings["max_frames"],
        )


# Options that transformers' pipelines and servers pass to every video processor and that say
# nothing here.
_IGNORED = frozenset(
    {"data_format", "input_data_format", "device", "do_sample_frames", "video_metadata"}
)


def is_frames(video: Any) -> bool:
    """Whether a video is given as its frames, which somebody has chosen already."""
    return isinstance(video, (list, tuple, np.ndarray, torch.Tensor))


def list_videos(videos: Any) -> list[Any]:
    """Bring one video or a list of videos into a list.

    Images (and arrays of one picture) in a list are the frames of one video; names in a list are
    videos.
    """
    if videos is None:
        return []
    if isinstance(videos, (np.ndarray, torch.Tensor)):
        return list(videos) if videos.ndim == 5 else [videos]
    if not isinstance(videos, (list, tuple)):
        return [videos]
    pictures = [
        isinstance(each, Image.Image)
        or (isinstance(each, (np.ndarray, torch.Tensor)) and each.ndim < 4)
        for each in videos
    ]
    return [list(videos)] if videos and all(pictures) else list(videos)
