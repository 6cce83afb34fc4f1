"""The robot as it really is, when it is worse than its description says.

Everybody who acts goes on believing `robot.toml`: the policy, the gate, the hello. Only physics
and sensor are made of what `degraded` returns, so a run shows what an unknown difference does.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from krabby.config import to_dict

if TYPE_CHECKING:
    from krabby.mujoco.config import DegradeCfg
    from krabby.robot.description import CameraModel, Contact, RobotDescription

__all__ = ["degraded", "differences"]


def degraded(desc: RobotDescription, cfg: DegradeCfg) -> RobotDescription:
    """The description with the values that are really in force; `desc` itself stays as it is."""
    masses = dataclasses.replace(desc.masses, body=desc.masses.body + cfg.payload_kg)
    return dataclasses.replace(
        desc,
        # The whole envelope: the peak, and with it what is left of it at every speed.
        peak_torque=desc.peak_torque * cfg.motor_strength,
        masses=masses,
        contact=_contact(desc.contact, cfg.friction),
        camera=_camera(desc.camera, cfg),
    )


def differences(cfg: DegradeCfg) -> dict[str, Any]:
    """The keys that are not at their defaults, for the summary; empty for a robot as described."""
    default = to_dict(type(cfg)())
    return {key: value for key, value in to_dict(cfg).items() if value != default[key]}


def _contact(contact: Contact, friction: float | None) -> Contact:
    """On slippery ground everything slips; what slipped more than that before goes on doing so."""
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
    return dataclasses.replace(camera, **changed)
