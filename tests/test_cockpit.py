"""The cockpit beside `krabby up`: its address, a busy port, and a run that outlives it."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
from krabby.runtime.testing import until
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def run(tmp_path):
    """A simulation whose port for the page is taken; a line of its stderr at a time."""
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        process = subprocess.Popen(
            [sys.executable, "-m", "krabby_cli", "up", "--base-port", "0", "--policy", "gait",
             "--course", "flat", "--no-camera", "--view", "--runs-dir", str(tmp_path),
             "--view-port", str(busy.getsockname()[1])],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        yield process
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def address_in(process):
    """Port and secret, once they are printed; and all lines before."""
    said = ""
    for line in process.stderr:
        said += line
        found = re.search(r"see and drive it: http://127\.0\.0\.1:(\d+)/#(\S+)", line)
        if found:
            return int(found[1]), found[2], said
    raise AssertionError(said)


def view_of(process):
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # also of a zombie
            if "view" in child.cmdline():
                return child
    return None


def shown(port, token):
    """Whether the page's protocol gives the robot."""
    try:
        with connect(f"ws://127.0.0.1:{port}/socket", open_timeout=60) as page:
            page.send(json.dumps({"t": "token", "token": token}))
            end = time.monotonic() + 20
            while time.monotonic() < end:
                content = page.recv(timeout=20)
                if isinstance(content, str) and json.loads(content)["t"] == "robot":
                    return True
    except (OSError, WebSocketException):
        pass
    return False


def test_a_view_that_is_killed_is_started_again_and_the_run_is_none_the_worse(run, tmp_path):
    port, token, said = address_in(run)
    assert "is taken, another one is used" in said
    until(lambda: shown(port, token))
    (folder,) = tmp_path.iterdir()
    kept = "".join(path.read_text() for path in folder.iterdir())
    assert token not in kept  # logs and run.json may be read by other users
    killed = view_of(run)
    killed.kill()
    port, again, _ = address_in(run)
    assert again == token
    until(lambda: shown(port, token))
    run.send_signal(signal.SIGTERM)
    out, _ = run.communicate(timeout=60)
    summary = json.loads(out.splitlines()[-1])
    assert "view" not in summary["reason"]  # a busy machine may have ended a loop
