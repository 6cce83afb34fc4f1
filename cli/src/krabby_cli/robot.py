"""`krabby robot`: describe the robot, or write it as URDF, MJCF or USD."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
from krabby.course.usd import USD_SUFFIXES, convert_usd
from krabby.robot.assets import choose_robot, robot_file
from krabby.robot.description import RobotDescription

from krabby_cli.errors import UsageError, writing
from krabby_cli.options import add_command, option, print_line

__all__ = ["add_parser"]

_COPIED: Final = (".urdf", ".xml", ".toml")
_EPILOG: Final = """\
examples:
  krabby robot
  krabby robot --robot crab_hex_rs --out crab.usdc
  krabby robot --out crab.urdf
"""


def add_parser(commands: Any) -> None:
    parser = add_command(commands, "robot", run, "describe or export the robot", __doc__, _EPILOG)
    option(parser, "--robot", "NAME", "", "folder under assets; default: crab_hex")
    kinds = ", ".join((*_COPIED, *USD_SUFFIXES))
    option(parser, "--out", "FILE", None, f"description to write: {kinds}", type=Path)


def run(args: argparse.Namespace) -> int:
    choose_robot(args.robot)
    desc = RobotDescription.load()
    if args.out is not None:
        _write(args.out)
    print_line(
        f"{desc.name}: {desc.masses.total:.2f} kg, {len(desc.leg_names)} legs, "
        f"{len(desc.joint_names)} joints, geometry {desc.geometry_hash[:12]}"
    )
    print_line("joint          range [rad]      default    kp   kd  peak [N·m]")
    columns = (desc.joint_lower, desc.joint_upper, desc.default_joint_pos, desc.kp, desc.kd)
    rows = np.column_stack([*columns, np.broadcast_to(desc.peak_torque, desc.kp.shape)])
    for joint, (low, high, default, kp, kd, peak) in zip(desc.joint_names, rows, strict=True):
        print_line(
            f"{joint:13} {low:6.2f} to {high:5.2f} {default:10.2f} {kp:6g} {kd:4g} {peak:8g}"
        )
    if args.out is not None:
        print_line(f"wrote {args.out}")
    return 0


def _write(path: Path) -> None:
    suffix = path.suffix.lower()
    if suffix in USD_SUFFIXES:
        convert_usd(robot_file("usda"), path)
    elif suffix == ".toml":
        with writing(path):
            shutil.copyfile(robot_file("xml").with_name("robot.toml"), path)
    elif suffix in _COPIED:
        with writing(path):
            shutil.copyfile(robot_file(suffix[1:]), path)
    else:
        kinds = ", ".join((*_COPIED, *USD_SUFFIXES))
        raise UsageError(f"--out {path}: choose a name ending in {kinds}")
