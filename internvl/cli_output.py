"""How the command line talks: plain help with examples, exit codes, quiet runs.

Help and errors are plain text, in a terminal and in a pipe alike: no colours and no frames, so
there is nothing that NO_COLOR would have to switch off, and `internvl ... --help | grep` works.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Annotated, Any, TextIO, cast

import typer
from typer.core import TyperGroup

OK, FAULTS, REFUSED, BUG, STOPPED = 0, 1, 2, 3, 130
EXIT_CODES = (
    (OK, "done"),
    (FAULTS, "done, and what was checked has faults"),
    (REFUSED, "not done: wrong usage, or refused with a line that says why"),
    (BUG, "not done: an error that nobody foresaw; the traceback says where"),
    (STOPPED, "stopped by Ctrl-C"),
)
# Headings of `internvl --help`; commands that stand nowhere come last.
SECTIONS = {
    "Ask": ("chat", "explain", "app"),
    "Checkpoints": ("adopt", "verify", "export", "convert", "plan", "publish"),
    "Data, training, evaluation": ("data", "filter", "train", "eval"),
    "This installation": ("doctor",),
}
# Examples of each command, without `internvl` before them; every one is parsed in the tests.
EXAMPLES: dict[str, tuple[str, ...]] = {
    "": (
        'chat examples/circle.png "What color is the object?"',
        "plan 8B --gpus 24GiB",
        "adopt OpenGVLab/InternVL2_5-8B ./InternVL2_5-8B",
        "--install-completion",
    ),
    "chat": (
        'chat examples/circle.png "What color is the object?"',
        "chat photo.jpg --model OpenGVLab/InternVL2_5-8B --stream",
        'chat --video clip.mp4 "What happens?" --num-frames 16',
        'chat page.png "Which is larger? (A) x (B) y" --cot --votes 8 --seed 0 --json',
    ),
    "explain": (
        'explain examples/sign.png "What does the text say?"',
        'explain photo.jpg "What is it?" --max-tiles 6 --show-tiles tiles.png',
        'explain photo.jpg "What is it?" --model ./InternVL2_5-8B --json',
    ),
    "app": ("app", "app ./InternVL2_5-8B --port 8080", "app --host 0.0.0.0 --queue 16"),
    "doctor": ("doctor", "doctor --json"),
    "adopt": (
        "adopt OpenGVLab/InternVL2_5-8B ./InternVL2_5-8B --dry-run",
        "adopt OpenGVLab/InternVL2_5-8B ./InternVL2_5-8B",
        "adopt ./my-old-finetune ./my-finetune --template internvl2_5",
    ),
    "verify": ("verify ./InternVL2_5-8B", "verify ./InternVL2_5-8B --no-values --json"),
    "export": (
        "export ./InternVL2_5-8B ./merged --merge-adapter ./my-adapter",
        "export demo ./demo-float32 --dtype float32 --max-shard-size 2GB",
    ),
    "convert": (
        "convert ./InternVL2_5-8B ./InternVL2_5-8B-hf --to native",
        "convert ./InternVL2_5-8B-hf ./back --to official",
    ),
    "plan": (
        "plan 78B --gpus 4x80GiB --images 4 --context 16384 --batch 2",
        "plan ./my-checkpoint --gpus 24GiB --dtype int4 --json",
        "plan 8B --gpus 8x80GiB --train stage2 --context 16384",
    ),
    "publish": (
        "publish ./merged --repo me/my-model --dry-run",
        "publish ./merged --repo me/my-model --public",
    ),
    "data": ("data validate meta.json", "data pack meta.json --report fill.svg"),
    "data validate": (
        "data validate meta.json --context 16384 --max-tiles 48",
        "data validate meta.json --pixels --limit 1000 --preview page.html",
        "data validate meta.json --json",
    ),
    "data pack": (
        "data pack meta.json --model ./InternVL2_5-8B",
        "data pack meta.json --context 8192 --max-tiles 24 --report fill.svg --json",
    ),
    "data mixture": (
        "data mixture --stage finetune --task OCR",
        "data mixture --meta meta.json --from ./datasets --set ChartQA.repeat_time=2",
    ),
    "filter": ("filter run recipes/filter/local.yaml", "filter review filtered --page"),
    "filter run": (
        "filter run recipes/filter/local.yaml",
        "filter run recipes/filter/local.yaml --set executor.workers=8 --json",
    ),
    "filter review": (
        "filter review filtered --page",
        "filter review filtered --rule suffix_loop --all reject",
        "filter review filtered --apply",
    ),
    "filter report": ("filter report filtered", "filter report filtered --json"),
    "filter explain": (
        "filter explain rows.jsonl:17",
        "filter explain rows.jsonl:17 --config recipes/filter/local.yaml --json",
    ),
    "train": (
        "train recipes/finetune-lora.yaml --set data=meta.json",
        "train recipes/8b/stage2.yaml --resume",
    ),
    "train run": (
        "train run recipes/finetune-lora.yaml --set model=./InternVL2_5-8B --set data=meta.json",
        "train run recipes/8b/stage2.yaml --max-steps 20 --out runs/trial",
        "train run recipes/8b/stage2.yaml --resume",
    ),
    "train transfer-vit": ("train transfer-vit ./small ./large ./large-with-aligned-vit",),
    "train assemble": (
        "train assemble ./mine --vit OpenGVLab/InternViT-300M-448px-V2_5"
        " --llm Qwen/Qwen2.5-0.5B-Instruct",
    ),
    "train distill": ("train distill recipes/distill/internvit-300m.yaml ./small-vit",),
    "train curves": (
        "train curves runs/demo/stage1 runs/demo/stage2 --out curves.svg",
        "train curves runs/a runs/b --overlay --out curves.png --json curves.json",
    ),
    "eval": ("eval list", "eval run docvqa --data DocVQA_VAL.tsv --out runs/docvqa"),
    "eval list": ("eval list --table 5", "eval list --modality video --json"),
    "eval show": ("eval show docvqa", "eval show mmmu --data MMMU_DEV_VAL.tsv --mode cot"),
    "eval run": (
        "eval run docvqa --data DocVQA_VAL.tsv --out runs/docvqa --model ./InternVL2_5-8B",
        "eval run mathvista --data MathVista_MINI.tsv --mode vote --samples 16 --json",
    ),
    "eval score": ("eval score runs/docvqa --size 8B", "eval score predictions.jsonl --json"),
    "eval compare": ("eval compare runs/before runs/after",),
    "eval votes": ("eval votes runs/mathvista --answers 1,2,4,8,16 --plot votes.svg",),
    "eval max": ("eval max runs/mmmu-direct runs/mmmu-cot",),
    "eval best-of": ("eval best-of runs/mathvista --scorer my_scorer:score",),
    "eval engine": ("eval engine vlmevalkit docvqa", "eval engine language mmlu"),
    "eval engine vlmevalkit": (
        "eval engine vlmevalkit docvqa chartqa --model ./InternVL2_5-8B --out runs/vlmevalkit",
    ),
    "eval engine lmms-eval": ("eval engine lmms-eval docvqa --limit 100 --json",),
    "eval engine language": ("eval engine language mmlu gsm8k --model ./InternVL2_5-8B",),
    "eval engine export-llm": ("eval engine export-llm ./InternVL2_5-8B ./its-llm",),
    "eval vision": ("eval vision probe ./images --out runs/probe",),
    "eval vision probe": (
        "eval vision probe ./imagenet --out runs/probe --model ./InternViT-300M-448px-V2_5",
    ),
    "eval vision segment": ("eval vision segment ./ADEChallengeData2016 --out runs/ade20k",),
}


class Commands(TyperGroup):
    """The root of the commands: adds examples to all of them, and sorts its own under headings."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for path, command in walk(self):
            command.short_help = first_sentence(command.help or "")
            command.epilog = epilog(path)

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the headings."""
        known = [name for names in SECTIONS.values() for name in names if name in self.commands]
        return [*known, *(name for name in self.commands if name not in known)]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands, a heading for each kind."""
        left = dict(self.commands)
        kinds = {title: [n for n in names if n in left] for title, names in SECTIONS.items()}
        placed = {name for names in kinds.values() for name in names}
        kinds["Commands"] = [name for name in left if name not in placed]
        for title, names in kinds.items():
            shown = [(name, left[name].short_help) for name in names if not left[name].hidden]
            if shown:
                with formatter.section(title):
                    formatter.write_dl(shown)


def walk(command: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """A command and all below it, each with its path, such as "train run"; "" for the root."""
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from walk(child, f"{path} {name}".strip())


def first_sentence(text: str) -> str:
    """What a command does, in one line."""
    return re.split(r"\.(?:\s|$)", " ".join(text.split()), maxsplit=1)[0] + "."


def epilog(path: str) -> str | None:
    """What stands below the options of a command; lines stay as they are (`\\b`)."""
    parts = []
    if examples := EXAMPLES.get(path):
        lines = (f"  internvl {example}" for example in examples)
        parts.append("\n".join(["\b", "Examples:", *lines]))
    if not path:
        codes = (f"  {code:<4} {text}" for code, text in EXIT_CODES)
        parts.append("\n".join(["\b", "Exit codes:", *codes]))
    return "\n\n".join(parts) or None


class _NotATerminal(io.TextIOBase):
    """Standard error, without the property of being a terminal, which progress bars ask for."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return False


_SILENT = {
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONWARNINGS": "ignore",
}


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """No progress bars, warnings and log lines within, in child processes neither.

    Errors and what a command itself says remain.
    """
    before = {name: os.environ.get(name) for name in _SILENT}
    stderr, disabled = sys.stderr, logging.root.manager.disable
    os.environ.update(_SILENT)
    logging.disable(logging.WARNING)
    if stderr.isatty():
        sys.stderr = cast(TextIO, _NotATerminal(stderr))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.stderr = stderr
        logging.disable(disabled)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress bars, warnings and log lines.")
]


def with_quiet(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the option --quiet, which it does not see itself."""

    @functools.wraps(command)
    def run(*arguments: Any, quiet: bool = False, **options: Any) -> None:
        with quietly() if quiet else contextlib.nullcontext():
            command(*arguments, **options)

    own = inspect.signature(command, eval_str=True)
    option = inspect.Parameter(
        "quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Quiet
    )
    run.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[*own.parameters.values(), option]
    )
    return run
