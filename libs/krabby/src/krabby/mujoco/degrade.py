"""A simulated robot that is worse than its description.

Policy, gate and hello use `robot.toml`; only physics and sensor use what `degraded` returns, so a
run shows the effect of an unknown difference.
"""

# mujoco is compiled and comes without type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import mujoco
import numpy as np

from krabby.config import to_dict
from krabby.mujoco.model import COLLISION_GROUP

if TYPE_CHECKING:
    from krabby.mujoco.config import DegradeCfg
    from krabby.mujoco.model import ModelIndex
    from krabby.robot.description import CameraModel, Contact, RobotDescription

__all__ = ["degraded", "differences", "make_real"]


def degraded(desc: RobotDescription, cfg: DegradeCfg) -> RobotDescription:
    """The description with the values that are really in force; `desc` itself stays as it is."""
    heavier = {name: cfg.mass_factor * m for name, m in dataclasses.asdict(desc.masses).items()}
    heavier["body"] += cfg.payload_kg
    return dataclasses.replace(
        desc,
        # The whole envelope: the peak, and with it what is left of it at every speed.
        peak_torque=desc.peak_torque * cfg.motor_strength,
        masses=dataclasses.replace(desc.masses, **heavier),
        contact=_contact(desc.contact, cfg.friction),
        camera=_camera(desc.camera, cfg),
    )


def make_real(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    index: ModelIndex,
    desc: RobotDescription,
    actual: RobotDescription,
) -> None:
    """Give a model that was built from `desc` the masses and the friction of `actual`."""
    base = index.base_body
    ratio = np.ones(model.nbody)
    ratio[model.body_rootid == base] = actual.masses.hip / desc.masses.hip
    ratio[base] = actual.masses.body / desc.masses.body
    model.body_mass *= ratio
    model.body_inertia *= ratio[:, None]
    collides = model.geom_group == COLLISION_GROUP
    model.geom_friction[collides, 0] = actual.contact.body_friction
    model.geom_friction[index.foot_geom, 0] = actual.contact.foot_friction
    mujoco.mj_setConst(model, data)  # what the solver derived from the masses


def differences(cfg: DegradeCfg) -> dict[str, Any]:
    """The keys that are not at their defaults, for the summary; empty for a robot as described."""
    default = to_dict(type(cfg)())
    return {key: value for key, value in to_dict(cfg).items() if value != default[key]}


def _contact(contact: Contact, friction: float | None) -> Contact:
    """The given friction for the feet; for the body at most that."""
    if friction is None:
        return contact
    body = min(contact.body_friction, friction)
    return dataclasses.replace(contact, foot_friction=friction, body_friction=body)


def _camera(camera: CameraModel, cfg: DegradeCfg) -> CameraModel:
    pitch_rad = camera.mount_pitch_rad + math.radians(cfg.camera_tilt_deg)
    changed: dict[str, float] = {
        "mount_pitch_rad": pitch_rad,
        "noise_rel": camera.noise_rel * cfg.depth_noise,
    }
    if cfg.frame_drop is not None:
        changed["drop_probability"] = cfg.frame_drop
    if cfg.camera_latency_s is not None:
        changed["latency_s"] = cfg.camera_latency_s
    if cfg.camera_rate_hz is not None:
        changed["rate_hz"] = cfg.camera_rate_hz
    return dataclasses.replace(camera, **changed)
