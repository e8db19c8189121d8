"""Files of benchmarks to samples."""

from __future__ import annotations

import base64
import io
import json

import pytest
from PIL import Image

from internvl.evaluation.prompts import text_of
from internvl.evaluation.records import Sample, lines, read_predictions
from internvl.evaluation.samples import Source, fingerprint, read_samples, to_sample
from tests import support
from tests.evaluation.metrics.rows import row


def png(colour="red"):
    stream = io.BytesIO()
    Image.new("RGB", (20, 12), colour).save(stream, "PNG")
    return stream.getvalue()


def coded(colour="red"):
    return base64.b64encode(png(colour)).decode()


def table(path, rows):
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["\t".join(names)]
    lines += ["\t".join(str(row.get(name, "")) for name in names) for row in rows]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def test_tsv_of_vlmevalkit():
    samples = read_samples(support.GOLDEN / "vlmevalkit" / "TinyMCQ.tsv")
    first = samples[0]
    assert (first.id, first.question, first.answers) == ("0", "Which letter is A?", ("A",))
    assert dict(first.choices) == {"A": "a", "B": "b", "C": "c", "D": "d"}
    assert set(first.fields) == {"category", "split"}
    assert Image.open(io.BytesIO(first.images[0])).size == (640, 400)


def test_cells_stay_as_they_are_written(tmp_path):
    # pandas' own guess makes `None` and `NA` empty, and 1 a float where the column has a gap.
    rows = [
        {
            "index": 0,
            "image": coded(),
            "question": "Q",
            "A": "None",
            "B": "NA",
            "C": 1,
            "answer": "A",
        },
        {"index": 1, "image": coded(), "question": "Q", "A": "x", "B": "y", "answer": "B"},
    ]
    first, second = read_samples(table(tmp_path / "a.tsv", rows))
    assert dict(first.choices) == {"A": "None", "B": "NA", "C": "1"}
    assert dict(second.choices) == {"A": "x", "B": "y"}


def test_an_image_cell_can_name_another_row(tmp_path):
    rows = [
        {"index": 7, "image": coded("blue"), "question": "Q"},
        {"index": 8, "image": 7, "question": "R"},
    ]
    first, second = read_samples(table(tmp_path / "a.tsv", rows))
    assert second.images == first.images
    rows[1]["image"] = 9
    with pytest.raises(ValueError, match="sample 8: the image '9' is neither a file"):
        read_samples(table(tmp_path / "b.tsv", rows))


def test_several_images_and_answers(tmp_path):
    rows = [
        {
            "index": 0,
            "image": [coded(), coded("blue")],
            "question": "Q",
            "answer": ["one", "a 'quoted' one"],
        }
    ]
    sample = read_samples(table(tmp_path / "a.tsv", rows))[0]
    assert sample.images == (png(), png("blue"))
    assert sample.answers == ("one", "a 'quoted' one")


def test_jsonl_of_refcoco(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png())
    row = {"image": "a.png", "sent": "the dog", "bbox": [1.5, 2, 3, 4], "height": 12, "width": 20}
    (tmp_path / "r.jsonl").write_text(json.dumps(row) + "\n\n")
    sample = read_samples(tmp_path / "r.jsonl")[0]
    assert sample.question == "the dog"
    assert sample.answers == ("[1.5, 2, 3, 4]",)
    assert sample.images[0].name == "a.png"
    assert sample.fields == {"height": 12, "width": 20}


def test_json_of_mvbench(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"")
    row = {"video": "clip.mp4", "question": "Q", "candidates": ["up", "down"], "answer": "down"}
    (tmp_path / "m.json").write_text(json.dumps([row]))
    sample = read_samples(tmp_path / "m.json")[0]
    assert dict(sample.choices) == {"A": "up", "B": "down"}
    assert sample.answers == ("B",)
    assert sample.video == tmp_path / "clip.mp4"
    row["video"] = "absent.mp4"
    (tmp_path / "m.json").write_text(json.dumps([row]))
    with pytest.raises(ValueError, match=r"row 1: there is no video 'absent.mp4'"):
        read_samples(tmp_path / "m.json")


def test_parquet_of_mmmu(tmp_path):
    import pandas as pd

    row = {
        "id": "validation_Art_1",
        "question": "What is <image 1>?",
        "options": "['(A) red', 'it''s \"blue\"']".replace("''", "\\'"),
        "answer": "A",
        "image_1": {"bytes": png(), "path": "1.png"},
        "image_2": None,
        "subfield": "Drawing",
    }
    pd.DataFrame([row]).to_parquet(tmp_path / "m.parquet")
    sample = read_samples(tmp_path / "m.parquet")[0]
    assert sample.images == (png(),)
    assert dict(sample.choices) == {"A": "red", "B": 'it\'s "blue"'}
    assert sample.fields["subfield"] == "Drawing"


def test_options_of_mmiu_are_lines():
    sample = to_sample({"question": "Q", "options": "A: red\nB: blue", "answer": "B"}, 0)
    assert dict(sample.choices) == {"A": "red", "B": "blue"}


def test_image_path_stays_a_field():
    sample = to_sample({"question": "Q", "image": coded(), "image_path": "OCR/1.jpg"}, 3)
    assert (sample.id, sample.fields["image_path"]) == ("3", "OCR/1.jpg")


def test_a_local_data_set(tmp_path):
    import datasets

    rows = datasets.Dataset.from_dict({"question": ["Q"], "answer": ["A"]})
    rows.to_parquet(str(tmp_path / "d.parquet"))
    assert read_samples(tmp_path / "d.parquet")[0].answers == ("A",)


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([{"index": 0, "question": "Q"}, {"index": 0, "question": "R"}], "row 2: the id '0' comes"),
        ([{"index": 0, "answer": "A"}], "row 1: no question; looked for question"),
        ([{"index": 0, "question": "Q", "image": "!" * 80}], "row 1: an image is no base64"),
    ],
)
def test_faults_name_the_row(tmp_path, rows, complaint):
    with pytest.raises(ValueError, match=complaint):
        read_samples(table(tmp_path / "a.tsv", rows))


def test_absent_files_and_data_sets(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*\.tsv"):
        read_samples(tmp_path / "absent.tsv")
    with pytest.raises(ValueError, match="name the split"):
        read_samples(Source("owner/name"))
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match="no benchmark file"):
        read_samples(tmp_path / "a.txt")
    (tmp_path / "a.jsonl").write_text('{"question": "Q"}\n{')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        read_samples(tmp_path / "a.jsonl")


def test_fingerprint_sees_texts_and_pictures():
    def one(**changed):
        return to_sample({"question": "Q", "image": coded(), "answer": "A", **changed}, 0)

    base = fingerprint([one()])
    assert fingerprint([one()]) == base
    assert len({base, *(fingerprint([one(**c)]) for c in (
        {"question": "R"}, {"answer": "B"}, {"image": coded("blue")}, {"A": "x"},
        {"hint": "a column that prompts read"},
    ))}) == 6  # fmt: skip


def test_rows_can_be_chosen_by_a_column(tmp_path):
    rows = [{"index": k, "question": "Q", "split": "dev" if k % 2 else "val"} for k in range(5)]
    path = str(table(tmp_path / "a.tsv", rows))
    assert [each.id for each in read_samples(Source(path, where={"split": "dev"}))] == ["1", "3"]
    assert len(read_samples(Source(path, where={"split": "val"}), limit=2)) == 2
    with pytest.raises(ValueError, match=r"no rows with \{'split': 'test'\}"):
        read_samples(Source(path, where={"split": "test"}))
    named = read_samples(Source(path, name="vision"))[0]
    assert named.fields["setting"] == "vision"


def test_limit(tmp_path):
    rows = [{"index": k, "question": "Q"} for k in range(5)]
    assert len(read_samples(table(tmp_path / "a.tsv", rows), limit=2)) == 2


def test_lines_end_where_json_lines_end(tmp_path):
    odd = "one\u2028two\u0085three"
    rows = [{"question": odd, "answer": "A"}, {"question": "Q"}]
    text = "\n".join(json.dumps(each, ensure_ascii=False) for each in rows)
    (tmp_path / "a.jsonl").write_text(text, "utf-8-sig")  # with a byte order mark, as of Windows
    assert [each.question for each in read_samples(tmp_path / "a.jsonl")] == [odd, "Q"]
    said = row(odd, answers=[odd])
    (tmp_path / "predictions.jsonl").write_text("".join(lines([said])), "utf-8")
    (again,) = read_predictions(tmp_path / "predictions.jsonl")
    assert again == said


def test_options_may_have_small_letters():
    sample = to_sample({"question": "Q", "options": {"a": "x", "b": "y"}, "answer": "b"}, 0)
    assert (dict(sample.choices), sample.answers) == ({"A": "x", "B": "y"}, ("B",))


def test_a_question_under_another_name_is_not_asked_as_an_empty_one():
    sample = to_sample({"Question": "Q", "image": coded(), "answer": "red"}, 7)
    with pytest.raises(ValueError, match=r"sample 7 has no question.*'Question'"):
        text_of(sample, "short")
    assert "exact" not in text_of(Sample("0", "", choices={"A": "x"}), "mmmu_pro")
