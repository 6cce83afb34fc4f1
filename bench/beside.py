"""What costs the game loop time beside it: the cockpit, or recording.

    .venv/bin/python bench/beside.py cockpit --duration 20 --rounds 3
    .venv/bin/python bench/beside.py recording

Runs of `krabby up` take turns. Cockpit: without a view, with one without a page, with one that a
page's protocol is spoken to over a real WebSocket, all frames read. Recording: without, with the
black box's ring, with a recorder, with both. Ages are from a state's capture to the actuator write
of its command; a machine that is busy shows in all alike, so differences between runs of one round
count, not the figures themselves.
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

_NO_VIEW = ("--no-view",)
_NO_RING = ("--no-black-box",)
_VIEW = ("--view", "--view-port", "0")
_CONDITIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "cockpit": {"off": _NO_VIEW, "idle": _VIEW, "client": _VIEW},
    "recording": {
        "off": (*_NO_VIEW, *_NO_RING),
        "ring": _NO_VIEW,
        "recorder": (*_NO_VIEW, *_NO_RING, "--record", "{folder}/run.mcap"),
        "both": (*_NO_VIEW, "--record", "{folder}/run.mcap"),
    },
}
"""Options of `krabby up` by what is measured and its conditions."""
_PRIORITIES = (
    "sim-hal.realtime.fifo_priority=60",
    "gameloop.realtime.fifo_priority=55",
    "camera.realtime.fifo_priority=40",
)
SETTLE_S = 3.0
"""What the view does at its start is not counted."""


def main() -> None:
    parser = argparse.ArgumentParser(description="What costs the game loop time beside it.")
    parser.add_argument("what", choices=_CONDITIONS, help="what is switched on and off")
    parser.add_argument("--duration", type=float, default=20.0, help="of a run [s]")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each condition")
    parser.add_argument("--policy", default="parkour")
    parser.add_argument(
        "--realtime", action="store_true", help="give the loops the robot's real-time priorities"
    )
    args = parser.parse_args()
    conditions = _CONDITIONS[args.what]
    settings = _PRIORITIES if args.realtime else ()
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in conditions}
    for turn in range(args.rounds):
        for condition, options in conditions.items():
            summary = run(condition, options, args.duration, args.policy, settings)
            found[condition].append(summary)
            print(
                f"round {turn + 1} {condition:8s} age p50 {summary['obs_age_p50_ms']:.2f} p99 "
                f"{summary['obs_age_p99_ms']:.2f} ms{_of_view(args.what, summary)}, load "
                f"{os.getloadavg()[0]:.1f}",
                flush=True,
            )
    base = median(found["off"])
    for condition in conditions:
        p99 = median(found[condition])
        cores = statistics.median(view_cores(each) for each in found[condition])
        view = f"; view {100 * cores:.1f} % of a core" if args.what == "cockpit" else ""
        print(
            f"{condition:8s} median p99 {p99:.2f} ms, {p99 - base:+.2f} ms and ratio "
            f"{p99 / base:.2f} to off{view}"
        )


def _of_view(what: str, summary: dict[str, Any]) -> str:
    if what != "cockpit":
        return ""
    return f", view {100 * view_cores(summary):.1f} % of a core, frames {summary['frames']}"


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
    condition: str,
    options: tuple[str, ...],
    duration_s: float,
    policy: str,
    settings: tuple[str, ...] = (),
) -> dict[str, Any]:
    """One run; its summary, with the frames that the client read."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "krabby_cli", "up", "--base-port", "0", "--course", "flat"),
                *("--duration", str(duration_s), "--policy", policy, "--runs-dir", folder),
                *(option.format(folder=folder) for option in options),
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
