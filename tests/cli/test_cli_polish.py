"""What every command owes its user: help with examples, plain text, exit codes, JSON, quiet runs,
and an end without a traceback when it is stopped."""

from __future__ import annotations

import io
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import typer
from typer.testing import CliRunner

from internvl import cli, cli_output
from tests import support
from tests.data.files import small_mixture, turns, write_meta, write_rows

TREE = typer.main.get_command(cli.app)
COMMANDS = dict(cli_output.walk(TREE))
LEAVES = {path: each for path, each in COMMANDS.items() if not hasattr(each, "commands")}
# Commands whose result is no data: files, a conversation, or a page that stays open.
WITHOUT_JSON = {
    "app": "stays open until it is stopped",
    "train run": "writes a run; its log is trainer_state.json",
    "train distill": "writes a run",
    "eval engine export-llm": "writes a folder",
    "eval vision probe": "writes results.json",
    "eval vision segment": "writes results.json",
}
PROGRAM = (sys.executable, "-m", "internvl")
# Forces colours on programs that ask for them, rich among them.
COLOURFUL = {"FORCE_COLOR": "1", "GITHUB_ACTIONS": "true", "PY_COLORS": "1", "TERM": "xterm"}


def run(*words: str, **options):
    return CliRunner().invoke(cli.app, list(words), **options)


def options_of(command) -> set[str]:
    return {name for each in command.params for name in each.opts}


# ---------------------------------------------------------------------- help
HELP_OF_ALL = """
import io, json, sys
from contextlib import redirect_stdout
import typer
from internvl import cli, cli_output

tree = typer.main.get_command(cli.app)
texts = {}
for path, _ in cli_output.walk(tree):
    with redirect_stdout(io.StringIO()) as out:
        tree.main([*path.split(), "--help"], prog_name="internvl", standalone_mode=False)
    texts[path] = out.getvalue()
print(json.dumps([texts, sorted(sys.modules)]))
"""


@pytest.fixture(scope="module")
def help_of_all() -> tuple[dict[str, str], list[str]]:
    """What --help of each command prints, and the modules that this imports."""
    done = subprocess.run(
        [sys.executable, "-c", HELP_OF_ALL],
        env={**os.environ, **COLOURFUL, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=True,
    )
    return tuple(json.loads(done.stdout))


def test_help_imports_nothing_heavy(help_of_all):
    heavy = {"torch", "transformers", "numpy", "PIL", "pandas", "matplotlib", "rich", "gradio"}
    assert heavy & set(help_of_all[1]) == set()


@pytest.mark.parametrize("path", COMMANDS)
def test_help_and_examples(path, help_of_all):
    command, text = COMMANDS[path], help_of_all[0][path]
    assert text.startswith(f"Usage: internvl {path}".rstrip() + " [OPTIONS]")
    assert not set("\x1b╭│╰─") & set(text)  # plain, though colours were forced
    assert command.short_help.endswith(".")
    for each in command.params:
        assert each.help, f"{path} {each.name}"
    examples = cli_output.EXAMPLES[path]
    assert examples
    for example in examples:
        assert f"    internvl {example}\n" in text  # on a line of its own, not wrapped
        assert path in example


def test_examples_are_of_commands():
    assert set(cli_output.EXAMPLES) - set(COMMANDS) == set()
    sections = [name for names in cli_output.SECTIONS.values() for name in names]
    assert set(sections) - set(TREE.commands) == set()
    assert len(sections) == len(set(sections))


def examples() -> list[str]:
    found = {each for lines in cli_output.EXAMPLES.values() for each in lines}
    return sorted(each for each in found if not each.startswith("-"))


def test_every_example_is_a_command_line_that_is_understood():
    tree = typer.main.get_command(cli.app)
    called = []
    for path, command in cli_output.walk(tree):
        if path in LEAVES:  # parse everything, do nothing
            command.callback = lambda path=path, **given: called.append(path)
    for example in examples():
        words = shlex.split(example)
        tree.main(words, prog_name="internvl", standalone_mode=False)
        path = called.pop()
        short = path == "train run" and words[1].endswith(".yaml")
        assert " ".join(words).startswith("train" if short else path), example
    assert called == []


def test_root_help_sorts_the_commands_and_tells_exit_codes(help_of_all):
    output = help_of_all[0][""]
    assert output.index("Ask:") < output.index("Checkpoints:") < output.index("This installation:")
    listed = [line.split()[0] for line in output.splitlines() if line.startswith("  ")]
    for name in TREE.commands:
        assert listed.count(name) == 1, name
    for code, text in cli_output.EXIT_CODES:
        assert f"{code:<4} {text}" in output


def test_errors_are_plain_even_where_colours_are_forced():
    environment = {**os.environ, **COLOURFUL}
    for words, code in ((["chat", "--nonsense"], 2), (["plan"], 2)):
        done = subprocess.run(
            [*PROGRAM, *words], capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == code
        assert not set("\x1b╭│╰─") & set(done.stdout + done.stderr)
        assert "Traceback" not in done.stderr


def test_completion():
    for words, found in (
        ("internvl ", {"chat", "plan", "eval"}),
        ("internvl eval sh", {"show"}),
        ("internvl chat --max", {"--max-tiles", "--max-new-tokens"}),
    ):
        environment = {
            "_INTERNVL_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        }
        result = CliRunner().invoke(cli.app, [], prog_name="internvl", env=environment)
        assert found <= set(result.output.split()), result.output
    assert "--install-completion" in options_of(TREE)


# ---------------------------------------------------------------------- exit codes
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no-such-command"], "No such command"),
        (["chat", "--no-such-option"], "No such option"),
        (["verify"], "Missing argument"),
        (["plan", "8B", "--batch", "many"], "Invalid value"),
        (["plan", "8B", "--batch", "0"], "Invalid value"),
        (["data", "validate", "no-such.json"], "error: "),
        (["filter", "report", "no-such-folder"], "error: "),
        (["filter", "review", "out", "--json"], "error: --json"),
        (["chat", "--json"], "error: --cot, --votes and --json need a question"),
        (["chat", "Hi", "--json", "--stream"], "error: --stream"),
        (["eval", "show", "no-such-benchmark"], "error: "),
        (["train", "curves", "no-such-run", "--out", "x.png"], "error: "),
    ],
)
def test_usage_and_refusals_exit_with_2(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*words)
    assert result.exit_code == cli_output.REFUSED
    assert said in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_faults_exit_with_1():
    row = {"conversations": [{"from": "human", "value": "Go on."}, {"from": "gpt", "value": ""}]}
    result = run("filter", "explain", "-", "--json", input=json.dumps(row))
    assert result.exit_code == cli_output.FAULTS
    assert "flagged" in {each["state"] for each in json.loads(result.stdout)}


def failing(error: BaseException):
    def command() -> None:
        """Fail."""
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("too\nlong"), cli_output.REFUSED, "error: too long\n"),
        (FileNotFoundError("nothing there"), cli_output.REFUSED, "error: nothing there\n"),
        (ImportError("pip install x"), cli_output.REFUSED, "error: pip install x\n"),
        (KeyboardInterrupt(), cli_output.STOPPED, ""),
    ],
)
def test_what_was_foreseen_is_one_line(error, code, said):
    app = typer.Typer()
    app.command()(cli._guarded(failing(error), models=False))
    result = CliRunner().invoke(app, [])
    assert (result.exit_code, result.stderr, result.stdout) == (code, said, "")


def test_a_bug_keeps_its_traceback_and_has_a_code_of_its_own(monkeypatch, capsys):
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(cli._guarded(failing(ZeroDivisionError("a bug")), models=False))
    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setattr(sys, "argv", ["internvl"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == cli_output.BUG
    captured = capsys.readouterr().err
    assert captured.startswith("Traceback")
    assert captured.endswith("ZeroDivisionError: a bug\n")


def test_a_reader_that_leaves_is_no_error():
    with subprocess.Popen(
        [*PROGRAM, "data", "mixture"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == ""


# ---------------------------------------------------------------------- JSON, quiet
def test_every_command_with_a_result_can_print_json():
    lacking = {path for path, each in LEAVES.items() if "--json" not in options_of(each)}
    assert lacking == set(WITHOUT_JSON) & set(LEAVES)


def test_every_command_can_be_quiet():
    assert [path for path, each in LEAVES.items() if "--quiet" not in options_of(each)] == []


@pytest.mark.parametrize("votes", [(), ("--votes", "3", "--seed", "1")])
def test_chat_as_json(votes):
    model = ("--model", str(support.checkpoint("qwen2")), "--dtype", "float32")
    words = ("chat", "What is this?", *model, "--max-new-tokens", "6", *votes)
    found = json.loads(run(*words, "--json").stdout)
    assert run(*words).stdout == (found["answer"] or found["text"]) + "\n"
    if votes:
        assert len(found["texts"]) == 3
        assert found["unparsed"] + sum(found["counts"].values()) == 3
    else:
        assert found["finish_reason"] == "length"
        assert found["answer_tokens"] == 6


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def talk() -> None:
    """What commands write beside their results."""
    from tqdm import tqdm

    list(tqdm(range(3), disable=None))
    list(tqdm(range(3), disable=None, file=sys.stderr))
    logging.getLogger("internvl.x").warning("a log line")
    warnings.warn("a warning", stacklevel=1)
    sys.stderr.write("said by the command itself\n")


def test_quiet_leaves_results_and_errors(monkeypatch):
    before = dict(os.environ)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    handler = logging.StreamHandler(terminal)
    logging.getLogger("internvl.x").addHandler(handler)
    try:
        with cli_output.quietly():
            talk()
            assert os.environ["TQDM_DISABLE"] == "1"
        assert terminal.getvalue() == "said by the command itself\n"
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            talk()
    finally:
        logging.getLogger("internvl.x").removeHandler(handler)
    assert "3/3" in terminal.getvalue()
    assert "a log line" in terminal.getvalue()
    assert dict(os.environ) == before


# ---------------------------------------------------------------------- Ctrl-C
def start(*words: str) -> subprocess.Popen:
    """The program in a process group of its own, as a shell starts it."""
    return subprocess.Popen(
        [*PROGRAM, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
        # Whoever is started in the background by a shell, or by nohup, inherits a deaf ear.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def interrupt(process: subprocess.Popen) -> None:
    """Press Ctrl-C, and look at what is left."""
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == cli_output.STOPPED, said
    assert "Traceback" not in said
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []


def until(condition: Callable[[], Any], process: subprocess.Popen) -> None:
    while not condition():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)


def corpus(folder: Path, rows: int) -> str:
    """A filter configuration over so many rows that it would take minutes."""
    said = turns("Tell me something.", " ".join(f"word{number}" for number in range(400)))
    write_rows(folder / "rows.jsonl", [{"conversations": said}] * rows)
    write_meta(folder, texts={"annotation": "rows.jsonl"})
    config = folder / "filter.yaml"
    config.write_text(
        "inputs: meta.json\noutput: out\npolicy: auto\nrows_per_shard: 10000\n"
        "executor: {kind: local, workers: 1}\n"
    )
    return str(config)


def test_ctrl_c_ends_a_long_command(tmp_path):
    pytest.importorskip("datatrove")
    process = start("filter", "run", corpus(tmp_path, 40_000))
    assert "4 shards" in process.stderr.readline()  # the log line before the work
    interrupt(process)


@pytest.mark.slow
def test_ctrl_c_at_the_prompt_of_a_dialogue():
    process = start("chat", "--model", str(support.checkpoint("qwen2")), "--max-new-tokens", "4")
    process.stdin.write("Hi\n")
    process.stdin.flush()
    assert process.stdout.readline()  # the answer; it waits for the next question now
    interrupt(process)


@pytest.mark.slow
def test_ctrl_c_ends_training_and_its_data_processes(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {support.ROOT / 'demo'}\ndata: {small_mixture(tmp_path)}\nsteps: 100000\n"
        "batch: 1\ncontext: 200\nmax_tiles: 4\ndtype: float32\nworkers: 2\n"
    )
    process = start("train", str(recipe), "--out", str(tmp_path / "run"), "--quiet")
    children = psutil.Process(process.pid).children
    until(lambda: (tmp_path / "run" / "recipe.json").exists() and len(children()) >= 2, process)
    interrupt(process)


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_of_an_evaluation(tmp_path):
    data = tmp_path / "rows.tsv"
    rows = "".join(f"{number}\tIs 2 a number?\tyes\n" for number in range(100_000))
    data.write_text("index\tquestion\tanswer\n" + rows)
    process = start(
        "eval", "run", "docvqa", "--data", str(data), "--out", str(tmp_path / "run"),
        "--processes", "2", "--batch-size", "2",
    )  # fmt: skip
    until(lambda: list(tmp_path.glob("run/**/predictions*")), process)
    interrupt(process)
