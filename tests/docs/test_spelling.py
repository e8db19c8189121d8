"""The prose is spelt as the dictionary and docs/spelling.txt have it."""

from __future__ import annotations

import importlib

import pytest

from tests.docs import scripts

pytest.importorskip("spellchecker", reason="pyspellchecker is not installed: internvl[docs]")
spelling = importlib.import_module(f"{scripts.PACKAGE}.spelling")


def test_prose_is_spelt_right():
    assert spelling.check() == {}, "correct it, or add the word to docs/spelling.txt"


def test_what_is_looked_at():
    names = {path.name for path in spelling.prose()}
    assert {"README.md", "tutorial.md", "migration.md", "DATA.md", "cli.md"} <= names


def test_a_misspelt_word_is_found():
    found = spelling.unknown([("page", spelling.words("A *seperate* wrod, twice: seperate."))])
    assert found == {"page": ["seperate", "wrod"]}


@pytest.mark.parametrize(
    "text",
    [
        "`qzxv`",
        "```text\nqzxv\n```",
        "$qzxv$ and $$qzxv$$",
        "[text](qzxv/qzxv.md#qzxv)",
        "[text][qzxv]\n\n[qzxv]: https://example.org/qzxv",
        "see qzxv.py, docs/qzxv and qzxv_qzxv",
        "InternVL, MMMU, MiniCPM",
        "<!-- qzxv -->",
    ],
)
def test_what_is_no_prose_is_left_out(text):
    assert spelling.unknown([("page", spelling.words(text))]) == {}


def test_accepted_words_are_sorted_and_needed():
    lines = [line for line in spelling.ACCEPTED.read_text("utf-8").split("\n")[1:] if line]
    assert lines == sorted(set(lines))
    assert spelling.dictionary().unknown(lines) == set(lines)
