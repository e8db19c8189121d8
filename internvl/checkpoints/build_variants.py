"""Write the JSON and template files that describe published checkpoints.

    python -m internvl.checkpoints.build_variants           # write
    python -m internvl.checkpoints.build_variants --check   # compare; exit code 1 on a difference

`variants/<name>/` gets a folder for each entry of published.py; config.json and
generation_config.json of the repository root are those of the 78B. The three processor files start
from the root's, which belong to the preprocessor.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from internvl.checkpoints.published import (
    CHAT_MODELS,
    ROOT_MODEL,
    VISION_ENCODERS,
    ChatModel,
    VisionEncoder,
)
from internvl.hub import REPOSITORY, ring0

logger = logging.getLogger(__name__)

_CONFIG = "configuration_internvl_chat.InternVLChatConfig"
_MODEL = "modeling_internvl_chat.InternVLChatModel"
_PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
_ROOT_FILES = ("config.json", "generation_config.json", "chat_template.jinja")


def chat_config(model: ChatModel) -> dict[str, Any]:
    """The config.json of a chat model."""
    return {
        "architectures": ["InternVLChatModel"],
        "auto_map": {
            "AutoConfig": _CONFIG,
            "AutoModel": _MODEL,
            "AutoModelForCausalLM": _MODEL,
            "AutoModelForImageTextToText": _MODEL,
            "AutoModelForMultimodalLM": _MODEL,
        },
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": 448,
        "hidden_size": model.language.shape[0],
        "img_context_token_id": model.language.family.img_context,
        "llm_config": model.language.config(),
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "model_type": "internvl_chat",
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "template": model.template,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        # Without it 4.57 warns of a wrong pattern in any large tokenizer, and advises to break it.
        "transformers_version": "5.23.0",
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": True,
        "vision_config": model.vision.config(),
    }


def generation_config(model: ChatModel) -> dict[str, Any]:
    """The generation_config.json of a chat model: its special ids, and greedy decoding."""
    family = model.language.family
    return {
        "bos_token_id": family.bos,
        "eos_token_id": list(family.stop),
        "pad_token_id": family.pad,
        "use_cache": True,
    }


def vision_config(encoder: VisionEncoder) -> dict[str, Any]:
    """The config.json of a vision encoder."""
    return {
        **encoder.config(),
        "auto_map": {
            "AutoConfig": "configuration_intern_vit.InternVisionConfig",
            "AutoModel": "modeling_intern_vit.InternVisionModel",
        },
    }


def chat_files(model: ChatModel, processors: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Name and content of every file of a chat model's folder.

    Args:
        model: which one.
        processors: content of the processor files of the repository root.
    """
    conversation = ring0("conversation")
    config = chat_config(model)
    tile = {"height": config["force_image_size"], "width": config["force_image_size"]}
    patches = config["force_image_size"] // config["vision_config"]["patch_size"]
    changes = {
        "preprocessor_config.json": {
            "crop_size": tile,
            "max_tiles": config["max_dynamic_patch"],
            "min_tiles": config["min_dynamic_patch"],
            "pad2square": config["pad2square"],
            "size": tile,
            "use_thumbnail": config["use_thumbnail"],
        },
        "processor_config.json": {
            "image_seq_length": int((patches * config["downsample_ratio"]) ** 2),
            "template": model.template,
        },
        "video_preprocessor_config.json": {"crop_size": tile, "size": tile},
    }
    jinja = conversation.chat_template(conversation.get_conv_template(model.template))
    return {
        "config.json": _dump(config),
        "generation_config.json": _dump(generation_config(model)),
        "chat_template.jinja": jinja,
        **{name: _dump({**processors[name], **changed}) for name, changed in changes.items()},
    }


def vision_files(encoder: VisionEncoder, processors: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Name and content of every file of a vision encoder's folder: it sees whole images."""
    tile = {"height": encoder.image_size, "width": encoder.image_size}
    whole = {"crop_size": tile, "size": tile, "max_tiles": 1, "min_tiles": 1}
    name = "preprocessor_config.json"
    return {
        "config.json": _dump(vision_config(encoder)),
        name: _dump({**processors[name], **whole, "use_thumbnail": False}),
    }


def files(repository: Path = REPOSITORY) -> dict[Path, str]:
    """Path and content of every generated file.

    Raises:
        FileNotFoundError: the repository root lacks a processor file.
    """
    processors = {
        name: json.loads((repository / name).read_text(encoding="utf-8"))
        for name in _PROCESSOR_FILES
    }
    folders = {model.name: chat_files(model, processors) for model in CHAT_MODELS}
    root = {repository / name: folders[ROOT_MODEL][name] for name in _ROOT_FILES}
    folders |= {encoder.name: vision_files(encoder, processors) for encoder in VISION_ENCODERS}
    variants = {
        repository / "variants" / folder / name: content
        for folder, contents in folders.items()
        for name, content in contents.items()
    }
    return root | variants


def differences(repository: Path = REPOSITORY) -> list[str]:
    """What is missing, stale or unknown on disk, one line each."""
    expected = files(repository)
    found = []
    for path, content in expected.items():
        name = path.relative_to(repository).as_posix()
        if not path.is_file():
            found.append(f"{name} is missing")
        elif path.read_bytes() != content.encode("utf-8"):
            found.append(f"{name} differs from what internvl/checkpoints/published.py says")
    for path in sorted((repository / "variants").rglob("*")):
        if path.is_file() and path not in expected:
            found.append(f"{path.relative_to(repository).as_posix()} is not generated by anything")
    return found


def write(repository: Path = REPOSITORY) -> None:
    """Write every generated file, each in one step."""
    for path, content in files(repository).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(content.encode("utf-8"))
        partial.replace(path)


def main(arguments: list[str] | None = None, repository: Path = REPOSITORY) -> int:
    """Run the command line on a repository and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with what is on disk")
    if not parser.parse_args(arguments).check:
        write(repository)
        return 0
    found = differences(repository)
    for line in found:
        logger.error("%s", line)
    if found:
        logger.error("run: python -m internvl.checkpoints.build_variants")
    return 1 if found else 0


def _dump(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main())
