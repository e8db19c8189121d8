"""`internvl export`: a model in memory, or a checkpoint, written as a self-contained folder.

    loaded model (+ adapter, merged) -> weights in shards, config, tokenizer, processor, this code

What training leaves (`save_pretrained`) depends on transformers' version and lacks the processor;
this folder loads on both lines, with `AutoModel`, with `internvl.hub.load` and in the servers of
docs/serving.md.
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internvl import hub
from internvl.checkpoints import settings
from internvl.checkpoints.card import source_card, write_card
from internvl.checkpoints.staging import refuse_existing, staging
from internvl.checkpoints.tensors import Layout, layout, write_weights
from internvl.source_files import SETTINGS, optional_json, resolve, some

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        out: the folder.
        tensors: their number.
        bytes: size of the weights.
        files: names of all files in the folder.
    """

    out: Path
    tensors: int
    bytes: int
    files: tuple[str, ...]


def export(
    source: str | Path | None,
    out: str | Path,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    merge_adapter: str | Path | None = None,
    dtype: Any = "auto",
    max_shard_size: int | str = "5GB",
) -> Export:
    """Load a checkpoint and write it as a self-contained folder.

    Args:
        source: as in `internvl.hub.load`; None for the demo.
        out: the folder to make; must not exist, or be empty.
        subfolder: folder within the source.
        revision: branch, tag or commit of a Hub repository.
        merge_adapter: folder or Hub id of a PEFT adapter to merge into the weights.
        dtype: dtype to write; "auto" keeps that of the config.
        max_shard_size: most bytes of a weight file.

    Raises:
        FileExistsError: `out` holds something.
        ValueError: as in `internvl.hub.load`.
    """
    refuse_existing(Path(out).expanduser())
    loaded = hub.load(
        source, subfolder=subfolder, revision=revision, dtype=dtype, adapter=merge_adapter
    )
    where = hub.DEMO if source is None else source
    folder = resolve(where, subfolder, revision, (*SETTINGS, "README.md"))
    is_hub_id = not Path(where).expanduser().is_dir()
    shown = str(where) if is_hub_id else folder.resolve().name
    merged = f", with the adapter `{Path(merge_adapter).name}` merged" if merge_adapter else ""
    return export_loaded(
        loaded,
        out,
        max_shard_size=max_shard_size,
        origin=f"The weights of `{shown}`{merged}.",
        base_model=str(where) if is_hub_id else None,
        source=folder,
        tokenizer=folder,
    )


def export_loaded(
    loaded: hub.Loaded,
    out: str | Path,
    *,
    max_shard_size: int | str = "5GB",
    origin: str = "Written from a model in memory.",
    base_model: str | None = None,
    source: Path | None = None,
    tokenizer: Path | None = None,
    state: dict[str, Any] | None = None,
    dtype: Any = None,
) -> Export:
    """Write a model in memory as a self-contained folder.

    The model stays as it is, except that an adapter on it is merged.

    Args:
        loaded: model, processor and tokenizer; the model may be a PeftModel.
        out: the folder to make; must not exist, or be empty.
        max_shard_size: most bytes of a weight file.
        origin: a sentence for the card on where the weights come from.
        base_model: Hub id of the model that it was made from, for the card.
        source: folder of the checkpoint that was loaded, whose generation config and card are
            handed on.
        tokenizer: folder whose tokenizer files are taken; None to write the one in memory.
        state: weights by name in place of the model's own, as a sharded run gathers them.
        dtype: torch dtype to write; None for that of the weights.

    Raises:
        FileExistsError: `out` holds something.
        ValueError: weights that are not in memory, quantised, or not those of the config.
    """
    out = Path(out).expanduser().absolute()
    model = _merged(loaded.model)
    weights = _weights(model, state)
    dtype = next(iter(weights.values())).dtype if dtype is None else dtype
    fields = settings.upgrade_config(model.config.to_dict(), dtype=str(dtype).split(".")[-1])
    with staging(out) as folder:
        sizes = {name: tensor.numel() * dtype.itemsize for name, tensor in weights.items()}
        write_weights(
            folder, sizes, lambda name: weights[name].detach().cpu().to(dtype), max_shard_size
        )
        _write_settings(folder, fields, loaded, source, tokenizer)
        settings.write_code(folder)
        write_card(
            folder,
            fields,
            name=out.name,
            origin=origin,
            base_model=base_model,
            source=source_card(source) if source else None,
        )
    files = tuple(
        sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    )
    return Export(out, len(weights), sum(sizes.values()), files)


def complete(folder: Path, loaded: hub.Loaded, *, source: Path | None = None) -> None:
    """Write around the weights in a folder what makes it a repository of its own.

    Args:
        folder: holds the weights, as `model.save_pretrained` writes them.
        loaded: model, processor and tokenizer.
        source: folder whose generation config and card are handed on.
    """
    dtype = str(next(loaded.model.parameters()).dtype).split(".")[-1]
    fields = settings.upgrade_config(loaded.model.config.to_dict(), dtype=dtype)
    _write_settings(folder, fields, loaded, source, None)
    settings.write_code(folder)
    write_card(
        folder,
        fields,
        name=folder.name,
        origin="A checkpoint of a training run.",
        base_model=None,
        source=source_card(source) if source else None,
    )


def describe(export: Export) -> str:
    """Say in a line what was written."""
    return (
        f"written  {export.out} ({export.tensors} tensors, {export.bytes / 2**30:.2f} GiB, "
        f"{len(export.files)} files)"
    )


def _merged(model: Any) -> Any:
    """The model without its adapter layers, whose update is merged into the weights."""
    if not hasattr(model, "merge_and_unload"):
        return model
    return model.merge_and_unload(safe_merge=True)  # raises on NaN


def _weights(model: Any, state: dict[str, Any] | None = None) -> dict[str, Any]:
    """Every tensor that a checkpoint of this model stores, from its own state or the given one.

    Raises:
        ValueError: weights that are offloaded, quantised, of several dtypes, or of other names.
    """
    wanted = layout(model.config).shapes
    state = model.state_dict() if state is None else state
    # What is in memory beside them (tied layers, buffers) is not written.
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    faults = Layout(wanted, frozenset(state)).misfits(shapes)
    found = {name: state[name] for name in wanted if name in state}
    absent = [name for name, value in found.items() if value.is_meta]
    dtypes = {value.dtype for value in found.values()}
    if absent:
        faults.append(f"not in memory: {some(absent)}; load it without offloading")
    if getattr(model, "is_quantized", False) or any(not d.is_floating_point for d in dtypes):
        faults.append("quantised: export the model that was quantised")
    elif len(dtypes) > 1:
        faults.append(f"of several dtypes ({', '.join(map(str, dtypes))}): call model.to(dtype)")
    if faults:
        raise ValueError(f"the model cannot be written as a checkpoint ({'; '.join(faults)}).")
    return found


def _write_settings(
    folder: Path,
    fields: dict[str, Any],
    loaded: hub.Loaded,
    source: Path | None,
    tokenizer: Path | None,
) -> None:
    """Write what stands beside the weights, from the processor and tokenizer in memory."""
    if loaded.tokenizer is None:
        settings.write_settings(
            folder, fields, processors={"preprocessor_config.json": loaded.processor.to_dict()}
        )
        return
    generation = optional_json(source / "generation_config.json") if source else {}
    with tempfile.TemporaryDirectory() as scratch:
        saved = Path(scratch)
        loaded.processor.save_pretrained(saved)
        processors = {name: optional_json(saved / name) for name in settings.PROCESSOR_FILES}
        settings.write_settings(
            folder,
            fields,
            tokenizer=tokenizer or saved,
            generation=generation,
            processors=processors,
        )
