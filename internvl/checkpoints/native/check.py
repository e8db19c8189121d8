"""Whether a converted checkpoint and the one it was made of are the same model.

dialogues -> ids of our processor = ids of the native template and tokenizer
random ids and pixels -> logits of both models in float32
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from internvl import hub
from internvl.checkpoints.native.tokenizer import native_tokenizer

TOLERANCE = 1e-4  # of logits in float32, relative to the largest one where that is above 1


def compare_prompts(prepared: hub.Prepared, folder: Path) -> None:
    """Check that the native template and tokenizer give the ids of our processor.

    Args:
        prepared: the checkpoint in our layout.
        folder: the native one.

    Raises:
        ValueError: a dialogue whose ids differ.
    """
    from PIL import Image

    tokenizer = native_tokenizer(folder)
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    side = prepared.processor.image_processor.tile_size
    picture = Image.new("RGB", (2 * side, side))
    image, text = {"type": "image", "image": picture}, {"type": "text", "text": "What is this?"}
    answered = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]
    typed = [{"role": "user", "content": "<image>\nWhat is this?"}]
    for dialogue, images in (
        (answered[:1], None),
        (typed, [picture]),
        ([{"role": "user", "content": [image, text]}], None),
        ([{"role": "system", "content": "Be brief."}, *answered, *answered[:1]], None),
        ([{"role": "user", "content": [image, image, text]}], None),
    ):
        options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
        ours = prepared.processor.apply_chat_template(dialogue, images=images, **options)
        prompt = tokenizer.apply_chat_template(
            dialogue, chat_template=template, add_generation_prompt=True, tokenize=False
        )
        for tiles in ours.get("num_tiles", []):
            visual = "<img>" + "<>" * tiles * prepared.config.num_image_token + "</img>"
            prompt = prompt.replace("<IMG_CONTEXT>", visual, 1)
        found = tokenizer(prompt.replace("<>", "<IMG_CONTEXT>"))["input_ids"]
        if found != ours["input_ids"][0]:
            raise ValueError(
                f"the native template and tokenizer encode a dialogue as {found[:40]}..., ours as "
                f"{ours['input_ids'][0][:40]}...; report it with the checkpoint's name."
            )


def compare_logits(source: Path, result: Path, config: Any, native: Path) -> dict[str, float]:
    """Largest difference of the logits of both models in float32, on random inputs.

    One model is in memory at a time.

    Args:
        source: folder of the weights that were converted.
        result: folder of those that were written.
        config: `InternVLChatConfig` of the one in our layout.
        native: which of the two folders is the native one.

    Returns:
        By input: "text", "one tile", "five tiles".

    Raises:
        ValueError: they differ by more than `TOLERANCE`.
    """
    import torch

    ours = result if native == source else source
    inputs = _inputs(config)
    logits = {}
    loaders: tuple[tuple[str, Callable[[], Any]], ...] = (
        ("ours", lambda: _load_ours(ours, config)),
        ("native", lambda: _load_native(native)),
    )
    for side, load in loaders:
        model = load().eval()
        with torch.inference_mode():
            logits[side] = {name: model(**kwargs).logits for name, kwargs in inputs.items()}
        del model
    differences = {}
    for name, mine in logits["ours"].items():
        difference = (mine - logits["native"][name]).abs().max().item()
        allowed = TOLERANCE * max(1.0, mine.abs().max().item())
        if not difference <= allowed:  # nor NaN
            raise ValueError(
                f"{result} was not finished: the logits of {name} differ by {difference:.2e}, "
                f"allowed are {allowed:.2e}; {ours} and {native} do not compute the same."
            )
        differences[name] = difference
    return differences


def _inputs(config: Any) -> dict[str, dict[str, Any]]:
    import torch

    generator = torch.Generator().manual_seed(0)
    context, side = config.img_context_token_id, config.tile_size
    made = {}
    for name, tiles in {"text": 0, "one tile": 1, "five tiles": 5}.items():
        words = torch.randint(context, (24,), generator=generator)
        visual = torch.full((tiles * config.num_image_token,), context)
        ids = torch.cat([words[:8], visual, words[8:]])[None]
        made[name] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if tiles:
            pixels = torch.randn(
                tiles, config.vision_config.num_channels, side, side, generator=generator
            )
            made[name]["pixel_values"] = pixels
    return made


def _load_ours(folder: Path, config: Any) -> Any:
    import torch

    model_class = hub.ring0("modeling_internvl_chat").InternVLChatModel
    return model_class.from_pretrained(
        folder, config=config, dtype=torch.float32, use_safetensors=True
    )


def _load_native(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForImageTextToText

    loaded: Any = AutoModelForImageTextToText.from_pretrained(
        folder,
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    model, info = loaded
    faults = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}
    if faults:
        raise ValueError(f"transformers does not load {folder} whole: {faults}")
    return model
