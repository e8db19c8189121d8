"""Every Python block of the how-to pages runs as a reader would run it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests import support

PAGES = (
    "adapters",
    "adopting",
    "answers",
    "conversations",
    "converting",
    "data",
    "migration",
    "progressive",
    "scaling",
    "test_time_scaling",
    "training",
    "vision_evaluation",
)
# All pages in one process, which imports once; each with names of its own.
RUN = """
import json, sys, traceback
failed = {}
for page, code in json.load(sys.stdin).items():
    try:
        exec(compile(code, f"docs/{page}.md", "exec"), {"__name__": page})
    except Exception:
        failed[page] = traceback.format_exc()
print(json.dumps(failed))
"""


def test_python_blocks(tmp_path):
    code = {}
    for page in PAGES:
        text = (support.ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
        code[page] = "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))
        assert code[page], page
    for name in ("demo", "examples"):  # pages read these, and write beside them
        (tmp_path / name).symlink_to(support.ROOT / name)
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN],
        input=json.dumps(code),
        cwd=tmp_path,
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": str(tmp_path / "modules"),
            "PYTHONPATH": str(support.ROOT),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    failed = json.loads(result.stdout.splitlines()[-1])
    assert failed == {}, "\n".join(failed.values())


def written() -> list[Path]:
    """Markdown that people read in a clone."""
    names = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
    folders = ("docs", "demo", "examples", "recipes", "space")
    found = [support.ROOT / name for name in names]
    return found + [page for name in folders for page in (support.ROOT / name).rglob("*.md")]


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub, the Hub and the documentation site make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
    found: set[str] = set()
    for title in re.findall(r"^#{1,6} (.+?)\s*$", text, flags=re.MULTILINE):
        title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
        plain = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        count = sum(
            each == plain or re.fullmatch(rf"{plain}-\d+", each) is not None for each in found
        )
        found.add(f"{plain}-{count}" if count else plain)
    return found


def test_links():
    """Every link leads to a file of the clone, and where it names a place, to a heading there."""
    broken = []
    for page in written():
        text = page.read_text(encoding="utf-8")
        for path, place in re.findall(r"\]\(([^)#\s]*)(#[^)\s]*)?\)", text):
            if path.startswith(("http://", "https://", "mailto:")) or not path + place:
                continue
            target = page.parent / path if path else page
            if not target.exists():
                broken.append(f"{page.name}: {path}")
            elif place and target.suffix == ".md" and place[1:] not in anchors(target):
                broken.append(f"{page.name}: {path}{place}")
    assert broken == []
