"""Every kind of damage is named by `verify`, and a sound folder is not blamed."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch

from internvl.checkpoints import code_hashes
from internvl.checkpoints.adopt import adopt
from internvl.checkpoints.headers import read_header
from internvl.checkpoints.tensors import INDEX
from internvl.checkpoints.verify import describe, verify
from tests import support
from tests.checkpoints.sources import edit_json, edit_weights

SHARD = "model-0000{}-of-00004.safetensors".format


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """An adopted folder whose files are its own."""
    folder = tmp_path_factory.mktemp("verify") / "sound"
    adopt(support.checkpoint("qwen2"), folder, copy=True)
    return folder


@pytest.fixture
def folder(sound, tmp_path) -> Path:
    return shutil.copytree(sound, tmp_path / "folder")


def damage(folder: Path, **options) -> str:
    """All defects as one text; there must be one."""
    report = verify(folder, **options)
    assert report.defects
    assert "DEFECT" in describe(report)
    return "\n".join(report.defects)


def test_a_sound_folder_is_sound(sound):
    report = verify(sound)
    assert report.defects == ()
    assert [check.name for check in report.checks] == [
        *("files", "config", "code", "weights", "values", "tokenizer", "template")
    ]
    assert describe(report).endswith("sound: sound")
    assert report.as_dict()["sound"] is True


def test_demo_is_sound_with_the_code_of_the_root():
    assert verify(support.ROOT / "demo").defects == ()


# ---------------------------------------------------------------------- weights
def test_truncated_shard(folder):
    file = folder / SHARD(2)
    file.write_bytes(file.read_bytes()[:-100])
    assert f"{SHARD(2)}: its header accounts for" in damage(folder)
    assert "it is truncated" in damage(folder, values=False)
    file.write_bytes(file.read_bytes()[:50])
    assert f"{SHARD(2)}: its header should have" in damage(folder)
    file.write_bytes(b"")
    assert f"{SHARD(2)}: its header should have" in damage(folder)


def test_missing_shard(folder):
    (folder / SHARD(3)).unlink()
    assert f"{SHARD(3)} is named by the index, but is not here" in damage(folder)


def test_swapped_shards(folder):
    one, two, other = folder / SHARD(1), folder / SHARD(2), folder / "other"
    one.rename(other)
    two.rename(one)
    other.rename(two)
    found = damage(folder)
    assert f"that the index puts in {SHARD(1)} are in {SHARD(2)}; the two files are swap" in found


@pytest.mark.parametrize("part", ["length", "json"])
def test_every_flipped_bit_of_a_header_is_seen(part, folder):
    file = folder / SHARD(4)
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    bits = range(64) if part == "length" else range(64, 8 * end)
    sample = random.Random(5).sample(bits, 30)
    for bit in sample:
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        report = verify(folder, values=False)
        assert report.defects, f"bit {bit} of {file.name}: {content[bit // 8 - 20 : bit // 8 + 20]}"


def test_flipped_byte_in_a_name(folder):
    file = folder / SHARD(4)
    file.write_bytes(file.read_bytes().replace(b"language_model", b"language_modem", 1))
    found = damage(folder)
    assert "unexpected: language_modem" in found
    assert "missing: language_model" in found


def test_missing_tensor(folder):
    index = json.loads((folder / INDEX).read_text())
    file = index["weight_map"]["mlp1.1.weight"]
    edit_weights(folder / file, lambda tensors: tensors.pop("mlp1.1.weight"))
    found = damage(folder)
    assert "1 missing: mlp1.1.weight" in found
    assert f"{INDEX} names mlp1.1.weight, which no file holds" in found
    assert "states 1968128 bytes" in found or "bytes, the files hold" in found


def test_extra_index_entry_and_wrong_total(folder):
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["language_model.extra.weight"] = SHARD(1)
    index["metadata"]["total_size"] += 4
    (folder / INDEX).write_text(json.dumps(index))
    found = damage(folder)
    assert f"{INDEX} names language_model.extra.weight, which no file holds" in found
    assert f"states {index['metadata']['total_size']} bytes" in found


def test_extra_tensor_and_stray_file(folder):
    edit_weights(folder / SHARD(1), lambda tensors: tensors.update(extra=torch.ones(3)))
    assert f"{INDEX} does not name extra, which the files hold" in damage(folder)
    assert "1 unexpected: extra" in damage(folder)
    shutil.copyfile(folder / SHARD(2), folder / "model-00009-of-00009.safetensors")
    assert "no index names model-00009-of-00009.safetensors" in damage(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite(value, folder):
    index = json.loads((folder / INDEX).read_text())
    file = index["weight_map"]["mlp1.3.bias"]
    edit_weights(folder / file, lambda tensors: tensors["mlp1.3.bias"][3:4].fill_(value))
    assert f"mlp1.3.bias in {file} holds NaN or infinity" in damage(folder)
    assert verify(folder, values=False).defects == ()


def test_dtype(folder):
    edit_json(folder / "config.json", torch_dtype="bfloat16")
    assert "config.json says torch_dtype bfloat16, the weights are float32" in damage(folder)


# ---------------------------------------------------------------------- config
def edit_llm(folder: Path, **fields) -> None:
    llm = json.loads((folder / "config.json").read_text())["llm_config"]
    edit_json(folder / "config.json", llm_config={**llm, **fields})


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"vocab_size": 1024}, r"embed_tokens.weight has (1018, 64), expected (1024, 64)"),
        ({"vocab_size": 1000}, "has ids up to 1017, but the embedding has 1000 rows"),
        ({"intermediate_size": 172}, "gate_proj.weight has"),
        ({"num_hidden_layers": 5}, "missing: language_model.model.layers.4"),
        ({"num_hidden_layers": 3}, "unexpected: language_model.model.layers.3"),
        ({"hidden_size": 60}, "expected"),
    ],
    ids=["vocabulary", "small vocabulary", "width", "deeper", "shallower", "hidden size"],
)
def test_config_of_another_model(fields, complaint, folder):
    edit_llm(folder, **fields)
    assert complaint in damage(folder)


def test_unknown_template(folder):
    edit_json(folder / "config.json", template="internvl9")
    assert "names the template 'internvl9', expected one of" in damage(folder)


def test_another_known_template(folder):
    edit_json(folder / "config.json", template="Hermes-2")
    assert "'internvl2_5', but config.json says 'Hermes-2'" in damage(folder)


def test_changed_chat_template(folder):
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("assistant", "Assistant"))
    assert "chat_template.jinja does not render the template 'internvl2_5'" in damage(folder)


def test_lora_that_is_not_merged(folder):
    edit_json(folder / "config.json", use_llm_lora=8)
    assert "`internvl adopt` merges them" in damage(folder)


def test_other_families_and_no_config(folder):
    edit_json(folder / "config.json", model_type="internvl")
    assert "model_type 'internvl', expected 'internvl_chat'" in damage(folder)
    (folder / "config.json").write_text("{")
    assert "not valid JSON" in damage(folder)
    (folder / "config.json").unlink()
    assert "has no config.json" in damage(folder)


# ---------------------------------------------------------------------- tokenizer
@pytest.mark.parametrize("token", ["<IMG_CONTEXT>", "<|im_end|>", "<box>"])
def test_renamed_special_token(token, folder):
    for name in ("tokenizer.json", "tokenizer_config.json", "added_tokens.json"):
        path = folder / name
        path.write_text(path.read_text("utf-8").replace(token, "<other>"), "utf-8")
    assert f"has no {token}" in damage(folder)


def test_ids_that_differ(folder):
    edit_json(folder / "config.json", img_context_token_id=7)
    assert "img_context_token_id 7, but <IMG_CONTEXT> is 1005" in damage(folder)


def test_answers_that_would_not_end(folder):
    edit_json(folder / "generation_config.json", eos_token_id=[5, 2000])
    found = damage(folder)
    assert "without 1000, which is <|im_end|>" in found
    assert "ends at [2000], beyond the vocabulary" in found


def test_no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    assert "no tokenizer_config.json" in damage(folder)


# ---------------------------------------------------------------------- code and files
def test_changed_missing_and_foreign_code(folder):
    changed = folder / "modeling_internvl_chat.py"
    changed.write_text(changed.read_text() + "\nimport os\n")
    (folder / "preprocessor" / "tiling.py").unlink()
    (folder / "modeling_extra.py").write_text("")
    found = damage(folder)
    assert "modeling_internvl_chat.py: changed" in found
    assert "preprocessor/tiling.py: missing" in found
    assert "modeling_extra.py: not part of this code" in found


def test_code_that_is_gone(folder):
    for path in folder.glob("*.py"):
        path.unlink()
    assert "modeling_internvl_chat.py, which is not here" in damage(folder)


@pytest.mark.parametrize("name", ["config.json", "processor_config.json"])
def test_code_of_another_repository(name, folder):
    content = json.loads((folder / name).read_text())
    auto_map = {key: f"evil/repo--{value}" for key, value in content["auto_map"].items()}
    edit_json(folder / name, auto_map=auto_map)
    assert f"auto_map in {name} is" in damage(folder)


def test_a_check_that_breaks_is_a_defect(folder):
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe\xfd")
    assert "could not be finished" in damage(folder)


def test_a_broken_tokenizer(folder):
    (folder / "tokenizer.json").write_text('{"a": 1}')
    assert "tokenizer.json cannot be read" in damage(folder)


def test_pickles_and_leftovers(folder):
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    (folder / "model.safetensors.partial").write_bytes(b"")
    (folder / "custom_generate").mkdir()
    found = damage(folder)
    assert "pickled files can carry code: pytorch_model.bin" in found
    assert "model.safetensors.partial" in found
    assert "custom_generate/" in found


def test_one_report_names_all_of_it(folder):
    test_dtype(folder)
    edit_json(folder / "generation_config.json", eos_token_id=[5])
    (folder / SHARD(3)).unlink()
    (folder / "optimizer.pt").write_bytes(b"\x80")
    assert len(verify(folder).defects) >= 4


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        verify(tmp_path / "nowhere")


def test_published_folders_are_checked_too():
    report = verify(support.checkpoint("internlm2"))
    assert [defect.split(",")[0] for defect in report.defects] == [
        "config.json says torch_dtype bfloat16"
    ]
    assert any("no code" in note for check in report.checks for note in check.notes)


def test_recorded_hashes_are_those_of_the_code():
    assert code_hashes.recorded() == code_hashes.current()
    assert code_hashes.main(["--check"]) == 0


def test_headers_account_for_every_byte(folder):
    for file in folder.glob("*.safetensors"):
        header = read_header(file)
        assert header.faults == ()
        assert header.data_bytes == sum(tensor.bytes for tensor in header.tensors.values())
