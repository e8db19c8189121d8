"""FSDP2 over two processes trains and answers as one process does (transformers 5)."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed import worker
from tests.distributed.conftest import Ranks

# An average over ranks is rounded differently from one over losses; measured: logits and loss 0,
# gradients 1.8e-6 at worst, weights 1.2e-7.
TOLERANCE = {"rtol": 1e-5, "atol": 3e-6}


@functools.cache
def expected(name: str, folder: Path) -> worker.Tensors:
    """What one process computes with the samples of both ranks."""
    model, tokenizer = worker.load(name, folder)
    return worker.trained(name, model, worker.RANKS, tokenizer)


@pytest.mark.parametrize("name", worker.NAMES)
def test_logits_and_loss_are_those_of_one_process(name: str, shard: Ranks) -> None:
    wanted = expected(name, shard.folder)
    for rank, found in enumerate(shard.tensors(name)):
        for key in (f"logits.{rank}", f"loss.{rank}"):
            torch.testing.assert_close(found[key], wanted[key], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["grad", "weight"])
@pytest.mark.parametrize("name", worker.NAMES)
def test_one_step_is_that_of_one_process(name: str, kind: str, shard: Ranks) -> None:
    wanted = expected(name, shard.folder)
    compared = [key for key in wanted if key.startswith(f"{kind}.")]
    for part in ("vision_model.", "mlp1.", "language_model."):
        assert any(key.startswith(f"{kind}.{part}") for key in compared)
    for found in shard.tensors(name):
        for key in compared:
            torch.testing.assert_close(found[key], wanted[key], **TOLERANCE, msg=f"{name} {key}")


@pytest.mark.parametrize("name", worker.NAMES)
def test_answers_before_and_after_a_step_are_those_of_one_process(name: str, shard: Ranks) -> None:
    wanted = expected(name, shard.folder)
    for found in shard.tensors(name):
        for when in ("before", "after"):
            for key in (f"{when}.chat", f"{when}.chat_stream"):
                assert torch.equal(found[key], wanted[key]), f"{name} {key}"


@pytest.mark.parametrize("name", worker.NAMES)
def test_every_weight_is_sharded_and_every_layer_gathered_by_itself(
    name: str, shard: Ranks
) -> None:
    model, _ = worker.load(name, shard.folder)
    layouts = shard.layouts(name)
    for key, parameter in model.named_parameters():
        local = [layout["local"][key] for layout in layouts]
        assert [shape[1:] for shape in local] == [list(parameter.shape[1:])] * 2, key
        assert sum(shape[0] for shape in local) == parameter.shape[0], key
        if parameter.shape[0] > 1:  # not the class token, of which a rank has all
            assert local[0] != list(parameter.shape), key
    decoder = model.language_model.model
    path = {module: key for key, module in model.named_modules()}
    wrapped = {
        path[module]
        for module in (
            model,
            model.vision_model.embeddings,
            *model.vision_model.encoder.layers,
            model.get_input_embeddings(),
            *decoder.layers,
            decoder.norm,
        )
    }
    if not model.config.tie_word_embeddings:
        wrapped.add(path[model.get_output_embeddings()])
    assert [set(layout["wrapped"]) for layout in layouts] == [wrapped] * 2


@pytest.mark.parametrize("name", worker.NAMES)
def test_saving_gives_back_whole_weights(name: str, shard: Ranks) -> None:
    wanted = expected(name, shard.folder)
    stored = {}
    for file in (shard.saved / name).glob("*.safetensors"):
        stored |= load_file(file)
    model, _ = worker.load(name, shard.folder)
    # A tied output layer is written a second time: gathered tensors share no memory.
    tied = {"language_model.lm_head.weight"} if model.config.tie_word_embeddings else set()
    assert stored.keys() == dict(model.named_parameters()).keys() | tied
    if tied:
        stored.pop(*tied)
    assert (shard.saved / name / "modeling_internvl_chat.py").is_file()
    config = json.loads((shard.saved / name / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["InternVLChatModel"]
    assert config["auto_map"]["AutoModel"] == "modeling_internvl_chat.InternVLChatModel"
    for key, weight in stored.items():
        torch.testing.assert_close(weight, wanted[f"weight.{key}"], **TOLERANCE, msg=key)
