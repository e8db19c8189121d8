"""Messages to model inputs: ids as chat() makes them, media in their places, loud errors."""

from __future__ import annotations

import base64
import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.image_processing_utils import BaseImageProcessor

from tests import support
from tests.preprocessor import helpers
from tests.preprocessor.helpers import encoded, encoding, picture

conversation = support.conversation
TEMPLATES = sorted(conversation.TEMPLATES)
PROCESSORS = {name: helpers.processor(name) for name in TEMPLATES}
PROCESSOR = PROCESSORS["internvl2_5"]
TOKENIZER = PROCESSOR.tokenizer
CONTEXT = TOKENIZER.convert_tokens_to_ids("<IMG_CONTEXT>")
SMALL, WIDE = picture(28, 28), picture(56, 28)
words = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        [
            "<|im_start|>",
            "<|im_end|>",
            "<img>",
            "</img>",
            "<IMG_CONTEXT>",
            "<image>",
            "<video>",
            "</s>",
            "<ref>",
            "\0",
            "\n",
        ]
    ),
)
texts = st.lists(words, min_size=1, max_size=5).map("".join).filter(bool)


def inputs(messages, processor=PROCESSOR, **options):
    options = {"add_generation_prompt": True, "return_dict": True, **options}
    return processor.apply_chat_template(messages, tokenize=True, **options)


def user(*content):
    return {"role": "user", "content": content[0] if len(content) == 1 else list(content)}


def image(source=SMALL, **options):
    return {"type": "image", "image": source, **options}


def text(words):
    return {"type": "text", "text": words}


def by_hand(turns, template="internvl2_5", system=None):
    """Ids that the model's own chat() would make; turns alternate between user and assistant."""
    chat = conversation.get_conv_template(template)
    chat.system_message = chat.system_message if system is None else system
    named = [(chat.roles[k % 2], turn) for k, turn in enumerate([*turns, None])]
    return conversation.encode(
        conversation.render(chat, named, num_image_token=2), PROCESSORS[template].tokenizer
    )


V = conversation.Visual


def test_one_image_before_a_question():
    made = inputs([user(image(), text("What is this?"))], return_tensors="pt")
    assert made["input_ids"].tolist() == [by_hand([[V(1), "\nWhat is this?"]])]
    assert made["attention_mask"].tolist() == [[1] * made["input_ids"].shape[1]]
    expected = PROCESSOR.image_processor(SMALL, return_tensors="pt")["pixel_values"]
    assert torch.equal(made["pixel_values"], expected)
    assert made["num_tiles"] == [1]
    assert set(made) == {"input_ids", "attention_mask", "pixel_values", "num_tiles"}


def test_several_images_are_labelled_over_the_conversation():
    messages = [
        user(image(), text("One."), image(WIDE), text("Two.")),
        {"role": "assistant", "content": "Yes."},
        user(text("And "), image(), text("this?")),
    ]
    made = inputs(messages)
    first = ["Image-1: ", V(1), "\nOne.Image-2: ", V(3), "\nTwo."]
    assert made["input_ids"] == [by_hand([first, "Yes.", ["And Image-3: ", V(1), "\nthis?"]])]
    assert made["num_tiles"] == [1, 3, 1]
    plain = inputs(messages, image_labels=False)
    first = [V(1), "\nOne.", V(3), "\nTwo."]
    assert plain["input_ids"] == [by_hand([first, "Yes.", ["And ", V(1), "\nthis?"]])]


def test_string_content_takes_its_images_from_the_call():
    messages = [
        user("Image-1: <image>\nImage-2: <image>\nCompare <image"),
        {"role": "assistant", "content": "<image> no"},
        user("Why?"),
    ]
    made = inputs(messages, images=[WIDE, SMALL])
    first = ["Image-1: ", V(3), "\nImage-2: ", V(1), "\nCompare <image"]
    assert made["input_ids"] == [by_hand([first, "<image> no", "Why?"])]


def test_items_without_a_source_and_placeholders_are_filled_in_order():
    messages = [
        user({"type": "image"}, text("a")),
        {"role": "assistant", "content": "b"},
        user("<image>c"),
    ]
    made = inputs(messages, images=[WIDE, SMALL])
    assert made["num_tiles"] == [3, 1]
    assert made["input_ids"] == [by_hand([[V(3), "\na"], "b", [V(1), "c"]])]


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_in_a_dialogue_with_a_system_message(name):
    messages = [
        {"role": "system", "content": "Be brief. <|im_end|>"},
        user("Hello"),
        {"role": "assistant", "content": [text("Hi "), text("there")]},
        user(image(), text("?")),
    ]
    turns = ["Hello", "Hi there", [V(1), "\n?"]]
    innocent = copy.deepcopy(messages)
    innocent[0]["content"] = "Be brief."
    made = inputs(innocent, PROCESSORS[name])
    assert made["input_ids"] == [by_hand(turns, name, "Be brief.")]
    # As a string or as a list, a system message cannot write control tokens.
    listed = copy.deepcopy(messages)
    listed[0]["content"] = [text("Be brief. "), text("<|im_end|>")]
    ids = inputs(messages, PROCESSORS[name])["input_ids"]
    assert ids == inputs(listed, PROCESSORS[name])["input_ids"]
    end = PROCESSORS[name].tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ids[0].count(end) == made["input_ids"][0].count(end)


@settings(max_examples=40)
@given(
    turns=st.lists(st.tuples(texts, st.booleans()), min_size=1, max_size=3),
    name=st.sampled_from(TEMPLATES),
    listed=st.booleans(),
)
def test_no_text_becomes_control(turns, name, listed):
    processor = PROCESSORS[name]
    messages, expected, count = [], [], sum(with_image for _, with_image in turns)
    for words, with_image in turns:
        if not listed:
            words, with_image = words.replace("<image>", "").replace("<video>", "") or ".", False
        items = [image(), text(words)] if with_image else [text(words)]
        messages += [user(items if listed else words), {"role": "assistant", "content": words}]
        label = (
            f"Image-{sum(isinstance(p, V) for turn in expected for p in turn) + 1}: "
            if count > 1
            else ""
        )
        expected += [[label, V(1), "\n", words] if with_image else [words], [words]]
    made = inputs(messages[:-1], processor)
    assert made["input_ids"] == [by_hand(expected[:-1], name)]
    assert made["input_ids"][0].count(CONTEXT) == 2 * sum(made.get("num_tiles", []))


def test_empty_messages_are_bare_headers():
    made = inputs([user(""), {"role": "assistant", "content": "x"}, user("y")])
    assert made["input_ids"] == [by_hand(["", "x", "y"])]
    assert inputs([user(None)])["input_ids"] == [by_hand([""])]


@pytest.mark.parametrize(
    "item",
    [
        {"type": "image", "image": SMALL},
        {"type": "image", "image": np.asarray(SMALL)},
        {"type": "image", "image": encoded(SMALL)},
        {"type": "image", "base64": base64.b64encode(encoded(SMALL)).decode()},
        {
            "type": "image",
            "url": "data:image/png;base64," + base64.b64encode(encoded(SMALL)).decode(),
        },
        {
            "type": "image_url",
            "image_url": {
                "url": "data:image/png;base64," + base64.b64encode(encoded(SMALL)).decode(),
                "detail": "low",
            },
        },
        {
            "type": "image_url",
            "image_url": "data:image/png;base64," + base64.b64encode(encoded(SMALL)).decode(),
        },
        {"image": SMALL},
    ],
    ids=lambda item: "-".join(item),
)
def test_every_form_of_an_image_item(item):
    made = inputs([user([item, text("?")])])
    assert made["input_ids"] == [by_hand([[V(1), "\n?"]])]
    assert np.array_equal(made["pixel_values"], PROCESSOR.image_processor(SMALL)["pixel_values"])


def test_paths(tmp_path):
    SMALL.save(tmp_path / "a.png")
    for item in (
        {"path": str(tmp_path / "a.png")},
        {"url": str(tmp_path / "a.png")},
        {"image": tmp_path / "a.png"},
    ):
        made = inputs([user({"type": "image", **item}, text("?"))])
        assert made["num_tiles"] == [1]
    with pytest.raises(FileNotFoundError):
        inputs([user({"type": "image", "path": str(tmp_path / "b.png")}, text("?"))])
    with pytest.raises(ValueError, match="pass allow_urls=True"):
        inputs([user({"type": "image", "url": "https://example.com/a.png"}, text("?"))])


def test_a_video_is_one_line_per_frame():
    frames = [picture(40, 30, k) for k in range(3)]
    made = inputs(
        [user({"type": "video", "video": frames}, text("What moves?"))], return_tensors="pt"
    )
    lines = ["Frame-1: ", V(1), "\nFrame-2: ", V(1), "\nFrame-3: ", V(1), "\nWhat moves?"]
    assert made["input_ids"].tolist() == [by_hand([lines])]
    assert made["num_tiles"] == [1, 1, 1]
    expected = PROCESSOR.video_processor([frames], return_tensors="pt")["pixel_values_videos"]
    assert torch.equal(made["pixel_values"], expected)
    # In a string, from the call; and with another prefix.
    made = inputs([user("<video>\nWhat moves?")], videos=[frames])
    assert made["input_ids"] == [by_hand([lines])]
    other = helpers.processor(frame_prefix="Frame{index}: ")
    assert (
        "Frame2: <img>"
        in inputs([user("<video>")], other, videos=[frames], return_prompt=True)["prompt"][0]
    )


def test_images_and_videos_keep_their_order():
    clip = [picture(28, 28, k) for k in (5, 6)]
    messages = [user({"type": "video", "video": clip}, image(WIDE), text("?"))]
    made = inputs(messages, do_normalize=False)
    assert made["num_tiles"] == [1, 1, 3]
    raw = PROCESSOR.image_processor([*clip, WIDE], max_tiles=[1, 1, 12], do_normalize=False)[
        "pixel_values"
    ]
    assert np.array_equal(made["pixel_values"], raw)


def test_a_batch_mixes_everything_and_is_padded_on_the_left():
    dialogues = [
        [user("Just text")],
        [user(image(WIDE), text("One image"))],
        [user(image(), image(), text("Two")), {"role": "assistant", "content": "ok"}, user("More")],
        [user({"type": "video", "video": [SMALL] * 3}, text("A video"))],
    ]
    together = inputs(dialogues, return_tensors="pt")
    alone = [inputs(each) for each in dialogues]
    for row, mask, each in zip(
        together["input_ids"], together["attention_mask"], alone, strict=True
    ):
        ids = each["input_ids"][0]
        assert row[-len(ids) :].tolist() == ids
        assert (row[: -len(ids)] == TOKENIZER.pad_token_id).all()
        assert mask.tolist() == [0] * (len(row) - len(ids)) + [1] * len(ids)
    pixels = np.concatenate([each["pixel_values"] for each in alone if "pixel_values" in each])
    assert np.array_equal(together["pixel_values"].numpy(), pixels)
    assert together["num_tiles"] == [n for each in alone for n in each.get("num_tiles", [])]
    right = inputs(dialogues, return_tensors="np", padding_side="right", pad_to_multiple_of=16)
    assert right["input_ids"].shape[1] % 16 == 0
    assert right["attention_mask"][0].tolist()[: len(alone[0]["input_ids"][0])] == [1] * len(
        alone[0]["input_ids"][0]
    )
    assert TOKENIZER.padding_side == support.tokenizer("qwen2").padding_side
    with pytest.raises(ValueError, match="pass padding=True"):
        inputs(dialogues, return_tensors="pt", padding=False)
    assert [len(row) for row in inputs(dialogues, padding=False)["input_ids"]] == [
        len(e["input_ids"][0]) for e in alone
    ]


def test_options_reach_their_processor():
    wide = picture(280, 28)
    three = [user(image(wide), image(wide), image(wide), text("?"))]
    assert inputs(three, max_tiles=4, use_thumbnail=False)["num_tiles"] == [4, 4, 4]
    assert inputs(three, max_tiles=[1, 2, 3], use_thumbnail=False)["num_tiles"] == [1, 2, 3]
    assert inputs(three, processor_kwargs={"max_tiles": 2})["num_tiles"] == [3, 3, 3]
    assert inputs(three, images_kwargs={"max_tiles": 1})["num_tiles"] == [1, 1, 1]
    assert inputs(three, upscale=False, max_tiles=12)["num_tiles"] == [11, 11, 11]
    # Equation 4 over the images of one conversation, not of the batch.
    batch = [three, [user(image(wide), text("?"))]]
    assert inputs(batch, total_tiles=9, use_thumbnail=False)["num_tiles"] == [3, 3, 3, 9]
    # An item's own limit comes first.
    mixed = [user(image(wide, max_tiles=2), image(wide), text("?"))]
    assert inputs(mixed, use_thumbnail=False)["num_tiles"] == [2, 10]
    frames = [picture(28, 28, k) for k in range(6)]
    video = {"type": "video", "video": frames}
    assert inputs([user(video, text("?"))], num_frames=2)["num_tiles"] == [1, 1]
    assert (
        inputs([user({**video, "num_frames": 4}, text("?"))], num_frames=2)["num_tiles"] == [1] * 4
    )
    with pytest.raises(TypeError, match=r"unknown options \['max_tile'\]"):
        inputs(three, max_tile=3)
    with pytest.raises(TypeError, match=r"unknown options \['max_tile'\]"):
        PROCESSOR("<image>", SMALL, max_tile=3)


def test_video_files_in_messages(tmp_path):
    pytest.importorskip("av")
    file = helpers.write_video(tmp_path / "clip.mp4")
    content = [{"type": "video", "path": str(file), "bound": (0.4, 1.2)}, text("?")]
    made = inputs([user(content)], num_frames=4, do_normalize=False)
    assert helpers.frame_numbers(made["pixel_values"]) == [12, 17, 22, 27]
    rng = np.random.default_rng(3)
    made = inputs([user(content)], num_frames=4, sampling="random", generator=rng)
    assert made["num_tiles"] == [1] * 4
    with pytest.raises(TimeoutError, match=r"clip\.mp4"):
        inputs([user(content)], timeout=0)


def test_the_prompt_string_gives_the_same_inputs():
    messages = [
        user(image(WIDE), text("a <ref>cat</ref>?")),
        {"role": "assistant", "content": "no"},
        user("why"),
    ]
    prompt = PROCESSOR.apply_chat_template(messages, add_generation_prompt=True)
    chat = conversation.get_conv_template("internvl2_5")
    turns = [
        (chat.roles[0], "<image>\na <ref>cat</ref>?"),
        (chat.roles[1], "no"),
        (chat.roles[0], "why"),
        (chat.roles[1], None),
    ]
    assert prompt == conversation.prompt_text(conversation.render(chat, turns))
    one, two = PROCESSOR(prompt, WIDE, return_tensors="pt"), inputs(messages, return_tensors="pt")
    assert torch.equal(one["input_ids"], two["input_ids"])
    assert torch.equal(one["pixel_values"], two["pixel_values"])
    expanded = two["input_ids"][0].tolist()
    assert (
        TOKENIZER(PROCESSOR(prompt, WIDE, return_prompt=True)["prompt"][0])["input_ids"] == expanded
    )
    assert (
        PROCESSOR.apply_chat_template([messages, messages])
        == [PROCESSOR.apply_chat_template(messages)] * 2
    )


def test_images_flat_and_nested():
    prompts = ["<image> and <image>", "none", "<image>"]
    flat = PROCESSOR(text=prompts, images=[SMALL, WIDE, SMALL])
    nested = PROCESSOR(text=prompts, images=[[SMALL, WIDE], [], [SMALL]])
    holes = PROCESSOR(text=prompts, images=[[SMALL, WIDE], None, SMALL])
    for other in (nested, holes):
        assert other["input_ids"] == flat["input_ids"]
        assert np.array_equal(other["pixel_values"], flat["pixel_values"])
    assert flat["num_tiles"] == [1, 3, 1]
    assert (
        PROCESSOR("<image>", SMALL)["num_tiles"]
        == PROCESSOR("<image>", [[SMALL]])["num_tiles"]
        == [1]
    )
    clip = [SMALL, SMALL]
    for videos in ([[clip], [], [clip]], [clip, clip]):
        made = PROCESSOR(text=["<video>", "none", "<video>"], videos=videos)
        assert made["num_tiles"] == [1] * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": "<image>"}, "prompt 1 of 1 has 1 places for images .* but 0 images"),
        ({"text": "no place", "images": SMALL}, "has 0 places for images .* but 1 images"),
        ({"text": "<image>", "images": [SMALL, SMALL]}, "has 1 places .* but 2 images"),
        (
            {"text": ["<image>", "<image>"], "images": [SMALL]},
            r"2 places for images in all \(\[1, 1\]\), but 1",
        ),
        (
            {"text": ["<image>", "x"], "images": [[], [SMALL]]},
            "prompt 1 of 2 has 1 places .* but 0 images",
        ),
        (
            {"text": ["<image>", "x"], "images": [[SMALL]]},
            "nested in 1 lists, but there are 2 prompts",
        ),
        ({"text": "<video>"}, "has 1 places for videos .* but 0 videos"),
        ({"text": "<img><IMG_CONTEXT></img>"}, "spells <IMG_CONTEXT>"),
        ({"text": None}, "got no text"),
        ({"text": []}, "not a string or a non-empty list"),
        ({"text": [3]}, "not a string or a non-empty list"),
        ({"text": "<image>", "images": b"broken"}, "image 1 of 1: .*not a readable image"),
        (
            {"text": "<video>", "videos": [[SMALL, b"broken"]]},
            "video 1 of 1: frame 2 of 2: .*not a readable image",
        ),
        ({"text": "<video>", "videos": b"GIF89a"}, "video 1 of 1: 6 bytes: "),
        ({"text": "x y z", "truncation": True, "max_length": 1}, "would tear images apart"),
        ({"text": "x", "padding_side": "top"}, "padding_side='top'"),
        ({"text": "x", "return_tensors": "tf"}, "return_tensors='tf'"),
    ],
)
def test_mismatches_are_named_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        PROCESSOR(**arguments)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "non-empty list of messages"),
        ("hello", "non-empty list of messages"),
        (["hello"], "expected {'role', 'content'}"),
        ([{"content": "x"}], "expected {'role', 'content'}"),
        ([{"role": "tool", "content": "x"}], "role 'tool'"),
        ([user("x"), {"role": "system", "content": "x"}], "role 'system'"),
        ([user(17)], "content of type int"),
        ([user([17])], "item of type int"),
        ([user([{"type": "audio"}])], "item of type 'audio'"),
        ([user([{"type": "text"}])], "text item without a string"),
        ([{"role": "system", "content": [image()]}], "system message holds an image"),
        ([user([{"type": "image"}])], "has 1 places for images"),
        ([user("<image>")], "has 1 places for images"),
    ],
)
def test_malformed_messages_are_named_errors(messages, message):
    with pytest.raises(ValueError, match=message):
        inputs(messages)


def test_other_refusals():
    with pytest.raises(ValueError, match="exclude each other"):
        inputs([user("x")], continue_final_message=True)
    with pytest.raises(ValueError, match="tools were given"):
        inputs([user("x")], tools=[{"name": "x"}])
    with pytest.raises(ValueError, match="not supported"):
        inputs([user("x")], return_assistant_tokens_mask=True)
    with pytest.raises(ValueError, match="writes a <image>"):
        inputs([user("x")], chat_template="{{ '<image>' }}{{ messages[0]['content'] }}")
    with pytest.raises(ValueError, match="leaves out 1 of 1"):
        inputs([user(image(), text("x"))], chat_template="{{ messages[0]['role'] }}")
    bare = helpers.processor()
    bare.chat_template = None
    with pytest.raises(ValueError, match="has no chat template"):
        inputs([user("x")], bare)


def test_the_last_message_can_be_continued():
    messages = [user("Count."), {"role": "assistant", "content": [text("One, <|im_end|>two,")]}]
    made = inputs(messages, add_generation_prompt=False, continue_final_message=True)
    chat = conversation.get_conv_template("internvl2_5")
    whole = conversation.render(
        chat, [(chat.roles[0], "Count."), (chat.roles[1], "One, <|im_end|>two,")]
    )
    ids = conversation.encode(whole, TOKENIZER)
    end = conversation.encode(
        [conversation.Piece("<|im_end|>", True), conversation.Piece("\n", False)], TOKENIZER
    )
    assert made["input_ids"] == [ids[: -len(end)]]
    prompt = PROCESSOR.apply_chat_template(messages, continue_final_message=True)
    assert prompt.endswith("assistant\nOne, <|im_end|>two,")


def test_the_callers_objects_are_left_alone():
    messages = [
        {"role": "system", "content": "s"},
        user(image(), {"type": "image_url", "image_url": {"url": encoded(SMALL)}}, text("x")),
    ]
    before = copy.deepcopy(messages)
    images, options = [], {"max_tiles": 2}
    inputs(messages, processor_kwargs=options)
    PROCESSOR.apply_chat_template(messages)
    assert [{k: v for k, v in m.items() if k != "content"} for m in messages] == [
        {k: v for k, v in m.items() if k != "content"} for m in before
    ]
    assert [item.keys() for item in messages[1]["content"]] == [
        item.keys() for item in before[1]["content"]
    ]
    assert messages[1]["content"][0]["image"] is SMALL
    assert (images, options) == ([], {"max_tiles": 2})


def test_what_transformers_calls():
    assert PROCESSOR.model_input_names == [
        "input_ids",
        "attention_mask",
        "pixel_values",
        "num_tiles",
    ]
    counted = PROCESSOR._get_num_multimodal_tokens(
        image_sizes=[(28, 28), (28, 56)], video_sizes=[(5, 40, 40)]
    )
    assert counted["num_image_patches"] == [1, 3]
    for size, count in zip([(28, 28), (28, 56)], counted["num_image_tokens"], strict=True):
        made = PROCESSOR("<image>", picture(size[1], size[0]))["input_ids"][0]
        assert len(made) == count
    assert counted["num_video_tokens"] == [20]
    assert PROCESSOR.get_number_of_image_patches(28, 56, {"use_thumbnail": False}) == 2
    assert (PROCESSOR.image_token, PROCESSOR.image_token_id) == ("<IMG_CONTEXT>", CONTEXT)
    ids = torch.tensor([TOKENIZER("hi<|im_end|>")["input_ids"]])
    assert PROCESSOR.batch_decode(ids, skip_special_tokens=True) == ["hi"]
    assert PROCESSOR.decode(ids[0]) == "hi<|im_end|>"
    assert PROCESSOR.post_process_image_text_to_text(ids) == ["hi"]
    made = inputs([user(image(), text("?"))], return_tensors="pt").to(dtype=torch.bfloat16)
    assert made["pixel_values"].dtype == torch.bfloat16
    assert made["input_ids"].dtype == torch.int64
    assert made["num_tiles"] == [1]
    only_ids = inputs([user("x")], return_dict=False)
    assert only_ids == inputs([user("x")])["input_ids"]


def test_settings_that_cannot_be_followed():
    with pytest.raises(ValueError, match="expected InternVLChatImageProcessor"):
        helpers.processing.InternVLChatProcessor(BaseImageProcessor(), TOKENIZER)
    parts = (PROCESSOR.image_processor, TOKENIZER)
    with pytest.raises(ValueError, match="image_seq_length=0"):
        helpers.processing.InternVLChatProcessor(*parts, image_seq_length=0)
    with pytest.raises(ValueError, match="frame_prefix"):
        helpers.processing.InternVLChatProcessor(*parts, frame_prefix="Frame: ")
    assert PROCESSOR.image_token == encoding.IMG_CONTEXT_TOKEN
