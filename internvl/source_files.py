"""Where the files of a checkpoint are, and whether they are all there. Nothing is executed.

source (folder, Hub id) -> local folder -> config.json read, safetensors looked into
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
# What is downloaded from the Hub: never pickles, and code only when asked for.
SETTINGS = ("*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
DATA = (*SETTINGS, "*.safetensors")
CODE = (*DATA, "*.py")
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_SHOWN = 8


def resolve(
    source: str | Path,
    subfolder: str | None = None,
    revision: str | None = None,
    patterns: Iterable[str] = DATA,
) -> Path:
    """Find the local folder of a source; what is on the Hub is downloaded, or found in its cache.

    Args:
        source: folder or Hub id.
        subfolder: folder within the source.
        revision: branch, tag or commit of a Hub repository.
        patterns: what to download of a Hub repository: DATA, SETTINGS or CODE.

    Raises:
        FileNotFoundError: neither a folder nor a repository, or no such subfolder.
    """
    if Path(source).expanduser().is_dir():
        folder = Path(source).expanduser()
    elif isinstance(source, str) and _HUB_ID.fullmatch(source):
        folder = _snapshot(source, subfolder, revision, patterns)
    else:
        raise FileNotFoundError(
            f"{source} is neither a folder nor the id of a Hub repository (owner/name)."
        )
    folder = folder / (subfolder or "")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist; check source and subfolder.")
    return folder


def _snapshot(
    source: str, subfolder: str | None, revision: str | None, patterns: Iterable[str]
) -> Path:
    from huggingface_hub import snapshot_download

    # A repository may hold other checkpoints in folders; code is taken from anywhere.
    everywhere = "*.py" in patterns
    prefix = f"{subfolder.strip('/')}/" if subfolder and not everywhere else ""
    try:
        folder = snapshot_download(
            source,
            revision=revision,
            allow_patterns=[prefix + pattern for pattern in patterns],
            ignore_patterns=None if subfolder or everywhere else ["*/*"],
        )
    except (OSError, ValueError) as error:  # not found, not reachable, not an id
        raise FileNotFoundError(
            f"{source} is not a folder here, and the Hub repository of that name could not be "
            f"read: {error}"
        ) from error
    logger.info("%s is %s", source, folder)  # the folder is named after the commit
    return Path(folder)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        ValueError: it is not there, or holds something else.
    """
    if not path.is_file():
        raise ValueError(
            f"{path.parent} has no {path.name}, so it is not a checkpoint; check source and "
            "subfolder."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}); download the checkpoint again."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds a {type(content).__name__}, expected an object; download it again."
        )
    return content


def optional_json(path: Path) -> dict[str, Any]:
    """Read a JSON file as `read_json` does; {} if it is not there."""
    return read_json(path) if path.is_file() else {}


def check_weights(folder: Path) -> None:
    """Refuse weights that are pickled, incomplete or damaged, before anything is built.

    Raises:
        ValueError: which, and of what file.
    """
    from safetensors import SafetensorError, safe_open

    index = optional_json(folder / "model.safetensors.index.json")
    if index:
        weight_map = index.get("weight_map")
        if not weight_map or not all(isinstance(name, str) for name in weight_map.values()):
            raise ValueError(
                f"the index in {folder} has no map from tensors to files (weight_map); download "
                "the checkpoint again."
            )
        files = sorted(set(weight_map.values()))
        outside = [name for name in files if not is_plain(name)]
        if outside:
            raise ValueError(
                f"the index in {folder} names {some(outside)}, expected names of safetensors files "
                "in that folder; do not use this checkpoint before you know who wrote it."
            )
        missing = [name for name in files if not (folder / name).is_file()]
        if missing:
            raise ValueError(
                f"{folder} lacks {some(missing)} of the {len(files)} weight files that its index "
                "names; download the checkpoint again."
            )
    elif (folder / "model.safetensors").is_file():
        files = ["model.safetensors"]
    else:
        pickled = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        if pickled:
            raise ValueError(
                f"{folder} holds pickled weights only ({some(pickled)}). Unpickling runs code "
                "that the file carries, so they are refused; convert them to safetensors, or take "
                "a revision of the checkpoint that has them."
            )
        raise ValueError(
            f"{folder} holds no model.safetensors and no index of one; weights are read from "
            "safetensors."
        )
    for name in files:
        try:
            with safe_open(folder / name, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{folder / name} is damaged or incomplete ({error}); download it again."
            ) from error
    if (folder / "custom_generate").exists():
        raise ValueError(
            f"{folder} holds custom_generate/, code that transformers 4.57 would run without "
            "asking; remove that folder from the checkpoint."
        )


def is_plain(name: str) -> bool:
    """Whether a weight file stands in the folder itself, wherever paths are written how."""
    return name.endswith(".safetensors") and not set(name) & set("/\\:") and name[0] != "."


def some(names: Iterable[str]) -> str:
    """The first few of many names."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
