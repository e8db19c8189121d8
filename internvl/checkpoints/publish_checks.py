"""Whether what goes to the Hub can be found, loaded and trusted there.

    card (YAML header, links) · code (auto_map, imports of siblings) · files that loaders ask for
      · weights · secrets · and what `internvl verify` finds

An error makes the repository useless or dangerous; a warning is something its readers will miss.
Nothing of the folder is imported.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from internvl import hub
from internvl.checkpoints.verify import verify
from internvl.source_files import optional_json, some

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_WITH_AUTO_MAP = (
    "config.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
_CHAT_FILES = (
    "chat_template.jinja",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
)
# transformers finds the siblings of a module with this pattern, docstrings included.
_SIBLING = re.compile(r"^\s*from\s+\.(\S+)\s+import", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s#]+)")
_SECRETS = {
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{30,}"),
    "an OpenAI key": re.compile(r"\bsk-[A-Za-z0-9_-]{32,}"),
    "a GitHub token": re.compile(r"\bgh[pousr]_[A-Za-z0-9]{36,}"),
    "an AWS key": re.compile(r"\bAKIA[0-9A-Z]{16}\b"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
}
_TEXT = (".py", ".json", ".md", ".jinja", ".txt", ".toml", ".yaml", ".yml", ".sh", ".cfg", ".ini")
_READ = 2**20  # bytes; larger text files are vocabularies


@dataclass
class _Findings:
    folder: Path
    names: frozenset[str]
    fields: Mapping[str, Any]
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def chat(self) -> bool:
        return self.fields.get("model_type") == hub.CHAT_TYPE


def check(
    folder: Path, names: list[str], *, clone: bool = False
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Check the files that would be uploaded.

    Args:
        folder: where they are.
        names: their paths in the repository.
        clone: the folder is a clone of this repository, which may lack weights.

    Returns:
        Errors and warnings, in sentences.
    """
    fields: dict[str, Any] = {}
    errors = []
    try:
        fields = optional_json(folder / "config.json")
    except ValueError as error:
        errors.append(str(error))
    found = _Findings(folder, frozenset(names), fields, errors)
    if "config.json" not in found.names:
        found.errors.append("there is no config.json, so nothing can load it")
    _card(found)
    _code(found)
    _files(found)
    _weights(found, clone=clone)
    _secrets(found)
    if not clone and not found.errors:
        # Which files are there is checked above, without those that stay here.
        checks = [done for done in verify(folder, values=False).checks if done.name != "files"]
        found.errors += [defect for done in checks for defect in done.defects]
    return tuple(found.errors), tuple(found.warnings)


# ---------------------------------------------------------------------- card
def _card(found: _Findings) -> None:
    """README.md states what the Hub sorts and filters by, and its links lead somewhere."""
    from huggingface_hub import ModelCard
    from yaml import YAMLError

    if "README.md" not in found.names:
        found.errors.append("there is no README.md, the card of the repository")
        return
    try:
        card = ModelCard.load(found.folder / "README.md")
    except (YAMLError, ValueError, TypeError) as error:
        found.errors.append(f"the header of README.md is not valid: {error}")
        return
    data = card.data
    pipeline = "image-text-to-text" if found.chat else "image-feature-extraction"
    for name, wanted in (("pipeline_tag", pipeline), ("library_name", "transformers")):
        value = getattr(data, name, None)
        if value != wanted:
            found.warnings.append(f"README.md says {name} {value!r}, expected {wanted!r}")
    if not data.license:
        found.warnings.append("README.md says no license")
    elif data.license == "other":
        lacking = [name for name in ("license_name", "license_link") if not data.get(name)]
        if lacking:
            found.warnings.append(f"README.md says license other, but no {', '.join(lacking)}")
    if not data.base_model:
        found.warnings.append("README.md says no base_model")
    if "custom_code" not in (data.tags or []):
        found.warnings.append("README.md lacks the tag custom_code")
    dangling = sorted({link for link in _links(card.text) if not _there(link, found.names)})
    if dangling:
        found.warnings.append(f"README.md links to files that stay here: {some(dangling)}")


def _links(text: str) -> Iterator[str]:
    for link in _LINK.findall(text):
        if not re.match(r"[a-z]+:", link):
            yield str(PurePosixPath(link))


def _there(link: str, names: frozenset[str]) -> bool:
    return link in names or any(name.startswith(f"{link}/") for name in names)


# ---------------------------------------------------------------------- code
def _code(found: _Findings) -> None:
    """Every class that a settings file names is there, with every sibling of its module."""
    wanted = set()
    for name in _WITH_AUTO_MAP:
        if name not in found.names:
            continue
        for reference in _references(optional_json(found.folder / name).get("auto_map") or {}):
            if "--" in reference:
                found.errors.append(f"{name} takes {reference} from another repository")
                continue
            module, _, attribute = reference.rpartition(".")
            wanted.add(f"{module}.py")
            if not _defines(found, f"{module}.py", attribute):
                found.errors.append(f"{name} names {reference}, which no file defines")
    if found.fields and not found.fields.get("auto_map"):
        found.errors.append("config.json has no auto_map, so AutoModel cannot load it")
    seen: set[str] = set()
    while wanted - seen:
        path = (wanted - seen).pop()
        seen.add(path)
        if path not in found.names:
            continue
        for sibling in _SIBLING.findall((found.folder / path).read_text(encoding="utf-8")):
            target = (PurePosixPath(path).parent / f"{sibling}.py").as_posix()
            if target not in found.names:
                found.errors.append(f"{path} imports {target}, which is not among the files")
            wanted.add(target)


def _references(auto_map: Mapping[str, Any]) -> Iterator[str]:
    for value in auto_map.values():
        for reference in value if isinstance(value, list) else [value]:
            if reference:
                yield reference


def _defines(found: _Findings, path: str, name: str) -> bool:
    if path not in found.names:
        return False
    try:
        tree = ast.parse((found.folder / path).read_text(encoding="utf-8"))
    except SyntaxError:
        return False
    return any(isinstance(node, ast.ClassDef) and node.name == name for node in tree.body)


# ---------------------------------------------------------------------- files
def _files(found: _Findings) -> None:
    """What AutoProcessor, AutoTokenizer and generate() ask for."""
    wanted = _CHAT_FILES if found.chat else ("preprocessor_config.json",)
    missing = [name for name in wanted if name not in found.names]
    if found.chat and not {"tokenizer.json", "tokenizer.model"} & found.names:
        missing.append("tokenizer.json or tokenizer.model")
    if missing:
        found.errors.append(f"there is no {some(missing)}")


def _weights(found: _Findings, *, clone: bool) -> None:
    """The weight files are those that the index names."""
    shards = {name for name in found.names if "/" not in name and name.endswith(".safetensors")}
    if _INDEX in found.names:
        index = optional_json(found.folder / _INDEX)
        named = set(index.get("weight_map", {}).values())
        missing, stray = sorted(named - shards), sorted(shards - named)
        if missing:
            found.errors.append(f"{_INDEX} names {some(missing)}, which are not here")
        if stray:
            found.errors.append(f"{some(stray)} are not named by {_INDEX}")
    elif shards != {_SINGLE}:
        text = f"there are no weights: neither {_SINGLE} nor {_INDEX}"
        if shards:
            text = f"{some(sorted(shards))} need {_INDEX}"
        (found.warnings if clone and not shards else found.errors).append(text)


def _secrets(found: _Findings) -> None:
    """No text file holds an access token."""
    for name in sorted(found.names):
        path = found.folder / name
        if path.suffix not in _TEXT or not path.is_file() or path.stat().st_size > _READ:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        for what, pattern in _SECRETS.items():
            if pattern.search(text):
                found.errors.append(f"{name} holds what looks like {what}")
