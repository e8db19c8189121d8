"""What the tests of adapters share: real images as training data, a few steps, and logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from internvl import hub
from internvl.checkpoints.adapters import trl_processor
from tests import support
from tests.checkpoints.native import llama_checkpoint

# Example images per sample, resized, and their tiles with max_tiles=4 and thumbnails.
IMAGES = (
    ([("circle.png", 120, 110)], [1]),
    ([("star.jpg", 330, 120), ("six.jpg", 110, 110)], [4, 1]),
    ([], []),
    ([("relation.png", 230, 230)], [5]),
)
FAMILIES = ("qwen2", "internlm2", "phi3", "llama")


def picture(name: str, width: int = 0, height: int = 0) -> Image.Image:
    """An example image, in another size if asked."""
    image = Image.open(support.ROOT / "examples" / name).convert("RGB")
    return image.resize((width, height)) if width else image


def source(family: str, folder: Path) -> Path:
    """A checkpoint of a family: golden, the demo, or a Llama one made in `folder`."""
    if family == "llama":
        return llama_checkpoint(folder)
    return hub.DEMO if family == "demo" else support.checkpoint(family)


def processor_for_trl(loaded: hub.Loaded) -> Any:
    """The processor for TRL, with several tiles per image."""
    loaded.processor.image_processor.max_tiles = 4
    return trl_processor(loaded.processor)


def batch(loaded: hub.Loaded, answers: tuple[str, ...] = ("red", "a star")) -> dict[str, Any]:
    """Two questions about images of one and of three tiles, and labels for the answers."""
    images = (picture("circle.png", 120, 110), picture("star.jpg", 330, 120))
    dialogues = [
        [
            {
                "role": "user",
                "content": [{"type": "image", "image": image}, {"type": "text", "text": "What?"}],
            },
            {"role": "assistant", "content": answer},
        ]
        for image, answer in zip(images, answers, strict=True)
    ]
    inputs = loaded.processor.apply_chat_template(
        dialogues, tokenize=True, return_dict=True, return_tensors="pt", max_tiles=2
    )
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels[:, :-8] = -100  # the last ids are those of the answer
    return {**inputs, "labels": labels}


def train(model: Any, inputs: dict[str, Any], steps: int = 4, lr: float = 2e-3) -> list[float]:
    """Optimise what wants gradients; the loss before each step."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    model.train()
    losses = []
    for _ in range(steps):
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


@torch.no_grad()
def logits(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """Logits of a model in eval mode, at the places that are not padding."""
    assert not model.training
    values = model(**{key: value for key, value in inputs.items() if key != "labels"}).logits
    return values[inputs["attention_mask"] == 1]
