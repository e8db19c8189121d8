"""The mixture: what is in a meta file, how often a row is seen, and in which order."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice

import pytest

from internvl.data.mixture import DatasetSpec, Mixture, load_meta
from tests.data.files import turns, write_meta, write_rows


def spec(folder, name, rows, r=1.0, **options):
    write_rows(
        folder / f"{name}.jsonl", [{"conversations": turns("Hi", str(n))} for n in range(rows)]
    )
    return DatasetSpec(name, str(folder), str(folder / f"{name}.jsonl"), repeat_time=r, **options)


def seen(mixture, epoch=0, **options):
    return list(mixture.order(epoch, **options))


# ---------------------------------------------------------------------- order
@pytest.mark.parametrize(
    ("r", "expected"), [(0.3, 3), (0.04, 1), (1, 10), (1.5, 15), (2.25, 22), (4, 40)]
)
def test_a_dataset_gives_r_times_its_rows(r, expected, tmp_path):
    keys = seen(Mixture([spec(tmp_path, "a", 10, r)]))
    assert len(keys) == len(set(keys)) == expected
    counts = Counter(row for _, row, _ in keys)
    assert set(counts.values()) <= {int(r), int(r) + 1}
    assert all(copy < r for _, _, copy in keys)


def test_rows_of_a_fraction_are_drawn_anew_in_every_epoch(tmp_path):
    mixture = Mixture([spec(tmp_path, "a", 40, 0.25)], seed=3)
    epochs = [frozenset(row for _, row, _ in seen(mixture, epoch)) for epoch in range(8)]
    assert len(set(epochs)) == 8
    assert len(frozenset().union(*epochs)) > 30
    assert seen(mixture, 5) == seen(Mixture(mixture.specs, seed=3), 5)
    assert seen(mixture, 5) != seen(Mixture(mixture.specs, seed=4), 5)


def test_the_official_fraction_is_the_first_rows(tmp_path):
    mixture = Mixture([spec(tmp_path, "a", 40, 0.26)], repeat="official")
    for epoch in (0, 1):
        assert sorted(row for _, row, _ in seen(mixture, epoch)) == list(range(10))
    with pytest.raises(ValueError, match=r"repeat_time 1\.5"):
        Mixture([spec(tmp_path, "b", 4, 1.5)], repeat="official")
    assert len(seen(Mixture([spec(tmp_path, "c", 4, 2)], repeat="official"))) == 8


@pytest.mark.parametrize("weighting", ["len", "sqrt"])
@pytest.mark.parametrize("shards", [1, 3, 7])
def test_shards_are_disjoint_and_complete_and_can_begin_anywhere(weighting, shards, tmp_path):
    specs = [spec(tmp_path, "a", 30, 1.5), spec(tmp_path, "b", 4, 2), spec(tmp_path, "c", 11, 0.5)]
    mixture = Mixture(specs, weighting=weighting)
    whole = seen(mixture)
    parts = [seen(mixture, shard=shard, shards=shards) for shard in range(shards)]
    assert sorted(key for part in parts for key in part) == sorted(whole)
    assert len(whole) == len(set(whole)) == len(mixture)
    for shard, part in enumerate(parts):
        for start in (0, 1, 5, len(part)):
            assert seen(mixture, shard=shard, shards=shards, start=start) == part[start:]


def test_an_epoch_by_length_is_even_and_mixed(tmp_path):
    mixture = Mixture([spec(tmp_path, "a", 300), spec(tmp_path, "b", 100, 0.5)])
    keys = seen(mixture)
    assert Counter(dataset for dataset, _, _ in keys) == {0: 300, 1: 50}
    first = Counter(dataset for dataset, _, _ in keys[:175])
    assert 12 < first[1] < 40
    rows = [row for dataset, row, _ in keys if dataset == 0]
    assert rows != sorted(rows)


def test_by_the_root_small_datasets_come_more_often(tmp_path):
    mixture = Mixture([spec(tmp_path, "a", 1600), spec(tmp_path, "b", 100)], weighting="sqrt")
    counts = Counter(dataset for dataset, _, _ in seen(mixture))
    assert counts.total() == 1700
    assert counts[1] / 1700 == pytest.approx(10 / 50, abs=0.04)
    rows = Counter(row for dataset, row, _ in seen(mixture) if dataset == 1)
    assert set(rows) == set(range(100))  # started again before any row is left out
    assert max(rows.values()) - min(rows.values()) <= 1


def test_streams_keep_their_order(tmp_path):
    mixture = Mixture([spec(tmp_path, "a", 6, 2, streaming=True, length=6)])
    assert [row for _, row, _ in seen(mixture)] == [0, 1, 2, 3, 4, 5] * 2
    rows = [row for _, row, _ in seen(mixture, shard=1, shards=2)]
    assert rows == [1, 3, 5] * 2
    assert mixture.sample((0, 4, 0))[0].turns[1].parts == ("4",)


# ---------------------------------------------------------------------- meta files
def test_a_meta_file_is_relative_to_itself(tmp_path):
    write_rows(tmp_path / "a.jsonl", [{"image": "x.png", "conversations": turns("What?", "That")}])
    meta = write_meta(tmp_path, a={"root": "pictures", "annotation": "a.jsonl", "length": 1,
                                   "data_augment": True, "max_dynamic_patch": 24,
                                   "repeat_time": 0.5})  # fmt: skip
    (found,) = load_meta(meta)
    assert found.max_dynamic_patch == 24
    assert (found.data_augment, found.repeat_time) == (True, 0.5)
    mixture = Mixture([found])
    sample, _ = mixture.sample(next(mixture.order(0)))
    assert sample.turns[0].parts[0].source == str(tmp_path / "pictures" / "x.png")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "names no annotation"),
        ({"annotation": "a.jsonl", "max_patches": 3}, r"unknown keys \['max_patches'\]"),
        ({"annotation": "s3://bucket/a.jsonl"}, "object stores"),
        ({"annotation": "a.jsonl", "root": "s3://bucket"}, "object stores"),
        ({"annotation": "a.jsonl", "repeat_time": 0}, r"\(0, 4\]"),
        ({"annotation": "a.jsonl", "repeat_time": 4.5}, r"\(0, 4\]"),
        ({"annotation": "a.jsonl", "max_dynamic_patch": 0}, "at least 1"),
        ({"annotation": "a.jsonl", "min_frames": 9, "max_frames": 8}, "min_frames <= max_frames"),
        ({"annotation": "a.jsonl", "streaming": True}, "give its length"),
    ],
    ids=lambda value: None if isinstance(value, str) else str(sorted(value)),
)
def test_nonsense_is_named(entry, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_meta(write_meta(tmp_path, a=entry))


def test_empty_mixtures_and_datasets_are_refused(tmp_path):
    (tmp_path / "meta.json").write_text(json.dumps([]))
    with pytest.raises(ValueError, match="no datasets"):
        load_meta(tmp_path / "meta.json")
    with pytest.raises(ValueError, match="at least one dataset"):
        Mixture([])
    with pytest.raises(ValueError, match="has no rows"):
        seen(Mixture([spec(tmp_path, "a", 0)]))
    with pytest.raises(ValueError, match="weighting='cube'"):
        Mixture([spec(tmp_path, "b", 1)], weighting="cube")


def test_randomness_of_a_sample_is_its_own(tmp_path):
    mixture = Mixture([spec(tmp_path, "a", 3)], seed=1)
    draws = {
        (epoch, key): mixture.rng(epoch, key).integers(1 << 40)
        for epoch in (0, 1)
        for key in islice(mixture.order(0), 3)
    }
    assert len(set(draws.values())) == 6
    assert all(mixture.rng(e, k).integers(1 << 40) == value for (e, k), value in draws.items())
