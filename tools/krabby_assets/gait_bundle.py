"""The gait bundles: `krabby.policy.gait` for each robot.

`assets/policies/gait` is the default robot's; others have `policies/gait` in their own folder.

    python -m krabby_assets.gait_bundle            # write it
    python -m krabby_assets.gait_bundle --check    # exit 1 if it is not what this source gives

Needs the extra `assets`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from krabby.policy.bundle import MANIFEST_FILE, POLICY_FILE, PolicyBundle, write_bundle
from krabby.policy.gait import OBSERVATION, STATE_SHAPES, Gait
from krabby.policy.statistics import STATISTICS_FILE
from krabby.robot.assets import DEFAULT_ROBOT
from krabby.robot.description import RobotDescription
from krabby.robot.errors import RobotError

from krabby_assets.generate import robots
from krabby_assets.onnx_graph import trace

__all__ = ["BUNDLE_NAME", "WALKS", "evaluation", "first_difference", "home", "main", "write"]

BUNDLE_NAME: Final = "gait"
_CLIP: Final = 3.5
"""Wider than any joint's range: what is impossible is the gate's to refuse."""

WALKS: Final = {
    "crab_hex": [
        [[0.1, 0.0, 0.0], [0.100, 0.0, 0.0], 21.6, 46],
        [[0.2, 0.0, 0.0], [0.197, 0.0, 0.0], 21.8, 50],
        [[0.3, 0.0, 0.0], [0.294, 0.0, 0.0], 23.5, 58],
        [[0.4, 0.0, 0.0], [0.391, 0.0, 0.0], 27.3, 53],
        [[0.5, 0.0, 0.0], [0.500, 0.0, 0.0], 29.7, 65],
        [[0.6, 0.0, 0.0], [0.583, 0.0, 0.0], 30.6, 75],
        [[0.7, 0.0, 0.0], [0.657, 0.0, 0.0], 30.9, 64],
        [[0.8, 0.0, 0.0], [0.709, 0.0, 0.0], 33.8, 67],
        [[-0.3, 0.0, 0.0], [-0.294, 0.0, 0.0], 23.5, 58],
        [[0.0, 0.2, 0.0], [0.0, 0.202, 0.0], 23.6, 64],
        [[0.0, -0.2, 0.0], [0.0, -0.201, 0.0], 23.1, 64],
        [[0.0, 0.0, 0.3], [0.004, 0.0, 0.296], 25.6, 49],
        [[0.0, 0.0, -0.6], [-0.003, 0.0, -0.586], 34.1, 75],
        [[0.3, 0.0, 0.3], [0.290, 0.0, 0.286], 32.2, 77],
        [[0.2, 0.15, -0.2], [0.200, 0.157, -0.196], 28.1, 58],
    ],
    "crab_hex_rs": [
        [[0.1, 0.0, 0.0], [0.1, 0.0, 0.0], 24.0, 70],
        [[0.2, 0.0, 0.0], [0.194, 0.003, 0.0], 25.9, 74],
        [[0.3, 0.0, 0.0], [0.285, 0.002, 0.0], 28.1, 71],
        [[0.8, 0.0, 0.0], [0.284, 0.002, 0.0], 29.5, 72],
        [[-0.3, 0.0, 0.0], [-0.285, 0.002, 0.0], 28.0, 71],
        [[0.0, 0.2, 0.0], [0.0, 0.204, 0.0], 31.2, 96],
        [[0.0, -0.2, 0.0], [0.0, -0.202, -0.002], 31.7, 92],
        [[0.0, 0.0, 0.3], [0.003, -0.003, 0.292], 30.2, 81],
        [[0.0, 0.0, -0.6], [0.0, -0.008, -0.299], 30.4, 85],
        [[0.3, 0.0, 0.3], [0.152, -0.007, 0.146], 29.4, 75],
        [[0.2, 0.15, -0.2], [0.134, 0.099, -0.129], 30.2, 78],
    ],
}
"""By robot, what was measured: vx, vy [m/s] and yaw rate [rad/s] asked for and walked, and of the
hardest worked joint the RMS and the peak torque [N·m]. A slow test holds the gaits to it."""


def evaluation(robot: str) -> dict[str, Any]:
    """What the manifest says of the gait of this robot."""
    return {
        "simulator": "MuJoCo, flat ground, with drives and safety gate: tests/test_gait_walks.py",
        "columns": ["command", "velocity", "effort_rms_max_nm", "effort_peak_nm"],
        "walks": WALKS.get(robot, []),
    }


def write(folder: Path, desc: RobotDescription, statistics: bytes | None = None) -> PolicyBundle:
    """Record the generator for `desc` and write the bundle.

    Args:
        folder: of the bundle.
        desc: the robot.
        statistics: what it observes while it walks (`python -m krabby_diagnosis.statistics`).
    """
    gait = Gait(desc)
    shapes = {"obs": (1, OBSERVATION.size), **STATE_SHAPES}
    model = trace(gait.step, shapes, name=BUNDLE_NAME)
    manifest = {
        "name": BUNDLE_NAME,
        "kind": "gait",
        "observation": OBSERVATION.to_manifest(),
        "action": {"scale": 1.0, "offset": desc.default_joint_pos.tolist(), "clip": _CLIP},
        "state": [
            {"input": name, "output": f"{name}_out", "shape": list(shape)}
            for name, shape in STATE_SHAPES.items()
        ],
        "provenance": {
            "generator": "python -m krabby_assets.gait_bundle",
            "robot_hash": desc.content_hash,
            "cfg": asdict(gait.cfg),
        },
        "evaluation": evaluation(desc.name),
    }
    files = {POLICY_FILE: model.SerializeToString()}
    if statistics is not None:
        files[STATISTICS_FILE] = statistics
    return write_bundle(folder, manifest, files, desc)


def measured(folder: Path) -> bytes | None:
    """The statistics that lie in the folder: they are measured, not generated."""
    path = folder / STATISTICS_FILE
    return path.read_bytes() if path.is_file() else None


def first_difference(folder: Path, desc: RobotDescription) -> str | None:
    """The first file of `folder` that is not what the source gives; None when all are."""
    with tempfile.TemporaryDirectory() as temporary:
        fresh = Path(temporary) / BUNDLE_NAME
        write(fresh, desc, measured(folder))
        for name in (MANIFEST_FILE, POLICY_FILE):
            path = folder / name
            if not path.is_file():
                return f"{path} is missing"
            if path.read_bytes() != (fresh / name).read_bytes():
                return f"{path} is not what krabby.policy.gait and robot.toml give"
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m krabby_assets.gait_bundle", description=__doc__
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if stale")
    arguments = parser.parse_args(argv)
    try:
        for robot in robots():
            desc = RobotDescription.load(robot / "robot.toml")
            folder = home(robot)
            if not arguments.check:
                write(folder, desc, measured(folder))
                sys.stdout.write(f"wrote {folder}\n")
            elif difference := first_difference(folder, desc):
                sys.stderr.write(f"{difference}; run `make assets`\n")
                return 1
    except RobotError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def home(robot: Path) -> Path:
    """Where the bundle of the robot with this folder is: the default robot's is everybody's."""
    shelf = robot.parent if robot.name == DEFAULT_ROBOT else robot
    return shelf / "policies" / BUNDLE_NAME


if __name__ == "__main__":
    sys.exit(main())
