"""Programs of others: what they print passes through, and they end when we do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from internvl.evaluation.engines import process
from tests import support

CHILD = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
open("started.partial", "w").write(f"{os.getpid()} {child.pid}")
os.rename("started.partial", "started")
try:
    time.sleep(100)
except KeyboardInterrupt:
    open("saved", "w").write("answers so far")
    raise
"""
PARENT = """
import sys
from internvl.evaluation.engines import process
try:
    process.run([sys.executable, "child.py"])
except KeyboardInterrupt as error:
    open("unwound", "w").write(type(error).__name__)
    raise SystemExit(3)
"""


def test_output_and_environment_pass_through(tmp_path, capfd):
    code = "import os, sys; print(os.environ['WHICH'], os.getcwd()); sys.stderr.write('50%')"
    process.run([sys.executable, "-c", code], environment={"WHICH": "ours"}, cwd=tmp_path)
    out, err = capfd.readouterr()
    assert out == f"ours {tmp_path}\n"
    assert err == "50%"


def test_a_failure_is_an_error():
    with pytest.raises(ValueError, match="ended with code 7"):
        process.run([sys.executable, "-c", "raise SystemExit(7)"])


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1][:3]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("number", "name"),
    [
        (signal.SIGINT, "KeyboardInterrupt"),
        (signal.SIGTERM, "Terminated"),
        (signal.SIGHUP, "Terminated"),
    ],
)
def test_an_interruption_lets_it_save_and_leaves_nothing_behind(tmp_path, number, name):
    (tmp_path / "child.py").write_text(CHILD)
    environment = {**os.environ, "PYTHONPATH": str(support.ROOT)}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        cwd=tmp_path,
        env=environment,
        # What nohup, or a shell in the background, would let it ignore.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    while not (tmp_path / "started").exists():
        assert parent.poll() is None
        time.sleep(0.02)
    pids = [int(each) for each in (tmp_path / "started").read_text().split()]
    parent.send_signal(number)
    assert parent.wait() == 3
    assert (tmp_path / "unwound").read_text() == name
    assert (tmp_path / "saved").read_text() == "answers so far"
    deadline = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(alive, pids))
