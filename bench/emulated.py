"""What the emulated robot's three processes take, with age and period beside a floor.

    PYTHONPATH=tools .venv/bin/python bench/emulated.py --duration 20 --rounds 3 --tree ../before

Emulator, jetson-hal and game loop walk with the policy `gait`, without containers. With `--tree`,
another checkout of this repository, runs of the two take turns. Processor time is counted while it
walks, in cores. Beside them runs a bare loop at 200 Hz with the HAL's real-time priority: its
period is the floor of theirs. What all other processes of the machine take in that time is printed
too. The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
from krabby.robot.assets import robot_dir
from krabby.runtime.testing import free_port, until
from krabby_faults.stack import own_buses
from krabby_proto import ControlClient, HalClient, ProtoError, default_endpoints

SERVICES: Final = {"robot-emulator": 50, "jetson-hal": 60, "gameloop": 55}
"""With their real-time priorities, as on the robot."""
_FIGURES: Final = ("obs_age_p50_ms", "obs_age_p99_ms", "bus_period_p50_ms", "bus_period_p99_ms")
_PERIOD_NS: Final = 5_000_000
_SOURCES: Final = ("proto", "libs/krabby", "cli", *(f"services/{name}" for name in (
    "emulator", "jetson-hal", "gameloop", "camera", "sim-hal")))  # fmt: skip


class Walk:
    """The processes of one checkout in a folder, and their clients."""

    def __init__(self, tree: Path, folder: Path) -> None:
        (folder / "s").mkdir(mode=0o700)
        self.endpoints = default_endpoints(f"ipc://{folder}/s")
        self.endpoints |= {name: f"ipc://{folder}/s/{name}" for name in ("fault", "raw")}
        self._folder, self._tree = folder, tree
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.hal = HalClient({name: self.endpoints[name] for name in ("command", "safety")})
        self.emulator = ControlClient(self.endpoints["fault"])
        self.loop = ControlClient(self.endpoints["control"])

    def start(self) -> None:
        """Start all three, each once the one before answers."""
        hardware, port = self._folder / "hardware.toml", free_port()
        hardware.write_text(own_buses((robot_dir() / "hardware.toml").read_text()))
        self._start(
            "robot-emulator", "krabby_emulator", "raw", "truth", "fault", "nav",
            **{"can.hardware": hardware, "imu.listen": f"tcp://127.0.0.1:{port}",
               "camera.enabled": "false", "course.name": "flat", "mission.repeat": "true"},
        )  # fmt: skip
        self.emulator.request("status", timeout_s=60.0)
        self._start(
            "jetson-hal", "krabby_jetson_hal", "state", "camera", "command", "safety", "raw",
            **{"can.hardware": hardware, "imu.port": f"socket://127.0.0.1:{port}"},
        )  # fmt: skip
        self.hal.hello(60.0)
        streams = ("state", "command", "features", "nav", "control")
        self._start("gameloop", "krabby_gameloop", *streams, policy="gait")

    def _start(self, name: str, module: str, *streams: str, **options: object) -> None:
        endpoints = (f"endpoints.{stream}={self.endpoints[stream]}" for stream in streams)
        paths = os.pathsep.join(str(self._tree / source / "src") for source in _SOURCES)
        priority = f"realtime.fifo_priority={SERVICES[name]}"  # where it is refused, a warning
        with (self._folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [*(sys.executable, "-m", module, "metrics_port=0", priority), *endpoints,
                 *(f"{key}={value}" for key, value in options.items())],
                stdout=log, stderr=log,
                env={**os.environ, "PYTHONPATH": paths, "KRABBY_ASSETS": str(robot_dir().parent)},
            )  # fmt: skip

    def walks(self) -> bool:
        """Whether the policy moves it; it is armed and stood up where it is not."""
        with contextlib.suppress(ProtoError):
            state = self.hal.safety("status", "bench", timeout_s=2.0)["state"]
            if state in ("disarmed", "damp", "estop"):
                self.hal.safety("reset", "bench", timeout_s=2.0)
                answer = self.hal.safety("arm", "bench", timeout_s=2.0)
                if "measurement shows" in answer["reason"]:
                    self.emulator.request("put-back", timeout_s=5.0)
            mode = self.loop.request("status", timeout_s=1.0)["mode"]
            return mode == "policy" and state == "active"
        return False

    def stop(self) -> dict[str, dict[str, Any]]:
        """End all three in the order of the robot; their summaries by name."""
        for name in reversed(SERVICES):
            self.processes[name].send_signal(signal.SIGINT)
            self.processes[name].wait(timeout=30.0)
        return {name: self._summary(name) for name in SERVICES}

    def _summary(self, name: str) -> dict[str, Any]:
        lines = (self._folder / f"{name}.log").read_text().splitlines()
        events = [json.loads(line) for line in lines if line.startswith("{")]
        return next(event for event in reversed(events) if event["event"] == "summary")

    def close(self) -> None:
        """Kill what is left."""
        for process in self.processes.values():
            process.kill()
            process.wait()
        for client in (self.hal, self.emulator, self.loop):
            client.close()


def bare_loop(duration_s: float, told: Connection) -> None:
    """Wake at 200 Hz for so long and tell p50 and p99 of the period [ms]."""
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(SERVICES["jetson-hal"]))
    due = (time.monotonic_ns() // _PERIOD_NS + 1) * _PERIOD_NS
    end_ns = time.monotonic_ns() + round(duration_s * 1e9)
    woke = []
    while due < end_ns:
        time.sleep(max(due - time.monotonic_ns(), 0) * 1e-9)
        woke.append(time.monotonic_ns())
        due = max(due + _PERIOD_NS, (woke[-1] // _PERIOD_NS) * _PERIOD_NS + _PERIOD_NS)
    told.send(np.quantile(np.diff(woke) * 1e-6, (0.5, 0.99)).tolist())


@contextlib.contextmanager
def running(tree: Path) -> Iterator[Walk]:
    """A walk of a checkout, on its feet."""
    with tempfile.TemporaryDirectory(prefix="ke-") as name:
        walk = Walk(tree, Path(name))
        try:
            walk.start()
            until(walk.walks, timeout_s=90.0)
            yield walk
        finally:
            walk.close()


def run(tree: Path, duration_s: float) -> dict[str, Any]:
    """Let it walk for so long; what that took and came to."""
    with running(tree) as walk:
        ours, theirs = Pipe(duplex=False)
        floor = get_context("fork").Process(target=bare_loop, args=(duration_s, theirs))
        floor.start()
        timed = {name: psutil.Process(each.pid) for name, each in walk.processes.items()}
        began, busy = time.monotonic(), {name: _busy(each) for name, each in timed.items()}
        machine = _machine_busy()
        time.sleep(duration_s)
        elapsed = time.monotonic() - began
        cores = {name: (_busy(each) - busy[name]) / elapsed for name, each in timed.items()}
        machine = (_machine_busy() - machine) / elapsed
        floor_ms = ours.recv()
        floor.join()
        summaries = walk.stop()
    hal, emulator = summaries["jetson-hal"], summaries["robot-emulator"]
    return {
        "cores": cores,
        "all_cores": sum(cores.values()),
        "others": machine - sum(cores.values()),
        "load": os.getloadavg()[0],
        "floor_ms": floor_ms,
        **{name: hal[name] for name in (*_FIGURES, "exchange_p50_ms", "replies_missed")},
        "falls": emulator["falls"],
        "lateness_p99_ms": emulator["lateness_p99_ms"],
    }


def _busy(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _machine_busy() -> float:
    times = psutil.cpu_times()
    return sum(times) - times.idle - times.iowait - times.guest - times.guest_nice


def main() -> None:
    """Run in turns; the last line of stdout is JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--duration", type=float, default=20.0, help="of a walk [s]")
    parser.add_argument("--rounds", type=int, default=3, help="walks of each checkout")
    parser.add_argument("--tree", type=Path, help="another checkout to take turns with")
    args = parser.parse_args()
    trees = {"this": Path(__file__).resolve().parents[1]}
    if args.tree:
        trees = {"other": args.tree.resolve(), **trees}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
    for turn in range(args.rounds):
        for name, tree in trees.items():
            found[name].append(run(tree, args.duration))
            print(f"round {turn + 1} {name:5s} {_line(found[name][-1])}", flush=True)
    for name, runs in found.items():
        cores = statistics.median(each["all_cores"] for each in runs)
        print(f"{name:5s} median of {len(runs)}: {cores:.2f} cores")
    print(json.dumps(found))


def _line(row: dict[str, Any]) -> str:
    parts = " + ".join(f"{cores:.2f}" for cores in row["cores"].values())
    p50, p99 = row["floor_ms"]
    return (
        f"{parts} = {row['all_cores']:.2f} cores; age p50 {row['obs_age_p50_ms']:.2f} p99 "
        f"{row['obs_age_p99_ms']:.2f} ms; period p50 {row['bus_period_p50_ms']:.2f} p99 "
        f"{row['bus_period_p99_ms']:.2f} ms, floor {p50:.2f}, {p99:.2f}; exchange p50 "
        f"{row['exchange_p50_ms']:.2f} ms, missed {row['replies_missed']}, falls {row['falls']}; "
        f"others {row['others']:.2f} cores, load {row['load']:.1f}"
    )


if __name__ == "__main__":
    main()
