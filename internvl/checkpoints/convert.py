"""`internvl convert`: from the published layout to transformers' own InternVL, and back.

    SOURCE -> settings translated, or refused -> tensors renamed and cut, one shard in memory
      -> OUT.partial -> prompts and logits of both compared -> renamed to OUT

native/names.py has the names, native/fields.py and native/settings.py the settings,
native/tokenizer.py the tokenizer, native/check.py the comparison.
Nothing of SOURCE is imported or unpickled.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internvl import hub
from internvl.checkpoints.card import source_card, write_card
from internvl.checkpoints.native.check import compare_logits, compare_prompts
from internvl.checkpoints.native.fields import (
    NATIVE_TYPE,
    NOTE,
    choose_template,
    published_settings,
)
from internvl.checkpoints.native.names import Fused, NameMap, as_stored
from internvl.checkpoints.native.settings import native_settings
from internvl.checkpoints.native.tokenizer import restore_tokenizer, write_native_tokenizer
from internvl.checkpoints.settings import (
    PROCESSOR_FILES,
    dump,
    upgrade_config,
    write_code,
    write_settings,
)
from internvl.checkpoints.staging import refuse_existing, staging
from internvl.checkpoints.tensors import (
    Layout,
    Weights,
    common_dtype,
    layout,
    write_text,
    write_weights,
)
from internvl.source_files import DATA, optional_json, read_json, resolve

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

TARGETS = ("native", "official")
_LICENCES = ("LICENSE*", "NOTICE*")


@dataclass(frozen=True)
class Report:
    """What was converted.

    Attributes:
        source: as given.
        out: the folder.
        to: "native" or "official".
        tensors: their number in `out`.
        bytes: size of the weights.
        logits: largest difference of the logits of source and result in float32, by input; None
            where they were not compared.
        notes: what the other layout leaves out or does otherwise, in sentences.
    """

    source: str
    out: Path
    to: str
    tensors: int
    bytes: int
    logits: dict[str, float] | None
    notes: tuple[str, ...]


def convert(
    source: str | Path,
    out: str | Path,
    *,
    to: str,
    template: str | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    max_shard_size: int | str = "5GB",
    check: bool = True,
) -> Report:
    """Write a checkpoint in the other layout.

    Args:
        source: folder or Hub id.
        out: the folder to make; must not exist, or be empty.
        to: "native" for transformers' own InternVL, "official" for the published layout.
        template: name of the prompt template, for a config.json that names none.
        subfolder: folder within the source.
        revision: branch, tag or commit of a Hub repository.
        max_shard_size: most bytes of a weight file.
        check: compare the logits of both in float32, which takes four bytes a parameter.

    Raises:
        FileNotFoundError: no such source.
        FileExistsError: `out` holds something.
        ValueError: settings or tensors that the other layout cannot hold, and which; results that
            differ.
        ImportError: the tokenizer needs sentencepiece.
    """
    if to not in TARGETS:
        raise ValueError(f"to is {to!r}, expected one of {TARGETS}.")
    out = Path(out).expanduser().absolute()
    refuse_existing(out)
    folder = resolve(source, subfolder, revision, (*DATA, *_LICENCES, "README.md"))
    fields = read_json(folder / "config.json")
    wanted = hub.CHAT_TYPE if to == "native" else NATIVE_TYPE
    if fields.get("model_type") != wanted:
        raise ValueError(
            f"{folder} has model_type {fields.get('model_type')!r}, expected {wanted!r} to convert "
            f"to the {to} layout."
        )
    with staging(out) as partial:
        write = _write_native if to == "native" else _write_official
        written = write(folder, fields, partial, template, max_shard_size)
        for path in [path for pattern in _LICENCES for path in folder.glob(pattern)]:
            shutil.copyfile(path, partial / path.name)
        if to == "official":
            write_card(
                partial,
                read_json(partial / "config.json"),
                name=out.name,
                origin=f"The weights of `{_shown(source)}`, out of transformers' own layout.",
                source=source_card(folder),
            )
        logits = None
        if check:
            logits = compare_logits(folder, partial, written.config, written.native)
        else:
            logger.warning("the logits of %s and %s were not compared", source, out)
    count, size = written.tensors, written.bytes
    return Report(str(source), out, to, count, size, logits, written.notes)


def _shown(source: str | Path) -> str:
    """A Hub id, or the name of a folder; its path is nobody's affair."""
    path = Path(source).expanduser()
    return path.resolve().name if path.is_dir() else str(source)


def describe(report: Report) -> str:
    """Say in a few lines what was converted."""
    if report.logits is None:
        compared = "not compared"
    else:
        compared = ", ".join(f"{name} {value:.1e}" for name, value in report.logits.items())
    lines = [
        f"written  {report.out} ({report.to} layout, {report.tensors} tensors, "
        f"{report.bytes / 2**30:.2f} GiB)",
        f"logits   {compared}",
        *(f"note     {note}" for note in report.notes),
    ]
    return "\n".join(lines)


@dataclass(frozen=True)
class _Written:
    """What one direction wrote: `config` is that of our class, `native` says which side is that."""

    config: Any
    native: Path
    tensors: int
    bytes: int
    notes: tuple[str, ...] = ()


# ---------------------------------------------------------------------- to native
def _write_native(
    folder: Path,
    fields: Mapping[str, Any],
    partial: Path,
    template: str | None,
    max_shard_size: int | str,
) -> _Written:
    ranks = [name for name in ("use_llm_lora", "use_backbone_lora") if fields.get(name)]
    if ranks:
        raise ValueError(
            f"{folder} has LoRA layers in its weights ({', '.join(ranks)} in config.json); "
            "`internvl adopt` merges them."
        )
    processors = {name: optional_json(folder / name) for name in PROCESSOR_FILES}
    with tempfile.TemporaryDirectory() as place:
        # The same settings as a self-contained folder would have, whatever the source has.
        described = Path(place)
        write_settings(
            described,
            upgrade_config(
                fields, template=choose_template(fields, template), dtype=_dtype_of(folder)
            ),
            tokenizer=folder,
            generation=optional_json(folder / "generation_config.json"),
            processors=processors,
        )
        upgraded = read_json(described / "config.json")
        prepared = hub.prepare(described)
        native = native_settings(upgraded, prepared, processors)
        count, size = _rename_weights(folder, partial, prepared.config, max_shard_size)
        write_text(partial / "config.json", dump(native.config))
        for name, content in native.files.items():
            write_text(partial / name, dump(content))
        write_text(partial / "chat_template.jinja", native.chat_template)
        write_text(partial / "generation_config.json", dump(prepared.generation))
        write_native_tokenizer(described, prepared.tokenizer, partial)
        compare_prompts(prepared, partial)
    return _Written(prepared.config, partial, count, size, native.notes)


def _dtype_of(folder: Path) -> str:
    """The dtype of the weights, whatever config.json says."""
    with Weights(folder) as weights:
        return common_dtype(weights.stored.values())


def _rename_weights(
    folder: Path, partial: Path, config: Any, max_shard_size: int | str
) -> tuple[int, int]:
    """Write the tensors of a published checkpoint under native names; their number and bytes."""
    names = NameMap(config)
    with Weights(folder) as weights:
        found = {name: stored.shape for name, stored in weights.stored.items()}
        _refuse(layout(config).misfits(found), folder)
        sources: dict[str, tuple[str, int, Fused | None]] = {}
        sizes: dict[str, int] = {}
        for name, stored in weights.stored.items():
            targets, fused = names.native(name)
            shares = fused.shares if fused else (1,)
            for index, target in enumerate(targets):
                sources[target] = (name, index, fused)
                sizes[target] = stored.bytes * shares[index] // sum(shares)

        def read(target: str) -> torch.Tensor:
            name, index, fused = sources[target]
            tensor = weights.read(name)
            # A copy, so that the other two thirds do not stay in memory with it.
            return tensor if fused is None else fused.split(tensor)[index].clone()

        write_weights(partial, sizes, read, max_shard_size)
    return len(sizes), sum(sizes.values())


# ---------------------------------------------------------------------- to official
def _write_official(
    folder: Path,
    fields: Mapping[str, Any],
    partial: Path,
    template: str | None,
    max_shard_size: int | str,
) -> _Written:
    upgraded = published_settings(fields, folder, template)
    config = hub.build_config(dict(upgraded))
    count, size = _fuse_weights(folder, partial, config, max_shard_size)
    restore_tokenizer(
        folder,
        partial,
        rows=config.llm_config.vocab_size,
        internlm2=config.llm_config.model_type == "internlm2",
    )
    write_settings(
        partial,
        upgraded,
        generation=optional_json(folder / "generation_config.json"),
        processors=(fields.get(NOTE) or {}).get("processors"),
    )
    write_code(partial)
    config = hub.build_config(read_json(partial / "config.json"))
    return _Written(config, folder, count, size)


def _fuse_weights(
    folder: Path, partial: Path, config: Any, max_shard_size: int | str
) -> tuple[int, int]:
    """Write the tensors of a native checkpoint under published names; their number and bytes."""
    names = NameMap(config)
    wanted = layout(config)
    with Weights(folder) as weights:
        stored = {as_stored(name): tensor for name, tensor in weights.stored.items()}
        found = {name: tensor.shape for name, tensor in stored.items()}
        _refuse(_native_layout(wanted, names).misfits(found), folder)
        # A tied layer may be stored too; it is kept.
        tied = [name for name in sorted(wanted.tied) if names.native(name)[0][0] in stored]
        sizes = {}
        for name in [*wanted.shapes, *tied]:
            targets, _ = names.native(name)
            rows = [stored[target] for target in targets]
            if len({part.dtype for part in rows}) > 1:
                raise ValueError(
                    f"{', '.join(targets)} have {[part.dtype for part in rows]}, but become one "
                    "tensor; save the checkpoint in one dtype."
                )
            sizes[name] = sum(part.bytes for part in rows)

        def read(name: str) -> torch.Tensor:
            targets, fused = names.native(name)
            parts = [weights.read(stored[target].name) for target in targets]
            return parts[0] if fused is None else fused.join(parts)

        write_weights(partial, sizes, read, max_shard_size)
    return len(sizes), sum(sizes.values())


def _native_layout(published: Layout, names: NameMap) -> Layout:
    """The tensors of a layout under their native names."""
    shapes = {}
    for name, (rows, *rest) in published.shapes.items():
        targets, fused = names.native(name)
        shares = fused.shares if fused else (1,)
        for target, share in zip(targets, shares, strict=True):
            shapes[target] = (rows * share // sum(shares), *rest)
    return Layout(shapes, frozenset(names.native(name)[0][0] for name in published.tied))


def _refuse(faults: list[str], folder: Path) -> None:
    if faults:
        raise ValueError(
            f"the weights in {folder} do not fit its config.json ({'; '.join(faults)}); the two "
            "belong to different models, or the checkpoint is incomplete."
        )
