"""`internvl train transfer-vit`: an aligned InternViT under a larger language model (report 3.3).

    SOURCE (small LLM, trained to stage 1.5 or 2)     vision_model.* --.
    DESTINATION (larger LLM, of the same encoder)     language_model.* +--> OUT, self-contained
    seed (or SOURCE, with keep_mlp1)                  mlp1.*         --'

The report trains the encoder with a 20B model and reuses it under a 72B one: "when training a
larger model, Stage 1.5 can be skipped". The projector is new, because its outputs have the width of
the language model, so stage 1 warms it up and stage 2 follows; docs/progressive.md has the recipe.

Every moved tensor is hashed where it comes from and, read again, where it was written. One shard is
in memory at a time. An encoder that is no part of a chat checkpoint, or a destination of another
encoder, is a case for `internvl train assemble`.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internvl import hub
from internvl.checkpoints import settings
from internvl.checkpoints.card import source_card, write_card
from internvl.checkpoints.staging import refuse_existing, staging
from internvl.checkpoints.tensors import Weights, common_dtype, layout, write_weights
from internvl.source_files import DATA, optional_json, read_json, resolve, some

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

VISION, PROJECTOR, LANGUAGE = "vision_model.", "mlp1.", "language_model."
# Fields of InternVisionConfig that matter while training only; recipes set them.
_TRAINING_ONLY = frozenset(
    {
        "attention_dropout",
        "drop_path_rate",
        "dropout",
        "initializer_factor",
        "initializer_range",
        "use_flash_attn",
    }
)


@dataclass(frozen=True)
class Transfer:
    """What was moved.

    Attributes:
        source: where the encoder comes from, as given.
        destination: where the rest comes from, as given.
        out: the folder.
        tensors: number of tensors of the encoder.
        parameters: their elements.
        digest: sha256 over the names, dtypes, shapes and sha256 of all of them, see
            `vision_digest`; equal before and after.
        projector: where mlp1 comes from, in words.
        bytes: size of all weights.
        files: names in the folder.
        notes: differences between the two that do not matter for the encoder, in sentences.
    """

    source: str
    destination: str
    out: Path
    tensors: int
    parameters: int
    digest: str
    projector: str
    bytes: int
    files: tuple[str, ...]
    notes: tuple[str, ...]


def transfer_vit(
    source: str | Path,
    destination: str | Path,
    out: str | Path,
    *,
    keep_mlp1: bool = False,
    seed: int = 42,
    max_shard_size: int | str = "5GB",
) -> Transfer:
    """Write a checkpoint with the encoder of one and the language model of another.

    A run that was stopped leaves OUT.partial, and the next one goes on from there.

    Args:
        source: folder or Hub id of the chat checkpoint whose encoder is aligned.
        destination: folder or Hub id of the chat checkpoint with the larger language model; its
            tokenizer, template and settings are taken too.
        out: the folder to make; must not exist, or be empty.
        keep_mlp1: take the projector of the source along, where the widths allow it; False makes a
            new one.
        seed: of the new projector.
        max_shard_size: most bytes of a weight file.

    Raises:
        FileNotFoundError: no such source or destination.
        FileExistsError: `out` holds something.
        ValueError: the two have different encoders, or see images differently; weights that do not
            fit their config or are of several dtypes; a projector that cannot be kept.
        RuntimeError: a tensor that was read from OUT is not the one that was read from the source.
    """
    out = Path(out).expanduser().absolute()
    refuse_existing(out)
    with ExitStack() as stack:
        parts = [open_checkpoint(given, stack) for given in (source, destination)]
        aligned, larger = parts
        notes = _compare(aligned, larger, keep_mlp1=keep_mlp1)
        wanted = layout(larger.config).shapes
        origin = {name: aligned if _moves(name, keep_mlp1) else larger for name in wanted}
        dtype = common_dtype(part.weights.stored[name] for name, part in origin.items())
        projector = {} if keep_mlp1 else fresh_projector(wanted, seed, dtype)

        def read(name: str) -> torch.Tensor:
            return projector[name] if name in projector else origin[name].weights.read(name)

        moved = [name for name in wanted if name.startswith(VISION)]
        before = hashes(aligned.weights, moved)
        sizes = {name: part.weights.stored[name].bytes for name, part in origin.items()}
        said = "that of the source" if keep_mlp1 else f"new, from seed {seed}"
        journal = {
            "source": aligned.state(),
            "destination": larger.state(),
            "options": [keep_mlp1, seed, max_shard_size],
        }
        with staging(out, journal) as staged:
            write_weights(staged, sizes, read, max_shard_size, resume=True)
            _write_around(staged, aligned, larger, dtype, out.name, said)
            with Weights(staged) as written:
                _demand_equal(before, hashes(written, moved))
                check_written(written, staged)
    return Transfer(
        source=str(source),
        destination=str(destination),
        out=out,
        tensors=len(moved),
        parameters=sum(math.prod(wanted[name]) for name in moved),
        digest=_digest(before),
        projector=said,
        bytes=sum(sizes.values()),
        files=files_of(out),
        notes=tuple(notes),
    )


def describe(transfer: Transfer) -> str:
    """Say in a few lines what was moved."""
    lines = [
        f"encoder    {transfer.tensors} tensors, {transfer.parameters:,} parameters of "
        f"{transfer.source}",
        f"sha256     {transfer.digest}, the same before and after",
        f"under      the language model of {transfer.destination}",
        f"projector  {transfer.projector}",
        *(f"note       {note}" for note in transfer.notes),
        f"written    {transfer.out} ({transfer.bytes / 2**30:.2f} GiB, "
        f"{len(transfer.files)} files)",
    ]
    if transfer.projector.startswith("new"):
        lines.append("next       stage 1 with it, then stage 2; stage 1.5 can be skipped")
    return "\n".join(lines)


def vision_digest(folder: str | Path) -> str:
    """The sha256 of an encoder, of an InternViT folder or within a chat checkpoint.

    Two encoders have the same digest if and only if all tensors have equal names, dtypes, shapes
    and bits, however they are cut into files.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: weights that are missing, damaged or pickled, or no encoder among them.
    """
    with Weights(resolve(folder)) as weights:
        chat = any(name.startswith(VISION) for name in weights.stored)
        wanted = VISION if chat else ("embeddings.", "encoder.")
        names = [name for name in weights.stored if name.startswith(wanted)]
        if not names:
            raise ValueError(f"{folder} holds no vision encoder, under no name of an InternViT.")
        found = hashes(weights, names)
    return _digest(found if chat else {VISION + name: line for name, line in found.items()})


# ---------------------------------------------------------------------- what is given
@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose weights fit its config.

    Attributes:
        given: as the caller named it.
        folder: where its files are.
        config: `InternVLChatConfig` or `InternVisionConfig`.
        fields: content of config.json.
        weights: its tensors.
    """

    given: str
    folder: Path
    config: Any
    fields: dict[str, Any]
    weights: Weights

    @property
    def shown(self) -> str:
        """A name for cards: the Hub id, or that of the folder."""
        local = Path(self.given).expanduser()
        return local.resolve().name if local.is_dir() else self.given

    @property
    def hub_id(self) -> str | None:
        """The Hub id; None for a folder."""
        return None if Path(self.given).expanduser().is_dir() else self.given

    def state(self) -> list[Any]:
        """What tells it from another one, for the journal of a stopped run."""
        return [str(self.folder.resolve()), file_states(self.folder)]


def open_checkpoint(given: str | Path, stack: ExitStack, *, chat: bool = True) -> Checkpoint:
    """Open a checkpoint, and check its tensors against its config.

    Args:
        given: folder or Hub id.
        stack: closes the files.
        chat: refuse an encoder that stands alone.

    Raises:
        FileNotFoundError: no such folder or repository.
        ValueError: another kind of checkpoint, or one that is damaged.
    """
    folder = resolve(given, patterns=(*DATA, "README.md"))
    fields = read_json(folder / "config.json")
    kinds = (hub.CHAT_TYPE,) if chat else (hub.CHAT_TYPE, hub.VISION_TYPE)
    if fields.get("model_type") not in kinds:
        hint = (
            "; put an encoder that stands alone under a language model with "
            "`internvl train assemble`"
            if fields.get("model_type") == hub.VISION_TYPE
            else ""
        )
        raise ValueError(
            f"{given} has model_type {fields.get('model_type')!r} in config.json, expected "
            f"{' or '.join(map(repr, kinds))}{hint}."
        )
    config = hub.build_config(fields)
    weights = stack.enter_context(Weights(folder))
    found = {name: tensor.shape for name, tensor in weights.stored.items()}
    faults = layout(config).misfits(found)
    if faults:
        raise ValueError(
            f"the weights of {given} do not fit its config.json ({'; '.join(faults)}); adopt it "
            "first (`internvl adopt`), or download it again."
        )
    return Checkpoint(str(given), folder, config, fields, weights)


def file_states(folder: Path) -> dict[str, list[int]]:
    """Size and time of the files of a folder."""
    files = (path for path in sorted(folder.iterdir()) if path.is_file())
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}


def _moves(name: str, keep_mlp1: bool) -> bool:
    return name.startswith(VISION) or (keep_mlp1 and name.startswith(PROJECTOR))


# ---------------------------------------------------------------------- the comparison
def _compare(aligned: Checkpoint, larger: Checkpoint, *, keep_mlp1: bool) -> list[str]:
    """Check that the encoder means the same in both.

    Returns:
        Differences that do not matter for it.

    Raises:
        ValueError: those that do.
    """
    first, second = _facts(aligned.config), _facts(larger.config)
    faults = _differences(first, second)
    if faults:
        raise ValueError(
            f"the encoder of {aligned.given} is not the kind that {larger.given} has "
            f"({'; '.join(faults)}); make a new checkpoint of the two with "
            "`internvl train assemble --vit ... --llm ...`."
        )
    joints = {"downsample_ratio", "ps_version"}
    mine, theirs = (_values(part.config, joints) for part in (aligned, larger))
    loose = _differences(mine, theirs)
    if keep_mlp1:
        widths = (aligned.config.llm_config.hidden_size, larger.config.llm_config.hidden_size)
        if widths[0] != widths[1]:
            loose.append(f"width of the language model is {widths[0]} and {widths[1]}")
        if loose:
            raise ValueError(
                f"the projector of {aligned.given} does not fit {larger.given} "
                f"({'; '.join(loose)}); leave keep_mlp1 out, which makes a new one."
            )
    trained = _values(aligned.config.vision_config, _TRAINING_ONLY)
    kept = _values(larger.config.vision_config, _TRAINING_ONLY)
    return [f"{fault}: the destination's is kept" for fault in loose + _differences(trained, kept)]


def _facts(config: Any) -> dict[str, Any]:
    """What an encoder computes, and on which pixels."""
    names = set(inspect.signature(type(config.vision_config)).parameters)
    fields = _values(config.vision_config, names - _TRAINING_ONLY - {"kwargs"})
    return {
        **{f"vision_config.{name}": value for name, value in fields.items()},
        "side of a tile": config.tile_size,
        **_values(config, {"select_layer", "image_mean", "image_std"}),
    }


def _values(config: Any, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(config, name) for name in sorted(names)}


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} is {first[name]!r} and {second[name]!r}"
        for name in first
        if first[name] != second[name]
    ]


# ---------------------------------------------------------------------- hashes
def hashes(weights: Weights, names: Iterable[str]) -> dict[str, str]:
    """Name -> dtype, shape and sha256 of its bytes, one tensor in memory at a time."""
    import torch

    found = {}
    for name in names:
        stored = weights.stored[name]
        data = weights.read(name).contiguous().view(torch.uint8).numpy().data
        shape = "x".join(map(str, stored.shape))
        found[name] = f"{stored.dtype} {shape} {hashlib.sha256(data).hexdigest()}"
    return found


def _digest(found: Mapping[str, str]) -> str:
    lines = "".join(f"{name} {found[name]}\n" for name in sorted(found))
    return hashlib.sha256(lines.encode()).hexdigest()


def _demand_equal(before: Mapping[str, str], after: Mapping[str, str]) -> None:
    changed = [name for name in before if before[name] != after.get(name)]
    if changed:
        raise RuntimeError(
            f"{len(changed)} of {len(before)} tensors of the encoder changed on the way "
            f"({some(changed)}); memory or disk is at fault, or somebody wrote to the source "
            "meanwhile. Run it again."
        )


# ---------------------------------------------------------------------- what is written
def fresh_projector(
    shapes: Mapping[str, tuple[int, ...]], seed: int, dtype: str
) -> dict[str, torch.Tensor]:
    """A new mlp1, as `InternVLChatModel` initialises it: N(0, 0.02) for matrices, 1 and 0 else.

    Args:
        shapes: of all tensors of the checkpoint.
        seed: of the normal numbers, drawn in float32 in the order of the names.
        dtype: torch name of the dtype to give.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name in sorted(name for name in shapes if name.startswith(PROJECTOR)):
        if len(shapes[name]) > 1:
            value = torch.empty(shapes[name]).normal_(0.0, 0.02, generator=generator)
        else:  # the norm, and biases
            value = torch.full(shapes[name], float(name.endswith("weight")))
        made[name] = value.to(getattr(torch, dtype))
    return made


def _write_around(
    staged: Path, aligned: Checkpoint, larger: Checkpoint, dtype: str, name: str, projector: str
) -> None:
    """Write everything but the weights, from the destination."""
    fields = settings.upgrade_config(larger.fields, dtype=dtype)
    own = {file: optional_json(larger.folder / file) for file in settings.PROCESSOR_FILES}
    settings.write_settings(
        staged,
        fields,
        tokenizer=larger.folder,
        generation=optional_json(larger.folder / "generation_config.json"),
        processors=own,
    )
    settings.write_code(staged)
    write_card(
        staged,
        fields,
        name=name,
        origin=(
            f"The vision encoder of `{aligned.shown}` under the language model of "
            f"`{larger.shown}`, both unchanged; the projector is {projector}."
        ),
        base_model=larger.hub_id,
        source=source_card(larger.folder),
    )


def check_written(written: Weights, folder: Path) -> None:
    """Look at what was written once more, before it gets its name.

    Raises:
        ValueError: its tensors are not those of its config.
    """
    config = hub.build_config(read_json(folder / "config.json"))
    faults = layout(config).misfits({name: t.shape for name, t in written.stored.items()})
    if faults:
        raise ValueError(f"{folder} is not what was to be written ({'; '.join(faults)}).")


def files_of(folder: Path) -> tuple[str, ...]:
    """Names of all files in a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return tuple(sorted(path.relative_to(folder).as_posix() for path in files))
