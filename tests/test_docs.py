"""Every Python block of the how-to pages runs as a reader would run it."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests import support


@pytest.mark.parametrize("page", ["adopting", "answers", "conversations"])
def test_python_blocks(page, tmp_path):
    text = (support.ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert blocks
    for name in ("demo", "examples"):  # pages read these, and write beside them
        (tmp_path / name).symlink_to(support.ROOT / name)
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks), encoding="utf-8")
    result = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(support.ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]


def test_links():
    for page in (support.ROOT / "docs").glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+?)\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
