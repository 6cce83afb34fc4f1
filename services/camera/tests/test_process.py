"""The process from outside: its command line and what it costs."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import psutil
import pytest
from krabby.runtime.rate import Rate
from krabby_proto import CAMERA, FEATURES, LatestSubscriber, Publisher


def camera(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "krabby_camera", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_help_lists_every_key():
    done = camera("--help")
    assert done.returncode == 0
    assert re.search(r'endpoints\.features  \(text, default "ipc:///\S+/features"\)', done.stdout)
    assert "replay.loop  (true or false, default false)" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--check", "sourc=hal"], "did you mean source?"),
        (["--check", "source=lidar"], "expected one of 'hal', 'realsense', 'replay', 'zed'"),
        (["--check", "source=zed"], "run /usr/local/zed/get_python_api.py with this Python"),
        (["--check", "source=zed", "zed.fps=50"], "zed.fps is 50; expected"),
        (["--check", "source=replay"], "replay.path is ''; expected"),
        (["--check", "source=replay", "replay.path=absent.mcap"], "no recording at absent.mcap"),
        (["--check", "bundle=nonesuch"], "no policy 'nonesuch'"),
        (["--check", "robot=absent.toml"], "cannot read absent.toml"),
    ],
)
def test_a_configuration_that_cannot_work_is_one_line_and_status_two(arguments, words):
    done = camera(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.slow
def test_thirty_frames_a_second_cost_less_than_a_sixth_of_a_core():
    with tempfile.TemporaryDirectory(prefix="cam") as folder:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "krabby_camera",
                "metrics_port=0",
                f"endpoints.camera=ipc://{folder}/camera",
                f"endpoints.features=ipc://{folder}/features",
            ],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ,
        )
        noise = np.random.default_rng(0)
        frames = [noise.uniform(0.0, 4.0, (60, 106)).astype(np.float32) for _ in range(8)]
        with (
            Publisher(f"ipc://{folder}/camera", CAMERA) as publisher,
            LatestSubscriber(f"ipc://{folder}/features", FEATURES) as features,
        ):
            rate = Rate(1 / 30)
            while features.take() is None:
                publisher.publish(frames[rate.ticks % 8], capture_ns=rate.wait().woke_ns)
            used, since = psutil.Process(process.pid).cpu_times(), time.monotonic()
            for _ in range(300):
                publisher.publish(frames[rate.ticks % 8], capture_ns=rate.wait().woke_ns)
            after, elapsed_s = psutil.Process(process.pid).cpu_times(), time.monotonic() - since
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
    cores = (after.user + after.system - used.user - used.system) / elapsed_s
    summary = json.loads(out.splitlines()[-1])
    assert process.returncode == 0
    assert summary["frames"] >= 100
    share = min(summary["frames"] / 300, 1.0)  # a busy machine encodes fewer
    assert cores < 0.15 * share, f"{cores:.3f} cores; {summary}"
