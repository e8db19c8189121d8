"""The checkpoint in demo/ answers questions about picture files through chat()."""

from __future__ import annotations

import json

import pytest
import torch

from internvl import demo, hub
from internvl.training import assemble
from internvl.training.demo import evaluate, larger

DEMO = hub.REPOSITORY / "demo"


@pytest.fixture(scope="module")
def loaded():
    return hub.load(DEMO)


def test_the_folder_is_small_and_sharded():
    shards = sorted(DEMO.glob("model-*.safetensors"))
    index = json.loads((DEMO / "model.safetensors.index.json").read_text("utf-8"))
    assert len(shards) >= 3
    assert set(index["weight_map"].values()) == {shard.name for shard in shards}
    sizes = [path.stat().st_size for path in DEMO.iterdir()]
    assert max(sizes) < 10_000_000
    assert sum(sizes) <= 25_000_000


def test_the_examples_are_answered_as_expected(loaded):
    records = demo.run(loaded)
    assert len(records) >= 20
    assert [record for record in records if not record["right"]] == []


def test_every_example_file_is_used_and_described():
    folder = hub.REPOSITORY / "examples"
    entries = json.loads((folder / "questions.json").read_text("utf-8"))
    used = {name for e in entries for name in e.get("images", [])}
    used |= {e[key] for e in entries for key in ("image", "video") if key in e}
    present = {p.name for p in folder.iterdir()} - {"README.md", "questions.json"}
    assert used == present
    readme = (folder / "README.md").read_text("utf-8")
    assert [name for name in sorted(present) if name not in readme] == []


FLOORS = {
    "colour of one": 0.9, "shape of one": 0.9, "exists": 0.85, "count 1-6": 0.85,
    "position": 0.85, "relation": 0.8, "which of two images": 0.8, "motion": 0.8,
    "second turn": 0.8, "box": 0.5,
}  # fmt: skip


def test_freshly_drawn_pictures_are_answered_and_looked_at(loaded, tmp_path):
    """Another seed than the README's table, so the floors are below its figures."""
    results = evaluate.evaluate(loaded, tmp_path, 16, None, seed=77, tasks=list(FLOORS))
    assert list(results) == list(FLOORS)
    low = {t: r["accuracy"] for t, r in results.items() if r["accuracy"] < 100 * FLOORS[t]}
    assert low == {}
    blind = [results[task]["blind"] for task in ("colour of one", "shape of one", "motion")]
    assert sum(blind) / 3 <= 60


def test_the_command_fails_when_answers_are_wrong(loaded, tmp_path, monkeypatch, capsys):
    entries = json.loads((demo.EXAMPLES / "questions.json").read_text("utf-8"))[:3]
    for entry in entries:
        entry["expected"] = "something else"
        name = entry["image"]
        (tmp_path / name).write_bytes((demo.EXAMPLES / name).read_bytes())
    (tmp_path / "questions.json").write_text(json.dumps(entries), "utf-8")
    monkeypatch.setattr(hub, "load", lambda source: loaded)
    assert demo.main(["--examples", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "0 of 3 answers as expected" in printed
    assert printed.count("something else") == 3


def test_the_demos_encoder_goes_under_a_larger_language_model(loaded, tmp_path):
    """The first commands of docs/progressive.md."""
    count = larger.language_model(DEMO, tmp_path / "llm")
    out = tmp_path / "larger"
    assemble.assemble(str(DEMO), str(tmp_path / "llm"), out, assemble.Options(tile_size=112))
    made = hub.load(out)
    assert sum(w.numel() for w in made.model.language_model.parameters()) == count == 10_356_096
    assert made.tokenizer.get_vocab() == loaded.tokenizer.get_vocab()
    vision = loaded.model.vision_model.state_dict()
    for name, weight in made.model.vision_model.state_dict().items():
        assert torch.equal(weight, vision[name].float()), name
