"""Which VLMEvalKit: the checkout, its commit and what differs, on repositories made here."""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path

import pytest

from internvl.evaluation.engines import vlmevalkit_checkout as module
from internvl.evaluation.engines.vlmevalkit_checkout import checkout, turned_subtitles


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", "-C", str(folder), *who, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A checkout at the known commit, with a newer commit ahead of it."""
    folder = tmp_path / "VLMEvalKit"
    (folder / "vlmeval" / "vlm" / "internvl").mkdir(parents=True)
    (folder / "run.py").write_text("print('one')\n")
    (folder / "README.md").write_text("one\n")
    git(tmp_path, "init", "-q", str(folder))
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "known")
    monkeypatch.setattr(module, "COMMIT", git(folder, "rev-parse", "HEAD")[:8])
    return folder


def commit(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    git(folder, "add", ".")
    git(folder, "commit", "-qm", name)


def test_the_known_commit_is_accepted(repository, monkeypatch):
    found = checkout(repository)
    assert found.run == repository / "run.py"
    assert found.commit.startswith(module.COMMIT)
    monkeypatch.setenv("INTERNVL_VLMEVALKIT", str(repository))
    assert checkout() == found


def test_another_commit_is_refused_and_what_matters_named(repository, caplog):
    commit(repository, "vlmeval/vlm/internvl/utils.py", "two")
    commit(repository, "docs/other.md", "two")
    head = git(repository, "rev-parse", "HEAD")[:8]
    with pytest.raises(ValueError, match=f"is at {head} of .*not at {module.COMMIT}") as error:
        checkout(repository)
    assert "internvl/utils.py" in str(error.value)
    assert "other.md" not in str(error.value)
    with caplog.at_level(logging.WARNING):
        assert checkout(repository, any_commit=True).commit.startswith(head)
    assert head in caplog.text


def test_a_commit_that_changes_nothing_of_matter_says_so(repository):
    commit(repository, "docs/other.md", "two")
    with pytest.raises(ValueError, match="no file that matters differs"):
        checkout(repository)


def test_local_changes_are_refused(repository):
    (repository / "README.md").write_text("changed\n")
    assert checkout(repository).commit
    (repository / "run.py").write_text("print('two')\n")
    with pytest.raises(ValueError, match=r"has local changes in run\.py"):
        checkout(repository)


def test_a_shallow_or_foreign_history_says_so(repository, monkeypatch):
    monkeypatch.setattr(module, "COMMIT", "0123abcd")
    with pytest.raises(ValueError, match="0123abcd is not in its history"):
        checkout(repository)


def test_what_is_no_checkout(tmp_path, monkeypatch):
    monkeypatch.delenv("INTERNVL_VLMEVALKIT", raising=False)
    with pytest.raises(ValueError, match=r"INTERNVL_VLMEVALKIT is not set.*git clone"):
        checkout()
    with pytest.raises(ValueError, match=r"no run\.py"):
        checkout(tmp_path)
    # A plain folder inside another repository has not that one's commit.
    git(tmp_path, "init", "-q", str(tmp_path))
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "run.py").write_text("")
    with pytest.raises(ValueError, match="not a git checkout"):
        checkout(inner)
    assert checkout(inner, any_commit=True).commit == ""


def test_an_inverted_flag_is_recognised(tmp_path):
    assert turned_subtitles(tmp_path) == []
    source = tmp_path / "vlmeval" / "dataset" / "longvideobench.py"
    source.parent.mkdir(parents=True)
    source.write_text("if self.use_subtitle:\n    pass\n")
    assert turned_subtitles(tmp_path) == []
    source.write_text("if not self.use_subtitle:\n    pass\n")
    assert turned_subtitles(tmp_path) == ["LongVideoBench"]
