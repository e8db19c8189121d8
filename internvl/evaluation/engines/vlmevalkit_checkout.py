"""The checkout of VLMEvalKit: where it is, and whether it is the one whose behaviour is known."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

VARIABLE, COMMIT = "INTERNVL_VLMEVALKIT", "e8e78f05"
# What the adapter depends on: changes elsewhere do not matter to it.
WATCHED = ("run.py", "vlmeval/vlm/internvl", "vlmeval/inference.py", "vlmeval/inference_video.py")


@dataclass(frozen=True)
class Checkout:
    """VLMEvalKit on this machine.

    Attributes:
        folder: with run.py in it.
        commit: what it is at; "" outside git.
    """

    folder: Path
    commit: str

    @property
    def run(self) -> Path:
        """Its run.py."""
        return self.folder / "run.py"


def checkout(folder: str | Path | None = None, *, any_commit: bool = False) -> Checkout:
    """Find the checkout, and compare its commit with the one whose behaviour is known.

    Args:
        folder: of the checkout; that of INTERNVL_VLMEVALKIT when None.
        any_commit: accept another commit, and changes; what differs is logged.

    Raises:
        ValueError: no checkout, or one at another commit or with changes; what differs is said.
    """
    given = os.environ.get(VARIABLE) if folder is None else folder
    if not given:
        raise ValueError(
            f"{VARIABLE} is not set; it names a checkout of VLMEvalKit at {COMMIT}: git clone "
            "https://github.com/open-compass/VLMEvalKit && git -C VLMEvalKit checkout "
            f"{COMMIT} (docs/evaluation_engines.md)."
        )
    path = Path(given).expanduser().absolute()
    if not (path / "run.py").is_file():
        raise ValueError(f"{path} has no run.py, so it is no checkout of VLMEvalKit.")
    commit = _git(path, "rev-parse", "HEAD")
    fault = _difference(path, commit)
    if fault and not any_commit:
        raise ValueError(
            f"{path} {fault}. Check out {COMMIT}, or allow it (--any-commit) after you have read "
            "what changed."
        )
    if fault:
        logger.warning("%s %s", path, fault)
    return Checkout(path, commit)


def _difference(path: Path, commit: str) -> str:
    """What differs from the known state, in words; "" for nothing."""
    if not commit:
        return f"is not a git checkout, so nobody knows whether it is {COMMIT}"
    changed = _git(path, "status", "--porcelain", "--untracked-files=no", "--", *WATCHED)
    local = f" has local changes in {_listed(changed.splitlines())}" if changed else ""
    if commit.startswith(COMMIT):
        return local.strip()
    names = _git(path, "diff", "--name-only", COMMIT, "HEAD", "--", *WATCHED, "vlmeval/dataset")
    when = _git(path, "log", "-1", "--format=%cs", "HEAD")
    known = _git(path, "cat-file", "-t", COMMIT) == "commit"
    detail = f"files that matter and differ: {_listed(names.splitlines())}"
    if not names:
        detail = "no file that matters differs" if known else f"{COMMIT} is not in its history"
    return f"is at {commit[:8]} of {when}, not at {COMMIT} ({detail}){local and ', and' + local}"


def _listed(lines: Sequence[str], most: int = 6) -> str:
    names = [line.split()[-1] for line in lines]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _git(folder: Path, *arguments: str) -> str:
    """What git prints; "" when it fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    # A folder inside another repository (this one's, say) is none of its own.
    if arguments[0] == "rev-parse" and not (folder / ".git").exists():
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def turned_subtitles(folder: Path) -> list[str]:
    """Data sets of a checkout whose `use_subtitle` means its opposite.

    In some versions LongVideoBench's prompt inserts subtitles under `if not self.use_subtitle`.
    """
    places = ("vlmeval/dataset/longvideobench.py", "dataset/longvideobench.py")
    sources = [folder / place for place in places if (folder / place).is_file()]
    if any("if not self.use_subtitle" in path.read_text("utf-8") for path in sources):
        return ["LongVideoBench"]
    return []
