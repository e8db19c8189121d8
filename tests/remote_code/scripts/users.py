"""What a user does with a repository; imported by the fresh processes that the tests start."""

from __future__ import annotations

import json
import sys

import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

__all__ = [
    "AutoConfig",
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForImageTextToText",
    "AutoProcessor",
    "AutoTokenizer",
    "answers",
    "json",
    "message",
    "picture",
    "sys",
    "torch",
]

torch.manual_seed(0)
picture = Image.effect_mandelbrot((150, 100), (-2, -1.2, 1, 1.2), 40).convert("RGB")
settings = {"max_new_tokens": 8, "do_sample": False}
message = [
    {
        "role": "user",
        "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What?"}],
    }
]


def answers(where: str, **options: object) -> tuple:
    """Load everything from a place and answer by `chat` and by processor and `generate`."""
    kwargs = {"trust_remote_code": True, **options}
    model = AutoModel.from_pretrained(where, dtype=torch.float32, **kwargs).eval()
    tokenizer = AutoTokenizer.from_pretrained(where, use_fast=False, **kwargs)
    processor = AutoProcessor.from_pretrained(where, **kwargs)
    tiles = processor.image_processor(picture, return_tensors="pt")
    chat = model.chat(tokenizer, tiles["pixel_values"], "<image>\nWhat?", settings)
    inputs = processor.apply_chat_template(
        message, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    ).to(model.device)
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1]
    new = model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]
    text = processor.batch_decode(new, skip_special_tokens=True)[0]
    text = text.split("<|im_end|>")[0].strip()
    return model, tokenizer, processor, {"chat": chat, "generate": text, "logits": logits.tolist()}
