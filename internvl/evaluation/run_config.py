"""The configuration of a run: everything that its predictions depend on, and a hash of it.

A run folder belongs to one configuration. Going on with another one is refused, with the settings
that differ, because a file of predictions of two configurations has no score.
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from internvl import hub
from internvl.chat.sampling import REASONING_TOKENS, SAMPLING
from internvl.evaluation.benchmarks import Benchmark

MODES = ("direct", "cot", "vote")
# Bytes of a weights file that its digest reads at either end.
_ENDS = 1 << 20


@dataclass(frozen=True)
class ModelSource:
    """The checkpoint, as `hub.load` takes it."""

    source: str | None = None
    subfolder: str | None = None
    revision: str | None = None
    adapter: str | None = None
    dtype: str = "auto"
    quantization: str | None = None
    attn_implementation: str | None = None

    def load(self, device_map: Any = None) -> hub.Loaded:
        """Load it, with our classes."""
        return hub.load(**asdict(self), device_map=device_map)


@dataclass(frozen=True)
class RunConfig:
    """What the predictions of a run depend on.

    Attributes:
        benchmark: key in benchmarks.toml.
        model: the checkpoint.
        data: digest of the samples, see `samples.fingerprint`.
        prompt: prompt rule.
        max_tiles: of an image.
        total_tiles: of all images of a question.
        upscale_first: double the first image before tiling (MMMU).
        frames: of a video; 0 for images and text.
        mode: "direct" (one greedy answer), "cot" (one, with the prompt of Figure 9) or "vote"
            (several sampled ones).
        samples: answers per question; 1 unless `mode` is "vote".
        samples_per_call: answers that are generated together, from one prefill.
        max_new_tokens: longest answer.
        temperature: of the sampling.
        top_p: of the sampling.
        batch_size: questions that run together. It is part of the configuration because padding
            changes the last bits of bfloat16 logits.
        seed: of the sampling; each sample has its own, made of this and its id.
        limit: only the first so many samples.
        weights: digest of the checkpoint, see `weights_digest`.
    """

    benchmark: str
    model: ModelSource
    data: str
    prompt: str
    max_tiles: int
    total_tiles: int
    upscale_first: bool = False
    frames: int = 0
    mode: str = "direct"
    samples: int = 1
    samples_per_call: int = 8
    max_new_tokens: int = 4096
    temperature: float = SAMPLING["temperature"]
    top_p: float = SAMPLING["top_p"]
    batch_size: int = 8
    seed: int = 0
    limit: int | None = None
    weights: str = ""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode is {self.mode!r}; expected one of {', '.join(MODES)}.")
        if self.mode != "vote" and self.samples != 1:
            raise ValueError(
                f"samples is {self.samples}, but mode {self.mode!r} gives one greedy answer; use "
                'mode "vote" for several.'
            )
        for name in ("samples", "samples_per_call", "max_new_tokens", "batch_size", "max_tiles"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1.")

    @property
    def cot(self) -> bool:
        """Whether the model is asked to reason."""
        return self.mode != "direct"

    @property
    def generation(self) -> dict[str, Any]:
        """Settings of every answer: VLMEvalKit's, which names temperature and top_p also where the
        answer is greedy."""
        return {
            "do_sample": self.mode == "vote",
            "max_new_tokens": self.max_new_tokens,
            "top_p": self.top_p,
            "temperature": self.temperature,
        }

    @property
    def hash(self) -> str:
        """16 hex digits."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def config_for(benchmark: Benchmark, model: ModelSource, data: str, **given: Any) -> RunConfig:
    """The settings of a benchmark, replaced by those that are given (None: not given).

    Args:
        benchmark: whose prompt, tiles, frames and length of answers are used.
        model: the checkpoint.
        data: digest of the samples.
        **given: fields of `RunConfig`.
    """
    settings: dict[str, Any] = {
        "prompt": benchmark.prompt,
        "max_tiles": benchmark.max_tiles,
        "total_tiles": benchmark.total_tiles,
        "upscale_first": benchmark.upscale_first,
        "max_new_tokens": benchmark.max_new_tokens,
    }
    settings |= {name: value for name, value in given.items() if value is not None}
    mode = settings.get("mode", "direct")
    if mode != "direct" and given.get("max_new_tokens") is None:
        # 50 or 100 tokens, which some official scripts allow an answer, would cut reasoning short.
        settings["max_new_tokens"] = max(REASONING_TOKENS, settings["max_new_tokens"])
    if mode == "vote":
        settings.setdefault("samples", 8)
    if "weights" not in settings:
        settings["weights"] = weights_digest(model)
    return RunConfig(benchmark.key, model, data, **settings)


def weights_digest(model: ModelSource) -> str:
    """A digest of config.json and of name, size and both ends of every weights file.

    It tells checkpoints apart without reading all of them: training changes the first tensors.
    """
    from internvl.source_files import DATA, resolve

    digest = hashlib.blake2b(digest_size=16)
    places = [(hub.DEMO if model.source is None else model.source, model.subfolder, model.revision)]
    if model.adapter is not None:
        places.append((model.adapter, None, None))
    for source, subfolder, revision in places:
        folder = Path(resolve(source, subfolder, revision, DATA))
        for path in sorted([*folder.glob("*config.json"), *folder.glob("*.safetensors")]):
            size = path.stat().st_size
            digest.update(f"{path.name}:{size}".encode())
            with path.open("rb") as file:
                digest.update(file.read(_ENDS))
                if size > _ENDS:
                    file.seek(max(_ENDS, size - _ENDS))
                    digest.update(file.read())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions that answers may depend on."""
    import torch
    import transformers

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def differences(first: dict[str, Any], second: dict[str, Any], prefix: str = "") -> list[str]:
    """Settings in which two dicts differ, `name: first -> second` each."""
    found = []
    for name in sorted(first.keys() | second.keys()):
        one, two = first.get(name), second.get(name)
        if isinstance(one, dict) and isinstance(two, dict):
            found += differences(one, two, f"{prefix}{name}.")
        elif one != two:
            found.append(f"{prefix}{name}: {one!r} -> {two!r}")
    return found
