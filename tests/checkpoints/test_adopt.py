"""Adopting published checkpoints: the same ids, nothing of the source executed or written to."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from internvl import hub
from internvl.checkpoints import adopt as module
from internvl.checkpoints.adopt import adopt
from internvl.checkpoints.export import export
from internvl.checkpoints.staging import staging
from internvl.checkpoints.verify import verify
from tests import support
from tests.checkpoints import sources
from tests.remote_code.process import run


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.is_file()
    }


def test_adopt_verify_chat_export_verify_chat(name, tmp_path):
    source = support.checkpoint(name)
    before = digests(source)
    expected = sources.model_ids(support.load(name), support.tokenizer(name), name)
    adopted = adopt(source, tmp_path / "adopted")
    assert verify(tmp_path / "adopted").defects == ()
    assert sources.answer_ids(tmp_path / "adopted", name) == expected
    export(tmp_path / "adopted", tmp_path / "exported", max_shard_size="300KB")
    assert verify(tmp_path / "exported").defects == ()
    assert sources.answer_ids(tmp_path / "exported", name) == expected
    assert len(list((tmp_path / "exported").glob("*.safetensors"))) > 3
    model = support.load(name)
    assert adopted.parameters == sum(p.numel() for p in model.parameters())
    assert digests(source) == before


@pytest.mark.parametrize("name", ["internlm2"])
def test_an_adopted_folder_loads_with_the_auto_classes(name, tmp_path):
    adopt(support.checkpoint(name), tmp_path / "InternVL2.5-8B v1.0")
    result = run(
        f"""
import json, torch
from transformers import AutoModel, AutoProcessor, AutoTokenizer
path = {str(tmp_path / "InternVL2.5-8B v1.0")!r}
model = AutoModel.from_pretrained(path, trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
settings = dict(max_new_tokens=12, do_sample=False)
image = {str(support.ROOT / "examples" / "circle.png")!r}
messages = [{{"role": "user", "content": [
    {{"type": "image", "image": image}}, {{"type": "text", "text": "What?"}}]}}]
inputs = processor.apply_chat_template(
    messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True)
output = model.generate(**inputs, **settings)
text = processor.batch_decode(output[:, inputs["input_ids"].shape[1]:], skip_special_tokens=True)
tiles = processor.image_processor(image, return_tensors="pt")["pixel_values"]
answer = model.chat(tokenizer, tiles, "<image>\\nWhat?", settings)
print(json.dumps([text[0].strip(), answer.strip(), str(model.dtype), len(tiles)]))
""",
        tmp_path,
    )
    assert result[0] == result[1]
    assert result[2] == "torch.float32"
    assert result[3] > 1


def test_weights_are_links_and_copies_on_request(tmp_path):
    source = sources.one_file(tmp_path / "source", "qwen2")
    assert adopt(source, tmp_path / "linked").weights == "linked"
    assert adopt(source, tmp_path / "copied", copy=True).weights == "copied"
    inode = (source / "model.safetensors").stat().st_ino
    assert (tmp_path / "linked" / "model.safetensors").stat().st_ino == inode
    assert (tmp_path / "copied" / "model.safetensors").stat().st_ino != inode


def test_weights_are_copied_where_links_cannot_be(tmp_path, monkeypatch):
    source = sources.one_file(tmp_path / "source", "qwen2")

    def refuse(*_):
        raise OSError(errno.EXDEV, "other file system")

    monkeypatch.setattr(os, "link", refuse)
    assert adopt(source, tmp_path / "out").weights == "copied"
    file = tmp_path / "out" / "model.safetensors"
    assert file.read_bytes() == (source / "model.safetensors").read_bytes()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(OSError, match=r"0\.0 GiB free"):
        adopt(source, tmp_path / "full")
    assert not (tmp_path / "full").exists()


@pytest.mark.parametrize("ranks", [{"llm": 4}, {"vision": 3}, {"llm": 2, "vision": 4}], ids=str)
def test_lora_layers_are_merged_as_peft_merges_them(name, ranks, tmp_path):
    pytest.importorskip("peft")
    model = sources.lora_wrapped(tmp_path / "source", name, **ranks)
    with pytest.raises(ValueError, match="internvl adopt"):
        hub.load(tmp_path / "source")
    before = digests(tmp_path / "source")
    adopted = adopt(tmp_path / "source", tmp_path / "out", max_shard_size="500KB")
    assert digests(tmp_path / "source") == before
    assert adopted.weights == "merged"
    assert "LoRA layers were merged" in adopted.notes[-1]
    found = hub.load(tmp_path / "out", dtype=torch.float32).model.state_dict()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(found[key], value, atol=1e-6, rtol=0)
    changed = [k for k, v in support.load(name).state_dict().items() if not found[k].equal(v)]
    assert len(changed) >= 3 * 3
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (fields["use_llm_lora"], fields["use_backbone_lora"]) == (0, 0)


def test_lora_that_nobody_can_merge_is_refused(tmp_path):
    pytest.importorskip("peft")
    source = tmp_path / "source"
    sources.lora_wrapped(source, "qwen2", llm=4)
    sources.edit_json(source / "config.json", use_llm_lora=8)
    with pytest.raises(ValueError, match="use_llm_lora=8"):
        adopt(source, tmp_path / "out")
    sources.edit_json(source / "config.json", use_llm_lora=4)
    dora = "language_model.base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"
    shard = source / "model-00001-of-00002.safetensors"

    def add(tensors):
        tensors[dora] = torch.ones(2)

    sources.edit_weights(shard, add)
    with pytest.raises(ValueError, match="DoRA"):
        adopt(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_merged_weights_with_stale_ranks_are_accepted(tmp_path):
    source = sources.one_file(tmp_path / "source", "phi3")
    sources.edit_json(source / "config.json", use_llm_lora=16)
    adopted = adopt(source, tmp_path / "out")
    assert adopted.weights == "linked"
    assert any("they are 0 now" in note for note in adopted.notes)
    assert verify(tmp_path / "out").defects == ()


def drop(key):
    return lambda tensors: tensors.pop(key)


def put(key, value):
    return lambda tensors: tensors.__setitem__(key, value)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (drop("mlp1.1.bias"), "1 missing: mlp1.1.bias"),
        (put("vision_model.head.weight", torch.ones(2)), "1 unexpected: vision_model.head.weight"),
        (put("mlp1.0.bias", torch.ones(7)), r"mlp1.0.bias has \(7,\), expected"),
        (put("mlp1.1.bias", torch.ones(64, dtype=torch.float16)), "not of one dtype"),
        (put("mlp1.1.bias", torch.ones(64, dtype=torch.int64)), "I64: mlp1.1.bias"),
    ],
    ids=["missing", "extra", "shape", "dtype", "integers"],
)
def test_weights_that_do_not_fit_are_named(change, complaint, tmp_path):
    source = sources.one_file(tmp_path / "source", "qwen2")
    sources.edit_weights(source / "model.safetensors", change)
    with pytest.raises(ValueError, match=complaint):
        adopt(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_other_refusals(tmp_path):
    source = sources.one_file(tmp_path / "source", "qwen2")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(FileExistsError, match="not an empty folder"):
        adopt(source, tmp_path / "full")
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "mine.txt").write_text("x")
    with pytest.raises(FileExistsError, match="was not written by this command"):
        adopt(source, tmp_path / "out")
    assert (tmp_path / "out.partial" / "mine.txt").is_file()
    with pytest.raises(FileNotFoundError, match="neither a folder nor the id"):
        adopt(tmp_path / "nowhere", tmp_path / "out2")
    sources.edit_json(source / "config.json", template=None)
    with pytest.raises(ValueError, match="no `template`"):
        adopt(source, tmp_path / "out3")
    assert adopt(source, tmp_path / "out4", template="internvl2_5").notes[-1].startswith("template")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickled weights only"):
        adopt(source, tmp_path / "out5")


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/tmp/x.safetensors", "a\\b.safetensors"]
)
def test_an_index_that_leads_out_of_the_folder_is_refused(name, tmp_path):
    source = shutil.copytree(support.checkpoint("qwen2"), tmp_path / "source")
    shard = source / "model-00001-of-00004.safetensors"
    shutil.copyfile(shard, tmp_path / "outside.safetensors")
    index = source / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(shard.name, json.dumps(name)[1:-1]))
    with pytest.raises(ValueError, match="expected names of safetensors files in that folder"):
        adopt(source, tmp_path / "deep" / "out")
    assert not (tmp_path / "deep").exists()
    assert any("not a file of its own" in defect for defect in verify(source).defects)


def test_a_dry_run_writes_nothing(tmp_path):
    source = sources.one_file(tmp_path / "source", "qwen2")
    planned = adopt(source, tmp_path / "out", dry_run=True)
    assert (planned.tensors, planned.files) == (103, ())
    assert "was not written" in module.describe(planned, dry_run=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_only_what_is_needed_is_taken_and_nothing_is_run(tmp_path):
    source, marker = sources.one_file(tmp_path / "source", "qwen2"), tmp_path / "marker"
    code = f"from pathlib import Path\nPath({str(marker)!r}).write_text('executed')\n"
    for file in ("modeling_internvl_chat.py", "configuration_internvl_chat.py", "tokenization.py"):
        (source / file).write_text(code)
    (source / "training_args.bin").write_bytes(b"\x80pickle")
    (source / "optimizer.pt").write_bytes(b"\x80pickle")
    (source / "trainer_state.json").write_text("{}")
    (source / "LICENSE").write_text("of the weights")
    (source / "README.md").write_text("---\nlicense: mit\nlanguage: [zh]\n---\n# theirs\n")
    fields = json.loads((source / "tokenizer_config.json").read_text())
    fields["chat_template"] = "You are Qwen"
    (source / "tokenizer_config.json").write_text(json.dumps(fields))
    out = tmp_path / "out"
    adopt(source, out)
    hub.load(out)
    assert not marker.exists()
    names = {path.name for path in out.rglob("*")}
    assert not names & {"training_args.bin", "optimizer.pt", "trainer_state.json", "marker"}
    ours = (support.ROOT / "modeling_internvl_chat.py").read_text()
    assert (out / "modeling_internvl_chat.py").read_text() == ours
    assert "chat_template" not in json.loads((out / "tokenizer_config.json").read_text())
    assert (out / "LICENSE").read_text() == "of the weights"
    card = (out / "README.md").read_text()
    assert "license: mit" in card
    assert "# theirs" not in card


def test_an_encoder_alone_is_adopted(tmp_path):
    whole = sources.one_file(tmp_path / "whole", "qwen2_vit6b")
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    config = json.loads((whole / "config.json").read_text())["vision_config"]
    (encoder / "config.json").write_text(json.dumps(config))
    tensors = sources.weights(whole)
    prefix = "vision_model."
    mine = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    sources.save_file(mine, encoder / "model.safetensors", metadata={"format": "pt"})
    adopt(encoder, tmp_path / "out")
    assert verify(tmp_path / "out").defects == ()
    tiles = support.pixels("qwen2_vit6b", "C")
    found = hub.load(tmp_path / "out", dtype=torch.float32).model(tiles).last_hidden_state
    theirs = support.load("qwen2_vit6b").vision_model(tiles).last_hidden_state
    assert torch.equal(found, theirs)


def test_config_is_upgraded(tmp_path):
    source = sources.one_file(tmp_path / "source", "internlm2")
    sources.edit_json(source / "config.json", somebody_elses_field=[1], ps_version=None)
    llm = json.loads((source / "config.json").read_text())["llm_config"] | {"use_cache": False}
    sources.edit_json(source / "config.json", llm_config=llm)
    adopt(source, tmp_path / "out")
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert fields["somebody_elses_field"] == [1]
    assert fields["ps_version"] == "v1"  # the default of the class, written out
    assert fields["img_context_token_id"] == support.IMG_CONTEXT_ID
    assert fields["torch_dtype"] == fields["llm_config"]["torch_dtype"] == "float32"
    assert fields["llm_config"]["use_cache"] is True
    assert fields["llm_config"]["rope_scaling"] == {"factor": 2.0, "type": "dynamic"}
    assert not {"temperature", "top_k", "auto_map", "attn_implementation"} & set(
        fields["llm_config"]
    )
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [1000]


def test_generation_settings_of_the_source_are_kept(tmp_path):
    source = sources.one_file(tmp_path / "source", "qwen2")
    settings = {"_from_model_config": True, "eos_token_id": [7, 8], "repetition_penalty": 1.1}
    (source / "generation_config.json").write_text(json.dumps(settings))
    adopt(source, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert written["eos_token_id"] == [7, 8, 1000]  # and the end of a turn
    assert written["repetition_penalty"] == 1.1
    assert "_from_model_config" not in written


def test_saving_into_an_adopted_folder_leaves_the_source_alone(tmp_path):
    source = sources.one_file(tmp_path / "source", "qwen2")
    before = digests(source)
    adopt(source, tmp_path / "out")
    model = hub.load(tmp_path / "out").model
    with torch.no_grad():
        model.mlp1[1].bias.add_(1)
    model.save_pretrained(tmp_path / "out")
    assert digests(source) == before


def test_a_folder_of_somebody_else_is_not_removed(tmp_path):
    source = sources.one_file(tmp_path / "source", "qwen2")
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "journal.json").write_text("{}")
    (partial / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="was not written by this command"):
        adopt(source, tmp_path / "out")
    assert (partial / "notes.txt").read_text() == "mine"


def test_two_runs_do_not_meet(tmp_path):
    with staging(tmp_path / "out") as folder:
        (folder / "half").write_text("x")
        with (
            pytest.raises(FileExistsError, match="being written by another run"),
            staging(tmp_path / "out"),
        ):
            pass
        assert (folder / "half").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_links_that_lead_out_of_the_source_are_not_followed(tmp_path):
    source = sources.one_file(tmp_path / "source", "qwen2")
    (tmp_path / "secret").write_text("secret")
    (source / "LICENSE").symlink_to(tmp_path / "secret")
    adopt(source, tmp_path / "out")
    assert not (tmp_path / "out" / "LICENSE").exists()


def test_the_index_is_written_anew(tmp_path):
    source = shutil.copytree(support.checkpoint("phi3"), tmp_path / "source")
    index = json.loads((source / "model.safetensors.index.json").read_text())
    index["metadata"]["total_size"] += 1
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    adopt(source, tmp_path / "out")
    assert verify(tmp_path / "out").defects == ()
    (source / "model.safetensors.index.json").write_text('{"metadata": {}}')
    with pytest.raises(ValueError, match="no map from tensors to files"):
        adopt(source, tmp_path / "other")
    assert any("no map from tensors" in defect for defect in verify(source).defects)
