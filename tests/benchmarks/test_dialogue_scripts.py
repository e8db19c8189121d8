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


class TestReport:
    def test_the_page_is_what_the_records_say(self, script):
        report = script("report")
        records = json.loads(report.RESULTS.read_text(encoding="utf-8"))
        assert list(records) == list(report.SCRIPTS)
        text = report.PAGE.read_text(encoding="utf-8")
        between = text.split(report.BEGIN)[1].split(report.END)[0]
        assert between.strip() == report.page_part(records).strip()
        for name, record in records.items():
            assert not record["smoke"], name
            assert record["command"].startswith(f"python benchmarks/{name}.py")

    def test_rows_and_plot(self, script, tmp_path, capsys):
        pytest.importorskip("matplotlib")
        report = script("report")
        script("samples").main(["--smoke", "--json", "--rounds", "1"])
        record = json.loads(capsys.readouterr().out.splitlines()[-1])
        record["rows"][0] |= {"value": 2.5, "met": False, "bound": "the prefill"}
        page = tmp_path / "page.md"
        page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n", encoding="utf-8")
        for _ in range(2):  # writing twice changes nothing
            report.write_page({"samples": record}, page)
        text = page.read_text(encoding="utf-8")
        assert text.startswith("before\n")
        assert text.endswith("\nafter\n")
        assert "old" not in text
        assert "| **2.5** " in text
        assert ">= 5.0 | **not met** |" in text
        assert "the prefill." in text
        assert report.multiple_of_target(record["rows"][0]) == 0.5
        assert report.multiple_of_target({"target": "<= 0.05", "value": 0.01}) == pytest.approx(5)
        report.plot({"samples": record}, tmp_path / "plot")
        assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (tmp_path / "plot.svg").read_text(encoding="utf-8")
        page.write_text("no markers", encoding="utf-8")
        with pytest.raises(ValueError, match="put them back"):
            report.write_page({"samples": record}, page)

    def test_folders_of_the_machine_stay_out(self, script):
        report = script("report")
        record = {"command": f"python {report.ROOT}/benchmarks/x.py", "rows": []}
        assert report.without_folder(record)["command"] == "python benchmarks/x.py"
