"""Tensor parallelism over two processes gives what one process gives (transformers 5)."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import support
from tests.distributed import worker
from tests.distributed.conftest import Ranks

NAMES = (*worker.NAMES, worker.ODD)
# Sums of two halves are rounded differently. Of the largest value of a tensor; measured at worst:
# logits 1.6e-6, loss 4.7e-7, gradients 8.0e-6.
RELATIVE = {"logits": 1e-5, "loss": 1e-5, "grad": 3e-5}
# What a rank keeps of a layer: a share of the rows, of the columns, or (Phi-3) of the rows of a
# fused projection, which it gathers before it is taken apart.
ROWS = {
    "qwen2": ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "embed_tokens", "lm_head"),
    "internlm2": ("wqkv", "w1", "w3", "tok_embeddings", "output"),
    "phi3": ("qkv_proj", "gate_up_proj", "embed_tokens", "lm_head"),
}
COLUMNS = {
    "qwen2": ("o_proj", "down_proj"),
    "internlm2": ("wo", "w2"),
    "phi3": ("o_proj", "down_proj"),
}


@functools.cache
def expected(name: str, folder: Path) -> worker.Tensors:
    """What one process computes."""
    return worker.parallel(name, *worker.load(name, folder))


@pytest.mark.parametrize("name", NAMES)
def test_logits_loss_and_gradients_are_those_of_one_process(name: str, split: Ranks) -> None:
    wanted = expected(name, split.folder)
    compared = [key for key in wanted if key.startswith(("logits", "loss", "grad."))]
    assert any(key.startswith("grad.language_model") for key in compared)
    for found in split.tensors(name):
        for key in compared:
            allowed = RELATIVE[key.partition(".")[0]] * wanted[key].abs().max().item()
            torch.testing.assert_close(found[key], wanted[key], rtol=0, atol=allowed, msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_greedy_ids_and_answers_are_those_of_one_process(name: str, split: Ranks) -> None:
    wanted = expected(name, split.folder)
    compared = [key for key in wanted if key.startswith(("ids", "chat"))]
    assert len(compared) == 5
    for found in split.tensors(name):
        for key in compared:
            assert torch.equal(found[key], wanted[key]), f"{name} {key}"


@pytest.mark.parametrize("name", NAMES)
def test_every_rank_holds_its_share_only(name: str, split: Ranks) -> None:
    model, _ = worker.load(name, split.folder)
    family = model.config.llm_config.model_type
    layouts = split.layouts(name)
    seen = set()
    for key, parameter in model.named_parameters():
        layer, kind = key.split(".")[-2:]
        whole, local = list(parameter.shape), [layout["local"][key] for layout in layouts]
        rows = layer in (*ROWS[family], "fc1") and "mlp1" not in key
        columns = layer in (*COLUMNS[family], "fc2") and kind == "weight"
        seen |= {layer} if rows or columns else set()
        if rows:
            assert [shape[1:] for shape in local] == [whole[1:]] * 2, key
            assert sum(shape[0] for shape in local) == whole[0], key
            assert local[0][0] - local[1][0] == whole[0] % 2, key
        elif columns:
            assert local == [[whole[0], whole[1] // 2]] * 2, key
        else:
            assert local == [whole] * 2, key
    tied = {"lm_head"} if model.config.tie_word_embeddings else set()
    assert seen == {*ROWS[family], *COLUMNS[family], "fc1", "fc2"} - tied


@pytest.mark.parametrize("name", NAMES)
def test_saving_gives_back_whole_weights(name: str, split: Ranks) -> None:
    model, _ = worker.load(name, split.folder)
    stored = {}
    for file in (split.saved / name).glob("*.safetensors"):
        stored |= load_file(file)
    weights = dict(model.named_parameters())
    if model.config.tie_word_embeddings:  # written twice: gathered tensors share no memory
        weights["language_model.lm_head.weight"] = model.get_input_embeddings().weight
    assert stored.keys() == weights.keys()
    assert all(torch.equal(stored[key], weight) for key, weight in weights.items())
    config = (split.saved / name / "config.json").read_text(encoding="utf-8")
    assert "distributed_config" not in config  # of the run, not of the checkpoint


@pytest.mark.parametrize(
    ("name", "size", "fits"),
    [("qwen2", 2, True), ("qwen2", 4, False), ("internlm2", 3, False), ("phi3", 4, True)],
)
def test_processes_must_share_the_key_heads_evenly(
    name: str, size: int, fits: bool, distributed_config: type
) -> None:
    config = support.modeling.InternVLChatConfig.from_pretrained(support.checkpoint(name))
    config.distributed_config = distributed_config(tp_size=size)
    with torch.device("meta"):
        if fits:
            support.modeling.InternVLChatModel(config)
        else:
            with pytest.raises(ValueError, match=f"tp_size is {size}.* 2 key heads"):
                support.modeling.InternVLChatModel(config)
