"""The encoding here and that of conversation.py are twins, and no text becomes control."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from tests import support
from tests.preprocessor.helpers import encoding

conversation = support.conversation
TEMPLATES = sorted(conversation.TEMPLATES)
TOKENIZERS = {name: support.tokenizer(name) for name in ("qwen2", "phi3")}
CONTROL = [
    "<|im_start|>",
    "<|im_end|>",
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
    "<|end|>",
    "</s>",
    "<s>",
    "<|user|>",
]
words = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [*CONTROL, *encoding.GROUNDING_TAGS, "<image>", "<video>", " ", "\n", "a cat", "你好", "🐱"]
    ),
)
texts = st.lists(words, min_size=1, max_size=6).map("".join)
contents = st.lists(
    st.one_of(texts, st.integers(1, 4).map(conversation.Visual)), min_size=1, max_size=4
)


def twins(pieces):
    return [encoding.Piece(*piece) for piece in pieces]


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=60)
@given(
    turns=st.lists(contents, min_size=1, max_size=3), tokenizer=st.sampled_from(sorted(TOKENIZERS))
)
def test_both_encodings_agree_on_random_dialogues(name, turns, tokenizer):
    template = conversation.get_conv_template(name)
    roles = [template.roles[k % 2] for k in range(len(turns))]
    pieces = conversation.render(template, list(zip(roles, turns, strict=True)), num_image_token=3)
    ours = twins(pieces)
    assert encoding.encode(ours, TOKENIZERS[tokenizer]) == conversation.encode(
        pieces, TOKENIZERS[tokenizer]
    )
    assert encoding.prompt_text(ours) == conversation.prompt_text(pieces)
    assert encoding.merge_text(ours) == twins(conversation.merge_text(pieces))


def test_both_share_the_same_words():
    assert encoding.visual_pieces(3, 5) == twins(conversation.visual_pieces(3, 5))
    for fact in ("IMG_START_TOKEN", "IMG_END_TOKEN", "IMG_CONTEXT_TOKEN", "GROUNDING_TAGS"):
        assert getattr(encoding, fact) == getattr(conversation, fact)
    assert encoding.IMAGE_PLACEHOLDER == conversation.IMAGE_PLACEHOLDER


@settings(max_examples=150)
@given(text=texts)
def test_text_gives_no_control_token_but_the_grounding_tags(text):
    tokenizer = TOKENIZERS["qwen2"]
    ids = encoding.encode([encoding.Piece(text, False)], tokenizer) if text else []
    allowed = set(tokenizer.convert_tokens_to_ids(list(encoding.GROUNDING_TAGS)))
    assert set(ids) & set(tokenizer.added_tokens_decoder) <= allowed
    # Qwen2's tokenizer normalises, which replaces a few compatibility characters.
    expected = unicodedata.normalize("NFC", text)
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == expected


@settings(max_examples=60)
@given(
    text=st.text(max_size=40), name=st.sampled_from(["internvl2_5", "internlm2-chat", "phi3-chat"])
)
def test_innocent_prompts_encode_like_the_whole_string(text, name):
    template, tokenizer = conversation.get_conv_template(name), TOKENIZERS["qwen2"]
    assume(not any(token in text for token in encoding.control_tokens(tokenizer)))
    turns = [(template.roles[0], text), (template.roles[1], None)]
    pieces = twins(conversation.render(template, turns))
    ids = encoding.encode(pieces, tokenizer)
    assert ids == tokenizer(encoding.prompt_text(pieces))["input_ids"]


def stripping_tokenizer(**options):
    tokenizer = support.tokenizer("phi3")
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken("<|cut|>", special=True, **options)]},
    )
    return tokenizer


@pytest.mark.parametrize(
    "options", [{"rstrip": True}, {"lstrip": True}, {"lstrip": True, "rstrip": True}]
)
@pytest.mark.parametrize(
    "text", ["a <|cut|> \n b", "  <|cut|>  ", "a<|cut|>b", " \n<|cut|><|cut|>\n x"]
)
def test_tokens_that_swallow_white_space(options, text):
    tokenizer = stripping_tokenizer(**options)
    pieces = list(encoding.split_control(text, ["<|cut|>"]))
    assert encoding.encode(pieces, tokenizer) == tokenizer(text)["input_ids"]
    twin = [conversation.Piece(*piece) for piece in pieces]
    assert conversation.encode(twin, tokenizer) == encoding.encode(pieces, tokenizer)


class WithBos:
    """A tokenizer that puts <s> first, as InternLM2's does."""

    def __init__(self, inner):
        self.inner = inner
        self.bos_token, self.bos_token_id = "<s>", inner.convert_tokens_to_ids("<s>")

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, text, add_special_tokens=True, **options):
        encoded = self.inner(text, add_special_tokens=False, **options)
        if add_special_tokens:
            encoded["input_ids"] = [self.bos_token_id, *encoded["input_ids"]]
        return encoded


def test_the_beginning_of_sequence_follows_the_tokenizer():
    plain, with_bos = TOKENIZERS["qwen2"], WithBos(TOKENIZERS["qwen2"])
    pieces = [encoding.Piece("hi", False)]
    ids = encoding.encode(pieces, plain)
    assert encoding.encode(pieces, with_bos) == [with_bos.bos_token_id, *ids]
    assert encoding.encode(pieces, with_bos, add_bos=False) == ids
    # A template that writes it itself does not get it twice.
    written = [encoding.Piece("<s>", True), *pieces]
    assert encoding.encode(written, with_bos) == [with_bos.bos_token_id, *ids]
    typed = encoding.encode([encoding.Piece("<s>hi", False)], with_bos)
    assert typed.count(with_bos.bos_token_id) == 1


def test_a_missing_control_token_is_named():
    with pytest.raises(ValueError, match="no token '<nothing>'"):
        encoding.encode([encoding.Piece("<nothing>", True)], TOKENIZERS["qwen2"])


def test_control_tokens_are_the_special_ones_longest_first():
    tokens = encoding.control_tokens(TOKENIZERS["qwen2"])
    assert {"<|im_start|>", "<|im_end|>", "<img>", "<IMG_CONTEXT>"} <= set(tokens)
    assert [len(token) for token in tokens] == sorted(map(len, tokens), reverse=True)
    assert (
        encoding.prompt_text(list(encoding.split_control("a<img>b<img", tokens))) == "a<img>b<img"
    )
    assert [piece.control for piece in encoding.split_control("a<img>b<img", tokens)] == [
        False,
        True,
        False,
    ]
