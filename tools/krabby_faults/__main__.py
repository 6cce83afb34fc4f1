"""`python -m krabby_faults`: the table of faults, or a soak of random ones."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from krabby.policy.testing import write_seeing_gait
from krabby.robot.description import RobotDescription
from krabby_proto import ProtoError

from krabby_faults.measure import Row, measure
from krabby_faults.report import line, write_rows
from krabby_faults.soak import soak
from krabby_faults.stack import ROBOTS, Robot, Stack
from krabby_faults.table import FAULTS, Fault
from krabby_faults.tun import Link

_PRIORITY: Final = 30


def main() -> int:
    """Run; returns 1 when something is not as it has to be."""
    args = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started is ended first
    with contextlib.suppress(OSError):  # to inject and repair in time; not for what it starts
        once = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, once, os.sched_param(_PRIORITY))
    with tempfile.TemporaryDirectory(prefix="kf-policy-") as folder:
        policy = str(
            write_seeing_gait(
                Path(folder) / "seeing", RobotDescription.load(), features="image"
            ).path
        )
        if args.soak:
            return soak(policy, args.soak, args.seed, args.write)
        chosen = [fault for fault in FAULTS if args.only in fault.name]
        rows = [row for robot in args.robot for row in run(robot, policy, chosen, write=args.write)]
    bad = [row for row in rows if row is None or row.problems()]
    sys.stdout.write(f"{len(rows)} rows, {len(bad)} with problems\n")
    return 1 if bad else 0


def run(robot: Robot, policy: str, faults: list[Fault], *, write: bool) -> Iterator[Row | None]:
    """Measure faults on one robot, on one stack for all that need the same.

    None for a fault after which nothing could be measured: the next one gets a new stack.
    """
    root = os.geteuid() == 0
    faults = [one for one in faults if robot in one.robots and (root or not one.needs_root)]
    for camera, far in ((False, False), (True, False), (False, True)):
        group = [one for one in faults if (one.needs_camera, one.far) == (camera, far)]
        while group:
            link = Link(clock_ahead_s=5000) if far else None
            stack = Stack(robot, policy if camera else "gait", camera=camera, link=link)
            try:
                stack.start()
                while group:
                    row = measure(stack, group.pop(0))
                    sys.stdout.write(line(row) + "\n")
                    sys.stdout.flush()
                    if write:
                        write_rows([row])
                    yield row
            except (TimeoutError, ProtoError) as error:
                sys.stdout.write(f"PROBLEM: not measured: {error}\n")
                yield None
            finally:
                stack.close()
                if link is not None:
                    link.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m krabby_faults", description=__doc__)
    parser.add_argument("--robot", nargs="+", choices=ROBOTS, default=ROBOTS)
    parser.add_argument("--only", default="", metavar="TEXT", help="faults with TEXT in the name")
    parser.add_argument("--write", action="store_true", help="write docs/faults.md and .json")
    parser.add_argument("--soak", type=float, default=0.0, metavar="MINUTES")
    parser.add_argument("--seed", type=int, default=0, help="of the soak")
    return parser


if __name__ == "__main__":
    sys.exit(main())
