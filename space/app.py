"""The Space: brings the code from a model repository, and starts the app on a checkpoint.

INTERNVL_REPO    repository with this code: a Hub id, or a folder
INTERNVL_MODEL   checkpoint to show: a Hub id, or a folder; the demo of the repository if unset
"""

import os
import sys
from pathlib import Path

CODE = ["*.py", "internvl/**", "preprocessor/**", "demo/**", "examples/**"]


def fetch_code() -> Path:
    """The folder that holds the code, downloaded if it is not one already."""
    repository = os.environ.get("INTERNVL_REPO")
    if not repository:
        sys.exit("Set the variable INTERNVL_REPO of this Space to the repository with the code.")
    if Path(repository).is_dir():
        return Path(repository).resolve()
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repository, allow_patterns=CODE))


if __name__ == "__main__":
    sys.path.insert(0, str(fetch_code()))
    from internvl.app.commands import app

    app(
        os.environ.get("INTERNVL_MODEL") or None,
        host=os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0"),
        port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
    )
