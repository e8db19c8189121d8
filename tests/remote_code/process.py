"""Fresh processes and repositories for them, as users have them.

Each case runs in a process of its own, offline and with its own module cache, because transformers
keeps the code it loaded for the life of a process.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests import support

SCRIPTS = Path(__file__).parent / "scripts"


def run(code: str, cache: Path) -> Any:
    """Run code after `from users import *`; it prints one JSON value last."""
    return _run(["-c", "from users import *\n" + code], cache)


def run_script(name: str, cache: Path, *arguments: str) -> Any:
    """Run a script of tests/remote_code/scripts; it prints one JSON value last."""
    return _run([str(SCRIPTS / name), *arguments], cache)


def _run(arguments: list[str], cache: Path) -> Any:
    environment = {
        **os.environ,
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(cache / "modules"),
        "PYTHONPATH": str(SCRIPTS),
    }
    result = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        env=environment,
        cwd=cache,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout.strip().splitlines()[-1])


def write_repository(folder: Path, name: str = "qwen2") -> Path:
    """A Hub repository: this code, a golden checkpoint, and processor files for its tile size."""
    support.copy_code(folder)
    shutil.copytree(support.checkpoint(name), folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    root = json.loads((support.ROOT / "config.json").read_text())
    config |= {"auto_map": root["auto_map"], "img_context_token_id": support.IMG_CONTEXT_ID}
    (folder / "config.json").write_text(json.dumps(config))
    side = support.tile_size(name)
    for file in (
        "preprocessor_config.json",
        "video_preprocessor_config.json",
        "processor_config.json",
    ):
        fields = json.loads((support.ROOT / file).read_text())
        for key in ("size", "crop_size"):
            if key in fields:
                fields[key] = {"height": side, "width": side}
        if "image_seq_length" in fields:
            fields["image_seq_length"] = (side // 28) ** 2
        if "template" in fields:
            fields["template"] = config["template"]
        (folder / file).write_text(json.dumps(fields))
    template = support.conversation.get_conv_template(config["template"])
    jinja = support.conversation.chat_template(template)
    (folder / "chat_template.jinja").write_text(jinja, encoding="utf-8")
    return folder
