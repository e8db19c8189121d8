"""What a visitor sees, without a browser: messages, figures, pictures, examples."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from internvl.answers import Vote
from internvl.app import figures
from internvl.app.examples import load_examples
from internvl.app.messages import exchange_of, messages, readable
from internvl.app.options import Options
from internvl.app.pictures import colours, heat, media_sheets, save_boxes, tile_sheet
from internvl.app.visitor import Exchange
from internvl.chat.accounting import Account
from internvl.chat.attention_map import Cells, Word, WordAttention, token_of_patch
from internvl.chat.media import Limits, read_image, read_video
from internvl.chat.sampling import Voted
from internvl.chat.session import Reply
from internvl.grounding import Box
from tests.app.conftest import EXAMPLES

REPLY = Reply("", "length", "", 1, 0, (1,), 0, 0)


def exchange(question="What?", answer="", **changes) -> Exchange:
    state = "done" if answer else "waiting"
    made = Exchange(question, (), (), Options(max_new_tokens=7), answer, state)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def pictures(html: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/webp;base64,([^"]+)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


@pytest.fixture(scope="module")
def wide(loaded):
    image = Image.open(EXAMPLES / "six.jpg").resize((900, 300))
    return replace(read_image(loaded.processor, image), label='<b>"wide".jpg')


# ---------------------------------------------------------------------- messages
def test_messages_of_a_dialogue_and_back():
    talk = [
        exchange("One?", "1", files=(Path("a.png"), Path("b.mp4"))),
        exchange("Two?", "2", finish="length", reply=REPLY),
        exchange("Three?"),
    ]
    found = messages(talk)
    roles = [message["role"] for message in found]
    assert roles == ["user", "user", "assistant", "user", "assistant", "user"]
    assert [part["alt_text"] for part in found[0]["content"]] == ["Image a.png", "Video b.mp4"]
    assert found[1]["content"] == "One?"
    assert found[4]["content"] == ["2", "*Cut off after 7 tokens, the longest answer allowed in "
                                        "the settings.*"]  # fmt: skip
    assert [exchange_of(talk, index) for index in range(6)] == [0, 0, 0, 1, 1, 2]
    with pytest.raises(IndexError, match="the chat has 6"):
        exchange_of(talk, 6)


def test_tags_become_readable():
    answer = "<ref>purple cross</ref><box>[[60, 100, 300, 340]]</box>"
    assert readable(answer) == "**purple cross** `[[60, 100, 300, 340]]`"
    assert readable(f"{answer} and {answer}.").count("`") == 4


def test_reasoning_is_folded_and_its_answer_shown():
    text = "There are two rows of three.\nAnswer: \\boxed{6}"
    cot = Options(cot=True)
    thought, final = messages([exchange("How many?", text, options=cot)])[1:]
    assert thought["metadata"] == {"title": "Reasoning", "status": "done"}
    assert final["content"] == ["**6**"]
    growing = exchange("How many?", "There are", options=cot, state="writing")
    (thought,) = messages([growing])[1:]
    assert thought["metadata"]["status"] == "pending"
    plain = messages([exchange("How many?", "6", options=cot)])[1:]
    assert [message["content"] for message in plain] == [["6"]]  # nothing to fold


def test_votes_are_counted_in_a_table():
    vote = Vote("B", {"b": 2, "a|c": 1}, 1, False)
    voted = Voted("Answer: B", "B", ["Answer: B", "B", "a|c", "?"], ["B", "B", "a|c", None], vote)
    table, final = messages([exchange("Which?", "Answer: B", voted=voted, finish="vote")])[1:]
    assert table["metadata"]["title"] == "2 of 4 votes"
    assert "| b | 2 |\n| a\\|c | 1 |\n| *without an answer* | 1 |" in table["content"]
    assert final["content"] == ["Answer: B"]
    pending = exchange("Which?", state="voting", options=Options(votes=8))
    assert messages([pending])[1]["metadata"] == {
        "title": "Sampling 8 answers",
        "status": "pending",
    }


def test_the_picture_of_boxes_stands_below_the_answer():
    boxed = exchange("Where?", "there", boxes=[Box(1, 2, 3, 4, label="dog")], drawn=Path("x.webp"))
    content = messages([boxed])[1]["content"]
    assert content == ["there", {"path": "x.webp", "alt_text": "Boxes: dog"}]


# ---------------------------------------------------------------------- figures
def test_the_meter_adds_up():
    html = figures.meter(Account(1000, 768, 500, 4096, 2), 4096)
    assert "1,500 of 4,096 tokens" in html
    widths = [float(value) for value in re.findall(r"width:([\d.]+)%", html)]
    assert sum(widths) == pytest.approx(100 * 1500 / 4096, abs=0.02)
    over = figures.meter(Account(4000, 768, 500, 4096, 2), 4096)
    assert "404 too many" in over
    assert "iv-over" in over
    assert "empty" in figures.meter(None, 4096)


def test_tiles_are_drawn_as_the_model_gets_them(wide, loaded):
    clip = read_video(loaded.processor, EXAMPLES / "moving.mp4", Limits(num_frames=3))
    html = figures.tiles([wide], [clip, wide], 16)
    assert "4 tiles = 64 tokens" in html
    assert "3 tiles = 48 tokens" in html
    assert "900 × 300 px → 1 row x 3 columns + thumbnail of 112 px" in html  # noqa: RUF001
    assert "3 frames of 112 px" in html
    assert html.count("<figure") == 2  # the waiting one is not shown twice
    assert "&lt;b&gt;&quot;wide&quot;.jpg" in html
    assert '<b>"wide"' not in html
    sheet, thumbnail, frames = pictures(html)
    assert sheet.width / sheet.height == pytest.approx(3, rel=0.05)
    assert thumbnail.width == thumbnail.height
    assert frames.width / frames.height == pytest.approx(3, rel=0.05)
    assert "iv-note" in figures.tiles([], [], 16)


def test_a_sheet_has_the_very_pixels_of_the_tiles(wide):
    sheet, thumbnail = media_sheets(wide)
    assert (sheet.rows, sheet.cols) == (1, 3)
    pixels = np.asarray(sheet.picture)
    side = wide.pixel_values.shape[-1]
    for index in range(3):
        left = index * (side + 4)
        shown = pixels[:, left : left + side]
        assert (shown[..., 3] == 255).all()
        assert (shown[..., :3] == wide.pixel_values[index].permute(1, 2, 0).numpy()).all()
    assert (pixels[:, side : side + 4, 3] == 0).all()  # the cut
    assert np.asarray(thumbnail.picture)[..., :3].shape == (side, side, 3)
    many = tile_sheet(torch.zeros(12, 3, 448, 448, dtype=torch.uint8), cols=4)
    assert max(many.picture.size) <= 1000


def test_attention_says_how_much_and_where(wide):
    weights = torch.zeros(2, 2, 4, 16)
    weights[:, :, 1, 0] = 0.4  # the first token of the second tile
    weights[:, :, 3, :] = 0.1 / 16
    seen = WordAttention(Word("<i>red", 0, 1), (wide,), weights, token_of_patch(8, 0.5, "v2"))
    html = figures.attention(seen, None, "image")
    assert "50% of the attention was on the image" in html
    assert "&lt;i&gt;red" in html
    assert "<i>red" not in html
    (picture,) = pictures(html)
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    warm = pixels[..., 0] - pixels[..., 2]
    y, x = np.unravel_index(warm.argmax(), warm.shape)
    assert (y / picture.height < 0.3, 1 / 3 < x / picture.width < 1 / 3 + 0.1) == (True, True)
    figures.attention(seen, 1, "thumbnail")


def test_a_heat_map_is_grey_where_nothing_is():
    image = Image.new("RGB", (64, 32), (200, 40, 40))
    cells = Cells(torch.zeros(4, 8), None)
    cells.tiles[0, 7] = 1
    pixels = np.asarray(heat(image, cells, "image", 1.0)).astype(int)
    assert (pixels[16:, :32].max(-1) == pixels[16:, :32].min(-1)).all()
    assert pixels[2, 62].max() - pixels[2, 62].min() > 50
    flat = np.asarray(heat(image, Cells(torch.zeros(4, 8), None), "image", 0.0)).astype(int)
    assert (flat.max(-1) == flat.min(-1)).all()


def test_colours_go_from_dark_to_light():
    ramp = colours(torch.linspace(0, 1, 32)).float()
    light = ramp @ torch.tensor([0.3, 0.59, 0.11])
    assert (light.diff() > 0).all()
    assert colours(torch.tensor([0.5])).tolist() == [[188, 55, 84]]


def test_boxes_are_saved_under_a_name_that_nobody_guesses(wide, tmp_path):
    boxes = [Box(10, 10, 200, 200, label="cross")]
    first, second = (save_boxes(tmp_path, wide, boxes) for _ in range(2))
    assert first != second
    assert len(first.parent.name) == 32
    with Image.open(first) as picture:
        assert picture.size == (900, 300)
    with pytest.raises(ValueError, match="is a video"):
        save_boxes(tmp_path, replace(wide, tiling=None), boxes)


def test_facts_about_the_model(engine):
    facts = engine.describe()
    assert facts["parameters"]["total"] == sum(p.numel() for p in engine.model.parameters())
    html = figures.model({**facts, "name": "<x>"})
    assert "&lt;x&gt;" in html
    assert "6.3 M: vision encoder 2.8 M, projector 0.3 M, language model 3.2 M" in html
    assert figures.size(8_075_000_000) == "8.1 B"
    json.dumps(facts)


# ---------------------------------------------------------------------- examples
def test_examples_are_those_of_the_repository():
    found = load_examples()
    entries = json.loads((EXAMPLES / "questions.json").read_text(encoding="utf-8"))
    asked = {entry.get("question") for entry in entries}
    assert len(found) == 6
    for example in found:
        assert example.question in asked
        assert all(file.is_file() for file in example.files)
    assert found[0].title == "Where is the purple cross? Draw a box."
    assert [len(example.files) for example in found][:2] == [1, 2]


def test_a_repository_without_examples_has_none(tmp_path):
    assert load_examples(tmp_path) == []
