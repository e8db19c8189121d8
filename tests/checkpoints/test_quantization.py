"""Quantised loading: the recipes, what they leave alone, what they cost.

Everything runs on a CPU but torchao's int4, which has no kernel there: its configuration is tested.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModel, BitsAndBytesConfig, GPTQConfig, QuantoConfig

from internvl import hub
from internvl import quantization as recipes
from internvl.checkpoints import quantization as measured
from tests import support

placement = hub.ring0("placement_internvl_chat")
Model = support.modeling.InternVLChatModel
KEPT = ["vision_model", "mlp1", "language_model.lm_head", "language_model.output"]
RUNNABLE = [name for name, recipe in recipes.RECIPES.items() if not recipe.cuda]
QUESTIONS = 6
GREEDY = {"max_new_tokens": 4, "do_sample": False}
# Float32 demo: 25.1 MB, of which 11.8 MB are layers that a recipe shrinks to about 8 or 4 bits.
BYTES = {"bnb-int8": 16.4e6, "torchao-int8": 16.4e6, "bnb-nf4": 14.9e6}


def needs(name: str) -> None:
    """Skip where the package of a recipe is not installed."""
    package = recipes.RECIPES[name].package
    pytest.importorskip(package, reason=f"{package} is not installed (internvl[quant])")


@functools.cache
def plain() -> tuple[hub.Loaded, list[str], torch.Tensor]:
    """The demo as it is, its answers and its logits."""
    loaded = hub.load(dtype="float32")
    answers, logits = measured.answers_and_logits(loaded, measured.examples()[:QUESTIONS])
    return loaded, answers, torch.cat(logits)


def saves(quantizer: Any) -> bool:
    """Whether the quantiser can save: 4.57 wants to know the format, 5.x knows but one."""
    asked = "safe_serialization" in inspect.signature(quantizer.is_serializable).parameters
    return quantizer.is_serializable(**({"safe_serialization": True} if asked else {}))


def ids() -> torch.Tensor:
    return torch.randint(0, 200, (2, 12), generator=torch.Generator().manual_seed(0))


def linears(model: nn.Module, original: nn.Module) -> dict[str, bool]:
    """For every linear layer of the original model, whether it is quantised now."""
    modules = dict(model.named_modules())
    return {
        key: type(modules[key]) is not nn.Linear
        or type(modules[key].weight.data) is not torch.Tensor
        for key, module in original.named_modules()
        if isinstance(module, nn.Linear)
    }


def check_parts(model: nn.Module, original: nn.Module) -> None:
    """Check that all linear layers of the decoder are quantised, and those alone."""
    found = linears(model, original)
    assert found == {key: key.startswith("language_model.model.") for key in found}
    weights = model.state_dict()
    for key, weight in original.state_dict().items():
        if key.startswith(tuple(KEPT)):
            assert torch.equal(weights[key], weight), key


# ---------------------------------------------------------------------- the skip list
@pytest.mark.parametrize(
    ("config", "field"),
    [
        (BitsAndBytesConfig(load_in_8bit=True), "llm_int8_skip_modules"),
        (QuantoConfig(weights="int8"), "modules_to_not_convert"),
    ],
    ids=["bitsandbytes", "quanto"],
)
def test_a_config_without_a_list_gets_that_of_the_model(config: Any, field: str) -> None:
    before = copy.deepcopy(config.to_dict())
    assert getattr(placement.with_skip_list(config, Model.modules_to_not_convert), field) == KEPT
    assert config.to_dict() == before  # the caller's
    if field == "llm_int8_skip_modules":
        fields = placement.with_skip_list(config.to_dict(), Model.modules_to_not_convert)
        assert fields.llm_int8_skip_modules == KEPT


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        (["lm_head"], "['vision_model', 'mlp1']"),
        ([], str(KEPT)),
        (["vision_model", "mlp1"], "['language_model.lm_head', 'language_model.output']"),
        (["vision_model", "mlp1", "lm_head"], None),
        (["vision_model", "mlp1", "language_model"], None),
        ([*KEPT, "language_model.model.layers.0"], None),
    ],
    ids=["head", "nothing", "no-head", "short-names", "parent", "more"],
)
def test_a_list_of_the_caller_is_kept_and_what_it_lacks_is_named(
    given: list[str], missing: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=given)
    with caplog.at_level(logging.WARNING):
        found = placement.with_skip_list(config, Model.modules_to_not_convert)
    assert found.llm_int8_skip_modules == given
    assert [missing in record.getMessage() for record in caplog.records] == [True] * bool(missing)


def test_a_method_that_names_what_it_quantises_is_left_to_itself() -> None:
    config = GPTQConfig(bits=4)
    assert placement.with_skip_list(config, Model.modules_to_not_convert) is config


@pytest.mark.parametrize("name", ["torchao-int8", "torchao-int4"])
@pytest.mark.parametrize("checkpoint", support.NAMES)
def test_torchao_takes_the_layers_of_the_decoder_only(checkpoint: str, name: str) -> None:
    needs(name)
    from transformers.quantizers.auto import AutoHfQuantizer

    folder = support.checkpoint(checkpoint)
    with torch.device("meta"):
        model = Model(support.configuration.InternVLChatConfig.from_pretrained(folder))
    skipping = placement.with_skip_list(recipes.recipe(name), Model.modules_to_not_convert)
    quantizer = AutoHfQuantizer.from_config(skipping, pre_quantized=False)
    quantizer._process_model_before_weight_loading(model)
    taken = {k for k, _ in model.named_parameters() if quantizer.param_needs_quantization(model, k)}
    assert taken == {
        f"{key}.weight"
        for key, module in model.named_modules()
        if isinstance(module, nn.Linear) and key.startswith("language_model.model.")
    }


# ---------------------------------------------------------------------- real runs
@pytest.mark.parametrize("name", RUNNABLE)
def test_the_demo_answers_as_before_and_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    needs(name)
    original, answers, logits = plain()
    loaded = hub.load(dtype="float32", quantization=name)
    check_parts(loaded.model, original.model)
    assert loaded.model.dtype == torch.float32
    new_answers, new_logits = measured.answers_and_logits(loaded, measured.examples()[:QUESTIONS])
    assert new_answers == answers
    # bnb-nf4 0.9978, the others 1.0000 (over all questions, see docs/quantization.md)
    assert torch.cosine_similarity(torch.cat(new_logits), logits, dim=-1).mean() > 0.995
    assert not torch.equal(torch.cat(new_logits), logits)
    assert measured.stored_bytes(loaded.model) == pytest.approx(BYTES[name], rel=0.01)

    if not saves(loaded.model.hf_quantizer):
        pytest.skip("this transformers cannot save these weights")
    for part in loaded.model, loaded.tokenizer, loaded.processor:
        part.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text("utf-8"))["quantization_config"]
    assert KEPT in written.values()
    size = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert size == pytest.approx(BYTES[name], rel=0.01)
    again = hub.load(tmp_path, dtype="float32").model
    check_parts(again, original.model)
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids()).logits, loaded.model(input_ids=ids()).logits)
    with pytest.raises(ValueError, match="quantised already"):
        hub.load(tmp_path, quantization=name)


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize("checkpoint", support.NAMES)
def test_every_family_keeps_its_eyes_and_its_head(checkpoint: str, name: str) -> None:
    needs(name)
    original = support.load(checkpoint)
    loaded = hub.load(support.checkpoint(checkpoint), dtype="float32", quantization=name)
    check_parts(loaded.model, original)
    # Pixels are cast to the dtype of the patch filters, which are never quantised.
    tiles = support.pixels(checkpoint, "A")
    with torch.no_grad():
        features = original.extract_feature(tiles)
        assert torch.equal(loaded.model.extract_feature(tiles.double()), features)
    answer = loaded.model.chat(loaded.tokenizer, tiles.double(), "What?", dict(GREEDY))
    both = loaded.model.batch_chat(
        loaded.tokenizer, tiles, ["What?", "And?"], dict(GREEDY), num_patches_list=[5, 0]
    )
    assert both[0] == answer


@pytest.mark.parametrize(
    "options",
    [
        {"load_in_8bit": True},
        {"load_in_4bit": True},
        {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)},
        {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "device_map": {"": "cpu"}},
        {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "device_map": "auto"},
    ],
    ids=["8bit", "4bit", "config", "one-device", "auto"],
)
def test_plain_options_of_transformers_do_the_same(options: dict[str, Any]) -> None:
    needs("bnb-int8")
    model = Model.from_pretrained(hub.DEMO, dtype=torch.float32, **options)
    check_parts(model, plain()[0].model)


def test_one_of_two_ways_to_ask(tmp_path: Path) -> None:
    config = BitsAndBytesConfig(load_in_8bit=True)
    with pytest.raises(ValueError, match="one of the two"):
        Model.from_pretrained(hub.DEMO, load_in_8bit=True, quantization_config=config)


@pytest.mark.slow
def test_auto_classes_do_the_same() -> None:
    needs("bnb-int8")
    model = AutoModel.from_pretrained(
        support.ROOT, subfolder="demo", trust_remote_code=True, dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(load_in_8bit=True),
    )  # fmt: skip
    check_parts(model, plain()[0].model)


@pytest.mark.slow
def test_the_command_measures(capsys: pytest.CaptureFixture[str]) -> None:
    needs("torchao-int8")
    assert measured.main(["torchao-int8", "--dtype", "float32", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["questions"] == found["right_before"] == found["same"] == 16
    assert 0.99 < found["lowest_cosine"] <= found["cosine"] < 1
    assert found["bytes_after"] < 0.66 * found["bytes_before"]


# ---------------------------------------------------------------------- refusals
@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_missing_package_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, recipes.RECIPES[name].package, None)
    with pytest.raises(ImportError, match=r"needs (bitsandbytes|torchao): .*internvl\[quant\]"):
        hub.load(quantization=name)


def test_a_missing_package_is_named_for_a_config(monkeypatch: pytest.MonkeyPatch) -> None:
    config = BitsAndBytesConfig(load_in_8bit=True)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for given in (config, config.to_dict()):
        with pytest.raises(ImportError, match=r"needs bitsandbytes: .*internvl\[quant\]"):
            hub.load(quantization=given)


def test_unknown_recipes_and_devices_without_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match="'awq', expected one of bnb-int8, bnb-nf4"):
        hub.load(quantization="awq")
    needs("torchao-int4")
    for device_map in (None, "auto") if not torch.cuda.is_available() else (None,):
        with pytest.raises(ValueError, match="CUDA devices only"):
            hub.load(quantization="torchao-int4", device_map=device_map)


def test_a_vision_encoder_is_not_quantised(tmp_path: Path) -> None:
    folder = shutil.copytree(support.checkpoint("qwen2"), tmp_path / "vision")
    fields = json.loads((folder / "config.json").read_text("utf-8"))["vision_config"]
    (folder / "config.json").write_text(json.dumps({**fields, "model_type": "intern_vit_6b"}))
    with pytest.raises(ValueError, match="vision encoder, which is not quantised"):
        hub.load(folder, quantization="bnb-int8")


# ---------------------------------------------------------------------- bytes
@pytest.mark.parametrize("source", [*support.NAMES, "demo"])
def test_stored_bytes_of_plain_weights_are_those_in_the_files(source: str) -> None:
    folder = hub.DEMO if source == "demo" else support.checkpoint(source)
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            total += sum(opened.get_tensor(key).nbytes for key in opened.keys())  # noqa: SIM118
    dtype = torch.bfloat16 if source == "demo" else torch.float32
    model = Model.from_pretrained(folder, dtype=dtype)
    assert measured.stored_bytes(model) - total == sum(b.nbytes for b in model.buffers())
