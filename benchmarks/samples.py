"""What do 8 sampled answers to one question cost?

    python benchmarks/samples.py [--json] [--rounds 3] [--threads 1] [--dtype auto] [--full]
                                 [--smoke]

A picture of 4 tiles, a question, 8 answers of 8 tokens. Ours is `generate(num_return_sequences=8)`,
which prefills once. Peers: 8 calls, as `chat()` makes them; and transformers' own
`num_return_sequences=8`, given the visual tokens, which prefills every copy. By default 2 of 24 ViT
layers and 4 of 24 decoder layers run. Longer answers bring the ratios nearer to that of decoding
alone: 8 rows at once against one by one.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import torch
from harness import Record, choose_dtype, compare, entry, interleave, require
from random_models import LAYERS, chat_config, chat_model, pixels, prompt_ids

from internvl import hub

QUESTION = "8 sampled answers of 8 tokens, a picture of 4 tiles"
TARGET = 5.0
ANSWERS, TOKENS, TILES, TEXT, VISION_DEPTH, DEPTH = 8, 8, 4, 72, 2, 4


class Sampler:
    """One question, answered several times in three ways."""

    def __init__(self, model: Any, tiles: int) -> None:
        self.model = model
        self.ids = prompt_ids(model.config, tiles, TEXT)
        self.pixels = pixels(model.config, tiles, model.dtype)
        self.mask = torch.ones_like(self.ids)
        self.settings = {
            "do_sample": True,
            "max_new_tokens": TOKENS,
            "min_new_tokens": TOKENS,
            "pad_token_id": 0,
        }

    def together(self) -> torch.Tensor:
        """Ours."""
        return self.model.generate(
            input_ids=self.ids,
            pixel_values=self.pixels,
            attention_mask=self.mask,
            num_return_sequences=ANSWERS,
            **self.settings,
        )

    def separate(self) -> list[torch.Tensor]:
        """One call after the other."""
        return [
            self.model.generate(
                input_ids=self.ids,
                pixel_values=self.pixels,
                attention_mask=self.mask,
                **self.settings,
            )
            for _ in range(ANSWERS)
        ]

    def own(self) -> torch.Tensor:
        """transformers' own, which repeats the prompt before the prefill."""
        mixin = hub.ring0("generation_internvl_chat").PrefillOnceMixin
        embeds = self.model._embed(self.ids, None, self.pixels, None, None)
        return super(mixin, self.model).generate(
            input_ids=self.ids,
            inputs_embeds=embeds,
            attention_mask=self.mask,
            num_return_sequences=ANSWERS,
            **self.settings,
        )


@torch.inference_mode()
def equality(options: Namespace) -> dict[str, Any]:
    """Ids of ours and of transformers' own, of the same seed, in float32 at 2 + 2 layers."""
    sampler = Sampler(chat_model(chat_config(2, 2, smoke=options.smoke), torch.float32), 1)
    rows = []
    for sample in (sampler.together, sampler.own):
        torch.manual_seed(11)
        rows.append(sample())
    return require({"fp32_ids_equal": torch.equal(*rows), "answers": len(rows[0])})


def measure(options: Namespace) -> dict[str, Any]:
    """Compare ids, then time."""
    dtype = choose_dtype(options.dtype)
    record = Record("samples", QUESTION, options, dtype)
    equal = equality(options)
    depths = (LAYERS, LAYERS) if options.full else (VISION_DEPTH, DEPTH)
    model = chat_model(chat_config(*depths, smoke=options.smoke), dtype)
    sampler = Sampler(model, 1 if options.smoke else TILES)
    times = interleave(
        {"ours": sampler.together, "separate": sampler.separate, "own": sampler.own},
        options.rounds,
        warm_up=0,
    )
    scaling = f"{depths[0]} of {LAYERS} ViT and {depths[1]} of {LAYERS} decoder layers"
    for name, peer, target in (
        ("separate", "8 calls", TARGET),
        ("own", "transformers' own", None),
    ):
        record.add(
            compare(
                f"{ANSWERS} answers against {peer}",
                times["ours"],
                times[name],
                peer_name=peer,
                at_least=target,
                scaling=scaling,
            )
        )
    return record.finish(equality=equal, prompt_tokens=sampler.ids.shape[1], new_tokens=TOKENS)


main = entry(__doc__, measure, rounds=3)

if __name__ == "__main__":
    main()
