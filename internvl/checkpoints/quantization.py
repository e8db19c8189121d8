"""What a recipe of quantisation costs and saves, measured on a checkpoint and the example images.

    python -m internvl.checkpoints.quantization bnb-nf4 --dtype float32
    python -m internvl.checkpoints.quantization torchao-int8 --model FOLDER --json

The recipes themselves are in `internvl.quantization`, because `hub.load` takes their names.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from internvl import hub
from internvl.quantization import RECIPES

logger = logging.getLogger(__name__)

EXAMPLES = hub.REPOSITORY / "examples"
SETTINGS = {"max_new_tokens": 32, "do_sample": False}


@dataclass(frozen=True)
class Comparison:
    """A checkpoint before and after quantisation.

    Attributes:
        recipe: its name.
        dtype: of what is not quantised, and of the checkpoint it is compared with.
        bytes_before: bytes of all weights before.
        bytes_after: bytes of all weights, scales included, after.
        cosine: of the logits before and after, mean over all positions of all prompts.
        lowest_cosine: the lowest of them.
        questions: questions asked, each about one image.
        right_before: answers as expected before.
        right_after: answers as expected after.
        same: answers that are the same, letter for letter.
    """

    recipe: str
    dtype: str
    bytes_before: int
    bytes_after: int
    cosine: float
    lowest_cosine: float
    questions: int
    right_before: int
    right_after: int
    same: int


def stored_bytes(model: Any) -> int:
    """Bytes of weights and buffers as they are stored, scales included; tied weights count once.

    transformers' `get_memory_footprint` leaves out the scales of 4-bit weights of bitsandbytes, and
    counts weights of torchao as if they were not quantised.

    Args:
        model: any model.
    """
    import torch

    parts: list[Any] = []
    for tensor in (*model.parameters(), *model.buffers()):
        data = tensor.data
        if hasattr(data, "tensor_data_names"):  # torchao: a tensor made of tensors
            parts += [getattr(data, name) for name in data.tensor_data_names]
        else:
            parts.append(data)
        if (state := getattr(tensor, "quant_state", None)) is not None:  # bitsandbytes, 4 bit
            parts += [part for part in state.as_dict(packed=True).values() if torch.is_tensor(part)]
    for module in model.modules():  # bitsandbytes, 8 bit: moved by the first forward pass
        for holder in (getattr(module, "weight", None), getattr(module, "state", None)):
            if (row_scales := getattr(holder, "SCB", None)) is not None:
                parts.append(row_scales)
    return sum(part.nbytes for part in parts)


def examples(folder: Path = EXAMPLES) -> list[dict[str, str]]:
    """The example questions that are about one image and are no dialogue."""
    entries = json.loads((folder / "questions.json").read_text("utf-8"))
    return [entry for entry in entries if "image" in entry and "turns" not in entry]


def answers_and_logits(
    loaded: hub.Loaded, entries: Sequence[dict[str, str]], folder: Path = EXAMPLES
) -> tuple[list[str], list[Any]]:
    """Greedy answers, and the logits (T, V) over each prompt with the expected answer behind it.

    Args:
        loaded: a chat model.
        entries: questions with "image", "question" and "expected".
        folder: where the images are.
    """
    import torch

    answers, logits = [], []
    for entry in entries:
        image = str(folder / entry["image"])
        tiles = loaded.processor.image_processor(image, return_tensors="pt")["pixel_values"]
        answers.append(
            loaded.model.chat(loaded.tokenizer, tiles, entry["question"], dict(SETTINGS))
        )
        picture = {"type": "image", "image": image}
        content = [picture, {"type": "text", "text": entry["question"]}]
        messages = [
            {"role": "user", "content": content},
            {"role": "assistant", "content": entry["expected"]},
        ]
        inputs = loaded.processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(loaded.model.device)
        with torch.no_grad():
            logits.append(loaded.model(**inputs).logits[0].float().cpu())
    return answers, logits


def compare(
    name: str, source: str | Path | None = None, *, dtype: str = "auto", device_map: Any = None
) -> Comparison:
    """Measure a recipe on a checkpoint; both models are not in memory at once.

    Args:
        name: of the recipe.
        source: as in `hub.load`.
        dtype: as in `hub.load`.
        device_map: as in `hub.load`.

    Raises:
        ValueError: as in `hub.load`.
        ImportError: as in `hub.load`.
    """
    import torch

    entries = examples()
    loaded = hub.load(source, dtype=dtype, device_map=device_map)
    before, kind = stored_bytes(loaded.model), str(loaded.model.dtype).removeprefix("torch.")
    answers, logits = answers_and_logits(loaded, entries)
    del loaded
    loaded = hub.load(source, dtype=dtype, device_map=device_map, quantization=name)
    new_answers, new_logits = answers_and_logits(loaded, entries)
    cosines = torch.cosine_similarity(torch.cat(logits), torch.cat(new_logits), dim=-1)
    expected = [entry["expected"] for entry in entries]
    return Comparison(
        recipe=name,
        dtype=kind,
        bytes_before=before,
        bytes_after=stored_bytes(loaded.model),
        cosine=cosines.mean().item(),
        lowest_cosine=cosines.min().item(),
        questions=len(entries),
        right_before=sum(map(str.__eq__, answers, expected)),
        right_after=sum(map(str.__eq__, new_answers, expected)),
        same=sum(map(str.__eq__, answers, new_answers)),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("--model", help="folder or Hub id; the demo by default")
    parser.add_argument("--dtype", default="auto", help="of what is not quantised")
    parser.add_argument("--device-map", help="as in transformers; the CPU by default")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    args = parser.parse_args(arguments)
    found = compare(args.recipe, args.model, dtype=args.dtype, device_map=args.device_map)
    if args.json:
        sys.stdout.write(json.dumps(asdict(found)) + "\n")
        return 0
    sys.stdout.write(
        f"{found.recipe} beside {found.dtype}: {found.bytes_before / 1e6:.2f} MB -> "
        f"{found.bytes_after / 1e6:.2f} MB, cosine of logits {found.cosine:.4f} "
        f"(lowest {found.lowest_cosine:.4f}), "
        f"right answers {found.right_before} -> {found.right_after} of {found.questions}, "
        f"{found.same} the same\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
