"""`internvl adopt`: published weights, made a folder that loads on today's transformers.

    SOURCE (folder, Hub id) -> settings read -> names, shapes, dtypes checked against the meta model
      -> OUT.partial: weights linked (or merged), config upgraded, tokenizer, processor, this code
      -> checked again -> renamed to OUT

Nothing of SOURCE is imported or unpickled. Weights are hard links wherever the file system has
them, so that 150 GB cost neither time nor space; files that are linked are never written to.
A run that was stopped leaves OUT.partial, and the next one goes on from there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from internvl import hub
from internvl.checkpoints import settings
from internvl.checkpoints.card import source_card, write_card
from internvl.checkpoints.merge_lora import Part, merge_plan, merged
from internvl.checkpoints.staging import refuse_existing, staging
from internvl.checkpoints.tensors import (
    INDEX,
    SINGLE,
    Stored,
    Weights,
    common_dtype,
    layout,
    write_text,
    write_weights,
)
from internvl.source_files import DATA, SETTINGS, optional_json, read_json, resolve

logger = logging.getLogger(__name__)

_PAPERS = ("README.md", "LICENSE*", "NOTICE*")  # read, or handed on with the weights


@dataclass(frozen=True)
class Adoption:
    """What was adopted, or would be.

    Attributes:
        source: as given.
        revision: commit of a Hub repository; None for a folder.
        out: the folder.
        tensors: their number.
        parameters: their elements.
        bytes: size of the weights.
        weights: how the weight files come to be: "linked", "copied", "merged".
        files: names in the folder; those of the weights alone in a dry run.
        notes: what differs from the source, in sentences.
    """

    source: str
    revision: str | None
    out: Path
    tensors: int
    parameters: int
    bytes: int
    weights: str
    files: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class _Checked:
    """A source whose tensors fit its config."""

    fields: dict[str, Any]  # config.json as it will be written
    parts: dict[str, Part]
    stored: dict[str, Stored]
    notes: tuple[str, ...]

    @property
    def sizes(self) -> dict[str, int]:
        return {name: self.stored[part.base].bytes for name, part in self.parts.items()}

    @property
    def merges(self) -> bool:
        return any(part.down or name != part.base for name, part in self.parts.items())


def adopt(
    source: str | Path,
    out: str | Path,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    template: str | None = None,
    copy: bool = False,
    max_shard_size: int | str = "5GB",
    dry_run: bool = False,
) -> Adoption:
    """Write a self-contained folder for a checkpoint in the published layout.

    Args:
        source: folder or Hub id of an InternVL 1.5, 2.0 or 2.5 checkpoint, of a fine-tune of the
            official training code, or of an InternViT.
        out: the folder to make; must not exist, or be empty.
        subfolder: folder within the source.
        revision: branch, tag or commit of a Hub repository.
        template: name of the prompt template, for a config.json that names none.
        copy: copy the weights in place of linking them.
        max_shard_size: most bytes of a weight file, where LoRA layers are merged.
        dry_run: check, and write nothing. Of a Hub repository only headers are fetched.

    Raises:
        FileNotFoundError: no such source.
        FileExistsError: `out` holds something.
        ValueError: weights that do not fit the config, and which; pickles; a tokenizer or template
            that does not fit.
        ImportError: the tokenizer needs sentencepiece.
        OSError: not enough space.
    """
    out = Path(out).expanduser().absolute()
    refuse_existing(out)
    described = resolve(source, subfolder, revision, (*SETTINGS, *_PAPERS))
    local = Path(source).expanduser().is_dir()
    commit = None if local else _commit(described, subfolder)
    fields = read_json(described / "config.json")
    if not local and not subfolder:  # before gigabytes are fetched
        remote = _remote_tensors(str(source), commit)
        if remote is not None:
            checked = _check(fields, remote, str(source), template)
            if dry_run:
                return _adoption(source, commit, out, checked, _means(checked, copy))
    folder = described if local else resolve(source, subfolder, commit, (*DATA, *_PAPERS))
    with Weights(folder) as weights:
        checked = _check(fields, weights.stored, str(source), template)
        how = _means(checked, copy)
        if not dry_run:
            options = {"copy": copy, "max_shard_size": max_shard_size}
            with staging(out, _journal(folder, commit, options)) as staged:
                how = _write(staged, weights, checked, copy=copy, max_shard_size=max_shard_size)
                _write_around(staged, folder, checked, str(source), commit, out.name)
                _check_written(staged)
    return _adoption(source, commit, out, checked, how)


def _means(checked: _Checked, copy: bool) -> str:
    """How the weight files are to come to be."""
    return "merged" if checked.merges else "copied" if copy else "linked"


def _adoption(
    source: str | Path, commit: str | None, out: Path, checked: _Checked, how: str
) -> Adoption:
    present = (path for path in out.rglob("*") if path.is_file()) if out.is_dir() else ()
    return Adoption(
        source=str(source),
        revision=commit,
        out=out,
        tensors=len(checked.parts),
        parameters=sum(
            size // checked.stored[checked.parts[name].base].item_bytes
            for name, size in checked.sizes.items()
        ),
        bytes=sum(checked.sizes.values()),
        weights=how,
        files=tuple(sorted(path.relative_to(out).as_posix() for path in present)),
        notes=checked.notes,
    )


def describe(adoption: Adoption, *, dry_run: bool = False) -> str:
    """Say in a few lines what was adopted, or would be."""
    at = f" at {adoption.revision}" if adoption.revision else ""
    lines = [
        f"source   {adoption.source}{at}",
        f"weights  {adoption.tensors} tensors, {adoption.parameters:,} parameters, "
        f"{adoption.bytes / 2**30:.2f} GiB, {adoption.weights}",
        *(f"note     {note}" for note in adoption.notes),
    ]
    if dry_run:
        lines.append(f"dry run  everything fits; {adoption.out} was not written")
    else:
        lines.append(f"written  {adoption.out} ({len(adoption.files)} files)")
    return "\n".join(lines)


# ---------------------------------------------------------------------- the source
def _commit(snapshot: Path, subfolder: str | None) -> str:
    """The commit that a folder of the Hub cache is named after."""
    for _ in Path(subfolder or "").parts:
        snapshot = snapshot.parent
    return snapshot.name


def _remote_tensors(source: str, commit: str | None) -> dict[str, Stored] | None:
    """Names, dtypes and shapes of a Hub repository, from the headers of its files alone.

    Returns:
        The tensors; None offline, where what is in the cache gets checked.

    Raises:
        ValueError: the repository has no safetensors.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HfHubHTTPError,
        NotASafetensorsRepoError,
        OfflineModeIsEnabled,
        SafetensorsParsingError,
    )

    try:
        metadata = HfApi().get_safetensors_metadata(source, revision=commit)
    except NotASafetensorsRepoError as error:
        raise ValueError(
            f"{source} holds no model.safetensors and no index of one; pickled weights are "
            "refused. Take a revision of it that has safetensors."
        ) from error
    except SafetensorsParsingError as error:
        raise ValueError(f"a weight file of {source} is damaged: {error}") from error
    except (OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        logger.info("headers of %s were not fetched (%s)", source, error)
        return None
    return {
        name: Stored(name, str(info.dtype), tuple(info.shape), file)
        for file, content in metadata.files_metadata.items()
        for name, info in content.tensors.items()
    }


def _check(
    fields: dict[str, Any], stored: dict[str, Stored], source: str, template: str | None
) -> _Checked:
    """Check every name, shape and dtype against the model that the config describes.

    Raises:
        ValueError: what is missing, extra or of another shape.
    """
    parts = merge_plan(stored, fields)
    dtype = common_dtype(stored[part.base] for part in parts.values())
    upgraded = settings.upgrade_config(fields, template=template, dtype=dtype)
    config = hub.build_config(upgraded)
    found = {name: stored[part.base].shape for name, part in parts.items()}
    wanted = layout(config)
    faults = wanted.misfits(found)
    if faults:
        raise ValueError(
            f"the weights of {source} do not fit its config.json ({'; '.join(faults)}); the two "
            "belong to different models, or the checkpoint is incomplete."
        )
    kept = {name: part for name, part in parts.items() if name not in wanted.tied}
    return _Checked(upgraded, kept, stored, tuple(_notes(fields, upgraded, parts, dtype)))


def _notes(
    fields: dict[str, Any], upgraded: dict[str, Any], parts: dict[str, Part], dtype: str
) -> list[str]:
    notes = []
    stated = fields.get("torch_dtype") or fields.get("dtype")
    if stated and str(stated).removeprefix("torch.") != dtype:
        notes.append(f"config.json said {stated}, but the weights are {dtype}: it says so now")
    layers = sum(part.down is not None for part in parts.values())
    if layers:
        ranks = f"use_backbone_lora={fields.get('use_backbone_lora', 0)}, "
        ranks += f"use_llm_lora={fields.get('use_llm_lora', 0)}"
        notes.append(f"{layers} LoRA layers were merged ({ranks}, alpha = 2 r)")
    elif fields.get("use_backbone_lora") or fields.get("use_llm_lora"):
        notes.append("config.json named LoRA ranks, but the weights are merged: they are 0 now")
    if upgraded.get("template") and not fields.get("template"):
        notes.append(f"template {upgraded['template']} was given by the caller")
    return notes


# ---------------------------------------------------------------------- the folder
def _journal(folder: Path, commit: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """What the folder is made from: a stopped run is resumed only with the same."""
    files = {
        path.name: [path.stat().st_size, path.stat().st_mtime_ns]
        for path in sorted(folder.iterdir())
        if path.is_file()
    }
    return {"source": str(folder.resolve()), "revision": commit, "files": files, **options}


def _write(
    staged: Path, weights: Weights, checked: _Checked, *, copy: bool, max_shard_size: int | str
) -> str:
    """Put the weights into the folder, and say how."""
    if checked.merges:
        done = sum(path.stat().st_size for path in staged.glob("*.safetensors"))
        _demand_space(staged, sum(checked.sizes.values()) - done)
        write_weights(
            staged,
            checked.sizes,
            lambda name: merged(weights, checked.parts[name]),
            max_shard_size,
            resume=True,
        )
        return "merged"
    means = {_place(weights.folder / file, staged / file, copy=copy) for file in weights.files}
    if weights.files != [SINGLE]:
        index = {
            "metadata": {"total_size": sum(tensor.bytes for tensor in weights.stored.values())},
            "weight_map": {name: tensor.file for name, tensor in weights.stored.items()},
        }
        write_text(staged / INDEX, json.dumps(index, indent=2) + "\n")
    return " and ".join(sorted(means))


def _place(source: Path, target: Path, *, copy: bool) -> str:
    """Link a file, or copy it where links cannot be, in one step; say which."""
    source = source.resolve()  # the Hub cache holds links to its files
    if target.exists():
        return "linked" if target.samefile(source) else "copied"
    if not copy:
        with contextlib.suppress(OSError):  # another file system, or one without links
            os.link(source, target)
            return "linked"
    _demand_space(target.parent, source.stat().st_size)
    partial = target.with_name(target.name + ".partial")
    shutil.copyfile(source, partial)
    partial.replace(target)
    return "copied"


def _demand_space(folder: Path, wanted: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise OSError(
            f"{folder} has {free / 2**30:.1f} GiB free, but {wanted / 2**30:.1f} GiB are to be "
            "written; make room, or name a folder on the file system of the source, where weights "
            "are linked."
        )


def _write_around(
    staged: Path, folder: Path, checked: _Checked, source: str, commit: str | None, name: str
) -> None:
    """Write everything but the weights."""
    settings.write_settings(
        staged,
        checked.fields,
        tokenizer=folder,
        generation=optional_json(folder / "generation_config.json"),
        processors={file: optional_json(folder / file) for file in settings.PROCESSOR_FILES},
    )
    settings.write_code(staged)
    for pattern in _PAPERS[1:]:
        for path in folder.glob(pattern):
            if path.is_file() and path.name != "LICENSE-CODE" and _is_own(path):
                shutil.copyfile(path, staged / path.name)
    at = f" (revision `{commit}`)" if commit else ""
    shown = source if commit else Path(source).name
    write_card(
        staged,
        checked.fields,
        name=name,
        origin=f"The weights of `{shown}`{at}, unchanged{_but(checked)}.",
        base_model=source if commit else None,
        source=source_card(folder),
    )


def _is_own(path: Path) -> bool:
    """Whether a file is not a link that leads out of its folder; the Hub cache is made of links."""
    if not path.is_symlink():
        return True
    cache = path.parent.parent
    return cache.name == "snapshots" and path.resolve().is_relative_to(cache.parent.resolve())


def _but(checked: _Checked) -> str:
    return " but for LoRA layers, which are merged" if checked.merges else ""


def _check_written(staged: Path) -> None:
    """Look at what was written once more, before it gets its name."""
    with Weights(staged) as weights:
        config = hub.build_config(read_json(staged / "config.json"))
        found = {name: tensor.shape for name, tensor in weights.stored.items()}
        faults = layout(config).misfits(found)
    if faults:
        raise ValueError(f"{staged} is not what was to be written ({'; '.join(faults)}).")
