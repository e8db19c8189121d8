"""Where does the time of a first answer go?

    python benchmarks/profile_stages.py [--json] [--rounds 3] [--threads 1] [--dtype auto] [--smoke]

The stages of one answer at the size of InternVL2.5-1B (a JPEG of 2048 x 1536, 13 tiles, 3,400
tokens of prompt, 32 of answer), each measured by itself and multiplied by the number of times it
runs in the whole model: one ViT layer x 24 x 13, one decoder layer x 24. The table is arithmetic
over measured parts; end_to_end.py measures the whole.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch
from harness import Record, amount, choose_dtype, entry, interleave
from preprocess import Work
from random_models import LAYERS, chat_config, chat_model, pixels, prompt_ids
from transformers import DynamicCache

QUESTION = "share of each stage in a first answer of 32 tokens, InternVL2.5-1B"
TILES, TOKENS, ANSWER = 13, 3400, 32


class Stages:
    """Calls of one stage each, and how often they run."""

    def __init__(self, options: Namespace, dtype: torch.dtype) -> None:
        self.work = Work(smoke=options.smoke)
        config = chat_config(1, 1, smoke=options.smoke)
        self.model = chat_model(config, dtype)
        self.tiles = 2 if options.smoke else TILES
        length = 24 if options.smoke else TOKENS
        self.ids = prompt_ids(config, self.tiles, length - self.tiles * config.num_image_token)
        self.pixels = pixels(config, 1, dtype)
        vision, words = config.vision_config, config.llm_config
        self.tokens = 1 + (vision.image_size // vision.patch_size) ** 2
        self.hidden = torch.randn(1, self.tokens, vision.hidden_size).to(dtype)
        self.text = torch.randn(1, length, words.hidden_size).to(dtype)
        self.cache = DynamicCache()
        self._decoder(self.text)

    def _decoder(self, embeds: torch.Tensor) -> torch.Tensor:
        """The one decoder layer, with its mask and cache."""
        decoder = self.model.language_model.model
        with torch.inference_mode():
            output = decoder(inputs_embeds=embeds, past_key_values=self.cache, use_cache=True)
        return output.last_hidden_state

    def prefill(self) -> None:
        """One decoder layer over the whole prompt."""
        self.cache = DynamicCache()
        self._decoder(self.text)

    def step(self) -> None:
        """One decoder layer over one token after the prompt."""
        self._decoder(self.text[:, :1])
        self.cache.crop(-1)

    def calls(self) -> dict[str, tuple[int, Callable[[], Any]]]:
        """By name: how often, and what."""
        layer = self.model.vision_model.encoder.layers[0]
        width = self.hidden.shape[-1]
        wide = torch.zeros(1, self.tokens, layer.mlp.fc1.out_features, dtype=self.hidden.dtype)
        heads = layer.attn.num_heads
        query = torch.zeros(1, heads, self.tokens, width // heads, dtype=self.hidden.dtype)
        attend = torch.nn.functional.scaled_dot_product_attention
        projector, head = self.model.mlp1, self.model.get_output_embeddings()
        visual = torch.zeros(1, self.model.num_image_token, 4 * width, dtype=self.hidden.dtype)
        blocks, steps = LAYERS * self.tiles, ANSWER - 1
        return {
            "JPEG decoding": (1, self.work.decode),
            "resize and cut": (1, lambda: self.work.tiles(self.work.picture, normalize=False)),
            "ViT patch embedding": (
                self.tiles,
                lambda: self.model.vision_model.embeddings(self.pixels),
            ),
            "ViT linears": (
                blocks,
                lambda: (
                    layer.attn.qkv(self.hidden),
                    layer.attn.proj(self.hidden),
                    layer.mlp.fc1(self.hidden),
                    layer.mlp.fc2(wide),
                ),
            ),
            "ViT attention": (blocks, lambda: attend(query, query, query)),
            "ViT GELU": (blocks, lambda: layer.mlp.act(wide)),
            "ViT norms and residuals": (
                2 * blocks,
                lambda: self.hidden + layer.norm1(self.hidden) * layer.ls1,
            ),
            "projector": (self.tiles, lambda: projector(visual)),
            "prefill": (LAYERS, self.prefill),
            "decoding": (LAYERS * steps, self.step),
            "output layer": (ANSWER, lambda: head(self.text[:, -1:])),
        }


def measure(options: Namespace) -> dict[str, Any]:
    """Time each stage, multiply, and divide by the sum."""
    dtype = choose_dtype(options.dtype)
    record = Record("profile_stages", QUESTION, options, dtype)
    calls = Stages(options, dtype).calls()
    times = interleave({name: call for name, (_, call) in calls.items()}, options.rounds)
    seconds = {name: count * times[name].median for name, (count, _) in calls.items()}
    total = sum(seconds.values())
    for name, value in seconds.items():
        record.add(
            amount(
                name,
                value / total,
                "share of the CPU time",
                seconds=round(value, 3),
                runs=calls[name][0],
                note=f"{value:.2f} s, {calls[name][0]} x {times[name].median * 1e3:.2f} ms",
            )
        )
    return record.finish(equality=None, total_cpu_s=round(total, 2))


main = entry(__doc__, measure, rounds=3)

if __name__ == "__main__":
    main()
