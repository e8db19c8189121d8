"""Text benchmarks by lm-eval 0.4.13, in this process: Table 13, as far as lm-eval has it.

    chat checkpoint -> its language model and tokenizer -> lm-eval -> a score per set

The report measured Table 13 with OpenCompass, by its own prompts and by generated answers; lm-eval
compares likelihoods for most of these sets. A number from here is compared with another from here,
not with Table 13. docs/evaluation_engines.md has the recipe for OpenCompass.

What is done for a chat model: the chat template of the checkpoint with its system message, examples
as earlier turns, and an answer that ends where the template ends it, also in a batch and also where
the config of the language model names another token (InternLM2: `</s>`).
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from internvl import hub
from internvl.evaluation.benchmarks import LanguageSet, languages
from internvl.evaluation.run_config import differences
from internvl.evaluation.runner import write_atomic

logger = logging.getLogger(__name__)

ENGINE = "lm_eval"
# They execute what the model wrote.
RUNS_CODE = frozenset({"humaneval_instruct", "mbpp"})


@dataclass(frozen=True)
class TextTask:
    """A task of lm-eval.

    Attributes:
        key: set of Table 13, or the task itself when it is none.
        task: what lm-eval calls it.
        shots: examples in the prompt; None for the task's own.
    """

    key: str
    task: str
    shots: int | None = None


@dataclass(frozen=True)
class LanguageScore:
    """What lm-eval made of a set.

    Attributes:
        key: set of Table 13, or the task.
        task: task of lm-eval.
        shots: examples in the prompt, as lm-eval ran it.
        n: questions.
        metrics: value by lm-eval's name of it, "exact_match,strict-match".
        errors: standard errors, by the same names.
    """

    key: str
    task: str
    shots: int
    n: int
    metrics: Mapping[str, float]
    errors: Mapping[str, float]


# ---------------------------------------------------------------------- names
def missing() -> dict[str, str]:
    """Sets of Table 13 that lm-eval lacks, and what is known of each."""
    return {
        key: " ".join(each.traps) or "Not in lm-eval."
        for key, each in languages().items()
        if ENGINE not in each.engines
    }


def coding_sets() -> list[str]:
    """Sets of Table 13 whose tasks execute what the model wrote."""
    return [each.key for each in tasks_of([]) if each.task in RUNS_CODE]


def tasks_of(names: Sequence[str], folder: Path | None = None) -> list[TextTask]:
    """The tasks that some names stand for.

    Args:
        names: sets of Table 13 by key, column or lm-eval task; with `folder` any task. None at all
            stands for every set that lm-eval has.
        folder: of task files of one's own.

    Raises:
        ValueError: a set that lm-eval lacks, or a name that nobody knows.
    """
    if not names:
        return [_task(each) for each in languages().values() if ENGINE in each.engines]
    return [_find(name, folder) for name in names]


def _task(language: LanguageSet, task: str | None = None) -> TextTask:
    return TextTask(language.key, task or language.engines[ENGINE][0], language.shots)


def _find(name: str, folder: Path | None) -> TextTask:
    for each in languages().values():
        if name == each.key or name.casefold() == each.column.casefold():
            if ENGINE not in each.engines:
                raise ValueError(
                    f"lm-eval has no {each.column}: {missing()[each.key]} OpenCompass has it "
                    f"({', '.join(each.engines['opencompass'])}), see docs/evaluation_engines.md."
                )
            return _task(each)
        if name in each.engines.get(ENGINE, ()):
            return _task(each, name)
    if folder is not None:
        return TextTask(name, name)
    near = difflib.get_close_matches(name, languages(), n=3, cutoff=0.4)
    raise ValueError(
        f"no set {name!r} in Table 13; "
        + (f"did you mean {' or '.join(near)}? " if near else f"it has {', '.join(languages())}. ")
        + "For a task of your own name the folder of its file, too."
    )


# ---------------------------------------------------------------------- running
def run_language(
    loaded: hub.Loaded,
    sets: Sequence[str] = (),
    *,
    limit: int | None = None,
    batch_size: int = 8,
    max_new_tokens: int = 1024,
    out: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    allow_code: bool = False,
    tasks_folder: Path | None = None,
) -> dict[str, LanguageScore]:
    """Evaluate the language model of a chat checkpoint.

    Args:
        loaded: what `hub.load` returned; it stays as it is.
        sets: see `tasks_of`; all that lm-eval has, and that may run, when empty.
        limit: only that many questions of each task.
        batch_size: questions at once.
        max_new_tokens: longest answer, where the task does not say; lm-eval's own is 256, which
            cuts reasoning short.
        out: folder for results, answers and what an interrupted run left; finished sets in it are
            not run again.
        identity: what tells this checkpoint from others; needed with `out`.
        allow_code: run programs that the model wrote (HumanEval, MBPP), unprotected.
        tasks_folder: of task files of one's own.

    Returns:
        A score per set, by key.

    Raises:
        ImportError: lm-eval is not installed.
        ValueError: a set that is not there, one that runs code, a folder of another run, or a
            vision encoder.
    """
    if loaded.tokenizer is None:
        raise ValueError("a vision encoder has no language model; load a chat checkpoint.")
    tasks = allowed(tasks_of(sets, tasks_folder), allow_code=allow_code, named=bool(sets))
    settings = {
        "limit": limit,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "model": dict(identity or {}),
        "tasks": None if tasks_folder is None else _content(tasks_folder),
    }
    if out is not None:
        if not identity:
            raise ValueError("give `identity` with `out`, so that runs of two models do not mix.")
        out.mkdir(parents=True, exist_ok=True)
    scores: dict[str, LanguageScore] = {}
    model = None
    for task in tasks:
        name = task.key if task.key not in scores else f"{task.key} ({task.task})"
        found = None if out is None else _stored(out, task, settings)
        if found is None:
            model = model or language_model(loaded, batch_size, max_new_tokens)
            found = _run(model, task, limit, allow_code, tasks_folder, out, settings)
        scores[name] = found
    return scores


def allowed(tasks: Sequence[TextTask], *, allow_code: bool, named: bool) -> list[TextTask]:
    """The tasks that may run: those that execute what the model wrote only when that is allowed.

    Args:
        tasks: from `tasks_of`.
        allow_code: whether they may.
        named: whether the tasks were asked for by name; otherwise those of code are left out, with
            a warning.

    Raises:
        ValueError: one that was asked for by name may not run.
    """
    coding = [each.task for each in tasks if each.task in RUNS_CODE]
    if allow_code or not coding:
        return list(tasks)
    said = f"{' and '.join(coding)} run programs that the model wrote"
    if named:
        raise ValueError(
            f"{said}; allow it (--allow-code) in a container or a virtual machine, or name other "
            "sets."
        )
    logger.warning("%s, and are left out; --allow-code runs them", said)
    return [each for each in tasks if each.task not in coding]


def language_model(loaded: hub.Loaded, batch_size: int = 8, max_new_tokens: int = 1024) -> Any:
    """The language model of a chat checkpoint as lm-eval takes it.

    Args:
        loaded: what `hub.load` returned.
        batch_size: questions at once.
        max_new_tokens: longest answer, where a task does not say.

    Raises:
        ImportError: lm-eval is not installed.
    """
    try:
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise ImportError("text benchmarks need lm-eval: pip install 'lm-eval==0.4.13'") from error

    class LanguageModel(HFLM):
        """lm-eval's model over transformers, for a chat model that is in memory."""

        @property
        def max_gen_toks(self) -> int:
            """Longest answer of a task that names none."""
            return max_new_tokens

        def _model_generate(self, context: Any, max_length: int, stop: Any, **options: Any) -> Any:
            # Rows of a batch go on until the last one ends. Without this, a row that ended with
            # another token than the config's goes on behind its end, and lm-eval, which drops
            # special tokens before it looks for the end, keeps what it says there.
            options["eos_token_id"] = self.eot_token_id
            return super()._model_generate(context, max_length, stop, **options)

    return LanguageModel(
        pretrained=loaded.model.language_model, tokenizer=_tokenizer(loaded), batch_size=batch_size
    )


def _tokenizer(loaded: hub.Loaded) -> Any:
    """A copy that ends a text as the template ends an answer, with the checkpoint's template."""
    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.eos_token = loaded.model.conv_template.end_of_turn
    tokenizer.chat_template = loaded.processor.chat_template
    return tokenizer


def _run(
    model: Any,
    task: TextTask,
    limit: int | None,
    allow_code: bool,
    folder: Path | None,
    out: Path | None,
    settings: Mapping[str, Any],
) -> LanguageScore:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    cache = None if out is None else out / "cache" / task.task
    with _code_allowed(allow_code):
        results = simple_evaluate(
            model=model,
            tasks=[task.task],
            num_fewshot=task.shots,
            limit=limit,
            apply_chat_template=True,
            fewshot_as_multiturn=True,
            task_manager=TaskManager(include_path=None if folder is None else str(folder)),
            confirm_run_unsafe_code=allow_code,
            use_cache=None if cache is None else str(cache),
            bootstrap_iters=1000,
        )
    if results is None:
        raise ValueError("lm-eval gave no results; start it as a single process.")
    score = _score(task, results)
    if out is not None:
        _store(out, task, settings, score, results)
        for path in cache.parent.glob(f"{cache.name}_rank*.db"):  # type: ignore[union-attr]
            path.unlink()
    return score


@contextmanager
def _code_allowed(allow: bool) -> Iterator[None]:
    """The metric `code_eval` asks the environment, for as long as it may run code."""
    name, before = "HF_ALLOW_CODE_EVAL", os.environ.get("HF_ALLOW_CODE_EVAL")
    if allow:
        os.environ[name] = "1"
    try:
        yield
    finally:
        if allow and before is None:
            os.environ.pop(name, None)
        elif allow:
            os.environ[name] = str(before)


# ---------------------------------------------------------------------- results
def _score(task: TextTask, results: Mapping[str, Any]) -> LanguageScore:
    """The score of a task, or of a group of tasks, out of lm-eval's results."""
    entry = results.get("groups", {}).get(task.task) or results["results"][task.task]
    numbers = {
        name: float(value)
        for name, value in entry.items()
        if "," in name and isinstance(value, (int, float))
    }
    counts = [each["effective"] for each in results["n-samples"].values()]
    shots = {int(each) for each in results["n-shot"].values()}
    if task.shots is not None and shots != {task.shots}:
        logger.warning("%s ran with %s examples, not %s", task.task, sorted(shots), task.shots)
    return LanguageScore(
        task.key,
        task.task,
        max(shots),
        sum(counts),
        {name: value for name, value in numbers.items() if "_stderr," not in name},
        {
            name.replace("_stderr,", ","): value
            for name, value in numbers.items()
            if "_stderr," in name
        },
    )


def _path(out: Path, task: TextTask) -> Path:
    return out / f"{task.task}.json"


def _content(folder: Path) -> str:
    """A digest of the task files of a folder."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _stored(out: Path, task: TextTask, settings: Mapping[str, Any]) -> LanguageScore | None:
    """The score of a set that is done already."""
    path = out / "run.json"
    now = json.loads(json.dumps(settings))
    if not path.exists():
        write_atomic(path, json.dumps(settings, indent=2) + "\n")
    elif found := differences(json.loads(path.read_text("utf-8")), now):
        raise ValueError(
            f"{out} holds a run of other settings ({'; '.join(found)}); name another folder."
        )
    if not _path(out, task).exists():
        return None
    return LanguageScore(**json.loads(_path(out, task).read_text("utf-8"))["score"])


def _store(
    out: Path,
    task: TextTask,
    settings: Mapping[str, Any],
    score: LanguageScore,
    results: Mapping[str, Any],
) -> None:
    """Write answers first and the score last, so that a score has its answers."""
    answers = [
        json.dumps({"task": name, **sample}, ensure_ascii=False, default=str)
        for name, samples in results.get("samples", {}).items()
        for sample in samples
    ]
    write_atomic(_path(out, task).with_suffix(".jsonl"), "".join(f"{line}\n" for line in answers))
    kept = {name: results.get(name) for name in ("versions", "n-samples", "lm_eval_version")}
    content = {"score": asdict(score), "settings": settings, "lm_eval": kept}
    text = json.dumps(content, indent=2, ensure_ascii=False, default=str)
    write_atomic(_path(out, task), text + "\n")


def describe(scores: Mapping[str, LanguageScore]) -> str:
    """A line for each metric of each set."""
    lines = []
    for name, score in scores.items():
        for metric, value in score.metrics.items():
            error = score.errors.get(metric)
            margin = "" if error is None or error != error else f" ± {100 * error:.1f}"
            lines.append(
                f"{name:24} {score.task:22} {metric:32} {100 * value:6.1f}{margin}"
                f"  (n {score.n}, {score.shots}-shot)"
            )
    return "\n".join(lines)
