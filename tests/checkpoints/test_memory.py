"""Predicted bytes against counted ones: weights exactly, activations within ten per cent."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers

from internvl import hub
from internvl.checkpoints import memory
from internvl.checkpoints.memory import Workload
from tests import support
from tests.checkpoints.alive import Alive

ARCHITECTURES = {
    "qwen2": "Qwen2ForCausalLM",
    "llama": "LlamaForCausalLM",
    "internlm2": "InternLM2ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}
MEASURED = ("qwen2", "internlm2", "phi3")  # a Llama computes as a Qwen2
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
TOLERANCE = 0.1


def model(family="qwen2", dtype=torch.float32, *, vision=None, large=False, **llm):
    """A model with random weights; its config can be changed."""
    fields = support.load("qwen2").config.to_dict()
    fields["vision_config"] |= {"num_hidden_layers": 2, **(vision or {})}
    if large:
        fields["vision_config"] |= {
            "norm_type": "rms_norm",
            "qk_normalization": True,
            "qkv_bias": False,
        }
    fields["llm_config"] = {
        "model_type": family,
        "architectures": [ARCHITECTURES[family]],
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 128,
        "max_position_embeddings": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        **({"bias": False} if family == "internlm2" else {}),
        **llm,
    }
    fields["img_context_token_id"] = 100
    fields = {k: v for k, v in fields.items() if k not in ("torch_dtype", "dtype")}
    config = hub.build_config(fields)
    built = support.modeling.InternVLChatModel(copy.deepcopy(config))
    return built.to(dtype).eval()


def close(predicted: float, counted: float) -> None:
    assert counted > 0
    assert predicted == pytest.approx(counted, rel=TOLERANCE)


# ---------------------------------------------------------------------- weights and cache
@pytest.mark.parametrize("family", ARCHITECTURES)
@pytest.mark.parametrize("dtype", NAMES, ids=NAMES.values())
def test_weights_and_cache_are_exact(family, dtype):
    built = model(family, dtype)
    parts = memory.parts(built.config, NAMES[dtype])
    assert parts.total == sum(p.nbytes for p in built.parameters())
    assert parts.vision == sum(p.nbytes for p in built.vision_model.parameters())
    layers = built.get_submodule(parts.names[1])
    assert parts.layers == tuple(sum(p.nbytes for p in layer.parameters()) for layer in layers)
    for name, size in zip(
        (parts.names[0], *parts.names[2:]), (parts.embeddings, parts.norm, parts.head), strict=True
    ):
        assert size == sum(p.nbytes for p in built.get_submodule(name).parameters())
    with torch.no_grad():
        cache = built(input_ids=torch.full((2, 33), 5), use_cache=True).past_key_values
    counted = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert memory.kv_cache(built.config, Workload(2, 33), NAMES[dtype]) == counted


def test_tied_heads_are_counted_once():
    demo = hub.load().model
    assert memory.parts(demo.config).total == sum(p.nbytes for p in demo.parameters())
    assert memory.parts(demo.config).head == 0


def test_quantised_weights():
    assert memory.stored_bytes((10, 256), "int8") == 10 * 256 + 10 * 4
    assert memory.stored_bytes((10, 256), "int4") == 10 * 128 + 40 + 4
    assert memory.stored_bytes((10,), "int4") == 20
    config = support.load("phi3").config
    bf16, int8, int4 = (memory.parts(config, dtype) for dtype in ("bf16", "int8", "int4"))
    assert (bf16.vision, bf16.head, bf16.embeddings) == (int8.vision, int4.head, int8.embeddings)
    assert bf16.layers[0] > int8.layers[0] > int4.layers[0] > bf16.layers[0] / 4
    with pytest.raises(ValueError, match="dtype is 'fp8'"):
        memory.parts(config, "fp8")


# ---------------------------------------------------------------------- activations
@pytest.mark.parametrize("dtype", NAMES, ids=NAMES.values())
@pytest.mark.parametrize("large", [False, True], ids=["300M style", "6B style"])
@pytest.mark.parametrize("width", [64, 128, 256], ids="F={}".format)
@pytest.mark.parametrize(("tiles", "step"), [(4, 4), (8, 2)], ids=["at once", "in steps"])
@torch.no_grad()
def test_vision(dtype, large, width, tiles, step):
    built = model(dtype=dtype, large=large, vision={"intermediate_size": width})
    side = built.config.tile_size
    pixels = torch.randn(tiles, 3, side, side).to(dtype)
    with Alive() as alive:
        built.extract_feature(pixels, vit_batch_size=step)
    work = Workload(1, 0, tiles)
    close(
        memory.vision_activations(built.config, work, NAMES[dtype], vit_batch_size=step),
        alive.peak + pixels.nbytes,
    )


@pytest.mark.parametrize("family", MEASURED)
@pytest.mark.parametrize("dtype", NAMES, ids=NAMES.values())
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"intermediate_size": 128},
        {"hidden_size": 128, "num_attention_heads": 8, "num_hidden_layers": 2},
    ],
    ids=["F=4D", "F=2D", "F=2D wide"],
)
@pytest.mark.parametrize("batch", [1, 2])
@torch.no_grad()
def test_prefill(family, dtype, shape, batch):
    built = model(family, dtype, **shape)
    T = 256
    ids = torch.full((batch, T), 7)
    mask = torch.ones_like(ids)
    mask[0, : (batch - 1) * 9] = 0
    with Alive() as alive:
        built(input_ids=ids, attention_mask=mask, use_cache=True, logits_to_keep=1)
    work, name = Workload(batch, T), NAMES[dtype]
    predicted = memory.decoder_activations(built.config, work, name)
    close(predicted + memory.kv_cache(built.config, work, name), alive.peak)


# ---------------------------------------------------------------------- training
def step(built, ids, **images) -> tuple[int, int]:
    """Bytes alive at the worst moment of a step, and those of the gradients."""
    built.requires_grad_(True).train()
    built.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with Alive() as alive:
        built(input_ids=ids, labels=ids, use_cache=False, **images).loss.backward()
    return alive.peak, sum(p.grad.nbytes for p in built.parameters() if p.grad is not None)


@pytest.mark.skipif(
    transformers.__version__.startswith("4."),
    reason="4.57 keeps a mask of T x T in training where 5.x needs none; plans are for 5.x",
)
@pytest.mark.parametrize("family", MEASURED)
@pytest.mark.parametrize("dtype", NAMES, ids=NAMES.values())
@pytest.mark.parametrize("vocabulary", [128, 2048], ids="V={}".format)
def test_training_on_text(family, dtype, vocabulary):
    built = model(family, dtype, vocab_size=vocabulary)
    T = 1024
    peak, _ = step(built, torch.full((1, T), 7))
    predicted = memory.training(built.config, Workload(1, T), "stage2", NAMES[dtype])
    close(predicted.activations, peak)


@pytest.mark.parametrize("dtype", NAMES, ids=NAMES.values())
@pytest.mark.parametrize("large", [False, True], ids=["300M style", "6B style"])
def test_training_on_images(dtype, large):
    built = model(dtype=dtype, large=large)
    tiles, side, per_tile = 24, built.config.tile_size, built.num_image_token
    ids = torch.full((1, tiles * per_tile + 8), 100)
    ids[0, -8:] = 7
    pixels = torch.randn(tiles, 3, side, side).to(dtype)
    peak, gradients = step(built, ids, pixel_values=pixels)
    predicted = memory.training(
        built.config, Workload(1, ids.shape[1], tiles), "stage2", NAMES[dtype]
    )
    assert predicted.gradients == gradients == sum(p.nbytes for p in built.parameters())
    close(predicted.activations, peak + pixels.nbytes)


@pytest.mark.parametrize("stage", memory.TRAINED)
def test_gradients_and_optimizer(stage):
    built = model()
    prefixes = {"mlp1": "mlp1", "vision": "vision_model", "llm": "language_model"}
    chosen = tuple(prefixes[part] for part in memory.TRAINED[stage])
    for name, parameter in built.named_parameters():
        parameter.requires_grad_(name.startswith(chosen))
    side, per_tile = built.config.tile_size, built.num_image_token
    ids = torch.full((1, per_tile + 4), 100)
    ids[0, -4:] = 7
    built.train()(
        input_ids=ids, labels=ids, pixel_values=torch.randn(1, 3, side, side)
    ).loss.backward()
    trained = [p for p in built.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    optimizer.step()
    states = optimizer.state.values()
    moments = sum(state["exp_avg"].nbytes + state["exp_avg_sq"].nbytes for state in states)
    predicted = memory.training(built.config, Workload(1, 8, 1), stage, "fp32")
    assert predicted.trained == sum(p.numel() for p in trained)
    assert predicted.gradients == sum(p.grad.nbytes for p in trained)
    assert predicted.optimizer == moments
    half = memory.training(built.config, Workload(1, 8, 1), stage, "bf16")
    assert half.optimizer == moments + 4 * half.trained  # float32 weights to update


def test_what_is_not_trained():
    config = support.load("qwen2").config
    with pytest.raises(ValueError, match="train is 'stage9'"):
        memory.training(config, Workload(), "stage9")
    with pytest.raises(ValueError, match="int4 are not trained"):
        memory.training(config, Workload(), "stage2", "int4")


@pytest.mark.parametrize(("dtype", "recipe"), [("int8", "bnb-int8"), ("int4", "bnb-nf4")])
def test_quantised_weights_are_those_of_bitsandbytes(dtype, recipe):
    pytest.importorskip("bitsandbytes")
    from internvl.checkpoints.quantization import stored_bytes

    built = hub.load(dtype="bfloat16", quantization=recipe).model
    assert memory.parts(built.config, dtype).total == pytest.approx(stored_bytes(built), rel=0.01)
