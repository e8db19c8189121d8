"""Drawn scenes, questions and the tokenizer of the demo task."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from internvl import hub
from internvl.training.demo import evaluate, naming, phrasings, questions, reading, scenes
from internvl.training.demo import tokenizer as tokenizer_module
from internvl.training.demo.dialogues import clip
from internvl.training.demo.drawings import Chart
from internvl.training.demo.questions import ShapeFacts
from internvl.training.demo.scenes import Item, Scene
from tests.training import demo_material

DEMO = hub.REPOSITORY / "demo"
WHITE = (255, 255, 255)


@pytest.fixture(scope="module")
def cases():
    return list(evaluate.cases(12, demo_material.held()))


def picture(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return scenes.draw_scene(scenes.shape_scene(rng), rng)


def test_a_scene_is_a_function_of_its_seed():
    assert picture(4).tobytes() == picture(4).tobytes()
    assert picture(4).tobytes() != picture(5).tobytes()


@pytest.mark.parametrize("shape", scenes.SHAPES)
@pytest.mark.parametrize("colour", ["red", "blue", "black"])
def test_an_object_is_drawn_where_and_in_the_colour_the_scene_says(shape, colour):
    rgb = scenes.ANCHORS[colour][0]
    item = Item(0.3, 0.7, 0.4, rgb, shape=shape, colour=colour)
    image = scenes.draw_scene(Scene((item,), WHITE, 200, 200), np.random.default_rng(0))
    pixels = np.asarray(image)
    inside = (pixels == rgb).all(-1)
    ys, xs = np.nonzero(inside)
    assert image.getpixel((60, 140)) == rgb
    assert abs((xs.min() + xs.max()) / 2 - 60) < 4
    assert abs((ys.min() + ys.max()) / 2 - 140) < 7
    assert 0.2 * 80 * 80 < inside.sum() < 80 * 80
    assert (pixels[~inside] == WHITE).all()


def test_objects_stay_inside_and_apart():
    rng = np.random.default_rng(2)
    for _ in range(200):
        scene = scenes.shape_scene(rng)
        for a in scene.items:
            assert a.size / 2 < a.x < 1 - a.size / 2
            assert a.size / 2 < a.y < 1 - a.size / 2
            for b in scene.items:
                apart = np.hypot(a.x - b.x, a.y - b.y)
                assert a is b or apart > (a.size + b.size) / 2


# ---------------------------------------------------------------- questions: checked by a second
# reading
def named(scene: Scene, text: str) -> list[Item]:
    """Items that the words of ``text`` fit; the words are read back from the question."""
    words = text.replace("grey", "gray").lower().split()
    shapes = [s for s in scenes.SHAPES if s in words or questions.plural(s) in words]
    colours = [c for c in scenes.COLOURS if c in words]
    return [
        item
        for item in scene.items
        if (not shapes or item.shape in shapes) and (not colours or item.colour in colours)
    ]


def clean(question: str) -> str:
    question = question.split("\n")[0].removeprefix("Please answer: ")
    return question.rstrip("?.").replace(",", "")


def test_attributes_counts_and_existence_agree_with_the_scene():
    rng = np.random.default_rng(8)
    seen = dict.fromkeys(("colour_of", "shape_of", "exist", "count", "count_sub"), 0)
    for _ in range(1500):
        scene = scenes.shape_scene(rng)
        qa = questions.about_shapes(rng, scene)
        if qa.task not in seen:
            continue
        seen[qa.task] += 1
        fits = named(scene, clean(qa.question))
        if qa.task == "colour_of":
            assert [item.colour for item in fits] == [qa.answer]
        elif qa.task == "shape_of":
            assert [item.shape for item in fits] == [qa.answer]
        elif qa.task == "exist":
            assert qa.answer == ("yes" if fits else "no")
        elif qa.task == "count":
            assert qa.answer == str(len(scene.items))
        else:
            assert qa.answer == str(len(fits))
    assert min(seen.values()) > 60


def test_yes_and_no_and_counts_are_balanced():
    rng = np.random.default_rng(9)
    replies = {"exist": [], "relation_yn": [], "count": []}
    while min(map(len, replies.values())) < 150:
        qa = questions.about_shapes(rng, scenes.shape_scene(rng))
        if qa.task in replies:
            replies[qa.task].append(qa.answer)
    for task in ("exist", "relation_yn"):
        share = replies[task].count("yes") / len(replies[task])
        assert 0.4 < share < 0.6
    assert set(replies["count"]) == set("123456")


def test_position_and_relation_agree_with_the_scene():
    items = (
        Item(0.2, 0.2, 0.2, (255, 0, 0), shape="circle", colour="red"),
        Item(0.8, 0.25, 0.2, (0, 0, 255), shape="star", colour="blue"),
        Item(0.75, 0.8, 0.2, (0, 128, 0), shape="cross", colour="green"),
    )
    facts = ShapeFacts(Scene(items, WHITE, 200, 200))
    assert [questions.quadrant(i) for i in items] == ["top left", "top right", "bottom right"]
    assert questions.direction(items[0], items[1]) == "left"
    assert questions.direction(items[1], items[0]) == "right"
    assert questions.direction(items[2], items[1]) == "below"
    assert questions.direction(items[0], items[2]) is None  # on the diagonal
    rng = np.random.default_rng(0)
    asked = [questions.SHAPE_BY_TASK["relation_yn"](rng, facts) for _ in range(40)]
    for qa in asked:
        text = clean(qa.question).lower()
        word = next(w for w in ("left", "right", "above", "over", "below", "under") if w in text)
        first, second = text.split(f" {word} ", 1)
        a, b = (named(Scene(items, WHITE, 1, 1), part) for part in (first, second))
        truth = questions.direction(a[0], b[0])
        meant = {"over": "above", "under": "below"}.get(word, word)
        assert qa.answer == ("yes" if truth == meant else "no")


def test_clips_move_the_way_they_say():
    rng = np.random.default_rng(3)
    for _ in range(100):
        frames, moves = clip(rng)
        dx = frames[-1].items[0].x - frames[0].items[0].x
        dy = frames[-1].items[0].y - frames[0].items[0].y
        truth = ("left" if dx < 0 else "right") if abs(dx) > abs(dy) else "up" if dy < 0 else "down"
        assert truth == moves


def test_every_task_has_several_phrasings_and_the_cases_use_them(cases):
    few = {task for task, said in phrasings.PHRASINGS.items() if len(said) < 3}
    assert few == {"box"}  # one wording, as the published models were trained with
    asked: dict[str, set[str]] = {}
    for case in cases:
        asked.setdefault(case.task, set()).add(case.dialogue.turns[-1].question)
    assert min(map(len, asked.values())) >= 4


def test_readings_agree_with_what_is_written():
    rng = np.random.default_rng(6)
    places = {name: k for k, name in enumerate(questions.ORDINALS)} | {"last": -1}
    seen = set()
    for _ in range(400):
        number, word = "472", "HOUSE"
        for text, qa in (
            (number, reading.about_number(rng, number)), (word, reading.about_text(rng, word))
        ):  # fmt: skip
            seen.add(qa.task)
            asked = clean(qa.question)
            if qa.task in ("number", "word"):
                assert qa.answer == text
            elif qa.task in ("digit_at", "letter_at"):
                (place,) = (k for name, k in places.items() if f" {name}" in asked.lower())
                assert qa.answer == text[place]
            elif qa.task in ("digit_count", "letter_count"):
                assert qa.answer == str(len(text))
            elif qa.task == "digit_exist":
                assert qa.answer == (
                    "yes" if asked.split("digit ")[-1].split("a ")[-1][0] in text else "no"
                )
    assert seen >= {"number", "word", "digit_at", "letter_at", "letter_exist", "describe"}


def test_chart_answers_agree_with_the_bars():
    chart = Chart(("red", "blue", "green", "pink"), (4, 9, 1, 4))
    rng = np.random.default_rng(6)
    assert reading.about_chart(rng, chart, "highest").answer == "blue"
    assert reading.about_chart(rng, chart, "lowest").answer == "green"
    assert reading.about_chart(rng, chart, "bars").answer == "4"
    values = dict(zip(chart.colours, map(str, chart.values), strict=True))
    for _ in range(40):
        qa = reading.about_chart(rng, chart, "value")
        (colour,) = (c for c in values if c in clean(qa.question).lower().split())
        assert qa.answer == values[colour]
        qa = reading.about_chart(rng, chart, "higher")
        asked = clean(qa.question).lower().split()
        first, second = sorted((c for c in values if c in asked), key=asked.index)
        assert qa.answer == ("yes" if int(values[first]) > int(values[second]) else "no")


def test_named_pictures_are_asked_by_their_names():
    rng = np.random.default_rng(6)
    found = next(p for p in demo_material.icons()["emoji"] if p.name == "apple")
    replies = [naming.about_picture(rng, found) for _ in range(200)]
    assert {qa.answer for qa in replies if qa.task == "emoji"} == {"apple"}
    for qa in replies:
        if qa.task == "emoji_is":
            assert qa.answer == ("yes" if "an apple" in qa.question.lower() else "no")


def test_which_image_names_the_only_one_that_fits():
    rng = np.random.default_rng(5)
    for _ in range(60):
        both = [scenes.shape_scene(rng), scenes.shape_scene(rng)]
        qa = questions.PAIR_BY_TASK["which"](rng, tuple(map(ShapeFacts, both)))
        if qa is None:
            continue
        text = clean(qa.question).split(" in Image-1")[0].split(" in image-1")[0]
        fits = [bool(named(scene, text)) for scene in both]
        assert fits == [qa.answer == "Image-1", qa.answer == "Image-2"]


# ---------------------------------------------------------------- tokenizer
def test_the_shipped_tokenizer_has_the_published_tokens_in_order():
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    ids = [loaded.token_to_id(token) for token in tokenizer_module.SPECIAL_TOKENS]
    assert loaded.get_vocab_size() == tokenizer_module.VOCABULARY
    assert ids == list(range(loaded.get_vocab_size() - len(ids), loaded.get_vocab_size()))


@pytest.mark.parametrize("fast", [True, False])
def test_the_tokenizer_loads_as_transformers_own_and_loses_nothing(fast, cases):
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    raw = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    loaded = AutoTokenizer.from_pretrained(DEMO, use_fast=fast)
    texts = [
        said for case in cases[::3] for said in (case.question(0), case.dialogue.turns[0].answer)
    ]
    texts += ["naïve 你好 🙂", "  two  spaces\n\n and\ttabs ", "It's 12.5%", ""]
    texts += ["<|im_start|>user\n<img><IMG_CONTEXT></img>\nHi<|im_end|>\n"]
    for text in texts:
        ids = loaded(text)["input_ids"]
        assert ids == raw.encode(text, add_special_tokens=False).ids
        assert loaded.decode(ids) == text
    assert loaded.eos_token == "<|im_end|>"
    assert loaded.pad_token == "<|endoftext|>"
    plain = loaded("a <box> b", split_special_tokens=True)["input_ids"]
    assert loaded.convert_tokens_to_ids("<box>") not in plain


def test_words_of_the_task_are_single_tokens():
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    words = [*scenes.SHAPES, *scenes.COLOURS, *map(questions.plural, scenes.SHAPES)]
    words += ["left", "right", "above", "below", "up", "down"]
    for text in [
        *words,
        *(f" {word}" for word in [*words, "object", "objects", "image", "shapes"]),
    ]:
        assert len(loaded.encode(text).ids) == 1, text


def test_the_tokenizer_is_reproducible():
    built = tokenizer_module.build()
    assert built.to_str(pretty=True) == (DEMO / "tokenizer.json").read_text("utf-8")
