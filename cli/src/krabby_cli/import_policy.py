"""`krabby import-policy`: a policy of Isaac Lab, mjlab or unitree_rl_lab as a bundle.

FILE is the ONNX network. What it expects is read from its metadata (mjlab), from
IO_descriptors.yaml (Isaac Lab) or deploy.yaml (unitree_rl_lab): in its folder, or in
io_descriptors/ or params/ there or one folder up. Joints are matched by name; their order, offsets
and clips go into the network, scales and histories into the manifest. What a bundle cannot express
is refused by name. The bundle is run for 1 s at rest before it is written.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

from krabby_cli.errors import UsageError
from krabby_cli.options import add_command, flag, option, print_line

__all__ = ["add_parser"]

_EPILOG: Final = """\
examples:
  krabby import-policy logs/rsl_rl/crab/2026-11-30/exported/policy.onnx
  krabby import-policy policy.onnx --config params/deploy.yaml --out policies/mine
  krabby import-policy mjlab.onnx --rate 100 --out mine && krabby sim --policy ./mine --course flat

Observation terms: base_ang_vel, projected_gravity, velocity command, joint positions (relative or
absolute), joint velocities, last action; recurrent networks by h_in and c_in. Actions: joint
positions.
"""


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands, "import-policy", run, "a bundle of an ONNX policy of other training code",
        __doc__, _EPILOG,
    )  # fmt: skip
    parser.add_argument("file", metavar="FILE", type=Path, help="ONNX network")
    option(parser, "--out", "DIR", None, "folder to write; its name is the policy's "
           "(default: FILE's name without .onnx)", type=Path)  # fmt: skip
    option(parser, "--config", "FILE", None, "IO_descriptors.yaml or deploy.yaml", type=Path)
    option(parser, "--rate", "HZ", None, "control rate, where the files do not say it [Hz]",
           type=float)  # fmt: skip
    option(parser, "--history", "N", 1, "frames of every term, where the files do not say it")
    flag(parser, "--stands", "it holds the stance on a zero command; else the gait does")


def run(args: argparse.Namespace) -> int:
    # onnx takes half a second to import.
    from krabby.policy.foreign.convert import import_policy
    from krabby.robot.description import RobotDescription

    if args.rate is not None and not 1.0 <= args.rate <= 1000.0:
        raise UsageError(f"--rate {args.rate:g}: give 1 to 1000 Hz")
    if args.history < 1:
        raise UsageError(f"--history {args.history}: give 1, the newest frame alone, or more")
    out = args.out or Path(args.file.name).with_suffix("")
    desc = RobotDescription.load()
    imported = import_policy(
        args.file, out, desc,
        sidecar=args.config, rate_hz=args.rate, history=args.history, stands=args.stands,
    )  # fmt: skip
    policy = imported.policy
    print_line(f"{args.file}: exported by {policy.format}, {imported.bundle.control_rate_hz:g} Hz")
    print_line("  joint                their number")
    for joint in desc.joint_names:
        print_line(f"  {joint:20} {policy.joint_names.index(joint)}")
    print_line("  observation term     ours                 frames")
    for (theirs, ours), term in zip(imported.terms, policy.terms, strict=True):
        print_line(f"  {theirs:20} {ours:20} {term.history}")
    for note in imported.notes:
        print_line(f"note: {note}")
    print_line(f"ran for 1 s at rest: targets up to {imported.furthest_rad:.2f} rad off the stance")
    print_line(f"wrote {out}; try: krabby sim --policy {_as_path(out)} --course flat")
    return 0


def _as_path(path: Path) -> str:
    """As `--policy` takes a folder: with a slash in it."""
    return str(path) if "/" in str(path) else f"./{path}"
