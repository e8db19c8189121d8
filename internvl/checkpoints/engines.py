"""What to run for a plan: the snippet of each engine.

Those of transformers were run with two processes on a CPU (docs/multi_gpu.md), that of vLLM was not
(docs/serving.md).
"""

from __future__ import annotations

from pathlib import Path

from internvl.checkpoints.memory import Workload

_RECIPES = {"int8": "bnb-int8", "int4": "bnb-nf4"}
_TORCH = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}

_LOAD = """from internvl import hub

loaded = hub.load({source!r}, {options})"""
_PLANNED = """from internvl import hub
from internvl.checkpoints.memory import Workload
from internvl.checkpoints.plan import plan_device_map, resolve_config

source, gpus = {source!r}, {count}  # as many as torch.cuda.device_count() says
_, config = resolve_config(source)
sizes = [torch.cuda.get_device_properties(i).total_memory for i in range(gpus)]
work = {work}  # samples, positions of each, tiles of each
device_map = plan_device_map(config, sizes, dtype={dtype!r}, work=work)
loaded = hub.load(source, {options})"""
_PARALLEL = """# run.py: torchrun --nproc-per-node {count} run.py
from transformers import AutoModel
from transformers.distributed import DistributedConfig

model = AutoModel.from_pretrained(
    {source!r},
    dtype="{torch}",
    trust_remote_code=True,
    distributed_config=DistributedConfig(tp_plan="auto", tp_size={count}),
).eval()"""
_VLLM = """vllm serve {source} --trust-remote-code --tensor-parallel-size {count} \\
    --max-model-len {context} --limit-mm-per-prompt '{{"image": {images}}}' --dtype {torch}"""
_FSDP = """# train.py: torchrun --nproc-per-node {count} train.py
from transformers import AutoModel
from transformers.distributed import DistributedConfig

model = AutoModel.from_pretrained(
    {source!r},
    dtype="{torch}",
    trust_remote_code=True,
    distributed_config=DistributedConfig(fsdp_size={count}),
).train()"""


def snippet(
    engine: str, model: str | Path, count: int, dtype: str, work: Workload, images: int
) -> str:
    """Code or command that runs a model with an engine.

    Args:
        engine: "one GPU", "device_map", "tensor parallel", "vLLM" or "FSDP2".
        model: folder, Hub id, or name of a published model, which becomes its Hub id.
        count: GPUs.
        dtype: "bf16", "fp16", "fp32", "int8" or "int4".
        work: the workload.
        images: of a sample.
    """
    quantised = _RECIPES.get(dtype)
    options = f"quantization={quantised!r}" if quantised else f"dtype={_TORCH[dtype]!r}"
    source = _source(model)
    values = {
        "count": count,
        "dtype": dtype,
        "torch": _TORCH.get(dtype, "bfloat16"),
        "context": work.context,
        "work": f"Workload({work.batch}, {work.context}, {work.tiles})",
        "images": max(images, 1),
    }
    before = ""
    if engine not in ("one GPU", "device_map") and not Path(source).exists():
        # These run the code of the folder, which has to be this one.
        folder = f"./{source.rpartition('/')[2]}"
        before = f"# first: python -m internvl adopt {source} {folder}\n"
        source = folder
    if engine == "one GPU":
        return _LOAD.format(**values, source=source, options=f'{options}, device_map="auto"')
    if engine == "device_map":
        code = _PLANNED.format(**values, source=source, options=f"{options}, device_map=device_map")
        return f"import torch\n{code}"
    templates = {"tensor parallel": _PARALLEL, "vLLM": _VLLM, "FSDP2": _FSDP}
    return before + templates[engine].format(**values, source=source)


def _source(source: str | Path) -> str:
    """A folder or Hub id as it is; the Hub id of a published model."""
    from internvl.checkpoints.published import CHAT_MODELS

    text = str(source.parent if (source := Path(source)).is_file() else source)
    if "/" in text or Path(text).exists():
        return text
    wanted = text.lower().replace(".", "_")
    known = (wanted, f"internvl{wanted}", f"internvl2_5-{wanted}")
    found = [model.name for model in CHAT_MODELS if model.name.lower() in known]
    return f"OpenGVLab/{found[0]}" if found else text
