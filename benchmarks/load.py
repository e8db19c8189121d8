"""Does our model load as fast as transformers' own InternVL, and in how much memory?

    python benchmarks/load.py [--json] [--rounds 7] [--folder DIRECTORY] [--smoke]

A checkpoint of InternVL2.5-1B with random weights, 1.9 GB of bfloat16 in shards of 400 MB, is
written to a temporary folder in both layouts, and removed at the end (--folder says where; 4 GB
have to be free). Then both are loaded with `from_pretrained` in turn, from the page cache: CPU time
of loading, and of loading and then reading every weight once, because loading alone maps pages that
nobody has touched. Memory is the highest resident memory of a fresh process, file-backed pages and
interpreter included, after every weight was read. `--full` changes nothing: the model is whole.
"""

from __future__ import annotations

import shutil
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from harness import (
    ROOT,
    Record,
    amount,
    child_arguments,
    compare,
    in_child,
    interleave,
    parser,
    peak_rss,
    require,
    reset_peak,
    run,
)
from random_models import CONFIG, LAYERS, chat_config, chat_model, native_model, native_weights

from internvl import hub

QUESTION = "from_pretrained of 1.9 GB in bfloat16, against transformers' own InternVL"
TARGET_TIME, TARGET_MEMORY = 1.1, 1.25
LAYOUTS = ("ours", "native")
SETTINGS = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.jinja",
)
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
)


# ---------------------------------------------------------------------- the checkpoint
def write(folder: Path, options: Namespace) -> dict[str, int]:
    """Write the checkpoint in both layouts; returns the bytes of weights of each.

    Raises:
        ValueError: the disk is too full.
    """
    layers = 2 if options.smoke else LAYERS
    model = chat_model(chat_config(layers, layers, smoke=options.smoke), torch.bfloat16)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    if (free := shutil.disk_usage(folder).free) < 2.2 * size:
        raise ValueError(
            f"{folder} has {free / 1e9:.1f} GB free, two checkpoints need {2.2 * size / 1e9:.1f}; "
            "pass --folder with a directory on another disk."
        )
    shard = "100KB" if options.smoke else "400MB"
    model.save_pretrained(folder / "ours", max_shard_size=shard)
    for name in SETTINGS:
        shutil.copy(CONFIG.parent / name, folder / "ours")
    for name in TOKENIZER:
        shutil.copy(ROOT / name, folder / "ours")
    native_model(model).save_pretrained(folder / "native", max_shard_size=shard)
    return {name: weight_bytes(folder / name) for name in LAYOUTS}


def weight_bytes(folder: Path) -> int:
    """Bytes of the weight files of a checkpoint."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def load(layout: str, folder: Path) -> Any:
    """Load one of the layouts with `from_pretrained`."""
    if layout == "ours":
        model_class = hub.ring0("modeling_internvl_chat").InternVLChatModel
    else:
        from transformers import InternVLForConditionalGeneration as model_class
    return model_class.from_pretrained(folder / layout, dtype="auto")


def touch(model: Any) -> float:
    """Read every weight once."""
    return sum(float(p.view(torch.int16).max()) for p in model.parameters())


# ---------------------------------------------------------------------- what is measured
@torch.inference_mode()
def equality(folder: Path, options: Namespace) -> dict[str, Any]:
    """Both layouts give the weights that were written, to the bit.

    Raises:
        RuntimeError: they do not.
    """
    layers = 2 if options.smoke else LAYERS
    written = chat_model(chat_config(layers, layers, smoke=options.smoke), torch.bfloat16)
    ours, native = (load(name, folder).state_dict() for name in LAYOUTS)
    pairs = {
        "ours": (ours, written.state_dict()),
        "native": (native, native_weights(written.state_dict())),
    }
    found: dict[str, Any] = {}
    for name, (loaded, expected) in pairs.items():
        found[f"{name}_names_equal"] = loaded.keys() == expected.keys()
        found[f"{name}_bits_equal"] = all(
            torch.equal(loaded[key], value) for key, value in expected.items()
        )
    return require(found)


def time_rows(folder: Path, options: Namespace) -> list[dict[str, Any]]:
    """Loading, and loading and reading, in turn."""
    variants: dict[str, Any] = {}
    for name in LAYOUTS:
        variants[name] = lambda name=name: load(name, folder)
        variants[f"{name}, read"] = lambda name=name: touch(load(name, folder))
    if not options.smoke:  # the tokenizer does not fit toy widths
        variants["hub.load"] = lambda: hub.load(folder / "ours")
    t = interleave(variants, options.rounds)
    target: dict[str, Any] = {"peer_name": "transformers native", "at_most": TARGET_TIME}
    rows = [
        compare("from_pretrained", t["ours"], t["native"], **target),
        compare("from_pretrained, weights read", t["ours, read"], t["native, read"], **target),
    ]
    if "hub.load" in t:
        rows.append(
            amount(
                "internvl.hub.load",
                t["hub.load"].median - t["ours"].median,
                "CPU seconds on top: tokenizer, processor, and the checks of a checkpoint",
            )
        )
    return rows


def memory_of(layout: str, folder: Path) -> dict[str, Any]:
    """Highest resident memory of loading and reading; meant for a process of its own."""
    reset_peak()
    touch(load(layout, folder))
    return {"peak": peak_rss()}


def peak_of(layout: str, folder: Path, options: Namespace) -> int | None:
    """`memory_of` in a process of its own."""
    arguments = [*child_arguments(options), "--folder", str(folder), "--json"]
    return in_child(__file__, *arguments, "--memory-of", layout)["peak"]


def memory_rows(folder: Path, sizes: dict[str, int], options: Namespace) -> list[dict[str, Any]]:
    """Peaks over file sizes; no row where the system does not tell."""
    found = {name: peak_of(name, folder, options) for name in LAYOUTS}
    peaks = {name: peak for name, peak in found.items() if peak is not None}
    metric = "peak resident memory / bytes of weight files"
    return [
        amount(
            f"peak memory, {name}",
            peaks[name] / sizes[name],
            metric,
            at_most=TARGET_MEMORY if name == "ours" else None,
            peak_bytes=peaks[name],
            file_bytes=sizes[name],
            note=f"{peaks[name] / 1e9:.2f} of {sizes[name] / 1e9:.2f} GB",
        )
        for name in peaks
    ]


def measure(options: Namespace) -> dict[str, Any]:
    """Write, compare, time, weigh, remove."""
    if options.memory_of:
        return memory_of(options.memory_of, Path(options.folder))
    record = Record("load", QUESTION, options, torch.bfloat16)
    with tempfile.TemporaryDirectory(prefix="internvl-load-", dir=options.folder) as name:
        folder = Path(name)
        sizes = write(folder, options)
        shards = len(list((folder / "ours").glob("*.safetensors")))
        equal = equality(folder, options)
        record.add(*time_rows(folder, options))
        if not options.no_memory:
            record.add(*memory_rows(folder, sizes, options))
    return record.finish(equality=equal, file_bytes=sizes, shards=shards)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.set_defaults(rounds=7)
    options.add_argument("--folder", help="where the checkpoint is written for a while")
    options.add_argument("--memory-of", choices=LAYOUTS, help="used by this script itself")
    run(measure, options.parse_args(arguments))


if __name__ == "__main__":
    main()
