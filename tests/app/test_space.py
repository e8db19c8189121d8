"""The Space and the command start, answer, and clear up after themselves."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from tests import support

SPACE = support.ROOT / "space"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_the_space_starts_from_a_folder_answers_and_leaves_nothing(tmp_path):
    gradio_client = pytest.importorskip(
        "gradio_client", reason="the app needs Gradio: pip install 'internvl[app]'"
    )
    port = free_port()
    names = {
        "INTERNVL_REPO": str(support.ROOT),
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": "",  # the package comes from INTERNVL_REPO
    }
    process = subprocess.Popen(
        [sys.executable, "-P", str(SPACE / "app.py")],
        cwd=tmp_path,
        env={**os.environ, **names},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            if "Ctrl-C ends it" in line:
                break
        assert f"http://127.0.0.1:{port}" in said[-1], "".join(said)
        client = gradio_client.Client(f"http://127.0.0.1:{port}/", verbose=False)
        photo = gradio_client.handle_file(str(support.ROOT / "examples" / "circle.png"))
        answer = client.predict("What color is the circle?", [photo], api_name="/ask")
        assert answer["answer"] == "red"
        sent = [path for path in tmp_path.rglob("circle.png") if path.is_file()]
        (folder,) = {path.relative_to(tmp_path).parts[0] for path in sent}
        assert folder.startswith("internvl-app-")  # of this process alone
        process.send_signal(signal.SIGTERM)  # how a Space is stopped
        process.wait(60)
        client.close()
    finally:
        process.kill()
        process.stdout.close()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_space_says_what_it_lacks():
    environment = {name: value for name, value in os.environ.items() if name != "INTERNVL_REPO"}
    result = subprocess.run(
        [sys.executable, str(SPACE / "app.py")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "Set the variable INTERNVL_REPO" in result.stderr


def test_the_card_of_the_space_fits_its_files():
    yaml = pytest.importorskip("yaml")
    header = re.match(r"---\n(.*?)\n---\n", (SPACE / "README.md").read_text("utf-8"), re.DOTALL)
    fields = yaml.safe_load(header[1])
    assert fields["sdk"] == "gradio"
    assert (SPACE / fields["app_file"]).is_file()
    assert len(fields["short_description"]) <= 60  # the Hub's limit
    assert all(model.startswith("OpenGVLab/InternVL2_5") for model in fields["models"])
    gradio = pytest.importorskip("gradio")
    assert fields["sdk_version"] == gradio.__version__  # the one that is tested here
    wanted = (SPACE / "requirements.txt").read_text("utf-8")
    project = (support.ROOT / "pyproject.toml").read_text("utf-8")
    for line in wanted.splitlines():
        if line and not line.startswith("#"):
            assert f'"{line}"' in project, f"{line} is not what pyproject.toml asks for"


def test_the_code_that_a_space_downloads_is_enough():
    import fnmatch

    source = (SPACE / "app.py").read_text("utf-8")
    patterns = re.findall(r'"([^"]+)"', re.search(r"CODE = \[(.*?)\]", source)[1])
    needed = ["internvl/app/style.css", "conversation.py", "preprocessor/tiling.py"]
    needed += ["demo/config.json", "examples/questions.json", "internvl/hub.py"]
    for name in needed:
        assert (support.ROOT / name).is_file()
        assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), name
    assert not any(fnmatch.fnmatch("model-00001-of-00033.safetensors", p) for p in patterns)


def test_the_command_knows_its_options_and_refuses_what_it_cannot_load(tmp_path):
    import typer

    from internvl.app.commands import app

    command = typer.Typer(add_completion=False)
    command.command()(app)
    shown = CliRunner().invoke(command, ["--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert shown.exit_code == 0
    page = (support.ROOT / "docs" / "app.md").read_text("utf-8")
    for option in set(re.findall(r"--[a-z-]+", shown.output)) - {"--help"}:
        assert f"`{option}" in page, f"docs/app.md does not name {option}"
    missing = CliRunner().invoke(command, [str(tmp_path / "nothing")])
    assert missing.exit_code != 0
    assert isinstance(missing.exception, (OSError, ValueError))


def test_nothing_heavy_is_imported_for_the_command():
    program = "import sys, internvl.app.commands; print([m for m in ('torch', 'gradio', 'PIL')"
    program += " if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=support.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "[]"
