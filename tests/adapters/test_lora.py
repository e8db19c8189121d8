"""LoRA: which layers, training, saving, loading in a new process, merging, switching."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from internvl import hub
from internvl.checkpoints.adapters import lora_config, target_pattern
from internvl.checkpoints.export import export
from tests import support
from tests.adapters.training import FAMILIES, batch, logits, source, train

peft = pytest.importorskip("peft")

LLM_LAYERS = {
    "qwen2": """self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj
        mlp.gate_proj mlp.up_proj mlp.down_proj""",
    "internlm2": """attention.wqkv attention.wo feed_forward.w1 feed_forward.w2
        feed_forward.w3""",
    "phi3": "self_attn.qkv_proj self_attn.o_proj mlp.gate_up_proj mlp.down_proj",
}
LLM_LAYERS["llama"] = LLM_LAYERS["demo"] = LLM_LAYERS["qwen2"]
VISION_LAYERS = "attn.qkv attn.proj mlp.fc1 mlp.fc2"


def layers_of(config, part, family):
    """The layers that the official code wraps, written out."""
    names = set()
    if part != "vision":
        names |= {
            f"language_model.model.layers.{i}.{name}"
            for i in range(config.llm_config.num_hidden_layers)
            for name in LLM_LAYERS[family].split()
        }
    if part != "llm":
        names |= {
            f"vision_model.encoder.layers.{i}.{name}"
            for i in range(config.vision_config.num_hidden_layers)
            for name in VISION_LAYERS.split()
        }
    return names


@pytest.mark.parametrize("family", [*FAMILIES, "demo"])
def test_the_layers_of_each_part_and_no_others(family, tmp_path):
    model = hub.load(source(family, tmp_path), dtype="float32").model
    for part in ("llm", "vision", "both"):
        tuned = peft.get_peft_model(model, lora_config(model.config, part, rank=3))
        wrapped = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, peft.tuners.lora.LoraLayer)
        }
        assert set(wrapped) == layers_of(model.config, part, family)
        for module in wrapped.values():
            assert (module.r["default"], module.scaling["default"]) == (3, 2.0)
            assert module.lora_dropout["default"].p == 0.05
        trained = {n for n, parameter in tuned.named_parameters() if parameter.requires_grad}
        assert len(trained) == 2 * len(wrapped)
        assert all(".lora_" in name for name in trained)
        model = tuned.unload()


def test_settings():
    config = hub.prepare().config
    settings = lora_config(config)
    assert (settings.r, settings.lora_alpha, settings.lora_dropout) == (16, 32, 0.05)
    assert settings.modules_to_save is None
    other = lora_config(
        config, "both", 8, alpha=4, dropout=0.0, train_mlp1=True, modules_to_save=["x"], bias="all"
    )
    assert (other.r, other.lora_alpha, other.lora_dropout, other.bias) == (8, 4, 0.0, "all")
    assert set(other.modules_to_save) == {"mlp1", "x"}
    assert lora_config(config, target_modules=["q_proj"]).target_modules == {"q_proj"}
    with pytest.raises(ValueError, match="part is 'vit', expected one of"):
        lora_config(config, "vit")
    with pytest.raises(ValueError, match="rank is 0"):
        lora_config(config, rank=0)
    config.llm_config.model_type = "mamba"
    with pytest.raises(ValueError, match="no LoRA preset for the language model 'mamba'"):
        lora_config(config)


def difference(found, expected):
    """Greatest difference, as a share of the greatest logit (8 to 30)."""
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.fixture(scope="module", params=["qwen2", "internlm2", "phi3", "demo"])
def trained(request, tmp_path_factory):
    """A model trained for some steps with LoRA in all of it, its adapter, and its logits."""
    torch.manual_seed(0)
    tmp_path = tmp_path_factory.mktemp(request.param)
    loaded = hub.load(source(request.param, tmp_path), dtype="float32")
    inputs = batch(loaded)
    plain = logits(loaded.model, inputs)
    tuned = peft.get_peft_model(loaded.model, lora_config(loaded.model.config, "both", rank=4))
    assert torch.equal(logits(tuned.eval(), inputs), plain)  # B begins at 0
    losses = train(tuned, inputs)
    assert losses[-1] < losses[0]
    after = logits(tuned, inputs)
    assert (after - plain).abs().max() > 0.01
    tuned.save_pretrained(tmp_path / "adapter")
    return request.param, tmp_path, inputs, plain, after, tuned


def test_train_save_load_merge(trained):
    family, folder, inputs, plain, after, _ = trained
    again = hub.load(source(family, folder), dtype="float32", adapter=folder / "adapter").model
    assert torch.equal(logits(again, inputs), after)
    with again.disable_adapter():
        assert torch.equal(logits(again, inputs), plain)
    merged = again.merge_and_unload()
    assert difference(logits(merged, inputs), after) < 1e-5  # worst found: 3.3e-6
    export(
        source(family, folder), folder / "out", merge_adapter=folder / "adapter", dtype="float32"
    )
    assert torch.equal(logits(hub.load(folder / "out").model, inputs), logits(merged, inputs))


def test_merging_is_exact_but_for_rounding(trained):
    family, folder, inputs, *_ = trained
    model = hub.load(source(family, folder), dtype="float32", adapter=folder / "adapter").model
    model.double()
    inputs = {**inputs, "pixel_values": inputs["pixel_values"].double()}
    expected = logits(model, inputs)
    assert (logits(model.merge_and_unload(), inputs) - expected).abs().max() < 1e-9


def test_gradients_reach_every_factor(trained):
    *_, inputs, _, _, tuned = trained
    tuned.zero_grad()
    tuned.train()
    tuned(**inputs).loss.backward()
    without = [n for n, p in tuned.named_parameters() if p.requires_grad and not p.grad.any()]
    assert not without


def test_gradient_checkpointing_changes_no_gradient():
    loaded = hub.load(dtype="float32")
    inputs = batch(loaded)
    settings = lora_config(loaded.model.config, "both", rank=2, dropout=0.0)
    tuned = peft.get_peft_model(loaded.model, settings).train()

    def gradients():
        tuned.zero_grad()
        tuned(**inputs).loss.backward()
        return {n: p.grad.clone() for n, p in tuned.named_parameters() if p.requires_grad}

    expected = gradients()
    calls = []
    layer = loaded.model.language_model.model.layers[0].self_attn.q_proj
    layer.register_forward_hook(lambda *_: calls.append(1))
    # The default of 4.57, reentrant, would leave the vision encoder without gradients.
    tuned.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    tuned.enable_input_require_grads()
    found = gradients()
    assert len(calls) == 2  # forward, and again on the way back
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7, msg=name)


def test_the_projector_is_trained_whole_when_asked(tmp_path):
    loaded = hub.load(support.checkpoint("qwen2"), dtype="float32")
    inputs = batch(loaded)
    settings = lora_config(loaded.model.config, "llm", rank=2, train_mlp1=True)
    tuned = peft.get_peft_model(loaded.model, settings)
    before = loaded.model.mlp1.original_module[1].weight.clone()
    train(tuned, inputs)
    after = logits(tuned, inputs)
    tuned.save_pretrained(tmp_path / "adapter")
    again = hub.load(
        support.checkpoint("qwen2"), dtype="float32", adapter=tmp_path / "adapter"
    ).model
    assert torch.equal(logits(again, inputs), after)
    merged = again.merge_and_unload()
    assert not torch.equal(merged.mlp1[1].weight, before)
    assert difference(logits(merged, inputs), after) < 1e-5


def test_several_adapters_are_switched(tmp_path):
    expected = {}
    loaded = hub.load(support.checkpoint("phi3"), dtype="float32")
    inputs = batch(loaded)
    for name, part in (("first", "llm"), ("second", "vision")):
        base = hub.load(support.checkpoint("phi3"), dtype="float32").model
        tuned = peft.get_peft_model(
            base, lora_config(base.config, part, rank=2, init_lora_weights=False)
        ).eval()
        expected[name] = logits(tuned, inputs)
        tuned.save_pretrained(tmp_path / name)
    model = hub.load(support.checkpoint("phi3"), dtype="float32", adapter=tmp_path / "first").model
    model.load_adapter(tmp_path / "second", adapter_name="second")
    for name, adapter in (("second", "second"), ("first", "default"), ("second", "second")):
        model.set_adapter(adapter)
        assert torch.equal(logits(model, inputs), expected[name]), name
    assert not torch.equal(expected["first"], expected["second"])


@pytest.mark.parametrize("family", FAMILIES)
def test_names_that_vllm_expects(family, tmp_path):
    """The manifest lists, per family, what vLLM's loader accepts for the layers of the decoder."""
    model = hub.load(source(family, tmp_path / "source"), dtype="float32").model
    tuned = peft.get_peft_model(model, lora_config(model.config, "llm", rank=2))
    tuned.save_pretrained(tmp_path / "adapter")
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "pt") as file:
        found = set(file.keys())
    manifest = json.loads((Path(__file__).parent / "vllm_names.json").read_text("utf-8"))
    layers = range(model.config.llm_config.num_hidden_layers)
    assert found == {name.replace("{N}", str(i)) for name in manifest[family] for i in layers}
    # Older releases read the names of the layers off the end of the pattern.
    pattern = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text("utf-8"))
    names = re.search(r"\((.*?)\)\$?$", pattern["target_modules"])[1].split("|")
    assert {f".{name}.lora_" for name in names} == {
        re.search(r"\.\w+\.lora_", name)[0] for name in found
    }
    assert pattern["modules_to_save"] is None
    assert not re.fullmatch(target_pattern(model.config), "vision_model.encoder.layers.0.mlp.fc1")


FRESH = """
import json, sys, torch, transformers
from peft import AutoPeftModelForCausalLM
folder, inputs = sys.argv[1], torch.load(sys.argv[2])
for auto in (transformers.AutoModel, AutoPeftModelForCausalLM):
    model = auto.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(**inputs).logits[inputs["attention_mask"] == 1]
    torch.save(logits, f"{folder}/{auto.__name__}.pt")
"""


def test_automodel_loads_an_adapter_folder_in_a_new_process(tmp_path):
    """From a self-contained base: the demo, whose code stands one folder up, is exported first."""
    export(None, tmp_path / "base", dtype="float32")
    loaded = hub.load(tmp_path / "base")
    inputs = batch(loaded)
    tuned = peft.get_peft_model(loaded.model, lora_config(loaded.model.config, "both", rank=2))
    train(tuned, inputs, steps=2)
    after = logits(tuned, inputs)
    tuned.save_pretrained(tmp_path / "adapter")
    inputs = {key: value for key, value in inputs.items() if key != "labels"}
    torch.save(inputs, tmp_path / "inputs.pt")
    result = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path / "adapter"), str(tmp_path / "inputs.pt")],
        env={
            **{key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": str(tmp_path / "modules"),
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    for name in ("AutoModel", "AutoPeftModelForCausalLM"):
        assert torch.equal(torch.load(tmp_path / "adapter" / f"{name}.pt"), after), name
