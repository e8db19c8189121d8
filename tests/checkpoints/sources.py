"""Checkpoints in the published layout, whole and damaged, for the tests of `adopt` and `verify`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from internvl import hub
from tests import support

SETTINGS = {"max_new_tokens": 12, "do_sample": False}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def one_file(folder: Path, name: str) -> Path:
    """A copy of a golden checkpoint in one weight file."""
    source = support.checkpoint(name)
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    save_file(weights(source), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def edit_json(path: Path, **fields: Any) -> None:
    """Set fields of a JSON file; None removes one."""
    content = {**json.loads(path.read_text("utf-8")), **fields}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}), "utf-8")


def edit_weights(file: Path, change: Any) -> None:
    """Change the tensors of a file in place."""
    tensors = load_file(file)
    change(tensors)
    file.unlink()  # it may be a link
    save_file(tensors, file, metadata={"format": "pt"})


def lora_wrapped(folder: Path, name: str, *, llm: int = 0, vision: int = 0) -> torch.nn.Module:
    """Write a checkpoint as the official training code leaves it with LoRA, and return the model
    that PEFT merges out of the same layers."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    shutil.copytree(
        support.checkpoint(name), folder, ignore=shutil.ignore_patterns("*.safetensors*")
    )
    model = support.load(name)
    targets = {
        "language_model": {
            "internlm2": ["attention.wqkv", "attention.wo", "w1", "w2", "w3"],
            "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
        }.get(name, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
        "vision_model": ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"],
    }
    state = dict(model.state_dict())
    for part, rank in {"language_model": llm, "vision_model": vision}.items():
        if not rank:
            continue
        module = getattr(model, part)
        config = LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules=targets[part],
            task_type="CAUSAL_LM" if part == "language_model" else None,
        )
        wrapped = get_peft_model(module, config)
        for key, value in wrapped.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(value, std=0.05)
        state = {k: v for k, v in state.items() if not k.startswith(f"{part}.")}
        state |= {f"{part}.{key}": value for key, value in wrapped.state_dict().items()}
        setattr(model, part, wrapped.merge_and_unload())
    # PEFT merged in place: what was collected before it has to be the unmerged weights.
    original = support.load(name).state_dict()
    for key in state:
        plain = key.replace(".base_model.model.", ".").replace(".base_layer.", ".")
        if plain in original:
            state[key] = original[plain]
    ordered = {key: state[key].detach().clone() for key in sorted(state)}
    half = len(ordered) // 2
    shards = {
        f"model-0000{number}-of-00002.safetensors": dict(list(ordered.items())[part])
        for number, part in ((1, slice(0, half)), (2, slice(half, None)))
    }
    for file, tensors in shards.items():
        save_file(tensors, folder / file, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": sum(value.nbytes for value in ordered.values())},
        "weight_map": {key: file for file, tensors in shards.items() for key in tensors},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    edit_json(folder / "config.json", use_llm_lora=llm, use_backbone_lora=vision)
    return model.eval()


def answer_ids(folder: Path, name: str, **options: Any) -> list[list[int]]:
    """Greedy ids for a text, an image of several tiles and two images, in float32.

    Args:
        folder: the checkpoint; golden ones load with `support.load`.
        name: of the golden checkpoint it came from.
        **options: of `hub.load`.
    """
    loaded = hub.load(folder, dtype=torch.float32, **options)
    return model_ids(loaded.model, loaded.tokenizer, name)


def model_ids(model: Any, tokenizer: Any, name: str) -> list[list[int]]:
    """As `answer_ids`, of a model in memory."""
    found = []
    for images, question in ((None, "Hello"), ("A", "<image>\nWhat?"), ("AB", "<image>\nWhich?")):
        tiles = support.pixels(name, images)
        ids = prompt_ids(model, tokenizer, question, 0 if tiles is None else len(tiles))
        given = {} if tiles is None else {"pixel_values": tiles}
        # As chat() does; golden folders have no generation_config.json to say it.
        end = tokenizer.convert_tokens_to_ids(model.conv_template.end_of_turn)
        output = model.generate(input_ids=ids, eos_token_id=end, **given, **SETTINGS)
        found.append(output[0, ids.shape[1] :].tolist())
    return found


def prompt_ids(model: Any, tokenizer: Any, question: str, tiles: int) -> torch.Tensor:
    """Ids (1, T) of a question with an image of so many tiles."""
    template = support.conversation.get_conv_template(model.config.template)
    content = support.conversation.place_visuals(question, iter([tiles]))
    turns = [(template.roles[0], content), (template.roles[1], None)]
    pieces = support.conversation.render(template, turns, model.num_image_token)
    return torch.tensor([support.conversation.encode(pieces, tokenizer)])
