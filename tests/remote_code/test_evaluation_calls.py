"""The exact calls of VLMEvalKit and lmms-eval, replayed against the demo exported to a folder.

VLMEvalKit itself sends CUDA tensors and cannot run on a CPU; its calls were recorded
(tests/golden/vlmevalkit). They are replayed with the demo's tile size, with tiles cut by the
engine's own rule, and each answer must be the text that the processor and `generate` give.
"""

from __future__ import annotations

from tests import support
from tests.remote_code.process import run, run_script

# The basename that lmms-eval looks up in its table.
FOLDER = "InternVL2_5-8B"

EXPORT = f"""
where = dict(pretrained_model_name_or_path={str(support.ROOT)!r}, subfolder="demo")
AutoModel.from_pretrained(**where, trust_remote_code=True, dtype="auto").save_pretrained({FOLDER!r})
AutoProcessor.from_pretrained(**where, trust_remote_code=True).save_pretrained({FOLDER!r})
print(json.dumps({{}}))
"""


def test_replayed_calls(tmp_path):
    run(EXPORT, tmp_path)
    golden = str(support.GOLDEN / "vlmevalkit")
    result = run_script("evaluation_calls.py", tmp_path, "vlmevalkit", FOLDER, golden)
    assert len(result["same"]) == 24 + 5 + 1
    assert all(result["same"]), result
    assert all(result["counts"]), result["counts"]
    assert len(set(result["answers"])) > 1
    same = run_script("evaluation_calls.py", tmp_path, "lmms_eval", FOLDER, golden)["same"]
    assert len(same) == 5
    assert all(same), same
