"""What does a first answer cost, from the picture to the first token and to 32 tokens?

    python benchmarks/end_to_end.py [--json] [--rounds 3] [--threads 1] [--dtype auto] [--full]
                                    [--smoke] [--no-memory]

A decoded picture of 2048 x 1536 (12 tiles and a thumbnail) and a question, InternVL2.5-1B widths.
Ours: the image processor's bytes into `generate`. Peers: the textbook path, which is what the
official code does without flash-attn (the per-tile loop, eager attention in both halves, all hidden
states of the ViT kept, logits of all prompt positions and their float32 copy, a decoding loop with
a cache); and transformers' own InternVL with its PIL processor and the same weights. By default 2
of 24 ViT and 2 of 24 decoder layers run, so the output layer and preprocessing weigh more than in
the whole model; `--full` runs all. Memory is the highest resident memory of a process of its own
per variant.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from dialogues import FirstToken
from harness import (
    Record,
    Timing,
    amount,
    child_arguments,
    choose_dtype,
    compare,
    in_child,
    interleave,
    parser,
    peak_rss,
    require,
    reset_peak,
    run,
)
from preprocess import Work
from random_models import LAYERS, chat_config, chat_model, native_model, prompt_ids, twin
from random_models import equality as models_equal
from transformers import AttentionInterface

QUESTION = "picture and question to the first token, and to 32 tokens"
TEXTBOOK, NATIVE = "textbook path", "transformers' own InternVL"
TARGETS = {"textbook": (3.0, 2.6), "native": (1.0, 1.0)}
TOKENS, TEXT, DEPTH = 32, 72, 2
VARIANTS = ("ours", "textbook", "native")


class Paths:
    """One picture and one question, answered in three ways by the same weights."""

    def __init__(self, options: Namespace, dtype: torch.dtype, layers: int, only: str = "") -> None:
        self.work = Work(smoke=options.smoke)
        model = chat_model(chat_config(layers, layers, smoke=options.smoke), dtype)
        tiles = len(self.work.tiles(self.work.picture, normalize=False))
        self.ids = prompt_ids(model.config, tiles, TEXT)
        self.mask = torch.ones_like(self.ids)
        self.model = model
        # A process that weighs one variant holds the weights once.
        self.eager = twin(model, "eager") if only in ("", "textbook") else None
        self.native = native_model(model) if only in ("", "native") else None
        if only == "native":
            del self.model
        elif only == "textbook":
            self.model = self.eager
        self.dtype = dtype

    def ours(self, count: int, first: FirstToken) -> list[int]:
        """The fastest exact path on offer."""
        tiles = self.work.tiles(self.work.picture, normalize=False)
        return self._generate(self.model, tiles, count, first)

    def of_native(self, count: int, first: FirstToken) -> list[int]:
        """transformers' own model and processor."""
        tiles = self.work.native(self.work.picture, return_tensors="pt")["pixel_values"]
        return self._generate(self.native, tiles.to(self.dtype), count, first)

    def _generate(
        self, model: Any, tiles: torch.Tensor, count: int, first: FirstToken
    ) -> list[int]:
        output = model.generate(
            input_ids=self.ids,
            pixel_values=tiles,
            attention_mask=self.mask,
            do_sample=False,
            max_new_tokens=count,
            min_new_tokens=count,
            pad_token_id=0,
            streamer=first,
        )
        return output[0, self.ids.shape[1] :].tolist()

    def textbook(self, count: int, first: FirstToken) -> list[int]:
        """The official code where flash-attn is missing, spelled out."""
        model = self.eager
        tiles = self.work.official(self.work.picture).to(self.dtype)
        hidden = model.vision_model(tiles, output_hidden_states=True).hidden_states[-1][:, 1:]
        side = int(hidden.shape[1] ** 0.5)
        grid = hidden.unflatten(1, (side, side))
        visual = model.mlp1(model.pixel_shuffle(grid, 0.5).flatten(1, 2))
        embeds = model.get_input_embeddings()(self.ids)
        embeds = embeds.masked_scatter(
            (self.ids == model.context_token_id)[..., None], visual.flatten(0, 1)
        )
        output = model.language_model(inputs_embeds=embeds, use_cache=True)
        token = output.logits.float()[:, -1].argmax(-1, keepdim=True)
        first.put(token)
        said = [int(token)]
        while len(said) < count:
            output = model.language_model(
                input_ids=token, past_key_values=output.past_key_values, use_cache=True
            )
            token = output.logits.float()[:, -1].argmax(-1, keepdim=True)
            said.append(int(token))
        return said

    def path(self, name: str) -> Any:
        """A path by its name."""
        return self.of_native if name == "native" else getattr(self, name)


@torch.inference_mode()
def equality(options: Namespace) -> dict[str, Any]:
    """Ids in float32 at 2 + 2 layers and toy widths, of all three; and the models at real widths,
    see `random_models.equality`."""
    paths = Paths(Namespace(**{**vars(options), "smoke": True}), torch.float32, 2)
    said = {name: paths.path(name)(6, FirstToken()) for name in VARIANTS}
    found = {f"fp32_toy_ids_equal_{name}": said[name] == said["ours"] for name in VARIANTS[1:]}
    return require(found) | models_equal(smoke=options.smoke)


@torch.inference_mode()
def bound(paths: Paths, ours: float, peer: float) -> str:
    """What a ratio would be if attention cost nothing until the first token."""
    AttentionInterface.register("free", _no_attention)
    spent = {}
    for attention in ("sdpa", "free"):
        paths.model.set_attn_implementation(attention)
        first = FirstToken()
        paths.ours(1, first)
        spent[attention] = first.cpu
    paths.model.set_attn_implementation("sdpa")
    free = ours - spent["sdpa"] + spent["free"]
    return (
        f"without any attention ours would take {free:.2f} s instead of {ours:.2f} s, nearly all "
        f"of it linear layers that both compute alike, and the ratio would be {peer / free:.2f}"
    )


def _no_attention(module: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> Any:
    """An attention function that hands the values through; its result is of no use."""
    own = value[:, :, -query.shape[2] :].repeat_interleave(query.shape[1] // value.shape[1], 1)
    return own.transpose(1, 2), None


def memory_of(variant: str, options: Namespace) -> dict[str, Any]:
    """Highest resident memory of one answer; meant for a process of its own."""
    layers = LAYERS if options.full else DEPTH
    paths = Paths(options, choose_dtype(options.dtype), layers, only=variant)
    reset_peak()
    with torch.inference_mode():
        paths.path(variant)(2, FirstToken())
    return {"peak": peak_rss()}


def memory_rows(options: Namespace) -> list[dict[str, Any]]:
    """Peaks of ours over those of the peers; none where the system does not tell."""
    arguments = child_arguments(options)
    peaks = {
        name: in_child(Path(__file__), *arguments, "--memory-of", name, "--json")["peak"]
        for name in VARIANTS
    }
    if None in peaks.values():
        return []
    return [
        amount(
            f"peak memory against {name}",
            peaks["ours"] / peaks[name],
            "resident memory, ours / peer",
            at_most=1.0 if name == "native" else None,
            peak_bytes={"ours": peaks["ours"], name: peaks[name]},
        )
        for name in VARIANTS[1:]
    ]


def measure(options: Namespace) -> dict[str, Any]:
    """Compare ids, then time to the first and the last token of the same runs."""
    if options.memory_of:
        return memory_of(options.memory_of, options)
    dtype = choose_dtype(options.dtype)
    record = Record("end_to_end", QUESTION, options, dtype)
    equal = equality(options)
    layers = LAYERS if options.full else DEPTH
    paths = Paths(options, dtype, layers)
    firsts: dict[str, Timing] = {name: Timing() for name in VARIANTS}
    said: dict[str, list[int]] = {}

    def timed(name: str) -> None:
        first = FirstToken()
        said[name] = paths.path(name)(TOKENS, first)
        firsts[name].cpu.append(first.cpu)
        firsts[name].wall.append(first.wall)

    calls: dict[str, Callable[[], None]] = {
        name: (lambda name=name: timed(name)) for name in VARIANTS
    }
    lasts = interleave(calls, options.rounds, warm_up=0)
    if dtype == torch.float32:  # of the timed answers too, at real widths
        equal |= require(
            {f"timed_ids_equal_{name}": said[name] == said["ours"] for name in VARIANTS[1:]}
        )
    scaling = f"{layers} of {LAYERS} ViT and decoder layers"
    for name, label in (("textbook", TEXTBOOK), ("native", NATIVE)):
        for what, times, target in zip(
            ("first token", f"{TOKENS} tokens"), (firsts, lasts), TARGETS[name], strict=True
        ):
            row = compare(
                f"{what} against the {name} path",
                times["ours"],
                times[name],
                peer_name=label,
                at_least=target,
                scaling=scaling,
            )
            if row["met"] is False:
                row["bound"] = bound(paths, row["cpu_s"], row["peer_cpu_s"])
            record.add(row)
    if not options.no_memory:
        record.add(*memory_rows(options))
    return record.finish(equality=equal, new_tokens=TOKENS)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.set_defaults(rounds=3)
    options.add_argument("--memory-of", choices=VARIANTS, help="used by this script itself")
    run(measure, options.parse_args(arguments))


if __name__ == "__main__":
    main()
