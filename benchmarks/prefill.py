"""What do SDPA and logits for the last position alone save when 3,400 tokens are read?

    python benchmarks/prefill.py [--json] [--rounds 3] [--threads 1] [--dtype auto] [--full]
                                 [--smoke]

The prompt of one picture (13 tiles: 3,328 visual tokens, and 72 tokens of text) through the
decoder of InternVL2.5-1B (Qwen2.5-0.5B widths, 151,674 ids), the visual tokens being given. The
peer is what the official code does wherever flash-attn is missing: eager attention, and logits for
all positions. By default 2 of the 24 layers run, both variants with the last logits only, and the
output layer is timed by itself; the row "24 layers" is (whole - output layer) x 24 / 2 + output
layer (all positions for the peer), the layers being identical. `--full` runs all 24. Memory is the
highest resident memory of a fresh process per variant, weights and interpreter included; to the
peak measured at 2 layers come the weights and the cache of the other 22, which is exact: a layer
gives back all else before the next one begins.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from harness import (
    Record,
    Timing,
    amount,
    child_arguments,
    choose_dtype,
    compare,
    derived,
    in_child,
    interleave,
    parser,
    peak_rss,
    relative_difference,
    require,
    reset_peak,
    rss,
    run,
)
from random_models import (
    BF16_TOLERANCE,
    LAYERS,
    chat_config,
    chat_model,
    equality,
    prompt_ids,
    twin,
)

QUESTION = "3,400 tokens under SDPA with the last logits, against eager attention with all logits"
PEER = "eager, all logits"
TARGET_TIME, TARGET_MEMORY = 4.0, 0.60
TILES, TOKENS, DEPTH = 13, 3400, 2
FP32_TOLERANCE = 1e-4  # relative, of the last logits
VARIANTS = {"sdpa": ("sdpa", 1), "eager": ("eager", 0)}  # attention, logits_to_keep


def inputs(config: Any, dtype: torch.dtype, options: Namespace) -> dict[str, torch.Tensor]:
    """Prompt and visual tokens."""
    tiles, tokens = (2, 24) if options.smoke else (TILES, TOKENS)
    ids = prompt_ids(config, tiles, tokens - tiles * config.num_image_token)
    generator = torch.Generator().manual_seed(4)
    shape = (tiles, config.num_image_token, config.llm_config.hidden_size)
    return {"input_ids": ids, "visual_features": torch.randn(shape, generator=generator).to(dtype)}


def build(options: Namespace) -> tuple[Any, dict[str, torch.Tensor], int]:
    """Our model, its inputs, and the number of layers of its decoder."""
    layers = LAYERS if options.full else DEPTH
    config = chat_config(1, layers, smoke=options.smoke)
    dtype = choose_dtype(options.dtype)
    return chat_model(config, dtype), inputs(config, dtype, options), layers


def forward(model: Any, given: dict[str, torch.Tensor], logits_to_keep: int) -> Any:
    """One prefill, cache included."""
    return model(**given, logits_to_keep=logits_to_keep, use_cache=True)


# ---------------------------------------------------------------------- time
def variants_of(
    models: dict[str, Any], given: dict[str, torch.Tensor]
) -> dict[str, Callable[[], Any]]:
    """The two prefills with the last logits, and the output layer as each variant uses it."""
    ours = models["sdpa"]
    head = ours.get_output_embeddings()
    length, width = given["input_ids"].shape[1], ours.config.llm_config.hidden_size
    hidden = torch.zeros(1, length, width, dtype=head.weight.dtype)
    return {
        "sdpa": lambda: forward(ours, given, 1),
        "eager": lambda: forward(models["eager"], given, 1),
        "head, last position": lambda: head(hidden[:, -1:]),
        "head, all positions": lambda: head(hidden),
    }


@torch.inference_mode()
def same_logits(models: dict[str, Any], given: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The logits of the last position, as both variants compute them.

    Raises:
        RuntimeError: they differ by more than the dtype explains.
    """
    kept = {
        name: forward(models[name], given, keep).logits[:, -1]
        for name, (_, keep) in VARIANTS.items()
    }
    exact = kept["sdpa"].dtype == torch.float32
    difference = relative_difference(kept["eager"], kept["sdpa"])
    tolerance = FP32_TOLERANCE if exact else BF16_TOLERANCE
    found = {
        "prompt_logit_difference": float(f"{difference:.2e}"),
        "prompt_within_tolerance": difference <= tolerance,
    }
    if exact:
        found["prompt_next_id_equal"] = bool(kept["eager"].argmax() == kept["sdpa"].argmax())
    return require(found)


def time_rows(t: dict[str, Timing], layers: int) -> list[dict[str, Any]]:
    """The whole at 24 layers, and what it is made of."""

    def scaled(whole: float, last: float, head: float) -> float:
        return (whole - last) * LAYERS / layers + head

    def body(whole: float, last: float) -> float:
        return (whole - last) / layers

    last, every = t["head, last position"], t["head, all positions"]
    whole = compare(
        f"prefill, {LAYERS} layers",
        derived(scaled, t["sdpa"], last, last),
        derived(scaled, t["eager"], last, every),
        peer_name=PEER,
        at_least=TARGET_TIME,
        layers=layers,
        scaling=f"{layers} of {LAYERS} layers run; "
        f"(whole - output layer) x {LAYERS / layers:g} + output layer",
    )
    layer = compare(
        "one decoder layer",
        derived(body, t["sdpa"], last),
        derived(body, t["eager"], last),
        peer_name="eager",
    )
    return [whole, layer, compare("output layer", last, every, peer_name="all positions")]


@torch.inference_mode()
def profile(models: dict[str, Any], given: dict[str, torch.Tensor], rounds: int) -> dict[str, Any]:
    """Where one decoder layer spends its time: CPU milliseconds."""
    decoder = models["sdpa"].language_model.model
    layer, length = decoder.layers[0], given["input_ids"].shape[1]
    generator = torch.Generator().manual_seed(5)
    width, dtype = models["sdpa"].config.llm_config.hidden_size, layer.mlp.up_proj.weight.dtype
    x = torch.randn(1, length, width, generator=generator).to(dtype)
    positions = decoder.rotary_emb(x, torch.arange(length)[None])
    mask = torch.full((length, length), torch.finfo(dtype).min, dtype=dtype).triu(1)[None, None]
    attention, naive = layer.self_attn, models["eager"].language_model.model.layers[0].self_attn
    heads = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    options = {"position_embeddings": positions}
    t = interleave(
        {
            "attention block, sdpa": lambda: attention(x, attention_mask=None, **options),
            "attention block, eager": lambda: naive(x, attention_mask=mask, **options),
            "linears of attention": lambda: [linear(x) for linear in heads],
            "mlp": lambda: layer.mlp(x),
        },
        rounds,
    )
    ms = {name: timing.median * 1e3 for name, timing in t.items()}
    linears = ms["linears of attention"]
    sdpa, eager = (ms[f"attention block, {name}"] - linears for name in ("sdpa", "eager"))
    fixed = linears + ms["mlp"]
    return {
        "ms": {name: round(value, 1) for name, value in ms.items()},
        "attention_ms": {"sdpa": round(sdpa, 1), "eager": round(eager, 1)},
        "linears_and_mlp_share_of_ours": round(fixed / (fixed + sdpa), 3),
    }


def explain(row: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Say at the row of the whole what bounds it, if it misses its target."""
    if row["met"] is not False:
        return row
    attention = LAYERS * found["attention_ms"]["sdpa"] / 1e3
    text = (
        f"linears and MLP, the same in both, are {found['linears_and_mlp_share_of_ours']:.0%} of "
        "our layer; if attention cost nothing the ratio would be "
        f"{row['peer_cpu_s'] / (row['cpu_s'] - attention):.2f}"
    )
    return {**row, "bound": text}


# ---------------------------------------------------------------------- memory
@torch.inference_mode()
def memory_of(variant: str, options: Namespace) -> dict[str, Any]:
    """Highest resident memory of one prefill; meant for a process of its own."""
    model, given, layers = build(options)
    attention, keep = VARIANTS[variant]
    model.set_attn_implementation(attention)
    reset_peak()
    before = rss()
    cache = forward(model, given, keep).past_key_values
    block = model.language_model.model.layers[0]
    weights = sum(p.numel() * p.element_size() for p in block.parameters())
    keys = cache.layers[0].keys
    kept = 2 * keys.numel() * keys.element_size()
    return {"peak": peak_rss(), "before": before, "per_layer": weights + kept, "layers": layers}


def memory_rows(options: Namespace) -> list[dict[str, Any]]:
    """Peak of ours over that of the peer, at 24 layers; no row where the system does not tell."""
    arguments = child_arguments(options)
    found = {
        name: in_child(Path(__file__), *arguments, "--memory-of", name, "--json")
        for name in VARIANTS
    }
    if any(each["peak"] is None for each in found.values()):
        return []
    peaks = {
        name: each["peak"] + (LAYERS - each["layers"]) * each["per_layer"]
        for name, each in found.items()
    }
    working = {name: each["peak"] - each["before"] for name, each in found.items()}
    same = peaks["sdpa"] - working["sdpa"]
    return [
        amount(
            f"peak memory, {LAYERS} layers",
            peaks["sdpa"] / peaks["eager"],
            "resident memory, ours / peer",
            at_most=TARGET_MEMORY,
            peer=PEER,
            peak_bytes=peaks,
            working_bytes=working,
            scaling=f"measured at {found['sdpa']['layers']} layers, the other weights and their "
            "cache added",
            bound=f"ours {peaks['sdpa'] / 1e9:.2f} GB, eager {peaks['eager'] / 1e9:.2f} GB; "
            f"interpreter and weights, the same in both, are {same / 1e9:.2f} GB of it: without "
            f"any working memory the ratio would be {same / peaks['eager']:.2f}",
        ),
        amount(
            "working memory alone",
            working["sdpa"] / working["eager"],
            "peak less what was resident before, ours / peer",
        ),
    ]


# ---------------------------------------------------------------------- the whole
def measure(options: Namespace) -> dict[str, Any]:
    """Compare results, then time, then weigh."""
    if options.memory_of:
        return memory_of(options.memory_of, options)
    record = Record("prefill", QUESTION, options, choose_dtype(options.dtype))
    equal = equality(smoke=options.smoke)
    model, given, layers = build(options)
    models = {"sdpa": model, "eager": twin(model, "eager")}
    equal |= same_logits(models, given)  # a warm-up as well
    times = interleave(variants_of(models, given), options.rounds, warm_up=0)
    found = profile(models, given, min(options.rounds, 3))
    record.add(*(explain(row, found) for row in time_rows(times, layers)))
    del model, models
    if not options.no_memory:
        record.add(*memory_rows(options))
    return record.finish(equality=equal, profile=found, tokens=given["input_ids"].shape[1])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.set_defaults(rounds=3)
    options.add_argument("--memory-of", choices=tuple(VARIANTS), help="used by this script itself")
    run(measure, options.parse_args(arguments))


if __name__ == "__main__":
    main()
