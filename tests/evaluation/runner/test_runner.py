"""Runs of the demo: resumed, sharded, sampled; every one must write the same bytes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch

from internvl import hub
from internvl.evaluation import benchmarks, runner
from internvl.evaluation.asking import Asker, prepare, seed_of
from internvl.evaluation.records import Sample, read_predictions
from internvl.evaluation.run_config import ModelSource, RunConfig, config_for, weights_digest
from internvl.evaluation.runner import Shard, join, run
from internvl.evaluation.samples import fingerprint
from tests import support

EXAMPLES = support.ROOT / "examples"
ROW = benchmarks.get("textvqa")


@pytest.fixture(scope="module")
def loaded():
    return hub.load()


@pytest.fixture(scope="module")
def samples():
    asked = [
        ("circle.png", "What color is the circle?", "red"),
        ("star.jpg", "What shape is it?", "star"),
        ("three.png", "How many objects are there?", "3"),
        ("three.png", "Is there a red square?", "no"),
        ("number.png", "Which number is it?", "7"),
    ]
    return [
        Sample(str(k), question, (answer,), images=(EXAMPLES / name,), fields={"category": name})
        for k, (name, question, answer) in enumerate(asked)
    ]


def config(rows, **given):
    given = {"prompt": "question", "max_new_tokens": 12, "batch_size": 2, "weights": "w", **given}
    return config_for(ROW, ModelSource(), fingerprint(rows), **given)


@pytest.fixture(scope="module")
def whole(loaded, samples, tmp_path_factory):
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("run")
    run(samples, config(samples), folder, loaded=loaded)
    return folder


def test_answers_are_those_of_chat(loaded, samples, whole):
    predictions = read_predictions(whole / "predictions.jsonl")
    assert [each.id for each in predictions] == ["0", "1", "2", "3", "4"]
    for sample, each in zip(samples, predictions, strict=True):
        tiles = prepare(loaded.processor, sample, config(samples)).pixel_values
        text = loaded.model.chat(
            loaded.tokenizer, tiles, sample.question, {"max_new_tokens": 12, "do_sample": False}
        )
        assert each.text == text
        assert each.prompt == f"<image>\n{sample.question}"
        response = each.responses[0]
        assert response.finish_reason == "stop"
        ids = loaded.tokenizer(text, add_special_tokens=False).input_ids
        assert response.tokens == len(ids) + 1  # <|im_end|>
        assert sum(each.num_tiles) * loaded.model.num_image_token < each.prompt_tokens
    assert [each.text for each in predictions[:2]] == ["red", "star"]


def test_run_folder(samples, whole):
    about = json.loads((whole / "run.json").read_text())
    assert about["hash"] == config(samples).hash == read_predictions(
        whole / "predictions.jsonl")[0].config  # fmt: skip
    assert about["versions"]["torch"] == torch.__version__
    times = [json.loads(line) for line in (whole / "times.jsonl").read_text().splitlines()]
    assert [each["ids"] for each in times] == [["0", "1"], ["2", "3"], ["4"]]
    assert runner.seconds_of(whole) == pytest.approx(sum(each["seconds"] for each in times))
    assert not (whole / "parts").exists()


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [0, 1, 2])
def test_interrupted_run_resumes_to_the_same_bytes(
    loaded, samples, whole, tmp_path, monkeypatch, after
):
    answer, calls = Asker.answer, []

    def dying(self, batch):
        calls.append(len(batch))
        if len(calls) > after:
            raise Killed
        return answer(self, batch)

    monkeypatch.setattr(Asker, "answer", dying)
    with pytest.raises(Killed):
        run(samples, config(samples), tmp_path / "r", loaded=loaded)
    assert not (tmp_path / "r" / "predictions.jsonl").exists()
    left = []
    monkeypatch.setattr(
        Asker, "answer", lambda self, batch: left.append(len(batch)) or answer(self, batch)
    )
    run(samples, config(samples), tmp_path / "r", loaded=loaded)
    assert left == [2, 2, 1][after:]  # nothing is answered twice
    assert (tmp_path / "r" / "predictions.jsonl").read_bytes() == (
        whole / "predictions.jsonl"
    ).read_bytes()


def test_shards_write_the_same_bytes(loaded, samples, whole, tmp_path):
    folder = tmp_path / "r"
    assert run(samples, config(samples), folder, loaded=loaded, shard=Shard(1, 2)) is None
    found = run(samples, config(samples), folder, loaded=loaded, shard=Shard(0, 2))
    assert [each.id for each in found] == ["0", "1", "2", "3", "4"]
    same = (folder / "predictions.jsonl").read_bytes()
    assert same == (whole / "predictions.jsonl").read_bytes()


def test_a_finished_run_is_read_and_not_repeated(samples, whole):
    model = ModelSource("/absent")  # would fail to load
    own = config(samples)
    assert len(run(samples, own, whole)) == 5
    with pytest.raises(
        ValueError, match=r"another configuration .*model.source: None -> '/absent'"
    ):
        run(samples, RunConfig(**{**vars(own), "model": model}), whole)


def test_foreign_folders_are_refused(samples, whole, tmp_path):
    with pytest.raises(ValueError, match="max_new_tokens: 12 -> 13"):
        run(samples, config(samples, max_new_tokens=13), whole)
    (tmp_path / "letter.txt").write_text("x")
    with pytest.raises(ValueError, match=r"holds no run, but \['letter.txt'\]"):
        run(samples, config(samples), tmp_path)


def test_other_versions_are_refused(samples, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "r")
    about = json.loads((tmp_path / "r" / "run.json").read_text())
    about["versions"]["torch"] = "1.0"
    (tmp_path / "r" / "run.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"versions.torch: '1.0' ->"):
        run(samples, config(samples), tmp_path / "r")


def test_join_waits_for_all_parts(tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "000000.jsonl").write_text("")
    (tmp_path / "parts" / "000000.time").write_text("")
    assert join(tmp_path, 2) is None


def test_votes_come_from_seeds_of_their_own(loaded, samples, tmp_path):
    own = config(
        samples, mode="vote", samples=3, samples_per_call=2, temperature=1.5, max_new_tokens=6
    )
    before = torch.get_rng_state()
    one = run(samples[2:4], own, tmp_path / "one", loaded=loaded)
    assert torch.equal(before, torch.get_rng_state())
    first = one[0]
    assert len(first.responses) == 3
    seeds = [each.seed for each in first.responses]
    assert seeds == [seed_of(0, "2", 0)] * 2 + [seed_of(0, "2", 1)]
    assert first.prompt.endswith("before answering.")
    # Neither the batch nor what ran before changes what a sample draws.
    other = run([samples[3], samples[2]], own, tmp_path / "two", loaded=loaded)
    assert {each.id: each.responses for each in one} == {e.id: e.responses for e in other}
    again = RunConfig(**{**vars(own), "seed": 1})
    assert (
        run(samples[2:4], again, tmp_path / "three", loaded=loaded)[0].responses != one[0].responses
    )


def test_several_images_share_tiles_and_videos_take_frames(loaded, samples):
    pair = Sample("p", "Which?", images=(EXAMPLES / "left.png", EXAMPLES / "right.jpg"))
    asked = prepare(loaded.processor, pair, config(samples, max_tiles=6, total_tiles=4))
    assert len(asked.num_tiles) == 2
    assert max(asked.num_tiles) <= 2 + 1  # thumbnail
    clip = Sample("c", "Which?", video=EXAMPLES / "moving.mp4")
    asked = prepare(loaded.processor, clip, config(samples, frames=3))
    assert asked.num_tiles == (1, 1, 1)
    assert asked.prompt.startswith("Frame-1: <image>\nFrame-2: <image>\nFrame-3: <image>\n")
    with pytest.raises(ValueError, match="sample c: it has a video"):
        prepare(loaded.processor, clip, config(samples))


def test_mmmu_doubles_its_first_image(loaded, samples):
    pair = Sample("p", "Which?", images=(EXAMPLES / "left.png", EXAMPLES / "right.jpg"))
    plain = prepare(loaded.processor, pair, config(samples, max_tiles=12))
    doubled = prepare(loaded.processor, pair, config(samples, max_tiles=12, upscale_first=True))
    assert plain.image_sizes == doubled.image_sizes
    first, second = doubled.media
    assert first.tiling.image.size == tuple(2 * side for side in plain.media[0].tiling.image.size)
    assert torch.equal(second.pixel_values, plain.media[1].pixel_values)


def test_a_broken_picture_names_its_sample(loaded, samples, tmp_path):
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="sample 9: "):
        prepare(loaded.processor, Sample("9", "Q", images=(tmp_path / "x.png",)), config(samples))


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"mode": "best"}, "mode is 'best'"),
        ({"samples": 4}, "gives one greedy answer"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_refused_configurations(samples, given, complaint):
    with pytest.raises(ValueError, match=complaint):
        config(samples, **given)


def test_reasoning_has_room():
    row = benchmarks.get("mantis")
    short = config_for(row, ModelSource(), "", weights="")
    assert short.max_new_tokens == row.max_new_tokens < 4096
    assert config_for(row, ModelSource(), "", weights="", mode="cot").max_new_tokens == 4096
    given = config_for(row, ModelSource(), "", weights="", mode="vote", max_new_tokens=9)
    assert (given.max_new_tokens, given.samples) == (9, 8)


def test_hash_sees_every_field(samples):
    base = config(samples)
    changed = {
        "data": "x", "prompt": "short", "max_tiles": 3, "total_tiles": 9, "upscale_first": True,
        "frames": 4, "mode": "cot", "max_new_tokens": 9, "temperature": 0.1, "top_p": 0.2,
        "batch_size": 3, "seed": 4, "limit": 2, "weights": "y", "samples_per_call": 3,
        "model": ModelSource(dtype="float32"), "benchmark": "docvqa",
    }  # fmt: skip
    hashes = {RunConfig(**{**vars(base), name: value}).hash for name, value in changed.items()}
    assert len(hashes) == len(changed)
    assert base.hash not in hashes
    assert set(changed) | {"samples"} == set(vars(base))


def test_weights_digest_tells_checkpoints_apart(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"model_type": "internvl_chat"}')
        (tmp_path / name / "model.safetensors").write_bytes(b"x" * 100 + name.encode())
    one, two = (weights_digest(ModelSource(str(tmp_path / name))) for name in "ab")
    assert one != two
    assert weights_digest(ModelSource(str(tmp_path / "a"))) == one


def test_two_processes_and_resume_through_the_command_line(samples, whole, tmp_path):
    rows = [
        {"id": s.id, "question": s.question, "answers": s.answers * 10, "image": str(s.images[0])}
        for s in samples
    ]
    (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = [
        sys.executable, "-m", "internvl", "eval", "run", "textvqa", "--data",
        str(tmp_path / "set.jsonl"), "--prompt", "question", "--max-new-tokens", "12",
        "--batch-size", "2",
    ]  # fmt: skip

    def started(*more):
        done = subprocess.run(
            [*command, *more], capture_output=True, text=True, cwd=support.ROOT, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    two = started("--out", str(tmp_path / "two"), "--processes", "2", "--json")
    assert json.loads(two)["n"] == 5  # one document, though three processes ran
    texts = [each.text for each in read_predictions(tmp_path / "two" / "predictions.jsonl")]
    assert texts == [each.text for each in read_predictions(whole / "predictions.jsonl")]
    # A finished run is scored again without a model.
    again = started("--out", str(tmp_path / "two"), "--json")
    assert json.loads(again) == json.loads(two)
