"""The tokenizer of a native checkpoint gives the ids of ours; InternLM2's is written anew."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from internvl import hub
from internvl.checkpoints.convert import convert
from internvl.checkpoints.native.tokenizer import write_native_tokenizer
from tests import support

pytest.importorskip("sentencepiece")
from tests.model.test_tokenization_internlm2 import (
    SPECIAL,
    TEXTS,
    describe,
    train,
)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "dummy_prefix"])
def folders(request, tmp_path_factory) -> tuple[Path, Path]:
    """An InternLM2 checkpoint with its own tokenizer.model, and the native one made of it."""
    root = tmp_path_factory.mktemp("internlm2")
    files = ("tokenizer.json", "vocab.json", "merges.txt")
    ignore = shutil.ignore_patterns(*files)
    shutil.copytree(support.checkpoint("internlm2"), root / "source", ignore=ignore)
    describe(train(root / "source", request.param))
    convert(root / "source", root / "native", to="native", check=False)
    return root / "source", root / "native"


def test_sentencepiece_becomes_a_tokenizer_json(folders):
    source, folder = folders
    ours, native = hub.prepare(source).tokenizer, AutoTokenizer.from_pretrained(folder)
    assert isinstance(native, PreTrainedTokenizerFast)
    corpus = (support.ROOT / "modeling_internvl_chat.py").read_text("utf-8").splitlines()
    texts = [*TEXTS, *SPECIAL, "a<|im_end|>b", " <img> </s><s>", *filter(str.strip, corpus)]
    for text in texts:
        assert native(text)["input_ids"] == ours(text)["input_ids"], text
    for text in TEXTS:
        assert native.decode(ours(text)["input_ids"], skip_special_tokens=True) == text
    assert native.convert_tokens_to_ids(SPECIAL) == ours.convert_tokens_to_ids(SPECIAL)


def test_the_sentencepiece_model_comes_back(folders, tmp_path):
    source, folder = folders
    convert(folder, tmp_path / "back", to="official", check=False)
    for name in ("tokenizer.model", "added_tokens.json", "special_tokens_map.json"):
        assert json_or_bytes(tmp_path / "back" / name) == json_or_bytes(source / name)
    assert json_or_bytes(tmp_path / "back" / "tokenizer_config.json") == json_or_bytes(
        source / "tokenizer_config.json"
    )
    names = {path.name for path in (tmp_path / "back").iterdir()}
    assert not names & {"tokenizer.json", "vocab.json", "merges.txt"}
    tokenizer = hub.prepare(tmp_path / "back").tokenizer
    assert type(tokenizer).__name__ == "InternLM2Tokenizer"


def json_or_bytes(path: Path):
    return json.loads(path.read_text("utf-8")) if path.suffix == ".json" else path.read_bytes()


def test_named_tokens(tmp_path):
    """What InternVLProcessor asks its tokenizer for."""
    convert(hub.DEMO, tmp_path / "native", to="native", check=False)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "native")
    ours = hub.prepare().tokenizer
    for name, token in {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
    }.items():
        assert getattr(tokenizer, name) == token
        assert getattr(tokenizer, f"{name}_id") == ours.convert_tokens_to_ids(token)
    assert tokenizer.video_token == "<video>"
    assert tokenizer.video_token_id == len(ours)
    assert tokenizer.decode(ours("<ref>a</ref> b<|im_end|>")["input_ids"], True) == "a b"


def test_a_tokenizer_that_gives_other_ids_is_refused(tmp_path):
    source = support.checkpoint("qwen2")
    shutil.copy(source / "config.json", tmp_path)
    with pytest.raises(ValueError, match="the native tokenizer encodes 'Hello world' as"):
        write_native_tokenizer(source, hub.prepare().tokenizer, tmp_path)
