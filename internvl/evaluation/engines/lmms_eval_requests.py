"""What a request of lmms-eval asks: how media are read, settings of the answer, where it ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from internvl.evaluation.benchmarks import Benchmark, load

ENGINE = "lmms_eval"
DEFAULTS = {"max_new_tokens": 1024, "do_sample": False}  # lmms-eval's, of its InternVL models
VIDEOS = (".mp4", ".webm", ".mkv", ".avi", ".mov", ".gif", ".m4v", ".mpg", ".mpeg")
# The default stop of a task that names no settings: a blank line, which ends a text that a base
# model continues, and cuts the reasoning of a chat model after its first paragraph.
BLANK_LINE = "\n\n"
_SAMPLING = ("temperature", "top_p", "top_k")


# ---------------------------------------------------------------------- media
@dataclass(frozen=True)
class Media:
    """How pictures and videos of a task are read.

    Attributes:
        benchmark: key of the benchmark it belongs to; "" for none.
        max_tiles: of an image; None for the checkpoint's own limit.
        total_tiles: that the images of a question share.
        upscale_first: the first image is doubled before it is cut.
        frames: of a video.
    """

    benchmark: str = ""
    max_tiles: int | None = None
    total_tiles: int = 64
    upscale_first: bool = False
    frames: int = 32


def benchmark_of(task: str) -> Benchmark | None:
    """The benchmark of a task, or of the group that a task belongs to (`blink_counting`)."""
    keys = {key: each for each in load().values() for key in each.engines.get(ENGINE, ())}
    near = [key for key in keys if task == key or task.startswith(f"{key}_")]
    return keys[max(near, key=len)] if near else None


def media_of(
    task: str,
    *,
    max_tiles: int | None = None,
    total_tiles: int | None = None,
    num_frames: int | None = None,
) -> Media:
    """How the media of a task are read: as its benchmark says, where nothing is given.

    Of a video benchmark the report takes the best of several frame counts; without `num_frames` the
    second (32) is taken, or the only one.

    Args:
        task: name of an lmms-eval task.
        max_tiles: of an image.
        total_tiles: that the images of a question share.
        num_frames: of a video.
    """
    benchmark = benchmark_of(task)
    found = Media()
    if benchmark is not None:
        found = Media(
            benchmark.key,
            benchmark.max_tiles,
            benchmark.total_tiles,
            benchmark.upscale_first,
            (benchmark.frames or (found.frames,))[:2][-1],
        )
    given = {"max_tiles": max_tiles, "total_tiles": total_tiles, "frames": num_frames}
    return Media(**{**asdict(found), **{k: v for k, v in given.items() if v is not None}})


def flat(value: Any) -> list[Any]:
    """Pictures and videos of a document, out of the lists that tasks put them into."""
    if value is None:
        return []
    if isinstance(value, (list, tuple)):
        return [inner for each in value for inner in flat(each)]
    return [value]


def is_video(visual: Any) -> bool:
    """Whether a visual is the path of a video file, or of a folder of frames."""
    if not isinstance(visual, (str, Path)):
        return False
    return Path(visual).suffix.lower() in VIDEOS or Path(visual).is_dir()


# ---------------------------------------------------------------------- answers
def generation_settings(
    given: Mapping[str, Any], *, stop_at_blank_line: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """Settings of `generate` for those of a task: all that it knows are kept.

    A temperature above 0 without `do_sample` asks for sampling; `do_sample: false` is greedy
    whatever else is said. `until` becomes `stop_strings`.

    Args:
        given: `generation_kwargs` of a task; not changed.
        stop_at_blank_line: keep a blank line among the stop strings.

    Returns:
        The settings, and the names of those that `generate` does not have.
    """
    from transformers import GenerationConfig

    asked = {name: value for name, value in given.items() if value is not None}
    stops = _strings(asked.pop("until", ()))
    if "max_gen_toks" in asked:
        length = asked.pop("max_gen_toks")
        asked.setdefault("max_new_tokens", length)
    unknown = sorted(asked.keys() - GenerationConfig().to_dict().keys())
    found = {**DEFAULTS, **{k: v for k, v in asked.items() if k not in unknown}}
    if "do_sample" not in asked and float(asked.get("temperature", 0)) > 0:
        found["do_sample"] = True
    if not found["do_sample"]:
        found = {name: value for name, value in found.items() if name not in _SAMPLING}
    if not stop_at_blank_line:
        stops = [each for each in stops if each != BLANK_LINE]
    return ({**found, "stop_strings": stops} if stops else found), unknown


def _strings(value: Any) -> list[str]:
    """Stop strings, of a string or a list with holes."""
    values = [value] if isinstance(value, str) else list(value or ())
    return [each for each in values if isinstance(each, str) and each]


def cut(text: str, stops: Sequence[str]) -> str:
    """A text up to the first of some strings."""
    for stop in stops:
        text = text.split(stop)[0]
    return text.strip()
