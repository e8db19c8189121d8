"""The benchmarks of dialogues run, at toy widths: same answers, and the promised rows. No time is
judged here."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TARGETS = {
    "turns": ["<= 0.05"] * 4,
    "samples": [">= 5.0"],
    "batch": ["<= 0.15", ">= 1.3", ">= 1.0"],
    "decode": [">= 0.97"],
    "end_to_end": [">= 3.0", ">= 2.6", ">= 1.0", ">= 1.0"],
}


@pytest.fixture
def script(monkeypatch):
    """Import a benchmark script; they stand beside each other, not in a package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    threads = torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_script(name, script, capsys):
    script(name).main(["--smoke", "--json", "--no-memory", "--rounds", "1"])
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    flags = [value for value in record["equality"].values() if isinstance(value, bool)]
    assert flags
    assert all(flags)
    assert all(math.isfinite(row["value"]) for row in record["rows"])
    assert [row["target"] for row in record["rows"] if row["target"]] == TARGETS[name]
    assert name in script("harness").table(record)


def test_a_wrong_answer_stops_a_benchmark(script, monkeypatch):
    turns = script("turns")
    monkeypatch.setattr(turns.Dialogue, "fresh", lambda *_, **__: "something else")
    with pytest.raises(RuntimeError, match="fp32_answers_equal"):
        turns.main(["--smoke", "--rounds", "1"])


def test_dictated_answers_copy_the_share_they_say(script):
    decode = script("decode")
    random_models = script("random_models")
    config = random_models.chat_config(1, 1, smoke=True)
    generator = decode.Generator(random_models.chat_model(config, torch.float32), 64)
    prompt = set(generator.ids[0].tolist())
    for share in decode.SHARES.values():
        new = generator.dictated(share, decode.TOKENS)[0, 64:].tolist()
        assert sum(token in prompt for token in new) == share * decode.TOKENS
