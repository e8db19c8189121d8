"""pixel_values equal to those of the official code to the bit; options of the image processor."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPImageProcessor

from tests import support
from tests.preprocessor import helpers
from tests.preprocessor.helpers import image_processing, image_processor, picture, sha256

CASES = helpers.golden_tiles()
# Every second RGB image of less than 1.3 megapixels and one of every other mode; the slow test
# has them all.
MODES = [case for case in CASES if not case["name"].startswith("rgb_")]
PLAIN = [case for case in CASES if case not in MODES]
PLAIN = [case for case in PLAIN[::2] if helpers.golden_pixels(case["index"]) < 1_300_000]
FAST = PLAIN + MODES


@pytest.fixture(scope="module")
def full_size():
    return image_processing.InternVLChatImageProcessor()


def check_run(processor, image, run):
    limit, thumbnail, _, count, _, expected = run
    made = processor(image, max_tiles=limit, use_thumbnail=thumbnail)
    assert made["num_tiles"] == [count]
    assert made["pixel_values"].dtype == np.float32
    assert sha256(made["pixel_values"]) == expected


@pytest.mark.parametrize("case", FAST, ids=[case["name"] for case in FAST])
def test_tiles_equal_the_official_ones(case, full_size):
    image = helpers.golden_image(case["index"])
    assert sha256(np.frombuffer(image.tobytes(), np.uint8)) == case["source"]
    rgb = helpers.image_sources.load_rgb(image, helpers.image_sources.SourcePolicy())
    assert sha256(np.asarray(rgb)) == case["rgb"]
    for limit, thumbnail, (cols, rows), count, *_ in case["runs"]:
        options = {"max_tiles": limit, "use_thumbnail": thumbnail}
        grid = full_size.select_grid(image.height, image.width, **options)
        assert (grid.cols, grid.rows) == (cols, rows)
        assert full_size.count_tiles(image.height, image.width, **options) == count
    # One run with all pixels; the others are in the slow test below.
    run = next(run for run in case["runs"] if run[:2] == [6, True])
    check_run(full_size, image, run)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_all_tiles_equal_the_official_ones(case, full_size):
    image = helpers.golden_image(case["index"])
    for run in case["runs"]:
        check_run(full_size, image, run)
        options = {"max_tiles": run[0], "use_thumbnail": run[1], "do_normalize": False}
        raw = full_size(image, **options)["pixel_values"]
        assert raw.dtype == np.uint8
        assert sha256(raw.transpose(0, 2, 3, 1)) == run[4]


@pytest.mark.parametrize("case", FAST[::3], ids=[case["name"] for case in FAST[::3]])
def test_one_tile_with_and_without_padding_equals_the_official_one(case, full_size):
    image = helpers.golden_image(case["index"])
    assert sha256(full_size(image, max_tiles=1)["pixel_values"]) == case["plain"]
    padded = full_size(image, max_tiles=1, pad2square=True)["pixel_values"]
    assert sha256(padded) == case["pad2square"]


@settings(max_examples=30)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 120), st.integers(1, 120)), min_size=1, max_size=4),
    mode=st.sampled_from(
        [
            "1",
            "L",
            "LA",
            "La",
            "P",
            "PA",
            "RGB",
            "RGBA",
            "RGBa",
            "CMYK",
            "YCbCr",
            "HSV",
            "LAB",
            "I",
            "F",
            "I;16",
        ]
    ),
    limit=st.integers(1, 6),
    thumbnail=st.booleans(),
)
def test_any_size_and_mode(sizes, mode, limit, thumbnail):
    processor = image_processor(14, max_tiles=limit, use_thumbnail=thumbnail)
    images = [Image.new(mode, size) for size in sizes]
    made = processor(images, return_tensors="pt")
    expected = [processor.count_tiles(height, width) for width, height in sizes]
    assert made["num_tiles"] == expected
    assert made["pixel_values"].shape == (sum(expected), 3, 14, 14)
    assert torch.isfinite(made["pixel_values"]).all()


def test_several_images_stand_one_after_another():
    processor = image_processor()
    images = [picture(100, 40, 1), picture(40, 100, 2), picture(30, 30, 3)]
    together = processor(images)
    alone = [processor(image) for image in images]
    assert together["num_tiles"] == [each["num_tiles"][0] for each in alone]
    assert np.array_equal(
        together["pixel_values"], np.concatenate([each["pixel_values"] for each in alone])
    )


def test_limits_per_image_and_in_total():
    processor = image_processor(use_thumbnail=False)
    wide = picture(280, 28)
    assert processor([wide] * 3, max_tiles=[1, 4, 9])["num_tiles"] == [1, 4, 9]
    assert processor([wide] * 3, min_tiles=[1, 1, 10], max_tiles=12)["num_tiles"] == [10, 10, 10]
    # Equation 4: floor(12 / 5) = 2 tiles each, never less than 1, and never more than max_tiles.
    assert processor([wide] * 5, total_tiles=12)["num_tiles"] == [2] * 5
    assert processor([wide] * 20, total_tiles=12)["num_tiles"] == [1] * 20
    assert processor([wide], total_tiles=24, max_tiles=6)["num_tiles"] == [6]
    # The budget is that of a sample.
    assert processor([[wide], [wide] * 3], total_tiles=9)["num_tiles"] == [9, 3, 3, 3]
    with pytest.raises(ValueError, match="2 entries for 3 images"):
        processor([wide] * 3, max_tiles=[1, 2])
    with pytest.raises(ValueError, match="min_tiles=5 and max_tiles=2"):
        processor(wide, min_tiles=5, max_tiles=2)


def test_small_images_stay_small_without_upscaling():
    processor = image_processor(28)
    small = picture(24, 18)
    assert processor(small)["num_tiles"] == [13]
    assert processor(small, upscale=False)["num_tiles"] == [1]


def test_counting_tiles_agrees_with_making_them():
    processor = image_processor(28)
    for width, height in [(10, 10), (100, 30), (31, 200), (90, 90)]:
        for options in (
            {},
            {"max_tiles": 3},
            {"use_thumbnail": False},
            {"upscale": False},
            {"pad2square": True},
        ):
            made = processor(picture(width, height), **options)["num_tiles"]
            assert made == [processor.count_tiles(height, width, **options)]
            assert made == [
                processor.get_number_of_image_patches(height, width, {**options, "other": 1})
            ]


def test_return_types():
    processor = image_processor()
    assert isinstance(processor(picture())["pixel_values"], np.ndarray)
    assert isinstance(processor(picture(), return_tensors="np")["pixel_values"], np.ndarray)
    tensor = processor(picture(), return_tensors="pt")["pixel_values"]
    assert tensor.dtype == torch.float32
    assert np.array_equal(tensor.numpy(), processor(picture())["pixel_values"])
    raw = processor(picture(), return_tensors="pt", do_normalize=False)["pixel_values"]
    assert raw.dtype == torch.uint8
    with pytest.raises(ValueError, match="return_tensors='tf'"):
        processor(picture(), return_tensors="tf")
    assert processor([])["num_tiles"] == []


def test_options_of_a_call_do_not_stay():
    processor = image_processor()
    before = processor.to_dict()
    processor(
        picture(),
        max_tiles=2,
        upscale=False,
        exif_orientation=True,
        alpha_color=(1, 2, 3),
        pad2square=True,
    )
    assert processor.to_dict() == before


def test_alpha_is_dropped_or_blended():
    clear = Image.new("RGBA", (28, 28), (255, 0, 0, 0))
    processor = image_processor(max_tiles=1)
    dropped = processor(clear, do_normalize=False)["pixel_values"]
    assert dropped[0, :, 0, 0].tolist() == [255, 0, 0]
    blended = processor(clear, do_normalize=False, alpha_color=(10, 20, 30))["pixel_values"]
    assert blended[0, :, 0, 0].tolist() == [10, 20, 30]
    palette = Image.new("P", (28, 28), 3)
    palette.putpalette([9] * 768)
    palette.info["transparency"] = 3
    blended = processor(palette, do_normalize=False, alpha_color=(10, 20, 30))["pixel_values"]
    assert blended[0, :, 0, 0].tolist() == [10, 20, 30]


def test_exif_orientation_is_ignored_unless_asked_for():
    image = picture(60, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    file = helpers.encoded(image, "PNG", exif=exif)
    processor = image_processor(use_thumbnail=False, max_tiles=2)
    plain = processor(file, do_normalize=False)["pixel_values"]
    turned = processor(file, do_normalize=False, exif_orientation=True)["pixel_values"]
    assert np.array_equal(plain, processor(image, do_normalize=False)["pixel_values"])
    upright = image.transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(turned, processor(upright, do_normalize=False)["pixel_values"])
    assert not np.array_equal(plain, turned)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_extreme_shapes(size):
    made = image_processor()(Image.new("RGB", size, (7, 8, 9)), do_normalize=False)
    assert made["num_tiles"] == [1 if size == (1, 1) else 13]
    assert (made["pixel_values"][:, 0] == 7).all()


def test_sixteen_bit_grey_is_clipped_as_in_the_official_code():
    grey = Image.fromarray(np.full((28, 28), 5000, np.uint16))
    assert (image_processor(max_tiles=1)(grey, do_normalize=False)["pixel_values"] == 255).all()


def test_errors_name_the_image():
    with pytest.raises(ValueError, match=r"image 2 of 2: .*not a readable image"):
        image_processor()([picture(), b"no image"])
    with pytest.raises(TypeError, match=r"unknown options \['max_tile'\]"):
        image_processor()(picture(), max_tile=3)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"size": {"height": 448, "width": 224}}, "not the side of a square"),
        ({"size": 448, "crop_size": 336}, "differs from size"),
        ({"do_resize": False}, "must be true"),
        ({"rescale_factor": 1.0}, "must be true"),
        ({"min_tiles": 7, "max_tiles": 6}, "min_tiles=7"),
        ({"max_tiles": 0}, "max_tiles=0"),
        ({"total_tiles": 0}, "total_tiles=0"),
    ],
)
def test_impossible_settings_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        image_processing.InternVLChatImageProcessor(**setting)


def test_settings_survive_a_file(tmp_path):
    processor = image_processor(
        56, max_tiles=5, total_tiles=9, alpha_color=(1, 2, 3), upscale=False, min_tiles=2
    )
    processor.save_pretrained(tmp_path)
    again = image_processing.InternVLChatImageProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict()
    other = image_processing.InternVLChatImageProcessor.from_pretrained(tmp_path, max_tiles=3)
    assert (other.max_tiles, other.total_tiles) == (3, 9)


def test_published_files_are_read(tmp_path):
    published = {
        "crop_size": 448,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
        "size": 448,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(published))
    processor = image_processing.InternVLChatImageProcessor.from_pretrained(tmp_path)
    assert processor.tile_size == 448
    assert processor.to_dict() == image_processing.InternVLChatImageProcessor().to_dict()


def test_a_file_cannot_allow_urls(tmp_path):
    processor = image_processor()
    processor.save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "allow_urls": True}))
    assert not image_processing.InternVLChatImageProcessor.from_pretrained(tmp_path).allow_urls


def test_the_file_of_the_repository(tmp_path):
    file = support.ROOT / "preprocessor_config.json"
    content = json.loads(file.read_text())
    place = content.pop("auto_map")["AutoImageProcessor"]
    assert place == "preprocessor/image_processing_internvl_chat.InternVLChatImageProcessor"
    assert content == image_processing.InternVLChatImageProcessor().to_dict()
    # LMDeploy reads it as CLIP's: the same size and normalisation must come out.
    (tmp_path / file.name).write_text(json.dumps(content))
    try:
        clip = CLIPImageProcessor.from_pretrained(tmp_path)
    except ImportError:  # transformers 5 without torchvision
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        clip = CLIPImageProcessorPil.from_pretrained(tmp_path)
    image = picture(448, 448)
    assert np.allclose(
        np.asarray(clip(image)["pixel_values"][0]),
        image_processing.InternVLChatImageProcessor()(image)["pixel_values"][0],
        atol=1e-5,
    )
