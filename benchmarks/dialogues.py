"""What the benchmarks of whole dialogues share: a processor of any tile size, questions, equality.

The tokenizer is that of the repository root (151,674 ids), the pictures are noise, the weights are
those of `random_models.py`: prompts have their real length, answers say nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from harness import ROOT, relative_difference, require
from random_models import BF16_TOLERANCE, chat_config, chat_model

from internvl import hub

VOCABULARY = 151_674  # ids of the tokenizer, also where `--smoke` would have fewer
GREEDY = {"do_sample": False}
HISTORY_ANSWER = "There are several things in it, one of them is red, and it stands on the left."
QUESTIONS = (
    "Please describe the picture in detail.",
    "Which of the things in it is the largest, and why do you think so?",
    "What is written in the upper left corner?",
    "How many people are there?",
    "Is it day or night?",
)


def tokenizer() -> Any:
    """The tokenizer of InternVL2.5-1B, 4B, 38B and 78B."""
    return hub.prepare(ROOT).tokenizer


def processor(model: Any, words: Any) -> Any:
    """A processor for the tiles of a model."""
    images = hub.ring0("preprocessor.image_processing_internvl_chat").InternVLChatImageProcessor
    conversation = hub.ring0("conversation")
    config = model.config
    template = conversation.get_conv_template(config.template)
    return hub.ring0("preprocessor.processing_internvl_chat").InternVLChatProcessor(
        images(size=config.tile_size, max_tiles=config.max_dynamic_patch),
        words,
        image_seq_length=config.num_image_token,
        template=config.template,
        chat_template=conversation.chat_template(template),
    )


def bytes_of(config: Any, tiles: int) -> torch.Tensor:
    """Random uint8 tiles (N, 3, S, S), each another."""
    generator = torch.Generator().manual_seed(3)
    side = config.tile_size
    shape = (tiles, 3, side, side)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def questions(tile_counts: list[int]) -> list[str]:
    """A question about one image for each count."""
    return [f"<image>\n{QUESTIONS[index % 5]}" for index in range(len(tile_counts))]


@contextmanager
def last_logits(model: Any) -> Iterator[list[torch.Tensor]]:
    """Collects the logits of the last position of every pass of the language model."""
    seen: list[torch.Tensor] = []
    handle = model.language_model.register_forward_hook(
        lambda module, args, output: seen.append(output.logits[:, -1].float().clone())
    )
    try:
        yield seen
    finally:
        handle.remove()


class FirstToken:
    """A streamer that notes when the first new token was there: process CPU time and wall time."""

    def __init__(self) -> None:
        self.cpu = self.wall = 0.0
        self._start = (time.process_time(), time.perf_counter())

    def put(self, value: torch.Tensor) -> None:
        """Receives the prompt, which may be empty, and then every new token."""
        if value.numel() == 1 and not self.cpu:
            self.cpu = time.process_time() - self._start[0]
            self.wall = time.perf_counter() - self._start[1]

    def end(self) -> None:
        """Nothing more to note."""


def model_of(
    vision_layers: int,
    llm_layers: int,
    dtype: torch.dtype = torch.float32,
    *,
    smoke: bool,
    side: int | None = None,
) -> Any:
    """A model that the tokenizer fits; `side` gives it other tiles, and visual tokens in
    proportion."""
    config = chat_config(vision_layers, llm_layers, vocabulary=VOCABULARY, smoke=smoke)
    if side is not None and not smoke:
        config.vision_config.image_size = config.force_image_size = side
    return chat_model(config, dtype)


def close(found: torch.Tensor, expected: torch.Tensor, name: str) -> dict[str, Any]:
    """Logits that two ways to compute them give.

    Raises:
        RuntimeError: they differ by more than bfloat16 explains.
    """
    difference = relative_difference(found, expected)
    return require(
        {
            f"{name}_logit_difference": float(f"{difference:.2e}"),
            f"{name}_within_tolerance": difference <= BF16_TOLERANCE,
        }
    )
