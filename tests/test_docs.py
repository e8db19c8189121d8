"""Every Python block of the how-to pages runs as a reader would run it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

from tests import support

PAGES = (
    "adapters",
    "adopting",
    "answers",
    "conversations",
    "converting",
    "data",
    "progressive",
    "scaling",
    "training",
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
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(support.ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    failed = json.loads(result.stdout.splitlines()[-1])
    assert failed == {}, "\n".join(failed.values())


def test_links():
    for page in (support.ROOT / "docs").glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+?)\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
