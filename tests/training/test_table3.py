"""The recipes against Table 3 of the report, typed in here again, and the launch files."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from internvl.training.recipes import load_recipe
from tests.support import ROOT

RECIPES = ROOT / "recipes"
LAUNCH = RECIPES / "launch"
# Columns of Table 3, left to right, and its lines, top to bottom. A dash is None.
# fmt: off
COLUMNS = [
    "1b/1", "1b/2", "2b/1", "2b/2", "4b/1", "4b/2", "8b/1", "8b/1.5", "8b/2", "26b/1", "26b/1.5",
    "26b/2", "38b/1", "38b/2", "78b/1", "78b/2",
]
MLP, VIT_MLP, FULL = ("mlp",), ("vit", "mlp"), ("vit", "mlp", "llm")
TABLE_3 = {
    "trainable": [MLP, FULL, MLP, FULL, MLP, FULL, MLP, VIT_MLP, FULL, MLP, VIT_MLP, FULL,
                  MLP, FULL, MLP, FULL],
    "packed batch size": [512, 512, 512, 512, 512, 512, 512, 1024, 512, 512, 1024, 512,
                          512, 512, 512, 512],
    "learning rate": [2e-4, 4e-5, 2e-5, 4e-5, 2e-5, 4e-5, 2e-4, 1e-5, 4e-5, 2e-4, 1e-5, 2e-5,
                      2e-4, 2e-5, 2e-4, 2e-5],
    "context length": [16384] * 16,
    "image tile threshold": [48] * 16,
    "vit drop path": [0.0, 0.1, 0.0, 0.1, 0.0, 0.1, 0.0, 0.1, 0.1, 0.0, 0.4, 0.4,
                      0.0, 0.4, 0.0, 0.4],
    "weight decay": [0.01] * 6 + [0.05] * 10,
    "training epochs": [None, 4, None, 4, None, 2, None, None, 1, None, None, 1,
                        None, 1, None, 1],
    "training tokens": [191e9, 176e9, 277e9, 176e9, 164e9, 88e9, 22e9, 76e9, 44e9, 31e9, 146e9,
                        44e9, 107e9, 44e9, 76e9, 44e9],
}
# max_steps of the official scripts.
OFFICIAL_STEPS = [100000, 22000, 100000, 22000, 100000, 11000, 100000, 100000, 5500, 100000,
                  100000, 5500, 100000, 5500, 100000, 5500]
# fmt: on


def path(column):
    size, stage = column.split("/")
    return RECIPES / size / f"stage{stage}.yaml"


@pytest.mark.parametrize("column", COLUMNS)
def test_recipe_is_its_column_of_table_3(column):
    recipe, index = load_recipe(path(column)), COLUMNS.index(column)
    assert {
        "trainable": recipe.stage.train,
        "packed batch size": recipe.batch,
        "learning rate": recipe.optimizer.lr,
        "context length": recipe.context,
        "image tile threshold": recipe.max_tiles,
        "vit drop path": recipe.drop_path,
        "weight decay": recipe.optimizer.weight_decay,
        "training epochs": recipe.table3_epochs,
        "training tokens": recipe.tokens,
    } == {line: values[index] for line, values in TABLE_3.items()}
    assert (recipe.loss, recipe.preset, recipe.dtype) == ("square", "report", "bfloat16")
    assert (recipe.packing.rule, recipe.packing.buffer) == ("report", 20)


@pytest.mark.parametrize("column", COLUMNS)
def test_official_preset_gives_the_numbers_of_the_scripts(column):
    recipe = load_recipe(path(column), {"preset": "official"})
    report = load_recipe(path(column))
    assert recipe.steps == OFFICIAL_STEPS[COLUMNS.index(column)]
    assert recipe.tokens is None
    # Table 3 prints 2e-5 for stage 1 of the 2B and the 4B; all scripts of stage 1 have 2e-4.
    first = recipe.stage.train == MLP
    assert recipe.optimizer.lr == (2e-4 if first else report.optimizer.lr)
    assert recipe.optimizer.weight_decay == report.optimizer.weight_decay
    assert recipe.schedule.warmup == (0.03 if recipe.stage.train == FULL else 100)
    if recipe.stage.train == FULL:  # the two agree on how long: 176 and 184, 44 and 46 billion
        assert recipe.steps * recipe.batch * recipe.context == pytest.approx(
            report.tokens, rel=0.06
        )


def test_there_is_a_recipe_for_every_column_and_stages_follow_each_other():
    found = {f.relative_to(RECIPES).as_posix() for f in RECIPES.glob("[0-9]*b/*.yaml")}
    assert found == {path(column).relative_to(RECIPES).as_posix() for column in COLUMNS}
    for column, before in zip(COLUMNS, [None, *COLUMNS], strict=False):
        size, _ = column.split("/")
        model = load_recipe(path(column)).model
        if before is None or before.split("/")[0] != size:
            assert model == f"runs/{size}/assembled"
        else:
            assert model == f"runs/{before.replace('/', '/stage')}/final"


def test_first_stages_name_the_parts_of_table_2():
    parts = {
        "1b": ("InternViT-300M-448px-V2_5", "Qwen2.5-0.5B-Instruct"),
        "2b": ("InternViT-300M-448px-V2_5", "internlm2_5-1_8b-chat"),
        "4b": ("InternViT-300M-448px-V2_5", "Qwen2.5-3B-Instruct"),
        # The 8B and the 26B make the V2.5 encoders, at stage 1.5, from those of 2.0.
        "8b": ("InternViT-300M-448px", "internlm2_5-7b-chat"),
        "26b": ("InternViT-6B-448px-V1-5", "internlm2_5-20b-chat"),
        "38b": ("InternViT-6B-448px-V2_5", "Qwen2.5-32B-Instruct"),
        "78b": ("InternViT-6B-448px-V2_5", "Qwen2.5-72B-Instruct"),
    }
    for size, (vit, llm) in parts.items():
        words = path(f"{size}/1").read_text(encoding="utf-8").replace("\\", "").split()
        assert words[words.index("--vit") + 1] == f"OpenGVLab/{vit}"
        assert words[words.index("--llm") + 1].endswith(f"/{llm}")


@pytest.mark.parametrize(
    ("name", "learns", "lora"),
    [("full", FULL, False), ("frozen-vit", ("mlp", "llm"), False), ("lora", FULL, True)],
    ids=["full", "frozen_vit", "lora"],
)
def test_fine_tuning_recipes_have_the_numbers_of_the_second_fine_tuning(name, learns, lora):
    recipe = load_recipe(RECIPES / f"finetune-{name}.yaml")
    assert recipe.stage.train == learns
    assert (recipe.epochs, recipe.optimizer.lr, recipe.context) == (1, 4e-5, 8192)
    assert recipe.drop_path == (0.1 if name == "full" else 0.0)
    assert (recipe.lora is not None) == lora
    if recipe.lora is not None:
        found = (recipe.lora.r, recipe.lora.alpha, recipe.lora.dropout, recipe.lora.part)
        assert found == (16, 32, 0.05, "llm")


# ---------------------------------------------------------------------- launch files
@pytest.mark.parametrize("name", ["ddp", "fsdp2", "fsdp2-2node", "cpu2"])
def test_accelerate_reads_the_launch_files(name):
    config = load_config_from_file(str(LAUNCH / f"{name}.yaml"))
    fsdp = name.startswith("fsdp2")
    assert config.distributed_type.value == ("FSDP" if fsdp else "MULTI_GPU")
    assert config.num_processes == {"fsdp2-2node": 16, "cpu2": 2}.get(name, 8)
    assert config.num_machines == (2 if name == "fsdp2-2node" else 1)
    assert config.mixed_precision == ("no" if name == "cpu2" else "bf16")
    if fsdp:
        assert config.fsdp_config == {
            "fsdp_version": 2,
            "fsdp_reshard_after_forward": True,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_state_dict_type": "SHARDED_STATE_DICT",
            "fsdp_activation_checkpointing": False,
            "fsdp_cpu_ram_efficient_loading": True,
            "fsdp_offload_params": False,
        }


def test_fsdp_options_are_ones_that_accelerate_knows():
    from accelerate.commands.launch import launch_command_parser

    known = {action.dest for action in launch_command_parser()._actions}
    for file in LAUNCH.glob("fsdp2*.yaml"):
        options = yaml.safe_load(file.read_text(encoding="utf-8"))["fsdp_config"]
        assert set(options) <= known


@pytest.mark.parametrize("name", ["zero1", "zero3", "zero3-offload"])
def test_zero_files_have_the_official_values(name):
    config = json.loads((LAUNCH / f"{name}.json").read_text(encoding="utf-8"))
    zero = config.pop("zero_optimization")
    assert {key: config[key] for key in ("gradient_clipping", "train_batch_size")} == {
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
    }
    assert config["bf16"] == {"enabled": "auto"}
    assert "optimizer" not in config  # the recipe's
    assert zero["reduce_bucket_size"] == 10**9
    assert zero["overlap_comm"] is (name != "zero3-offload")
    if name == "zero1":
        assert (zero["stage"], zero["allgather_bucket_size"]) == (1, 10**9)
        return
    assert zero["stage"] == 3
    assert zero["sub_group_size"] == zero["stage3_prefetch_bucket_size"] == 10**9
    assert zero["stage3_param_persistence_threshold"] == 10**7
    assert zero["stage3_gather_16bit_weights_on_model_save"] is True
    live = 10**8 if name == "zero3-offload" else 10**9
    assert zero["stage3_max_live_parameters"] == live
    offloaded = {zero.get(f"offload_{part}", {}).get("device") for part in ("param", "optimizer")}
    assert offloaded == ({"cpu"} if name == "zero3-offload" else {None})


SCRIPT = """
import sys
import torch

torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
total = torch.tensor([rank + 1.0])
torch.distributed.all_reduce(total)
with open(f"{sys.argv[1]}/rank{rank}", "w") as file:
    file.write(f"{torch.distributed.get_world_size()} {total.item()}")
torch.distributed.destroy_process_group()
"""


def test_two_processes_start_on_a_cpu_and_reach_each_other(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(LAUNCH / "cpu2.yaml"), "--main_process_port", "0"]
    subprocess.run([*command, str(tmp_path / "script.py"), str(tmp_path)], check=True, timeout=240)
    assert {(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)} == {"2 3.0"}
