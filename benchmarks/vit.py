"""How much faster than naive attention, and than transformers' own encoder, is our InternViT-300M?

    python benchmarks/vit.py [--json] [--rounds 5] [--threads 1] [--dtype auto] [--full] [--smoke]

1, 4 and 13 tiles of 448 x 448 to visual tokens (encoder, unshuffle, projector) in the dtype of the
machine, and one tile in float32. Peers, with the same weights: naive attention, which is what the
official code runs without flash-attn, and transformers' own InternVL under SDPA; both take all
tiles at once, ours as many as `extract_feature` chooses (on a CPU one: what a layer leaves behind
stays in the cache, and no memory is fetched anew for every layer). By default few of the 24 layers
run (6 for one tile, 2 for four, 1 for thirteen). The layers are identical; embeddings and projector
are the same in all three and weigh more at reduced depth, which moves a ratio towards 1. `--full`
runs all layers. A profile of one layer says where the time goes, and which ratio free attention
would give.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

import torch
from harness import (
    Record,
    Timing,
    choose_dtype,
    compare,
    interleave,
    parser,
    relative_difference,
    require,
    run,
)
from random_models import (
    BF16_TOLERANCE,
    LAYERS,
    chat_config,
    chat_model,
    equality,
    native_model,
    pixels,
    twin,
)

QUESTION = "InternViT-300M under SDPA, against naive attention and transformers' own encoder"
TARGET_EAGER, TARGET_NATIVE = 1.7, 0.97
DEPTHS = {1: 6, 4: 2, 13: 1}  # tiles: layers
FP32_TOLERANCE = 1e-5  # relative, of visual tokens; 24 layers differ by 5e-7


def build(layers: int, dtype: torch.dtype, options: Namespace) -> dict[str, Any]:
    """Three chat models with the same weights; the decoder is a stub that is never run."""
    config = chat_config(layers, 1, vocabulary=1024, smoke=options.smoke)
    ours = chat_model(config, dtype)
    return {"sdpa": ours, "eager": twin(ours, "eager"), "native": native_model(ours)}


def encoders(models: dict[str, Any], batch: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """Tiles to visual tokens: ours in its own steps, the peers all tiles at once as they do."""
    native = models["native"].model
    return {
        "sdpa": lambda: models["sdpa"].extract_feature(batch),
        "eager": lambda: models["eager"].extract_feature(batch, vit_batch_size=len(batch)),
        "native": lambda: (
            native.get_image_features(
                batch, vision_feature_layer=-1, vision_feature_select_strategy="default"
            ).pooler_output
        ),
    }


@torch.inference_mode()
def same_features(variants: dict[str, Callable[[], Any]], dtype: torch.dtype) -> dict[str, Any]:
    """Relative differences of the visual tokens.

    Raises:
        RuntimeError: they are larger than the dtype explains.
    """
    tolerance = FP32_TOLERANCE if dtype == torch.float32 else BF16_TOLERANCE
    features = {name: call() for name, call in variants.items()}
    found: dict[str, Any] = {}
    for name in ("eager", "native"):
        difference = relative_difference(features[name], features["sdpa"])
        found[f"difference_{name}"] = float(f"{difference:.2e}")
        found[f"within_tolerance_{name}"] = difference <= tolerance
    return require(found)


def rows(tiles: int, dtype: torch.dtype, options: Namespace) -> list[dict[str, Any]]:
    """Time so many tiles."""
    layers = LAYERS if options.full else min(DEPTHS[tiles], 2 if options.smoke else LAYERS)
    models = build(layers, dtype, options)
    variants = encoders(models, pixels(models["sdpa"].config, tiles, dtype))
    differences = same_features(variants, dtype)  # a warm-up as well
    rounds = options.rounds if tiles < 13 else min(options.rounds, 3)
    t = interleave(variants, rounds, warm_up=0)
    name = f"{tiles} tile{'s' if tiles > 1 else ''} {str(dtype).removeprefix('torch.')}"
    extra = {
        "layers": layers,
        "scaling": f"{layers} of {LAYERS} layers; ms per tile and layer: "
        + ", ".join(f"{key} {t[key].median * 1e3 / tiles / layers:.0f}" for key in t),
        **differences,
    }
    naive, native = "naive attention", "transformers SDPA"
    return [
        compare(name, t["sdpa"], t["eager"], peer_name=naive, at_least=TARGET_EAGER, **extra),
        compare(name, t["sdpa"], t["native"], peer_name=native, at_least=TARGET_NATIVE, **extra),
    ]


@torch.inference_mode()
def profile(dtype: torch.dtype, options: Namespace) -> dict[str, Any]:
    """Where one layer spends its time on one tile: CPU milliseconds, shares, GFLOP/s."""
    models = build(1, dtype, options)
    layer, naive = (models[name].vision_model.encoder.layers[0] for name in ("sdpa", "eager"))
    vision = models["sdpa"].config.vision_config
    tokens = (vision.image_size // vision.patch_size) ** 2 + 1
    shape = (1, tokens, vision.hidden_size)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    wide = layer.mlp.fc1(x)
    attention, mlp = layer.attn, layer.mlp
    linears = (attention.qkv, attention.proj, mlp.fc1)
    t = interleave(
        {
            "layer": lambda: layer(x),
            "layer, naive attention": lambda: naive(x),
            "attention block": lambda: attention(x),
            "attention block, naive": lambda: naive.attn(x),
            "qkv and proj": lambda: [linear(x) for linear in linears[:2]],
            "fc1 and fc2": lambda: (mlp.fc1(x), mlp.fc2(wide)),
            "GELU": lambda: mlp.act(wide),
            "norms": lambda: (layer.norm1(x), layer.norm2(x)),
            "scale and residual": lambda: (x + x * layer.ls1, x + x * layer.ls2),
        },
        max(options.rounds, 5),
    )
    return summary(t, tokens, vision)


def summary(t: dict[str, Timing], tokens: int, vision: Any) -> dict[str, Any]:
    """Milliseconds, shares and rates from the timings of `profile`."""
    C, wide = vision.hidden_size, vision.intermediate_size
    ms = {name: timing.median * 1e3 for name, timing in t.items()}
    sdpa = ms["attention block"] - ms["qkv and proj"]
    naive = ms["attention block, naive"] - ms["qkv and proj"]
    linears = ms["qkv and proj"] + ms["fc1 and fc2"]
    flops = {"linears": 2 * tokens * (4 * C * C + 2 * C * wide), "attention": 4 * tokens**2 * C}
    parts = {
        "linears": linears,
        "attention (SDPA)": sdpa,
        **{name: ms[name] for name in ("GELU", "norms", "scale and residual")},
    }
    return {
        "ms": {name: round(value, 2) for name, value in ms.items()},
        "share": {name: round(value / ms["layer"], 3) for name, value in parts.items()},
        "attention_ms": {"sdpa": round(sdpa, 2), "naive": round(naive, 2)},
        "gflops": {
            "linears": round(flops["linears"] / linears / 1e6),
            "attention (SDPA)": round(flops["attention"] / sdpa / 1e6),
            "attention (naive)": round(flops["attention"] / naive / 1e6),
        },
    }


def explain(row: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Say at a row that misses its target what bounds it."""
    if row["met"] is not False:
        return row
    share = found["share"]
    if row["peer"] == "naive attention":
        free = row["peer_cpu_s"] / (row["cpu_s"] * (1 - share["attention (SDPA)"]))
        text = (
            f"linears, the same in both, are {share['linears']:.0%} of our layer at "
            f"{found['gflops']['linears']} GFLOP/s, attention {share['attention (SDPA)']:.0%}; "
            f"if attention cost nothing the ratio would be {free:.2f}"
        )
    else:
        text = (
            f"the same kernels in both: linears {share['linears']:.0%}, attention "
            f"{share['attention (SDPA)']:.0%} of our layer; more would need other kernels "
            "(weights packed once, torch.compile)"
        )
    return {**row, "bound": text}


def measure(options: Namespace) -> dict[str, Any]:
    """Compare results, then time."""
    dtype = choose_dtype(options.dtype)
    record = Record("vit", QUESTION, options, dtype)
    equal = equality(smoke=options.smoke)
    sizes: list[tuple[int, torch.dtype]] = [(tiles, dtype) for tiles in DEPTHS]
    if dtype != torch.float32:
        sizes.append((1, torch.float32))
    profiles: dict[str, Any] = {}
    for tiles, kind in sizes:
        name = str(kind).removeprefix("torch.")
        if name not in profiles:
            profiles[name] = profile(kind, options)
        record.add(*(explain(row, profiles[name]) for row in rows(tiles, kind, options)))
    return record.finish(equality=equal, profile=profiles)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    run(measure, parser(__doc__).parse_args(arguments))


if __name__ == "__main__":
    main()
