"""Weights as files: what a folder holds, what a config demands, and writing them in shards.

    folder -> Weights: names, dtypes and shapes from the headers; tensors only when read
    config -> expected names and shapes, from the model on the meta device
    names, sizes, read() -> shards and index, one shard in memory at a time

safetensors only; nothing here unpickles.
"""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from internvl import hub
from internvl.source_files import check_weights, optional_json, some

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# Names of safetensors headers; a checkpoint of this family holds nothing else.
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
BYTES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Attributes:
        name: its key.
        dtype: as safetensors writes it, "BF16".
        shape: its shape.
        file: name of the file in its folder.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str

    @property
    def item_bytes(self) -> int:
        """Size of an element in bytes.

        Raises:
            ValueError: a dtype that weights of this family do not have.
        """
        if self.dtype not in BYTES:
            raise ValueError(
                f"{self.name} in {self.file} is {self.dtype}, expected one of {sorted(BYTES)}; "
                "quantised and integer weights are not part of a published checkpoint."
            )
        return BYTES[self.dtype]

    @property
    def bytes(self) -> int:
        """Size of the data in bytes."""
        return math.prod(self.shape) * self.item_bytes


class Weights:
    """The safetensors files of a folder, opened when used; a context manager.

    Args:
        folder: holds model.safetensors, or shards and their index.

    Attributes:
        files: names of the weight files, in order.
        stored: every tensor, in the order of the files.

    Raises:
        ValueError: files that are missing, damaged or pickled, or a name that two files hold.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        check_weights(folder)
        self.folder = folder
        index = optional_json(folder / INDEX)
        self.files = sorted(set(index["weight_map"].values())) if index else [SINGLE]
        self._stack = ExitStack()
        self._open: dict[str, Any] = {}
        self.stored: dict[str, Stored] = {}
        for file in self.files:
            opened = self._stack.enter_context(safe_open(folder / file, framework="pt"))
            self._open[file] = opened
            for name in opened.keys():  # noqa: SIM118  (not a dict)
                if name in self.stored:
                    raise ValueError(
                        f"{folder}: {name} is in {self.stored[name].file} and in {file}; one of "
                        "the two belongs to another checkpoint."
                    )
                part = opened.get_slice(name)
                self.stored[name] = Stored(name, part.get_dtype(), tuple(part.get_shape()), file)

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor.

        Raises:
            KeyError: no file holds it.
        """
        return self._open[self.stored[name].file].get_tensor(name)

    def close(self) -> None:
        """Close the files."""
        self._stack.close()

    def __enter__(self) -> Weights:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


# ---------------------------------------------------------------------- what a config demands
@dataclass(frozen=True)
class Layout:
    """The tensors that a checkpoint with a config stores.

    Attributes:
        shapes: name and shape of each; of tied ones only the first, which is the one that is
            stored.
        tied: names that may be stored beside them, or left out.
    """

    shapes: Mapping[str, tuple[int, ...]]
    tied: frozenset[str]

    def misfits(self, found: Mapping[str, tuple[int, ...]]) -> list[str]:
        """What differs between stored tensors and these, one line a kind."""
        missing = [name for name in self.shapes if name not in found]
        extra = sorted(set(found) - set(self.shapes) - self.tied)
        reshaped = [
            f"{name} has {found[name]}, expected {shape}"
            for name, shape in self.shapes.items()
            if name in found and found[name] != shape
        ]
        kinds = {"missing": missing, "unexpected": extra, "of another shape": reshaped}
        return [f"{len(names)} {kind}: {some(names)}" for kind, names in kinds.items() if names]


def layout(config: Any) -> Layout:
    """Names and shapes of a config, from the model on the meta device.

    Args:
        config: `InternVLChatConfig` or `InternVisionConfig`.
    """
    model = _model_on_meta(config)
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return Layout(shapes, frozenset(every - shapes.keys()))


def _model_on_meta(config: Any) -> Any:
    """Build the model of a config without memory for its parameters."""
    import torch

    if config.model_type == hub.VISION_TYPE:
        model_class = hub.ring0("modeling_intern_vit").InternVisionModel
    else:
        model_class = hub.ring0("modeling_internvl_chat").InternVLChatModel
    config = copy.deepcopy(config)
    config.template = None  # names and shapes do not depend on it; an unknown one is not our affair
    with torch.device("meta"):
        model = model_class(config)
    model.tie_weights()
    return model


# ---------------------------------------------------------------------- writing
def common_dtype(stored: Iterable[Stored]) -> str:
    """The torch name of the one dtype that all tensors have.

    Raises:
        ValueError: several, or one that is not a float of 16 or 32 bits.
    """
    names: dict[str, list[str]] = {}
    for tensor in stored:
        names.setdefault(tensor.dtype, []).append(tensor.name)
    if len(names) == 1 and next(iter(names)) in DTYPES:
        return DTYPES[next(iter(names))]
    listed = "; ".join(f"{dtype}: {some(some_names)}" for dtype, some_names in names.items())
    raise ValueError(
        f"the weights are not of one dtype out of {sorted(DTYPES)} ({listed}); "
        "`internvl export --dtype` writes them in one."
    )


def write_weights(
    folder: Path,
    sizes: Mapping[str, int],
    read: Callable[[str], torch.Tensor],
    max_shard_size: int | str = "5GB",
    *,
    resume: bool = False,
) -> None:
    """Write tensors as safetensors: shards first, each in one step, the index last.

    Args:
        folder: where to.
        sizes: bytes of each tensor, in the order in which they are written.
        read: gives a tensor; called once for each, a shard at a time.
        max_shard_size: most bytes of a shard ("5GB"); a larger tensor gets one of its own.
        resume: keep shards that are there already, which the caller knows to be of these tensors.
    """
    from huggingface_hub import split_state_dict_into_shards_factory
    from safetensors.torch import save_file
    from tqdm.auto import tqdm

    split = split_state_dict_into_shards_factory(
        dict(sizes),
        get_storage_size=lambda size: size,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    shards = split.filename_to_tensors.items()
    for file, names in tqdm(shards, desc="writing", unit="shard", disable=None):
        path = folder / file
        if resume and path.is_file():
            logger.info("%s is there already", path.name)
            continue
        tensors = {name: read(name).contiguous() for name in names}
        partial = path.with_name(path.name + ".partial")
        save_file(tensors, partial, metadata={"format": "pt"})
        partial.replace(path)
    if split.is_sharded:
        index = {
            "metadata": {"total_size": sum(sizes.values())},
            "weight_map": {name: split.tensor_to_filename[name] for name in sorted(sizes)},
        }
        write_text(folder / INDEX, json.dumps(index, indent=2) + "\n")


def write_text(path: Path, content: str) -> None:
    """Write a text file in one step."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(content, encoding="utf-8", newline="\n")
    partial.replace(path)
