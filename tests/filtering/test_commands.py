"""`internvl filter ...` as a user types it."""

from __future__ import annotations

import json

import pytest
import yaml
from typer.testing import CliRunner

from internvl import cli
from tests.filtering import runs

LOOP = "It is a temple. " + "The temple is red. " * 40


@pytest.fixture
def corpus(tmp_path):
    """A configuration file over four rows, two of which are flagged."""
    rows = [
        runs.official("What is it?", "It is a temple of the south."),
        runs.official("What is it?", LOOP),
        runs.official("And this?", ""),
        runs.official("Who was there?", "Nobody knows who was there in those days."),
    ]
    runs.write_lines(tmp_path / "a.jsonl", rows)
    config = {"inputs": [{"name": "a", "annotation": "a.jsonl"}], "output": "out"}
    (tmp_path / "filter.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def call(*arguments, input=None):
    return CliRunner().invoke(cli.app, ["filter", *map(str, arguments)], input=input)


def kept(folder):
    return [row["conversations"][1]["value"] for row in runs.lines_of(folder / "out/kept/a.jsonl")]


def test_run_review_apply(corpus):
    result = call("run", corpus / "filter.yaml")
    assert result.exit_code == 0, result.output
    assert "read 4 = kept 2 + removed 0 + queued 2" in result.output
    assert "suffix_loop" in result.output
    assert f"next     internvl filter review {corpus / 'out'}" in result.output
    assert (corpus / "out" / "report.html").exists()

    result = call("review", corpus / "out", input="r\na\n")
    assert result.exit_code == 0, result.output
    assert "The temple is red." in result.output
    assert "decided  2" in result.output

    result = call("review", corpus / "out", "--apply")
    assert "read 4 = kept 3 + removed 1 + queued 0" in result.output
    assert LOOP not in kept(corpus)
    assert "" in kept(corpus)


def test_policy_can_be_set_on_the_command_line(corpus):
    result = call("run", corpus / "filter.yaml", "--set", "policy=auto")
    assert "kept 2 + removed 2 + queued 0" in result.output


def test_part_of_the_queue_at_once(corpus):
    call("run", corpus / "filter.yaml")
    result = call("review", corpus / "out", "--rule", "suffix_loop", "--all", "reject")
    assert "decided  1" in result.output
    assert "removed 1 + queued 1" in call("review", corpus / "out", "--apply").output


def test_report_is_written_again(corpus):
    call("run", corpus / "filter.yaml")
    (corpus / "out" / "report.html").unlink()
    result = call("report", corpus / "out")
    assert result.exit_code == 0
    assert "queued 2" in result.output
    assert (corpus / "out" / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "{0}/missing.yaml"), "missing.yaml"),
        (("run", "{0}/filter.yaml", "--set", "polcy=auto"), "did you mean 'policy'"),
        (("run", "{0}/filter.yaml", "--set", "policy"), "is no KEY=VALUE"),
        (("review", "{0}"), "holds no queue.jsonl"),
        (("review", "{0}", "--apply"), "expected the output folder"),
        (("report", "{0}"), "the run is not complete"),
        (("review", "{0}", "--all", "keep"), "expected accept or reject"),
        (("explain", "{0}/a.jsonl:99"), "has no line 99"),
        (("explain", "{0}/a.jsonl"), "expected FILE:LINE"),
    ],
)
def test_mistakes_are_told_in_one_line(corpus, arguments, message):
    result = call(*(argument.format(corpus) for argument in arguments))
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stderr.startswith("error: ")


# ---------------------------------------------------------------------- explain
def test_explain_tells_what_is_flagged_and_how_far_the_rest_is(corpus):
    result = call("explain", corpus / "a.jsonl:2")
    assert result.exit_code == 1
    first = result.output.splitlines()[1]
    assert first.startswith("flagged")
    assert ">>>The temple is red." in result.output
    assert "silent    mixed_scripts" in result.output


def test_explain_says_nothing_bad_of_a_clean_sample(corpus):
    result = call("explain", corpus / "a.jsonl:1")
    assert result.exit_code == 0
    assert "flagged" not in result.output


def test_explain_reads_standard_input_and_writes_json(corpus):
    row = json.dumps(runs.official("Q?", "1" + "0" * 110))
    result = call("explain", "-", "--json", input=row)
    found = {each["rule"]: each for each in json.loads(result.output)}
    assert result.exit_code == 0
    assert found["zero_run"]["state"] == "below"
    assert found["zero_run"]["verdict"]["score"] == 110
    assert found["zero_run"]["factor"] == 0.75


def test_explain_follows_a_configuration(corpus):
    path = corpus / "filter.yaml"
    content = {**yaml.safe_load(path.read_text()), "rules": {"others": False, "refusal": True}}
    path.write_text(yaml.safe_dump(content))
    result = call("explain", corpus / "a.jsonl:2", "--config", path)
    assert result.exit_code == 0
    assert "suffix_loop" not in result.output


def test_explain_tells_why_a_row_cannot_be_read():
    result = call("explain", "-", input='{"conversations": []}')
    assert result.exit_code == 1
    assert "bad_row" in result.output
