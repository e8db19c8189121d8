"""VLMEvalKit's run.py with the demo on a CPU: local data sets, resumed, and with the traps.

A checkout (INTERNVL_VLMEVALKIT), or the fork that PyPI has (ms_vlmeval).
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from internvl import hub
from internvl.evaluation import benchmarks
from internvl.evaluation.engines import vlmevalkit
from internvl.evaluation.engines.vlmevalkit_checkout import VARIABLE, checkout
from internvl.evaluation.engines.vlmevalkit_plan import CLASSES, VIDEOS
from internvl.evaluation.engines.vlmevalkit_results import read_predictions
from internvl.evaluation.run_config import ModelSource
from tests.evaluation.engines import real

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parent / "scripts" / "local_copies.py"


def folder() -> str | None:
    """Where run.py is."""
    found = importlib.util.find_spec("vlmeval")
    here = [os.environ.get(VARIABLE), *(found.submodule_search_locations if found else [])]
    return next((each for each in here if each and Path(each, "run.py").is_file()), None)


if folder() is None:
    pytest.skip("no VLMEvalKit (docs/evaluation_engines.md)", allow_module_level=True)


@pytest.fixture
def where(tmp_path, monkeypatch):
    """VLMEvalKit, at whatever commit."""
    real.go_offline(monkeypatch, tmp_path)
    return checkout(folder(), any_commit=True)


@pytest.fixture
def data(tmp_path):
    """$LMUData with data sets of ours."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [
        {
            "index": index,
            "image": real.encoded(each["image"]),
            "question": each["question"],
            "A": "umbrella",
            "B": each["expected"],
            "answer": "B",
            "category": "shapes",
            "split": "test",
        }
        for index, each in enumerate(real.questions(4))
    ]
    real.write_tsv(folder / "Shapes.tsv", rows)
    text = [{k: v for k, v in row.items() if k != "image"} for row in rows[:2]]
    real.write_tsv(folder / "Text.tsv", text)
    real.write_tsv(folder / "MMMU_Pro_10c.tsv", rows[:1])
    asked = "Please provide the bounding box coordinate of the region: <ref>circle</ref>"
    box = {"index": 0, "image": real.encoded("circle.png"), "question": asked}
    box |= {"answer": "[10, 10, 90, 90]", "split": "RefCOCO_val", "width": 100, "height": 100}
    real.write_tsv(folder / "RefCOCO.tsv", [box])
    return folder


OWN = {"Shapes": "CustomMCQDataset", "Text": "CustomTextMCQDataset"}
SHORT = {"max_new_tokens": 16}


def test_run_and_resume(where, data, tmp_path, capfd):
    out = tmp_path / "out"
    options = {"where": where, "local": OWN, "data_folder": data, "settings": SHORT}
    scores = vlmevalkit.run([], ModelSource(), out, **options)
    (shapes,), (text,) = scores["Shapes"], scores["Text"]
    assert (shapes.n, shapes.failed, text.n, text.failed) == (4, 0, 2, 0)
    assert 0 <= shapes.columns["score"] <= 100
    assert "InternVL model version" in capfd.readouterr().out
    path = next((out / "work").rglob("*_Shapes.xlsx"))
    found = [each.text for each in read_predictions(path, "ai2d")]
    assert found == by_chat(), "the same tiles and prompts give the same answers"
    assert vlmevalkit.run([], ModelSource(), out, **options) == scores
    assert "InternVL model version" not in capfd.readouterr().out  # nothing was asked again


def by_chat() -> list[str]:
    """The answers of `chat()` to the prompts of VLMEvalKit, tiled by this repository."""
    loaded = hub.load(dtype="bfloat16")
    answers = []
    for each in real.questions(4):
        file = real.EXAMPLES / each["image"]
        tiles = loaded.processor.image_processor(str(file), return_tensors="pt", max_tiles=6)
        question = (
            f"<image>\n{each['question']}\nA. umbrella\nB. {each['expected']}\n"
            "Answer with the option's letter from the given choices directly."
        )
        pixels = tiles["pixel_values"].to(loaded.model.dtype)
        answers.append(loaded.model.chat(loaded.tokenizer, pixels, question, SHORT))
    return answers


@pytest.mark.parametrize(
    ("mode", "asks"), [("direct", "Answer directly with"), ("cot", "Answer: $LETTER")]
)
def test_the_options_of_mmmu_pro_reach_the_model(
    mode, asks, where, data, tmp_path, capfd, monkeypatch
):
    wrap_plugin(monkeypatch, tmp_path)
    if mode == "cot":
        (data / "MMMU_Pro_10c.tsv").rename(data / "MMMU_Pro_10c_COT.tsv")
    name = "MMMU_Pro_10c_COT" if mode == "cot" else "MMMU_Pro_10c"
    scores = vlmevalkit.run(
        [name],
        ModelSource(),
        tmp_path / "out",
        where=where,
        mode=mode,
        data_folder=data,
        settings=SHORT,
    )
    (score,) = scores["mmmu_pro"]
    assert (score.entry, score.n, score.failed) == (name, 1, 0)
    assert "MMMU-Pro (std10)" in score.columns
    prompt = capfd.readouterr().out
    assert "A. umbrella\nB. " in prompt
    assert asks in prompt


def test_refcoco_is_built_by_its_name(where, data, tmp_path, capfd, monkeypatch):
    wrap_plugin(monkeypatch, tmp_path)
    out = tmp_path / "out"
    options = {"where": where, "data_folder": data, "settings": {"max_new_tokens": 48}}
    scores = vlmevalkit.run(["refcoco"], ModelSource(), out, **options)
    (score,) = scores["refcoco"]
    assert (score.entry, score.n, score.failed) == ("RefCOCO", 1, 0)
    assert set(score.columns) == {"RefCOCO (val)"}


def wrap_plugin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Start the plug-in through the script that takes our files for the real ones."""
    starter = tmp_path / "starter.py"
    starter.write_text(
        "import runpy, sys\n"
        f"sys.argv[1:1] = [{str(vlmevalkit.PLUGIN)!r}]\n"
        f"sys.argv[0] = {str(SCRIPT)!r}\nrunpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )
    monkeypatch.setattr(vlmevalkit, "PLUGIN", starter)


ASK = """
import inspect, json, sys
sys.path.insert(0, sys.argv[1])
import vlmevalkit_plugin as plugin
sys.path.pop(0)
plugin.register()
import vlmeval.dataset as d
found = {}
for key, name in json.loads(sys.argv[2]).items():
    cls = getattr(d, name, None)
    found[key] = cls is not None and "dataset" in inspect.signature(cls.__init__).parameters
    base = cls.__mro__[1] if found[key] and name.startswith("InternVL") else cls
    found[key] = found[key] and key in base.supported_datasets()
print(json.dumps(found))
"""


def test_every_class_is_one_of_vlmevalkit_and_knows_its_data_set(where):
    named = {**CLASSES, **{each.dataset: each.cls for each in VIDEOS.values()}}
    planned = {
        key for row in benchmarks.load().values() for key in row.engines.get("vlmevalkit", ())
    }
    assert set(CLASSES) <= planned
    arguments = [str(vlmevalkit.PLUGIN.parent), json.dumps(named)]
    done = subprocess.run(
        [sys.executable, "-c", ASK, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert [key for key, right in found.items() if not right] == []
