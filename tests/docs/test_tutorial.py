"""The tutorial, from its first command to its last, as a reader would go through it.

`make test` reads every command as the program would, draws the data and parses the recipe; CI and
`make test-slow` run all of it, in one process, which imports once. Left out is what installs or
waits for a browser; `tests/app` has the app.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import subprocess
import sys

import pytest

from tests.docs import scripts

PAGE = (scripts.ROOT / "docs" / "tutorial.md").read_text("utf-8")
ELSEWHERE = {
    "make demo",
    "source .venv/bin/activate",
    "make app",
    "internvl app runs/german/final",
}
RUN = r"""
import contextlib, io, json, os, runpy, shlex, sys

from typer.testing import CliRunner

from internvl.cli import app


def run(line):
    words = shlex.split(line)
    if words[0] == "python":
        runpy.run_path(words[1], run_name="__main__")
        return ""
    result = CliRunner().invoke(app, words[1:])
    if result.exit_code:
        raise SystemExit(f"{line}: {result.exit_code} {result.exception!r}\n{result.output}")
    return result.stdout.strip()


answers = []
for kind, content in json.load(sys.stdin):
    if kind == "file":
        name, text = content
        os.makedirs(os.path.dirname(name), exist_ok=True)
        with open(name, "w", encoding="utf-8") as stream:
            stream.write(text)
    elif kind == "python":
        with contextlib.redirect_stdout(io.StringIO()) as said:
            exec(compile(content, "docs/tutorial.md", "exec"), {"__name__": "tutorial"})
        answers.append(said.getvalue().split("\n")[:-1])
    else:
        answers.append([run(line) for line in content])
print(json.dumps(answers))
"""


def steps(text: str) -> tuple[list, list]:
    """What to do, and what is to be said by each step that does something; None for anything."""
    todo: list = []
    said: list = []
    for language, body in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        if named := re.match(r"# (out/\S+)\n", body):
            todo.append(("file", (named[1], body)))
        elif language == "python":
            todo.append(("python", body))
            said.append(re.findall(r"^print\(.*\)  # (.*)$", body, re.MULTILINE))
        elif language == "bash":
            lines = [line for line in body.splitlines() if line not in ELSEWHERE]
            if lines:
                todo.append(("bash", lines))
                said.append(None)
        elif language == "text":
            said[-1] = body.splitlines()
        else:
            raise AssertionError(f"nobody runs {language!r}")
    return todo, said


def read(command, words: list[str]) -> str:
    """The command that the program would run; click raises where a word fits nowhere."""
    context = command.make_context(command.name, list(words))
    if not hasattr(command, "commands"):
        return command.name
    rest = [*getattr(context, "_protected_args", []), *context.args]
    _, child, rest = command.resolve_command(context, rest)
    return read(child, rest)


def test_commands_are_those_of_the_program():
    import typer

    from internvl.cli import app

    program = typer.main.get_command(app)
    lines = [line for kind, body in steps(PAGE)[0] if kind == "bash" for line in body]
    lines += [line for line in ELSEWHERE if line.startswith("internvl ")]
    called = [
        read(program, shlex.split(line)[1:]) for line in lines if line.startswith("internvl ")
    ]
    assert {"chat", "explain", "validate", "run", "verify", "app"} <= set(called)
    assert len(called) >= 10
    with pytest.raises(Exception, match=r"(?i)no such option"):  # of the click within typer
        read(program, ["chat", "--no-such-option"])


def test_data_and_recipe(tmp_path, monkeypatch):
    from internvl.data.mixture import load_meta
    from internvl.training.recipes import load_recipe

    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    for kind, content in steps(PAGE)[0]:
        if kind == "file":
            (tmp_path / content[0]).write_text(content[1], encoding="utf-8")
    runpy.run_path("out/draw.py", run_name="__main__")
    recipe = load_recipe("out/german.yaml")
    (spec,) = load_meta(recipe.data)
    rows = (tmp_path / "out" / "german" / "rows.jsonl").read_text("utf-8").splitlines()
    assert len(rows) == 160
    assert spec.data_augment
    assert recipe.lora is not None
    assert {json.loads(row)["conversations"][1]["value"] for row in rows} == {
        "rot", "grün", "blau", "gelb", "lila",
    }  # fmt: skip


@pytest.mark.slow
def test_tutorial_does_what_it_says(tmp_path):
    todo, said = steps(PAGE)
    for name in ("demo", "examples"):
        (tmp_path / name).symlink_to(scripts.ROOT / name)
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN],
        input=json.dumps(todo),
        cwd=tmp_path,
        env={
            "OMP_NUM_THREADS": "1",
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(scripts.ROOT),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    answers = json.loads(result.stdout.splitlines()[-1])
    assert len(answers) == len(said)
    for found, expected in zip(answers, said, strict=True):
        if expected is not None:
            assert found == expected
    assert (tmp_path / "out" / "tiles.png").is_file()
    assert (tmp_path / "runs" / "german" / "adapter" / "adapter_config.json").is_file()


def test_what_runs_elsewhere_is_in_the_page_and_exists():
    makefile = (scripts.ROOT / "Makefile").read_text("utf-8")
    for line in ELSEWHERE:
        assert line in PAGE
        if line.startswith("make "):
            assert re.search(rf"^{line.split()[1]}:", makefile, re.MULTILINE), line
