"""lmms-eval itself with the plug-in and the demo, on local tasks over example pictures."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
import torch

from internvl import hub
from internvl.evaluation import benchmarks
from internvl.evaluation.engines import lmms_eval
from internvl.evaluation.run_config import ModelSource
from tests.evaluation.engines import real

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed (docs/evaluation_engines.md)")
pytestmark = pytest.mark.slow

UTILS = """
from PIL import Image
def picture(doc): return [Image.open(doc["image"])]
def video(doc): return [doc["image"]]
def text(doc, lmms_eval_specific_kwargs=None): return doc["question"]
def results(doc, results): return {"exact": float(results[0].lower() == doc["answer"].lower())}
"""
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
doc_to_visual: !function utils.{visual}
doc_to_text: !function utils.text
"""
ANSWER = (
    TASK
    + """
output_type: generate_until
doc_to_target: answer
process_results: !function utils.results
generation_kwargs: {{max_new_tokens: 16, image_aspect_ratio: original}}
metric_list: [{{metric: exact, aggregation: mean, higher_is_better: true}}]
"""
)
CHOICE = (
    TASK
    + """
output_type: multiple_choice
doc_to_choice: choices
doc_to_target: target
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
)


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder of task files: answers, likelihoods, a video."""
    real.go_offline(monkeypatch, tmp_path)
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "utils.py").write_text(UTILS)
    rows = [
        {
            "image": str(real.EXAMPLES / each["image"]),
            "question": each["question"],
            "answer": each["expected"],
            "choices": ["umbrella tree", each["expected"], "9 9"],
            "target": 1,
        }
        for each in real.questions()
    ]
    asked = "In which direction does the object move?"
    clip = [{"image": str(real.EXAMPLES / "moving.mp4"), "question": asked, "answer": "right"}]
    pictures = real.write_lines(folder / "pictures.jsonl", rows)
    clips = real.write_lines(folder / "clips.jsonl", clip)
    for name, text, file, visual in (
        ("demo_answer", ANSWER, pictures, "picture"),
        ("demo_choice", CHOICE, pictures, "picture"),
        ("demo_video", ANSWER, clips, "video"),
    ):
        content = text.format(name=name, file=file, visual=visual)
        (folder / f"{name}.yaml").write_text(content)
    return folder


def test_its_evaluator(tasks, tmp_path, capfd):
    try:
        lmms_eval.require()
    except ImportError as error:
        pytest.skip(str(error))
    out = tmp_path / "out"
    options = {"include": tasks, "batch_size": 4, "num_frames": 4}
    scores = lmms_eval.run(["demo_answer", "demo_video"], ModelSource(), out, **options)
    assert scores["demo_answer"]["demo_answer"]["exact,none"] > 0.9
    assert scores["demo_video"]["demo_video"]["exact,none"] == 1.0
    assert "demo_answer: no benchmark of the report, tiles of" in "".join(capfd.readouterr())
    (file,) = out.rglob("*_samples_demo_answer.jsonl")
    assert len(file.read_text("utf-8").splitlines()) == len(real.questions())
    again = lmms_eval.run(["demo_answer", "demo_video"], ModelSource(), out, **options)
    assert again == scores
    written = "".join(capfd.readouterr())
    assert re.search(r"served from cache|[1-9]\d* cache hits", written)
    likely = lmms_eval.run(["demo_choice"], ModelSource(), out, cache=False, **options)
    assert likely["demo_choice"]["demo_choice"]["acc,none"] > 0.9


# ---------------------------------------------------------------------- the model by itself
@pytest.fixture(scope="module")
def model():
    """The plug-in's class as lmms-eval finds it, with a task of example pictures."""
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    registry = ModelRegistryV2()
    registry.register_manifest(lmms_eval.manifest())
    cls = registry.get_model_class("internvl25")
    found = cls.create_from_arg_string("dtype=float32", {"batch_size": 3, "device": "cpu"})
    docs = [each | {"image": str(real.EXAMPLES / each["image"])} for each in real.questions(6)]
    found.task_dict["docvqa_val"] = {"test": docs}
    return found


def request(context: str, doc: int, **settings: object) -> SimpleNamespace:
    from PIL import Image

    def visual(doc: dict) -> list:
        return [Image.open(doc["image"])]

    return SimpleNamespace(args=(context, settings, visual, doc, "docvqa_val", "test"))


def texts(model, requests: list) -> list[str]:
    return [each.text for each in model.generate_until(requests)]


def test_answers_are_those_of_chat(model):
    docs = model.task_dict["docvqa_val"]["test"]
    asked = [request(doc["question"], index, max_new_tokens=16) for index, doc in enumerate(docs)]
    asked[3].args[1]["repetition_penalty"] = 1.2  # another batch, and the order is kept
    loaded = hub.load(dtype="float32")
    expected = []
    for index, doc in enumerate(docs):
        # DocVQA: 18 tiles, thumbnail not counted; as VLMEvalKit and ours ask it.
        tiles = loaded.processor.image_processor(doc["image"], return_tensors="pt", max_tiles=18)
        expected.append(
            loaded.model.chat(
                loaded.tokenizer,
                tiles["pixel_values"],
                f"<image>\n{doc['question']}",
                asked[index].args[1],
            )
        )
    found = model.generate_until(asked)
    assert [each.text for each in found] == expected
    assert all(each.token_counts.output_tokens > 0 for each in found)
    assert model.ask(*asked[0].args[:1], *asked[0].args[2:]).num_tiles[0] > 4


def test_samples_are_sampled_and_greedy_ones_are_one(model):
    sampled = request("What is this?", 0, temperature=3.0, max_new_tokens=8)
    assert len(set(texts(model, [sampled] * 10))) > 1
    greedy = request("What is this?", 0, max_new_tokens=8, do_sample=False, temperature=3.0)
    assert len(set(texts(model, [greedy] * 10))) == 1


def test_an_answer_ends_at_a_stop_string(model):
    whole = texts(model, [request("What color is the circle?", 0)])[0]
    stop = whole[1:3]
    asked = request("What color is the circle?", 0, until=["\n\n", stop])
    (found,) = model.generate_until([asked])
    assert found.text == whole[:1]
    assert len(stop) == 2


def test_likelihoods_are_those_of_the_labels(model):
    doc = model.task_dict["docvqa_val"]["test"][0]
    visual = request("", 0).args[2]
    answer, other = doc["expected"], "umbrella"
    asked = [
        SimpleNamespace(args=(doc["question"], f" {text}", visual, 0, "docvqa_val", "test"))
        for text in (answer, other)
    ]
    (right, greedy), (wrong, other_greedy) = (each.text for each in model.loglikelihood(asked))
    assert right < wrong
    assert greedy
    assert not other_greedy
    # The same through the processor, whose labels are another way to the same places.
    loaded = hub.load(dtype="float32")
    content = [{"type": "image", "image": doc["image"]}, {"type": "text", "text": doc["question"]}]
    turns = [{"role": "user", "content": content}]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "max_tiles": 18}
    prompt = loaded.processor.apply_chat_template(turns, add_generation_prompt=True, **options)
    start = prompt["input_ids"].shape[1]
    ids = loaded.tokenizer(answer, add_special_tokens=False, return_tensors="pt")["input_ids"]
    whole = torch.cat([prompt["input_ids"], ids], dim=1)
    with torch.no_grad():
        logits = loaded.model(input_ids=whole, pixel_values=prompt["pixel_values"]).logits
    scores = logits[0, start - 1 : -1].log_softmax(-1).gather(-1, ids[0, :, None])
    assert right == pytest.approx(-float(scores.sum()), abs=1e-3)


def test_what_it_does_not_do_is_said(model):
    with pytest.raises(NotImplementedError, match="single questions"):
        model.generate_until_multi_round([])
    with pytest.raises(ValueError, match="no audio"):
        model.ask("?", lambda doc: [{"array": [], "sampling_rate": 1}], 0, "docvqa_val", "test")


def test_marks_in_a_question(model):
    from PIL import Image

    image = Image.new("RGB", (64, 64))
    place = {"doc_id": 0, "task": "docvqa_val", "split": "test"}
    two = model.ask("Compare <image> with <image>.", lambda _: [image, image], **place)
    marks = "Image-1: <image>\nImage-2: <image>\nCompare <Image-1> with <Image-2>."
    assert two.question == marks
    one = model.ask("<image> <image> Same?", lambda _: [image], **place)
    assert one.question == "<image>\n  Same?"
    assert model.ask("Why?").question == "Why?"


def test_every_task_is_one_of_lmms_eval():
    from lmms_eval.tasks import TaskManager

    known = set(TaskManager().all_tasks)
    named = {t for row in benchmarks.load().values() for t in row.engines.get("lmms_eval", ())}
    assert named <= known, json.dumps(sorted(named - known))
