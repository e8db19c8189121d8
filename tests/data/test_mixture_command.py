"""`internvl data mixture`: browsing, and a meta file of datasets on disk that training reads."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from internvl import cli
from internvl.data.meta_builder import slug
from internvl.data.mixture import Mixture, load_meta


def call(*arguments):
    return CliRunner().invoke(cli.app, ["data", "mixture", *map(str, arguments)])


def rows(count, **more):
    turns = [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A."}]
    return "".join(
        json.dumps({"id": i, "conversations": turns, **more}) + "\n" for i in range(count)
    )


@pytest.fixture
def datasets(tmp_path):
    """Three of the report's datasets in three layouts, and one that is none."""
    folder = tmp_path / "datasets"
    (folder / "chart-qa").mkdir(parents=True)
    (folder / "chart-qa" / "rows.jsonl").write_text(rows(3, image="1.png"))
    (folder / "DocVQA").mkdir()
    (folder / "docvqa.jsonl").write_text(rows(2, image="1.png") + "\n")
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    (folder / "Geo QA+").mkdir()
    table = pyarrow.Table.from_pylist([json.loads(line) for line in rows(4).splitlines()])
    parquet.write_table(table, folder / "Geo QA+" / "0.parquet")
    (folder / "plotqaa.jsonl").write_text(rows(1))
    (folder / "notes.txt").write_text("not rows")
    return folder


# ---------------------------------------------------------------------- browsing
def test_table_of_a_task():
    result = call("--stage", "finetune", "--task", "OCR")
    assert result.exit_code == 0, result.output
    assert "finetune / single_image / OCR" in result.output
    assert "29 entries" in result.output
    assert "MTVQA" in result.output
    assert "16.3 M" not in result.output


def test_whole_table_has_the_totals():
    result = call()
    assert "326 entries" in result.output
    assert "InternVL 2.5 16.3 M" in result.output
    assert "video 39.79 %" in result.output


def test_json_can_be_read():
    found = json.loads(call("--name", "docvqa", "--json").output)
    assert [(each["stage"], each["cites"]) for each in found] == [
        ("pretrain", [184]), ("finetune", [42]),
    ]  # fmt: skip


# ---------------------------------------------------------------------- meta files
def test_meta_file_of_what_is_there_is_read_by_training(datasets, tmp_path):
    out = tmp_path / "metas" / "meta.json"
    result = call("--stage", "finetune", "--meta", out, "--from", datasets)
    assert result.exit_code == 0, result.output
    assert "3 datasets, 9 rows" in result.output
    assert "plotqaa.jsonl: no dataset of that name was asked for; is it PlotQA?" in result.output
    assert "missing" in result.output
    assert "notes.txt" not in result.output
    specs = {spec.name: spec for spec in load_meta(out)}
    assert set(specs) == {"ChartQA", "DocVQA", "GeoQA+"}
    chart, doc = specs["ChartQA"], specs["DocVQA"]
    assert (chart.max_dynamic_patch, chart.data_augment, chart.length) == (12, True, 3)
    assert (doc.max_dynamic_patch, doc.length) == (24, 2)
    assert chart.root.endswith("chart-qa")
    assert doc.root.endswith("DocVQA")  # the folder beside the rows
    mixture = Mixture(list(specs.values()))
    assert len(mixture) == 9
    keys = list(mixture.order(0))
    assert len({mixture.sample(key)[0].where for key in keys}) == 9


def test_settings_of_datasets(datasets, tmp_path):
    out = tmp_path / "meta.json"
    result = call(
        "--meta", out, "--from", datasets, "--set", "*.data_augment=false",
        "--set", "chartqa.repeat_time=2.5", "--set", "ChartQA.max_dynamic_patch=6",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    meta = json.loads(out.read_text())
    assert meta["ChartQA"]["repeat_time"] == 2.5
    assert meta["ChartQA"]["max_dynamic_patch"] == 6
    assert meta["DocVQA"]["repeat_time"] == 1.0
    assert {entry["data_augment"] for entry in meta.values()} == {False}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "ChartQ.repeat_time=2"], "did you mean 'ChartQA'"),
        (["--set", "ChartQA.repeat=2"], "has settings ['repeat']"),
        (["--set", "ChartQA.repeat_time=9"], "expected a number in"),
        (["--set", "repeat_time=2"], "is no NAME.KEY=VALUE"),
        (["--task", "Medical"], "has none of the 10 datasets, e.g. PMC-VQA; expected NAME.jsonl"),
    ],
)
def test_mistakes_write_nothing(datasets, tmp_path, arguments, message):
    out = tmp_path / "meta.json"
    result = call("--meta", out, "--from", datasets, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not out.exists()


def test_meta_file_is_not_replaced_unasked(datasets, tmp_path):
    out = tmp_path / "meta.json"
    out.write_text("mine")
    result = call("--meta", out, "--from", datasets)
    assert result.exit_code == 2
    assert "--force replaces it" in result.stderr
    assert out.read_text() == "mine"
    assert call("--meta", out, "--from", datasets, "--force").exit_code == 0


@pytest.mark.parametrize(
    "arguments", [["--meta", "m.json"], ["--from", "."], ["--set", "*.split=a"]]
)
def test_options_that_go_together(arguments):
    result = call(*arguments)
    assert result.exit_code == 2
    assert "--from FOLDER" in result.stderr


def test_two_files_of_rows_are_not_chosen_between(datasets, tmp_path):
    (datasets / "chart-qa" / "more.jsonl").write_text(rows(1))
    result = call("--meta", tmp_path / "m.json", "--from", datasets)
    assert "holds several files of rows" in result.stderr
    (datasets / "chart-qa" / "more.jsonl").unlink()
    (datasets / "ChartQA.jsonl").write_text(rows(1))
    result = call("--meta", tmp_path / "m.json", "--from", datasets)
    assert "is there twice" in result.stderr


def test_names_fit_whatever_their_signs():
    assert slug("Geo QA+") == slug("GeoQA+") == slug("geoqa_plus") != slug("GeoQA")
    assert slug("RefCOCO/+/g") == slug("refcoco+g")
