"""Runs: exact resume, a polite end, checkpoints that load, errors that name samples."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from internvl import hub
from internvl.checkpoints.verify import verify
from internvl.training import run as module
from internvl.training import trainer as trainer_module
from internvl.training.callbacks import Ema
from internvl.training.recipes import load_recipe, parse_recipe
from internvl.training.run import train
from tests import support
from tests.data.files import picture, small_mixture, turns, write_meta, write_rows

RECIPE = """
model: {model}
data: meta.json
steps: 4
batch: 2
context: 200
max_tiles: 4
packing: {{buffer: 3}}
drop_path: 0.2
dtype: float32
gradient_checkpointing: false
workers: 1
optimizer: {{lr: 1e-3}}
schedule: {{name: cosine, warmup: 1}}
ema: 0.9
save: {{every: 2, keep: 2}}
log_every: 1
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    small_mixture(folder, images=10, texts=12)
    (folder / "recipe.yaml").write_text(RECIPE.format(model=hub.DEMO), encoding="utf-8")
    return folder


def recipe(folder, **changes):
    return load_recipe(folder / "recipe.yaml", changes)


def log_of(out: Path) -> list[dict]:
    state = json.loads((out / "checkpoint-4" / "trainer_state.json").read_text())
    return [entry for entry in state["log_history"] if "loss" in entry]


@pytest.fixture(scope="module")
def whole(folder):
    """An uninterrupted run."""
    out = folder / "whole"
    assert train(recipe(folder), out) == out / "final"
    return out


def same_weights(one: Path, other: Path) -> None:
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert set(first) == set(second)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_a_killed_run_goes_on_as_if_it_had_not_been(folder, whole):
    """kill -9 in a step: the next start goes on from the last checkpoint, bit by bit the same."""
    out = folder / "killed"
    command = [sys.executable, "-m", "internvl", "train", str(folder / "recipe.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with (folder / "killed.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--out", str(out)], cwd=support.ROOT, env=environment, stderr=log, stdout=log
        )
        patience = time.monotonic() + 300
        while not (out / "checkpoint-2").exists() and process.poll() is None:
            assert time.monotonic() < patience
            time.sleep(0.02)
        process.kill()
        process.wait()
    assert (out / "checkpoint-2").exists(), (folder / "killed.log").read_text()[-2000:]
    assert not (out / "final").exists()
    train(recipe(folder), out, resume=True)
    same_weights(out / "final", whole / "final")
    same_weights(out / "checkpoint-4", whole / "checkpoint-4")
    assert [e["loss"] for e in log_of(out)] == [e["loss"] for e in log_of(whole)]


def test_a_run_that_is_asked_to_end_writes_where_it_stands(folder, whole, monkeypatch):
    out = folder / "asked"
    step = trainer_module.PackTrainer.training_step
    seen = []

    def training_step(self, *arguments, **options):
        seen.append(1)
        if len(seen) == 2:  # in the first optimiser step
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *arguments, **options)

    monkeypatch.setattr(trainer_module.PackTrainer, "training_step", training_step)
    assert threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    assert train(recipe(folder), out) == out / "checkpoint-1"
    assert signal.getsignal(signal.SIGTERM) == handler
    monkeypatch.undo()
    train(recipe(folder), out, resume=True)
    same_weights(out / "final", whole / "final")


def test_every_checkpoint_is_a_repository_that_loads(whole):
    assert verify(whole / "final").defects == ()
    for name in ("checkpoint-4", "final"):
        loaded = hub.load(whole / name)
        loaded.model.chat(loaded.tokenizer, None, "Hi", {"max_new_tokens": 2})
    assert hub.load(whole / "final").model.dtype == torch.bfloat16  # as the demo is stored
    assert not list(whole.glob(".partial*"))
    average = load_file(whole / "checkpoint-4" / "ema.safetensors")
    final = load_file(whole / "final" / "model.safetensors")
    assert torch.equal(average["mlp1.1.weight"].bfloat16(), final["mlp1.1.weight"])


def test_the_log_says_what_went_through(whole):
    for entry in log_of(whole):
        assert 0 < entry["token_fill"] <= 1
        assert 0 <= entry["tile_fill"] <= 1
        assert entry["tokens_per_second"] > 0
        assert entry["tiles_per_second"] >= 0
        assert entry["samples_per_pack"] >= 1
        assert entry["skipped"] == 0
    assert list((whole / "runs").rglob("events*"))
    assert json.loads((whole / "recipe.json").read_text())["context"] == 200


def test_an_average_follows_the_weights():
    weight = torch.nn.Parameter(torch.zeros(1))
    model = torch.nn.Module()
    model.mlp1 = torch.nn.Module()
    model.mlp1.weight = weight
    average, state = Ema(0.9), type("State", (), {"global_step": 0})()
    average.on_train_begin(None, state, None, model=model)
    expected = 0.0
    for state.global_step in (1, 2, 200):
        with torch.no_grad():
            weight.fill_(state.global_step)
        average.on_step_end(None, state, None, model=model)
        decay = min(0.9, (1 + state.global_step) / (10 + state.global_step))
        expected = decay * expected + (1 - decay) * state.global_step
    assert float(average.average["mlp1.weight"]) == pytest.approx(expected)
    average.swap(model)
    assert float(weight) == pytest.approx(expected)


def test_a_loss_that_is_not_finite_names_its_samples(folder, tmp_path, monkeypatch):
    load = module._load

    def broken(recipe):
        loaded = load(recipe)
        with torch.no_grad():
            loaded.model.mlp1[1].weight[0, 0] = float("nan")
        return loaded

    monkeypatch.setattr(module, "_load", broken)
    with pytest.raises(
        trainer_module.NotFinite, match=r"loss is nan at step 1 .*(images|texts) row"
    ):
        train(replace(recipe(folder, ema=None), workers=0), tmp_path / "out")


def test_a_frozen_encoder_is_still_in_every_step(folder, tmp_path, monkeypatch):
    """The base class puts the whole model in training mode at each step, drop path with it."""
    seen = []
    forward = support.modeling_vit.InternVisionModel.forward

    def watched(self, *arguments, **options):
        seen.append((self.training, any(w.requires_grad for w in self.parameters())))
        return forward(self, *arguments, **options)

    monkeypatch.setattr(support.modeling_vit.InternVisionModel, "forward", watched)
    stage = parse_recipe({"model": "", "data": "", "steps": 1, "stage": "1"}).stage
    out = tmp_path / "out"
    train(replace(recipe(folder, ema=None, steps=2), workers=0, stage=stage), out)
    assert len(seen) == 4
    assert set(seen) == {(False, False)}
    before = hub.load(dtype="float32").model.state_dict()
    after = hub.load(out / "final", dtype="float32").model.state_dict()
    moved = {
        name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])
    }
    assert moved == {"mlp1"}


def test_a_run_is_not_overwritten(folder, whole):
    with pytest.raises(FileExistsError, match="--resume"):
        train(recipe(folder), whole)
    before = (whole / "final" / "model.safetensors").stat().st_mtime_ns
    assert train(recipe(folder), whole, resume=True) == whole / "final"  # it is complete
    assert (whole / "final" / "model.safetensors").stat().st_mtime_ns == before


def test_ranks_have_to_share_the_batch(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="batch of 2 packed sequences cannot be shared by 3"):
        train(recipe(folder), tmp_path / "out")


def test_a_run_by_epochs_counts_its_packs(folder, tmp_path):
    out = tmp_path / "out"
    train(recipe(folder, steps=None, epochs=1.0, ema=None, **{"save.every": 1000}), out)
    state = json.loads((next(out.glob("checkpoint-*")) / "trainer_state.json").read_text())
    log = [entry for entry in state["log_history"] if "loss" in entry]
    samples = sum(entry["samples_per_pack"] * 2 for entry in log)
    assert samples == pytest.approx(10 + 18, abs=5)  # twelve texts, r = 1.5; what is still open


def test_adapters_are_trained_merged_and_kept(folder, tmp_path):
    out = tmp_path / "out"
    changes = {"lora": {"r": 2, "dropout": 0.0}, "ema": None, "steps": 2, "optimizer.lr": 0.01}
    train(recipe(folder, **changes), out)
    assert (out / "adapter" / "adapter_config.json").exists()
    merged = hub.load(out / "final", dtype="float32")
    start = hub.load(dtype="float32")
    moved = {
        name
        for (name, one), other in zip(
            merged.model.state_dict().items(), start.model.state_dict().values(), strict=True
        )
        if not torch.equal(one, other)
    }
    assert moved
    assert all("language_model.model.layers" in name for name in moved)


def test_held_out_data_is_looked_at(folder, tmp_path):
    names = [picture(tmp_path / f"{k}.png", seed=k) for k in range(3)]
    rows = [{"image": n, "conversations": turns("What color is it?", "red")} for n in names]
    write_rows(tmp_path / "held_out.jsonl", rows)
    meta = write_meta(tmp_path, held_out={"annotation": "held_out.jsonl", "max_dynamic_patch": 1})
    evaluation = {"data": str(meta), "every": 1, "packs": 2, "answers": 3, "max_new_tokens": 4}
    out = tmp_path / "out"
    train(recipe(folder, steps=1, ema=None, evaluation=evaluation, **{"save.every": 1}), out)
    state = json.loads((out / "checkpoint-1" / "trainer_state.json").read_text())
    (entry,) = [entry for entry in state["log_history"] if "eval_loss" in entry]
    assert entry["eval_loss"] > 0
    assert 0 <= entry["eval_exact_answers"] <= 1
    answers = [json.loads(line) for line in (out / "answers-1.jsonl").read_text().splitlines()]
    assert [row["reference"] for row in answers] == ["red"] * 3
    assert all(isinstance(row["answer"], str) for row in answers)
