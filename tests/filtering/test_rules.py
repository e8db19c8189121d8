"""The rules: 106 texts that each has a rule for, 105 that repeat for a reason, and their limits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl.filtering.records import Row, to_record
from internvl.filtering.rules import REPETITION, RULES, build, check
from internvl.filtering.rules.loops import inner_runs, suffix_runs, z_function
from internvl.filtering.verdict import Record, Said

DATA = Path(__file__).parent / "data"


def fixtures(name):
    rows = [json.loads(line) for line in (DATA / f"{name}.jsonl").read_bytes().splitlines()]
    assert len({row["id"] for row in rows}) == len(rows) >= 60
    return [pytest.param(row, id=row["id"]) for row in rows]


def record_of(row):
    content = json.dumps(row).encode()
    record, bad = to_record(Row(1, "a:1", "a.jsonl:1", "a", content))
    assert bad is None
    return record


def said(answer, question="Tell me about it.", **more):
    return Record((Said("user", question), Said("assistant", answer)), **more)


def flags(answer, question="Tell me about it.", **more):
    return {verdict.rule for verdict in check(said(answer, question, **more), build())}


# ---------------------------------------------------------------------- both sides
@pytest.mark.parametrize("row", fixtures("hard_negatives"))
def test_what_repeats_for_a_reason_is_not_flagged(row):
    assert check(record_of(row), build()) == []


@pytest.mark.parametrize("row", fixtures("positives"))
def test_defect_is_found_by_its_rule_with_evidence(row):
    record = record_of(row)
    verdicts = {verdict.rule: verdict for verdict in check(record, build())}
    found = verdicts[row["rule"]]
    assert found.note
    if found.span is None:
        assert row["rule"] == "tag_count"
        return
    text = record.turns[found.span.turn].text
    assert record.turns[found.span.turn].role == "assistant"
    assert 0 <= found.span.start < max(found.span.end, 1) <= max(len(text), 1)


def test_both_languages_and_every_rule_are_among_them():
    positives = [row.values[0] for row in fixtures("positives")]
    assert {row["rule"] for row in positives} == set(RULES)
    negatives = [row.values[0] for row in fixtures("hard_negatives")]
    kinds = {"table", "code", "ocr", "latex", "boxes", "numbers", "verse", "steps"}
    assert kinds <= {row["kind"] for row in negatives}
    for rows in (positives, negatives):
        assert sum(row["language"] == "zh" for row in rows) >= 19


def test_rules_hold_no_state():
    rules = build()
    records = [record_of(row.values[0]) for row in fixtures("positives")]
    first = [check(record, rules) for record in records]
    assert [check(record, rules) for record in reversed(records)] == first[::-1]


# ---------------------------------------------------------------------- the map
def test_every_rule_is_described():
    for name, spec in RULES.items():
        assert spec.name == name
        assert spec.summary
        assert spec.source
        assert spec.options, f"{name} has no threshold"
    assert set(REPETITION) < set(RULES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"suffix_lop": True}, "did you mean 'suffix_loop'"),
        ({"zero_run": {"max_zero": 3}}, "did you mean 'max_zeros'"),
        ({"zero_run": {"max_zeros": "many"}}, "expected a value like 120"),
        ({"zero_run": {"max_zeros": True}}, "expected a value like 120"),
        ({"ngram_repetition": {"top": 0.2}}, "max_zeros|expected a value like"),
        ({"refusal": "yes"}, "expected true, false or its thresholds"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build(settings)


def test_only_named_rules_are_made():
    rules = build({"refusal": True, "zero_run": False, "suffix_loop": {"min_repeated": 90}})
    assert list(rules) == ["suffix_loop", "refusal"]


# ---------------------------------------------------------------------- limits
SENTENCE = "The old bridge spans the narrow river. "


@pytest.mark.parametrize(
    ("rule", "limit", "below", "above"),
    [
        ("zero_run", {"max_zeros": 30}, "1" + "0" * 30, "1" + "0" * 31),
        ("character_run", {"max_letters": 20}, "g" + "o" * 20 + "d", "g" + "o" * 21 + "d"),
        ("turn_length", {"max_weight": 20}, "Exactly 20 letters. ", "Now twenty-one chars."),
        ("sentence_length", {"max_weight": 30}, "It has thirty characters here.",
         "It has thirty characters there."),
        ("duplicate_lines", {"min_copies": 3}, f"{SENTENCE}\n" * 3, f"{SENTENCE}\n" * 4),
        ("empty_answer", {"min_characters": 2}, "No", "N"),
        ("unbalanced_markup", {"max_faults": 1}, "It is $$x", "It is $$x and \\(y and \\[z"),
        ("broken_encoding", {"min_characters": 3}, "caf\ufffd \ufffd", "caf\ufffd \ufffd\ufffd"),
    ],
    ids=lambda value: value if isinstance(value, str) and value in RULES else "",
)  # fmt: skip
def test_threshold_is_where_it_says(rule, limit, below, above):
    assert rule in RULES
    known = {name: value for name, value in limit.items() if name in RULES[rule].options}
    assert known == limit, RULES[rule].options
    rules = build({rule: limit})
    assert check(said(below), rules) == []
    assert [verdict.rule for verdict in check(said(above), rules)] == [rule]


def test_refusal_is_looked_for_at_the_beginning_only():
    answer = "I'm sorry, but I cannot help with that."
    assert check(said(answer), build({"refusal": {"max_position": 10}})) == []
    assert flags(answer) == {"refusal"}
    assert flags(f"The letter begins: '{answer}'") == set()


def test_sentence_is_a_loop_at_the_third_time():
    start = "It is an old town in the south of the country, known for its market. "
    assert "suffix_loop" not in flags(start + SENTENCE * 2)
    assert "suffix_loop" in flags(start + SENTENCE * 4)


def test_what_was_asked_for_so_often_is_no_loop():
    answer = "I will not talk in class. " * 10
    assert "suffix_loop" in flags(answer, "Write something.")
    assert flags(answer, "Write 'I will not talk in class.' ten times.") == set()


def test_only_answers_are_read():
    loop = SENTENCE * 20
    record = Record((Said("user", loop), Said("assistant", "I see.")))
    assert check(record, build()) == []


def test_worst_answer_of_a_conversation_is_reported():
    turns = (
        Said("user", "A?"), Said("assistant", SENTENCE * 5),
        Said("user", "B?"), Said("assistant", SENTENCE * 9),
    )  # fmt: skip
    (verdict,) = check(Record(turns), build({"suffix_loop": True}))
    assert (verdict.span.turn, verdict.score) == (3, 9.0)


def test_loop_before_a_good_end_is_found():
    answer = f"It is a town. {SENTENCE * 8}Its market is known in all of the country."
    assert "suffix_loop" not in flags(answer)
    assert "inner_loop" in flags(answer)


# ---------------------------------------------------------------------- tags
@pytest.mark.parametrize(
    ("question", "images", "flagged"),
    [
        ("<image>\nWhat?", 1, False),
        ("What?", 1, False),  # a lone image of the official format comes first
        ("<image> <image> What?", 1, True),
        ("<image> What?", 2, True),
        ("What?", 2, True),
        ("What?", 0, False),
        ("<image> What?", 0, True),
    ],
)
def test_tags_are_counted(question, images, flagged):
    assert ("tag_count" in flags("A tree.", question, images=images)) == flagged


# ---------------------------------------------------------------------- algorithms
@given(st.text("ab", max_size=40))
def test_z_function_is_what_it_says(text):
    z = z_function(text)
    for i in range(len(text)):
        length = 0
        while i + length < len(text) and text[length] == text[i + length]:
            length += 1
        assert z[i] == length


@given(st.text("abc", min_size=4, max_size=30))
def test_suffix_runs_are_all_runs_that_last_to_the_end(text):
    """Against the definition: s[i] == s[i - period] from start + period to the end."""
    n = len(text)
    expected = {}
    for period in range(1, n):
        start = n - period
        while start > 0 and text[start - 1] == text[start - 1 + period]:
            start -= 1
        if n - period - start >= 2:
            expected[period] = start
    found = {run.period: run.start for run in suffix_runs(text)}
    assert found == expected
    assert list(found) == sorted(found)


@given(st.text("abcdefgh", max_size=20), st.text("abcdefgh", min_size=3, max_size=6))
def test_inner_runs_hold_what_they_say(text, unit):
    whole = text + unit * 4 + "xyz"
    for run in inner_runs(whole):
        assert whole[run.start : run.end - run.period] == whole[run.start + run.period : run.end]
    assert any(run.repeats >= 3 for run in inner_runs(whole))


class Counted:
    """An item that counts how often it is compared."""

    compared = 0

    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        Counted.compared += 1
        return self.value == other.value

    __hash__ = None


@pytest.mark.parametrize("text", ["a" * 2000, "ab" * 1000, "a" * 1000 + "b" * 1000])
def test_z_function_is_linear(text):
    Counted.compared = 0
    z_function([Counted(c) for c in text])
    assert Counted.compared <= 2 * len(text)


HOSTILE = {
    "one letter": "a" * 300_000,
    "brackets": "[" * 100_000,
    "braces": "{" * 100_000,
    "dollars": "$" * 100_001,
    "tags": "<box>" * 20_000,
    "zeros with blanks": "0 " * 100_000,
    "numbers that never close": "[" + "0, " * 100_000,
    "bars": "|" * 100_000,
    "lines": "\n" * 200_000,
    "pieces of lines": "x|\n" * 50_000,
    "backslashes": "\\left(" * 20_000,
    "fences": "```" * 30_000,
    "tables": "<table>" * 20_000,
    "fences with names": "```python\n" * 20_000,
    "displays": "\\[" * 50_000,
    "closed displays first": "\\]" * 20_000 + "\\[" * 20_000,
    "begins": "\\begin{array}" * 10_000,
    "han": "\u6c49" * 100_000,
    "words": " ".join(f"w{i}" for i in range(60_000)),
    "surrogate pairs": "\U0001f600" * 100_000,
    "combining": "e\u0301" * 100_000,
    "nothing": "",
    "nul": "\x00" * 1000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_answer_is_read_to_its_end(text):
    """In a test process with a limit of seconds; quadratic rules would take minutes."""
    for verdict in check(said(text), build()):
        assert len(verdict.note) < 500
