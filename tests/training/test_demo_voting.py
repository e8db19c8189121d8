"""The experiment on majority votes: how it asks and counts, and that its page is up to date."""

from __future__ import annotations

import json

import pytest
import torch

from internvl import hub
from internvl.evaluation.scaling import Scaling
from internvl.training.demo import voting
from tests.training import demo_material

DOCS = hub.REPOSITORY / "docs"
TASK = "some of 7-9 shapes"


@pytest.fixture(scope="module")
def loaded():
    return hub.load(dtype="float32")


def test_answers_are_sampled_from_recorded_seeds(loaded, tmp_path):
    written = voting.cases(TASK, 2, demo_material.held(), tmp_path)
    before = torch.get_rng_state()
    found = voting.ask(loaded, written, 1.5, 4)
    assert torch.equal(torch.get_rng_state(), before)
    assert found == voting.ask(loaded, written, 1.5, 4)
    seeds = [{response.seed for response in each.responses} for each in found]
    assert [len(each) for each in seeds] == [1, 1]
    assert seeds[0] != seeds[1]
    assert len({response.text for each in found for response in each.responses}) > 1
    (greedy, _) = voting.ask(loaded, written, 0.0, 4)
    (answer,) = greedy.responses
    assert answer.seed is None
    assert answer.finish_reason == "stop"
    assert answer.tokens == len(loaded.tokenizer.encode(answer.text)) + 1
    assert greedy.answers == (written[0].expected,)


def test_a_row_per_task_and_temperature(loaded, tmp_path):
    rows = voting.measure(
        loaded,
        tmp_path,
        demo_material.held(),
        count=3,
        answers=3,
        temperatures=(1.0,),
        tasks=[TASK],
    )
    (row,) = rows
    found = Scaling.from_dict(row["scaling"])
    assert (found.n, found.answers) == (3, 3)
    assert row["over_greedy"]["a"] == pytest.approx(found.majority.at(3).value, abs=1e-3)
    assert row["over_greedy"]["b"] == row["greedy"]
    path = tmp_path / "rows.json"
    voting.save(rows, path, seed=1)
    assert voting.read(path) == rows
    assert json.loads(path.read_text("utf-8"))["seed"] == 1
    assert f"| {TASK} | 1 |" in voting.table(rows)


def test_the_page_shows_the_measured_rows():
    rows = voting.read(DOCS / "voting.json")
    assert voting.table(rows) in (DOCS / "test_time_scaling.md").read_text("utf-8")
    assert {row["task"] for row in rows} == set(voting.TASKS)
    assert {row["temperature"] for row in rows} == set(voting.TEMPERATURES)
    for row in rows:
        found = Scaling.from_dict(row["scaling"])
        assert found.n >= 200
        assert found.majority.ks == list(range(1, 17))
        assert found.majority.exact
    picture = (DOCS / "images" / "voting.svg").read_text("utf-8")
    assert all(f"{task}, n = " in picture for task in voting.TASKS)
    assert (DOCS / "images" / "voting.png").exists()
