"""Samples that share a row do not see each other: losses, gradients, and what would join them.

Numbers in comments are the worst measured over the checkpoints, relative to the separate samples.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask
from transformers import DynamicCache

from internvl import hub
from internvl.data.collate import collate
from internvl.data.examples import Example
from tests import support

MODELS = ("qwen2", "internlm2", "phi3", "demo")
# Ids of text, images of the sample: text, one image, text, two images.
SHAPES = ((9, 0), (7, 1), (3, 0), (12, 2))
Gradients = dict[str, torch.Tensor]


@functools.cache
def model(name: str, attention: str, dtype: torch.dtype = torch.float32) -> Any:
    """A checkpoint in training mode; all are without dropout and drop path."""
    if name == "demo":
        loaded = hub.load(dtype=dtype, attn_implementation=attention).model
    else:
        loaded = support.load(name, dtype=dtype, attn_implementation=attention)
    return loaded.train()


def samples(model: Any, shapes: tuple[tuple[int, int], ...] = SHAPES) -> list[Example]:
    """Samples of random ids and pixels, weighted by square averaging."""
    rng = np.random.default_rng(0)
    made = []
    for text, tiles in shapes:
        visual = np.full(tiles * model.num_image_token, model.context_token_id)
        ids = np.concatenate([rng.integers(3, 900, 2), visual, rng.integers(3, 900, text - 2)])
        supervised = np.arange(len(ids)) >= 2 + len(visual)
        side = model.config.tile_size
        example = Example(
            input_ids=ids,
            labels=np.where(supervised, ids, -100),
            response=np.where(supervised, 0, -1).astype(np.int32),
            tiles=rng.integers(0, 256, (tiles, side, side, 3), dtype=np.uint8),
            loss_weight=np.where(supervised, supervised.sum() ** -0.5, 0).astype(np.float32),
        )
        made.append(example)
    return made


def step(model: Any, batch: dict[str, Any], total: float) -> tuple[float, Gradients]:
    """Loss and gradients, normalised by the weight of the whole step."""
    model.zero_grad()
    loss = model(**batch, num_items_in_batch=total).loss
    loss.backward()
    return loss.item(), {n: p.grad.double().clone() for n, p in model.named_parameters()}


def separately(model: Any, examples: list[Example], total: float) -> tuple[float, Gradients]:
    """The same, each sample alone, summed."""
    losses, gradients = zip(*(step(model, collate([e]), total) for e in examples), strict=True)
    return sum(losses), {name: sum(each[name] for each in gradients) for name in gradients[0]}


def distance(found: Gradients, expected: Gradients) -> float:
    """|found - expected| / |expected|, Euclidean, over all parameters."""
    parts = [(found[name] - expected[name]).norm() for name in expected]
    return float(
        torch.stack(parts).norm() / torch.stack([g.norm() for g in expected.values()]).norm()
    )


@pytest.mark.parametrize(
    ("name", "attention"),
    [(name, kind) for name in MODELS[:3] for kind in ("eager", "sdpa")]
    + [("demo", "sdpa"), pytest.param("demo", "eager", marks=pytest.mark.slow)],
)
def test_packed_losses_and_gradients_are_sums_of_separate_ones(name, attention):
    tuned = model(name, attention)
    examples = samples(tuned)
    total = sum(float(example.loss_weight.sum()) for example in examples)
    loss, gradients = separately(tuned, examples, total)
    for rows in ([4], [1, 3]):  # one pack; two of unequal length, padded
        found, packed = step(tuned, collate(examples, rows=rows), total)
        assert found == pytest.approx(loss, rel=1e-6)  # 1.5e-7
        # 2.5e-6: what float32 rounds, see the next test.
        assert distance(packed, gradients) < 5e-6
    # The comparison can fail: without positions the samples see each other.
    batch = collate(examples)
    del batch["position_ids"]
    found, packed = step(tuned, batch, total)
    assert abs(found - loss) > 1e-3 * loss  # 1e-2
    assert distance(packed, gradients) > 0.1  # 0.5


@pytest.mark.parametrize("name", MODELS[:3])
def test_packed_gradients_are_exact_in_float64(name):
    # Through sdpa, where nothing is computed in less; eager attention has a float32 softmax.
    tuned = model(name, "sdpa", torch.float64)
    examples = samples(tuned)
    total = sum(float(example.loss_weight.sum()) for example in examples)
    _, gradients = separately(tuned, examples, total)
    for rows in ([4], [1, 3]):
        _, packed = step(tuned, collate(examples, rows=rows), total)
        assert distance(packed, gradients) < 1e-12  # 3.2e-16


def test_checkpointed_layers_keep_samples_apart(attention):
    for name in ("qwen2", "internlm2"):
        tuned = model(name, attention)
        examples = samples(tuned)
        expected = step(tuned, collate(examples), 1.0)
        tuned.gradient_checkpointing_enable({"use_reentrant": False})
        try:
            assert any(getattr(m, "gradient_checkpointing", False) for m in tuned.modules())
            found = step(tuned, collate(examples), 1.0)
        finally:
            tuned.gradient_checkpointing_disable()
        assert found[0] == pytest.approx(expected[0], rel=1e-6)
        assert distance(found[1], expected[1]) < 1e-6


@torch.no_grad()
def test_a_long_sample_does_not_stretch_the_positions_of_others(monkeypatch):
    # Dynamic NTK of InternLM2: the base of the rotary embedding follows the length of the sample.
    tuned = model("internlm2", "sdpa")
    monkeypatch.setattr(tuned.config.llm_config, "max_position_embeddings", 7)
    examples = samples(tuned)
    separate = [tuned(**collate([example])).logits for example in examples]
    packed = tuned(**collate(examples)).logits
    torch.testing.assert_close(packed, torch.cat(separate, dim=1), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_padding_of_a_row_changes_nothing(name):
    tuned = model(name, "sdpa")
    examples = samples(tuned)
    batches = [collate(examples, rows=[1, 3], pad_id=pad) for pad in (0, 17)]
    short = examples[0].tokens
    with torch.no_grad():
        first, second = (tuned(**batch) for batch in batches)
    assert torch.equal(first.logits[0, :short], second.logits[0, :short])
    assert torch.equal(first.logits[1], second.logits[1])
    assert not torch.equal(first.logits[0, short:], second.logits[0, short:])
    assert torch.equal(first.loss, second.loss)


@pytest.mark.parametrize("name", MODELS)
def test_a_pack_without_images_gives_the_vision_part_gradients_of_zero(name):
    tuned = model(name, "sdpa")
    examples = samples(tuned, ((9, 0), (5, 0)))
    batch = collate(examples)
    tuned.zero_grad()
    loss = tuned(**batch).loss
    loss.backward()
    for parameter_name, parameter in tuned.named_parameters():
        assert parameter.grad is not None, parameter_name
        if parameter_name.startswith(("vision_model.", "mlp1.")):
            assert not parameter.grad.any(), parameter_name
    del batch["pixel_values"], batch["image_flags"]
    assert loss.item() == tuned(**batch).loss.item()
    assert any(p.grad.any() for p in tuned.language_model.parameters())


@pytest.mark.slow  # compiles for a minute
@pytest.mark.parametrize("name", MODELS)
def test_flex_attention_keeps_samples_apart(name):
    # The forward pass alone: flex attention has no backward pass on a CPU.
    torch.compiler.reset()  # else the models before this one count for the limit of recompilations
    tuned = model(name, "flex_attention")
    examples = samples(tuned)
    with torch.no_grad():
        packed = tuned(**collate(examples)).logits
        separate = [tuned(**collate([example])).logits for example in examples]
        positions = collate(examples).pop("position_ids")
        batch = {**collate(examples), "position_ids": torch.arange(positions.shape[1])[None]}
        joined = tuned(**batch).logits
    expected = torch.cat(separate, dim=1)
    worst = float((packed - expected).abs().max() / expected.abs().max())
    assert worst < 1e-5
    assert float((joined - expected).abs().max() / expected.abs().max()) > 1e-2


# ---------------------------------------------------------------------- what would join them
def masks(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Masks (1, 1, T, T): causal, and causal within each sample."""
    sample = (batch["position_ids"] == 0).cumsum(-1)[0]
    T = len(sample)
    causal = torch.ones(T, T, dtype=torch.bool).tril()
    within = causal & (sample[:, None] == sample[None])
    return {"causal": causal[None, None], "within": within[None, None]}


def additive(mask: torch.Tensor) -> torch.Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)


def used_cache(model: Any) -> DynamicCache:
    cache = DynamicCache(config=model.config.llm_config)
    model(input_ids=torch.tensor([[5, 6, 7]]), past_key_values=cache, use_cache=True)
    return cache


@pytest.mark.parametrize("name", MODELS[:3])
@torch.no_grad()
def test_masks_that_allow_it_leave_samples_apart(name, attention):
    tuned = model(name, attention)
    batch = collate(samples(tuned))
    expected = tuned(**batch).logits
    ones = torch.ones_like(batch["input_ids"])
    given = [ones, ones.bool(), masks(batch)["within"], additive(masks(batch)["within"])]
    for mask in given if attention == "sdpa" else [given[0], given[1], given[3]]:
        torch.testing.assert_close(
            tuned(**batch, attention_mask=mask).logits, expected, rtol=1e-5, atol=1e-4
        )
    later = {**batch, "position_ids": batch["position_ids"] + 1}  # restart at 1
    torch.testing.assert_close(
        tuned(**later, attention_mask=ones).logits, expected, rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m, b: {"use_cache": True}, "use_cache=True"),
        (lambda m, b: {"attention_mask": torch.ones_like(b["input_ids"]), "use_cache": True}, "ca"),
        (lambda m, b: {"position_ids": b["position_ids"] + 1, "use_cache": True}, "use_cache=True"),
        (lambda m, b: {"past_key_values": DynamicCache()}, "past_key_values"),
        (
            lambda m, b: {
                "past_key_values": DynamicCache(),
                "attention_mask": torch.ones_like(b["input_ids"]),
            },
            "past_key_values",
        ),
        (lambda m, b: {"past_key_values": used_cache(m)}, "past_key_values"),
        (lambda m, b: {"attention_mask": masks(b)["causal"]}, "lets one sample see another"),
        (lambda m, b: {"attention_mask": additive(masks(b)["causal"])}, "lets one sample see"),
        (lambda m, b: {"attention_mask": torch.ones_like(masks(b)["causal"])}, "lets one sample"),
        (lambda m, b: {"position_ids": None}, "cu_seq_lens_q was given without position_ids"),
    ],
    ids=[
        *("cache", "mask and cache", "positions from 1", "empty cache", "mask, empty cache"),
        *("used cache", "causal mask", "additive mask", "mask of ones", "no positions"),
    ],
)
def test_settings_that_would_join_samples_raise(spoil, message):
    for name in ("qwen2", "internlm2"):
        tuned = model(name, "sdpa")
        batch = collate(samples(tuned), flash=True)
        with torch.no_grad(), pytest.raises(ValueError, match=message):
            tuned(**{**batch, **spoil(tuned, batch)})


@torch.no_grad()
def test_the_backbone_refuses_them_too():
    tuned = model("qwen2", "sdpa")
    batch = collate(samples(tuned))
    inputs = {name: batch[name] for name in ("input_ids", "position_ids", "pixel_values")}
    for spoiled in ({"use_cache": True}, {"past_key_values": DynamicCache()}):
        with pytest.raises(ValueError, match="packed samples"):
            tuned.base_model(**inputs, **spoiled)


def test_flash_attention_wants_the_borders_of_several_rows():
    # transformers looks for samples in the positions of one row only. To refuse needs no kernel.
    isolate = hub.ring0("functional_internvl_chat").isolate_packed_rows
    batch = collate(samples(model("qwen2", "sdpa")), rows=[2, 2], flash=True)
    positions, borders = batch["position_ids"], batch["cu_seq_lens_q"]
    for attention in ("flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2"):
        for use_cache in (None, False):
            with pytest.raises(ValueError, match="packed samples of 2 rows apart"):
                isolate(None, positions, use_cache, attention=attention)
        assert isolate(None, positions, None, borders=borders, attention=attention) == (None, False)
        assert isolate(None, positions[:1], None, attention=attention) == (None, False)
        straight = torch.arange(6).expand(2, 6)
        assert isolate(None, straight, None, attention=attention) == (None, False)
    assert isolate(None, positions, None, attention="sdpa") == (None, False)


@torch.no_grad()
def test_what_is_not_packed_keeps_its_mask_and_cache():
    tuned = model("qwen2", "sdpa")
    ids = torch.randint(3, 900, (2, 7))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    for padding in (0, 1):  # what stands in the places of padding, by version of transformers
        positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, padding)
        output = tuned(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True)
        assert output.past_key_values.get_seq_length() == 7
        alone = tuned(input_ids=ids[:1, 2:]).logits
        torch.testing.assert_close(output.logits[:1, 2:], alone, rtol=1e-4, atol=1e-4)
        cache = DynamicCache(config=tuned.config.llm_config)
        filled = tuned(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache
        )
        torch.testing.assert_close(filled.logits, output.logits)


@torch.no_grad()
def test_a_mask_of_blocks_passes():
    # Only flex attention takes it, and has to be given it unread.
    isolate = hub.ring0("functional_internvl_chat").isolate_packed_rows
    positions = torch.tensor([[0, 1, 0, 1]])
    mask = create_block_mask(lambda b, h, q, k: q >= k, 1, None, 4, 4, device="cpu")
    assert isolate(mask, positions, False) == (mask, False)
