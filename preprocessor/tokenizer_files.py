"""Tokenizer files that transformers 4.57 reads, whichever version wrote them.

transformers 5 saves tokenizer.json and names classes that 4.x does not have; 4.57 builds its slow
tokenizers (`use_fast=False`, as the official model cards load them) from vocab.json and merges.txt.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def make_portable(folder: Path) -> None:
    """Complete the tokenizer files that were just saved into a folder.

    Args:
        folder: holds tokenizer_config.json and, of a fast tokenizer, tokenizer.json.
    """
    _portable_config(folder / "tokenizer_config.json")
    _slow_vocabulary(folder)


def _portable_config(file: Path) -> None:
    """5.x names its own base class and lists additional special tokens where 4.x reads a dict."""
    if not file.is_file():
        return
    content = json.loads(file.read_text(encoding="utf-8"))
    before = dict(content)
    if content.get("tokenizer_class") == "TokenizersBackend":
        content["tokenizer_class"] = "PreTrainedTokenizerFast"
    extra = content.get("extra_special_tokens")
    if isinstance(extra, list):
        del content["extra_special_tokens"]
        content["additional_special_tokens"] = extra
    for key in ("is_local", "local_files_only"):  # where it was once loaded from
        content.pop(key, None)
    if content != before:
        _write(file, json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True) + "\n")


def _slow_vocabulary(folder: Path) -> None:
    """Write vocab.json and merges.txt out of a byte-level tokenizer.json."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return
    model: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")).get("model", {})
    if model.get("type") != "BPE" or not isinstance(model.get("merges"), list):
        return
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    contents = {
        "vocab.json": json.dumps(model["vocab"], ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]),
    }
    for name, content in contents.items():
        if not (folder / name).is_file():
            _write(folder / name, content)


def _write(file: Path, content: str) -> None:
    partial = file.with_name(file.name + ".partial")
    partial.write_text(content, encoding="utf-8")
    os.replace(partial, file)
