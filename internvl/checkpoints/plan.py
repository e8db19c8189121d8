"""`internvl plan`: whether a model fits on the GPUs at hand, and how to run it there.

    name, folder, Hub id -> config.json -> bytes per GPU for each engine -> the one to take, its
    command, and what would have to change for what does not fit

From a config alone: no weights are needed, nothing but config.json is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from internvl import hub
from internvl.checkpoints import memory
from internvl.checkpoints.device_map import (
    GIB,
    RESERVE,
    Costs,
    Load,
    parse_gpus,
    place,
    plan_device_map,
)
from internvl.checkpoints.engines import snippet
from internvl.checkpoints.memory import Workload
from internvl.checkpoints.published import CHAT_MODELS
from internvl.context import context_length, key_heads
from internvl.source_files import read_json, resolve

__all__ = ["Plan", "describe", "plan", "plan_device_map", "published_config", "resolve_config"]

# From this many requests at once a server with continuous batching pays off.
_SERVE_FROM = 8
_CONTEXT, _CONTEXT_STEP = 8192, 256


@dataclass(frozen=True)
class Plan:
    """How a workload fits.

    Attributes:
        model: name of the model.
        parameters: their number.
        weights: bytes of all of them, once.
        dtype: of the weights.
        gpus: bytes of each GPU.
        work: the workload.
        visual_tokens: of a sample.
        engine: "one GPU", "device_map", "tensor parallel", "vLLM" or "FSDP2"; None if none fits.
        loads: bytes on each GPU with that engine, or with the closest one.
        reserve: bytes left alone on each GPU.
        snippet: what to run; "" if nothing fits.
        reasons: why this engine, and what is not possible, in sentences.
        largest_context: positions of a sample that fit with this batch, images and engine.
        training: stage of the report, and bytes of a step, when training was asked for.
    """

    model: str
    parameters: int
    weights: int
    dtype: str
    gpus: tuple[int, ...]
    work: Workload
    visual_tokens: int
    engine: str | None
    loads: tuple[Load, ...]
    reserve: int
    snippet: str
    reasons: tuple[str, ...]
    largest_context: int
    training: dict[str, Any] | None = None

    @property
    def headroom(self) -> tuple[int, ...]:
        """Bytes left on each GPU; negative where they are missing."""
        return tuple(
            size - self.reserve - load.used
            for size, load in zip(self.gpus, self.loads, strict=True)
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "headroom": self.headroom}


# ---------------------------------------------------------------------- models
def published_config(name: str) -> Any:
    """The config of a published chat model.

    Args:
        name: "InternVL2_5-8B", "2.5-8B", "2-40B", or a size of 2.5 alone, "8B".

    Raises:
        ValueError: no such model.
    """
    wanted = name.lower().replace(".", "_")
    names = {model.name: model.name.lower() for model in CHAT_MODELS}
    found = [n for n, low in names.items() if low in (wanted, f"internvl{wanted}")]
    found = found or [n for n, low in names.items() if low == f"internvl2_5-{wanted}"]
    if len(found) != 1:
        raise ValueError(
            f"{name!r} is neither a folder nor a published model; expected a size of InternVL 2.5 "
            f"(1B, 2B, 4B, 8B, 26B, 38B, 78B) or one of {', '.join(names)}."
        )
    path = hub.REPOSITORY / "variants" / found[0] / "config.json"
    return hub.build_config(read_json(path))


def resolve_config(model: str | Path, revision: str | None = None) -> tuple[str, Any]:
    """Name and config of a model: a size, a published name, a folder, a config.json or a Hub id.

    Raises:
        FileNotFoundError: no such folder or repository.
        ValueError: no such model, or one of another kind.
    """
    path = Path(model).expanduser()
    if path.is_file():
        fields, name = read_json(path), path.resolve().parent.name
    elif path.is_dir() or "/" in str(model):
        folder = resolve(model, None, revision, ("config.json",))
        fields = read_json(folder / "config.json")
        name = path.resolve().name if path.is_dir() else str(model)
    else:
        return str(model), published_config(str(model))
    if fields.get("model_type") != hub.CHAT_TYPE:
        raise ValueError(
            f"{model} has model_type {fields.get('model_type')!r}, expected {hub.CHAT_TYPE!r}; "
            "plans are for chat models."
        )
    fields |= {"use_llm_lora": 0, "use_backbone_lora": 0}  # merged before it is run
    return name, hub.build_config(fields)


# ---------------------------------------------------------------------- the plan
def plan(
    model: str | Path,
    *,
    gpus: str = "1x80GiB",
    dtype: str = "bf16",
    images: int = 1,
    max_tiles: int | None = None,
    context: int | None = None,
    batch: int = 1,
    train: str | None = None,
    reserve: int = RESERVE,
    revision: str | None = None,
) -> Plan:
    """Plan a workload.

    Args:
        model: see `resolve_config`.
        gpus: "4x80GiB", "24GiB,80GiB".
        dtype: "bf16", "fp16", "fp32", "int8" or "int4".
        images: of a sample.
        max_tiles: of an image, its thumbnail not counted; None for the config's.
        context: positions of a sample, visual tokens and the answer included; None for 8,192, or
            all that the model has.
        batch: samples at once (on each GPU, for training).
        train: "stage1", "stage1.5" or "stage2" of the report; None for inference.
        reserve: bytes to leave alone on each GPU.
        revision: branch, tag or commit of a Hub repository.

    Raises:
        FileNotFoundError: no such folder or repository.
        ValueError: values that cannot be, or images that do not fit in the context.
    """
    name, config = resolve_config(model, revision)
    sizes = parse_gpus(gpus)
    context = context or min(_CONTEXT, context_length(config.llm_config))
    tiles = images * _tiles_per_image(config, max_tiles)
    work = Workload(batch, context, tiles)
    visual = tiles * config.num_image_token
    _check(config, work, visual, images)
    common = {
        "model": name,
        "parameters": memory.parameters(config),
        "weights": memory.parts(config, dtype).total,
        "dtype": dtype,
        "gpus": tuple(sizes),
        "work": work,
        "visual_tokens": visual,
        "reserve": reserve,
    }
    usable = [size - reserve for size in sizes]
    if train is not None:
        return Plan(**common, **_training_plan(model, config, usable, dtype, work, train))
    candidates = _engines(config, usable, dtype, work)
    engine, loads, reasons = _choose(candidates, usable, batch, serves=dtype in memory.BYTES)
    fits = engine is not None
    busy = sum(load.used > 0 for load in loads)
    notes = [*reasons, *_advice(config, usable, dtype, work, fits=fits, engine=engine)]
    return Plan(
        **common,
        engine=engine,
        loads=tuple(loads),
        snippet=snippet(engine, model, busy, dtype, work, images) if engine else "",
        reasons=tuple(notes),
        largest_context=largest_context(config, usable, dtype, work, engine),
    )


def _tiles_per_image(config: Any, max_tiles: int | None) -> int:
    """Most tiles of an image, with its thumbnail."""
    most = max_tiles or (config.max_dynamic_patch if config.dynamic_image_size else 1)
    return most + (1 if config.use_thumbnail and most > 1 else 0)


def _check(config: Any, work: Workload, visual: int, images: int) -> None:
    longest = context_length(config.llm_config)
    if min(work.batch, work.context) < 1 or images < 0:
        raise ValueError(
            f"batch is {work.batch}, context {work.context}, images {images}; expected at least 1, "
            "1 and 0."
        )
    if work.context > longest:
        raise ValueError(f"context is {work.context}, but the model is made for {longest}.")
    if visual > work.context:
        raise ValueError(
            f"{images} images are up to {visual} visual tokens, more than the context of "
            f"{work.context}; raise --context, or lower --images or --max-tiles."
        )


# ---------------------------------------------------------------------- engines
def _engines(
    config: Any, sizes: Sequence[int], dtype: str, work: Workload
) -> dict[str, list[Load] | str]:
    """Loads of each engine that can run the model, or why it cannot."""
    costs = Costs.of(config, dtype, work)
    one = place(costs, sizes[:1])
    rest = [Load()] * (len(sizes) - 1)
    engines: dict[str, list[Load] | str] = {"one GPU": [*one.loads, *rest]}
    if len(sizes) == 1:
        return engines
    engines["device_map"] = list(place(costs, sizes).loads)
    heads, keys = config.llm_config.num_attention_heads, key_heads(config.llm_config)
    if keys % len(sizes) or heads % len(sizes):
        engines["tensor parallel"] = (
            f"tensor parallelism over {len(sizes)} GPUs is not possible: {heads} heads, {keys} key "
            "heads"
        )
    elif dtype in ("int8", "int4"):
        engines["tensor parallel"] = "quantised weights are not split over ranks by transformers"
    elif config.llm_config.model_type == "phi3":
        engines["tensor parallel"] = "transformers' plan for Phi-3 gathers its fused projections"
    else:
        engines["tensor parallel"] = [_parallel_load(config, costs, dtype, work, len(sizes))] * len(
            sizes
        )
    return engines


def _parallel_load(config: Any, costs: Costs, dtype: str, work: Workload, ranks: int) -> Load:
    """The load of a rank: decoder and MLPs of the encoder are shared, the rest is on each."""
    parts, vision = costs.parts, config.vision_config
    mlps = 2 * vision.hidden_size * vision.intermediate_size * vision.num_hidden_layers
    shared = sum(parts.layers) + parts.embeddings + parts.head
    shared += int(mlps * memory.BYTES.get(dtype, 2))
    llm = config.llm_config
    # Of a layer at work, what has the width of the MLP is shared, what has the model's is not.
    inner = 3 * llm.intermediate_size * work.batch * work.context * memory.number_bytes(dtype)
    return Load(
        weights=parts.total - shared + shared // ranks,
        cache=costs.layer_cache * len(parts.layers) // ranks,
        vision=costs.vision,
        decoder=costs.decoder - inner + inner // ranks,
    )


def _choose(
    candidates: dict[str, list[Load] | str], sizes: Sequence[int], batch: int, *, serves: bool
) -> tuple[str | None, list[Load], list[str]]:
    """The engine to take, its loads, and why."""
    reasons = [why for why in candidates.values() if isinstance(why, str)]
    loads = {name: value for name, value in candidates.items() if not isinstance(value, str)}

    fitting = [name for name in loads if _hold(loads[name], sizes)]
    if not fitting:
        closest = "device_map" if "device_map" in loads else "one GPU"
        return None, loads[closest], reasons
    if batch >= _SERVE_FROM and serves and fitting != ["device_map"]:
        under = "one GPU" if "one GPU" in fitting else "tensor parallel"
        reasons.insert(0, f"{batch} requests at once: a server batches them continuously")
        return "vLLM", loads[under], reasons
    if "one GPU" in fitting:
        if len(sizes) > 1:
            reasons.insert(0, "it fits on one GPU, where nothing has to cross between GPUs")
        return "one GPU", loads["one GPU"], reasons
    if "tensor parallel" in fitting:
        reasons.insert(0, "all GPUs work on every token; with a device_map one works at a time")
        return "tensor parallel", loads["tensor parallel"], reasons
    return "device_map", loads["device_map"], reasons


def _hold(loads: Sequence[Load] | str, sizes: Sequence[int]) -> bool:
    """Whether loads fit; a string says that they cannot be."""
    if isinstance(loads, str):
        return False
    return all(load.used <= size for size, load in zip(sizes, loads, strict=True))


def largest_context(
    config: Any, sizes: Sequence[int], dtype: str, work: Workload, engine: str | None
) -> int:
    """Most positions of a sample that fit with an engine; 0 if not even the images do."""
    chosen = {"vLLM": None, None: "device_map" if len(sizes) > 1 else "one GPU"}.get(engine, engine)

    def fits(context: int) -> bool:
        candidates = _engines(config, sizes, dtype, replace(work, context=context))
        names = [chosen] if chosen else ["one GPU", "tensor parallel"]
        return any(_hold(candidates.get(name, ""), sizes) for name in names)

    low, high = 0, context_length(config.llm_config) // _CONTEXT_STEP
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle * _CONTEXT_STEP) else (low, middle - 1)
    return low * _CONTEXT_STEP


# ---------------------------------------------------------------------- advice
def _advice(
    config: Any,
    sizes: Sequence[int],
    dtype: str,
    work: Workload,
    *,
    fits: bool,
    engine: str | None,
) -> list[str]:
    """What is tight, or what would have to change."""
    largest = largest_context(config, sizes, dtype, work, engine)
    weights = memory.parts(config, dtype).total
    per_sample = work.tiles * config.num_image_token
    if fits:
        if largest < context_length(config.llm_config) // 2:
            return [
                f"the weights leave room for short contexts only: up to {largest} positions a "
                f"sample with this batch, of which {per_sample} are visual"
            ]
        return []
    found = [
        f"it does not fit: weights of {weights / GIB:.1f} GiB, {sum(sizes) / GIB:.1f} GiB to use"
    ]
    if largest > per_sample:
        found.append(f"a context of up to {largest} positions would fit")
    smaller = [name for name in ("int8", "int4") if _fits(config, sizes, name, work)]
    if smaller and dtype not in smaller:
        found.append(f"it would fit in {smaller[0]}")
    count = next(
        (n for n in range(len(sizes) + 1, 17) if _fits(config, [min(sizes)] * n, dtype, work)), None
    )
    if count:
        found.append(f"{count} GPUs of {(min(sizes) + RESERVE) / GIB:.0f} GiB would hold it")
    return found


def _fits(config: Any, sizes: Sequence[int], dtype: str, work: Workload) -> bool:
    return _hold(place(Costs.of(config, dtype, work), sizes).loads, sizes)


# ---------------------------------------------------------------------- training
def _training_plan(
    model: str | Path, config: Any, sizes: Sequence[int], dtype: str, work: Workload, stage: str
) -> dict[str, Any]:
    """Weights, gradients and optimiser sharded over all GPUs (FSDP2, ZeRO-3), activations on
    each."""
    ranks = len(sizes)
    step = memory.training(config, work, stage, dtype)
    weights = memory.parts(config, dtype).total
    shared = (weights + step.gradients + step.optimizer) // ranks
    parts = memory.parts(config, dtype)
    # A layer is gathered to work on it, and the next one ahead of its turn.
    gathered = 2 * max(*parts.layers, parts.embeddings, parts.head) if ranks > 1 else 0
    load = Load(weights=shared + gathered, decoder=step.activations)
    fits = _hold([load] * ranks, sizes)
    reasons = [
        f"{step.trained:,} of {memory.parameters(config):,} parameters are trained",
        "activation checkpointing on; AdamW with float32 moments and float32 master weights",
    ]
    if not fits:
        short = max(load.used - size for size in sizes)
        reasons.append(
            f"it does not fit: {short / GIB:.1f} GiB short on a GPU, of which activations are "
            f"{step.activations / GIB:.1f} GiB; lower --batch or --context, or add GPUs"
        )
    return {
        "engine": "FSDP2" if fits else None,
        "loads": (load,) * ranks,
        "snippet": snippet("FSDP2", model, ranks, dtype, work, 0) if fits else "",
        "reasons": tuple(reasons),
        "largest_context": 0,
        "training": {"stage": stage, **asdict(step)},
    }


# ---------------------------------------------------------------------- text
def describe(planned: Plan) -> str:
    """Write a plan as text: a line a GPU, the engine, what to run."""
    work = planned.work
    lines = [
        f"{planned.model}: {planned.parameters:,} parameters, {planned.dtype}, "
        f"{planned.weights / GIB:.1f} GiB of weights",
        f"{work.batch} x {work.context} positions, of them {planned.visual_tokens} visual "
        f"({work.tiles} tile{'' if work.tiles == 1 else 's'})",
        "",
        "GPU    size  weights  KV cache  vision  decoder  reserve  headroom   (GiB)",
    ]
    columns = zip(planned.gpus, planned.loads, planned.headroom, strict=True)
    for number, (size, load, left) in enumerate(columns):
        values = (size, load.weights, load.cache, load.vision, load.decoder, planned.reserve, left)
        shown = [f"{value / GIB:.1f}" for value in values]
        widths = (5, 7, 8, 6, 7, 7, 8)
        cells = [f"{cell:>{width}}" for cell, width in zip(shown, widths, strict=True)]
        lines.append(f"{number:<3}  " + "  ".join(cells))
    lines += ["", f"engine   {planned.engine or 'none: it does not fit'}"]
    lines += [f"         {reason}" for reason in planned.reasons]
    if planned.largest_context and planned.engine:
        lines.append(f"         the longest context that fits is {planned.largest_context}")
    if planned.snippet:
        lines += ["", planned.snippet]
    return "\n".join(lines)
