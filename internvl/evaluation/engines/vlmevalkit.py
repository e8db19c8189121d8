"""VLMEvalKit, which the report used: its run.py as a subprocess, with what it gets wrong corrected.

    benchmarks -> plan.json (model, data sets with classes) -> run.py -> files -> scores

The checkout is named by INTERNVL_VLMEVALKIT and must be at the commit whose behaviour is known;
another one has to be allowed. Nothing in it is changed. What its configuration can express is
written there; what it cannot is in the classes of vlmevalkit_plugin.py:

MMMU-Pro without options    own_prompts of InternVL25Chat: the data set's prompt, which is official
MMMU-Pro, RefCOCO           InternVLMMMUPro, InternVLRefCOCO: --config drops their name
CoT scored as a whole       USE_COT=1 and use_postprocess: the box is taken out before scoring
text without pictures       TileBudget: no division by the number of pictures
tiles of 448 px only        `load_image` is called with the size of the checkpoint
video                       an entry per frame count, subtitles said; MVBench at 16 frames
LongVideoBench subtitles    some versions insert them when told not to; the flag is turned round
a failed data set           run.py goes on and ends with 0; here it is an error
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internvl.evaluation.engines import process
from internvl.evaluation.engines.selection import Choice, choose
from internvl.evaluation.engines.vlmevalkit_checkout import Checkout, turned_subtitles
from internvl.evaluation.engines.vlmevalkit_plan import ENGINE, OWN_PROMPTS, Plan, make_plan
from internvl.evaluation.engines.vlmevalkit_results import (
    DataScore,
    predictions_file,
    read_predictions,
    read_scores,
)
from internvl.evaluation.records import lines
from internvl.evaluation.run_config import differences
from internvl.evaluation.runner import write_atomic

if TYPE_CHECKING:
    from internvl.evaluation.run_config import ModelSource

logger = logging.getLogger(__name__)

PLUGIN = Path(__file__).with_name("vlmevalkit_plugin.py")
NO_JUDGE = "exact_matching"
# Scored by rules in the report's sense, but VLMEvalKit asks a judge to find the answer.
NEED_JUDGE = ("MathVista", "MathVision")


def run(
    names: Sequence[str],
    model: ModelSource,
    out: Path,
    *,
    where: Checkout,
    mode: str = "direct",
    judge: str = NO_JUDGE,
    infer_only: bool = False,
    frames: Sequence[int] = (),
    own_prompts: Sequence[str] = OWN_PROMPTS,
    local: Mapping[str, str] | None = None,
    data_folder: Path | None = None,
    processes: int = 1,
    python: str | None = None,
    settings: Mapping[str, Any] | None = None,
    identity: Mapping[str, Any] | None = None,
) -> dict[str, list[DataScore]]:
    """Run VLMEvalKit on some benchmarks, and read what it found.

    An interrupted run goes on when it is started again: predictions that are complete are kept, and
    of the one that was interrupted what VLMEvalKit had written (every tenth answer).

    Args:
        names: benchmarks, or data sets of VLMEvalKit.
        model: the checkpoint; what is no folder or Hub id by itself (the demo, a subfolder, an
            adapter) is exported into `out` first.
        out: folder of the run.
        where: the checkout.
        mode: "direct" or "cot".
        judge: model that scores what rules cannot; `exact_matching` asks none.
        infer_only: make predictions and no scores.
        frames: see `plan`.
        own_prompts: see `plan`.
        local: see `plan`.
        data_folder: where VLMEvalKit keeps its data; $LMUData, or ~/LMUData, when None.
        processes: one model each, by torchrun.
        python: interpreter of VLMEvalKit's environment; ours when None.
        settings: see `plan`.
        identity: what tells the checkpoint from another of the same name; a folder belongs to one.

    Returns:
        Per benchmark, or data set of one's own, the scores of its entries.

    Raises:
        ValueError: something that cannot run, a folder of another run, or a data set that
            VLMEvalKit could not finish; what it could is on disk.
    """
    if model.dtype not in ("auto", "bfloat16"):
        raise ValueError(f"VLMEvalKit loads bfloat16, whatever is asked for; got {model.dtype}.")
    chosen = choose(names, ENGINE, mode) if names else []
    _check_judge(chosen, judge, infer_only)
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    _claim_model(out, identity or {})
    path, name = model_path(model, out)
    made = make_plan(
        names,
        path,
        name=name,
        mode=mode,
        frames=frames,
        own_prompts=own_prompts,
        local=local,
        turned=turned_subtitles(where.folder),
        settings=settings,
    )
    held = _claim(out, made, where, None if infer_only else judge)
    file = out / "plan.json"
    write_atomic(file, json.dumps(made.config, indent=2, ensure_ascii=False) + "\n")
    starter = [_absolute(python or sys.executable)]
    if processes > 1:
        starter += ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    command: list[str | Path] = [*starter, PLUGIN, where.run, "--config", file]
    command += ["--work-dir", out / "work"]
    command += ["--reuse", "--judge", judge, *(["--mode", "infer"] if infer_only else [])]
    folder = data_folder or os.environ.get("LMUData")  # noqa: SIM112, its name
    data = {} if not folder else {"LMUData": str(Path(folder).expanduser().absolute())}
    process.run(command, environment={**made.environment, **data}, cwd=out)
    scores = read_scores(
        out / "work",
        made.name,
        made.entries,
        known=held["data"],
        other_judges=[each for each in held["judges"] if each != judge],
    )
    _convert(out, made)
    _check_complete(scores, out, infer_only=infer_only)
    return scores


def _absolute(program: str) -> str:
    """A path from where we are, as the program starts in another folder; a name stays a name."""
    return os.path.abspath(program) if os.path.dirname(program) else program


def _check_complete(
    scores: Mapping[str, Sequence[DataScore]], out: Path, *, infer_only: bool
) -> None:
    every = {each.entry: each for found in scores.values() for each in found}
    for what, lost in (
        ("made no predictions for", [each for each in every.values() if each.n == 0]),
        (
            "could not score",
            [each for each in every.values() if not (infer_only or each.metrics) and each.error],
        ),
    ):
        if lost:
            said = "; ".join(f"{e.entry} ({e.error.strip(' .') or 'see its log'})" for e in lost)
            raise ValueError(f"VLMEvalKit {what} {said}; the others are in {out}.")
    if unscored := [each.entry for each in every.values() if not (infer_only or each.metrics)]:
        logger.warning("no scores of %s: no labels, or see its log", ", ".join(unscored))


def _convert(out: Path, made: Plan) -> None:
    """Write predictions as ours where a metric of ours can score them: out/predictions/*.jsonl."""
    for entry, choices in made.entries.items():
        benchmarks = {each.benchmark.key: each.benchmark for each in choices}
        path = predictions_file(out / "work", made.name, entry)
        if path is None or len(benchmarks) != 1:
            continue  # RefCOCO serves three, and lacks the sizes that boxes are scored with
        ((key, benchmark),) = benchmarks.items()
        if benchmark.metric:
            (out / "predictions").mkdir(exist_ok=True)
            text = "".join(lines(read_predictions(path, key)))
            write_atomic(out / "predictions" / f"{entry}.jsonl", text)


def model_path(model: ModelSource, out: Path) -> tuple[str, str]:
    """A path that VLMEvalKit can load, and a name for the model.

    Args:
        model: the checkpoint.
        out: folder of the run, in which it is exported if it has to be.

    Raises:
        ValueError: a folder without the code that `AutoModel` needs.
    """
    alone = model.source is not None and not model.subfolder and model.adapter is None
    if not alone or model.revision is not None:
        from internvl.checkpoints.export import export

        folder = out / "checkpoint"
        if not (folder / "config.json").exists():
            export(
                model.source,
                folder,
                subfolder=model.subfolder,
                revision=model.revision,
                merge_adapter=model.adapter,
                dtype=model.dtype,
            )
        return str(folder), Path(model.source or "demo").name
    source = str(model.source)
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return source, source.rpartition("/")[2]
    config = json.loads((folder / "config.json").read_text("utf-8"))
    entry = str((config.get("auto_map") or {}).get("AutoModel", ""))
    code = folder / f"{entry.partition('.')[0]}.py"
    if not entry or not code.is_file():
        raise ValueError(
            f"{folder} has no code that AutoModel could load (auto_map in config.json, and the "
            "file it names); write a folder that has: `internvl export`."
        )
    return str(folder.absolute()), folder.absolute().name


def _check_judge(chosen: Sequence[Choice], judge: str, infer_only: bool) -> None:
    if judge != NO_JUDGE or infer_only:
        return
    judged = [
        each.key
        for each in chosen
        if each.benchmark.scoring == "judge" or each.key.startswith(NEED_JUDGE)
    ]
    if judged:
        raise ValueError(
            f"VLMEvalKit needs a judge for {', '.join(judged)}; name one that it knows (--judge "
            "gpt-4o-mini, with OPENAI_API_KEY set), or make predictions alone (--infer-only)."
        )


def _claim_model(out: Path, identity: Mapping[str, Any]) -> None:
    """Find that a folder is free, or holds a run of this checkpoint: before one is exported."""
    path, now = out / "model.json", json.loads(json.dumps(identity))
    if path.exists() and (found := differences(json.loads(path.read_text("utf-8")), now)):
        raise ValueError(
            f"{out} holds a run of another checkpoint ({'; '.join(found)}), whose predictions "
            "would be taken for its; name another folder."
        )
    write_atomic(path, json.dumps(now, indent=2, ensure_ascii=False) + "\n")


def _claim(out: Path, made: Plan, where: Checkout, judge: str | None) -> dict[str, Any]:
    """Find that a folder is free, or holds a run of these settings; data sets may be added, and
    judges.

    Returns:
        All that it holds: `data`, `judges` and the settings.
    """
    path = out / "run.json"
    now = json.loads(
        json.dumps(
            {
                "commit": where.commit,
                "environment": dict(made.environment),
                "model": made.config["model"],
                "data": made.config["data"],
                "judges": [judge] if judge else [],
            }
        )
    )
    if path.exists():
        before = json.loads(path.read_text("utf-8"))
        both = before["data"].keys() & now["data"].keys()
        old, new = (
            {**each, "data": {key: each["data"][key] for key in both}, "judges": None}
            for each in (before, now)
        )
        if found := differences(old, new):
            raise ValueError(
                f"{out} holds a run of other settings ({'; '.join(found)}), whose predictions "
                "would be taken for these; name another folder."
            )
        now["data"] = {**before["data"], **now["data"]}
        now["judges"] = sorted({*before["judges"], *now["judges"]})
    write_atomic(path, json.dumps(now, indent=2, ensure_ascii=False) + "\n")
    return now
