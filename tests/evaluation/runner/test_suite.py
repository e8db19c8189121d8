"""Suite files: the limits of an entry hold, and options of the command line win over them."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from internvl.evaluation import evaluate
from internvl.evaluation.commands import _plans
from internvl.evaluation.evaluate import read_suite
from internvl.evaluation.run_config import ModelSource
from tests import support


@pytest.fixture
def suite(tmp_path):
    picture, clip = (str(support.ROOT / "examples" / name) for name in ("six.jpg", "moving.mp4"))
    rows = {"still.jsonl": {"image": picture}, "clip.jsonl": {"video": clip}}
    for name, medium in rows.items():
        (tmp_path / name).write_text(json.dumps({"question": "Q", "answer": "A", **medium}))
    entries = [
        {"name": "still", "benchmark": "docvqa", "file": "still.jsonl", "max_tiles": 3},
        {"name": "clip", "benchmark": "cgbench", "file": "clip.jsonl", "frames": [4]},
    ]
    path = tmp_path / "suite.json"
    path.write_text(json.dumps({"benchmarks": entries}))
    return path


def plans(suite, frames=None, max_tiles=None):
    settings = {"max_tiles": max_tiles}
    return list(_plans(None, None, suite, None, ModelSource(), frames, None, settings))


def test_limits_of_an_entry_hold(suite):
    still, clip = plans(suite)
    assert (still.settings["max_tiles"], still.frames) == (3, ())
    assert (clip.settings["max_tiles"], clip.frames) == (None, (4,))


def test_options_win_and_frames_are_for_videos_only(suite):
    still, clip = plans(suite, frames="8,16", max_tiles=2)
    assert (still.settings["max_tiles"], still.frames) == (2, ())
    assert clip.frames == (8, 16)


def test_other_forms_are_refused(tmp_path):
    (tmp_path / "s.json").write_text('{"benchmarks": [{"name": "x"}]}')
    with pytest.raises(ValueError, match="entry 0: expected name, benchmark and file"):
        read_suite(tmp_path / "s.json")


def test_the_last_of_several_processes_scores_whatever_others_ended_meanwhile(suite, monkeypatch):
    """Each leaves the frame counts that it was not the last one at; somebody has to score."""
    _, clip = plans(suite, frames="8,16")
    calls = []

    def run(samples, config, folder, **_):
        calls.append(config.frames)
        others_are_done = config.frames == 16 or calls.count(8) == 2
        return [f"predictions of {config.frames}"] if others_are_done else None

    monkeypatch.setattr(evaluate, "run", run)
    monkeypatch.setattr(
        evaluate, "config_for", lambda *_, frames, **__: SimpleNamespace(frames=frames)
    )
    monkeypatch.setattr(evaluate, "scored", lambda _, __, found: SimpleNamespace(
        scores={}, found=found, as_dict=lambda: {"n": len(found)}))  # fmt: skip
    clip.folder.mkdir(parents=True, exist_ok=True)
    outcome = evaluate.execute(clip)
    assert outcome.found == {8: ["predictions of 8"], 16: ["predictions of 16"]}
    assert calls == [8, 16, 8]
    assert json.loads((clip.folder / evaluate.SCORE).read_text()) == {"n": 2}
