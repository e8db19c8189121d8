"""`internvl train` and `internvl data`, as a person types them."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from internvl import hub
from internvl.cli import app
from internvl.training.demo import builder
from internvl.training.demo.material import Material
from tests import support
from tests.data.files import picture, turns, write_meta, write_rows
from tests.training import demo_material


def run(*arguments):
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small set of the demo's own data."""
    folder = tmp_path_factory.mktemp("demo_data")
    material = demo_material.material()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Material, "load", classmethod(lambda cls, split, cache: material))
        builder.build(folder, seed=9, scale=0.002)
    return folder


def test_the_second_stage_of_the_demo_runs(data, tmp_path):
    """Twenty steps of the recipe, on rows of a quarter of its tokens."""
    output = run(
        "train", support.ROOT / "recipes" / "demo" / "stage2.yaml", "--max-steps", 20,
        "--out", tmp_path / "out", "--set", "model=demo", "--set", f"data={data}/meta_stage2.json",
        "--set", "batch=1", "--set", "context=256", "--set", "schedule.options.num_decay_steps=10",
        "--set", "workers=0", "--set", "save.every=20",
    )  # fmt: skip
    assert f"written  {tmp_path / 'out' / 'final'}" in output
    state = json.loads((tmp_path / "out" / "checkpoint-20" / "trainer_state.json").read_text())
    log = [entry for entry in state["log_history"] if "loss" in entry]
    assert state["global_step"] == 20
    assert all(entry["token_fill"] > 0.6 for entry in log)
    loaded = hub.load(tmp_path / "out" / "final")
    assert loaded.model.chat(loaded.tokenizer, None, "Thank you.", {"max_new_tokens": 8})


def test_validate_and_pack_look_at_the_same_data(data, tmp_path):
    meta = data / "meta_stage2.json"
    page, picture = tmp_path / "page.html", tmp_path / "fill.svg"
    output = run("data", "validate", meta, "--context", 1024, "--max-tiles", 16, "--preview", page)
    assert "shapes" in output
    assert "class=learnt" in page.read_text(encoding="utf-8")
    output = run("data", "pack", meta, "--context", 1024, "--max-tiles", 16, "--report", picture)
    assert "best_fit" in output
    assert picture.read_text(encoding="utf-8").lstrip().startswith("<?xml")


def test_adapters_learn_two_hundred_new_samples(tmp_path):
    """A question that the demo cannot answer, before and after a LoRA run through the CLI."""
    question = "Is the picture noisy or plain?"
    rows = []
    for index in range(200):
        noisy = bool(index % 2)
        name = picture(tmp_path / f"{index}.png", seed=index) if noisy else plain(tmp_path, index)
        rows.append(
            {"image": name, "conversations": turns(question, "noisy" if noisy else "plain")}
        )
    write_rows(tmp_path / "new.jsonl", rows[:180])
    meta = write_meta(tmp_path, new={"annotation": "new.jsonl", "max_dynamic_patch": 1})
    recipe = tmp_path / "lora.yaml"
    recipe.write_text(
        f"model: {hub.DEMO}\ndata: {meta}\nepochs: 2\nbatch: 2\ncontext: 512\nmax_tiles: 8\n"
        "dtype: float32\ngradient_checkpointing: false\nworkers: 0\noptimizer: {lr: 1.0e-2}\n"
        "lora: {r: 8, dropout: 0.0}\nsave: {every: 1000}\n"
    )
    run("train", recipe, "--out", tmp_path / "out")
    held_out = [(row["image"], row["conversations"][1]["value"]) for row in rows[180:]]
    before, after = (
        accuracy(source, tmp_path, question, held_out)
        for source in (None, tmp_path / "out" / "final")
    )
    assert before < 0.6
    assert after > 0.9


def plain(folder, index):
    from PIL import Image

    colour = tuple((index * step) % 256 for step in (37, 91, 53))
    Image.new("RGB", (112, 112), colour).save(folder / f"{index}.png")
    return f"{index}.png"


def accuracy(source, folder, question, cases):
    loaded = hub.load(source, dtype="float32")
    right = 0
    for name, expected in cases:
        pixels = loaded.processor.image_processor(folder / name, return_tensors="pt", max_tiles=1)
        answer = loaded.model.chat(
            loaded.tokenizer, pixels["pixel_values"], question, {"max_new_tokens": 6}
        )
        right += answer == expected
    return right / len(cases)
