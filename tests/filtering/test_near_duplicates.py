"""Samples that are in the corpus twice: which pairs count, which copy stays."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from internvl.filtering.near_duplicates import (
    EXACT,
    NEAR,
    bucket_step,
    cluster_step,
    cluster_text,
    find_duplicates,
    jaccard,
    read_copies,
    shingles,
    signature_step,
)
from internvl.filtering.verdict import Record, Said

WORDS = [f"word{chr(97 + i)}{chr(97 + j)}" for i in range(26) for j in range(26)]


def sample(key, answer, question="Tell me.", row=None):
    turns = (Said("user", question), Said("assistant", answer))
    return Record(turns, "a", key=key, row=row or {})


def prose(seed, count=120):
    return np.random.default_rng(seed).choice(WORDS, count, replace=False).tolist()


def found(*samples, **options):
    return {
        key: (verdict.rule, verdict.note) for key, verdict in find_duplicates(samples, **options)
    }


def changed(words, places):
    """The words with others at evenly spaced places."""
    words = list(words)
    for number, place in enumerate(np.linspace(5, len(words) - 6, places).astype(int)):
        words[place] = f"other{chr(97 + number)}"
    return words


# ---------------------------------------------------------------------- copies
def test_copy_names_the_one_that_stays():
    said = " ".join(prose(0))
    assert found(sample("a:1", said), sample("a:2", "Else."), sample("a:3", said)) == {
        "a:3": (EXACT, "It is a:1 again.")
    }


@pytest.mark.parametrize(
    ("other", "copy"),
    [
        ("two  PLUS\nthree", True),
        ("two plus four", False),
        ("two plus three!", False),
    ],
)
def test_blanks_and_case_make_no_other_sample_and_signs_do(other, copy):
    pair = found(sample("a:1", "Two plus three"), sample("a:2", other))
    assert (pair == {"a:2": (EXACT, "It is a:1 again.")}) == copy


@pytest.mark.parametrize(
    "rows",
    [
        ({"image": "1.png"}, {"image": "2.png"}),
        ({"image": "1.png"}, {}),
        ({"video": "1.mp4"}, {"image": "1.mp4", "video": "2.mp4"}),
        ({"messages": [{"content": [{"type": "image", "url": "1"}]}]},
         {"messages": [{"content": [{"type": "image", "url": "2"}]}]}),
    ],
)  # fmt: skip
def test_same_text_about_other_pictures_is_no_copy(rows):
    said = " ".join(prose(0))
    pair = [sample(f"a:{i}", said, row=row) for i, row in enumerate(rows)]
    assert found(*pair) == {}
    assert list(found(pair[0], sample("a:9", said, row=rows[0]))) == ["a:9"]


# ---------------------------------------------------------------------- near copies
@pytest.mark.parametrize(("places", "near"), [(1, True), (2, False), (8, False)])
def test_similarity_is_that_of_the_shingles(places, near):
    first = prose(1)
    second = changed(first, places)
    text = [shingles(["tell", "me", *words]) for words in (first, second)]
    similarity = jaccard(*text)
    # n changed words of 122 leave 118 - 5n shingles of both and 5n of either.
    assert similarity == pytest.approx((118 - 5 * places) / (118 + 5 * places))
    assert (similarity >= 0.85) == near
    pair = found(sample("a:1", " ".join(first)), sample("a:2", " ".join(second)))
    assert [rule for rule, _ in pair.values()] == ([NEAR] if near else [])


def test_similarity_can_be_set():
    first = prose(1)
    pair = [sample("a:1", " ".join(first)), sample("a:2", " ".join(changed(first, 3)))]
    assert found(*pair) == {}
    assert list(found(*pair, similarity=0.75)) == ["a:2"]
    assert found(*pair, similarity=0.75, near=False) == {}
    with pytest.raises(ValueError, match="similarity is 0"):
        found(*pair, similarity=0)


def test_most_near_copies_are_found():
    samples = []
    for seed in range(60):
        words = prose(seed)
        samples += [sample(f"a:{seed}", " ".join(words)),
                    sample(f"b:{seed}", " ".join(changed(words, 1)))]  # fmt: skip
    pairs = found(*samples)
    assert {key[0] for key in pairs} == {"b"}
    assert len(pairs) >= 59


def test_exercises_with_other_numbers_are_no_copies():
    words = prose(2)
    first, second = [*words, "12", "apples"], [*words, "13", "apples"]
    pair = [sample("a:1", " ".join(first)), sample("a:2", " ".join(second))]
    assert found(*pair, similarity=0.8) == {}
    assert list(found(*pair, similarity=0.8, same_numbers=False)) == ["a:2"]


def test_short_answers_are_only_alike():
    pair = [sample("a:1", "It is a red car."), sample("a:2", "It is a red car!")]
    assert found(*pair) == {}


def test_chain_of_similar_samples_does_not_pull_unlike_ones_out():
    chain = [prose(3)]
    for place in (20, 60, 100):
        words = list(chain[-1])
        words[place] = f"changed{place}"
        chain.append(words)
    samples = [sample(f"a:{i}", " ".join(words)) for i, words in enumerate(chain)]
    # Each is near the one before, but the third is not near the first, which is what stays.
    assert found(*samples) == {
        "a:1": (NEAR, "It is nearly a:0: 92% of their 5-word sequences agree."),
        "a:3": (NEAR, "It is nearly a:2: 92% of their 5-word sequences agree."),
    }


def test_order_decides_which_copy_stays():
    words = prose(4)
    one, two = sample("a:1", " ".join(words)), sample("a:2", " ".join(changed(words, 1)))
    assert list(found(one, two)) == ["a:2"]
    assert list(found(two, one)) == ["a:1"]


def test_missing_datasketch_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(ImportError, match=r"internvl\[filter\].*near to false"):
        found(sample("a:1", "A."))
    assert found(sample("a:1", "A."), near=False) == {}


# ---------------------------------------------------------------------- clusters
def test_blocks_of_datatrove_find_the_same(tmp_path):
    """Two shards through the three jobs, as on a cluster."""
    from datatrove.data import Document

    shards, expected = ([], []), set()
    for seed in range(20):
        words = prose(100 + seed)
        shards[0].append(sample(f"a:{seed}", " ".join(words)))
        copy = changed(words, 1) if seed % 4 == 0 else prose(500 + seed)
        shards[1].append(sample(f"b:{seed}", " ".join(copy)))
        if seed % 4 == 0:
            expected.add(((1, seed), (0, seed)))
    picture = [sample("c", " ".join(prose(100)), row={"image": "1.png"})]
    shards[1].extend(picture)  # the text of the first, about a picture
    step = signature_step(tmp_path / "signatures")
    for rank, shard in enumerate(shards):
        documents = [Document(cluster_text(each), each.key) for each in shard]
        step.run(iter(documents), rank, len(shards))
    for rank in range(14):
        bucket_step(tmp_path / "signatures", tmp_path / "pairs").run(None, rank, 14)
    cluster_step(tmp_path / "pairs", tmp_path / "clusters").run(None, 0, 1)
    assert set(read_copies(tmp_path / "clusters").items()) == expected
