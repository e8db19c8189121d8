"""What do the decoding options of docs/decoding.md gain on this CPU, and what do they change?

    python benchmarks/decode_options.py [--dtype bfloat16] [--layers 4] [--context 64]
                                        [--compile] [--json] [--rounds 5] [--full] [--smoke]

A language model of the width of InternVL2.5-1B with random weights decodes one token after
`--context` others, with plain layers, packed ones, int8 ones, and those of torchao where it is
installed; it also prefills `--prompt` tokens. Then caches are compared through `generate`, which
`--compile` extends by a compiled decode step (a minute more). Few of the 24 layers run by default,
so the output layer weighs more here than in the whole model; `--full` runs all of them.

What the layers change is measured twice: on those random weights, and on the demo checkpoint with
its own questions. The ids are those that the plain model chose, given to all.
"""

from __future__ import annotations

import json
import time
from argparse import Namespace
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from harness import Record, Timing, choose_dtype, compare, derived, interleave, parser, run
from random_models import LAYERS, chat_config, chat_model, twin
from torch import nn

from internvl import demo, hub
from internvl.chat import linears

STEPS = 8  # timed tokens of `generate`
QUESTION = "decoding options of the language model, against plain layers and a dynamic cache"
Change = Callable[[Any], Any]


# ---------------------------------------------------------------------- variants
def layer_options(dtype: torch.dtype) -> dict[str, Change]:
    """What to do to the linear layers of a model, by name; "plain" first."""
    options: dict[str, Change] = {"plain": lambda model: None}
    if dtype == torch.bfloat16 and linears.supported():
        options["packed"] = linears.pack_linears
    options["int8"] = linears.quantize_int8
    options["int8 but for the output layer"] = lambda model: linears.quantize_int8(
        model, head=False
    )
    if find_spec("torchao"):
        options["torchao int8 but for the output layer"] = _torchao
    return options


def _torchao(model: Any) -> None:
    """What transformers' `TorchAoConfig(Int8WeightOnlyConfig())` does at loading."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(
        model.language_model,
        Int8WeightOnlyConfig(),
        lambda module, name: isinstance(module, nn.Linear) and not name.endswith("lm_head"),
    )


def variants(model: Any, options: dict[str, Change]) -> dict[str, Any]:
    """The model with each of the options; all share what no option replaces."""
    attention = model.config.llm_config._attn_implementation
    models = {name: twin(model, attention) for name in options}
    for name, change in options.items():
        change(models[name])
    return models


# ---------------------------------------------------------------------- time
class Decode:
    """Calls of this decode `tokens` tokens after `context` others, in a dynamic cache."""

    tokens = 5

    def __init__(self, model: Any, context: int) -> None:
        from transformers import DynamicCache

        self.decoder = model.language_model
        self.cache = DynamicCache(config=self.decoder.config)
        self._forward(_ids(model, context))

    @torch.inference_mode()
    def _forward(self, ids: torch.Tensor) -> None:
        self.decoder(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)

    def __call__(self) -> None:
        """Each token is taken out of the cache again."""
        for _ in range(self.tokens):
            self._forward(torch.tensor([[7]]))
            self.cache.crop(-1)


class Prefill:
    """Calls of this compute the last logits of a prompt."""

    tokens = 1  # a call is what is counted

    def __init__(self, model: Any, length: int) -> None:
        self.decoder, self.ids = model.language_model, _ids(model, length)

    def __call__(self) -> None:
        """The whole prompt."""
        self.decoder(input_ids=self.ids, logits_to_keep=1)


class Generate:
    """Calls of this generate exactly `count` tokens after a prompt."""

    def __init__(self, model: Any, context: int, count: int, **settings: Any) -> None:
        self.model, self.ids = model, _ids(model, context)
        self.count, self.settings = count, settings

    def __call__(self, **settings: Any) -> Any:
        """What `generate` returns."""
        return self.model.generate(
            input_ids=self.ids,
            attention_mask=torch.ones_like(self.ids),
            do_sample=False,
            max_new_tokens=self.count,
            min_new_tokens=self.count,
            pad_token_id=0,
            **self.settings,
            **settings,
        )


def _ids(model: Any, length: int) -> torch.Tensor:
    """Random ids (1, T) of plain text."""
    generator = torch.Generator().manual_seed(2)
    return torch.randint(model.config.llm_config.vocab_size // 2, (1, length), generator=generator)


def layer_rows(models: dict[str, Any], options: Namespace) -> list[dict[str, Any]]:
    """Decoding and prefill with every kind of layer."""
    rows = []
    for work, kind, length in (
        (f"decode at {options.context}", Decode, options.context),
        (f"prefill of {options.prompt}", Prefill, options.prompt),
    ):
        calls = {name: kind(model, length) for name, model in models.items()}
        t = {
            name: derived(lambda seconds, tokens=kind.tokens: seconds / tokens, timing)
            for name, timing in interleave(calls, options.rounds).items()
        }
        rows += [
            compare(f"{work}, {name}", t[name], t["plain"], peer_name="plain layers")
            for name in t
            if name != "plain"
        ]
    return rows


def cache_rows(model: Any, options: Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Tokens of `generate` with every kind of cache; the prefill is subtracted."""
    static = {"cache_implementation": "static"}
    settings: dict[str, tuple[Any, dict[str, str]]] = {
        "dynamic": (model, {}),
        "static": (model, static),
    }
    if options.compile:
        settings["static, compiled"] = (compiled(model), static)
    calls = {
        (name, count): Generate(where, options.context, count, **extra)
        for name, (where, extra) in settings.items()
        for count in (1, 1 + STEPS)
    }
    found, outputs = {}, {}
    for name in settings:  # the first call compiles
        start = time.perf_counter()
        outputs[name] = calls[name, 1 + STEPS](return_dict_in_generate=True, output_logits=True)
        found[name] = {
            "first_call_wall_s": round(time.perf_counter() - start, 1),
            **same_way(outputs["dynamic"], outputs[name]),
        }
    timings = interleave(calls, options.rounds)
    t: dict[str, Timing] = {
        name: derived(
            lambda long, short: (long - short) / STEPS, timings[name, 1 + STEPS], timings[name, 1]
        )
        for name in settings
    }
    rows = [
        compare(f"generate, {name} cache", t[name], t["dynamic"], peer_name="dynamic cache")
        for name in settings
        if name != "dynamic"
    ]
    return rows, found


def compiled(model: Any) -> Any:
    """The same weights, decoding compiled, prefill not.

    Not with inductor's freezing, which would pack the weights: its graph keeps the cache of the
    first call, and the second one fails.
    """
    other = twin(model, model.config.llm_config._attn_implementation)
    plain = other.language_model.forward
    step = torch.compile(plain, dynamic=False)

    def forward(**inputs: Any) -> Any:
        return (step if inputs["inputs_embeds"].shape[1] == 1 else plain)(**inputs)

    other.language_model.forward = forward
    return other


def kernel_rows(options: Namespace) -> list[dict[str, Any]]:
    """Where widening int8 weights once per call begins to beat torch's int8 kernel."""
    width = (64, 128) if options.smoke else (896, 4864)
    linear = nn.Linear(*width, bias=False, dtype=torch.bfloat16).eval().requires_grad_(False)
    layer = linears.Int8Linear(linear, linears._scale("layer", linear.weight))
    rows = []
    for M in (8, linears.KERNEL_ROWS, 2 * linears.KERNEL_ROWS):
        x = torch.randn(M, width[0]).bfloat16()
        t = interleave(
            {
                "kernel": lambda x=x: [layer._kernel(x) for _ in range(10)],
                "widened": lambda x=x: [layer._widened(x) for _ in range(10)],
            },
            options.rounds,
        )
        name = f"10 int8 layers, {M} rows, kernel"
        rows.append(compare(name, t["kernel"], t["widened"], peer_name="widened"))
    return rows


# ---------------------------------------------------------------------- what changes
def same_way(plain: Any, changed: Any) -> dict[str, Any]:
    """Compare two outputs of `generate` with logits, up to the first id that differs."""
    same = int((plain.sequences == changed.sequences)[0].cumprod(0).sum())
    steps = min(len(plain.logits), same - plain.sequences.shape[1] + len(plain.logits) + 1)
    logits = (torch.stack(output.logits[:steps]) for output in (plain, changed))
    return {"ids_equal": same == plain.sequences.shape[1], **difference(*logits)}


def difference(plain: torch.Tensor, changed: torch.Tensor) -> dict[str, float]:
    """How far logits (..., V) are from plain ones on the same ids.

    Returns:
        `relative`: |changed - plain| / |plain| over all; `cosine_min`: of the worst position;
        `same_greedy`: share of positions whose largest logit is the same; `positions`.
    """
    plain, changed = (x.double().flatten(0, -2) for x in (plain, changed))
    same = plain.argmax(-1) == changed.argmax(-1)
    return {
        "relative": float(f"{float((changed - plain).norm() / plain.norm()):.2e}"),
        "cosine_min": round(float(torch.cosine_similarity(plain, changed).min()), 5),
        "same_greedy": round(float(same.double().mean()), 4),
        "positions": len(plain),
    }


@torch.inference_mode()
def random_differences(models: dict[str, Any]) -> dict[str, Any]:
    """On random weights and random ids; nearly all logits are equally likely there."""
    ids = _ids(models["plain"], 128)
    logits = {name: model.language_model(input_ids=ids).logits for name, model in models.items()}
    return {n: difference(logits["plain"], found) for n, found in logits.items() if n != "plain"}


def demo_differences(dtype: torch.dtype) -> dict[str, Any]:
    """On the demo checkpoint: logits along its own answers, and the answers themselves."""
    reference = hub.load(dtype=dtype)
    forced = [_forced(reference, entry) for entry in _questions()]
    plain, answers = _logits(reference.model, forced), _answers(reference)
    found = {}
    for name, change in layer_options(dtype).items():
        if name == "plain":
            continue
        loaded = hub.load(dtype=dtype)
        change(loaded.model)
        found[name] = difference(plain, _logits(loaded.model, forced))
        changed = sum(a != b for a, b in zip(answers, _answers(loaded), strict=True))
        found[name]["answers_changed"] = f"{changed} of {len(answers)}"
    return found


def _questions() -> list[dict[str, Any]]:
    entries = json.loads((demo.EXAMPLES / "questions.json").read_text("utf-8"))
    return [entry for entry in entries if "turns" not in entry and "video" not in entry]


def _answers(loaded: hub.Loaded) -> list[str]:
    return [record["answer"] for record in demo.run(loaded)]


def _forced(loaded: hub.Loaded, entry: dict[str, Any]) -> dict[str, Any]:
    """A question with the answer that the plain model gives, as inputs of `forward`."""
    names = entry.get("images") or [entry["image"]]
    content = [{"type": "image", "image": str(demo.EXAMPLES / name)} for name in names]
    content.append({"type": "text", "text": entry["question"]})
    inputs = loaded.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    pixels = inputs["pixel_values"].to(loaded.model.dtype)
    ids = loaded.model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        pixel_values=pixels,
        do_sample=False,
        max_new_tokens=32,
    )
    return {"input_ids": ids, "pixel_values": pixels, "start": inputs["input_ids"].shape[1]}


@torch.inference_mode()
def _logits(model: Any, forced: list[dict[str, Any]]) -> torch.Tensor:
    """Logits of all positions that chose a token of an answer."""
    found = []
    for inputs in forced:
        output = model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"])
        found.append(output.logits[0, inputs["start"] - 1 : -1])
    return torch.cat(found)


# ---------------------------------------------------------------------- the whole
def measure(options: Namespace) -> dict[str, Any]:
    """Compare results, then time."""
    dtype = choose_dtype(options.dtype)
    record = Record("decode_options", QUESTION, options, dtype)
    layers = LAYERS if options.full else options.layers
    model = chat_model(chat_config(1, layers, smoke=options.smoke), dtype)
    models = variants(model, layer_options(dtype))
    changes = {"demo": demo_differences(dtype), "random": random_differences(models)}
    record.add(*layer_rows(models, options))
    del models
    rows, found = cache_rows(model, options)
    record.add(*rows, *kernel_rows(options))
    return record.finish(layers=layers, equality=found, differences=changes)


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--layers", type=int, default=4, help="of 24 (default: 4)")
    options.add_argument("--context", type=int, default=64, help="tokens in the cache")
    options.add_argument("--prompt", type=int, default=64, help="tokens of the prefill")
    options.add_argument("--compile", action="store_true", help="add a compiled decode step")
    run(measure, options.parse_args())


if __name__ == "__main__":
    main()
