"""The demo's two trainers learn, resume where they stopped, and their shards can be loaded."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from internvl import hub
from internvl.training.demo import dense, digits, feed, optim, qa, release
from internvl.training.demo.mixture import QAData
from internvl.training.demo.network import DemoShape
from internvl.training.demo.parallel import FlatGradients, Group

DEMO = hub.REPOSITORY / "demo"


@pytest.fixture
def strokes(monkeypatch):
    """Digits drawn here, in place of the archives: the label is the number of strokes."""
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 10
    glyphs = np.zeros((40, 28, 28), np.uint8)
    for index, label in enumerate(labels):
        for stroke in range(label + 1):
            glyphs[index, 3 + 2 * stroke, 6 + int(rng.integers(3)) : 22] = 255
    made = digits.Digits(glyphs, labels, np.arange(40) % 4 == 0)
    assert made.sample(np.random.default_rng(1))[1] in range(10)
    full = digits.Digits(
        np.concatenate([glyphs, glyphs]), np.concatenate([labels, labels]), np.arange(80) >= 40
    )
    monkeypatch.setattr(digits, "load", lambda split, cache: full)
    return full


def test_orthogonalise_gives_singular_values_near_one():
    generator = torch.Generator().manual_seed(0)
    for shape in ((64, 192), (192, 64), (96, 96)):
        values = torch.linalg.svdvals(optim.orthogonalise(torch.randn(shape, generator=generator)))
        assert 0.3 < values.median() < 1.3
        assert values.max() < 1.3


def test_schedule_warms_up_holds_and_decays():
    factors = [optim.schedule(k / 100, k, warmup=10, flat=0.5) for k in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[20] == factors[50] == 1
    assert factors[100] == pytest.approx(0.03)
    assert factors[50:] == sorted(factors[50:], reverse=True)


def test_frozen_groups_do_not_move():
    trainee = qa.Trainee(DemoShape(vocabulary=1024))
    trainee.model.initialise(0)
    optims = optim.optimisers(trainee, Group(), lr_matrix=1e-2, lr_rest=1e-2)
    FlatGradients(trainee).flat.fill_(0.01)
    # the dense head and the ViT rest together
    before = {name: p.clone() for name, p in trainee.named_parameters()}
    optim.set_rates(optims, 1.0, vision=0.0)
    for one in optims:
        one.step()
    moved = {name for name, p in trainee.named_parameters() if not torch.equal(p, before[name])}
    assert not [name for name in moved if "vision_model" in name]
    assert [name for name in moved if "language_model" in name]
    assert [name for name in moved if "mlp1" in name]


def test_stage_0_learns_and_resumes(strokes, tmp_path):
    plan = dense.DensePlan(steps=8, batch=8, warmup=2, evaluate_every=8, save_every=4, held_out=1)
    data = dense.DenseData(strokes, 8)
    tiles, targets = data(feed.step_rng(0, 0), 0)
    tiles, targets = torch.from_numpy(tiles), torch.from_numpy(targets)
    fresh = dense.DenseModel(DemoShape())
    fresh.vision_model.initialise(torch.Generator().manual_seed(plan.seed))
    before = dense.dense_loss(fresh(tiles), targets)
    dense.train_dense(plan, tmp_path, tmp_path, workers=0)
    whole = torch.load(tmp_path / "stage0.pt", weights_only=True)
    assert whole["step"] == 8
    fresh.load_state_dict(whole["model"])
    assert dense.dense_loss(fresh(tiles), targets) < before - 1
    log = json.loads((tmp_path / "stage0.jsonl").read_text().splitlines()[-1])
    assert set(log["accuracy"]) == {name for name, _, _ in dense.MAPS}

    # an interrupted run, resumed, ends in the same weights
    part = tmp_path / "part"
    part.mkdir()
    half = dense.DensePlan(steps=8, batch=8, warmup=2, evaluate_every=8, save_every=4, held_out=1)
    stopping = iter([False] * 4 + [True])
    original = Group.stopping
    Group.stopping = lambda self: next(stopping)
    try:
        dense.train_dense(half, part, tmp_path, workers=0)
    finally:
        Group.stopping = original
    assert torch.load(part / "stage0.pt", weights_only=True)["step"] == 4
    dense.train_dense(half, part, tmp_path, workers=0)
    again = torch.load(part / "stage0.pt", weights_only=True)["model"]
    for name, tensor in whole["model"].items():
        torch.testing.assert_close(again[name], tensor, msg=name)


def test_qa_training_lowers_the_loss_and_releases(strokes, tmp_path, monkeypatch):
    dense.train_dense(dense.DensePlan(steps=1, batch=4, held_out=1), tmp_path, tmp_path, workers=0)
    tokens = DEMO / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(tokens))
    context = tokenizer.token_to_id("<IMG_CONTEXT>")
    batch = QAData(tokenizer, strokes, 8, kind="shapes")(feed.step_rng(1, 1), 1)
    plan = qa.QAPlan(steps=14, frozen=9, tiles=8, warmup=3, evaluate_every=99)
    monkeypatch.setattr(qa, "held_out_batches", lambda *args: [batch])
    start = qa.start_model(plan, tmp_path / "stage0.pt", tokenizer.get_vocab_size())
    before = qa.qa_loss(start, batch, context, plan, frozen=True)
    qa.train_qa(plan, tmp_path, tokens, tmp_path, workers=0)
    saved = torch.load(tmp_path / "qa.pt", weights_only=True)
    start.load_state_dict(saved["model"])
    assert qa.qa_loss(start, batch, context, plan, frozen=True) < before - 1.5

    for file in DEMO.glob("*.json"):
        if "model" not in file.name:
            (tmp_path / file.name).write_text(file.read_text("utf-8"), "utf-8")
    release.release(tmp_path / "qa.pt", tmp_path, averaged=False)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) >= 3
    assert max(shard.stat().st_size for shard in shards) < 10_000_000
    written = {key: value for shard in shards for key, value in load_file(shard).items()}
    for name, tensor in start.model.state_dict().items():
        assert torch.equal(written[name], tensor.to(torch.bfloat16))
    loaded = hub.load(tmp_path)
    assert loaded.model.num_image_token == 16
    name = "language_model.model.embed_tokens.weight"
    assert torch.equal(loaded.model.state_dict()[name].bfloat16(), written[name].bfloat16())


def test_a_shard_that_is_too_large_is_refused(tmp_path):
    state = {"w": torch.zeros(6_000_000, dtype=torch.bfloat16)}
    with pytest.raises(ValueError, match="use more shards"):
        release.write_shards(state, tmp_path, shards=1)


def test_a_damaged_archive_is_refused(tmp_path):
    (tmp_path / digits.MNIST_FILE).write_bytes(b"not the archive")
    (tmp_path / digits.UCI_FILE).write_bytes(b"nor this")
    with pytest.raises(ValueError, match="sha256"):
        digits.fetch(tmp_path)


def test_batches_from_workers_are_those_made_here():
    def make(rng: np.random.Generator, step: int) -> float:
        return step + rng.random()

    here = feed.batches(make, seed=3, start=5, workers=0)
    there = feed.batches(make, seed=3, start=5, workers=2)
    assert [next(here) for _ in range(6)] == [next(there) for _ in range(6)]
    there.close()
