"""What the tests share: the golden checkpoints, their inputs, and repositories built from them."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import Qwen2TokenizerFast

from internvl import hub

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
NAMES = ("qwen2", "qwen2_vit6b", "internlm2", "phi3")
IMG_CONTEXT_ID = 1005
MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]

configuration = hub.ring0("configuration_internvl_chat")
conversation = hub.ring0("conversation")
modeling = hub.ring0("modeling_internvl_chat")
modeling_vit = hub.ring0("modeling_intern_vit")


def checkpoint(name: str) -> Path:
    """Folder of a golden checkpoint."""
    return GOLDEN / "checkpoints" / name


def golden(name: str) -> dict[str, torch.Tensor]:
    """Golden tensors of a checkpoint."""
    return load_file(GOLDEN / "model" / name / "golden.safetensors")


def golden_json(name: str, file: str) -> Any:
    """Golden JSON of a checkpoint: "chat", "logits" or "train"."""
    return json.loads((GOLDEN / "model" / name / f"{file}.json").read_text(encoding="utf-8"))


def tile_size(name: str) -> int:
    """Side of a tile in pixels."""
    return 112 if name in ("qwen2", "internlm2") else 56


@functools.cache
def _pixels(side: int) -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "model" / f"pixels_{side}.safetensors")


def pixels(name: str, images: str | None) -> torch.Tensor | None:
    """Normalised tiles of golden images: "A" (5 tiles), "B" (4), "C" (1), "AB", "frames" (4), "
    "... or None."""
    if not images:
        return None
    stored = _pixels(tile_size(name))
    parts = [images] if images in stored else list(images)
    tiles = torch.cat([stored[part] for part in parts])
    return (tiles.float() / 255 - MEAN) / STD if tiles.dtype == torch.uint8 else tiles


def tokenizer(name: str) -> Any:
    """Tokenizer of a golden checkpoint."""
    return Qwen2TokenizerFast.from_pretrained(checkpoint(name))


def load(name: str, *, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """Load a golden checkpoint with this repository's code, strictly."""
    model, info = modeling.InternVLChatModel.from_pretrained(
        checkpoint(name), dtype=dtype, output_loading_info=True, **options
    )
    assert not any(info.values()), info
    # The golden tokenizers close with tokens of InternVL 1.1, so the rule of published vocabularies
    # does not hold.
    model.img_context_token_id = IMG_CONTEXT_ID
    return model.eval()


def copy_code(folder: Path) -> None:
    """Copy the remote code of this repository into a folder, as a Hub repository has it."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in ROOT.glob("*.py"):
        shutil.copy(file, folder)
    shutil.copytree(
        ROOT / "preprocessor", folder / "preprocessor", ignore=shutil.ignore_patterns("__pycache__")
    )
