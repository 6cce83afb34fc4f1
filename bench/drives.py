"""Measures one exchange with 18 drives, beside python-can alone moving as many frames.

python bench/drives.py --cycles 2000

The drives are fakes; over UDP multicast they run in a process of their own, so that processor time
is the driver's alone. `virtual` lives in one process: its figures include the fakes'.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from typing import Any

import can
import numpy as np
from krabby.drivers.can.bus import CanJointBus
from krabby.drivers.can.calibration import Calibration
from krabby.drivers.can.can_io import open_bus
from krabby.drivers.can.hardware import HardwareDescription
from krabby.drivers.can.plan import markdown, plan
from krabby.drivers.can.testing import FakeDrives, free_multicast_channels
from krabby.drivers.can.types import DriveTargets
from krabby.robot.description import RobotDescription

PERIOD_S = 0.005
DEADLINE_NS = 4_000_000


def serve(hardware: HardwareDescription, ready: Event, done: Event) -> None:
    """The fakes' process."""
    with FakeDrives(hardware):
        ready.set()
        done.wait()


@contextlib.contextmanager
def drives(hardware: HardwareDescription) -> Iterator[None]:
    """Fakes on the buses: in a process where the buses reach one, else in threads."""
    if hardware.buses[0].interface == "virtual":
        with FakeDrives(hardware):
            yield
        return
    spawn = multiprocessing.get_context("spawn")
    ready, done = spawn.Event(), spawn.Event()
    process = spawn.Process(target=serve, args=(hardware, ready, done))
    process.start()
    try:
        if not ready.wait(30.0):
            raise SystemExit("the fake drives did not start within 30 s")
        yield
    finally:
        done.set()
        process.join()


def bench_exchange(
    hardware: HardwareDescription, desc: RobotDescription, cycles: int
) -> dict[str, Any]:
    """Paced at 200 Hz, as on the robot."""
    targets = DriveTargets(desc.default_joint_pos, np.zeros(18), desc.kp, desc.kd, np.zeros(18))
    wall, cpu = [], []
    with drives(hardware):
        bus = CanJointBus(hardware, Calibration.nominal(hardware), desc)
        bus.open()
        try:
            bus.enable(bus.probe())
            due = time.monotonic()
            for _ in range(cycles):
                due = max(due + PERIOD_S, time.monotonic())
                time.sleep(max(due - time.monotonic(), 0.0))
                start, busy = time.perf_counter(), time.thread_time()
                readings = bus.exchange(targets, time.monotonic_ns() + DEADLINE_NS)
                wall.append(time.perf_counter() - start)
                cpu.append(time.thread_time() - busy)
            missed, late = int(readings.missed.sum()), int(bus.wire.late.sum())
        finally:
            bus.disable()
            bus.close()
    return {"wall": wall, "cpu": cpu, "missed": missed, "late": late}


def bench_floor(hardware: HardwareDescription, cycles: int) -> list[float]:
    """Processor time of sending 18 frames and receiving 18 with python-can and nothing else."""
    spec = hardware.buses[0]
    cpu = []
    with contextlib.ExitStack() as stack:
        sender, receiver = (stack.enter_context(open_bus(spec)) for _ in range(2))
        message = can.Message(arbitration_id=0x0180000B, data=bytes(8))
        for _ in range(cycles):
            busy = time.thread_time()
            for _ in range(18):
                sender.send(message)
            for _ in range(18):
                receiver.recv(0.1)
            cpu.append(time.thread_time() - busy)
            while sender.recv(0.0) is not None:  # multicast sends come back
                pass
    return cpu


def main() -> None:
    """Run all of it; the last line of stdout is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=2000)
    options = parser.parse_args()
    desc = RobotDescription.load()
    wired = HardwareDescription.load(None, desc)
    print(markdown(plan(wired)))
    rows = []
    columns = f"{'p50':>8} {'p99':>8} {'cpu p50':>8} {'floor':>8} {'of a core':>9}"
    print(f"{'one exchange of 18 drives [ms]':<34} {columns}  missed late")
    for interface in ("udp_multicast", "virtual"):
        free = free_multicast_channels(wired) if interface == "udp_multicast" else None
        hardware = wired.with_interface(interface, free)
        result = bench_exchange(hardware, desc, options.cycles)
        floor = float(np.median(bench_floor(hardware, min(options.cycles, 300)))) * 1e3
        p50, p99 = (float(q) * 1e3 for q in np.quantile(result["wall"], (0.5, 0.99)))
        cpu = float(np.median(result["cpu"])) * 1e3
        row = {"interface": interface, "p50_ms": p50, "p99_ms": p99, "cpu_ms": cpu}
        row |= {"floor_ms": floor, "missed": result["missed"], "late": result["late"]}
        rows.append(row)
        print(
            f"{interface:<34} {p50:8.3f} {p99:8.3f} {cpu:8.3f} {floor:8.3f} "
            f"{cpu * 1e-3 / PERIOD_S:9.1%}  {result['missed']:6d} {result['late']:4d}"
        )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
