"""Packed and int8 linear layers: the numbers they give, what they leave alone, what they refuse."""

from __future__ import annotations

import gc
import json
import weakref

import pytest
import torch
from torch import nn

from internvl import demo, hub
from internvl.chat import linears
from internvl.chat.linears import (
    BLOCK,
    KERNEL_ROWS,
    Int8Linear,
    PackedLinear,
    pack_linears,
    quantize_int8,
)
from tests import support

packing = pytest.mark.skipif(
    not linears.supported(), reason="this CPU has no bfloat16 layers in oneDNN"
)
EITHER = [
    pytest.param(pack_linears, id="packed", marks=packing),
    pytest.param(quantize_int8, id="int8"),
]
DECODERS = ("qwen2", "internlm2", "phi3")


def prompt() -> torch.Tensor:
    return torch.arange(3, 43)[None]


def logits(model) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=prompt()).logits.double()


def difference(first, second) -> float:
    return float((first - second).norm() / second.norm())


def layer(bias: bool = True, shape: tuple[int, int] = (256, 96)) -> nn.Linear:
    return nn.Linear(shape[1], shape[0], bias=bias, dtype=torch.bfloat16).eval()


def layers(model, kind: type) -> list[str]:
    return [name for name, module in model.named_modules() if type(module) is kind]


# ---------------------------------------------------------------------- packed
@packing
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(96,), (1, 1, 96), (2, 5, 96), (1, 0, 96)])
def test_packed_layer_is_as_near_to_the_product_as_the_plain_one(bias, shape):
    linear, x = layer(bias), torch.randn(shape).bfloat16()
    packed = PackedLinear(linear, shared=False)
    with torch.inference_mode():
        out, plain = packed(x), linear(x)
        exact = linear.double()(x.double())
    assert out.shape == plain.shape
    assert out.dtype == torch.bfloat16
    if x.numel():  # half a step of bfloat16 is 2e-3; the sums stay in float32
        assert difference(out.double(), exact) < 3e-3


@packing
@pytest.mark.parametrize("name", DECODERS)
def test_packed_logits_differ_by_rounding_only(name):
    model = support.load(name, dtype=torch.bfloat16)
    plain = logits(model)
    linear = layers(model.language_model, nn.Linear)
    outside = len(layers(model, nn.Linear)) - len(linear)
    with pack_linears(model) as packed:
        assert difference(logits(model), plain) < 0.02  # bfloat16 itself: 1e-2 from float32
        assert len(packed) == len(linear) == len(layers(model, PackedLinear))
        assert len(layers(model, nn.Linear)) == outside  # vision encoder and projector
    assert torch.equal(logits(model), plain)


@packing
def test_undo_brings_back_the_same_objects_with_the_same_bits():
    model = support.load("qwen2", dtype=torch.bfloat16)
    modules = dict(model.named_modules())
    parameters = dict(model.named_parameters())
    values = {name: value.clone() for name, value in model.state_dict().items()}

    class Interrupted(Exception):
        pass

    with pytest.raises(Interrupted), torch.inference_mode(), pack_linears(model) as packed:
        raise Interrupted
    packed.undo()  # nothing is left to do
    assert dict(model.named_modules()).keys() == modules.keys()
    assert all(model.get_submodule(name) is module for name, module in modules.items())
    assert all(model.get_parameter(name) is value for name, value in parameters.items())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in values.items())
    assert not any(parameter.is_inference() for parameter in model.parameters())


@packing
@pytest.mark.parametrize("tied", [False, True])
def test_packing_lets_go_of_the_plain_weights_and_tells_what_it_costs(tied):
    model = hub.load().model if tied else support.load("qwen2", dtype=torch.bfloat16)
    head = model.get_output_embeddings()
    embedding = model.get_input_embeddings().weight
    assert (head.weight is embedding) == tied
    linear = model.language_model.model.layers[0].mlp.up_proj
    packed = pack_linears(model)
    assert packed.extra_bytes == (embedding.nbytes if tied else 0)
    assert linear.weight.numel() == 0
    assert model.get_input_embeddings().weight.numel() == embedding.numel() > 0
    packed.undo()
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied


@packing
def test_checkpoint_saved_while_packed_has_the_plain_weights(tmp_path):
    model = hub.load().model  # its output layer is tied
    values = {name: value.clone() for name, value in model.state_dict().items()}
    with pack_linears(model):
        packed = model.state_dict()
        model.save_pretrained(tmp_path)
    saved = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16).state_dict()
    assert packed.keys() == saved.keys() == values.keys()
    for name, value in values.items():
        assert torch.equal(packed[name], value), name
        assert torch.equal(saved[name], value), name


@packing
def test_packed_layers_stay_out_of_compiled_graphs():
    packed, x = PackedLinear(layer(), shared=False), torch.randn(1, 96).bfloat16()
    operations = []

    def backend(graph, inputs):
        operations.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    def twice(x):
        return packed(x * 2) * 2

    with torch.inference_mode():
        assert torch.equal(torch.compile(twice, backend=backend)(x), twice(x))
    assert not [name for name in operations if "mkldnn" in name]  # inductor cannot lower it


@packing
def test_undo_refuses_to_throw_away_what_others_put_there():
    model = support.load("qwen2", dtype=torch.bfloat16)
    packed = pack_linears(model)
    model.language_model.lm_head = layer()
    with pytest.raises(ValueError, match="lm_head of Qwen2ForCausalLM is a Linear"):
        packed.undo()


def test_packing_says_when_the_cpu_cannot(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no bfloat16 layers in oneDNN"):
        pack_linears(support.load("qwen2", dtype=torch.bfloat16))


# ---------------------------------------------------------------------- int8
def quantized_layer(linear: nn.Linear) -> Int8Linear:
    return Int8Linear(linear, linears._scale("layer", linear.weight))


def test_int8_weights_are_the_nearest_multiples_of_the_scale():
    linear = layer(shape=(64, 48))
    with torch.no_grad():
        linear.weight[3] = 0
        linear.weight[5] *= 1000  # a scale of its own keeps a large row from hurting the others
    quantized = quantized_layer(linear)
    scale = quantized.scale[:, None].double()
    error = (quantized.quantized.double() * scale - linear.weight.double()).abs()
    assert quantized.quantized.dtype == torch.int8
    assert bool((error <= scale * 0.51).all())  # the largest weight may be 127.5 steps
    assert quantized.quantized.abs().amax(1).min() == 0  # the row of zeros, and only that
    assert (quantized.quantized.abs().amax(1) >= 126).sum() == 63


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("rows", [0, 1, KERNEL_ROWS, KERNEL_ROWS + 1], ids=str)
def test_int8_layer_multiplies_with_its_weights(dtype, rows, monkeypatch):
    monkeypatch.setattr(linears, "BLOCK", 96 * 100)  # three blocks, the last one short
    linear = layer().to(dtype)
    quantized, x = quantized_layer(linear), torch.randn(1, rows, 96, dtype=dtype)
    with torch.inference_mode():
        out = quantized(x)
        weight = quantized.quantized.double() * quantized.scale[:, None].double()
        exact = nn.functional.linear(x.double(), weight, linear.bias.double())
    assert out.shape == exact.shape
    assert out.dtype == dtype
    if rows:
        exact_rows = dtype == torch.float32 and rows > KERNEL_ROWS
        assert difference(out.double(), exact) < (1e-6 if exact_rows else 6e-3)


@pytest.mark.parametrize("units", [False, True])
def test_many_rows_are_the_same_with_and_without_bf16_units(units, monkeypatch):
    quantized, x = quantized_layer(layer()), torch.randn(40, 96).bfloat16()
    monkeypatch.setattr(linears, "has_bf16_units", lambda: units)
    with torch.inference_mode():
        many, one = quantized(x), torch.cat([quantized(row[None]) for row in x])
    assert difference(many.double(), one.double()) < 6e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("name", DECODERS)
def test_int8_changes_logits_a_little_and_nothing_else(name, dtype):
    model = support.load(name, dtype=dtype)
    plain, linear = logits(model), layers(model.language_model, nn.Linear)
    kept = {
        key: value.clone()
        for key, value in model.state_dict().items()
        if key.removeprefix("language_model.").removesuffix(".weight") not in linear
    }
    done = quantize_int8(model)
    assert 0 < difference(logits(model), plain) < 0.05
    assert done.layers == len(linear) == len(layers(model, Int8Linear))
    assert done.bytes_after < done.bytes_before / dtype.itemsize * 1.2
    left = dict(model.named_parameters())
    assert all(torch.equal(left[key], kept[key]) for key in kept if key in left)
    assert left.keys() <= kept.keys()
    assert any(key.startswith("vision_model.") for key in left)


def test_int8_frees_the_plain_weights_and_keeps_a_tied_embedding():
    model = hub.load().model
    embedding = model.get_input_embeddings().weight
    before = embedding.clone()
    plain = weakref.ref(model.language_model.model.layers[0].mlp.up_proj.weight)
    done = quantize_int8(model)
    gc.collect()
    assert plain() is None
    assert model.get_input_embeddings().weight is embedding
    assert torch.equal(embedding, before)
    assert done.tied_bytes == embedding.nbytes


def test_int8_answers_of_the_demo_are_right():
    loaded = hub.load()
    quantize_int8(loaded.model)
    entries = json.loads((demo.EXAMPLES / "questions.json").read_text("utf-8"))[:10]
    records = demo.run(loaded, entries=entries)
    assert sum(record["right"] for record in records) >= demo.ENOUGH * len(records)


@pytest.mark.parametrize("replace", EITHER)
def test_the_output_layer_can_stay(replace):
    model = support.load("qwen2", dtype=torch.bfloat16)
    head = model.get_output_embeddings()
    replace(model, head=False)
    assert model.get_output_embeddings() is head
    assert layers(model.language_model, nn.Linear) == ["lm_head"]


def test_int8_model_is_not_saved_as_if_it_were_the_checkpoint():
    model = support.load("qwen2")
    quantize_int8(model)
    with pytest.raises(ValueError, match="no checkpoint of this family stores"):
        model.state_dict()


def test_weights_that_are_not_finite_are_named_and_nothing_changes():
    model = support.load("qwen2")
    with torch.no_grad():
        model.language_model.lm_head.weight[4, 2] = float("nan")
    with pytest.raises(ValueError, match="lm_head has weights that are not finite"):
        quantize_int8(model)
    assert not layers(model, Int8Linear)


def test_blocks_cover_every_row_once():
    for shape in ((7, 3), (1, 2 * BLOCK), (5, BLOCK // 2)):
        weight = torch.empty(shape, device="meta")
        covered = [row for block in linears._blocks(weight) for row in range(shape[0])[block]]
        assert covered == list(range(shape[0]))


# ---------------------------------------------------------------------- refusals of both
def with_adapter(model):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["up_proj"])).eval()


def with_offload(model):
    accelerate = pytest.importorskip("accelerate")
    return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


def with_hook(model):
    model.language_model.lm_head.register_forward_hook(lambda *_: None)
    return model


def with_subclass(model):
    class Other(nn.Linear):
        pass

    model.language_model.lm_head = Other(4, 4, dtype=torch.bfloat16)
    return model


@pytest.mark.parametrize("replace", EITHER)
@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        pytest.param(lambda model: model.train(), "training mode", id="training"),
        pytest.param(lambda model: model.half(), "is torch.float16, expected", id="float16"),
        pytest.param(lambda model: model.to("meta"), "is on meta, expected the CPU", id="meta"),
        pytest.param(lambda model: model.vision_model, "no chat model", id="vision"),
        pytest.param(with_adapter, "merge_and_unload", id="adapter"),
        pytest.param(with_offload, "accelerate", id="offload"),
        pytest.param(with_hook, "lm_head has hooks", id="hook"),
        pytest.param(with_subclass, "lm_head is a Other", id="subclass"),
    ],
)
def test_what_cannot_be_replaced_is_refused_untouched(replace, change, complaint):
    model = change(support.load("qwen2", dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=complaint):
        replace(model)
    assert not layers(model, PackedLinear) + layers(model, Int8Linear)


@packing
def test_packing_refuses_float32():
    with pytest.raises(ValueError, match=r"is torch.float32, expected torch.bfloat16"):
        pack_linears(support.load("qwen2"))


@pytest.mark.parametrize("first", EITHER)
@pytest.mark.parametrize("second", EITHER)
def test_layers_are_replaced_once(first, second):
    model = support.load("qwen2", dtype=torch.bfloat16)
    first(model)
    with pytest.raises(ValueError, match=r"Linear already; first (call undo|load the model anew)"):
        second(model)


@pytest.mark.parametrize("replace", EITHER)
def test_replaced_layers_neither_train_nor_move_nor_load(replace):
    model = support.load("qwen2", dtype=torch.bfloat16)
    values = {name: value.clone() for name, value in model.state_dict().items()}
    replace(model)
    model.to("cpu")  # already there
    with pytest.raises(ValueError, match="wants a gradient"):
        model(input_ids=prompt())
    with pytest.raises(ValueError, match=r"told to become torch.float32"):
        model.language_model.float()
    with pytest.raises(ValueError, match="weights cannot be replaced"):
        model.load_state_dict(values)
    head = model.get_output_embeddings()
    with torch.inference_mode(), pytest.raises(ValueError, match=r"got torch.float32 on cpu"):
        head(torch.zeros(1, head.in_features))


@pytest.mark.parametrize("replace", EITHER)
def test_the_language_model_alone_will_do(replace):
    model = support.load("qwen2", dtype=torch.bfloat16)
    replace(model.language_model)
    ids = model.generate(input_ids=prompt(), max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert ids.shape == (1, prompt().shape[1] + 3)
