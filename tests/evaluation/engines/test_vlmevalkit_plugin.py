"""Our classes beside VLMEvalKit's, on a stand-in that has its shape; the real one runs in
test_vlmevalkit_real.py."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from internvl.evaluation.engines import vlmevalkit_plugin as plugin

VLM = """
import torch
def load_image(file, input_size=448, max_num=6):
    return input_size
class InternVLChat:
    def __init__(self, model_path, use_lmdeploy=False, **kwargs):
        self.model, self.device, self.kwargs = Model(), "cuda", kwargs
    def use_custom_prompt(self, dataset):
        return True
    def set_max_num(self, dataset):
        self.max_num, self.total_max_num = 6, 64
    @torch.no_grad()
    def generate_v2(self, message, dataset=None):
        images = sum(part["type"] == "image" for part in message)
        limit = max(1, min(self.max_num, self.total_max_num // images))
        return limit, [load_image(part["value"]) for part in message if part["type"] == "image"]
class Model(torch.nn.Linear):
    side = 448
    def __init__(self):
        super().__init__(1, 1)
        self.config = type("Config", (), {"force_image_size": self.side})
"""
DATASET = """
class MMMUProDataset:
    MODALITY = "IMAGE"
    def __init__(self, **kwargs):
        self.name = kwargs.get("dataset", "MMBench")
class RefCOCODataset(MMMUProDataset):
    def __init__(self, *args, **kwargs):
        super().__init__(**kwargs)
"""
RUN = """
import inspect, json, sys
first = "vlmeval" not in sys.modules
import vlmeval.dataset, vlmeval.vlm
def load_env():
    global ready
    ready = True
def main():
    cls = vlmeval.dataset.InternVLMMMUPro
    config = {"dataset": "MMMU_Pro_10c", "other": 1}
    valid = {k: v for k, v in config.items() if k in inspect.signature(cls.__init__).parameters}
    engines = [p for p in sys.path if p.rstrip("/").endswith("engines")]
    print(json.dumps([ready, first, cls(**valid).name, vlmeval.dataset.InternVLRefCOCO("R").name,
                      hasattr(vlmeval.vlm, "InternVL25Chat"), sys.argv[1:], engines, __name__]))
if __name__ == "__main__":
    raise SystemExit("main is ours to call")
"""


@pytest.fixture
def vlm(tmp_path, monkeypatch):
    """The stand-in package, imported."""
    folder = tmp_path / "vlmeval"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "vlm.py").write_text(VLM)
    (folder / "dataset.py").write_text(DATASET)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("vlmeval", "vlmeval.vlm", "vlmeval.dataset"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import vlmeval.vlm

    yield vlmeval.vlm
    for name in ("vlmeval", "vlmeval.vlm", "vlmeval.dataset"):
        sys.modules.pop(name, None)


def image(*names: str) -> list[dict]:
    return [{"type": "image", "value": name} for name in names]


def test_prompts_of_the_data_set_where_its_own_lose_the_options(vlm):
    model = plugin.chat_class()(own_prompts=["MMMU_Pro"], model_path="m", max_new_tokens=8)
    assert not model.use_custom_prompt("MMMU_Pro_10c_COT")
    assert model.use_custom_prompt("MMMU_DEV_VAL")
    assert model.kwargs == {"max_new_tokens": 8}  # ours does not reach the settings of generation
    assert model.device == torch.device("cpu")


def test_text_without_pictures(vlm):
    model = plugin.chat_class()(model_path="m")
    model.set_max_num("TextMCQ")
    assert model.generate_v2([{"type": "text", "value": "Why?"}]) == (6, [])
    assert model.generate_v2(image(*"abcdefghijklmnop"))[0] == 4  # 64 over 16, as ever
    plain = vlm.InternVLChat("m")
    plain.set_max_num("TextMCQ")
    with pytest.raises(ZeroDivisionError):  # what it is there for
        plain.generate_v2([])


def test_tiles_of_the_checkpoints_size(vlm, monkeypatch):
    model = plugin.chat_class()(model_path="m")
    model.set_max_num("x")
    assert model.generate_v2(image("a"))[1] == [448]
    monkeypatch.setattr(vlm.Model, "side", 112)
    small = plugin.chat_class()(model_path="m")
    small.set_max_num("x")
    assert small.generate_v2(image("a", "b"))[1] == [112, 112]
    assert vlm.load_image("a") == 448  # VLMEvalKit's own is as it was
    deployed = plugin.chat_class()(model_path="m", use_lmdeploy=True)
    assert deployed.device == "cuda"


def test_it_starts_run_py_with_our_classes_in_place(vlm, tmp_path):
    (tmp_path / "run.py").write_text(RUN)
    (tmp_path / "vlmeval" / "vlm.py").write_text("class InternVLChat:\n    pass\n")
    command = [sys.executable, plugin.__file__, str(tmp_path / "run.py"), "--config", "plan.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        True,
        True,  # run.py chose its GPUs before anything was imported
        "MMMU_Pro_10c",
        "R",
        True,
        ["--config", "plan.json"],
        [],  # our lm_eval.py does not hide the library
        "vlmevalkit_run",
    ]
