"""Every Python block of the README runs as a reader would run it, and its links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from tests import support

README = (support.ROOT / "README.md").read_text(encoding="utf-8")


def test_python_blocks(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 9
    script = tmp_path / "readme.py"
    checks = """
question = "<image>\\nWhat color is the object?"
assert model.chat(tokenizer, first, question, settings) == "red"
assert len(answers) == 3 and all(isinstance(a, str) for a in answers)
assert len(history) == 2
"""
    script.write_text("\n".join(blocks) + checks, encoding="utf-8")
    result = subprocess.run(
        [sys.executable, str(script)],
        cwd=support.ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]


def test_commands_exist():
    """Every sub-command that a shell block names is one that the program has."""
    named = set(re.findall(r"python -m internvl (\w+)", README))
    text = subprocess.run(
        [sys.executable, "-m", "internvl", "--help"],
        cwd=support.ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert {"chat", "explain", "doctor"} <= named
    assert all(command in text for command in named)
    makefile = (support.ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_links_and_length():
    for target in re.findall(r"\]\(([^)#]+?)\)", README):
        if not target.startswith("http"):
            assert (support.ROOT / target).exists(), target
    assert len(README.splitlines()) <= 300


def test_quick_start_is_short():
    first = re.search(r"```python\n(.*?)```", README, flags=re.DOTALL)[1]
    assert len([line for line in first.splitlines() if line]) <= 12
