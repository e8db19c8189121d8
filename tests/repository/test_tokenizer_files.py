"""The tokenizer files of the repository root: the same 151,674 entries whichever file is read.

The reference is a byte-pair encoder written here, over the ranks that vocab.json holds: it merges
the adjacent pair of lowest rank until none is left, as tiktoken does.
"""

from __future__ import annotations

import base64
import json
import logging
import random
import shutil
import unicodedata

import pytest
import regex
from transformers import AutoTokenizer

from internvl.checkpoints import build_tokenizer
from tests.support import ROOT, configuration, conversation

FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
)
ENTRIES = 151_674
# From the config.json and the tokenizer_config.json of published checkpoints.
IDS = {
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<|object_ref_start|>": 151646,
    "<|object_ref_end|>": 151647,
    "<|box_start|>": 151648,
    "<|box_end|>": 151649,
    "<|quad_start|>": 151650,
    "<|quad_end|>": 151651,
    "<|vision_start|>": 151652,
    "<|vision_end|>": 151653,
    "<|vision_pad|>": 151654,
    "<|image_pad|>": 151655,
    "<|video_pad|>": 151656,
    "<tool_call>": 151657,
    "</tool_call>": 151658,
    "<|fim_prefix|>": 151659,
    "<|fim_middle|>": 151660,
    "<|fim_suffix|>": 151661,
    "<|fim_pad|>": 151662,
    "<|repo_name|>": 151663,
    "<|file_sep|>": 151664,
    "<img>": 151665,
    "</img>": 151666,
    "<IMG_CONTEXT>": 151667,
    "<quad>": 151668,
    "</quad>": 151669,
    "<ref>": 151670,
    "</ref>": 151671,
    "<box>": 151672,
    "</box>": 151673,
}
NOT_SPECIAL = {name for name in IDS if 151657 <= IDS[name] <= 151664}
# The first two as transformers documents them for Qwen2; the others from tiktoken 0.7 on the ranks.
GOLDEN = {
    "Hello world": [9707, 1879],
    " Hello world": [21927, 1879],
    "12345": [16, 17, 18, 19, 20],
    "3.14": [18, 13, 16, 19],
    "你好，世界": [108386, 3837, 99489],  # noqa: RUF001
    "I'll don't": [40, 3278, 1513, 944],
    "a\n\n  b\t\r\n": [64, 271, 220, 293, 4474],
    "def f(x):\n    return x**2": [750, 282, 2075, 982, 262, 470, 856, 334, 17],
    "是由上海人工智能实验室": [104625, 100633, 104455, 104800],
    "👩‍🚀 αβγ Привет": [145233, 378, 235, 145836, 19043, 51255, 59374, 79484, 26991, 8178],
    "e\u0301": [963],  # two characters, composed by NFC
}
TEXT = (
    "the of InternVL caption 12345 3.14159 def return self.attn(q,k,v) don't I'M we'LL café naïve "
    "über straße Привет мир модель 你好世界 视觉语言模型 こんにちは カタカナ 안녕하세요 มหาวิทยาลัย "
    'हिन्दी العربية עברית ελληνικά 🙂 👩‍👩‍👧‍👦 🇨🇳 ∑∫√ <div class="x"> {"a": [1,2]} #include '
    "SELECT e\u0301 \u200b <img> </box> <|im_end|> <ref> \t \n\n \r\n"
)
WORDS = TEXT.split(" ")
BLOCKS = (
    range(0x20, 0x7F),
    range(0xA0, 0x250),
    range(0x400, 0x500),
    range(0x600, 0x700),
    range(0x900, 0x980),
    range(0x4E00, 0x9FFF),
    range(0xAC00, 0xD7A4),
    range(0x1F300, 0x1F650),
    (9, 10, 13, 32, 32, 32),
    range(48, 58),
)


def load(name: str) -> dict:
    return json.loads((ROOT / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def ranks() -> dict[bytes, int]:
    """The ranks, read back from vocab.json."""
    byte_of = {letter: byte for byte, letter in build_tokenizer.byte_alphabet().items()}
    vocabulary = load("vocab.json")
    return {bytes(byte_of[letter] for letter in token): i for token, i in vocabulary.items()}


@pytest.fixture(scope="module", params=[True, False], ids=["fast", "slow"])
def tokenizer(request, tmp_path_factory):
    """What AutoTokenizer makes of the files alone, `use_fast` or not (5.x knows one kind only)."""
    folder = tmp_path_factory.mktemp("tokenizer")
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    return AutoTokenizer.from_pretrained(folder, use_fast=request.param)


def samples(count: int) -> list[str]:
    """Random text: words of many languages, and characters of one or several blocks."""
    generator = random.Random(0)
    texts = []
    for index in range(count):
        if index % 2:
            joint = generator.choice([" ", ""])
            texts.append(joint.join(generator.choices(WORDS, k=generator.randint(1, 20))))
        else:
            blocks = generator.choices(BLOCKS, k=generator.randint(1, 6))
            drawn = [generator.choices(block, k=generator.randint(1, 12)) for block in blocks]
            texts.append("".join(chr(code) for codes in drawn for code in codes))
    return texts


def reference_encode(ranks: dict[bytes, int], text: str) -> list[int]:
    ids = []
    for word in regex.findall(build_tokenizer.PATTERN, unicodedata.normalize("NFC", text)):
        parts = [bytes([byte]) for byte in word.encode()]
        while len(parts) > 1:
            pairs = [ranks.get(parts[i] + parts[i + 1], ENTRIES) for i in range(len(parts) - 1)]
            lowest = min(pairs)
            if lowest == ENTRIES:
                break
            i = pairs.index(lowest)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        ids += [ranks[part] for part in parts]
    return ids


# ------------------------------------------------------------------------------ the files
def test_each_file_is_below_ten_megabytes():
    assert max((ROOT / name).stat().st_size for name in FILES) < 10_000_000


def test_files_are_what_the_command_writes(tmp_path, ranks):
    lines = (b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ranks.items())
    (tmp_path / "qwen.tiktoken").write_bytes(b"".join(lines))
    out = tmp_path / "made" / "here"
    build_tokenizer.main(["--ranks", str(tmp_path / "qwen.tiktoken"), "--out", str(out)])
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    for name in FILES:
        assert (out / name).read_bytes() == (ROOT / name).read_bytes(), name


def test_files_agree():
    whole, merges = load("tokenizer.json"), (ROOT / "merges.txt").read_text(encoding="utf-8")
    assert whole["model"]["vocab"] == load("vocab.json")
    assert whole["model"]["merges"] == merges.splitlines()
    assert load("added_tokens.json") == IDS
    added = {token.pop("id"): token for token in whole["added_tokens"]}
    assert {token["content"]: index for index, token in added.items()} == IDS
    settings = load("tokenizer_config.json")
    assert {int(index): t for index, t in settings["added_tokens_decoder"].items()} == added
    assert {t["content"] for t in added.values() if not t["special"]} == NOT_SPECIAL
    assert not any(t[flag] for t in added.values() for flag in ("lstrip", "rstrip", "normalized"))
    special = load("special_tokens_map.json")
    names = [token["content"] for token in special["additional_special_tokens"]]
    assert names == settings["additional_special_tokens"]
    assert set(names) == IDS.keys() - NOT_SPECIAL - {"<|endoftext|>"}
    for kind in ("eos_token", "pad_token"):
        assert special[kind]["content"] == settings[kind]


def test_foreign_ranks_are_refused():
    with pytest.raises(ValueError, match="file of ranks has SHA-256"):
        build_tokenizer.parse_ranks(b"IQ== 0\n")
    with pytest.raises(ValueError, match="made of 3 parts, expected 2"):
        build_tokenizer.derive_merges({b"a": 0, b"b": 1, b"c": 2, b"abc": 3})


# ------------------------------------------------------------------------------ the tokenizer
def test_entries_and_ids(tokenizer):
    assert len(tokenizer) == len(tokenizer.get_vocab()) == ENTRIES
    assert sorted(tokenizer.get_vocab().values()) == list(range(ENTRIES))
    assert tokenizer.convert_tokens_to_ids(list(IDS)) == list(IDS.values())
    assert tokenizer.convert_ids_to_tokens(list(IDS.values())) == list(IDS)
    assert set(tokenizer.all_special_tokens) == IDS.keys() - NOT_SPECIAL


def test_settings(tokenizer):
    assert type(tokenizer).__name__ in ("Qwen2Tokenizer", "Qwen2TokenizerFast")
    assert tokenizer.model_max_length == 16384
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (151645, 151643)
    assert tokenizer.bos_token is None
    assert tokenizer("").input_ids == []


@pytest.mark.parametrize("text", GOLDEN)
def test_golden_strings(tokenizer, text):
    assert tokenizer(text).input_ids == GOLDEN[text]
    assert tokenizer.decode(GOLDEN[text]) == unicodedata.normalize("NFC", text)


def test_ids_are_those_of_the_reference_encoder(tokenizer, ranks):
    # One by one: with several texts the slow tokenizer of 4.57 forgets `split_special_tokens`.
    encoded = {text: tokenizer(text, split_special_tokens=True).input_ids for text in samples(3000)}
    assert [t for t, ids in encoded.items() if ids != reference_encode(ranks, t)] == []
    assert len({i for ids in encoded.values() for i in ids}) > 4000  # not a handful of words


def test_decoding_inverts_encoding(tokenizer):
    for text in samples(500):
        composed = unicodedata.normalize("NFC", text)
        assert tokenizer.decode(tokenizer(composed).input_ids) == composed


def test_special_tokens_are_one_id_and_can_be_left_out(tokenizer):
    text = "<|im_start|>user\n<img><IMG_CONTEXT></img> a<ref>b</ref><box>[[1, 2]]</box><|im_end|>"
    ids = tokenizer(text).input_ids
    start, user, line, image, context, end = ids[:6]
    assert (start, user, line) == (151644, 872, 198)
    assert (image, context, end) == (151665, 151667, 151666)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == "user\n ab[[1, 2]]"
    split = tokenizer(text, split_special_tokens=True).input_ids
    assert not set(split) & {IDS[name] for name in IDS.keys() - NOT_SPECIAL}
    assert tokenizer.decode(split) == text


def test_prompt_in_pieces_is_the_prompt_in_one(tokenizer):
    template = conversation.get_conv_template("internvl2_5")
    user, assistant = template.roles
    turns = [
        (user, [conversation.Visual(2), "\nWhat is <ref>this</ref>? 你好 12"]),
        (assistant, "A cat."),
        (user, "And 3.14?"),
        (assistant, None),
    ]
    pieces = conversation.render(template, turns, num_image_token=256)
    ids = conversation.encode(pieces, tokenizer)
    assert ids == tokenizer(conversation.prompt_text(pieces)).input_ids
    assert ids[:3] == [151644, 8948, 198]
    assert ids.count(151667) == 512


def test_root_loads_with_its_config_and_template(caplog):
    config = configuration.InternVLChatConfig.from_pretrained(ROOT)
    logging.getLogger("transformers").addHandler(caplog.handler)
    tokenizer = AutoTokenizer.from_pretrained(ROOT, config=config, trust_remote_code=False)
    logging.getLogger("transformers").removeHandler(caplog.handler)
    assert "regex" not in caplog.text  # 4.57 suspects every large tokenizer of an unknown version
    assert len(tokenizer) == config.llm_config.vocab_size == ENTRIES
    assert tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>") == config.img_context_token_id
    messages = [{"role": "user", "content": "Hi"}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    template = conversation.get_conv_template("internvl2_5")
    pieces = conversation.render(template, [(template.roles[0], "Hi"), (template.roles[1], None)])
    assert prompt == conversation.prompt_text(pieces)


def test_saved_tokenizer_gives_the_same_ids(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    texts = [*GOLDEN, *samples(50)]
    assert again(texts).input_ids == tokenizer(texts).input_ids
    assert again.convert_tokens_to_ids(list(IDS)) == list(IDS.values())
