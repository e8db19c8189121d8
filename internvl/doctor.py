"""What this machine has, what is missing, and what that costs."""

from __future__ import annotations

import importlib.util
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from internvl import hub

# package on PyPI -> versions that work
REQUIRED = {
    "torch": ">=2.6",
    "transformers": ">=4.57,<6",
    "accelerate": ">=1.10",
    "safetensors": ">=0.8",
    "huggingface_hub": ">=0.36",
    "tokenizers": "",
    "numpy": ">=1.26",
    "pillow": ">=10.1",
    "einops": ">=0.8",
    "typer": ">=0.15",
}
# package -> (module, what goes without it, how to get it)
OPTIONAL = {
    "av": (
        "av",
        "video files cannot be read (frames as images can)",
        "pip install 'internvl[video]'",
    ),
    "sentencepiece": (
        "sentencepiece",
        "checkpoints on InternLM2 (2B, 8B, 26B) have no tokenizer",
        "pip install 'internvl[internlm]'",
    ),
    "peft": ("peft", "adapters cannot be loaded or trained", "pip install 'internvl[train]'"),
    "flash-attn": (
        "flash_attn",
        "attention runs as sdpa: same answers, slower on long prompts",
        "pip install flash-attn, on a machine with CUDA",
    ),
}


def examine() -> dict[str, Any]:
    """Look at packages, devices and files.

    Returns:
        `python`, `packages` and `optional` (version or None, and what is wrong), `devices`,
        `attention`, `memory_gib`, `demo`, `problems` (what keeps the package from working) and
        `notes` (what works less well).
    """
    report: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in REQUIRED},
        "optional": {name: _version(name) for name in OPTIONAL},
        "cpus": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "devices": [],
        "attention": [],
        "problems": [],
        "notes": [],
    }
    for name, wanted in REQUIRED.items():
        found = report["packages"][name]
        if found is None:
            report["problems"].append(f"{name} is missing: pip install '{name}{wanted}'")
        elif not _satisfies(found, wanted):
            report["problems"].append(
                f"{name} is {found}, {wanted} is needed: pip install '{name}{wanted}'"
            )
    for name, (module, cost, remedy) in OPTIONAL.items():
        if importlib.util.find_spec(module) is None:
            report["notes"].append(f"{name} is missing: {cost} ({remedy})")
    if report["packages"]["torch"] and report["packages"]["transformers"]:
        report["devices"] = _devices()
        report["attention"] = _attention()
    if not report["devices"]:
        report["notes"].append(
            "no accelerator: models run on the CPU, which suits the demo and small checkpoints"
        )
    report["demo"] = str(hub.DEMO) if (hub.DEMO / "config.json").is_file() else None
    if report["demo"] is None:
        report["notes"].append(
            f"there is no demo checkpoint in {hub.DEMO}; name a model with --model"
        )
    return report


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _satisfies(found: str, wanted: str) -> bool:
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:  # comes with transformers, whose absence is reported
        return True
    return SpecifierSet(wanted, prereleases=True).contains(found)


def _memory_gib() -> float | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def _devices() -> list[dict[str, Any]]:
    """Accelerators that torch sees."""
    import torch

    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = round(properties.total_memory / 2**30, 1)
        bf16 = torch.cuda.get_device_capability(index) >= (8, 0)
        found.append(
            {"type": "cuda", "name": properties.name, "memory_gib": memory, "bfloat16": bf16}
        )
    if torch.backends.mps.is_available():
        found.append(
            {"type": "mps", "name": platform.processor(), "memory_gib": None, "bfloat16": True}
        )
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        found += [
            {
                "type": "xpu",
                "name": torch.xpu.get_device_name(i),
                "memory_gib": None,
                "bfloat16": True,
            }
            for i in range(torch.xpu.device_count())
        ]
    return found


def _attention() -> list[str]:
    """Attention implementations that can run here; the first is the default."""
    from transformers.utils import is_flash_attn_2_available, is_torch_flex_attn_available

    names = ["sdpa", "eager"]
    if is_flash_attn_2_available():
        names.append("flash_attention_2")
    if is_torch_flex_attn_available():
        names.append("flex_attention")
    return names


def describe(report: dict[str, Any]) -> str:
    """Write what `examine` returned as text."""
    memory = f", {report['memory_gib']} GiB" if report["memory_gib"] else ""
    lines = [
        f"python {report['python']} on {report['platform']}, {report['cpus']} CPUs{memory}",
        "",
    ]
    for name, found in {**report["packages"], **report["optional"]}.items():
        lines.append(f"  {name:<16} {found or '-'}")
    lines.append("")
    for device in report["devices"]:
        size = f", {device['memory_gib']} GiB" if device["memory_gib"] else ""
        bf16 = "bfloat16" if device["bfloat16"] else "no bfloat16: pass --dtype float16 or float32"
        lines.append(f"device     {device['type']}: {device['name']}{size}, {bf16}")
    lines.append(f"attention  {', '.join(report['attention']) or '-'}")
    lines.append(f"demo       {report['demo'] or '-'}")
    if report["notes"]:
        lines += ["", *(f"note: {note}" for note in report["notes"])]
    if report["problems"]:
        lines += ["", *(f"PROBLEM: {problem}" for problem in report["problems"])]
    else:
        lines += ["", "ready."]
    return "\n".join(lines)
