"""How fast are tokens generated, against the bare language model, and what does prompt lookup gain?

    python benchmarks/decode.py [--json] [--rounds 3] [--threads 1] [--dtype auto] [--full]
                                [--smoke]

After 256 tokens of text 16 more are generated, greedily, in a dynamic cache. "default" is
`InternVLChatModel.generate`; the peer is transformers' `generate` on the language model inside it.
Prompt lookup proposes 8 tokens at a time out of the prompt. What it gains depends on how much of
the answer stands in the prompt, so the answer is dictated by a logits processor: all of it, three
of four tokens, or none of it is a copy; the model computes every position as it would anyway. All
24 layers run. Packed and int8 layers, static caches and compilation: decode_options.py.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import torch
from harness import Record, Timing, choose_dtype, compare, derived, entry, interleave, require
from random_models import LAYERS, chat_config, chat_model
from transformers import LogitsProcessor, LogitsProcessorList

QUESTION = "tokens per second, against transformers on the bare language model"
TARGET = 0.97
CONTEXT, TOKENS, LOOKUP = 256, 16, 8
SHARES = {"all of the answer": 1.0, "3 of 4 tokens": 0.75, "none of it": 0.0}


class Dictation(LogitsProcessor):
    """Makes a model say a given text, from a given position on."""

    def __init__(self, start: int, text: list[int]) -> None:
        self.start, self.text = start, text

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (B, V) that leave no choice."""
        place = min(input_ids.shape[1] - self.start, len(self.text) - 1)
        scores = torch.full_like(scores, -1e4)
        scores[:, self.text[place]] = 1.0
        return scores


class Generator:
    """Generation after one prompt."""

    def __init__(self, model: Any, context: int) -> None:
        self.model = model
        generator = torch.Generator().manual_seed(2)
        half = model.config.llm_config.vocab_size // 2
        self.other = torch.randint(half, 2 * half - 20, (TOKENS,), generator=generator).tolist()
        self.ids = torch.randperm(half, generator=generator)[None, :context]

    def default(self, count: int, **settings: Any) -> torch.Tensor:
        """Ours."""
        return self._generate(self.model, count, **settings)

    def bare(self, count: int) -> torch.Tensor:
        """The language model alone."""
        return self._generate(self.model.language_model, count)

    def dictated(self, share: float, count: int, **settings: Any) -> torch.Tensor:
        """An answer of which so much is copied out of the prompt."""
        copied = self.ids[0, 40 : 40 + TOKENS + 1].tolist()
        # 0.75: every fourth token is another.
        text = [
            token if int((index + 1) * share) > int(index * share) else self.other[index % TOKENS]
            for index, token in enumerate(copied)
        ]
        processors = LogitsProcessorList([Dictation(self.ids.shape[1], text)])
        return self._generate(self.model, count, logits_processor=processors, **settings)

    def _generate(self, model: Any, count: int, **settings: Any) -> torch.Tensor:
        return model.generate(
            input_ids=self.ids,
            attention_mask=torch.ones_like(self.ids),
            do_sample=False,
            max_new_tokens=count,
            min_new_tokens=count,
            pad_token_id=0,
            **settings,
        )


@torch.inference_mode()
def equality(options: Namespace) -> dict[str, Any]:
    """Ids in float32 at 2 layers: ours and the bare model's, and with prompt lookup."""
    model = chat_model(chat_config(1, 2, smoke=options.smoke), torch.float32)
    generator = Generator(model, 64)
    looked_up = {"prompt_lookup_num_tokens": LOOKUP}
    found = {
        "fp32_ids_equal_bare": torch.equal(generator.default(TOKENS), generator.bare(TOKENS)),
        "fp32_ids_equal_lookup": torch.equal(
            generator.default(TOKENS), generator.default(TOKENS, **looked_up)
        ),
    }
    for name, share in SHARES.items():
        plain = generator.dictated(share, TOKENS)
        found[f"dictated_equal, {name}"] = torch.equal(
            plain, generator.dictated(share, TOKENS, **looked_up)
        )
    return require(found)


def measure(options: Namespace) -> dict[str, Any]:
    """Compare ids, then time; the prefill is measured apart and taken off."""
    dtype = choose_dtype(options.dtype)
    record = Record("decode", QUESTION, options, dtype)
    equal = equality(options)
    model = chat_model(chat_config(1, LAYERS, smoke=options.smoke), dtype)
    generator = Generator(model, 64 if options.smoke else CONTEXT)
    looked_up = {"prompt_lookup_num_tokens": LOOKUP}
    calls: dict[Any, Any] = {
        "default": lambda: generator.default(1 + TOKENS),
        "bare": lambda: generator.bare(1 + TOKENS),
        "prefill": lambda: generator.default(1),
        "bare prefill": lambda: generator.bare(1),
    }
    for name, share in SHARES.items():
        calls[name] = lambda share=share: generator.dictated(share, 1 + TOKENS, **looked_up)
    times = interleave(calls, options.rounds)

    def per_token(name: str, prefill: str = "prefill") -> Timing:
        return derived(lambda whole, first: (whole - first) / TOKENS, times[name], times[prefill])

    ours, bare = per_token("default"), per_token("bare", "bare prefill")
    rate = round(1 / ours.median, 2)
    record.add(
        compare(
            "default generate",
            ours,
            bare,
            peer_name="generate of the language model",
            at_least=TARGET,
            tokens_per_cpu_second=rate,
            note=f"{rate} tokens per second of CPU time",
        )
    )
    for name in SHARES:
        record.add(
            compare(f"prompt lookup, copied: {name}", per_token(name), ours, peer_name="default")
        )
    return record.finish(equality=equal, context=generator.ids.shape[1], new_tokens=TOKENS)


main = entry(__doc__, measure, rounds=3)

if __name__ == "__main__":
    main()
