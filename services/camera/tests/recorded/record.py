"""Records what a ZED Mini would see of our simulator's world: `recorded/zed_mini_vga.npz`.

Run it after a change of `robot.toml`'s camera: `python services/camera/tests/recorded/record.py`.
Every scene is rendered twice from the same place, exactly, by the simulator's own camera: with the
intrinsics of a ZED Mini at VGA, half size, as the SDK would hand it over, and with the robot's.
"""

import dataclasses
from pathlib import Path

import numpy as np
from krabby.course.boxes import Box
from krabby.course.courses import make_course
from krabby.mujoco.depth_camera import DepthRenderer, camera_pose
from krabby.robot import rotations
from krabby.robot.description import RobotDescription
from krabby.robot.kinematics import foot_positions

WIDTH, HEIGHT = 336, 188
"""Half of 672 x 376."""
FX, CX, CY = 175.0, 166.0, 94.5
"""Nominally 350 px at VGA; no lens stands exactly in the middle of its sensor."""


def main() -> None:
    desc = RobotDescription.load()
    camera = desc.camera
    feet_b = foot_positions(desc, desc.default_joint_pos)
    stand_z = desc.geometry.foot_radius - feet_b[:, 2].min()
    flat = [Box(center=(0.0, 0.0, -1.0), half_extents=(50.0, 50.0, 1.0), kind="ground")]
    post = Box(center=(1.6, 0.4, 0.25), half_extents=(0.1, 0.1, 0.25), kind="step")
    wall = Box(center=(2.2, 0.0, 1.0), half_extents=(0.1, 20.0, 1.0), kind="step")
    lean = rotations.from_euler(0.06, -0.08, 0.4)
    lean_z = desc.geometry.foot_radius - rotations.rotate(lean, feet_b)[:, 2].min()
    scenes = {
        "flat": (flat, (0.0, 0.0, stand_z), rotations.IDENTITY),
        "leaning": (flat, (0.0, 0.0, lean_z), lean),
        "post": ([*flat, post], (0.0, 0.0, stand_z), rotations.IDENTITY),
        "wall": ([*flat, wall], (0.0, 0.0, stand_z), rotations.IDENTITY),
        "steps": (make_course("steps", 0.7, 3).boxes, (3.0, 0.0, stand_z), rotations.IDENTITY),
        "gaps": (make_course("gap", 0.7, 3).boxes, (3.0, 0.0, stand_z), rotations.IDENTITY),
    }
    zed = dataclasses.replace(
        camera, width=WIDTH, height=HEIGHT, hfov_rad=2.0 * np.arctan(0.5 * WIDTH / FX)
    )
    recorded = {}
    for name, (boxes, base_pos, base_quat) in scenes.items():
        pose = camera_pose(camera, np.array(base_pos), np.array(base_quat))
        renderer = DepthRenderer(zed, boxes)
        renderer._right = ((np.arange(WIDTH) - CX) / FX).astype(np.float32)
        renderer._down = ((np.arange(HEIGHT) - CY) / FX).astype(np.float32)
        renderer._cx, renderer._cy = CX, CY
        recorded[f"{name}.zed"] = renderer.render(*pose).astype(np.float16)
        recorded[f"{name}.robot"] = DepthRenderer(camera, boxes).render(*pose).astype(np.float16)
        recorded[f"{name}.base_quat"] = np.array(base_quat, np.float32)
    recorded["intrinsics"] = np.array([WIDTH, HEIGHT, FX, FX, CX, CY])
    np.savez_compressed(Path(__file__).with_name("zed_mini_vga.npz"), **recorded)


if __name__ == "__main__":
    main()
