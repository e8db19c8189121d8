"""The command-line reference, written from the program itself.

python docs/scripts/cli_reference.py            # writes docs/reference/cli.md
python docs/scripts/cli_reference.py --check    # exit code 1 when the page differs
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

PAGE = Path(__file__).resolve().parent.parent / "reference" / "cli.md"
_HEAD = """\
# Command line

Written by `python docs/scripts/cli_reference.py` from the program itself; a test compares.
`internvl` and `python -m internvl` are the same; `--help` after any command tells what stands here.
"""


def render() -> str:
    """The page."""
    from internvl.cli import app

    parts = [_HEAD]
    program = typer.main.get_command(app)
    for context in _commands(program.context_class(program, info_name="internvl")):
        parts += _section(context)
    return "\n".join(parts).rstrip("\n") + "\n"


def _commands(context: Any) -> Iterator[Any]:
    """A command and what is below it, in the order of the program."""
    yield context
    command = context.command
    for name, child in getattr(command, "commands", {}).items():
        if not child.hidden:
            yield from _commands(command.context_class(child, info_name=name, parent=context))


def _section(context: Any) -> list[str]:
    command, path = context.command, context.command_path
    depth = "##" if path.count(" ") < 2 else "###"
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    lines = [f"{depth} `{path}`\n", _paragraphs(command.help), f"```text\n{usage}\n```\n"]
    children = getattr(command, "commands", {})
    for name, child in children.items():
        if not child.hidden:
            target = re.sub(r"[^a-z0-9_ -]", "", f"{path} {name}").replace(" ", "-")
            summary = _paragraphs(child.help).partition("\n")[0]
            lines.append(f"* [`{path} {name}`](#{target}): {summary}")
    if children:
        lines.append("")
    records = [each.get_help_record(context) for each in command.get_params(context)]
    shown = [record for record in records if record and not record[0].startswith("--help")]
    lines += [f"* `{names}`: {_text(text)}" for names, text in shown]
    if shown:
        lines.append("")
    if epilog := _paragraphs(command.epilog):
        lines.append(epilog)
    return lines


def _paragraphs(text: str | None) -> str:
    """Help as Markdown; what follows a `\\b` keeps its lines, as in a terminal."""
    blocks = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text or "").strip()):
        if block.startswith("\b"):
            blocks.append("```text\n" + block.lstrip("\b").strip("\n") + "\n```")
        elif block:
            blocks.append(_text(" ".join(block.split())))
    return "\n\n".join(blocks) + "\n" if blocks else ""


def _text(text: str) -> str:
    """Prose that Markdown would take for markup, outside of backticks."""
    parts = re.split(r"(`[^`]*`)", text)
    for index in range(0, len(parts), 2):
        parts[index] = re.sub(r"([<*_|])", r"\\\1", parts[index])
    return "".join(parts)


def main(arguments: list[str]) -> int:
    """Write the page, or compare it."""
    page = render()
    if "--check" in arguments:
        same = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page
        if not same:
            sys.stderr.write(f"{PAGE.name} differs: python docs/scripts/cli_reference.py\n")
        return 0 if same else 1
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
