"""What a benchmark sends: the exact prompt, tiles and settings of one sample, without any weights.

The sample is one of a file, or a stand-in of the same kind over the pictures of examples/, so that
`internvl eval show docvqa` works before anything is downloaded.
"""

from __future__ import annotations

from typing import Any

from internvl import hub
from internvl.chat.accounting import explain
from internvl.chat.request import Request
from internvl.evaluation.asking import prepare
from internvl.evaluation.benchmarks import Benchmark
from internvl.evaluation.records import Sample
from internvl.evaluation.run_config import ModelSource, config_for

_OPTIONS = {"A": "a circle", "B": "a square", "C": "a star", "D": "none of these"}
_WITH_OPTIONS = ("letter", "mmmu", "video_letter", "mvbench", "mmmu_pro", "mmiu", "mantis")


def stand_in(benchmark: Benchmark) -> Sample:
    """A made-up sample of the kind of a benchmark, over pictures of examples/."""
    folder = hub.REPOSITORY / "examples"
    choices = _OPTIONS if benchmark.prompt in _WITH_OPTIONS else {}
    fields = {"task": "count"} if benchmark.prompt == "mirb" else {}
    if benchmark.modality == "video":
        question = "Which object moves?"
        return Sample("stand-in", question, video=folder / "moving.mp4", choices=choices)
    names = ("left.png", "right.jpg") if benchmark.modality == "images" else ("sign.png",)
    question = "the red circle" if benchmark.prompt == "grounding" else "What is shown here?"
    images = tuple(folder / name for name in names)
    return Sample("stand-in", question, images=images, choices=choices, fields=fields)


def show(
    benchmark: Benchmark,
    sample: Sample,
    *,
    model: ModelSource | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Say what a checkpoint would be sent for a sample.

    Args:
        benchmark: whose prompt and limits are used.
        sample: of its file, or from `stand_in`.
        model: whose tiles, template and tokenizer; the demo's when None.
        **settings: fields of `RunConfig`, such as `mode="cot"` or `frames=16`.

    Returns:
        `question` as it goes into `chat()`, and what `accounting.explain` says: `template`,
        `images` (size, grid, tiles, visual tokens), `prompt` with the frame of the template,
        `tokens`, `context`, `generation`.
    """
    model = model or ModelSource()
    prepared = hub.prepare(model.source, subfolder=model.subfolder, revision=model.revision)
    if sample.video is not None and benchmark.frames:
        settings.setdefault("frames", benchmark.frames[0])
    config = config_for(benchmark, model, "", weights="", **settings)
    asked = prepare(prepared.processor, sample, config)
    request = Request(
        question=asked.prompt,
        history=None,
        pixel_values=asked.pixel_values,
        num_tiles=list(asked.num_tiles),
        media=list(asked.media),
    )
    return {
        "benchmark": benchmark.key,
        "sample": sample.id,
        "question": asked.prompt,
        **explain(prepared, request, config.generation),
    }
