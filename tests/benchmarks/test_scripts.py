"""The benchmarks run, at toy widths: what they compare is equal, and what they print has the keys
that the published table is made from. No time is judged here."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
MACHINE = {
    *("benchmark", "command", "device", "cpu", "cores", "amx", "bf16_units", "dtype", "threads"),
    *("python", "versions", "load_average", "seconds", "equality", "rows", "met"),
}
# What was promised, in the order of the rows, but for memory.
TARGETS = {
    "preprocess": [">= 1.35", ">= 1.35", ">= 1.25"],
    "vit": [">= 1.7", ">= 0.97"] * 3,
    "prefill": [">= 4.0"],
    "load": ["<= 1.1", "<= 1.1"],
    "filtering": [">= 98.0", "<= 1.0", ">= 98.0", "<= 1.0", ">= 1.5"],
    "packing": [">= 97.5", *[">= 98.8", ">= 20000"] * 3],
}


@pytest.fixture
def script(monkeypatch):
    """Import a benchmark script or what they share; they stand beside each other, not in a
    package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    threads = torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_script(name, script, capsys, tmp_path):
    extra = ["--folder", str(tmp_path)] if name == "load" else []
    script(name).main(["--smoke", "--json", "--no-memory", "--rounds", "2", *extra])
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record.keys() >= MACHINE
    assert (record["benchmark"], record["smoke"], record["threads"]) == (name, True, 1)
    flags = [value for value in record["equality"].values() if isinstance(value, bool)]
    assert flags
    assert all(flags)
    for row in record["rows"]:
        assert math.isfinite(row["value"]), row
        if "cpu_s" in row:
            assert row["rounds"] >= 2
            assert row["spread"][0] <= row["value"] <= row["spread"][1]
    assert [row["target"] for row in record["rows"] if row["target"]] == TARGETS[name]
    assert not any(row["met"] is not None for row in record["rows"]), "toy widths are not judged"
    assert list(tmp_path.iterdir()) == []  # a checkpoint is removed
    assert name in script("harness").table(record)


def test_prefill_memory(script):
    prefill = script("prefill")
    options = script("harness").parser("").parse_args(["--smoke"])
    found = prefill.memory_of("eager", options)
    width, wide, kv, T = 64, 128, 32, 24  # the toy decoder
    weights = 2 * width * width + 2 * kv * width + 3 * wide * width + width + 2 * kv + 2 * width
    assert found["per_layer"] == 4 * (weights + 2 * T * kv)
    assert found["layers"] == 2
    assert found["peak"] >= found["before"] > 0


def test_load_memory(script, tmp_path):
    load = script("load")
    options = script("harness").parser("").parse_args(["--smoke"])
    sizes = load.write(tmp_path, options)
    assert all(size > 100_000 for size in sizes.values())
    assert load.peak_of("ours", tmp_path, options) > sizes["ours"]  # an interpreter comes on top


def test_ratios(script):
    harness = script("harness")
    ours = harness.Timing([1.0, 1.0, 2.0], [1.0, 1.0, 2.0])
    peer = harness.Timing([2.0, 3.0, 8.0], [4.0, 4.0, 8.0])
    row = harness.compare("row", ours, peer, peer_name="peer", at_least=3.5)
    # The median of the ratios of each round, not the ratio of the medians.
    assert (row["value"], row["spread"], row["wall_value"]) == (3.0, [2.0, 4.0], 4.0)
    assert (row["target"], row["met"]) == (">= 3.5", False)
    row = harness.compare("row", ours, peer, peer_name="peer", at_most=0.4)
    assert (row["value"], row["met"]) == (0.333, True)
    scaled = harness.derived(lambda whole, part: (whole - part) * 10 + part, peer, ours)
    assert scaled.cpu == [11.0, 21.0, 62.0]


def test_interleave(script):
    calls: list[str] = []
    names = ("first", "second", "third")
    timings = script("harness").interleave(
        {name: lambda name=name: calls.append(name) for name in names}, 2, warm_up=1
    )
    assert [len(timings[name].cpu) for name in names] == [2, 2, 2]
    rounds = [calls[start : start + 3] for start in (0, 3, 6)]
    assert all(sorted(each) == sorted(names) for each in rounds)
    assert rounds[1] == rounds[2][::-1]  # no variant always runs after the same one


def test_different_results_are_not_timed(script):
    harness = script("harness")
    assert harness.require({"ids": True, "difference": 0.0}) == {"ids": True, "difference": 0.0}
    with pytest.raises(RuntimeError, match=r"nothing was timed.*bits"):
        harness.require({"ids": True, "bits": False})


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory(script):
    harness = script("harness")
    harness.reset_peak()
    before = harness.peak_rss()
    block = torch.ones(64 << 20, dtype=torch.uint8)
    assert harness.peak_rss() - before > 60 << 20
    del block
    assert harness.peak_rss() - before > 60 << 20
    harness.reset_peak()
    assert harness.peak_rss() - before < 10 << 20


def test_child(script, tmp_path):
    harness = script("harness")
    file = tmp_path / "child.py"
    file.write_text("import sys; print('noise'); print('{\"given\": \"' + sys.argv[1] + '\"}')\n")
    assert harness.in_child(file, "this") == {"given": "this"}
    with pytest.raises(RuntimeError, match="IndexError"):
        harness.in_child(file)
    options = argparse.Namespace(full=True, smoke=False, threads=2, dtype="float32")
    assert harness.child_arguments(options) == ["--full", "--threads", "2", "--dtype", "float32"]


def test_weights_have_the_widths_that_were_asked_for(script):
    models = script("random_models")
    config = models.chat_config(24, 24)
    vision, llm = config.vision_config, config.llm_config
    assert (vision.hidden_size, vision.num_hidden_layers, config.tile_size) == (1024, 24, 448)
    assert (llm.hidden_size, llm.num_hidden_layers, llm.vocab_size) == (896, 24, 151674)
    assert (config.img_context_token_id, config.num_image_token) == (151667, 256)
    ids = models.prompt_ids(config, 13, 72)
    assert ids.shape == (1, 3400)
    assert int((ids == 151667).sum()) == 13 * 256
    toy = models.chat_config(1, 2, smoke=True)
    first, again = (models.chat_model(toy, torch.float32) for _ in range(2))
    other = models.chat_model(toy, torch.float32, seed=1)
    for name, value in first.state_dict().items():
        assert torch.isfinite(value).all(), name
        assert torch.equal(value, again.state_dict()[name]), name
    weight = "language_model.model.layers.1.mlp.up_proj.weight"
    layers = [first.state_dict()[weight.replace("1", number)] for number in "01"]
    assert not torch.equal(*layers)
    assert not torch.equal(first.state_dict()[weight], other.state_dict()[weight])
    shared = models.twin(first, "eager")
    assert shared.get_parameter(weight).data_ptr() == first.get_parameter(weight).data_ptr()
    assert shared.config.llm_config._attn_implementation == "eager"
    assert first.config.llm_config._attn_implementation == "sdpa"
