"""Sources: any row of a file at the cost of a seek, and faults by the number of their line."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import tracemalloc

import numpy as np
import pytest

from internvl.data.schema import DataError
from internvl.data.sources import JsonlSource, StreamSource, TableSource, open_source


def write(path, content):
    path.write_bytes(content)
    return JsonlSource(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"a": 1}\n{"a": 2}\n', [1, 2]),
        (b'{"a": 1}\n{"a": 2}', [1, 2]),
        (b'{"a": 1}\r\n{"a": 2}\r\n', [1, 2]),
        (b'\n\n{"a": 1}\n   \n\t\n{"a": 2}\n\n', [1, 2]),
        (b'\xef\xbb\xbf{"a": 1}\n{"a": 2}\n', [1, 2]),
        (b"", []),
        (b"\n \n", []),
    ],
    ids=["plain", "open end", "crlf", "blank lines", "bom", "empty", "only blank"],
)
def test_rows_are_lines_that_hold_something(content, expected, tmp_path):
    source = write(tmp_path / "a.jsonl", content)
    assert len(source) == len(expected)
    assert [source.row(index)["a"] for index in range(len(source))] == expected
    assert [source.row(i)["a"] for i in reversed(range(len(source)))] == expected[::-1]


def test_faults_have_the_number_of_their_line(tmp_path):
    source = write(tmp_path / "a.jsonl", b'{"a": 1}\n\n{"a": \n[1]\n{"a": 2}\n')
    assert [source.where(index) for index in range(4)] == [f"a.jsonl:{n}" for n in (1, 3, 4, 5)]
    with pytest.raises(DataError, match="not JSON"):
        source.row(1)
    with pytest.raises(DataError, match="is a list"):
        source.row(2)
    assert source.row(3) == {"a": 2}
    with pytest.raises(IndexError, match="4 rows"):
        source.row(4)


def test_lines_longer_than_a_chunk_are_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("internvl.data.sources._CHUNK", 7)
    rows = [{"a": "x" * n} for n in (0, 5, 30, 1)]
    source = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)).encode())
    assert [source.row(index) for index in range(4)] == rows
    assert [source.where(index) for index in range(4)] == [f"a.jsonl:{n}" for n in (1, 2, 3, 4)]


def test_a_million_rows_cost_nothing_up_front_and_little_later(tmp_path):
    path = tmp_path / "many.jsonl"
    with path.open("wb") as file:
        for start in range(0, 1_000_000, 50_000):
            file.write(b"".join(b'{"n": %d}\n' % n for n in range(start, start + 50_000)))
    tracemalloc.start()
    source = JsonlSource(path)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    assert len(source) == 1_000_000
    assert source.row(987_654) == {"n": 987_654}
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def _read(source, queue):
    queue.put([source.row(index)["a"] for index in range(50)])


def test_a_source_is_shared_by_forked_processes_and_pickled(tmp_path):
    content = "\n".join(json.dumps({"a": n}) for n in range(50)).encode()
    source = write(tmp_path / "a.jsonl", content)
    assert source.row(3)["a"] == 3  # the file is open
    assert pickle.loads(pickle.dumps(source)).row(7)["a"] == 7
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=_read, args=(source, queue)) for _ in range(3)]
    for child in children:
        child.start()
    own = [source.row(index)["a"] for index in range(50)]
    assert [queue.get(timeout=60) for _ in children] == [own] * 3
    for child in children:
        child.join()


# ---------------------------------------------------------------------- datasets
@pytest.fixture
def table(tmp_path):
    import datasets
    from PIL import Image

    pixels = [np.full((4, 4, 3), 40 * n, np.uint8) for n in range(5)]
    content = {"n": list(range(5)), "image": [Image.fromarray(p) for p in pixels],
               "images": [[Image.fromarray(p)] for p in pixels], "missing": [None] * 5}  # fmt: skip
    made = datasets.Dataset.from_dict(content)
    made = made.cast_column("image", datasets.Image())
    return made.cast_column("images", datasets.List(datasets.Image()))


@pytest.mark.parametrize("kind", ["file", "folder", "glob", "saved", "splits"])
def test_tables_are_read_with_their_images_as_bytes(kind, table, tmp_path):
    import datasets

    folder = tmp_path / "table"
    folder.mkdir()
    if kind == "saved":
        table.save_to_disk(folder)
    elif kind == "splits":
        splits = {"train": table.select([0]), "extra": table}
        datasets.DatasetDict(splits).save_to_disk(folder)
    else:
        table.select(range(3)).to_parquet(folder / "0.parquet")
        table.select(range(3, 5)).to_parquet(folder / "1.parquet")
    where = {"file": folder / "0.parquet", "glob": folder / "*.parquet"}.get(kind, folder)
    source = open_source(str(where), split="extra" if kind == "splits" else "train")
    assert isinstance(source, TableSource)
    assert len(source) == (3 if kind == "file" else 5)
    row = source.row(2)
    assert row["n"] == 2
    assert row["image"]["bytes"].startswith(b"\x89PNG")
    assert row["images"][0]["bytes"].startswith(b"\x89PNG")
    assert "missing" not in row
    assert source.where(2).endswith("row 3")


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_stream_is_read_in_its_order(kind, table, tmp_path):
    path = tmp_path / f"rows.{kind}"
    plain = table.select_columns(["n"])
    plain.to_parquet(path) if kind == "parquet" else plain.to_json(path)
    source = open_source(str(path), length=5)
    assert isinstance(source, StreamSource)
    assert len(source) == 5
    assert [source.row(n)["n"] for n in (0, 1, 3, 4)] == [0, 1, 3, 4]
    assert source.row(1)["n"] == 1  # opened again
    assert pickle.loads(pickle.dumps(source)).row(2)["n"] == 2
    short = open_source(str(path), length=9)
    with pytest.raises(DataError, match="`length` is 9") as caught:
        short.row(7)
    assert caught.value.reason == "stream_ended"


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ValueError, match="no known format"):
        len(open_source(str(tmp_path / "a.txt")))
