"""VLMEvalKit's and lmms-eval's calls on an exported checkpoint; prints what came out as JSON.

usage: evaluation_calls.py {vlmevalkit | lmms_eval} CHECKPOINT GOLDEN
"""

from __future__ import annotations

import base64
import copy
import csv
import io
import json
import sys
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoProcessor, AutoTokenizer

# Data set, in the order of the recorded calls, and the tile limit that VLMEvalKit sets for it.
LIMITS = {
    "TinyMCQ": 6,
    "MMMU_DEV_VAL": 12,
    "ChartQA_TEST": 12,
    "DocVQA_VAL": 18,
    "TextVQA_VAL": 6,
    "POPE": 6,
    "OCRBench": 24,
}
# With sampling settings although it is greedy: that is what VLMEvalKit passes.
SETTINGS = {"do_sample": False, "max_new_tokens": 8, "top_p": 0.95, "temperature": 0.6}
MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def load_image(image: Image.Image, size: int, max_num: int, upscale: bool = False) -> torch.Tensor:
    """The engine's own tiling: nearest ratio, ties to the larger grid for large enough images."""
    image = enlarged(image, upscale)
    numbers = range(1, max_num + 1)
    grids = [(c, r) for c in numbers for r in numbers if c * r <= max_num]
    best, gap = (1, 1), float("inf")
    for c, r in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        diff = abs(image.width / image.height - c / r)
        large = image.width * image.height > 0.5 * size * size * c * r
        if diff < gap or (diff == gap and large):
            best, gap = (c, r), diff
    c, r = best
    resized = image.resize((c * size, r * size))
    corners = [(x * size, y * size) for y in range(r) for x in range(c)]
    tiles = [resized.crop((x, y, x + size, y + size)) for x, y in corners]
    if len(tiles) != 1:
        tiles.append(image.resize((size, size)))
    pixels = [torch.frombuffer(bytearray(tile.tobytes()), dtype=torch.uint8) for tile in tiles]
    pixels = torch.stack(pixels).view(-1, size, size, 3).permute(0, 3, 1, 2)
    return (pixels.float() / 255 - MEAN) / STD


def enlarged(image: Image.Image, upscale: bool) -> Image.Image:
    """RGB, and for MMMU twice as large."""
    image = image.convert("RGB")
    if not upscale:
        return image
    return image.resize((image.width * 2, image.height * 2), Image.Resampling.BILINEAR)


class Peer:
    """A loaded checkpoint with the answer of the standard path to compare with."""

    def __init__(self, folder: str, model: torch.nn.Module, tokenizer: object) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        self.size = self.processor.image_processor.size["height"]

    def ours(self, question: str, images: list, limit: int) -> str:
        """Processor and `generate`."""
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": question}],
            images=images or None,
            max_tiles=limit,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
        )
        new = self.model.generate(**inputs, max_new_tokens=8, do_sample=False)
        new = new[:, inputs["input_ids"].shape[1] :]
        text = self.processor.batch_decode(new, skip_special_tokens=True)[0]
        return text.split("<|im_end|>")[0].strip()


def vlmevalkit(folder: str, golden: Path) -> dict:
    """The recorded calls, those with several images, and the text-only and multi-turn forms."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True, use_fast=False)
    model = AutoModel.from_pretrained(
        folder,
        torch_dtype=torch.bfloat16,
        trust_remote_code=True,
        low_cpu_mem_usage=True,
        device_map="auto",
    )
    peer = Peer(folder, model, tokenizer)
    same, counts, answers = [], [], []
    rows = list(read_rows(golden))
    calls = [json.loads(line) for line in (golden / "calls.jsonl").read_text().splitlines()]
    for call, (name, limit, picture) in zip(calls, rows, strict=True):
        upscale = name.startswith("MMMU")
        counts.append([len(load_image(picture, 448, limit, upscale))] == call["num_patches_list"])
        tiles = load_image(picture, peer.size, limit, upscale).to(torch.bfloat16)
        given = copy.deepcopy(SETTINGS)
        answer = model.chat(
            tokenizer,
            pixel_values=tiles,
            num_patches_list=[len(tiles)],
            question=call["question"],
            generation_config=given,
            verbose=True,
        )
        expected = peer.ours(call["question"], [enlarged(picture, upscale)], limit)
        same.append(given == SETTINGS and answer == expected)
        answers.append(answer)
    pictures = [picture for _, _, picture in rows]
    for line in (golden / "calls_edge.jsonl").read_text().splitlines():
        call = json.loads(line)
        images = pictures[: len(call["num_patches_list"])]
        limit = 1 if call["question"].startswith("Frame") else 6
        parts = [load_image(image, peer.size, limit) for image in images]
        answer = model.chat(
            tokenizer,
            pixel_values=torch.cat(parts).to(torch.bfloat16),
            num_patches_list=[len(part) for part in parts],
            question=call["question"],
            generation_config=copy.deepcopy(SETTINGS),
            verbose=False,
        )
        same.append(answer == peer.ours(call["question"], images, limit))
    text = {"pixel_values": None, "question": "Hello", "verbose": True}
    first, history = model.chat(
        tokenizer,
        **text,
        num_patches_list=[],
        generation_config=copy.deepcopy(SETTINGS),
        history=None,
        return_history=True,
    )
    same.append(first == peer.ours("Hello", [], 6) and history == [("Hello", first)])
    model.system_message = "You are terse."  # as its R1 prompt does
    model.chat(tokenizer, **text, generation_config=copy.deepcopy(SETTINGS))
    return {"same": same, "counts": counts, "answers": answers}


def lmms_eval(folder: str, golden: Path) -> dict:
    """Positional arguments, a device map of names, `use_flash_attn`, video lines without hyphen."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    modules = ["vision_model", "mlp1", "language_model.output", "language_model.lm_head"]
    modules += [
        f"language_model.model.{name}"
        for name in ("tok_embeddings", "embed_tokens", "norm", "rotary_emb")
    ]
    layers = config.llm_config.num_hidden_layers
    modules += [f"language_model.model.layers.{i}" for i in range(layers)]
    model = AutoModel.from_pretrained(
        folder,
        torch_dtype=torch.bfloat16,
        low_cpu_mem_usage=True,
        trust_remote_code=True,
        use_flash_attn=False,
        device_map=dict.fromkeys(modules, "cpu"),
    )
    peer = Peer(folder, model, tokenizer)
    pictures = [picture for _, _, picture in read_rows(golden)][:4]
    same = []

    def ask(tiles: list, context: str, counts: list | None, limit: int, images: list) -> None:
        gen_kwargs = {"max_new_tokens": 8, "do_sample": False, "num_beams": 1}
        pixels = torch.cat(tiles).to(torch.bfloat16) if tiles else None
        before = copy.deepcopy(gen_kwargs)
        answer, _ = model.chat(
            tokenizer,
            pixels,
            context,
            gen_kwargs,
            num_patches_list=counts,
            history=None,
            return_history=True,
        )
        same.append(answer == peer.ours(context, images, limit) and gen_kwargs == before)

    for picture in pictures[:3]:
        tiles = load_image(picture, peer.size, 6)
        ask([tiles], "<image>\nText?", [len(tiles)], 6, [picture])
    ask([], "Hello", None, 6, [])
    frames = [load_image(picture, peer.size, 1) for picture in pictures]
    lines = "".join(f"Frame{i + 1}: <image>\n" for i in range(4))
    ask(frames, lines + "What moves?", [1] * 4, 1, pictures)
    return {"same": same}


def read_rows(golden: Path):
    """Data set, tile limit and image of each row of the TSV files."""
    csv.field_size_limit(10**9)
    for name, limit in LIMITS.items():
        with (golden / f"{name}.tsv").open() as file:
            for row in csv.DictReader(file, delimiter="\t"):
                yield name, limit, Image.open(io.BytesIO(base64.b64decode(row["image"])))


if __name__ == "__main__":
    engine, checkpoint, data = sys.argv[1:]
    result = {"vlmevalkit": vlmevalkit, "lmms_eval": lmms_eval}[engine](checkpoint, Path(data))
    sys.stdout.write("\n" + json.dumps(result) + "\n")
