"""The sub-commands of `internvl eval`: list, show, run, score, compare.

Those of the engines and of the vision encoder stand in commands.py of their packages; voting curves
and best-of-N in `scaling_commands`.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:  # torch is imported by the commands that need it
    from internvl.evaluation.run_config import ModelSource
    from internvl.evaluation.runner import Shard
    from internvl.evaluation.samples import Source

Key = Annotated[str, typer.Argument(metavar="BENCHMARK", help="Key, see `internvl eval list`.")]
Predictions = Annotated[
    Path, typer.Argument(metavar="FILE", help="predictions.jsonl, or the folder of a run.")
]
Data = Annotated[
    str | None,
    typer.Option(metavar="FILE_OR_ID", help="TSV, JSON(L) or Parquet file, or a data set id."),
]
Split = Annotated[str | None, typer.Option(help="Split of a data set of the Hub.")]
Name = Annotated[str | None, typer.Option("--name", help="Configuration of a data set.")]
Where = Annotated[
    list[str] | None,
    typer.Option("--where", metavar="COLUMN=VALUE", help="Only such rows; can be repeated."),
]
MediaFolder = Annotated[
    str | None, typer.Option("--media", help="Folder of the images and videos that rows name.")
]
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="PATH_OR_ID", help="Folder or Hub id; the demo if not given."),
]
Subfolder = Annotated[str | None, typer.Option(help="Folder within the model's repository.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a repository.")]
Mode = Annotated[
    str, typer.Option(help="direct; cot: with the report's prompt; vote: cot, sampled, majority.")
]
MaxTiles = Annotated[int | None, typer.Option(min=1, help="Most tiles of an image.")]
Frames = Annotated[
    str | None, typer.Option(help="Frame counts of a video set, such as 16,32,48,64.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def list_benchmarks(
    table: Annotated[int | None, typer.Option(help="Only those of this table.")] = None,
    modality: Annotated[str | None, typer.Option(help="Only image, images, video or text.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the benchmarks of the report: key, table, metric, prompt, tiles, engines."""
    from internvl.evaluation import benchmark_text

    typer.echo(benchmark_text.list_text(table=table, modality=modality, as_json=as_json))


def show(
    benchmark: Key,
    data: Data = None,
    sample: Annotated[str | None, typer.Option(help="Id of the sample; the first one.")] = None,
    split: Split = None,
    name: Name = None,
    media: MediaFolder = None,
    model: Model = None,
    subfolder: Subfolder = None,
    revision: Revision = None,
    mode: Mode = "direct",
    max_tiles: MaxTiles = None,
    frames: Frames = None,
    as_json: AsJson = False,
) -> None:
    """Show a benchmark, and the exact prompt and tiles of a sample; needs no weights.

    Without --data the sample is a stand-in over example pictures.
    """
    from internvl.chat.accounting import describe
    from internvl.evaluation import benchmark_text, benchmarks
    from internvl.evaluation import show as module
    from internvl.evaluation.samples import Source, read_samples

    row = benchmarks.get(benchmark)
    if data is None:
        chosen = module.stand_in(row)
    else:
        samples = {each.id: each for each in read_samples(Source(data, split, name, media))}
        if sample is not None and sample not in samples:
            raise ValueError(f"no sample {sample!r}; the first one is {next(iter(samples))!r}.")
        chosen = samples[sample] if sample is not None else next(iter(samples.values()))
    counts = _frames(frames)
    account = module.show(
        row,
        chosen,
        model=_model(model, subfolder, revision),
        mode=mode,
        max_tiles=max_tiles,
        frames=counts[0] if counts else None,
    )
    if as_json:
        typer.echo(json.dumps(account, ensure_ascii=False, indent=2))
        return
    typer.echo(benchmark_text.describe(row))
    typer.echo(f"\nsample      {chosen.id}\n{describe(account)}")


def run(
    benchmark: Annotated[
        str | None, typer.Argument(metavar="BENCHMARK", help="Key, see `internvl eval list`.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the run.")] = None,
    data: Data = None,
    suite: Annotated[
        Path | None, typer.Option(metavar="JSON", help="Run all benchmarks of a suite file.")
    ] = None,
    split: Split = None,
    name: Name = None,
    media: MediaFolder = None,
    where: Where = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many.")] = None,
    model: Model = None,
    subfolder: Subfolder = None,
    revision: Revision = None,
    adapter: Annotated[str | None, typer.Option(help="PEFT adapter: folder or Hub id.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")] = "auto",
    quantization: Annotated[str | None, typer.Option(help="bnb-int8, bnb-nf4, ...")] = None,
    mode: Mode = "direct",
    samples: Annotated[int | None, typer.Option(min=1, help="Answers of mode vote; 8.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of mode vote; 0.6.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Of mode vote; 0.95.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer.")] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Prompt rule, where another than the benchmark's is wanted.")
    ] = None,
    max_tiles: MaxTiles = None,
    frames: Frames = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Questions at once; 8.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the sampling.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Only this share: for job arrays. Else RANK, WORLD_SIZE."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Answer a benchmark's samples, resume where a run stopped, and score them.

    DIR gets predictions.jsonl, times.jsonl, run.json and score.json.
    """
    from internvl.evaluation.evaluate import execute
    from internvl.evaluation.processes import run_shards

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    if (benchmark is None) == (suite is None):
        raise ValueError("name a benchmark, or a suite file (--suite).")
    if suite is None and data is None:
        raise ValueError(
            f"name the file of {benchmark} (--data); `internvl eval show {benchmark}` tells where "
            "it comes from."
        )
    if processes > 1:
        if shard is not None:
            raise ValueError("--shard names one share, --processes starts all; give one of them.")
        run_shards(_arguments_for_shards(), processes)
    checkpoint = _model(model, subfolder, revision, adapter, dtype, quantization)
    settings = {
        "mode": mode,
        "samples": samples,
        "temperature": temperature,
        "top_p": top_p,
        "max_new_tokens": max_new_tokens,
        "prompt": prompt,
        "max_tiles": max_tiles,
        "batch_size": batch_size,
        "seed": seed,
        "limit": limit,
    }
    which, device_map = _placement(shard)
    source = None if data is None else _source(data, split, name, media, where)
    outcomes = [
        execute(plan, shard=which, device_map=device_map)
        for plan in _plans(benchmark, source, suite, out, checkpoint, frames, limit, settings)
    ]
    _print([each for each in outcomes if each is not None], as_json=as_json)


def score(
    file: Predictions,
    benchmark: Annotated[
        str | None, typer.Option(help="Score as this benchmark; that of the file.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Put the report's value of this size beside it: 8B.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score a predictions file again; no model, no images."""
    from internvl.evaluation import benchmark_text, benchmarks
    from internvl.evaluation.evaluate import scored
    from internvl.evaluation.records import read_predictions

    path = _file(file)
    predictions = read_predictions(path)
    row = benchmarks.get(benchmark or predictions[0].benchmark)
    outcome = scored(row, path.parent, {0: predictions})
    _print([outcome], as_json=as_json)
    if size is not None and outcome.best is not None and not as_json:
        typer.echo(benchmark_text.compare_with_report(row, outcome.best[1].score, size))


def compare(
    first: Predictions,
    second: Predictions,
    benchmark: Annotated[
        str | None, typer.Option(help="Score as this benchmark; that of the files.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two runs over the same samples: difference, interval, paired test."""
    from internvl.evaluation import benchmarks, scoring
    from internvl.evaluation.records import read_predictions

    one, two = (read_predictions(_file(each)) for each in (first, second))
    row = benchmarks.get(benchmark or one[0].benchmark)
    if not row.metric:
        raise ValueError(f"{row.key} is scored by {row.scoring}, so nothing here compares it.")
    found = scoring.compare(one, two, scoring.get_metric(row.metric))
    typer.echo(json.dumps(found.as_dict()) if as_json else found.describe())


# ---------------------------------------------------------------------- helpers
def _source(
    data: str, split: str | None, name: str | None, media: str | None, where: list[str] | None
) -> Source:
    from internvl.evaluation.samples import Source

    wanted = {}
    for each in where or []:
        column, equals, value = each.partition("=")
        if not equals:
            raise ValueError(f"--where {each!r} is no COLUMN=VALUE, such as split=validation.")
        wanted[column] = value
    return Source(data, split, name, media, wanted)


def _model(
    source: str | None,
    subfolder: str | None,
    revision: str | None,
    adapter: str | None = None,
    dtype: str = "auto",
    quantization: str | None = None,
) -> ModelSource:
    from internvl.evaluation.run_config import ModelSource

    return ModelSource(source, subfolder, revision, adapter, dtype, quantization)


def _frames(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    try:
        counts = tuple(int(each) for each in text.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1:
        raise ValueError(f"--frames is {text!r}; expected numbers such as 16 or 16,32,48,64.")
    return counts


def _placement(text: str | None) -> tuple[Shard, Any]:
    """The share of this process, and where its model goes: one accelerator each when there are
    several processes, spread over all otherwise."""
    import os

    import torch

    from internvl.evaluation.runner import Shard

    if text is None:
        shard = Shard.from_environment()
    else:
        try:
            rank, world = (int(each) for each in text.split("/"))
        except ValueError:
            raise ValueError(f"--shard is {text!r}; expected I/N, such as 0/4.") from None
        shard = Shard(rank, world)
    if not torch.accelerator.is_available():
        return shard, None
    if shard.world == 1:
        return shard, "auto"
    return shard, {"": int(os.environ.get("LOCAL_RANK", 0)) % torch.accelerator.device_count()}


def _arguments_for_shards() -> list[str]:
    """This command line without --processes."""
    words, kept = iter(sys.argv[1:]), []
    for word in words:
        if word == "--processes":
            next(words, None)
        elif not word.startswith("--processes="):
            kept.append(word)
    return kept


def _plans(
    benchmark: str | None,
    source: Source | None,
    suite: Path | None,
    out: Path | None,
    model: ModelSource,
    frames: str | None,
    limit: int | None,
    settings: dict[str, Any],
) -> Any:
    """A plan per benchmark, its file read when it is its turn."""
    from internvl.evaluation import benchmarks
    from internvl.evaluation.evaluate import Plan, read_suite
    from internvl.evaluation.samples import Source, read_samples

    counts = _frames(frames)
    if suite is None:
        assert benchmark is not None
        assert source is not None
        samples = read_samples(source, limit=limit)
        folder = out or Path("runs", "eval", benchmark)
        yield Plan(benchmarks.get(benchmark), samples, model, folder, counts, settings)
        return
    root = out or Path("runs", "eval", suite.parent.name)
    for each in read_suite(suite):
        samples = read_samples(Source(str(each.file)), limit=limit)
        video = any(sample.video is not None for sample in samples)
        own = {**settings, "max_tiles": settings["max_tiles"] or each.max_tiles}
        yield Plan(
            benchmarks.get(each.benchmark),
            samples,
            model,
            root / each.name,
            (counts or each.frames) if video else (),  # the option is for the videos of the suite
            own,
        )


def _file(path: Path) -> Path:
    return path / "predictions.jsonl" if path.is_dir() else path


def _print(outcomes: list[Any], *, as_json: bool) -> None:
    if as_json:
        found = [each.as_dict() for each in outcomes]
        typer.echo(json.dumps(found[0] if len(found) == 1 else found, ensure_ascii=False))
        return
    for each in outcomes:
        typer.echo(each.describe())


# Names of the commands, and what they call.
COMMANDS: dict[str, Any] = {
    "list": list_benchmarks,
    "show": show,
    "run": run,
    "score": score,
    "compare": compare,
}
