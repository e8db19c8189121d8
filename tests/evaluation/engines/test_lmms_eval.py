"""The plug-in for lmms-eval, as far as it goes without lmms-eval: tiles, settings, its command, and
result files of a real run. The rest is in test_lmms_eval_real.py."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from internvl.evaluation import benchmarks
from internvl.evaluation.engines import lmms_eval
from internvl.evaluation.engines.lmms_eval_requests import (
    benchmark_of,
    cut,
    flat,
    generation_settings,
    is_video,
    media_of,
)
from internvl.evaluation.run_config import ModelSource

# Written by lmms-eval 0.7.3 for the demo; see docs/evaluation_engines.md.
RECORDED = Path(__file__).parent / "recorded" / "lmms_eval_results.json"


def test_every_task_is_read_as_its_benchmark_says():
    count = 0
    for row in benchmarks.load().values():
        for task in row.engines.get("lmms_eval", ()):
            media = media_of(task)
            assert media.benchmark == row.key
            assert (media.max_tiles, media.total_tiles) == (row.max_tiles, row.total_tiles)
            assert media.upscale_first == row.upscale_first
            count += 1
    assert count > 45


def test_tasks_of_a_group_and_strangers():
    assert benchmark_of("blink_counting").key == "blink"
    assert benchmark_of("mmmu_val_pass64").key == "mmmu_val"
    assert benchmark_of("refcoco+_bbox_rec_val").key == "refcoco_plus"
    assert benchmark_of("chartqapro") is None
    assert media_of("nocaps_val").max_tiles is None  # the checkpoint's own limit
    assert media_of("docvqa_val", max_tiles=6).max_tiles == 6
    assert media_of("mvbench_action_count").frames == 16
    assert media_of("videomme").frames == 32
    assert media_of("videomme", num_frames=64).frames == 64


def test_all_settings_are_kept():
    given = {"do_sample": True, "temperature": 0.2, "top_p": 0.9, "max_new_tokens": 64}
    assert generation_settings(given) == (given, [])
    # `temperature: 0.2` of a task that leaves `do_sample` out asks for sampling all the same.
    assert generation_settings({"temperature": 0.2})[0]["do_sample"] is True
    greedy = {"do_sample": False, "temperature": 0.2, "top_p": None, "num_beams": 3}
    assert generation_settings(greedy)[0] == {
        "max_new_tokens": 1024,
        "do_sample": False,
        "num_beams": 3,
    }
    assert generation_settings({"max_gen_toks": 9})[0]["max_new_tokens"] == 9
    found, unknown = generation_settings({"image_aspect_ratio": "anyres", "top_k": 1})
    assert (unknown, "image_aspect_ratio" in found) == (["image_aspect_ratio"], False)


def test_stop_strings():
    given = {"until": ["\n\n", "Q:", None, ""]}
    assert generation_settings(given)[0]["stop_strings"] == ["Q:"]
    assert "stop_strings" not in generation_settings({"until": "\n\n"})[0]
    kept, _ = generation_settings(given, stop_at_blank_line=True)
    assert kept["stop_strings"] == ["\n\n", "Q:"]
    assert given == {"until": ["\n\n", "Q:", None, ""]}
    assert cut("four\n\nQ: five?", ["Q:", "\n\n"]) == "four"
    assert cut(" four ", []) == "four"


def test_visuals(tmp_path):
    assert flat([["a", ("b",)], None, "c"]) == ["a", "b", "c"]
    assert flat(None) == []
    assert is_video("x/clip.MP4")
    assert is_video(tmp_path)
    assert not is_video("x/photo.png")
    assert not is_video(b"bytes")


# ---------------------------------------------------------------------- the command
@pytest.fixture
def started(monkeypatch):
    """Command lines that would have been run."""
    seen: list[list[str]] = []

    def run(command: list) -> None:
        seen.append([str(each) for each in command])
        out = Path(command[command.index("--output_path") + 1])
        out.mkdir(parents=True, exist_ok=True)
        tasks = command[command.index("--tasks") + 1].split(",")
        content = {"results": {task: {"anls,none": 0.9, "anls_stderr,none": 0} for task in tasks}}
        (out / "20261129_134307_results.json").write_text(json.dumps(content))

    monkeypatch.setattr(lmms_eval.process, "run", run)
    monkeypatch.setattr(lmms_eval, "require", lambda: None)
    return seen


def test_the_command_and_its_results(started, tmp_path):
    model = ModelSource("some/model", dtype="bfloat16")
    scores = lmms_eval.run(["docvqa_val", "ocrbench"], model, tmp_path, limit=3, max_tiles=12)
    assert scores == {
        "docvqa": {"docvqa_val": {"anls,none": 0.9}},
        "ocrbench": {"ocrbench": {"anls,none": 0.9}},
    }
    assert "docvqa_val" in lmms_eval.describe(scores)
    (words,) = started
    assert words[words.index("--tasks") + 1] == "docvqa_val,ocrbench"
    arguments = words[words.index("--model_args") + 1]
    assert arguments == "pretrained=some/model,dtype=bfloat16,max_tiles=12"
    assert words[words.index("--use_cache") + 1] == str(tmp_path / "cache")
    assert words[words.index("--limit") + 1] == "3"
    with pytest.raises(ValueError, match=r"other settings.*limit: 3 -> None"):
        lmms_eval.run(["docvqa_val"], model, tmp_path)
    lmms_eval.run(["docvqa_val"], model, tmp_path / "b", cache=False, processes=2)
    assert "--use_cache" not in started[1]
    assert "torch.distributed.run" in started[1]


def test_results_of_an_earlier_run_do_not_hide_a_failed_one(started, tmp_path, monkeypatch):
    model = ModelSource("some/model")
    lmms_eval.run(["docvqa_val"], model, tmp_path)
    monkeypatch.setattr(lmms_eval.process, "run", lambda *_, **__: None)  # it logs, and ends with 0
    with pytest.raises(ValueError, match="no results of docvqa_val"):
        lmms_eval.run(["docvqa_val"], model, tmp_path)
    with pytest.raises(ValueError, match="one's own"):
        lmms_eval.run(["mine"], model, tmp_path, include=tmp_path, mode="cot")


def test_results_of_a_real_run(tmp_path):
    folder = tmp_path / "results" / "sub"
    folder.mkdir(parents=True)
    shutil.copy(RECORDED, folder / "20261129_134307_results.json")
    found = lmms_eval.read_results(tmp_path, [("a", "internvl_shapes"), ("a", "internvl_video")])
    assert found == {
        "a": {
            "internvl_shapes": {"exact,none": pytest.approx(27 / 28)},
            "internvl_video": {"exact,none": 1.0},
        }
    }
    newer = {"results": {}, "groups": {"internvl_shapes": {"exact,none": 0.5}}}
    (folder / "20261130_000000_results.json").write_text(json.dumps(newer))
    assert lmms_eval.read_results(tmp_path, [("a", "internvl_shapes")]) == {
        "a": {"internvl_shapes": {"exact,none": 0.5}}
    }
    with pytest.raises(ValueError, match="no results of other"):
        lmms_eval.read_results(tmp_path, [("b", "other")])


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'lmms-eval==0\.7\.3'"):
        lmms_eval.require()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [])
    with pytest.raises(ImportError, match="does not see the model 'internvl25'"):
        lmms_eval.require()
