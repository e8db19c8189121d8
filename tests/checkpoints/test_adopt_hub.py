"""Adopting from a Hub: headers before gigabytes, only the files needed, one pinned commit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from internvl.checkpoints.verify import verify
from tests import support
from tests.checkpoints import sources
from tests.checkpoints.hub_server import COMMIT, HubServer, serve

GOOD, PLANNED = "somebody/good", "somebody/planned"
WRONG, PICKLED = "somebody/wrong", "somebody/pickled"
WEIGHTS = "model.safetensors"
# A process of its own: the address of the Hub is read when huggingface_hub is imported.
RUN = """
import json, sys
from huggingface_hub import constants
from internvl.checkpoints.adopt import adopt
for source, out, options in json.loads(sys.argv[1]):
    constants.HF_HUB_OFFLINE = options.pop("offline", False)
    try:
        adopted = adopt(source, out, **options)
        print(json.dumps([adopted.revision, adopted.weights, adopted.tensors]))
    except (ValueError, OSError) as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


def run(server: HubServer, cache: Path, *calls: tuple[str, Path, dict]) -> list[list]:
    """Make calls of `adopt`, and return for each what it gave or raised."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": server.endpoint,
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "PYTHONPATH": str(support.ROOT),
    }
    arguments = json.dumps([(source, str(out), options) for source, out, options in calls])
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN, arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return [json.loads(line) for line in result.stdout.splitlines()]


def published(folder: Path) -> Path:
    """A repository as published: weights, tokenizer, the old code, a second copy of the weights."""
    sources.one_file(folder, "qwen2")
    (folder / "modeling_internvl_chat.py").write_text("raise SystemExit('executed')")
    (folder / "pytorch_model.bin").write_bytes(b"\x80" * 1000)
    (folder / "examples").mkdir()
    (folder / "examples" / "image1.jpg").write_bytes(b"x" * 1000)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# InternVL\n")
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Repositories: two good ones, one whose config is of another model, one without
    safetensors."""
    root = tmp_path_factory.mktemp("hub")
    good = published(root / GOOD)
    shutil.copytree(good, root / PLANNED)
    wrong = shutil.copytree(good, root / WRONG)
    llm = json.loads((good / "config.json").read_text())["llm_config"] | {"vocab_size": 1024}
    sources.edit_json(wrong / "config.json", llm_config=llm)
    pickled = shutil.copytree(good, root / PICKLED)
    (pickled / WEIGHTS).unlink()
    return root


def test_hub_repositories(root, tmp_path):
    cache, out, again = tmp_path / "cache", tmp_path / "out", tmp_path / "again"
    whole = (root / GOOD / WEIGHTS).stat().st_size
    with serve(root) as server:
        planned, wrong, pickled, adopted, offline = run(
            server,
            cache,
            (PLANNED, tmp_path / "planned", {"dry_run": True}),
            (WRONG, tmp_path / "wrong", {}),
            (PICKLED, tmp_path / "pickled", {}),
            (GOOD, out, {}),
            (GOOD, again, {"offline": True}),
        )
        # Refused, or planned, from headers alone.
        assert planned == [COMMIT, "linked", 103]
        assert 0 < server.bytes_of(f"{PLANNED}/{WEIGHTS}") < whole / 4
        assert wrong[0] == "ValueError"
        assert "has (1018, 64), expected (1024, 64)" in wrong[1]
        assert 0 < server.bytes_of(f"{WRONG}/{WEIGHTS}") < whole / 4
        assert pickled[0] == "ValueError"
        assert "pickled weights are refused" in pickled[1]
        assert not any((tmp_path / name).exists() for name in ("planned", "wrong", "pickled"))
        assert adopted == offline == planned
        names = {name for name, _ in server.fetched}
        assert f"{GOOD}/{WEIGHTS}" in names
        assert not any(name.endswith((".py", ".bin", ".jpg")) for name in names)
    assert verify(out).defects == verify(again).defects == ()
    card = (out / "README.md").read_text()
    assert GOOD in card
    assert COMMIT in card
    assert "license: mit" in card
    blobs = {path.stat().st_ino for path in cache.rglob("blobs/*")}
    assert (out / WEIGHTS).stat().st_ino in blobs
