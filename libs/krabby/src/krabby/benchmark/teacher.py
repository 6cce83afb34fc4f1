"""Loading policies for trials, privileged ones included, which are told the ground around them."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from krabby.control.policy_manager import PolicyRunner
from krabby.course.ground import Ground
from krabby.policy.bundle import MANIFEST_FILE, PolicyBundle, bundle_dir, robot_manifest
from krabby.policy.observation import HEIGHT_SCAN_SHAPE
from krabby.robot import rotations

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from krabby.mujoco.stage import Stage
    from krabby.policy.observation import ObservationInputs
    from krabby.robot.description import RobotDescription

__all__ = ["TeacherRunner", "height_scan", "load_any", "load_bundle"]

_AHEAD_M: Final = np.arange(HEIGHT_SCAN_SHAPE[0]) * 0.1 - 0.8
_LEFT_M: Final = np.arange(HEIGHT_SCAN_SHAPE[1]) * 0.2 - 1.2
_POINTS_B: Final = np.stack(np.meshgrid(_AHEAD_M, _LEFT_M, indexing="ij"), axis=-1).reshape(-1, 2)
"""Where the ground is looked up, turned with the base's yaw, shape (325, 2) [m]."""
_STANDING_M: Final = 0.42
"""Height of the base over level ground that scans as 0."""
_CLIP_M: Final = 1.5


def height_scan(ground: Ground, base_pos_w: NDArray[np.float64], yaw: float) -> NDArray[np.float32]:
    """How far the ground lies below its place under a standing robot [m], shape (325,)."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    x = base_pos_w[0] + cos * _POINTS_B[:, 0] - sin * _POINTS_B[:, 1]
    y = base_pos_w[1] + sin * _POINTS_B[:, 0] + cos * _POINTS_B[:, 1]
    below = base_pos_w[2] - _STANDING_M - ground.heights(x, y)
    return np.clip(below, -_CLIP_M, _CLIP_M).astype(np.float32)


class TeacherRunner(PolicyRunner):
    """A policy that reads the height scan; `follow` names the robot it walks."""

    def __init__(self, bundle: PolicyBundle, desc: RobotDescription) -> None:
        self._robot: Stage | None = None
        self._ground: Ground | None = None
        super().__init__(bundle, desc)

    def follow(self, robot: Stage) -> None:
        """Scan the ground around this robot from now on."""
        self._robot, self._ground = robot, Ground(robot.course)

    def step(self, inputs: ObservationInputs) -> NDArray[np.float64]:
        """Joint position targets [rad], shape (18,)."""
        if self._robot is None or self._ground is None:  # warming up
            inputs.height_scan = np.zeros(len(_POINTS_B), np.float32)
        else:
            world = self._robot.world
            yaw = float(rotations.yaw(world.base_quat_w))
            inputs.height_scan = height_scan(self._ground, world.base_pos_w, yaw)
        return super().step(inputs)


def load_any(
    name: str, desc: RobotDescription, control_rate_hz: float, *, foreign: bool = False
) -> PolicyRunner:
    """Load and warm up a bundle; a teacher too.

    Args:
        name: name or folder of the bundle.
        desc: the robot.
        control_rate_hz: of the loop.
        foreign: take a bundle that was made for another robot as if it were for this one.
    """
    bundle = load_bundle(name, desc, control_rate_hz, foreign=foreign)
    measurable = all(term.measurable for term in bundle.observation.terms)
    return (PolicyRunner if measurable else TeacherRunner)(bundle, desc)


def load_bundle(
    name: str, desc: RobotDescription, control_rate_hz: float, *, foreign: bool = False
) -> PolicyBundle:
    """Load a bundle, as in `load_any`; action offsets and scales stay those it was made with.

    Raises:
        BundleError: it is damaged, or made for another robot and `foreign` is false.
    """
    folder = bundle_dir(name)
    if not foreign:
        return PolicyBundle.load(folder, desc, control_rate_hz=control_rate_hz)
    with tempfile.TemporaryDirectory() as copy:
        adopted = Path(copy) / "bundle"
        shutil.copytree(folder, adopted)
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        manifest |= robot_manifest(desc) | {"control_rate_hz": manifest["control_rate_hz"]}
        (adopted / MANIFEST_FILE).write_text(json.dumps(manifest), encoding="utf-8")
        bundle = PolicyBundle.load(adopted, desc, control_rate_hz=control_rate_hz)
    return dataclasses.replace(bundle, path=folder)
