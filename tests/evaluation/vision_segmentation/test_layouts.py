from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from internvl.evaluation.vision.segmentation import layouts
from tests.evaluation.vision_segmentation.small import CLASSES, write_rectangles


def save(path, values, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8), mode).save(path)


def test_ade20k(tmp_path):
    picture = np.full((4, 3, 3), 90)
    for split in ("training", "validation"):
        save(tmp_path / "images" / split / "ADE_x_1.jpg", picture)
        save(tmp_path / "annotations" / split / "ADE_x_1.png", [[0, 1, 150]] * 4)
    data = layouts.find("ade20k", tmp_path, "train")
    assert len(data.class_names) == 150
    image, mask = data.load(0)
    assert image.shape == (4, 3, 3)
    assert mask.tolist() == [[255, 0, 149]] * 4  # label 0 is not asked
    (pair,) = layouts.find("ade20k", tmp_path, "val").pairs
    assert (pair.image.parent.name, pair.mask.parent.name) == ("validation", "validation")
    names = "Idx\tRatio\tTrain\tVal\tStuff\tName\n" + "".join(
        f"{n}\t0.1\t5\t6\t1\tname{n}, other\n" for n in range(1, 151)
    )
    (tmp_path / "objectInfo150.txt").write_text(names)
    assert layouts.find("ade20k", tmp_path, "train").class_names[:2] == ("name1", "name2")
    (tmp_path / "objectInfo150.txt").write_text(names[:400])
    with pytest.raises(ValueError, match="expects 150"):
        layouts.find("ade20k", tmp_path, "train")


def test_coco_stuff(tmp_path):
    save(tmp_path / "images/train2017/000000000009.jpg", np.zeros((2, 3, 3)))
    masks = tmp_path / "annotations/train2017"
    save(masks / "000000000009.png", [[0, 10, 181]] * 2)  # the raw ids stand beside
    save(masks / "000000000009_labelTrainIds.png", [[0, 170, 255]] * 2)
    data = layouts.find("coco_stuff", tmp_path, "train")
    assert len(data.class_names) == 171
    assert data.load(0)[1].tolist() == [[0, 170, 255]] * 2  # no shift
    save(masks / "000000000009_labelTrainIds.png", [[0, 171, 255]] * 2)
    with pytest.raises(ValueError, match=r"class 171.*0 to 170"):
        data.load(0)


def test_folders(tmp_path):
    root = write_rectangles(tmp_path / "data", train=11)
    data = layouts.find("folders", str(root), "train")
    assert data.class_names == CLASSES
    assert len(data.pairs) == 11
    image, mask = data.load(3)
    assert (image.shape, mask.shape) == ((64, 80, 3), (64, 80))
    assert set(np.unique(mask)) == {0, 1, 2}
    assert [pair.image.stem for pair in data.pairs] == [pair.mask.stem for pair in data.pairs]


def test_masks_of_other_kinds(tmp_path):
    values = np.array([[0, 1], [2, 255]], np.uint8)
    for mode in ("P", "L"):
        image = Image.fromarray(values)
        if mode == "P":
            image = image.convert("P")
            image.putdata(values.ravel().tolist())
        image.save(tmp_path / "mask.png")
        assert Image.open(tmp_path / "mask.png").mode == mode
        assert layouts.read_mask(tmp_path / "mask.png").tolist() == values.tolist()
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "deep.png")
    assert layouts.read_mask(tmp_path / "deep.png").tolist() == values.tolist()
    Image.fromarray(values.astype(np.uint16) + 300).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="values up to 555"):
        layouts.read_mask(tmp_path / "deep.png")
    save(tmp_path / "colours.png", np.zeros((2, 2, 3)))
    with pytest.raises(ValueError, match="mode RGB"):
        layouts.read_mask(tmp_path / "colours.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "mask.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"broken\.png is no readable mask"):
        layouts.read_mask(tmp_path / "broken.png")


def test_label_zero():
    mask = np.array([0, 1, 2, 150, 255], np.uint8)
    assert layouts.without_zero(mask).tolist() == [255, 0, 1, 149, 255]
    assert mask[0] == 0


def test_faults_are_named(tmp_path):
    with pytest.raises(ValueError, match="ade20k, coco_stuff, folders"):
        layouts.find("voc", tmp_path, "train")
    with pytest.raises(ValueError, match="train or val"):
        layouts.find("folders", tmp_path, "test")
    with pytest.raises(FileNotFoundError, match=r"images.*--layout"):
        layouts.find("ade20k", tmp_path, "train")
    root = write_rectangles(tmp_path / "data", train=2)
    (root / "masks/train/1.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 2 images have no mask.*1\.png"):
        layouts.find("folders", root, "train")
    (root / "images/train/1.png").unlink()
    save(root / "images/train/0.jpg", np.zeros((2, 2, 3)))
    with pytest.raises(ValueError, match="same mask"):
        layouts.find("folders", root, "train")
    (root / "images/train/0.png").unlink()
    with pytest.raises(ValueError, match=r"2x2.*64x80"):  # height x width of both
        layouts.find("folders", root, "train").load(0)
    (root / "images/train/0.jpg").unlink()
    with pytest.raises(ValueError, match="holds no image"):
        layouts.find("folders", root, "train")
    (root / "classes.txt").write_text("one\n")
    with pytest.raises(ValueError, match="names 1 classes"):
        layouts.find("folders", root, "val")
    (root / "classes.txt").unlink()
    with pytest.raises(ValueError, match=r"classes\.txt is missing"):
        layouts.find("folders", root, "val")


def test_images_are_turned_as_their_exif_says(tmp_path):
    picture, exif = Image.new("RGB", (20, 10), "red"), Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert layouts.read_image(tmp_path / "turned.jpg").shape == (20, 10, 3)
