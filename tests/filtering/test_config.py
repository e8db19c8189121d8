"""Configurations, and how a corpus is cut into shards."""

from __future__ import annotations

import itertools
import json

import pytest

from internvl.filtering.config import load_config, parse_config, save_config, saved_config
from internvl.filtering.plan import make_plan
from internvl.hub import REPOSITORY
from tests.filtering import runs

ONE = [{"name": "a", "annotation": "a.jsonl"}]


def parse(folder, **values):
    return parse_config({"inputs": ONE, "output": "out", **values}, folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"polcy": "auto"}, r"'polcy' \(did you mean 'policy'\?\)"),
        ({"policy": "ask"}, r"expected one of \['review', 'auto'\]"),
        ({"rows_per_shard": "many"}, "expected int"),
        ({"rows_per_shard": True}, "expected int"),
        ({"rows_per_shard": 0}, "rows_per_shard is 0; expected at least 1"),
        ({"examples": -1}, "examples is -1"),
        ({"exempt": "a"}, "exempt is 'a'; expected a list"),
        ({"rules": ["suffix_loop"]}, "expected Mapping"),
        ({"executor": {"worker": 2}}, "did you mean 'workers'"),
        ({"executor": {"kind": "spark"}}, "expected one of"),
        ({"executor": {"workers": 0}}, "executor.workers is 0"),
        ({"executor": {"options": {"time": "1:00"}}}, "the local executor has none"),
        ({"executor": {"kind": "slurm", "options": {"time": "1:00"}}}, "lack.*partition"),
        ({"inputs": []}, "inputs names no dataset"),
        ({"inputs": 3}, "expected a meta file or a list"),
        ({"inputs": [{"name": "a"}]}, r"inputs\[1\] lacks \['annotation'\]"),
        ({"inputs": [{"name": "a", "annotation": "x", "rot": "y"}]}, "did you mean 'root'"),
        ({"inputs": ONE * 2}, r"datasets \['a'\] are there twice"),
        ({"inputs": [{"name": "a", "annotation": "hub:x/y"}]}, "is on the Hub.*download it first"),
    ],
)
def test_nonsense_is_refused(tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        parse(tmp_path, **values)


def test_missing_keys_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"lacks \['inputs', 'output'\]"):
        parse_config({}, tmp_path)


def test_paths_are_relative_to_the_file(tmp_path):
    (tmp_path / "deep").mkdir()
    path = tmp_path / "deep" / "filter.yaml"
    path.write_text("inputs: [{name: a, annotation: ../a.jsonl, root: ../media}]\noutput: out\n")
    config = load_config(path)
    assert config.output == str(tmp_path / "deep" / "out")
    assert config.inputs[0].annotation == str(tmp_path / "a.jsonl")
    assert config.inputs[0].root == str(tmp_path / "media")


def test_values_of_the_command_line_reach_inside(tmp_path):
    path = tmp_path / "filter.yaml"
    path.write_text(
        "inputs: [{name: a, annotation: a.jsonl}]\noutput: out\nrules: {refusal: true}\n"
    )
    config = load_config(path, {"executor.workers": 3, "rules.zero_run.max_zeros": 9})
    assert config.executor.workers == 3
    assert config.rules == {"refusal": True, "zero_run": {"max_zeros": 9}}


@pytest.mark.parametrize("text", ["- a\n", "", "3\n"])
def test_file_that_is_no_mapping(tmp_path, text):
    (tmp_path / "filter.yaml").write_text(text)
    with pytest.raises(ValueError, match="is no configuration"):
        load_config(tmp_path / "filter.yaml")


def test_exempt_datasets_are_names_or_patterns(tmp_path):
    config = parse(tmp_path, exempt=["chartqa", "geo_*"])
    names = ["chartqa", "ChartQA", "chartqa2", "geo_3k", "geo"]
    assert [config.is_exempt(name) for name in names] == [True, False, False, True, False]


def test_saved_configuration_is_the_same_also_elsewhere(tmp_path):
    config = parse(tmp_path, judge={"model": "m"}, executor={"workers": 4}, exempt=["a"])
    save_config(config)
    assert saved_config(config.folder) == config
    config.folder.rename(tmp_path / "moved")
    assert saved_config(tmp_path / "moved").output == str(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match="expected the output folder"):
        saved_config(tmp_path)


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "recipes" / "filter").glob("*.yaml")), ids=str
)
def test_recipes_are_read(path, monkeypatch, tmp_path):
    import yaml

    content = yaml.safe_load(path.read_text("utf-8"))
    content["inputs"] = ONE
    config = parse_config(content, tmp_path)
    if config.judge is not None:
        from internvl.filtering.judge import read_judge_config

        read_judge_config(config.judge)


# ---------------------------------------------------------------------- shards
def test_shards_are_cut_at_rows_in_corpus_order(tmp_path):
    lines = [json.dumps(runs.official("Q?", f"A{i}", id=i)).encode() for i in range(5)]
    data = (
        b"\xef\xbb\xbf" + lines[0] + b"\r\n\n" + b"\n".join(lines[1:])
    )  # no line break at the end
    (tmp_path / "a.jsonl").write_bytes(data)
    shards = make_plan(parse(tmp_path, rows_per_shard=2)).shards
    assert [(s.line, s.row) for s in shards] == [(1, 1), (4, 3), (6, 5)]
    assert shards[0].start == 0
    assert shards[-1].end == len(data)
    assert all(a.end == b.start for a, b in itertools.pairwise(shards))


@pytest.mark.parametrize(
    ("name", "message"),
    [("missing.jsonl", "no file is at"), ("a.txt", "of no known format"), ("*.json*", "one file")],
)
def test_files_that_cannot_be_read(tmp_path, name, message):
    for file in ("a.txt", "a.jsonl", "b.jsonl"):
        (tmp_path / file).write_text("{}\n")
    config = parse(tmp_path, inputs=[{"name": "a", "annotation": name}])
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        make_plan(config)


def test_empty_corpus(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match="hold no rows"):
        make_plan(parse(tmp_path))
