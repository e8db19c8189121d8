"""The tokenizer files of transformers' own InternVL, from those of the published layout and back.

    tokenizer files -> the same, with the names under which InternVLProcessor asks for its tokens
    InternLM2's tokenizer.model (sentencepiece) -> tokenizer.json too, since native checkpoints run
                                                   no code; ids are compared

The one token that no published vocabulary has is `<video>`: transformers adds it on loading, with
an id beyond the embedding. The native processor replaces it before anything is encoded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from internvl.checkpoints.settings import copy_tokenizer, dump
from internvl.checkpoints.tensors import write_text
from internvl.source_files import optional_json

VIDEO = "<video>"
NAMED = {
    "context_image_token": "<IMG_CONTEXT>",
    "end_image_token": "</img>",
    "start_image_token": "<img>",
    "video_token": VIDEO,
}
_CONFIG = "tokenizer_config.json"
_SLOW, _FAST = "InternLM2Tokenizer", "PreTrainedTokenizerFast"
# Encoded by both tokenizers before a converted one is written.
_SAMPLES = (
    "Hello world",
    "  two spaces before,  between  and after  ",
    "\n\nlines\r\n\tand tabs\n",
    "def f(x):\n    return x ** 2  # 3.14159",
    "描述这张图片。 What is <ref>this</ref>?",
    "naïve café 👩‍🚀 ﷽ ᚠ",
    "<|im_start|>user\n<img><IMG_CONTEXT></img>\nHi there <|im_end|>",
)


# ---------------------------------------------------------------------- ours -> native
def write_native_tokenizer(source: Path, tokenizer: Any, folder: Path) -> None:
    """Copy tokenizer files, and name the tokens of images in them.

    Args:
        source: folder of the tokenizer files.
        tokenizer: what they load as.
        folder: where to; its config.json is written.

    Raises:
        ValueError: a sentencepiece model that could not be written as tokenizer.json.
    """
    copy_tokenizer(source, folder)
    fields = optional_json(folder / _CONFIG)
    if fields.get("tokenizer_class") == _SLOW:
        write_text(folder / "tokenizer.json", fast_internlm2(tokenizer).to_str(pretty=True) + "\n")
        fields |= {"tokenizer_class": _FAST}
        fields.pop("auto_map", None)
    # Without it transformers 5 takes the class that most native checkpoints have, Qwen2's.
    fields.setdefault("tokenizer_class", _FAST)
    fields |= {"extra_special_tokens": NAMED, "processor_class": "InternVLProcessor"}
    write_text(folder / _CONFIG, dump(fields))
    _compare(tokenizer, folder)


def fast_internlm2(slow: Any) -> Any:
    """The `tokenizers.Tokenizer` that gives the ids of an InternLM2Tokenizer.

    Byte-pair merges are not stored in a sentencepiece model; they follow from its scores.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    pieces = slow.sp_model
    # An added token takes the place of the piece whose id it has.
    names = {index: str(token) for index, token in slow.added_tokens_decoder.items()}
    vocabulary = {names.get(i, pieces.id_to_piece(i)): i for i in range(pieces.get_piece_size())}
    plain = {
        pieces.id_to_piece(i): i
        for i in range(pieces.get_piece_size())
        if i not in names and not pieces.is_control(i) and not pieces.is_unknown(i)
    }
    model = models.BPE(
        vocabulary,
        list(_merges(plain, pieces)),
        unk_token=slow.unk_token,
        fuse_unk=True,
        byte_fallback=True,
    )
    fast = Tokenizer(model)
    prefixed = pieces.encode("a", out_type=str)[0].startswith("▁")
    steps = [normalizers.Prepend("▁")] if prefixed else []
    fast.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    joined = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefixed:
        joined.append(decoders.Strip(" ", 1, 0))
    fast.decoder = decoders.Sequence(joined)
    fast.add_tokens(
        [
            AddedToken(str(token), normalized=False, special=token.special)
            for _, token in sorted(slow.added_tokens_decoder.items())
        ]
    )
    if slow.add_bos_token:
        bos = (slow.bos_token, slow.bos_token_id)
        fast.post_processor = processors.TemplateProcessing(
            single=f"{bos[0]} $A", pair=f"{bos[0]} $A $B", special_tokens=[bos]
        )
    return fast


def _merges(vocabulary: dict[str, int], pieces: Any) -> Iterator[tuple[str, str]]:
    """Pairs that make a piece of the vocabulary, best score first."""
    found = []
    for piece, index in vocabulary.items():
        score = pieces.get_score(index)
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary:
                found.append((-score, len(left), len(right), vocabulary[left], left, right))
    for *_, left, right in sorted(found):
        yield left, right


def _compare(tokenizer: Any, folder: Path) -> None:
    """Check that a native tokenizer gives our ids.

    Raises:
        ValueError: a text whose ids differ, or a token that has another id.
    """
    native = native_tokenizer(folder)
    for text in _SAMPLES:
        expected, found = tokenizer(text)["input_ids"], native(text)["input_ids"]
        if found != expected:
            raise ValueError(
                f"the native tokenizer encodes {text!r} as {found}, ours as {expected}; the "
                "vocabulary is one that transformers' own classes cannot express."
            )
    for token, index in tokenizer.get_added_vocab().items():
        if native.convert_tokens_to_ids(token) != index:
            raise ValueError(
                f"{token} has id {native.convert_tokens_to_ids(token)} in the native tokenizer, "
                f"expected {index}."
            )


def native_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a native folder, whose config.json is there, without running code."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


# ---------------------------------------------------------------------- native -> ours
def restore_tokenizer(source: Path, folder: Path, *, rows: int, internlm2: bool) -> None:
    """Copy the tokenizer files of a native checkpoint without what is native about them.

    Args:
        source: the native folder.
        folder: where to.
        rows: rows of the embedding; a `<video>` beyond them is taken out.
        internlm2: the language model becomes InternLM2 again; so does its tokenizer, if its
            tokenizer.model is there.

    Raises:
        ValueError: a tokenizer that only code of the source can build.
    """
    copy_tokenizer(source, folder)
    fields = optional_json(folder / _CONFIG)
    for name in ("processor_class", *NAMED):
        fields.pop(name, None)
    extra = fields.get("extra_special_tokens")
    if isinstance(extra, dict):
        fields["extra_special_tokens"] = {k: v for k, v in extra.items() if k not in NAMED}
    fields.pop("model_specific_special_tokens", None)
    if internlm2 and (folder / "tokenizer.model").is_file():
        for name in ("tokenizer.json", "vocab.json", "merges.txt"):
            (folder / name).unlink(missing_ok=True)
        fields["tokenizer_class"] = _SLOW
        fields["auto_map"] = {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]}
    for name in ("extra_special_tokens", "additional_special_tokens"):
        if isinstance(fields.get(name), list):
            fields[name] = [token for token in fields[name] if token != VIDEO]
        if name in fields and not fields[name]:
            fields.pop(name)
    decoder = fields.get("added_tokens_decoder") or {}
    for index in [i for i, token in decoder.items() if _beyond(token.get("content"), i, rows)]:
        decoder.pop(index)
    write_text(folder / _CONFIG, dump(fields))
    _remove_video(folder, rows)


def _beyond(token: str | None, index: int | str, rows: int) -> bool:
    return token == VIDEO and int(index) >= rows


def _remove_video(folder: Path, rows: int) -> None:
    """Take `<video>` out of the other files that list added tokens."""
    path = folder / "tokenizer.json"
    if path.is_file():
        content = json.loads(path.read_text(encoding="utf-8"))
        kept = [t for t in content["added_tokens"] if not _beyond(t["content"], t["id"], rows)]
        if kept != content["added_tokens"]:
            content["added_tokens"] = kept
            write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    path = folder / "added_tokens.json"
    added = optional_json(path)
    if _beyond(VIDEO if VIDEO in added else None, added.get(VIDEO, 0), rows):
        added.pop(VIDEO)
        write_text(path, dump(added))
    path = folder / "special_tokens_map.json"
    special = optional_json(path)
    if "video_token" in special:
        write_text(path, dump({name: v for name, v in special.items() if name not in NAMED}))
