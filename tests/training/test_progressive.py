"""`internvl train transfer-vit`: an aligned encoder under a larger language model (report 3.3)."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from internvl import hub
from internvl.checkpoints.tensors import Weights
from internvl.training import progressive
from internvl.training.assemble import assemble
from internvl.training.progressive import describe, transfer_vit, vision_digest
from tests import support
from tests.checkpoints.sources import edit_json, one_file
from tests.training import language_models as llms
from tests.training.test_assemble import GREEDY, defects


@pytest.fixture(scope="module")
def source():
    """An encoder that stands for an aligned one, under a language model of width 64."""
    return support.checkpoint("qwen2")


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """Another encoder of the same kind under a wider language model of another family."""
    folder = tmp_path_factory.mktemp("larger")
    torch.manual_seed(5)
    vision = support.load("qwen2").config.vision_config
    support.modeling_vit.InternVisionModel(vision).save_pretrained(folder / "vit")
    llm = llms.language_model(folder / "llm", "phi3", hidden_size=128)
    assemble(folder / "vit", llm, folder / "chat", template="phi3-chat", seed=1)
    return folder / "chat"


def tensors(folder):
    with Weights(folder) as weights:
        return {name: weights.read(name) for name in weights.stored}


def test_encoder_moves_bit_for_bit_and_the_rest_stays(source, larger, tmp_path):
    out = tmp_path / "out"
    moved = transfer_vit(source, larger, out, max_shard_size="200KB")
    got, first, second = tensors(out), tensors(source), tensors(larger)
    assert set(got) == set(second)
    for name, value in got.items():
        if name.startswith("vision_model."):
            assert torch.equal(value, first[name])
        elif name.startswith("language_model."):
            assert torch.equal(value, second[name])
    assert not torch.equal(got["mlp1.1.weight"], second["mlp1.1.weight"])
    assert moved.tensors == sum(name.startswith("vision_model.") for name in first)
    assert sum(name.endswith(".safetensors") for name in moved.files) > 3
    assert defects(out) == []


def test_moved_encoder_sees_as_before_and_the_new_model_chats(source, larger, tmp_path):
    transfer_vit(source, larger, tmp_path / "out")
    loaded, tiles = hub.load(tmp_path / "out"), support.pixels("qwen2", "C")
    with torch.no_grad():
        seen = loaded.model.vision_model(tiles).last_hidden_state
        assert torch.equal(seen, support.load("qwen2").vision_model(tiles).last_hidden_state)
    assert isinstance(
        loaded.model.chat(loaded.tokenizer, tiles, "<image>\nWhat is it?", GREEDY), str
    )


def test_digest_names_an_encoder_wherever_it_is(source, larger, tmp_path):
    moved = transfer_vit(source, larger, tmp_path / "out")
    support.load("qwen2").vision_model.save_pretrained(tmp_path / "alone")
    one_file(tmp_path / "one", "qwen2")
    digests = {vision_digest(tmp_path / name) for name in ("out", "alone", "one")}
    assert digests == {moved.digest} == {vision_digest(source)}
    assert vision_digest(larger) != moved.digest
    file = tmp_path / "one" / "model.safetensors"
    changed = load_file(file)
    changed["vision_model.encoder.layers.0.ls1"][3] += 1e-6
    save_file(changed, file, metadata={"format": "pt"})
    assert vision_digest(tmp_path / "one") != moved.digest
    assert moved.digest in describe(moved)


def test_projector_is_new_from_the_seed_or_kept_where_widths_allow(source, larger, tmp_path):
    projectors = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        transfer_vit(source, larger, tmp_path / name, seed=seed)
        projectors[name] = tensors(tmp_path / name)["mlp1.1.weight"]
    assert torch.equal(projectors["a"], projectors["b"])
    assert not torch.equal(projectors["a"], projectors["c"])
    with pytest.raises(ValueError, match=r"width of the language model is \d+ and 128"):
        transfer_vit(source, larger, tmp_path / "kept", keep_mlp1=True)
    width = support.load("qwen2").config.llm_config.hidden_size
    llm = llms.language_model(tmp_path / "llm", "llama", hidden_size=width)
    assemble(source, llm, tmp_path / "same", template="Hermes-2")
    kept = transfer_vit(source, tmp_path / "same", tmp_path / "kept", keep_mlp1=True)
    wanted = tensors(source)
    got = {n: t for n, t in tensors(tmp_path / "kept").items() if n.startswith("mlp1.")}
    assert len(got) == 6
    assert all(torch.equal(value, wanted[name]) for name, value in got.items())
    assert "next" not in describe(kept)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision": {"layer_norm_eps": 1e-5}}, "vision_config.layer_norm_eps is 1e-06 and 1e-05"),
        ({"select_layer": -2}, "select_layer is -1 and -2"),
        ({"image_mean": [0.5, 0.5, 0.5]}, r"image_mean is \[0.485, .*\] and \[0.5, 0.5, 0.5\]"),
    ],
    ids=["eps", "layer", "mean"],
)
def test_encoders_that_differ_are_refused_and_the_difference_is_named(
    changes, message, source, larger, tmp_path
):
    other = tmp_path / "other"
    shutil.copytree(larger, other)
    config = json.loads((other / "config.json").read_text())
    vision = {**config["vision_config"], **changes.pop("vision", {})}
    edit_json(other / "config.json", vision_config=vision, **changes)
    with pytest.raises(ValueError, match=message):
        transfer_vit(source, other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_encoder_of_another_size_is_refused(larger, tmp_path):
    with pytest.raises(ValueError, match=r"hidden_size is .*assemble --vit"):
        transfer_vit(support.checkpoint("qwen2_vit6b"), larger, tmp_path / "out")


def test_settings_of_training_alone_are_noted_and_allowed(source, larger, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(larger, other)
    config = json.loads((other / "config.json").read_text())
    edit_json(
        other / "config.json", vision_config={**config["vision_config"], "drop_path_rate": 0.4}
    )
    moved = transfer_vit(source, other, tmp_path / "out")
    assert moved.notes == ("drop_path_rate is 0.0 and 0.4: the destination's is kept",)


def test_encoder_alone_and_other_models_are_refused(larger, tmp_path):
    support.load("qwen2").vision_model.save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match="internvl train assemble"):
        transfer_vit(tmp_path / "vit", larger, tmp_path / "out")


def test_bit_that_flips_on_the_way_is_found(source, larger, tmp_path, monkeypatch):
    write = progressive.write_weights

    def faulty(folder, *args, **options):
        write(folder, *args, **options)
        file = folder / "model.safetensors"
        stored = load_file(file)
        stored["vision_model.encoder.layers.1.mlp.fc1.weight"].view(torch.int32)[0, 0] ^= 1
        save_file(stored, file, metadata={"format": "pt"})

    monkeypatch.setattr(progressive, "write_weights", faulty)
    with pytest.raises(RuntimeError, match=r"1 of \d+ .*layers.1.mlp.fc1.weight"):
        transfer_vit(source, larger, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_stopped_run_goes_on_with_the_shards_it_has(source, larger, tmp_path, monkeypatch):
    read, out = Weights.read, tmp_path / "out"
    encoder = [name for name in tensors(source) if name.startswith("vision_model.")]
    calls = []

    def stopping(self, name):
        calls.append(name)
        if len(calls) > len(encoder) + 40:  # hashed, and some shards written
            raise KeyboardInterrupt
        return read(self, name)

    monkeypatch.setattr(Weights, "read", stopping)
    with pytest.raises(KeyboardInterrupt):
        transfer_vit(source, larger, out, max_shard_size="200KB")
    monkeypatch.setattr(Weights, "read", read)
    left = {
        f.name: f.stat().st_mtime_ns for f in out.with_name("out.partial").rglob("*.safetensors")
    }
    assert left
    assert not out.exists()
    transfer_vit(source, larger, out, max_shard_size="200KB")
    assert {name: (out / name).stat().st_mtime_ns for name in left} == left
    assert vision_digest(out) == vision_digest(source)
