"""The header of a safetensors file, looked at more closely than a loader does.

    8 bytes: length n, little-endian | n bytes: JSON, padded with spaces | data

A loader needs a header that it can follow; here one flipped bit anywhere in it is to be seen. What
it turns into another valid header (a name, a shape of the same size) shows beside the config.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internvl.checkpoints.tensors import Stored

# Bits of an element, of every dtype that a loader knows.
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"), 8),
}
_FORMATS = {"pt", "np", "tf", "flax", "mlx"}


@dataclass(frozen=True)
class Header:
    """What a file says it holds.

    Attributes:
        tensors: every tensor, by name.
        data_bytes: bytes of data that the header accounts for.
        faults: what is wrong with it, in sentences.
    """

    tensors: dict[str, Stored]
    data_bytes: int
    faults: tuple[str, ...]


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file; faults are returned, not raised."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            return _broken(
                f"its header should have {length} bytes, but the file has {size}: it is truncated, "
                "or its length field is damaged"
            )
        raw = file.read(length)
    try:
        text = raw.decode("utf-8")
        entries = json.loads(text, object_pairs_hook=_no_twins)
    except ValueError as error:
        return _broken(f"its header is not valid JSON ({error}): a byte of it is damaged")
    if not isinstance(entries, dict):
        return _broken("its header is not a JSON object")
    faults: list[str] = []
    if text[len(text.rstrip()) :].strip(" "):
        faults.append("its header is padded with something other than spaces")
    faults += _metadata_faults(entries.pop("__metadata__", {}))
    tensors: dict[str, Stored] = {}
    places: list[tuple[int, int, str]] = []
    end = 0
    for name, entry in entries.items():
        fault = _entry_fault(entry)
        if fault:
            faults.append(f"{name}: {fault}")
            continue
        tensors[name] = Stored(name, entry["dtype"], tuple(entry["shape"]), path.name)
        start, stop = entry["data_offsets"]
        places.append((start, stop, name))
    for start, stop, name in sorted(places):
        if start != end:
            faults.append(f"{name} starts at byte {start} of the data, expected {end}")
        end = stop
    data = size - 8 - length
    if not faults and end != data:
        verb = "truncated" if data < end else "longer than that"
        faults.append(f"its header accounts for {end} bytes of data, it has {data}: it is {verb}")
    return Header(tensors, end, tuple(faults))


def _broken(fault: str) -> Header:
    return Header({}, 0, (fault,))


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twins = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"it names {', '.join(twins)} twice")
    return found


def _metadata_faults(metadata: Any) -> list[str]:
    """`format` is all that loaders read; what else a tool noted there is its own business."""
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        return ["its __metadata__ is not a map of strings"]
    if metadata.get("format") not in _FORMATS:
        return [
            f"its __metadata__ says format {metadata.get('format')!r}, expected one of "
            f"{sorted(_FORMATS)}; transformers 4.57 refuses the file"
        ]
    return []


def _entry_fault(entry: Any) -> str | None:
    """What is wrong with the entry of a tensor."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        return "its entry is not {dtype, shape, data_offsets}"
    shape, offsets = entry["shape"], entry["data_offsets"]
    if entry["dtype"] not in _BITS:
        return f"there is no dtype {entry['dtype']!r}"
    numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else [-1]
    if len(offsets) != 2 or any(not isinstance(n, int) or n < 0 for n in numbers):
        return f"shape {shape} or data_offsets {offsets} are not sizes"
    wanted = math.prod(shape) * _BITS[entry["dtype"]] // 8
    if offsets[1] - offsets[0] != wanted:
        return (
            f"{entry['dtype']} of shape {shape} takes {wanted} bytes, but data_offsets leave "
            f"{offsets[1] - offsets[0]}"
        )
    return None
