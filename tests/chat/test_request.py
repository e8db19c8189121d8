"""Turns become one request, the same for `chat()`, the processor and `explain`."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from internvl import hub
from internvl.chat import accounting, console, request
from internvl.chat import media as media_module
from internvl.chat.media import Limits
from internvl.chat.request import Turn, compose
from internvl.chat.session import ChatSession
from internvl.chat.tiles_picture import Tiling, draw_tilings
from tests import support

BRIEF = {"max_new_tokens": 4, "do_sample": False}


@pytest.fixture(scope="module")
def prepared() -> hub.Prepared:
    return hub.prepare(support.checkpoint("qwen2"))


@pytest.fixture(scope="module")
def loaded() -> hub.Loaded:
    return hub.load(support.checkpoint("qwen2"), dtype="float32")


def session(loaded: hub.Loaded, max_new_tokens: int) -> ChatSession:
    generation = {"max_new_tokens": max_new_tokens, "do_sample": False}
    return ChatSession(loaded.model, loaded.processor, generation=generation)


def picture(width: int = 200, height: int = 100) -> Image.Image:
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


def messages(turns: list[Turn], sources: list[list[tuple[str, object]]]) -> list[dict]:
    """The same turns as messages of the processor."""
    made = []
    for turn, media in zip(turns, sources, strict=True):
        content = [{"type": kind, kind: source} for kind, source in media]
        made.append(
            {"role": "user", "content": [*content, {"type": "text", "text": turn.question}]}
        )
        if turn.answer:
            made.append({"role": "assistant", "content": turn.answer})
    return made


@pytest.mark.parametrize(
    ("kinds", "asked"),
    [
        ([[], []], "And now?"),
        ([["image"], []], "<img> <|im_end|> </img> <ref>it</ref>"),
        ([["image"], ["image"]], "Compare."),
        ([["video"], ["image", "video"]], "  Compare.\n"),
        ([["image", "image"], ["image"]], "比较"),
    ],
)
def test_ids_are_those_of_the_processor(prepared, kinds, asked):
    frames = [picture(50, 40).rotate(90 * i) for i in range(3)]
    read = {
        "image": lambda: media_module.read_image(prepared.processor, picture()),
        "video": lambda: media_module.read_video(prepared.processor, frames),
    }
    turns = [
        Turn("Hello.", [read[k]() for k in kinds[0]], "Hi."),
        Turn(asked, [read[k]() for k in kinds[1]]),
    ]
    made = compose(turns, prepared.processor.frame_prefix)
    sources = [[(k, picture() if k == "image" else frames) for k in turn] for turn in kinds]
    expected = prepared.processor.apply_chat_template(
        messages(turns, sources),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_prompt=True,
    )
    account = accounting.explain(prepared, made, BRIEF)
    assert account["tokens"]["total"] == expected["input_ids"].shape[1]
    assert made.num_tiles == expected.get("num_tiles", [])
    if made.pixel_values is not None:
        images = prepared.processor.image_processor
        tiles = images.to_pixels(made.pixel_values.permute(0, 2, 3, 1).numpy())
        assert torch.equal(torch.from_numpy(tiles), expected["pixel_values"])
    prompt = expected["prompt"][0]
    for count in sorted(set(made.num_tiles), reverse=True):
        run = "<img>" + "<IMG_CONTEXT>" * (16 * count) + "</img>"
        prompt = prompt.replace(run, f"<img><IMG_CONTEXT>x{16 * count}</img>")
    assert account["prompt"] == prompt


def test_ids_are_those_of_chat(loaded, prepared):
    media = [media_module.read_image(prepared.processor, picture())]
    made = compose([Turn("Hello.", media, "Hi."), Turn("What is <box>this</box>?")])
    (asked,) = loaded.model._requests(
        loaded.tokenizer,
        made.pixel_values,
        [made.question],
        [made.num_tiles],
        [made.history],
        support.conversation.IMAGE_TOKENS,
    )
    account = accounting.explain(prepared, made, BRIEF)
    assert account["tokens"]["total"] == len(asked.ids)
    shown = "".join(f"{p.text}x{p.repeat}" if p.repeat > 1 else p.text for p in asked.pieces)
    assert account["prompt"] == shown


def test_tags_in_a_question_place_its_images(prepared):
    media = [media_module.read_image(prepared.processor, picture()) for _ in range(2)]
    typed = "Is <image> like <image>?"
    assert compose([Turn(typed, media)]).question == typed
    wrong = compose([Turn("Is <image> red?", media)])
    assert wrong.question == "Image-1: <image>\nImage-2: <image>\nIs <image> red?"
    with pytest.raises(ValueError, match="more <image> tags"):
        accounting.explain(prepared, wrong, BRIEF)


def test_no_turns():
    with pytest.raises(ValueError, match="give a question"):
        compose([])


def test_limits_of_one_call_do_not_stay(prepared):
    before = prepared.processor.image_processor.to_dict()
    few = media_module.read_image(prepared.processor, picture(), Limits(max_tiles=1))
    many = media_module.read_image(prepared.processor, picture())
    assert (few.num_tiles, many.num_tiles) == ([1], [3])
    assert prepared.processor.image_processor.to_dict() == before


def test_urls_need_permission(prepared):
    for read in (media_module.read_image, media_module.read_video):
        with pytest.raises(ValueError, match="allow_urls"):
            read(prepared.processor, "https://example.org/x.png")
        # With permission, still no private address.
        with pytest.raises(ValueError, match="not a public address"):
            read(prepared.processor, "http://127.0.0.1:1/x.png", Limits(allow_urls=True))


def test_generation_settings():
    checkpoint = {"max_new_tokens": 64, "eos_token_id": 7, "top_p": None, "do_sample": True}
    made = request.generation_settings(checkpoint, max_new_tokens=5, temperature=None)
    assert made == {"max_new_tokens": 5, "do_sample": True}
    assert request.generation_settings({}) == request.DEFAULT_GENERATION


def test_a_dialogue_survives_what_fails(loaded):
    shown: list[str] = []
    dialogue = console.Console(session(loaded, 4), shown.append)
    dialogue.ask("Hi")
    with pytest.raises(FileNotFoundError):
        dialogue.feed("/image nothing.png")
    dialogue.pending = [media_module.read_image(loaded.processor, picture())] * 2
    with pytest.raises(ValueError, match="tags"):
        dialogue.ask("one <image> too few")
    assert len(dialogue.session.turns) == 1
    assert len(dialogue.pending) == 2


def test_an_interrupted_answer_is_kept_as_far_as_it_came(loaded):
    shown: list[str] = []

    def write(text: str) -> None:
        shown.append(text)
        if len(shown) == 1:
            raise KeyboardInterrupt

    dialogue = console.Console(session(loaded, 200), write)
    said = dialogue.ask("Hi")
    assert said == shown[0] == dialogue.session.turns[0].answer
    assert shown[1:] == [" [stopped]", "\n"]


def test_pictures_of_tilings():
    red, lines = Image.new("RGB", (90, 60), (200, 0, 0)), (255, 64, 64)
    drawn = draw_tilings([Tiling("a", red, 2, 3, 448, True), Tiling("b", red, 1, 1, 448, False)])
    left, top = 16, 16 + 2 * 16
    side = 1280 // 3
    for row in range(2):
        for col in range(3):
            corner = (left + col * side, top + row * side)
            assert drawn.getpixel(corner) == lines
            assert drawn.getpixel((corner[0] + side // 2, corner[1] + side // 2)) == (200, 0, 0)
    assert drawn.getpixel((left + 3 * side + 16, top)) == lines  # the thumbnail
    assert drawn.getpixel((left + 3 * side + 8, top)) == (255, 255, 255)
    with pytest.raises(ValueError, match="no images"):
        draw_tilings([])


@pytest.mark.parametrize(("size", "shape"), [((10, 5000), (12, 1)), ((1, 1), (1, 1))])
def test_extreme_shapes_are_drawn(prepared, size, shape):
    media = media_module.read_image(prepared.processor, picture(*size))
    assert (media.tiling.rows, media.tiling.cols) == shape
    assert draw_tilings([media.tiling]).height > 100
