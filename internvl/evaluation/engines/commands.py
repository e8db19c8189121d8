"""The sub-commands of `internvl eval engine`: vlmevalkit, lmms-eval, language, export-llm."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:  # torch is imported by the commands that need it
    from internvl.evaluation.run_config import ModelSource

Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[BENCHMARK]...", help="Keys, see `internvl eval list`, or the engine's own."
    ),
]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Folder of the run.")]
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="PATH_OR_ID", help="Folder or Hub id; the demo if not given."),
]
Subfolder = Annotated[str | None, typer.Option(help="Folder within the model's repository.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a repository.")]
Adapter = Annotated[str | None, typer.Option(help="PEFT adapter: folder or Hub id.")]
Dtype = Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")]
Quantization = Annotated[str | None, typer.Option(help="bnb-int8, bnb-nf4, ...")]
Mode = Annotated[str, typer.Option(help="direct, or cot: with the report's prompt.")]
TaskMode = Annotated[str, typer.Option(help="direct, or cot: tasks that ask for reasoning.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only so many questions of each task.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Questions at once.")]
Processes = Annotated[int, typer.Option(min=1, help="Processes, each with a model of its own.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def vlmevalkit(
    names: Names = None,
    out: Out = Path("runs", "vlmevalkit"),
    model: Model = None,
    subfolder: Subfolder = None,
    revision: Revision = None,
    adapter: Adapter = None,
    dtype: Dtype = "auto",
    mode: Mode = "direct",
    judge: Annotated[
        str, typer.Option(help="Model that scores what rules cannot; exact_matching: none.")
    ] = "exact_matching",
    infer_only: Annotated[
        bool, typer.Option("--infer-only", help="Make predictions, and no scores.")
    ] = False,
    frames: Annotated[
        str | None, typer.Option(help="Frame counts of a video set, such as 16,32,48,64.")
    ] = None,
    own_prompt: Annotated[
        list[str] | None,
        typer.Option(help="Data sets whose own prompt is used, beside MMMU_Pro; may be repeated."),
    ] = None,
    local: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=CLASS", help="A TSV of one's own in $LMUData: Shapes=CustomMCQDataset."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of its data; $LMUData.")
    ] = None,
    checkout: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Of VLMEvalKit; $INTERNVL_VLMEVALKIT.")
    ] = None,
    any_commit: Annotated[
        bool, typer.Option("--any-commit", help="Accept another commit, and local changes.")
    ] = False,
    processes: Processes = 1,
    python: Annotated[
        str | None, typer.Option(help="Interpreter of its environment; this one.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 4096,
    as_json: AsJson = False,
) -> None:
    """Evaluate with VLMEvalKit, as the report did; starting again goes on where it stopped."""
    from internvl.evaluation.engines import vlmevalkit as module
    from internvl.evaluation.engines import vlmevalkit_results as results
    from internvl.evaluation.engines.vlmevalkit_checkout import checkout as find

    _log()
    where = find(checkout, any_commit=any_commit)
    source = _model(model, subfolder, revision, adapter, dtype)
    scores = module.run(
        names or [],
        source,
        out,
        where=where,
        mode=mode,
        judge=judge,
        infer_only=infer_only,
        frames=_counts(frames),
        own_prompts=(*module.OWN_PROMPTS, *(own_prompt or [])),
        local=dict(_pair(each) for each in local or []),
        data_folder=data,
        processes=processes,
        python=python,
        settings={"max_new_tokens": max_new_tokens},
        identity=_identity(source),
    )
    typer.echo(results.as_json(scores) if as_json else results.describe(scores))


def lmms_eval(
    names: Names = None,
    out: Out = Path("runs", "lmms_eval"),
    model: Model = None,
    subfolder: Subfolder = None,
    revision: Revision = None,
    adapter: Adapter = None,
    dtype: Dtype = "auto",
    quantization: Quantization = None,
    mode: TaskMode = "direct",
    limit: Limit = None,
    batch_size: BatchSize = 8,
    max_tiles: Annotated[
        int | None, typer.Option(min=1, help="Of an image, for all tasks.")
    ] = None,
    num_frames: Annotated[
        int | None, typer.Option(min=1, help="Of a video, for all tasks.")
    ] = None,
    processes: Processes = 1,
    include: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Task files of one's own, to be named.")
    ] = None,
    cache: Annotated[
        bool, typer.Option(help="Keep answers; off for tasks that compare likelihoods.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Evaluate with lmms-eval, through the model plug-in internvl25."""
    from internvl.evaluation.engines import lmms_eval as module

    _log()
    source = _model(model, subfolder, revision, adapter, dtype, quantization)
    scores = module.run(
        names or [],
        source,
        out,
        mode=mode,
        limit=limit,
        batch_size=batch_size,
        max_tiles=max_tiles,
        num_frames=num_frames,
        processes=processes,
        include=include,
        cache=cache,
        identity=_identity(source),
    )
    typer.echo(json.dumps(scores) if as_json else module.describe(scores))


def language(
    sets: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SET]...", help="Sets of Table 13; all that lm-eval has."),
    ] = None,
    out: Out = Path("runs", "language"),
    model: Model = None,
    subfolder: Subfolder = None,
    revision: Revision = None,
    adapter: Adapter = None,
    dtype: Dtype = "auto",
    quantization: Quantization = None,
    limit: Limit = None,
    batch_size: BatchSize = 8,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Longest answer, where a task does not say.")
    ] = 1024,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Run programs that the model wrote.")
    ] = False,
    tasks: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Task files of one's own, to be named.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate the language model with lm-eval: 13 of the 17 sets of Table 13."""
    from dataclasses import asdict

    from internvl.evaluation.engines import lm_eval as module

    _log()
    source = _model(model, subfolder, revision, adapter, dtype, quantization)
    # Before minutes of loading.
    module.allowed(module.tasks_of(sets or [], tasks), allow_code=allow_code, named=bool(sets))
    scores = module.run_language(
        source.load(_device_map()),
        sets or [],
        limit=limit,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        out=out,
        identity=_identity(source),
        allow_code=allow_code,
        tasks_folder=tasks,
    )
    if as_json:
        typer.echo(json.dumps({name: asdict(each) for name, each in scores.items()}))
        return
    typer.echo(module.describe(scores))
    if not sets:
        left_out = {} if allow_code else dict.fromkeys(module.coding_sets(), "needs --allow-code.")
        for key, why in {**module.missing(), **left_out}.items():
            typer.echo(f"{key:24} not run: {why}")


def export_llm(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Folder or Hub id.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")],
    subfolder: Subfolder = None,
    revision: Revision = None,
    max_shard_size: Annotated[
        str, typer.Option("--max-shard-size", help="Most bytes of a weight file.")
    ] = "5GB",
) -> None:
    """Write the language model alone, for lm-eval and OpenCompass by themselves."""
    from internvl.evaluation.engines import export_llm as module

    written = module.export_language_model(
        source, out, subfolder=subfolder, revision=revision, max_shard_size=max_shard_size
    )
    typer.echo(module.describe(written))


# ---------------------------------------------------------------------- helpers
def _log() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")


def _model(
    source: str | None,
    subfolder: str | None,
    revision: str | None,
    adapter: str | None,
    dtype: str,
    quantization: str | None = None,
) -> ModelSource:
    from internvl.evaluation.run_config import ModelSource

    return ModelSource(source, subfolder, revision, adapter, dtype, quantization)


def _identity(model: ModelSource) -> dict[str, Any]:
    """What tells a checkpoint from another, also one of the same name."""
    from dataclasses import asdict

    from internvl.evaluation.run_config import weights_digest

    return {**asdict(model), "weights": weights_digest(model)}


def _device_map() -> str | None:
    import torch

    return "auto" if torch.accelerator.is_available() else None


def _counts(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    words = text.split(",")
    if not all(word.strip().isdigit() and int(word) > 0 for word in words):
        raise ValueError(f"--frames is {text!r}; expected numbers such as 16 or 16,32,48,64.")
    return tuple(map(int, words))


def _pair(text: str) -> tuple[str, str]:
    name, equals, cls = text.partition("=")
    if not (name and equals and cls):
        raise ValueError(f"--local {text!r} is no NAME=CLASS, such as Shapes=CustomMCQDataset.")
    return name, cls


# Names of the commands, and what they call.
COMMANDS: dict[str, Any] = {
    "vlmevalkit": vlmevalkit,
    "lmms-eval": lmms_eval,
    "language": language,
    "export-llm": export_llm,
}
