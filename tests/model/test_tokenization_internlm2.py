"""The tokenizer of InternLM2, on sentencepiece models trained here, against sentencepiece."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece

from internvl import hub
from tests.support import ROOT, checkpoint, conversation

InternLM2Tokenizer = hub.ring0("tokenization_internlm2").InternLM2Tokenizer

# As in the published model, six tokens take over the ids of placeholders, nine follow the pieces.
PLACEHOLDERS = [f"[UNUSED_TOKEN_{index}]" for index in range(141, 147)]
TAKING_OVER = [
    "<|plugin|>",
    "<|interpreter|>",
    "<|action_end|>",
    "<|action_start|>",
    "<|im_end|>",
    "<|im_start|>",
]
FOLLOWING = [
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
    "<quad>",
    "</quad>",
    "<ref>",
    "</ref>",
    "<box>",
    "</box>",
]
SPECIAL = [*TAKING_OVER, *FOLLOWING]
VOCAB = 1009  # with the nine, the 1018 rows of the golden checkpoint
TEXTS = [
    "Hello world",
    "  two spaces before,  between  and after  ",
    " ",
    "\n\nlines\r\n\tand tabs\n",
    "def f(x):\n    return x ** 2",
    "你好，世界！视觉语言模型",  # noqa: RUF001
    "emoji 🙂 and 👩‍🚀, never seen in training: ﷽ ᚠ",
    "3.14159 = π",
    "<0x0A> is not a byte",
]


def train(folder: Path, dummy_prefix: bool) -> Path:
    """Train a byte-fallback BPE model as InternLM2's: text is not normalised."""
    corpus = (ROOT / "conversation.py").read_text(encoding="utf-8").splitlines()
    corpus += [text.replace("\n", " ") for text in TEXTS[:6] for _ in range(20)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for line in corpus if line.strip()]),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB,
        byte_fallback=True,
        add_dummy_prefix=dummy_prefix,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        user_defined_symbols=PLACEHOLDERS,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return folder


def describe(folder: Path) -> Path:
    """Write the JSON files that stand beside tokenizer.model in a published checkpoint."""
    pieces = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    ids = dict(zip(["<unk>", "<s>", "</s>"], range(3), strict=True))
    ids |= dict(zip(TAKING_OVER, map(pieces.piece_to_id, PLACEHOLDERS), strict=True))
    ids |= {token: VOCAB + index for index, token in enumerate(FOLLOWING)}
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    settings = {
        "added_tokens_decoder": {
            str(index): {"content": token, **flags, "special": True} for token, index in ids.items()
        },
        "additional_special_tokens": ["<|im_start|>", *SPECIAL[:5], *FOLLOWING],
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "model_max_length": 8192,
        "pad_token": "</s>",
        "tokenizer_class": "InternLM2Tokenizer",
        "unk_token": "<unk>",
    }
    added = {token: index for token, index in ids.items() if index > 2}
    names = ("additional_special_tokens", "bos_token", "eos_token", "pad_token", "unk_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "added_tokens.json").write_text(json.dumps(added), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(
        json.dumps({name: settings[name] for name in names}), encoding="utf-8"
    )
    return folder


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "dummy_prefix"])
def folder(request, tmp_path_factory) -> Path:
    """A tokenizer folder; the published model has no dummy prefix, its ancestors had one."""
    return describe(train(tmp_path_factory.mktemp("internlm2"), request.param))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return InternLM2Tokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def pieces(folder):
    return sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))


def ids_of(tokenizer, text: str, **options) -> list[int]:
    return tokenizer(text, add_special_tokens=False, **options)["input_ids"]


# ------------------------------------------------------------------------------ ids
@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_sentencepiece_after_the_first(tokenizer, pieces, text):
    assert tokenizer(text)["input_ids"] == [1, *pieces.encode(text)]
    assert ids_of(tokenizer, text) == pieces.encode(text)


def test_vocabulary(tokenizer, pieces):
    assert tokenizer.vocab_size == pieces.get_piece_size() == VOCAB
    assert len(tokenizer) == VOCAB + 9
    assert sorted(tokenizer.get_vocab().values()) == list(range(VOCAB + 9))
    assert tokenizer.convert_tokens_to_ids(FOLLOWING) == list(range(VOCAB, VOCAB + 9))
    taken = [pieces.piece_to_id(piece) for piece in PLACEHOLDERS]
    assert tokenizer.convert_tokens_to_ids(TAKING_OVER) == taken
    assert tokenizer.convert_ids_to_tokens(taken) == TAKING_OVER
    assert not set(PLACEHOLDERS) & tokenizer.get_vocab().keys()
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert set(SPECIAL) <= set(tokenizer.all_special_tokens)
    assert tokenizer.model_max_length == 8192


def test_special_tokens_split_the_text(tokenizer, pieces):
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    expected = [start, *pieces.encode("user\nHi there "), end, *pieces.encode("\n")]
    assert tokenizer("<|im_start|>user\nHi there <|im_end|>\n")["input_ids"] == [1, *expected]


@pytest.mark.parametrize("text", [*SPECIAL, "a<|im_end|>b", " <img> </s><s>", *TEXTS])
def test_split_special_tokens_keeps_text_text(tokenizer, text):
    special = set(tokenizer.added_tokens_decoder) - {tokenizer.unk_token_id}
    ids = ids_of(tokenizer, text, split_special_tokens=True)
    assert not special & set(ids)
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("placeholder", PLACEHOLDERS)
def test_a_placeholder_is_not_the_token_that_took_its_id(tokenizer, pieces, placeholder, split):
    text = f"say {placeholder}."
    taken = pieces.piece_to_id(placeholder)
    assert taken in pieces.encode(text)  # which the official tokenizer would return
    ids = ids_of(tokenizer, text, split_special_tokens=split)
    assert taken not in ids
    assert tokenizer.decode(ids) == text


def test_a_piece_that_was_made_special_is_spelt_out(folder):
    tokenizer = InternLM2Tokenizer.from_pretrained(folder)
    pieces = ids_of(tokenizer, "a def")
    piece = tokenizer.convert_ids_to_tokens(pieces[-1])
    assert piece.endswith("def")
    tokenizer.add_tokens([piece])
    assert ids_of(tokenizer, "a def", split_special_tokens=True) == pieces
    special = InternLM2Tokenizer.from_pretrained(folder)
    special.add_tokens([piece], special_tokens=True)
    assert special.convert_tokens_to_ids(piece) == pieces[-1]
    ids = ids_of(special, "a def", split_special_tokens=True)
    assert pieces[-1] not in ids
    assert special.decode(ids) == "a def"


def test_begin_and_end_are_optional(folder):
    both = InternLM2Tokenizer.from_pretrained(folder, add_eos_token=True)
    assert both("Hi")["input_ids"] == [1, *ids_of(both, "Hi"), 2]
    pair = both("Hi", "there", return_special_tokens_mask=True)
    first, second = ids_of(both, "Hi"), ids_of(both, "there")
    assert pair["input_ids"] == [1, *first, *second, 2]
    assert pair["special_tokens_mask"] == [1, *[0] * len(first + second), 1]
    assert both.get_special_tokens_mask([1, 99, 2], already_has_special_tokens=True) == [1, 0, 1]
    none = InternLM2Tokenizer.from_pretrained(folder, add_bos_token=False)
    assert none("Hi")["input_ids"] == first
    assert none("")["input_ids"] == []


def test_batches_are_padded(tokenizer):
    texts = ["Hi", "Hello world, hello"]
    short, long = (tokenizer(text)["input_ids"] for text in texts)
    gap = len(long) - len(short)
    for side in ("left", "right"):
        batch = tokenizer(texts, padding=True, padding_side=side, return_tensors="pt")
        pad, ones = [2] * gap, [1] * len(short)
        row = [*pad, *short] if side == "left" else [*short, *pad]
        mask = [*[0] * gap, *ones] if side == "left" else [*ones, *[0] * gap]
        assert batch["input_ids"].tolist() == [row, long]
        assert batch["attention_mask"].tolist()[0] == mask
    assert set(batch) == {"input_ids", "attention_mask"}


# ------------------------------------------------------------------------------ text
@pytest.mark.parametrize("text", TEXTS)
def test_decoding_inverts_encoding(tokenizer, text):
    assert tokenizer.decode(ids_of(tokenizer, text)) == text
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    assert tokenizer.batch_decode([ids_of(tokenizer, text)]) == [text]


def test_decoding_keeps_special_tokens_as_they_stand(tokenizer):
    text = "<|im_start|>user\n<img><IMG_CONTEXT></img>a <ref>b</ref> <box>[[1, 2]]</box><|im_end|>"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == "<s>" + text
    answer = ids_of(tokenizer, "The<|im_end|>")
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The"
    assert tokenizer.decode([]) == ""


def test_the_character_for_a_space_comes_back_as_one(tokenizer):
    assert tokenizer.decode(ids_of(tokenizer, "a▁b")) == "a b"


def test_unknown_ids_are_refused(tokenizer):
    with pytest.raises(ValueError, match=f"id {VOCAB + 9} is neither one of the {VOCAB} pieces"):
        tokenizer.decode([VOCAB + 9])


# ------------------------------------------------------------------------------ prompts
@pytest.mark.parametrize("name", ["internlm2-chat", "internvl2_5"])
def test_prompt_in_pieces_is_the_prompt_in_one(tokenizer, name):
    template = conversation.get_conv_template(name)
    user, assistant = template.roles
    question = "\nWhat is <ref>this thing</ref>?  你好 🙂 "
    turns = [
        (user, [conversation.Visual(1), question]),
        (assistant, " A cat."),
        (user, "And this?\n"),
        (assistant, None),
    ]
    rendered = conversation.render(template, turns, num_image_token=4)
    ids = conversation.encode(rendered, tokenizer)
    assert ids == tokenizer(conversation.prompt_text(rendered))["input_ids"]
    assert ids[:2] == [1, tokenizer.convert_tokens_to_ids("<|im_start|>")]
    assert ids.count(1) == 1
    assert ids.count(tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")) == 4


def test_users_cannot_write_control_tokens(tokenizer):
    template = conversation.get_conv_template("internlm2-chat")
    text = "".join([*SPECIAL[:9], *PLACEHOLDERS, "</s><s>"])
    rendered = conversation.render(template, [(template.roles[0], text)])
    ids = conversation.encode(rendered, tokenizer)
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    # System and user: two turns, and nothing of what the user typed.
    assert (ids.count(start), ids.count(end), ids.count(1), ids.count(2)) == (2, 2, 1, 0)
    assert not set(ids) & set(tokenizer.convert_tokens_to_ids(SPECIAL[:4] + FOLLOWING[:3]))
    assert tokenizer.decode(ids) == "<s>" + conversation.prompt_text(rendered)


def test_chat_with_a_checkpoint(folder, tmp_path):
    source = checkpoint("internlm2")
    for path in (*source.glob("*.safetensors*"), source / "config.json", *folder.iterdir()):
        shutil.copy(path, tmp_path)
    loaded = hub.load(tmp_path, dtype="float32")
    assert type(loaded.tokenizer) is InternLM2Tokenizer
    assert loaded.model.img_context_token_id == VOCAB + 2
    settings = {"max_new_tokens": 12, "do_sample": False}
    answer = loaded.model.chat(loaded.tokenizer, None, "Hello", dict(settings))
    assert answer
    parts = loaded.model.chat_stream(loaded.tokenizer, None, "Hello", dict(settings))
    assert "".join(parts) == answer
    messages = [{"role": "user", "content": "Hello"}]
    inputs = loaded.processor.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    new = loaded.model.generate(**inputs, **settings)[0, inputs["input_ids"].shape[1] :]
    stop = loaded.tokenizer.convert_tokens_to_ids("<|im_end|>")
    kept = new.tolist()[: new.tolist().index(stop)] if stop in new else new
    assert loaded.tokenizer.decode(kept, skip_special_tokens=True).strip() == answer


# ------------------------------------------------------------------------------ files
def test_saved_tokenizer_gives_the_same_ids(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = InternLM2Tokenizer.from_pretrained(tmp_path)
    texts = [*TEXTS, "".join(SPECIAL), *PLACEHOLDERS]
    assert again(texts)["input_ids"] == tokenizer(texts)["input_ids"]
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.model_max_length == 8192
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert settings["tokenizer_class"] == "InternLM2Tokenizer"


def test_saving_does_without_the_file_it_was_read_from(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "source")
    tokenizer = InternLM2Tokenizer.from_pretrained(tmp_path / "source")
    shutil.rmtree(tmp_path / "source")
    (tmp_path / "saved").mkdir()
    tokenizer.save_vocabulary(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "tokenizer.model").read_bytes() == (
        folder / "tokenizer.model"
    ).read_bytes()
    with pytest.raises(ValueError, match="is not a folder"):
        tokenizer.save_vocabulary(str(tmp_path / "nowhere"))


def test_copies_are_independent_of_the_original(tokenizer):
    for twin in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert twin(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
        twin.add_tokens(["<new>"])
        assert twin.convert_tokens_to_ids("<new>") == len(tokenizer) == len(twin) - 1


def test_missing_model_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"needs the checkpoint's tokenizer\.model"):
        InternLM2Tokenizer(str(tmp_path / "tokenizer.model"))


SCRIPT = """
import json, sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("published", trust_remote_code=True, use_fast=False)
texts = json.loads(sys.stdin.read())
first = tokenizer(texts)["input_ids"]
tokenizer.save_pretrained("saved")
again = AutoTokenizer.from_pretrained("saved", trust_remote_code=True)
again.save_pretrained("twice")
assert again(texts)["input_ids"] == first
print(json.dumps([type(again).__name__, first, again.decode(first[-1])]))
"""


def test_auto_tokenizer_in_a_fresh_process(tmp_path):
    published = tmp_path / "published"
    published.mkdir()
    tokenizer = InternLM2Tokenizer.from_pretrained(describe(train(published, False)))
    shutil.copy(ROOT / "tokenization_internlm2.py", published)
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_MODULES_CACHE", None)
    text = "<|im_start|>user\nHi <img><|im_end|>"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps([*TEXTS, text]),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    kind, ids, decoded = json.loads(done.stdout.splitlines()[-1])
    assert kind == "InternLM2Tokenizer"
    assert ids == tokenizer([*TEXTS, text])["input_ids"]
    assert decoded == "<s>" + text
    for saved in ("saved", "twice"):
        assert (tmp_path / saved / "tokenization_internlm2.py").is_file()
        fields = json.loads((tmp_path / saved / "tokenizer_config.json").read_text("utf-8"))
        assert fields["auto_map"]["AutoTokenizer"][0] == (
            "tokenization_internlm2.InternLM2Tokenizer"
        )
