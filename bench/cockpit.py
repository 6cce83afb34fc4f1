"""What the cockpit costs: processor of the view, and the game loop's age with and without it.

    .venv/bin/python bench/cockpit.py --duration 20 --rounds 3

Runs of `krabby up` take turns: without a view, with one without a page, with one that a page's
protocol is spoken to over a real WebSocket, all frames read. Ages are from a state's capture to the
actuator write of its command; a machine that is busy shows in all three alike, so differences
between runs of one round count, not the figures themselves.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

import psutil
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

_CONDITIONS = ("off", "idle", "client")
_PRIORITIES = (
    "sim-hal.realtime.fifo_priority=60",
    "gameloop.realtime.fifo_priority=55",
    "camera.realtime.fifo_priority=40",
)
SETTLE_S = 3.0
"""What the view does at its start is not counted."""


def main() -> None:
    parser = argparse.ArgumentParser(description="What the cockpit costs.")
    parser.add_argument("--duration", type=float, default=20.0, help="of a run [s]")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each condition")
    parser.add_argument("--policy", default="parkour")
    parser.add_argument(
        "--realtime", action="store_true", help="give the loops the robot's real-time priorities"
    )
    args = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in _CONDITIONS}
    for turn in range(args.rounds):
        for condition in _CONDITIONS:
            summary = run(
                condition, args.duration, args.policy, _PRIORITIES if args.realtime else ()
            )
            found[condition].append(summary)
            print(
                f"round {turn + 1} {condition:6s} age p50 {summary['obs_age_p50_ms']:.2f} p99 "
                f"{summary['obs_age_p99_ms']:.2f} ms, view {100 * view_cores(summary):.1f} % of a "
                f"core, frames {summary['frames']}, load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
    base = median(found["off"])
    for condition in _CONDITIONS:
        p99 = median(found[condition])
        cores = statistics.median(view_cores(each) for each in found[condition])
        print(
            f"{condition:6s} median p99 {p99:.2f} ms, {p99 - base:+.2f} ms and ratio "
            f"{p99 / base:.2f} to off; view {100 * cores:.1f} % of a core"
        )


def median(summaries: list[dict[str, Any]]) -> float:
    return statistics.median(each["obs_age_p99_ms"] for each in summaries)


def view_cores(summary: dict[str, Any]) -> float:
    return summary["view_cores"]


class Meter(threading.Thread):
    """Processor time of the view from a few seconds after its start to its end."""

    def __init__(self, pid: int) -> None:
        super().__init__()
        self._pid = pid
        self.cores = 0.0

    def run(self) -> None:
        time.sleep(SETTLE_S)
        try:
            children = psutil.Process(self._pid).children(recursive=True)
            (view,) = [each for each in children if "view" in each.cmdline()]
            first = None
            while True:
                times = view.cpu_times()
                sample = time.monotonic(), times.user + times.system
                first = first or sample
                if sample[0] > first[0]:
                    self.cores = (sample[1] - first[1]) / (sample[0] - first[0])
                time.sleep(0.25)
        except psutil.Error:
            return


def run(
    condition: str, duration_s: float, policy: str, settings: tuple[str, ...] = ()
) -> dict[str, Any]:
    """One run; its summary, with the frames that the client read."""
    view = ("--no-view",) if condition == "off" else ("--view", "--view-port", "0")
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "krabby_cli", "up", "--base-port", "0", "--course", "flat"),
                *("--duration", str(duration_s), "--policy", policy, "--runs-dir", folder, *view),
                *(f"--set={setting}" for setting in settings),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        assert process.stdout is not None
        frames: list[int] = [0]
        reader: threading.Thread | None = None
        meter: Meter | None = None
        for line in process.stderr:
            address = re.search(r"http://([^/]+)/#(\S+)", line)
            if address and meter is None:
                meter = Meter(process.pid)
                meter.start()
            if address and condition == "client" and reader is None:
                reader = threading.Thread(target=watch, args=(address[1], address[2], frames))
                reader.start()
        summary = json.loads(process.stdout.read().splitlines()[-1])
        process.wait()
        if reader is not None:
            reader.join()
        if meter is not None:
            meter.join()
    if summary["obs_age_p99_ms"] is None:
        raise SystemExit(f"a run gave no ages: {summary['reason']}")
    cores = 0.0 if meter is None else meter.cores
    return {**summary, "frames": frames[0], "view_cores": cores}


def watch(place: str, token: str, frames: list[int]) -> None:
    """Speak a page's protocol and read every frame until the end."""
    try:
        with connect(f"ws://{place}/socket") as page:
            page.send(json.dumps({"t": "token", "token": token}))
            while True:
                frames[0] += isinstance(page.recv(), bytes)
    except (ConnectionClosed, OSError):
        return


if __name__ == "__main__":
    main()
