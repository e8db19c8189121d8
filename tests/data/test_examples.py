"""Samples as examples: the tiles and ids are those of the processor, the randomness is given."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from internvl import hub
from internvl.data.augment import random_jpeg
from internvl.data.examples import ExampleMaker, ExampleOptions, cut, image_spans
from internvl.data.mixture import DatasetSpec
from internvl.data.packing import Limits, select
from internvl.data.schema import DataError, parse_row
from tests.data.files import picture, turns

SPEC = DatasetSpec("d", "", "d.jsonl", max_dynamic_patch=6)


@pytest.fixture(scope="module")
def prepared():
    return hub.prepare()


@pytest.fixture(scope="module")
def maker(prepared):
    return ExampleMaker(prepared)


def rng(seed=0):
    return np.random.default_rng(seed)


def made(maker, row, spec=SPEC, seed=0, root=None):
    return maker.make(parse_row(row, root=root), spec, rng(seed))


def processed(prepared, messages, **options):
    return prepared.processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="np", max_tiles=6, **options
    )


# ---------------------------------------------------------------------- same as inference
@pytest.mark.parametrize("images", [0, 1, 2, 3], ids=lambda n: f"images{n}")
def test_messages_give_the_ids_and_tiles_of_the_processor(images, prepared, maker, tmp_path):
    paths = [
        str(tmp_path / picture(tmp_path / f"{k}.png", 250 + 40 * k, 130, seed=k))
        for k in range(images)
    ]
    content = [{"type": "image", "image": path} for path in paths]
    content.append({"type": "text", "text": "What do you see?"})
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": "Noise."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes."},
    ]
    example = made(maker, {"messages": messages})
    budget = {"total_tiles": 6} if images else {}
    expected = processed(prepared, messages, do_normalize=False, **budget)
    assert example.input_ids.tolist() == expected["input_ids"][0].tolist()
    if images:
        assert (example.tiles.transpose(0, 3, 1, 2) == expected["pixel_values"]).all()
    decoded = prepared.tokenizer.decode(example.input_ids[example.response >= 0].tolist())
    assert decoded == "Noise.<|im_end|>Yes.<|im_end|>"


def test_the_official_format_gives_the_prompt_of_chat(prepared, maker, tmp_path):
    """Two images named in the question, as the training data of the report has them."""
    for name in "ab":
        picture(tmp_path / f"{name}.png", seed=ord(name))
    question = "Image-1: <image>\nImage-2: <image>\nWhich is red?"
    row = {"image": ["a.png", "b.png"], "conversations": turns(question, "Image-1")}
    example = made(maker, row, root=tmp_path)
    conversation = hub.ring0("conversation")
    content = conversation.place_visuals(question, iter([1, 1]))
    template = conversation.get_conv_template("internvl2_5")
    pieces = conversation.render(
        template, [(template.roles[0], content), (template.roles[1], None)], 16
    )
    prompt = conversation.encode(pieces, prepared.tokenizer)
    assert example.input_ids[: len(prompt)].tolist() == prompt
    assert (example.response[: len(prompt)] == -1).all()
    assert example.response[len(prompt)] == 0


def test_frames_are_named_as_at_inference(prepared, tmp_path):
    frames = [str(tmp_path / picture(tmp_path / f"{k}.png", seed=k)) for k in range(4)]
    row = {"video": [frames], "conversations": turns("<video>\nWhere to?", "left")}
    spec = replace(SPEC, min_frames=4, max_frames=4)
    example = made(ExampleMaker(prepared), row, spec)
    messages = [
        {
            "role": "user",
            "content": [{"type": "video", "video": frames}, {"type": "text", "text": "Where to?"}],
        },
        {"role": "assistant", "content": "left"},
    ]
    expected = processed(prepared, messages, do_normalize=False)
    assert example.input_ids.tolist() == expected["input_ids"][0].tolist()
    assert (example.tiles.transpose(0, 3, 1, 2) == expected["pixel_values"]).all()


# ---------------------------------------------------------------------- dynamic resolution
@pytest.mark.parametrize(
    ("images", "expected"), [(1, 7), (2, 4), (3, 3), (6, 1)], ids=lambda n: str(n)
)
def test_images_share_the_tiles_of_the_dataset(images, expected, maker, tmp_path):
    """Equation 4: each of N images has up to n_max / N tiles; thumbnails come on top."""
    name = picture(tmp_path / "wide.png", 112 * 6, 112)
    tags = "<image>" * images
    row = {"image": [name] * images, "conversations": turns(f"{tags}What?", "Noise")}
    example = made(maker, row, root=tmp_path)
    assert example.num_tiles == images * expected


def test_a_dataset_without_a_limit_takes_the_checkpoints(prepared, maker, tmp_path):
    name = picture(tmp_path / "wide.png", 112 * 6, 112)
    row = {"image": name, "conversations": turns("What?", "Noise")}
    spec = replace(SPEC, max_dynamic_patch=None)
    own = prepared.processor.image_processor.max_tiles
    assert made(maker, row, spec, root=tmp_path).num_tiles == (own + 1 if own > 1 else 1)


# ---------------------------------------------------------------------- randomness
def test_jpeg_compression_is_drawn_for_the_image_or_for_each_tile(prepared, tmp_path):
    name = picture(tmp_path / "wide.png", 224, 112)
    row = {"image": name, "conversations": turns("What?", "Noise")}
    augmented = replace(SPEC, data_augment=True)
    plain = made(ExampleMaker(prepared), row, root=tmp_path).tiles
    image = ExampleMaker(prepared)
    assert (made(image, row, augmented, 1, tmp_path).tiles != plain).any()
    assert (
        made(image, row, augmented, 1, tmp_path).tiles
        == made(image, row, augmented, 1, tmp_path).tiles
    ).all()
    per_tile = ExampleMaker(prepared, ExampleOptions(jpeg_per="tile"))
    source = rng(1)
    tiles = [np.asarray(random_jpeg(Image.fromarray(tile), source)) for tile in plain]
    assert (made(per_tile, row, augmented, 1, tmp_path).tiles == np.stack(tiles)).all()


def test_every_jpeg_quality_from_75_to_100_is_drawn():
    tables = set()
    image = Image.fromarray(rng().integers(0, 256, (16, 16, 3), dtype=np.uint8))
    expected = {np.asarray(_compressed(image, q)).tobytes() for q in range(75, 101)}
    source = rng(3)
    for _ in range(600):
        tables.add(np.asarray(random_jpeg(image, source)).tobytes())
    assert tables == expected


def _compressed(image, quality):
    import io

    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


def test_video_frames_are_drawn_once_each_and_never_compressed(prepared, tmp_path):
    frames = [str(tmp_path / picture(tmp_path / f"{k}.png", seed=k)) for k in range(20)]
    row = {"video": [frames], "conversations": turns("<video>\nWhere to?", "left")}
    spec = replace(SPEC, data_augment=True)
    maker = ExampleMaker(prepared, ExampleOptions(min_frames=2, max_frames=32))
    originals = {
        np.asarray(Image.open(frame).convert("RGB")).tobytes(): k for k, frame in enumerate(frames)
    }
    counts = set()
    for seed in range(40):
        example = made(maker, row, spec, seed)
        order = [originals[tile.tobytes()] for tile in example.tiles]
        assert order == sorted(set(order))
        counts.add(len(order))
    assert len(counts) > 4
    assert min(counts) >= 2
    assert max(counts) <= 20


# ---------------------------------------------------------------------- sizes, errors, cutting
def test_sizes_are_found_without_pixels(maker, tmp_path):
    names = [picture(tmp_path / f"{k}.png", 112 * k, 112) for k in (1, 2, 5)]
    rows = [
        {"image": names[2], "conversations": turns("What?", "Noise")},
        {"image": names, "conversations": turns("<image><image><image>?", "Noise", "So?", "No")},
        {"conversations": turns("Hi", "Hello")},
        {
            "video": [[str(tmp_path / name) for name in names]],
            "conversations": turns("<video>\nWhat?", "Noise"),
        },
    ]
    for row in rows:
        sample = parse_row(row, root=tmp_path)
        size, example = maker.measure(sample, SPEC, rng()), maker.make(sample, SPEC, rng())
        assert (size.tokens, size.tiles) == (example.tokens, example.num_tiles)
        assert size.supervised == example.supervised


@pytest.mark.parametrize("measured", [False, True], ids=["make", "measure"])
def test_media_that_cannot_be_read_are_named(measured, maker, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG but no more")
    look = maker.measure if measured else maker.make
    for name, reason in (("absent.png", "missing_file"), ("broken.png", "bad_image")):
        sample = parse_row({"image": name, "conversations": turns("?", "!")}, root=tmp_path)
        with pytest.raises(DataError, match=name) as caught:
            look(sample, SPEC, rng())
        assert caught.value.reason == reason


def test_a_long_sample_is_cut_between_images(maker, tmp_path):
    names = [picture(tmp_path / f"{k}.png", seed=k) for k in range(4)]
    said = [text for k in range(4) for text in (f"<image>\nWhat is {k}?", "noise " * 8)]
    example = made(maker, {"image": names, "conversations": turns(*said)}, root=tmp_path)
    spans = image_spans(example, maker.context_id, 16)
    assert [span.tiles for span in spans] == [1, 1, 1, 1]
    parts = cut(example, select(example.tokens, spans, Limits(example.tokens // 2, 3)))
    assert len(parts) > 1
    assert np.concatenate([part.input_ids for part in parts]).tolist() == example.input_ids.tolist()
    assert (np.concatenate([part.tiles for part in parts]) == example.tiles).all()
    for part in parts:
        assert (part.input_ids == maker.context_id).sum() == 16 * part.num_tiles
