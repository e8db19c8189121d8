"""Rows of both formats become samples; what does not add up is refused by name."""

from __future__ import annotations

import pickle

import pytest

from internvl import hub
from internvl.data.schema import DataError, Media, parse_row
from tests.data.files import turns


def text_of(sample, number=0):
    """What a turn says, media as their sources in brackets."""
    parts = sample.turns[number].parts
    return "".join(part if isinstance(part, str) else f"[{part.source}]" for part in parts)


def refused(row, **options):
    with pytest.raises(DataError) as caught:
        parse_row(row, **options)
    return caught.value


# ---------------------------------------------------------------------- official format
@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"image": "a.png"}, "[a.png]\nWhat?"),
        ({"image": ["a.png"]}, "[a.png]\nWhat?"),
        ({"video": "a.mp4"}, "[a.mp4]\nWhat?"),
        ({"image": None}, "What?"),
        ({"image": ""}, "What?"),
        ({"image": []}, "What?"),
        ({}, "What?"),
    ],
    ids=["image", "list", "video", "null", "empty", "none", "text"],
)
def test_a_lone_image_or_video_comes_first_if_nobody_placed_it(row, expected):
    sample = parse_row({**row, "conversations": turns("What?", "That.")})
    assert text_of(sample) == expected
    assert text_of(sample, 1) == "That."
    assert [turn.role for turn in sample.turns] == ["user", "assistant"]


@pytest.mark.parametrize(
    "said", ["<image>\nWhat?", "What?\n<image>", "Look: <image>here", "<image>What?"]
)
@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_tag_stays_where_it_is_and_text_stays_exact(said, kind):
    said = said.replace("image", kind)
    sample = parse_row({kind: "a.x", "conversations": turns(said, " That.\n")})
    assert text_of(sample) == said.replace(f"<{kind}>", "[a.x]")
    assert text_of(sample, 1) == " That.\n"


def test_several_images_fill_the_tags_in_order_over_the_turns():
    said = ("Image-1: <image>\nImage-2: <image>\nCompare.", "Same.", "And <image>?", "Other.")
    sample = parse_row({"image": ["a", "b", "c"], "conversations": turns(*said)})
    assert text_of(sample) == "Image-1: [a]\nImage-2: [b]\nCompare."
    assert text_of(sample, 2) == "And [c]?"


def test_images_and_videos_mix():
    row = {"image": ["a", "b"], "video": "v.mp4", "clip": [1, 2.5],
           "conversations": turns("<image><video>\n<image>?", "Yes.")}  # fmt: skip
    sample = parse_row(row)
    assert text_of(sample) == "[a][v.mp4]\n[b]?"
    media = [part for part in sample.turns[0].parts if isinstance(part, Media)]
    assert [(m.kind, dict(m.options)) for m in media] == [
        ("image", {}), ("video", {"bound": (1.0, 2.5)}), ("image", {}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("images", "said", "reason"),
    [
        (["a", "b"], "What?", "too_few_tags"),
        (["a", "b"], "<image>What?", "too_few_tags"),
        (["a"], "<image><image>What?", "too_many_tags"),
        ([], "<image>What?", "too_many_tags"),
    ],
)
def test_tags_have_to_be_as_many_as_images(images, said, reason):
    error = refused({"image": images, "conversations": turns(said, "That.")})
    assert error.reason == reason
    assert f"the row has {len(images)} images" in str(error)


def test_tags_of_the_assistant_are_text():
    row = {"image": "a.png", "conversations": turns("<image>\nTag?", "It is <image>.")}
    assert text_of(parse_row(row), 1) == "It is <image>."


def test_a_system_message_comes_first():
    said = [{"from": "system", "value": "Be brief."}, *turns("Hi", "Hello")]
    sample = parse_row({"conversations": said, "image": "a.png"})
    assert [turn.role for turn in sample.turns] == ["system", "user", "assistant"]
    assert text_of(sample, 1) == "[a.png]\nHi"


@pytest.mark.parametrize(
    ("row", "reason", "message"),
    [
        ([], "bad_row", "list"),
        ({"text": "a"}, "bad_row", "'conversations'"),
        ({"conversations": []}, "bad_row", "list of turns"),
        ({"conversations": "Hi"}, "bad_row", "list of turns"),
        ({"conversations": [{"from": "human"}]}, "bad_row", "turn 1"),
        ({"conversations": [{"from": "bot", "value": "Hi"}]}, "unknown_role", "'bot'"),
        ({"conversations": [*turns("a", "b"), {"from": "system", "value": "c"}]},
         "unknown_role", "can only come first"),
        ({"conversations": turns("Hi")}, "no_supervised_token", "no assistant turn"),
        ({"conversations": turns("Hi", "Hello", "Bye")}, "wrong_order", "nobody answers"),
        ({"conversations": turns("a", "b")[::-1]}, "wrong_order", "turn 1 is of the assistant"),
        ({"conversations": [*turns("a"), *turns("b", "c")]}, "wrong_order", "turn 2"),
        ({"conversations": turns("a", "b"), "video": "v", "clip": [1]}, "bad_row", "'clip'"),
    ],
)  # fmt: skip
def test_other_rows_are_refused_by_name(row, reason, message):
    error = refused(row)
    assert error.reason == reason
    assert message in str(error)


def test_an_error_survives_the_way_from_a_worker():
    error = pickle.loads(pickle.dumps(DataError("bad_row", "a message")))
    assert (error.reason, str(error)) == ("bad_row", "a message")


# ---------------------------------------------------------------------- messages
def message(role, content):
    return {"role": role, "content": content}


def test_items_of_messages_get_the_text_of_the_chat_template():
    """The template of the processor is the judge: text and places are those that it writes."""
    contents = [
        [{"type": "image", "image": "a"}, {"type": "text", "text": "What?"}],
        [{"type": "image", "image": "a"}, {"type": "image", "image": "b"},
         {"type": "text", "text": "Which?"}],
        [{"type": "text", "text": "Before "}, {"type": "image", "image": "a"}],
        [{"type": "video", "video": "v"}, {"type": "text", "text": "Where?"}],
    ]  # fmt: skip
    processor = hub.prepare().processor
    for content in contents:
        messages = [message("user", content), message("assistant", "That.")]
        sample = parse_row({"messages": messages})
        tags = {"a": "<image>", "b": "<image>", "v": "<video>"}
        found = "".join(p if isinstance(p, str) else tags[p.source] for p in sample.turns[0].parts)
        prompt = processor.apply_chat_template(messages, tokenize=False)
        assert f"<|im_start|>user\n{found}<|im_end|>" in prompt


def test_columns_fill_bare_items_and_tags():
    content = [{"type": "image"}, {"type": "text", "text": "and"}, {"type": "image"}]
    sample = parse_row({"messages": [message("user", content), message("assistant", "ok")],
                        "images": ["a", "b"]})  # fmt: skip
    assert text_of(sample) == "Image-1: [a]\nandImage-2: [b]\n"
    sample = parse_row({"messages": [message("user", "<image>\nWhat?"), message("assistant", "ok")],
                        "images": [{"bytes": b"x", "path": None}]})  # fmt: skip
    assert sample.turns[0].parts[0].source == {"bytes": b"x", "path": None}


@pytest.mark.parametrize(
    ("content", "images", "reason"),
    [("What?", ["a"], "too_few_tags"), ("<image>?", [], "too_many_tags"),
     ([{"type": "image"}], [], "too_many_tags"), ([{"type": "sound"}], [], "bad_row")],
)  # fmt: skip
def test_columns_and_places_have_to_fit(content, images, reason):
    row = {"messages": [message("user", content), message("assistant", "ok")], "images": images}
    assert refused(row).reason == reason


# ---------------------------------------------------------------------- roots
@pytest.mark.parametrize(
    ("source", "expected"),
    [("a/b.png", "/data/a/b.png"), ("/abs/b.png", "/abs/b.png"), ("data:image/png;base64,A=",) * 2,
     ("https://host/b.png",) * 2, ({"path": "b.png", "bytes": None}, "/data/b.png")],
)  # fmt: skip
def test_relative_paths_are_below_the_root(source, expected):
    row = {"image": source, "conversations": turns("<image>?", "ok")}
    assert parse_row(row, root="/data").turns[0].parts[0].source == expected


def test_frames_of_a_video_are_joined_each():
    row = {"video": [["1.png", "2.png"]], "conversations": turns("<video>?", "ok")}
    assert parse_row(row, root="/d").turns[0].parts[0].source == ["/d/1.png", "/d/2.png"]
