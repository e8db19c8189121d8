"""The stream of packs: complete, isolated per shard, and resumable from integers."""

from __future__ import annotations

import json
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from internvl import hub
from internvl.data.examples import ExampleMaker
from internvl.data.mixture import Mixture, load_meta
from internvl.data.schema import DataError
from internvl.data.skips import SkipPolicy
from internvl.data.stream import PackStream, StreamOptions
from tests.data.files import picture, small_mixture, turns, write_meta, write_rows

OPTIONS = {"max_tokens": 320, "max_tiles": 8, "buffer": 4}


@pytest.fixture(scope="module")
def maker():
    return ExampleMaker(hub.prepare())


@pytest.fixture(scope="module")
def meta(tmp_path_factory):
    return small_mixture(tmp_path_factory.mktemp("mixture"))


def ones(example):
    return (example.response >= 0).astype(np.float32)


def stream(meta, maker, *, seed=0, rank=0, world=1, states=(), first_worker=0, **options):
    mixture = Mixture(load_meta(meta), seed=seed)
    made = StreamOptions(**{**OPTIONS, **options})
    return PackStream(
        mixture, maker, ones, made, rank=rank, world=world, states=states, first_worker=first_worker
    )


def loaded(packs, workers):
    return DataLoader(packs, batch_size=None, num_workers=workers)


def keys(batches):
    return [batch["info"]["keys"] for batch in batches]


@pytest.mark.parametrize("rule", ["report", "official", "best_fit"])
@pytest.mark.parametrize("world", [1, 3], ids=["alone", "three"])
def test_an_epoch_holds_every_sample_once(rule, world, meta, maker):
    seen = []
    for rank in range(world):
        for batch in stream(meta, maker, rank=rank, world=world, rule=rule, epochs=1, window=8):
            assert batch["info"]["tokens"] <= 320
            assert batch["info"]["tiles"] <= 8
            assert batch["input_ids"].shape == (1, batch["info"]["tokens"])
            seen += [tuple(key) for key in batch["info"]["keys"]]
    rows = [key[1:3] for key in seen]
    assert len(seen) == len(set(seen)) == 12 + 12  # eight texts, r = 1.5
    assert {row for dataset, row in rows if dataset == 0} == set(range(12))
    assert {row for dataset, row in rows if dataset == 1} == set(range(8))


@pytest.mark.parametrize("workers", [0, 2], ids=["workers0", "workers2"])
@pytest.mark.parametrize("rule", ["report", "best_fit"])
def test_a_stream_goes_on_from_the_integers_of_any_batch(rule, workers, meta, maker):
    options = {"rule": rule, "window": 6}
    whole = list(islice(loaded(stream(meta, maker, **options), workers), 30))
    for stop in (1, 6, 13):
        states: dict[int, dict] = {}
        for batch in whole[:stop]:
            states[batch["info"]["worker"]] = batch["info"]["state"]
        fresh = vars(__import__("internvl.data.stream", fromlist=["ShardState"]).ShardState())
        saved = json.loads(json.dumps([states.get(w, fresh) for w in range(max(1, workers))]))
        first = (whole[stop - 1]["info"]["worker"] + 1) % max(1, workers)
        again = stream(meta, maker, states=saved, first_worker=first, **options)
        rest = list(islice(loaded(again, workers), 30 - stop))
        assert keys(rest) == keys(whole[stop:])
        for one, other in zip(rest, whole[stop:], strict=True):
            assert torch.equal(one["pixel_values"], other["pixel_values"])
            assert torch.equal(one["input_ids"], other["input_ids"])


def test_another_number_of_workers_is_refused(meta, maker):
    with pytest.raises(ValueError, match="2 data workers and goes on with 1"):
        next(iter(stream(meta, maker, states=[{}, {}])))


def test_epochs_differ_and_seeds_differ(meta, maker):
    packs = list(islice(stream(meta, maker), 20))
    epochs = [[key[1:3] for key in flat if key[0] == epoch] for epoch in (0, 1)
              for flat in [[key for batch in packs for key in batch["info"]["keys"]]]]  # fmt: skip
    assert epochs[0] != epochs[1]
    assert keys(packs) == keys(islice(stream(meta, maker), 20))
    assert keys(packs) != keys(islice(stream(meta, maker, seed=1), 20))


def test_a_sample_over_a_limit_is_cut_or_truncated(maker, tmp_path):
    said = [text for k in range(12) for text in (f"Number {k}?", "so " * 20)]
    write_rows(tmp_path / "long.jsonl", [{"conversations": turns(*said)}])
    meta = write_meta(tmp_path, long={"annotation": "long.jsonl"})
    whole = next(iter(stream(meta, maker, max_tokens=4096, epochs=1)))["input_ids"][0].tolist()
    parts = list(stream(meta, maker, max_tokens=100, epochs=1))
    ordered = sorted((b["info"]["keys"][0][-1], b["input_ids"][0].tolist()) for b in parts)
    # The system message is in the first part, and a part begins after an answer.
    assert [i for _, ids in ordered for i in ids] == whole
    assert all(len(ids) <= 100 for _, ids in ordered)
    (short,) = stream(meta, maker, max_tokens=100, epochs=1, over_length="truncate")
    assert short["input_ids"][0].tolist() == whole[:100]


def test_truncation_never_tears_images(maker, tmp_path):
    names = [picture(tmp_path / f"{k}.png") for k in range(3)]
    row = {"image": names, "conversations": turns("<image>" * 3 + "?", "noise " * 9)}
    write_rows(tmp_path / "rows.jsonl", [row])
    meta = write_meta(tmp_path, d={"annotation": "rows.jsonl"})
    policy = SkipPolicy(max_share=1.0)
    options = {"epochs": 1, "over_length": "truncate", "skips": policy}
    assert not list(stream(meta, maker, max_tokens=60, **options))
    assert not list(stream(meta, maker, max_tiles=2, **options))
    assert len(list(stream(meta, maker, max_tokens=95, **options))) == 1


def test_bad_samples_are_counted_and_bounded(maker, tmp_path):
    rows = [{"conversations": turns("Hi", f"Hello {k}")} for k in range(30)]
    for k in (3, 11):
        rows[k]["image"] = "absent.png"
    write_rows(tmp_path / "rows.jsonl", rows)
    meta = write_meta(tmp_path, d={"annotation": "rows.jsonl"})
    batches = list(stream(meta, maker, epochs=1))
    assert sum(len(batch["info"]["keys"]) for batch in batches) == 28
    assert batches[-1]["info"]["state"]["skipped"] == {"missing_file": 2}
    assert batches[-1]["info"]["state"]["seen"] == 30
    strict = SkipPolicy(max_share=0.01, grace=1)
    with pytest.raises(DataError, match=r"missing_file.*internvl data validate"):
        list(stream(meta, maker, epochs=1, skips=strict))


def test_text_only_packs_bring_one_tile_that_does_not_count(maker, tmp_path):
    write_rows(tmp_path / "rows.jsonl", [{"conversations": turns("Hi", "Hello")}] * 3)
    meta = write_meta(tmp_path, d={"annotation": "rows.jsonl"})
    (batch,) = stream(meta, maker, epochs=1)
    assert batch["pixel_values"].shape[0] == 1
    assert batch["image_flags"].tolist() == [0]
    assert batch["info"]["tiles"] == 0
