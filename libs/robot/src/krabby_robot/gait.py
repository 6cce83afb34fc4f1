"""The gait bundle: `krabby_robot.gait_generator` as `assets/policies/gait`.

    python -m krabby_robot.gait            # write it
    python -m krabby_robot.gait --check    # exit 1 if it is not what this source gives

Needs the extra `assets`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from krabby_robot.assets import assets_dir
from krabby_robot.description import RobotDescription
from krabby_robot.errors import RobotError
from krabby_robot.gait_generator import OBSERVATION, STATE_SHAPES, Gait
from krabby_robot.onnx_graph import trace
from krabby_robot.policy import MANIFEST_FILE, POLICY_FILE, PolicyBundle, write_bundle

__all__ = ["BUNDLE_NAME", "first_difference", "main", "write"]

BUNDLE_NAME: Final = "gait"
_CLIP: Final = 3.5
"""Wider than any joint's range: what is impossible is the gate's to refuse."""


def write(folder: Path, desc: RobotDescription) -> PolicyBundle:
    """Record the generator for `desc` and write the bundle."""
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
            "generator": "python -m krabby_robot.gait",
            "robot_hash": desc.content_hash,
            "cfg": asdict(gait.cfg),
        },
    }
    return write_bundle(folder, manifest, {POLICY_FILE: model.SerializeToString()}, desc)


def first_difference(folder: Path, desc: RobotDescription) -> str | None:
    """The first file of `folder` that is not what the source gives; None when all are."""
    with tempfile.TemporaryDirectory() as temporary:
        fresh = Path(temporary) / BUNDLE_NAME
        write(fresh, desc)
        for name in (MANIFEST_FILE, POLICY_FILE):
            path = folder / name
            if not path.is_file():
                return f"{path} is missing"
            if path.read_bytes() != (fresh / name).read_bytes():
                return f"{path} is not what krabby_robot.gait_generator and robot.toml give"
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m krabby_robot.gait", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if stale")
    arguments = parser.parse_args(argv)
    try:
        folder, desc = assets_dir() / "policies" / BUNDLE_NAME, RobotDescription.load()
        if arguments.check:
            return _check(folder, desc)
        write(folder, desc)
    except RobotError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"wrote {folder}\n")
    return 0


def _check(folder: Path, desc: RobotDescription) -> int:
    difference = first_difference(folder, desc)
    if difference is None:
        return 0
    sys.stderr.write(f"{difference}; run `make assets`\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
