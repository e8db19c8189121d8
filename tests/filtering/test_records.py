"""Rows as rules see them, and rows written back as they were."""

from __future__ import annotations

import json
import re

import pytest

from internvl.filtering.records import Row, to_record
from internvl.filtering.verdict import Said
from tests.filtering import runs


def read(row):
    content = row if isinstance(row, bytes) else json.dumps(row).encode()
    return to_record(Row(1, "a:1", "a.jsonl:1", "a", content))


@pytest.mark.parametrize(
    ("row", "turns", "images", "videos"),
    [
        (runs.official("Q?", "A."), [("user", "Q?"), ("assistant", "A.")], 0, 0),
        (runs.official("<image>\nQ?", "A.", image="1.png"),
         [("user", "<image>\nQ?"), ("assistant", "A.")], 1, 0),
        (runs.official("Q?", "A.", image=["1.png", "2.png"]), None, 2, 0),
        (runs.official("Q?", "A.", video="1.mp4"), None, 0, 1),
        (runs.official("Q?", "A.", image=None), None, 0, 0),
        (runs.official("Q?", "A.", image=""), None, 0, 0),
        (runs.messages("Q?", "A.", images=["1.png"]), None, 1, 0),
        (runs.messages([{"type": "image", "url": "1.png"}, {"type": "text", "text": "Q?"}], "A."),
         [("user", "<image>\nQ?"), ("assistant", "A.")], 1, 0),
        (runs.messages([{"type": "image_url", "image_url": {"url": "x"}}, "Q?"], "A."),
         [("user", "<image>\nQ?"), ("assistant", "A.")], 1, 0),
        (runs.messages([{"type": "text", "text": "Q?", "image": None}], "A."),
         [("user", "Q?"), ("assistant", "A.")], 0, 0),
        ({"messages": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": None}]},
         [("user", "Q?"), ("assistant", "")], 0, 0),
    ],
)  # fmt: skip
def test_both_formats_are_understood(row, turns, images, videos):
    record, bad = read(row)
    assert bad is None
    assert (record.images, record.videos) == (images, videos)
    if turns is not None:
        assert record.turns == tuple(Said(*turn) for turn in turns)
    assert record.row == row


@pytest.mark.parametrize(
    ("images", "videos", "modality"),
    [(0, 0, "text"), (1, 0, "image"), (2, 0, "multi_image"), (0, 1, "video"), (1, 1, "video")],
)
def test_modality(images, videos, modality):
    names = {"image": ["i.png"] * images, "video": ["v.mp4"] * videos}
    assert read(runs.official("Q?", "A.", **names))[0].modality == modality


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b'{"conversations": [', "the line is not JSON"),
        (b"\xff\xfe{}", "the line is not JSON"),
        (b"[" * 100_000, "the line is not JSON"),
        ([1], "the line is a list"),
        ({"text": "A."}, r"has the keys \['text'\]"),
        ({"conversations": []}, "expected a list of turns"),
        ({"conversations": "A."}, "expected a list of turns"),
        ({"conversations": [{"from": "human"}]}, "expected 'from' and a string 'value'"),
        ({"conversations": [{"from": "robot", "value": "A."}]}, "turn 1 is from 'robot'"),
        ({"conversations": [{"from": ["human"], "value": "A."}]}, "turn 1 is from"),
        ({"messages": [{"role": "user", "content": 3}]}, "has content 3"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "expected text, image"),
        ({"messages": [{"role": "user", "content": [3]}]}, "expected an object"),
        (b'{"conversations": [{"from": "human", "value": "\\ud800"}]}', "lone surrogate"),
    ],
)
def test_row_that_cannot_be_read_is_flagged_and_says_why(row, message):
    record, bad = read(row)
    assert record.turns == ()
    assert bad.rule == "bad_row"
    assert re.search(message, bad.note)


def test_row_that_cannot_be_read_is_in_the_queue_as_it_stands(tmp_path):
    config = runs.small_corpus(tmp_path)
    runs.run(config)
    entry = {e["key"]: e for e in runs.lines_of(config.folder / "queue.jsonl")}["text:4"]
    assert entry["raw"] == '{"conversations": [{"from": "human"'


def test_lines_keep_their_bytes_whatever_they_are(tmp_path):
    rows = [
        b'{"conversations":[{"from":"human","value":"Q"},{"from":"gpt","value":"caf\\u00e9"}]}',
        '{"conversations": [{"from": "human", "value": "\u95ee"}, '
        '{"from": "gpt", "value": "\u7b54 \u2028"}], "id" : 1.50 }'.encode(),
        b'  {"conversations": [{"value": "Q", "from": "human"}, {"value": "A", "from": "gpt"}]}  ',
    ]
    path = tmp_path / "data" / "a.jsonl"
    path.parent.mkdir()
    path.write_bytes(b"\xef\xbb\xbf" + rows[0] + b"\r\n\n" + rows[1] + b"\n" + rows[2])
    inputs = [{"name": "a", "annotation": "data/a.jsonl"}]
    config = runs.configure(tmp_path, inputs=inputs, rows_per_shard=1)
    assert runs.run(config)["kept"] == 3
    kept = (config.folder / "kept" / "a.jsonl").read_bytes()
    assert kept == b"".join(row + b"\n" for row in rows)


@pytest.mark.parametrize("layout", ["file", "folder", "glob"])
def test_parquet_keeps_its_schema_and_embedded_images(tmp_path, layout):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    turns = pyarrow.list_(pyarrow.struct([("from", pyarrow.string()), ("value", pyarrow.string())]))
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema(
        [("id", pyarrow.int32()), ("image", image), ("conversations", turns)],
        metadata={b"huggingface": b"{}"},
    )
    rows = [
        {**runs.official(f"<image>\nQ{i}?", runs.answer_of(i), id=i),
         "image": {"bytes": bytes([i, 0, 255]), "path": f"{i}.png"}}
        for i in range(1, 31)
    ]  # fmt: skip
    (tmp_path / "data").mkdir()
    for name, part in (("0.parquet", rows[:20]), ("1.parquet", rows[20:])):
        if layout == "file" and name != "0.parquet":
            continue
        table = pyarrow.Table.from_pylist(part, schema)
        parquet.write_table(table, tmp_path / "data" / name, row_group_size=8, compression="zstd")
    where = {"file": "data/0.parquet", "folder": "data", "glob": "data/*.parquet"}[layout]
    config = runs.configure(
        tmp_path, inputs=[{"name": "p", "annotation": where}], policy="auto", rows_per_shard=10
    )
    statistics = runs.run(config)
    total = 20 if layout == "file" else 30
    removed = [i for i in range(1, total + 1) if i % 10 == 0 or i % 15 == 0]
    assert (statistics["read"], statistics["removed"]) == (total, len(removed))
    tables = [parquet.read_table(path) for path in sorted(config.folder.glob("kept/p/*.parquet"))]
    kept = [row for table in tables for row in table.to_pylist()]
    assert kept == [row for row in rows[:total] if row["id"] not in removed]
    before = parquet.read_schema(tmp_path / "data" / "0.parquet")
    assert all(table.schema.equals(before, check_metadata=True) for table in tables)
    gone = [parquet.read_table(path) for path in sorted(config.folder.glob("removed/p/*.parquet"))]
    assert [row["id"] for table in gone for row in table.to_pylist()] == removed
    meta = json.loads((config.folder / "kept" / "meta.json").read_text())
    assert meta["p"]["annotation"] == "p"


def test_parquet_rows_of_other_images_are_no_copies(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    rows = [
        {**runs.official("<image>\nQ?", "A."), "image": {"bytes": bytes([i])}} for i in (1, 2, 1)
    ]
    (tmp_path / "data").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data" / "a.parquet")
    config = runs.configure(
        tmp_path, inputs=[{"name": "a", "annotation": "data/a.parquet"}], duplicates={"near": False}
    )
    runs.run(config)
    assert [e["key"] for e in runs.lines_of(config.folder / "queue.jsonl")] == ["a:3"]
