"""`krabby identify`: gains, delay and friction of the joints from a recorded run.

Least squares on commands, measured torques and legs in the air. Friction is good to 1 N·m with the
gait, whose body hardly rotates; use it to compare joints.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from krabby.robot.description import RobotDescription
from krabby_proto import ProtoError

from krabby_cli.errors import UsageError
from krabby_cli.options import add_command, flag, print_json, print_line

if TYPE_CHECKING:
    from krabby.diagnosis.identify import Identified

__all__ = ["add_parser"]

_EPILOG: Final = """\
examples:
  make sim DURATION=30 POLICY=gait RECORD=run.mcap
  krabby identify run.mcap
  krabby identify run.mcap --json
"""


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands, "identify", run, "gains, delay and friction from a recording", __doc__, _EPILOG
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="MCAP file of `krabby record`")
    flag(parser, "--json", "one JSON object in place of the table")


def run(args: argparse.Namespace) -> int:
    from krabby.diagnosis.identify import identify
    from krabby.diagnosis.log import RunLog
    from krabby_proto.recording import Recording

    desc = RobotDescription.load()
    try:
        log = RunLog.of_recording(Recording(args.file))
    except ProtoError as error:
        raise UsageError(str(error)) from error
    found = identify(log, desc)
    if args.json:
        print_json(found.to_dict())
        return 0
    print_line(_text(found, desc))
    return 0


def _text(found: Identified, desc: RobotDescription) -> str:
    head = (
        f"{'joint':14}{'kp':>8}{'described':>11}{'kd':>8}"
        f"{'described':>11}{'friction':>10}{'at speed':>10}"
    )
    lines = [head]
    for j, name in enumerate(found.joints):
        cells = (
            (found.kp[j], 8, 1), (desc.kp[j], 11, 1), (found.kd[j], 8, 2), (desc.kd[j], 11, 2),
            (found.friction[j], 10, 1), (found.speed[j], 10, 1),
        )  # fmt: skip
        lines.append(f"{name:14}" + "".join(_cell(*cell) for cell in cells))
    lines.append("kp [N·m/rad], kd [N·m·s/rad], friction [N·m] at a speed [rad/s]")
    described_ms = 1e3 * desc.latency.command_s
    if np.isfinite(found.delay_s):
        lines.append(
            f"delay from answer to torque: {1e3 * found.delay_s:.1f} ms, described "
            f"{described_ms:.1f} ms"
        )
    else:
        lines.append("delay and gains: no commands were recorded")
    return "\n".join(lines)


def _cell(value: float, width: int, digits: int) -> str:
    return f"{value:{width}.{digits}f}" if np.isfinite(value) else f"{'-':>{width}}"
