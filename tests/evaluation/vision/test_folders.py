"""Image folders, ImageNet's validation set, and the variants, in the layouts that they come in."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from PIL import Image

from internvl.evaluation.vision.accuracy import Accuracy, count_right, evaluate_variant, score
from internvl.evaluation.vision.encoder import Encoder, load_encoder
from internvl.evaluation.vision.folders import (
    LabelledImages,
    read_test,
    read_training,
    read_validation,
)
from internvl.evaluation.vision.heads import Head
from internvl.evaluation.vision.variants import IMAGENET_CLASSES, VARIANTS, read_variant

WNIDS = tuple(f"n{number:08d}" for number in range(1_000_000, 1_000_000 + IMAGENET_CLASSES))


def picture(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (14, 14), (value, value, value)).save(path)
    return path


def test_classes_are_the_folders_sorted(tmp_path):
    for name in ("b/1.png", "a/2.PNG", "a/1.jpeg", "c/x.JPEG"):
        picture(tmp_path / "train" / name)
    (tmp_path / "train" / "README.txt").write_text("no class")
    (tmp_path / "train" / "a" / "notes.txt").write_text("no picture")
    images, classes = read_training(tmp_path)
    assert classes == ("a", "b", "c")
    found = [(path.name, label) for path, label in zip(images.sources, images.labels, strict=True)]
    assert found == [("1.jpeg", (0,)), ("2.PNG", (0,)), ("1.png", (1,)), ("x.JPEG", (2,))]


def test_validation_is_val_else_test_and_may_lack_classes(tmp_path):
    picture(tmp_path / "test" / "b" / "1.png")
    assert read_validation(tmp_path, ("a", "b")).labels == [(1,)]
    picture(tmp_path / "val" / "a" / "1.png")
    assert read_validation(tmp_path, ("a", "b")).labels == [(0,)]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("val.txt", "ILSVRC2012_val_00000001.JPEG 2\nILSVRC2012_val_00000002.JPEG 0\n"),
        ("val.txt", "ILSVRC2012_val_00000002.JPEG a\nval/ILSVRC2012_val_00000001.JPEG c\n"),
        (
            "LOC_val_solution.csv",
            "ImageId,PredictionString\n"
            "ILSVRC2012_val_00000001,c 1 2 3 4 c 5 6 7 8 \n"
            "ILSVRC2012_val_00000002,a 1 2 3 4 \n",
        ),
    ],
)
def test_flat_validation_folder_takes_labels_from_a_file(tmp_path, file, text):
    for number in (1, 2):
        picture(tmp_path / "val" / f"ILSVRC2012_val_{number:08d}.JPEG")
    (tmp_path / file).write_text(text)
    for labels in (None, tmp_path / file):
        assert read_validation(tmp_path, ("a", "b", "c"), labels).labels == [(2,), (0,)]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "neither val.txt nor LOC_val_solution.csv"),
        ("1.png 3\n", "line 1: .* no picture with one of the 3 classes"),
        ("490\n", "development kit"),
        ("2.png 1\n", "no label for 1.png"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, text, complaint):
    picture(tmp_path / "val" / "1.png")
    if text is not None:
        (tmp_path / "val.txt").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=complaint):
        read_validation(tmp_path, ("a", "b", "c"))


def test_folders_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_training(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="one per class"):
        read_training(tmp_path)
    picture(tmp_path / "train" / "inner" / "a" / "1.png")
    with pytest.raises(ValueError, match=r"Did you mean .*inner"):
        read_training(tmp_path)
    picture(tmp_path / "test" / "zebra" / "1.png")
    with pytest.raises(ValueError, match=r"not among the 2 classes .* zebra"):
        read_test(tmp_path / "test", ("a", "b"))
    with pytest.raises(ValueError, match="1 images and 2 labels"):
        LabelledImages([1], [(0,), (1,)])


# ---------------------------------------------------------------------- variants
@pytest.mark.parametrize("name", ["imagenet-a", "imagenet-r"])
def test_variants_of_200_classes_decide_among_their_own(tmp_path, name):
    for wnid in (WNIDS[7], WNIDS[3], WNIDS[900]):
        picture(tmp_path / wnid / "1.jpg")
    (tmp_path / "README.txt").write_text("as the archive has it")
    images = read_variant(name, tmp_path, WNIDS)
    assert images.labels == [(3,), (7,), (900,)]
    assert images.among == (3, 7, 900)


def test_sketch_decides_among_all(tmp_path):
    picture(tmp_path / WNIDS[5] / "sketch_1.JPEG")
    images = read_variant("imagenet-sketch", tmp_path, WNIDS)
    assert (images.labels, images.among) == ([(5,)], None)


def test_v2_has_indices_for_names(tmp_path):
    for index in (10, 9, 999):
        picture(tmp_path / str(index) / "a.jpeg")
    images = read_variant("imagenet-v2", tmp_path, WNIDS)
    assert sorted(images.labels) == [(9,), (10,), (999,)]
    for path, (label,) in zip(images.sources, images.labels, strict=True):
        assert path.parent.name == str(label)


@pytest.mark.parametrize("layout", ["", f"{WNIDS[0]}/"])
def test_real_has_any_number_of_labels(tmp_path, layout):
    for number in (1, 2, 3):
        picture(tmp_path / "val" / layout / f"ILSVRC2012_val_{number:08d}.JPEG")
    (tmp_path / "real.json").write_text(json.dumps([[5, 8], [], [0]]))
    images = read_variant("imagenet-real", tmp_path / "val", WNIDS, tmp_path / "real.json")
    assert images.labels == [(5, 8), (0,)]
    assert [path.stem[-1] for path in images.sources] == ["1", "3"]


def test_a_part_of_a_variant_is_said_to_be_one(tmp_path, caplog):
    picture(tmp_path / WNIDS[5] / "1.jpg")
    with caplog.at_level(logging.WARNING):
        read_variant("imagenet-a", tmp_path, WNIDS)
    assert "1 images of 1 classes, imagenet-a has 7500 of 200" in caplog.text


def test_the_columns_are_those_of_table_14():
    columns = {"IN-ReaL", "IN-V2", "IN-A", "IN-R", "IN-Ske"}
    assert {variant.column for variant in VARIANTS.values()} == columns


@pytest.mark.parametrize(
    ("name", "folder", "classes", "complaint"),
    [
        ("imagenet-c", "n1", WNIDS, "no variant 'imagenet-c'"),
        ("imagenet-v2", "0", WNIDS[:10], "head has 10"),
        ("imagenet-real", "0", WNIDS[:10], "head has 10"),
        ("imagenet-v2", "1000", WNIDS, "not among the 1000 classes"),
        ("imagenet-a", "n99999999", WNIDS, "not among the 1000 classes"),
        ("imagenet-real", WNIDS[0], WNIDS, "needs its real.json"),
    ],
)
def test_variants_that_do_not_fit_are_refused(tmp_path, name, folder, classes, complaint):
    picture(tmp_path / folder / "1.jpg")
    with pytest.raises((ValueError, FileNotFoundError), match=complaint):
        read_variant(name, tmp_path, classes)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [([[1000]], "is not ReaL's real.json"), ({"a": 1}, "is not ReaL's"), ([[1]], "1.jpg")],
)
def test_real_labels_that_do_not_fit_are_refused(tmp_path, content, complaint):
    picture(tmp_path / "1.jpg")
    (tmp_path / "real.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=complaint):
        read_variant("imagenet-real", tmp_path, WNIDS)


# ---------------------------------------------------------------------- scores
def test_right_means_an_accepted_class_first():
    logits = torch.tensor([[0.0, 3, 2, 1, -1, -2, 9], [5, 4, 3, 2, 1, 0, -1]])
    assert count_right(logits, [(6,), (5,)]) == (1, 1)
    assert count_right(logits, [(4,), (0, 6)]) == (1, 1)
    assert count_right(logits, [(2,), (4,)]) == (0, 2)
    assert count_right(logits, [(1,), (2,)], among=(1, 2)) == (1, 2)  # class 6 is left out


def test_interval_is_that_of_wilson():
    assert Accuracy(10, 80.0, 100.0).interval == pytest.approx((49.02, 94.33), abs=0.01)
    low, high = Accuracy(50, 100.0, 100.0).interval
    assert (low, high) == pytest.approx((92.87, 100.0), abs=0.01)


@pytest.fixture(scope="module")
def small() -> Encoder:
    return load_encoder(image_size=14)


def brightness_head(encoder: Encoder, among: list[int]) -> Head:
    """A head that finds `among[0]` in black pictures, `among[1]` in white ones, and 500 first."""
    head = Head("linear", encoder.width, WNIDS, encoder.num_heads).eval()
    pixels = torch.stack([torch.full((3, 14, 14), value) for value in (-2.0, 2.0)])
    dark, light = head.inputs(encoder.features(pixels))
    axis = (light - dark) / (light - dark).norm()
    with torch.no_grad():
        head.classifier.weight.zero_()
        head.classifier.bias.fill_(-1e3)
        middle = float(axis @ (light + dark) / 2)
        for label, sign in ((among[0], -1.0), (among[1], 1.0)):
            head.classifier.weight[label] = sign * axis
            head.classifier.bias[label] = -sign * middle
        head.classifier.bias[500] = 1e3
    return head


@pytest.mark.parametrize(
    ("name", "folders"),
    [
        ("imagenet-a", [WNIDS[7], WNIDS[20]]),
        ("imagenet-sketch", [WNIDS[7], WNIDS[20]]),
        ("imagenet-v2", ["7", "20"]),
    ],
)
def test_evaluate_variant(tmp_path, small, name, folders):
    for folder, value in zip(folders, (0, 255), strict=True):
        picture(tmp_path / folder / "1.jpeg", value)
    picture(tmp_path / folders[0] / "2.jpeg", 255)  # one that it will get wrong
    head = brightness_head(small, [7, 20])
    found = evaluate_variant(head, small, name, tmp_path, batch=2)
    # The logit of 500, higher than all, counts but in the variants of 200 classes.
    assert found.n == 3
    assert found.top1 == pytest.approx(200 / 3 if name == "imagenet-a" else 0.0)
    assert found.top5 == 100.0


def test_evaluate_real(tmp_path, small):
    for number, value in enumerate((0, 255, 255), 1):
        picture(tmp_path / f"ILSVRC2012_val_{number:08d}.JPEG", value)
    (tmp_path / "real.json").write_text(json.dumps([[3, 500], [], [20]]))
    found = evaluate_variant(brightness_head(small, [7, 20]), small, "imagenet-real", tmp_path)
    assert (found.n, found.top1, found.top5) == (2, 50.0, 100.0)


def test_scoring_leaves_heads_in_their_mode():
    head = Head("linear", 4, ["a", "b"], 1).train()
    before = head.norm.running_mean.clone()
    score({"head": head}, [(torch.randn(3, 8), [(0,), (1,), (0,)])])
    assert head.training
    assert torch.equal(head.norm.running_mean, before)
