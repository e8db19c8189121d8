"""Runs: counts that add up, stages that are kept, and what policy, judge and duplicates do."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace

import pytest

from internvl.filtering.files import alone
from internvl.filtering.pipeline import apply_decisions, rule_settings
from internvl.filtering.rules import RULES
from tests.filtering import runs

# Of 60 rows a dataset: each tenth says loop (6), each fifteenth zero (4), each thirtieth both (2);
# one row of "text" cannot be read.
FLAGGED = {"text": 9, "pictures": 8}


@pytest.mark.parametrize("policy", ["review", "auto"])
def test_read_is_kept_and_removed_and_queued(tmp_path, policy):
    config = replace(runs.small_corpus(tmp_path), policy=policy)
    statistics = runs.run(config)
    parts = [statistics[name] for name in ("kept", "removed", "queued")]
    assert statistics["read"] == 120 == sum(parts)
    assert statistics["flagged"] == 17
    assert parts == ([103, 0, 17] if policy == "review" else [103, 17, 0])
    folder = config.folder
    for name, flagged in FLAGGED.items():
        assert len(runs.lines_of(folder / "kept" / f"{name}.jsonl")) == 60 - flagged
        removed = folder / "removed" / f"{name}.jsonl"
        assert removed.exists() == (policy == "auto")
        if removed.exists():
            assert len(removed.read_bytes().splitlines()) == flagged
    assert len(runs.lines_of(folder / "removed.jsonl")) == statistics["removed"]


def _rules_of(row):
    words = {"says_loop": 10, "says_zero": 15}
    return {rule for rule, every in words.items() if row % every == 0}


@pytest.mark.parametrize("policy", ["review", "auto"])
def test_every_flagged_sample_is_in_the_queue_with_all_its_verdicts(tmp_path, policy):
    config = replace(
        runs.small_corpus(tmp_path), policy=policy, judge={}, duplicates={"near": False}
    )
    lines = (tmp_path / "data" / "text.jsonl").read_bytes().splitlines()
    lines[10] = json.dumps(runs.official("A?", "It is a poor repetition.")).encode()
    lines[11] = json.dumps(runs.official("A?", "It is dumb.")).encode()
    lines[12] = lines[8]  # a copy of row 9
    runs.write_lines(tmp_path / "data" / "text.jsonl", lines)
    statistics = runs.run(config)
    queue = {
        entry["key"]: {verdict["rule"] for verdict in entry["verdicts"]}
        for entry in runs.lines_of(config.folder / "queue.jsonl")
    }
    expected = {
        f"{dataset}:{row}": rules
        for dataset in ("text", "pictures")
        for row in range(1, 61)
        if (rules := _rules_of(row))
    }
    expected |= {
        "text:4": {"bad_row"},
        "text:11": {"llm_repetition"},
        "text:12": {"unjudged"},
        "text:13": {"exact_duplicate"},
    }
    assert queue == expected
    assert statistics["queued"] == (20 if policy == "review" else 1)


def test_kept_rows_keep_their_bytes_and_order(tmp_path):
    config = runs.small_corpus(tmp_path)
    runs.run(config)
    flagged = {entry["where"] for entry in runs.lines_of(config.folder / "queue.jsonl")}
    for name in FLAGGED:
        lines = (tmp_path / "data" / f"{name}.jsonl").read_bytes().splitlines(keepends=True)
        kept = [li for n, li in enumerate(lines, 1) if f"{name}.jsonl:{n}" not in flagged]
        assert (config.folder / "kept" / f"{name}.jsonl").read_bytes() == b"".join(kept)


def test_kept_meta_file_can_be_trained_on(tmp_path):
    from internvl.data.mixture import Mixture, load_meta

    config = runs.small_corpus(tmp_path)
    runs.run(config)
    specs = {spec.name: spec for spec in load_meta(config.folder / "kept" / "meta.json")}
    assert specs["pictures"].max_dynamic_patch == 6
    assert specs["pictures"].repeat_time == 2
    root = os.path.realpath(specs["pictures"].root)
    assert root == os.path.realpath(tmp_path / "data" / "media")
    sizes = Mixture([replace(spec, repeat_time=1) for spec in specs.values()]).sizes
    assert sizes.tolist() == [51, 52]


def test_two_processes_give_what_one_gives(tmp_path):
    one = replace(runs.small_corpus(tmp_path), judge={}, duplicates={"near": False})
    two = replace(
        one,
        output=str(tmp_path / "two"),
        executor=replace(one.executor, workers=2),
        judge_processes=2,
    )
    runs.run(one)
    runs.run(two)
    first, second = runs.output(one.folder), runs.output(two.folder)
    assert first == second
    assert len(first) == 7


def test_size_of_the_shards_changes_nothing(tmp_path):
    small = runs.small_corpus(tmp_path)
    large = replace(small, output=str(tmp_path / "large"), rows_per_shard=1000)
    runs.run(small)
    runs.run(large)
    assert runs.output(small.folder) == runs.output(large.folder)


# ---------------------------------------------------------------------- stages
def test_only_lost_shards_are_done_again(tmp_path):
    config = runs.small_corpus(tmp_path)
    runs.run(config)
    before = runs.output(config.folder)
    shards = sorted(config.folder.glob("work/rules-*/shards/*.jsonl"))
    assert len(shards) == 8
    shards[3].unlink()
    times = {path: path.stat().st_mtime_ns for path in shards if path.exists()}
    runs.run(config)
    assert shards[3].exists()
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert runs.output(config.folder) == before


def test_other_settings_give_other_findings_and_the_judge_is_not_asked_again(tmp_path):
    config = replace(runs.small_corpus(tmp_path), judge={}, rules={"others": False})
    runs.run(config)
    runs.run(replace(config, rules={"others": False, "refusal": True}))
    stages = Counter(path.name.partition("-")[0] for path in config.folder.glob("work/*-*"))
    assert stages == {"plan": 1, "rules": 2, "judge": 1}


def test_changed_data_are_looked_at_again(tmp_path):
    config = runs.small_corpus(tmp_path)
    runs.run(config)
    path = tmp_path / "data" / "text.jsonl"
    with path.open("ab") as file:
        file.write(json.dumps(runs.official("More?", "A loop.")).encode() + b"\n")
    statistics = runs.run(config)
    assert (statistics["read"], statistics["flagged"]) == (121, 18)


def test_failing_rule_names_the_sample_and_loses_nothing(tmp_path):
    config = runs.small_corpus(tmp_path)
    with pytest.raises(ZeroDivisionError) as caught:
        runs.run(config, runs.failing_rules)
    assert "text.jsonl:7 (text:7)" in " ".join(caught.value.__notes__)
    assert not (config.folder / "statistics.json").exists()


def test_two_runs_in_one_folder_are_refused(tmp_path):
    config = runs.small_corpus(tmp_path)
    with alone(config.folder), pytest.raises(BlockingIOError, match="another run works in"):
        runs.run(config)


def test_output_of_a_dataset_that_left_is_removed(tmp_path):
    config = runs.small_corpus(tmp_path)
    runs.run(config)
    runs.run(replace(config, inputs=config.inputs[:1]))
    assert not (config.folder / "kept" / "pictures.jsonl").exists()
    assert list(json.loads((config.folder / "kept" / "meta.json").read_text())) == ["text"]


def test_dataset_that_loses_all_rows_is_not_in_the_meta_file(tmp_path, caplog):
    config = runs.small_corpus(tmp_path)
    runs.write_lines(tmp_path / "data" / "text.jsonl", [runs.official("A?", "loop")])
    runs.run(config)
    assert list(json.loads((config.folder / "kept" / "meta.json").read_text())) == ["pictures"]
    assert "'text' has no kept rows" in caplog.text


# ---------------------------------------------------------------------- settings of the rules
def test_rules_that_are_not_named_keep_their_defaults():
    settings = rule_settings({"refusal": False, "zero_run": {"max_zeros": 9}})
    assert settings == {
        **dict.fromkeys(RULES, True),
        "refusal": False,
        "zero_run": {"max_zeros": 9},
    }
    alone = rule_settings({"others": False, "refusal": True})
    assert [name for name, value in alone.items() if value] == ["refusal"]


def test_unknown_rule_is_refused_with_the_nearest_name(tmp_path):
    config = replace(runs.small_corpus(tmp_path), rules={"suffix_lop": True})
    with pytest.raises(ValueError, match="did you mean 'suffix_loop'"):
        runs.pipeline.run(config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"similarty": 0.9}, "duplicates has unknown keys 'similarty' .did you mean 'similarity'"),
        ({"similarity": 2}, "similarity is 2; expected a number over 0"),
        ({"near": "yes"}, "duplicates.near is 'yes'; expected a value like True"),
    ],
)
def test_settings_of_duplicates_are_refused_before_any_work(tmp_path, settings, message):
    config = replace(runs.small_corpus(tmp_path), duplicates=settings)
    with pytest.raises(ValueError, match=message):
        runs.run(config)
    assert not list(config.folder.glob("work/rules-*"))


def test_rules_of_the_repository_run(tmp_path):
    config = runs.small_corpus(tmp_path)
    row = runs.official("Describe the temple.", "It is a temple. " + "The temple is red. " * 40)
    with (tmp_path / "data" / "text.jsonl").open("ab") as file:
        file.write(json.dumps(row).encode() + b"\n")
    runs.pipeline.run(config)
    queue = {e["key"]: e["verdicts"] for e in runs.lines_of(config.folder / "queue.jsonl")}
    assert "suffix_loop" in {verdict["rule"] for verdict in queue["text:61"]}
    assert set(queue) == {"text:4", "text:61"}


# ---------------------------------------------------------------------- decisions
def decide(config, **words):
    from internvl.filtering.decisions import decide, read_queue

    for entry in read_queue(config.folder):
        if word := words.get(entry["key"].replace(":", "_")):
            decide(config.folder, entry, word)


def sort_again(config):
    return apply_decisions(config, rules=runs.two_rules, judge=runs.WordJudge)


@pytest.mark.parametrize("policy", ["review", "auto"])
@pytest.mark.parametrize("again", [sort_again, runs.run], ids=["apply", "run"])
def test_decisions_are_applied(tmp_path, policy, again):
    config = replace(runs.small_corpus(tmp_path), policy=policy)
    runs.run(config)
    decide(config, text_10="accept", text_20="reject", text_40="accept", pictures_15="reject")
    decide(config, text_40="undo")
    statistics = again(config)
    parts = {name: statistics[name] for name in ("kept", "removed", "queued", "accepted")}
    waiting = {"removed": 2, "queued": 14} if policy == "review" else {"removed": 16, "queued": 0}
    assert parts == {"kept": 104, "accepted": 1, **waiting}
    kept = [row["id"] for row in runs.lines_of(config.folder / "kept" / "text.jsonl")]
    assert 10 in kept
    assert not {20, 40} & set(kept)
    assert kept == sorted(kept)
    reasons = {line["key"]: line["by"] for line in runs.lines_of(config.folder / "removed.jsonl")}
    assert reasons["text:20"] == reasons["pictures:15"] == "person"
    removed = (config.folder / "removed" / "text.jsonl").read_bytes()
    assert b'"id": 20}' in removed
    assert b'"id": 10}' not in removed
    assert len(runs.lines_of(config.folder / "queue.jsonl")) == 17


def test_decision_on_a_row_that_changed_is_asked_for_again(tmp_path, caplog):
    config = runs.small_corpus(tmp_path)
    runs.run(config)
    decide(config, text_20="reject")
    path = tmp_path / "data" / "text.jsonl"
    path.write_bytes(path.read_bytes().replace(b"question 20 is 400,", b"question 20 is 401,"))
    with pytest.raises(FileNotFoundError, match="run `internvl filter run` again"):
        sort_again(config)
    statistics = runs.run(config)
    assert (statistics["removed"], statistics["stale_decisions"]) == (0, 1)
    assert "1 decisions are on rows that changed" in caplog.text


# ---------------------------------------------------------------------- duplicates
def test_copy_that_stays_is_one_that_nothing_else_flags(tmp_path):
    rows = [
        runs.official("A?", "The loop."),
        runs.official("B?", "Something."),
        runs.official("B?", "Something."),
        runs.official("B?", "Something else."),
        runs.official("A?", "the  loop."),
    ]
    rows[4] |= {"conversations": rows[0]["conversations"]}
    rows[0] = runs.official("B?", "Something.", id=1)
    runs.write_lines(tmp_path / "data" / "a.jsonl", rows)
    config = runs.configure(
        tmp_path, inputs=[{"name": "a", "annotation": "data/a.jsonl"}], duplicates={"near": False}
    )
    runs.run(config)
    queue = {e["key"]: e["verdicts"] for e in runs.lines_of(config.folder / "queue.jsonl")}
    assert {key: [v["rule"] for v in said] for key, said in queue.items()} == {
        "a:2": ["exact_duplicate"],
        "a:3": ["exact_duplicate"],
        "a:5": ["says_loop"],
    }
    assert "a:1" in queue["a:3"][0]["note"]
