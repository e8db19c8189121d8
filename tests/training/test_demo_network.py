"""The lean training twins compute what the published model computes, question by question."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from internvl import hub
from internvl.training.demo import feed, qa, questions, scenes
from internvl.training.demo.mixture import KINDS, QAData
from internvl.training.demo.network import DemoShape, normalise
from internvl.training.demo.release import chat_config

DEMO = hub.REPOSITORY / "demo"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(DEMO / "tokenizer.json"))


@pytest.fixture(scope="module")
def trained(tokenizer) -> qa.Trainee:
    trainee = qa.Trainee(DemoShape(vocabulary=tokenizer.get_vocab_size()))
    trainee.model.initialise(3)
    return trainee.eval()


@pytest.fixture(scope="module")
def published(trained, tokenizer):
    """InternVLChatModel with the same weights, fp32."""
    tokens = {t: tokenizer.token_to_id(t) for t in ("<|endoftext|>", "<|im_end|>")}
    fields = chat_config(trained.model.shape, tokens)
    config = hub.ring0("configuration_internvl_chat").InternVLChatConfig(**fields)
    model = hub.ring0("modeling_internvl_chat").InternVLChatModel(config).float().eval()
    missing, surplus = model.load_state_dict(trained.model.state_dict(), strict=False)
    assert surplus == []
    assert missing == ["language_model.lm_head.weight"]  # tied to the embedding
    return model


class NoDigits:
    """Stands in for the digit archives where a test needs no real digit: one drawn stroke."""

    def sample(self, rng: np.random.Generator, *, uci: float = 0.12):
        glyph = np.zeros((28, 28), np.uint8)
        glyph[4:24, 12:16] = 255
        return glyph, 1


def conversations(kind: str, data: QAData, packed, row: int):
    """Every chain of a row as plain ids: prefix + chain, with the answer positions in the plain
    row."""
    ids, slots = packed.ids[row], packed.slots[row]
    prefix = np.flatnonzero(slots == 0)
    for slot in range(1, slots.max() + 1):
        chain = np.flatnonzero(slots == slot)
        order = np.concatenate([prefix, chain])
        marks = [m for m in range(packed.rows.shape[1]) if slots[packed.rows[row, m]] == slot]
        marks = [m for m in marks if packed.targets[row, m] >= 0]
        where = [int(np.flatnonzero(order == packed.rows[row, m])[0]) for m in marks]
        yield ids[order], marks, where


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "text"])
@torch.no_grad()
def test_packed_logits_equal_the_plain_prompt(kind, trained, published, tokenizer):
    data = QAData(tokenizer, NoDigits(), 8, kind=kind)
    packed = data(feed.step_rng(7, 1), 1)
    context = tokenizer.token_to_id("<IMG_CONTEXT>")
    logits, _ = trained.logits(packed, context, frozen=True)
    pixels = normalise(torch.from_numpy(packed.tiles))
    per_row = KINDS[kind][1]
    published.img_context_token_id = context
    checked = 0
    for row in range(min(2, len(packed.ids))):
        for ids, marks, where in conversations(kind, data, packed, row):
            plain = published(
                input_ids=torch.from_numpy(ids)[None],
                pixel_values=pixels[row * per_row : (row + 1) * per_row],
                image_flags=torch.ones(per_row, dtype=torch.long),
            ).logits[0, where]
            torch.testing.assert_close(logits[row, marks], plain, atol=2e-4, rtol=1e-4)
            checked += 1
    assert checked >= 2


@torch.no_grad()
def test_text_rows_equal_the_published_model(trained, published, tokenizer):
    packed = QAData(tokenizer, NoDigits(), 4, kind="text")(feed.step_rng(3, 0), 0)
    context = tokenizer.token_to_id("<IMG_CONTEXT>")
    logits, _ = trained.logits(packed, context, frozen=True)
    size = int((packed.slots[0] == 0).sum())
    plain = published.language_model(input_ids=torch.from_numpy(packed.ids[:1, :size])).logits[0]
    count = int((packed.targets[0] >= 0).sum())
    torch.testing.assert_close(
        logits[0, :count], plain[packed.rows[0, :count]], atol=2e-4, rtol=1e-4
    )


def test_rows_are_the_ids_that_chat_would_make(tokenizer):
    """A chain's ids are those of conversation.encode for the same turns."""
    transformers = pytest.importorskip("transformers")
    conversation = hub.ring0("conversation")
    loaded = transformers.AutoTokenizer.from_pretrained(DEMO)
    template = conversation.get_conv_template("internvl2_5")
    image = conversation.Visual(1)
    heads = {
        "one": (["", 1], [image, "\n"]),
        "pair": (
            ["Image-1: ", 1, "\nImage-2: ", 1], ["Image-1: ", image, "\nImage-2: ", image, "\n"]
        ),
        "card": (["Frame1: ", 1, "\nFrame2: ", 1], ["Frame1: ", image, "\nFrame2: ", image, "\n"]),
        "combined": (["", 2], [conversation.Visual(2), "\n"]),
    }  # fmt: skip
    data = QAData(tokenizer, NoDigits(), 2)
    rng = np.random.default_rng(0)
    for parts, content in heads.values():
        for _ in range(20):
            scene = scenes.shape_scene(rng)
            first, second = (questions.about_shapes(rng, scene) for _ in range(2))
            row = qa_row(data, parts, [first, second])
            turns = [
                (template.roles[0], [*content[:-1], content[-1] + first.question]),
                (template.roles[1], first.answer),
                (template.roles[0], second.question),
                (template.roles[1], second.answer),
            ]
            expected = conversation.encode(conversation.render(template, turns, 16), loaded)
            newline = tokenizer.encode("\n", add_special_tokens=False).ids
            assert [*row.ids, data.frame.end, *newline] == expected


def qa_row(data: QAData, parts, chain):
    """A row with one chain."""
    from internvl.training.demo.packing import Row

    row = Row(data.frame.prefix(parts))
    assert row.add_chain(data.frame, chain, 400, 60)
    return row


def test_a_new_image_in_a_later_turn_has_the_ids_of_chat(tokenizer):
    transformers = pytest.importorskip("transformers")
    conversation = hub.ring0("conversation")
    loaded = transformers.AutoTokenizer.from_pretrained(DEMO)
    template = conversation.get_conv_template("internvl2_5")
    image = conversation.Visual(1)
    data = QAData(tokenizer, NoDigits(), 2)
    rng = np.random.default_rng(1)
    seen = set()
    for _ in range(12):
        both = [scenes.shape_scene(rng), scenes.shape_scene(rng)]
        facts = [questions.ShapeFacts(scene) for scene in both]
        row = data._later_image(rng, both, facts)
        labelled = tokenizer.decode(row.ids).endswith("Image-2: ") or "Image-2" in tokenizer.decode(
            row.ids
        )
        qa_first = row.asked[0][0]
        label = ("Image-1: ", "Image-2: ") if labelled else ("", "")
        seen.add(labelled)
        turns = [
            (template.roles[0], [label[0], image, f"\n{qa_first.question}"]),
            (template.roles[1], qa_first.answer),
            (template.roles[0], [label[1], image, "\nx"]),
        ]
        expected = conversation.encode(conversation.render(template, turns, 16), loaded)
        assert expected[: len(row.ids)] == row.ids
    assert seen == {True, False}
