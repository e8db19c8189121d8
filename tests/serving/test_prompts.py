"""The ids that a server makes of a conversation are those of our processor.

vLLM and llama.cpp's server render chat_template.jinja; so does LMDeploy (lmdeploy/model.py,
HFChatTemplate), after it has put a placeholder for each image into the text itself; SGLang does
with `--chat-template`. Then `<image>` becomes `<img>`, 256 `<IMG_CONTEXT>` per tile and `</img>`,
and the text is encoded (vllm/transformers_utils/processors/internvl.py, get_image_repl, __call__;
sglang/srt/multimodal/processors/internvl.py).
"""

from __future__ import annotations

import pytest
from PIL import Image

from internvl import hub
from internvl.checkpoints.adopt import adopt
from tests import support

IMAGES = [Image.new("RGB", (300, 150), "red"), Image.new("RGB", (90, 80), "blue")]
TEXTS = {
    "one": [{"type": "image"}, {"type": "text", "text": "What is it?"}],
    "two": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Which?"}],
    "image-last": [{"type": "text", "text": "Look: "}, {"type": "image"}],
    "none": [{"type": "text", "text": "Hello there"}],
}


@pytest.fixture(scope="module", params=["qwen2", "internlm2", "phi3"])
def prepared(request, tmp_path_factory):
    """Processor and tokenizer of an adopted folder, of each template."""
    folder = tmp_path_factory.mktemp("prompts") / request.param
    adopt(support.checkpoint(request.param), folder)
    return hub.prepare(folder)


def expand(text: str, tiles: list[int], tokens: int) -> str:
    """As the processors of the servers do."""
    for count in tiles:
        assert "<image>" in text
        text = text.replace("<image>", f"<img>{'<IMG_CONTEXT>' * (count * tokens)}</img>", 1)
    assert "<image>" not in text
    return text


@pytest.mark.parametrize("name", TEXTS)
def test_rendered_then_encoded(prepared, name):
    content = TEXTS[name]
    images = iter(IMAGES)
    filled = [
        {**item, "image": next(images)} if item["type"] == "image" else item for item in content
    ]
    ours = prepared.processor.apply_chat_template(
        [{"role": "user", "content": filled}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    # Content stays a list ("openai" content format), and an image carries no pixels there.
    text = prepared.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        chat_template=prepared.processor.chat_template,
        add_generation_prompt=True,
        tokenize=False,
    )
    given = sum(item["type"] == "image" for item in content)
    tiles = [
        int(prepared.processor.image_processor(image, return_tensors="pt")["num_tiles"][0])
        for image in IMAGES[:given]
    ]
    assert not tiles or tiles[0] > 1
    whole = expand(text, tiles, prepared.processor.image_seq_length)
    assert prepared.tokenizer(whole)["input_ids"] == ours["input_ids"][0].tolist()


def test_lmdeploy_puts_images_into_the_text(prepared):
    """Content is a string there: the template leaves it as it is, and one role alone renders."""
    tokenizer, template = prepared.tokenizer, prepared.processor.chat_template
    content = "<img><IMG_CONTEXT></img>\nWhat is it?"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], chat_template=template, tokenize=False
    )
    assert content in text
    for role in ("user", "assistant"):  # from which it learns where turns begin and end
        turn = [{"role": role, "content": "sentinel"}]
        assert "sentinel" in tokenizer.apply_chat_template(
            turn, chat_template=template, tokenize=False
        )
    ids = tokenizer("<IMG_CONTEXT>", add_special_tokens=False)["input_ids"]
    assert ids == [tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")]
