"""What each of two processes runs for the tests here: `python -m tests.distributed.worker FOLDER`.

The processes are told apart by RANK, as torchrun does it, and meet over gloo through a file in
FOLDER, so no port is needed. They split every checkpoint by tensor parallelism, then shard it with
FSDP2. Each writes what it computed to FOLDER/<method>-<rank>.safetensors, and how its weights lie
to FOLDER/<method>-<rank>.json. `parallel` and `trained` compute the same with a whole model.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import distributed
from torch.distributed.tensor import DTensor

from internvl import hub
from tests import support

RANKS = (0, 1)
LEARNING_RATE = 0.01
GREEDY = {"max_new_tokens": 5, "do_sample": False}
ODD = (
    "internlm2_odd"  # a vocabulary that two processes cannot halve, as those of all published ones
)
NAMES = (*support.NAMES, "demo")

Tensors = dict[str, torch.Tensor]


def load(name: str, folder: Path, **options: Any) -> tuple[Any, Any]:
    """A model in float32, and its tokenizer."""
    if name in support.NAMES:
        return support.load(name, **options), support.tokenizer(name)
    source = hub.DEMO if name == "demo" else folder / name
    model, info = support.modeling.InternVLChatModel.from_pretrained(
        source, dtype=torch.float32, output_loading_info=True, **options
    )
    assert not any(info.values()), info
    if name == "demo":
        return model.eval(), hub.prepare().tokenizer
    model.img_context_token_id = support.IMG_CONTEXT_ID
    return model.eval(), support.tokenizer("internlm2")


def write_odd(folder: Path) -> None:
    """Write the InternLM2 checkpoint with one more row in its vocabulary."""
    model = support.load("internlm2")
    model.resize_token_embeddings(model.config.llm_config.vocab_size + 1)
    model.save_pretrained(folder / ODD)


def images(name: str, model: Any) -> torch.Tensor:
    """Two tiles."""
    if name != "demo":
        return support.pixels(name.removesuffix("_odd"), "A")[:2]
    side = model.config.tile_size
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def samples(name: str, model: Any) -> Tensors:
    """Two samples of one tile each, the second padded on the left, and what to learn of them."""
    places = torch.full((2, model.num_image_token), model.context_token_id)
    text = torch.randint(0, 200, (2, 8), generator=torch.Generator().manual_seed(1))
    rows = torch.cat([text[:, :3], places, text[:, 3:]], dim=1)
    mask = torch.ones_like(rows)
    mask[1, :2] = 0
    labels = rows.masked_fill((rows == model.context_token_id) | (mask == 0), -100)
    named = {"input_ids": rows, "attention_mask": mask, "labels": labels}
    return {**named, "pixel_values": images(name, model)}


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor, on every rank."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().clone().contiguous()


def gradients(model: Any) -> Tensors:
    """The gradients of all weights."""
    found = {f"grad.{key}": whole(parameter.grad) for key, parameter in model.named_parameters()}
    model.zero_grad()
    return found


def answers(name: str, model: Any, tokenizer: Any) -> Tensors:
    """What `chat` and `chat_stream` say about an image, as bytes."""
    tiles, settings = images(name, model), dict(GREEDY)
    answer = model.chat(tokenizer, tiles, "What?", settings)
    streamed = "".join(model.chat_stream(tokenizer, tiles, "What?", settings))
    texts = {"chat": answer, "chat_stream": streamed}
    return {key: torch.tensor(list(text.encode())) for key, text in texts.items()}


# ---------------------------------------------------------------------- tensor parallelism
def parallel(name: str, model: Any, tokenizer: Any) -> Tensors:
    """Logits, loss, gradients, and greedy ids with every kind of cache: equal on all ranks."""
    batch = samples(name, model)
    with torch.no_grad():
        found = {"logits": model(**batch).logits}
    loss = model(**batch, use_cache=False).loss
    loss.backward()
    found |= {"loss": whole(loss), **gradients(model), **answers(name, model, tokenizer)}
    del batch["labels"]
    found["ids"] = model.generate(**batch, **GREEDY)
    found["ids.beams"] = model.generate(**batch, **GREEDY, num_beams=2)
    found["ids.static"] = model.generate(**batch, **GREEDY, cache_implementation="static")
    return found


def split(name: str, folder: Path) -> tuple[Tensors, dict[str, Any]]:
    """`parallel` with the model split over the ranks."""
    from transformers.distributed import DistributedConfig

    config = DistributedConfig(tp_plan="auto", tp_size=len(RANKS))
    model, tokenizer = load(name, folder, distributed_config=config)
    found = parallel(name, model, tokenizer)
    model.save_pretrained(folder / "split" / name)
    return found, layout(model)


# ---------------------------------------------------------------------- FSDP2
def own_sample(name: str, model: Any, rank: int) -> Tensors:
    """Rank 0 has a sample with an image; rank 1 one without, and a tile that stands for none."""
    batch = {key: value[rank : rank + 1] for key, value in samples(name, model).items()}
    if rank:
        text = batch["input_ids"] != model.context_token_id
        for key in ("input_ids", "attention_mask", "labels"):
            batch[key] = batch[key][text][None]
        batch["image_flags"] = torch.tensor([0])
    return batch


def trained(name: str, model: Any, ranks: tuple[int, ...], tokenizer: Any) -> Tensors:
    """One step of gradient descent on the samples of these ranks, and an answer before and after.

    FSDP2 averages gradients over the ranks; one process with all samples averages their losses.
    """
    # First of all: a forward pass without backward leaves some weights gathered, as plain tensors.
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    found = {f"before.{key}": text for key, text in answers(name, model, tokenizer).items()}
    for rank in ranks:
        output = model(**own_sample(name, model, rank), use_cache=False)
        (output.loss / len(ranks)).backward()
        found |= {f"logits.{rank}": whole(output.logits), f"loss.{rank}": whole(output.loss)}
    optimizer.step()
    found |= gradients(model)
    found |= {f"weight.{key}": whole(parameter) for key, parameter in model.named_parameters()}
    return found | {f"after.{key}": text for key, text in answers(name, model, tokenizer).items()}


def shard(name: str, folder: Path) -> tuple[Tensors, dict[str, Any]]:
    """`trained` with the model sharded over the ranks, each with its own sample."""
    from transformers.distributed import DistributedConfig

    # As `AutoModel` does: the code is saved with the weights.
    support.modeling.InternVLChatModel.register_for_auto_class("AutoModel")
    config = DistributedConfig(fsdp_size=len(RANKS))
    model, tokenizer = load(name, folder, distributed_config=config)
    found = trained(name, model, (distributed.get_rank(),), tokenizer)
    model.save_pretrained(folder / "shard" / name)
    modules = dict(model.named_modules())
    wrapped = [key for key, module in modules.items() if type(module).__name__.startswith("FSDP")]
    return found, {**layout(model), "wrapped": wrapped}


# ---------------------------------------------------------------------- the run
def layout(model: Any) -> dict[str, Any]:
    """Shape of what this rank holds of every weight."""
    parameters = dict(model.named_parameters())
    local = {
        key: list((p.to_local() if isinstance(p, DTensor) else p).shape)
        for key, p in parameters.items()
    }
    return {"local": local, "sharded": [k for k, p in parameters.items() if isinstance(p, DTensor)]}


METHODS = {"split": (split, (*NAMES, ODD)), "shard": (shard, NAMES)}


def main(folder: Path) -> None:
    """Meet the other process, run, and write what came out."""
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    meeting = f"file://{folder / 'meeting'}"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=len(RANKS))
    for method, (run, names) in METHODS.items():
        tensors, layouts = {}, {}
        for name in names:
            found, layouts[name] = run(name, folder)
            tensors |= {f"{name}/{key}": value.contiguous() for key, value in found.items()}
        save_file(tensors, folder / f"{method}-{rank}.safetensors")
        written = json.dumps(layouts)
        (folder / f"{method}-{rank}.json").write_text(written, encoding="utf-8")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
