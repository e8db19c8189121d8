"""The pipeline of Figure 8: its stages, run in order, each resumed where it stopped.

    OUT/work/plan-*.json      the shards
    OUT/work/rules-*/         findings of the rules, a file per shard
    OUT/work/judge-*/         findings of the LLM judge, a file per shard
    OUT/work/duplicates-*/    samples that are there twice
    OUT/kept, removed, ...    see `internvl.filtering.sorting`

The name of a stage's folder ends in a digest of all that its findings depend on: the files, the
settings, the code. So a threshold can be changed and the run repeated: what does not depend on it
is not done again, and nothing stale is used.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from internvl.filtering.config import Config, save_config
from internvl.filtering.files import alone, sweep
from internvl.filtering.findings import findings_file
from internvl.filtering.judge import make_judge, read_judge_config
from internvl.filtering.judging import Asker
from internvl.filtering.near_duplicates import check_settings
from internvl.filtering.plan import Plan, digest_of, make_plan
from internvl.filtering.rules import RULES, build
from internvl.filtering.sorting import Places, sort_rows
from internvl.filtering.statistics import STATISTICS, read_statistics
from internvl.filtering.verdict import Rule
from internvl.settings import unknown_names

logger = logging.getLogger(__name__)

OTHERS = "others"
MakeRules = Callable[[], Mapping[str, Rule]]
MakeJudge = Callable[[], Asker]
_HERE = Path(__file__).parent
_RULES_CODE = ("rules/*.py", "records.py", "verdict.py")
_JUDGE_CODE = ("judge*.py", "prompts.py", "records.py", "verdict.py")
_DUPLICATES_CODE = ("near_duplicates.py", "duplicates.py", *_RULES_CODE)


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: of the stage.
        folder: of its findings, logs and completions.
        workers: tasks at a time.
        steps: of datatrove, for a task.
        files: what its tasks write, in their order.
        again: whether it is done even if it was done.
    """

    name: str
    folder: Path
    workers: int
    steps: tuple[Any, ...]
    files: tuple[Path, ...]
    again: bool = False


def run(
    config: Config, *, rules: MakeRules | None = None, judge: MakeJudge | None = None
) -> Mapping[str, Any] | None:
    """Filter a corpus, or go on where a run was stopped.

    Args:
        config: the run.
        rules: gives rules in place of those of the configuration; a function of a module, because
            other processes call it.
        judge: likewise for the judge.

    Returns:
        What statistics.json holds; None if the work was handed to Slurm.

    Raises:
        ValueError: settings that no rule or judge knows, or data that cannot be.
        BlockingIOError: another run works in the output folder.
        ChildProcessError: a process was killed.
        ImportError: datatrove is not installed.
    """
    try:
        from internvl.filtering.executors import make_executor
    except ImportError as error:
        raise ImportError(
            f"filtering needs datatrove: pip install 'internvl[filter]' ({error})"
        ) from error
    kind = config.executor.kind
    with alone(config.folder):
        if kind == "local":  # jobs of a cluster may still be writing theirs
            sweep(config.folder)
        stages = make_stages(config, make_plan(config), rules, judge)
        save_config(config)
        last = None
        for stage in stages:
            forget_lost(stage)
            last = make_executor(config.executor, stage, before=last)
            if kind != "slurm":
                last.run()
        if kind == "slurm" and last is not None:
            last.run()  # submits the stages before it too, each to wait for the one before
            return None
    return read_statistics(config.folder)


def apply_decisions(
    config: Config, *, rules: MakeRules | None = None, judge: MakeJudge | None = None
) -> Mapping[str, Any]:
    """Sort the rows again, after decisions were made; the arguments are those of the run.

    Raises:
        FileNotFoundError: the stages before are not complete.
        BlockingIOError: another run works in the output folder.
    """
    from internvl.filtering.report import write_report

    with alone(config.folder):
        plan = make_plan(config)
        places = _places(config, plan, rules, judge)
        if any(not (folder / "shards").exists() for folder in places.per_shard):
            raise FileNotFoundError(
                f"{config.folder} has no findings on the files as they are now; run `internvl "
                "filter run` again. Decisions on rows that are the same still count."
            )
        statistics = sort_rows(config, plan, places)
        write_report(config.folder)
    return statistics


# ---------------------------------------------------------------------- stages
def make_stages(
    config: Config, plan: Plan, rules: MakeRules | None = None, judge: MakeJudge | None = None
) -> list[Stage]:
    """The stages of a run, in order.

    Raises:
        ValueError: settings that no rule or judge knows.
    """
    from internvl.filtering import steps

    places = _places(config, plan, rules, judge)
    make_rules = rules or partial(build, rule_settings(config.rules))
    make_rules()  # unknown names are refused before any work is done
    workers, shards = config.executor.workers, range(len(plan.shards))
    makers = [("rules", workers, steps.CheckRules(make_rules))]
    if config.judge is not None:
        if judge is None:
            read_judge_config(config.judge)  # likewise
        ask = steps.AskJudge(config, judge or _judge_of(config))
        makers.append(("judge", config.judge_processes, ask))
    stages = []
    for (name, count, step), folder in zip(makers, places.per_shard, strict=True):
        files = tuple(findings_file(folder, shard) for shard in shards)
        through = (steps.ReadRows(plan), step, steps.WriteFindings(folder))
        stages.append(Stage(name, folder, count, through, files))
    if places.duplicates is not None:
        check_settings(config.duplicates or {})
        find = (steps.FindDuplicates(config, plan, places),)
        folder = places.duplicates.parent
        stages.append(Stage("duplicates", folder, 1, find, (places.duplicates,)))
    sort = (steps.SortRows(config, plan, places),)
    output = (config.folder / STATISTICS,)
    return [*stages, Stage("sort", config.folder / "work" / "sort", 1, sort, output, again=True)]


def _places(config: Config, plan: Plan, rules: MakeRules | None, judge: MakeJudge | None) -> Places:
    """Where findings are, by all that they depend on."""
    work = config.folder / "work"
    digest = digest_of([plan.digest, rule_settings(config.rules), _named(rules), code(_RULES_CODE)])
    folders = [work / f"rules-{digest}"]
    if config.judge is not None:
        depends = [plan.digest, config.judge, config.exempt, _named(judge), code(_JUDGE_CODE)]
        folders.append(work / f"judge-{digest_of(depends)}")
    if config.duplicates is None:
        return Places(tuple(folders))
    names = [folder.name for folder in folders]
    digest = digest_of([names, config.duplicates, code(_DUPLICATES_CODE)])
    return Places(tuple(folders), work / f"duplicates-{digest}" / "duplicates.jsonl")


def rule_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of all rules: those that are not named keep their defaults.

    Args:
        given: as the configuration has them; `others: false` leaves out what is not named.

    Raises:
        ValueError: a name that is no rule.
    """
    given = dict(given)
    others = given.pop(OTHERS, True)
    if not isinstance(others, bool):
        raise ValueError(f"rules.{OTHERS} is {others!r}; expected true or false.")
    if unknown := set(given) - set(RULES):
        raise ValueError(unknown_names(unknown, {*RULES, OTHERS}, "rules"))
    return {name: given.get(name, others) for name in RULES}


def code(patterns: Iterable[str]) -> str:
    """Digest of source files: findings of another version are not taken for those of this one."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted({path for pattern in patterns for path in _HERE.glob(pattern)}):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def forget_lost(stage: Stage) -> None:
    """Have tasks done again whose files are gone, whatever datatrove noted about them."""
    for task, file in enumerate(stage.files):
        if not file.exists():
            (stage.folder / "completions" / f"{task:05d}").unlink(missing_ok=True)


def _named(maker: Callable[..., Any] | None) -> str:
    """What stands for a maker of the caller's; of a partial, its function and arguments."""
    if maker is None:
        return ""
    if isinstance(maker, partial):
        return f"{_named(maker.func)}{maker.args!r}{maker.keywords!r}"
    return f"{maker.__module__}.{maker.__qualname__}"


def _judge_of(config: Config) -> MakeJudge:
    return partial(make_judge, config.judge or {}, config.folder)
