"""`internvl verify`: is this folder a whole and sound checkpoint?

    files -> code -> config -> weights (index, headers, names, shapes, dtype, NaN) -> tokenizer
      -> template -> a report that names each defect

Every check goes on as far as it can, so that one report names all that is wrong. Nothing of the
folder is imported or unpickled.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from internvl import hub
from internvl.checkpoints import code_hashes
from internvl.checkpoints.headers import read_header
from internvl.checkpoints.settings import AUTO_MAP, PROCESSOR_FILES, VISION_AUTO_MAP
from internvl.checkpoints.tensors import (
    BYTES,
    DTYPES,
    INDEX,
    SINGLE,
    Stored,
    layout,
)
from internvl.source_files import PICKLES, is_plain, optional_json, read_json, some

logger = logging.getLogger(__name__)

_UNFINISHED = ("*.partial", "*.incomplete", "*.lock")


@dataclass(frozen=True)
class Check:
    """The outcome of a check.

    Attributes:
        name: "files", "code", "config", "weights", "values", "tokenizer" or "template".
        defects: what is wrong, in sentences; the folder is not sound with any.
        notes: what is worth knowing.
        summary: what was looked at.
    """

    name: str
    defects: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    summary: str = ""


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
        folder: the folder.
        checks: one after the other.
    """

    folder: str
    checks: tuple[Check, ...]

    @property
    def defects(self) -> tuple[str, ...]:
        """All defects."""
        return tuple(defect for check in self.checks for defect in check.defects)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "sound": not self.defects}


@dataclass
class _Folder:
    """What the checks hand on to those after them."""

    path: Path
    fields: dict[str, Any] = field(default_factory=dict)
    config: Any = None
    stored: dict[str, Stored] = field(default_factory=dict)
    defects: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def chat(self) -> bool:
        return self.fields.get("model_type") == hub.CHAT_TYPE


def verify(folder: str | Path, *, values: bool = True) -> Report:
    """Check a folder.

    Args:
        folder: a self-contained folder, a subfolder of a repository that holds the code, or a
            folder in the published layout.
        values: read all weights and look for NaN and infinity.

    Raises:
        FileNotFoundError: no such folder.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder.")
    looked_at = _Folder(path)
    checks: list[Callable[[_Folder], str]] = [_files, _config, _code, _weights]
    checks += [_values] if values else []
    checks += [_tokenizer, _template]
    return Report(str(path), tuple(_run(check, looked_at) for check in checks))


def describe(report: Report) -> str:
    """Write a report as text, one line a finding."""
    lines = []
    for check in report.checks:
        marks = [*(("DEFECT", d) for d in check.defects), *(("note", n) for n in check.notes)]
        if not check.defects:
            marks.insert(0, ("ok", check.summary))
        lines += [f"{mark:7} {check.name:10} {text}" for mark, text in marks]
    count = len(report.defects)
    verdict = "sound" if not count else f"{count} defect{'s' if count > 1 else ''}"
    return "\n".join([*lines, f"{report.folder}: {verdict}"])


def _run(check: Callable[[_Folder], str], folder: _Folder) -> Check:
    folder.defects, folder.notes = [], []
    name, summary = check.__name__.strip("_"), ""
    try:
        summary = check(folder)
    except Exception as error:  # noqa: BLE001  (whatever a damaged file makes of it has to be named)
        folder.defects.append(f"this check could not be finished: {type(error).__name__}: {error}")
    return Check(name, tuple(folder.defects), tuple(folder.notes), summary)


# ---------------------------------------------------------------------- files and code
def _files(folder: _Folder) -> str:
    """No pickles, nothing unfinished, nothing that is run without being asked for."""
    files = [path for path in folder.path.iterdir() if path.is_file()]
    for pattern in PICKLES:
        found = sorted(path.name for path in files if path.match(pattern))
        if found:
            folder.defects.append(
                f"pickled files can carry code: {some(found)}; delete them, weights are read from "
                "safetensors"
            )
    for pattern in _UNFINISHED:
        found = sorted(path.name for path in files if path.match(pattern))
        if found:
            folder.defects.append(f"left over by a stopped run: {some(found)}; delete them")
    if (folder.path / "custom_generate").exists():
        folder.defects.append("custom_generate/ is code that transformers 4.57 runs unasked")
    return f"{len(files)} files, no pickles"


def _code(folder: _Folder) -> str:
    """The remote code that config.json names is ours, unchanged."""
    root = next((p for p in (folder.path, folder.path.parent) if _modules(p, folder.fields)), None)
    if root is None:
        named = ", ".join(sorted({_module(name) for name in _auto_map(folder.fields)}))
        if named and (folder.path / "processor_config.json").is_file():
            _entry_points(folder)
            folder.defects.append(f"config.json names {named}, which is not here; adopt it again")
        else:
            folder.notes.append("no code: loads through internvl only; `internvl adopt` adds it")
        return ""
    _entry_points(folder)
    wanted = code_hashes.recorded()
    present = {
        path.relative_to(root).as_posix()
        for pattern in ("*.py", "preprocessor/*.py")
        for path in root.glob(pattern)
    }
    missing = sorted(set(wanted) - present)
    unknown = sorted(present - set(wanted))
    changed = sorted(n for n in set(wanted) & present if code_hashes.digest(root / n) != wanted[n])
    for names, fault in (
        (missing, "missing"),
        (unknown, "not part of this code"),
        (changed, "changed: not as internvl/checkpoints/code_hashes.json says"),
    ):
        if names:
            folder.defects.append(f"{some(names)}: {fault}; adopt the checkpoint again")
    return f"{len(wanted)} files, unchanged" + ("" if root == folder.path else f", in {root}")


def _entry_points(folder: _Folder) -> None:
    """Every auto_map names our classes, and none of another repository."""
    maps = {"config.json": AUTO_MAP if folder.chat else VISION_AUTO_MAP}
    for name in PROCESSOR_FILES:
        maps[name] = optional_json(hub.REPOSITORY / name).get("auto_map", {})
    for name, wanted in maps.items():
        found = optional_json(folder.path / name).get("auto_map", wanted)
        if found != wanted:
            folder.defects.append(f"auto_map in {name} is {found}, expected {wanted}")


def _auto_map(fields: dict[str, Any]) -> list[str]:
    names = fields.get("auto_map") or {}
    return [name for name in names.values() if isinstance(name, str)]


def _module(name: str) -> str:
    return f"{name.rpartition('.')[0]}.py"


def _modules(root: Path, fields: dict[str, Any]) -> bool:
    """Whether a folder holds what the auto_map of config.json names."""
    names = _auto_map(fields)
    return bool(names) and any((root / _module(name)).is_file() for name in names)


# ---------------------------------------------------------------------- config
def _config(folder: _Folder) -> str:
    """config.json describes a model that can be built."""
    try:
        folder.fields = read_json(folder.path / "config.json")
        kind = folder.fields.get("model_type")
        if kind not in (hub.CHAT_TYPE, hub.VISION_TYPE):
            folder.defects.append(
                f"config.json says model_type {kind!r}, expected {hub.CHAT_TYPE!r} or "
                f"{hub.VISION_TYPE!r}"
            )
            return ""
        folder.config = hub.build_config(folder.fields)
    except (ValueError, TypeError) as error:
        folder.defects.append(f"config.json: {error}")
        return ""
    if not folder.chat:
        return f"vision encoder, {folder.config.num_hidden_layers} layers"
    config = folder.config
    if config.use_llm_lora or config.use_backbone_lora:
        folder.defects.append(
            "config.json says that LoRA layers are wrapped into the weights; `internvl adopt` "
            "merges them"
        )
        folder.config = None
        return ""
    return (
        f"{config.llm_config.model_type} of {config.llm_config.num_hidden_layers} layers, "
        f"vision encoder of {config.vision_config.num_hidden_layers}"
    )


# ---------------------------------------------------------------------- weights
def _weights(folder: _Folder) -> str:
    """Every shard is whole, the index is true, and the tensors are those of the config."""
    index, files = _indexed(folder)
    total = 0
    holders: dict[str, list[str]] = {}
    for name in files:
        path = folder.path / name
        if not path.is_file():
            folder.defects.append(f"{name} is named by the index, but is not here")
            continue
        header = read_header(path)
        folder.defects += [f"{name}: {fault}" for fault in header.faults]
        total += header.data_bytes
        for tensor in header.tensors.values():
            holders.setdefault(tensor.name, []).append(name)
            folder.stored[tensor.name] = tensor
    for tensor_name, where in holders.items():
        if len(where) > 1:
            folder.defects.append(f"{tensor_name} is in {' and in '.join(where)}")
    strays = {path.name for path in folder.path.glob("*.safetensors")} - set(files)
    if strays and files:
        folder.defects.append(f"no index names {some(sorted(strays))}; delete what is not needed")
    if index:
        _compare_index(folder, index, {n: where[0] for n, where in holders.items()}, total)
    if folder.config is not None and files:
        _compare_config(folder)
    return f"{len(folder.stored)} tensors, {total / 2**30:.2f} GiB in {len(files)} files"


def _indexed(folder: _Folder) -> tuple[dict[str, Any], list[str]]:
    """The index, and the weight files that are to be there."""
    try:
        index = optional_json(folder.path / INDEX)
    except ValueError as error:
        folder.defects.append(str(error))
        return {}, sorted(path.name for path in folder.path.glob("*.safetensors"))
    if index:
        if (folder.path / SINGLE).is_file() and SINGLE not in index.get("weight_map", {}).values():
            folder.defects.append(
                f"{SINGLE} stands beside {INDEX}: loaders take the former and ignore the shards"
            )
        said = index.get("weight_map")
        if not said or not all(isinstance(name, str) for name in said.values()):
            folder.defects.append(f"{INDEX} has no map from tensors to files (weight_map)")
            return {}, sorted(path.name for path in folder.path.glob("*.safetensors"))
        files = sorted(set(said.values()))
        outside = [name for name in files if not is_plain(name)]
        if outside:
            folder.defects.append(f"{INDEX} names {some(outside)}, which is not a file of its own")
        return index, [name for name in files if name not in outside]
    if (folder.path / SINGLE).is_file():
        return {}, [SINGLE]
    folder.defects.append(f"there are no weights: neither {SINGLE} nor {INDEX}")
    return {}, []


def _compare_index(
    folder: _Folder, index: dict[str, Any], holder: dict[str, str], total: int
) -> None:
    """The index against the headers."""
    said: dict[str, str] = index.get("weight_map", {})
    extra = sorted(name for name in said if name not in holder)
    if extra:
        folder.defects.append(f"{INDEX} names {some(extra)}, which no file holds")
    unnamed = sorted(name for name in holder if name not in said)
    if unnamed:
        folder.defects.append(f"{INDEX} does not name {some(unnamed)}, which the files hold")
    moved = Counter(
        (said[name], holder[name]) for name in said if holder.get(name, said[name]) != said[name]
    )
    for (wanted, found), count in sorted(moved.items()):
        back = "; the two files are swapped" if moved[(found, wanted)] else ""
        folder.defects.append(
            f"{count} tensors that the index puts in {wanted} are in {found}{back}"
        )
    stated = index.get("metadata", {}).get("total_size")
    if stated is None:
        folder.notes.append(f"{INDEX} states no total_size")
    elif stated != total:
        folder.defects.append(f"{INDEX} states {stated} bytes, the files hold {total}")


def _compare_config(folder: _Folder) -> None:
    """The tensors against the model of the config."""
    found = {name: tensor.shape for name, tensor in folder.stored.items()}
    try:
        faults = layout(folder.config).misfits(found)
    except (ValueError, TypeError, AssertionError, RuntimeError, ZeroDivisionError) as error:
        faults = [f"no model can be built from config.json ({error})"]
    folder.defects += [f"weights and config.json: {fault}" for fault in faults]
    dtypes = Counter(tensor.dtype for tensor in folder.stored.values())
    stated = folder.fields.get("torch_dtype") or folder.fields.get("dtype")
    stated = None if stated is None else str(stated).removeprefix("torch.")
    if len(dtypes) > 1 or set(dtypes) - set(DTYPES):
        folder.defects.append(f"the weights are of several or unknown dtypes: {dict(dtypes)}")
    elif stated is None:
        folder.notes.append("config.json states no torch_dtype")
    elif dtypes and stated != DTYPES[next(iter(dtypes))]:
        folder.defects.append(
            f"config.json says torch_dtype {stated}, the weights are {DTYPES[next(iter(dtypes))]}"
        )


def _values(folder: _Folder) -> str:
    """No NaN and no infinity."""
    from safetensors import SafetensorError, safe_open
    from tqdm.auto import tqdm

    by_file: dict[str, list[Stored]] = {}
    for tensor in folder.stored.values():
        by_file.setdefault(tensor.file, []).append(tensor)
    bar = tqdm(total=len(folder.stored), desc="values", unit="tensor", disable=None)
    for file, tensors in by_file.items():
        try:
            with safe_open(folder.path / file, framework="pt") as opened:
                for name in _not_finite(opened, tensors, bar):
                    folder.defects.append(f"{name} in {file} holds NaN or infinity")
        except (SafetensorError, OSError) as error:
            folder.defects.append(f"{file} cannot be read: {error}")
    bar.close()
    return f"{len(folder.stored)} tensors, all finite"


def _not_finite(opened: Any, tensors: list[Stored], bar: Any) -> Iterator[str]:
    for tensor in tensors:
        bar.update()
        if tensor.dtype in BYTES:
            low, high = opened.get_tensor(tensor.name).aminmax()
            if not (low.isfinite() and high.isfinite()):
                yield tensor.name


# ---------------------------------------------------------------------- tokenizer, template
def _tokenizer(folder: _Folder) -> str:
    """The tokenizer, the config and the generation config mean the same ids."""
    if not folder.chat or folder.config is None:
        return "none needed" if folder.config is not None else "not looked at without a config"
    fast = folder.path / "tokenizer.json"
    try:
        # transformers takes a broken one for an absent one and asks for what a slow one needs
        if fast.is_file():
            Tokenizer.from_file(str(fast))
    except Exception as error:  # noqa: BLE001  (tokenizers raises nothing narrower)
        folder.defects.append(f"tokenizer.json cannot be read: {error}")
        return ""
    try:
        prepared = hub.prepare(folder.path)
    except (ValueError, ImportError) as error:
        folder.defects.append(str(error))
        return ""
    conversation = hub.ring0("conversation")
    vocabulary = prepared.tokenizer.get_vocab()
    missing = [token for token in conversation.GROUNDING_TAGS if token not in vocabulary]
    if missing:
        folder.defects.append(f"the tokenizer has no {', '.join(missing)}, which boxes need")
    context = vocabulary["<IMG_CONTEXT>"]
    stated = folder.config.img_context_token_id
    if stated is not None and stated != context:
        folder.defects.append(
            f"config.json says img_context_token_id {stated}, but <IMG_CONTEXT> is {context}"
        )
    rows = folder.config.llm_config.vocab_size
    if len(prepared.tokenizer) != rows:
        folder.notes.append(f"the embedding has {rows} rows for {len(prepared.tokenizer)} tokens")
    _ends(folder, prepared, vocabulary)
    return f"{len(prepared.tokenizer)} tokens, <IMG_CONTEXT> is {context}"


def _ends(folder: _Folder, prepared: Any, vocabulary: dict[str, int]) -> None:
    """The token that ends an answer is one of those that end generate()."""
    if not prepared.generation:
        folder.notes.append("there is no generation_config.json: generate() ends at eos alone")
        return
    template = hub.ring0("conversation").get_conv_template(folder.config.template)
    stop = vocabulary[template.end_of_turn]
    ends = prepared.generation.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    if stop not in ends:
        folder.defects.append(
            f"generation_config.json ends at {ends}, without {stop}, which is "
            f"{template.end_of_turn}: generate() would not stop"
        )
    beyond = [end for end in ends if end is not None and end >= folder.config.llm_config.vocab_size]
    if beyond:
        folder.defects.append(f"generation_config.json ends at {beyond}, beyond the vocabulary")


def _template(folder: _Folder) -> str:
    """chat_template.jinja renders the prompts of the template that config.json names."""
    if not folder.chat or folder.config is None:
        return "none needed" if folder.config is not None else "not looked at without a config"
    conversation = hub.ring0("conversation")
    name = folder.config.template
    if name not in conversation.TEMPLATES:
        folder.defects.append(
            f"config.json names the template {name!r}, expected one of "
            f"{sorted(conversation.TEMPLATES)}"
        )
        return ""
    template = conversation.get_conv_template(name)
    if folder.config.system_message is not None:
        template.system_message = folder.config.system_message
    path = folder.path / "chat_template.jinja"
    if not path.is_file():
        folder.notes.append("there is no chat_template.jinja: apply_chat_template() needs one")
    elif path.read_text(encoding="utf-8") != conversation.chat_template(template):
        folder.defects.append(f"chat_template.jinja does not render the template {name!r}")
    own = optional_json(folder.path / "tokenizer_config.json").get("chat_template")
    if own is not None and not path.is_file():
        folder.notes.append("tokenizer_config.json has a template of its own, of the LLM alone")
    return name
