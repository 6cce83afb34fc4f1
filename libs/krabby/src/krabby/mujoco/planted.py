"""Faults of wiring and mounting between a simulated robot and its HAL, to try `krabby diagnose` on.

The physics, the truth and the course stay sound; what the HAL measures and what the drives are told
is wrong as it would be after a mistake in a drive table, a mount or a driver. Nothing is planted
unless the configuration names it.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from krabby.config import check
from krabby.hal.measurement import Measurement
from krabby.robot import rotations

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from krabby.mujoco.config import PlantedCfg
    from krabby.robot.description import RobotDescription
    from krabby.safety.gate import DriveCommand

__all__ = ["PlantedFault"]

_AXES = {"x": 0, "y": 1, "z": 2}
_ARRAYS = (
    "base_quat_w", "base_ang_vel_b", "base_lin_acc_b", "joint_pos", "joint_vel", "joint_effort",
    "foot_contact",
)  # fmt: skip
_JOINT_ARRAYS = ("joint_pos", "joint_vel", "joint_effort")


class PlantedFault:
    """What one fault makes of measurements and of the drives' commands."""

    def __init__(self, cfg: PlantedCfg, desc: RobotDescription) -> None:
        """Nothing has been measured yet.

        Args:
            cfg: the fault; `kind` is not empty.
            desc: the robot, for its joints' and legs' names.

        Raises:
            ConfigError: a joint or leg has no such name, or their number does not fit the kind.
        """
        self._cfg = cfg
        joints, legs = desc.joint_names, desc.leg_names
        names = legs if cfg.kind == "contact-stale" else joints
        for name in cfg.where:
            check(name in names, "where", name, f"one of {', '.join(names)}")
        chosen = [names.index(name) for name in cfg.where]
        needed = {"joint-sign": 1, "joints-swapped": 2}.get(cfg.kind)
        check(
            needed is None or len(set(chosen)) == len(chosen) == needed,
            "where", ", ".join(cfg.where), f"{needed} different joints",
        )  # fmt: skip
        self._chosen = chosen or list(range(len(names)))
        self._source = np.arange(len(joints))
        self._sign = np.ones(len(joints))
        if cfg.kind == "joint-sign":
            self._sign[chosen] = -1.0
        elif cfg.kind == "joints-swapped":
            self._source[chosen] = chosen[::-1]
        turn = np.zeros(3)
        if cfg.kind == "imu-rotated":
            turn[_AXES[cfg.axis]] = math.radians(cfg.value or 90.0)
        elif cfg.kind == "gravity-flipped" and cfg.term == "base_quat_w":
            turn[0] = math.pi
        self._turn = rotations.from_euler(*turn)
        self._measured = Measurement(len(joints), len(legs))
        self._held: NDArray[np.float64] | None = None
        self._past: deque[tuple[int, list[NDArray[np.float64]]]] = deque()

    @property
    def command_delay_s(self) -> float:
        """How much later than described commands reach the drives [s]."""
        cfg = self._cfg
        late = cfg.kind == "delay" and cfg.term in ("", "command")
        return (cfg.value or 0.04) if late else 0.0

    def measurement(self, true: Measurement, now_ns: int) -> Measurement:
        """What the HAL gets to see of a measurement; reused by the next call."""
        out = self._measured
        for name in _ARRAYS:
            getattr(out, name)[:] = getattr(true, name)
        for name in _JOINT_ARRAYS:
            getattr(out, name)[:] = self._sign * getattr(true, name)[self._source]
        match self._cfg.kind:
            case "degrees":
                getattr(out, self._cfg.term or "base_ang_vel_b")[:] *= 180.0 / math.pi
            case "imu-rotated":
                out.base_quat_w[:] = rotations.mul(out.base_quat_w, self._turn)
                for vector in (out.base_ang_vel_b, out.base_lin_acc_b):
                    vector[:] = rotations.rotate_inverse(self._turn, vector)
            case "gravity-flipped" if self._cfg.term == "base_quat_w":
                out.base_quat_w[:] = rotations.mul(out.base_quat_w, self._turn)
            case "gravity-flipped":
                out.base_lin_acc_b *= -1.0
            case "delay" if self._cfg.term == "state":
                self._delay(out, now_ns)
            case "contact-stale":
                self._freeze(out, now_ns)
            case _:
                pass
        return out

    def drive(self, command: DriveCommand) -> DriveCommand:
        """What the drives do with what the gate lets through."""
        if self._cfg.kind == "gain":
            kp = command.kp.copy()
            kp[self._chosen] *= self._cfg.value or 1.5
            return command._replace(kp=kp)
        if not self.crosses_drives:
            return command
        return command._replace(
            joint_pos=self.across(command.joint_pos, signed=True),
            kp=self.across(command.kp),
            kd=self.across(command.kd),
            effort_limit=self.across(command.effort_limit),
        )

    @property
    def crosses_drives(self) -> bool:
        """Whether drives turn the other way or sit at each other's joints."""
        return not self._cfg.feedback_only and self._cfg.kind in ("joint-sign", "joints-swapped")

    @property
    def turned(self) -> NDArray[np.bool_]:
        """Drives that turn the other way, shape (n,)."""
        return self._sign < 0.0

    def across(self, values: NDArray[np.float64], *, signed: bool = False) -> NDArray[np.float64]:
        """Values by drive for values by joint, and the other way round: it is its own inverse.

        Args:
            values: shape (n,).
            signed: whether they change sign with the direction, as angles and torques do.
        """
        return (self._sign * values if signed else values)[self._source]

    def _delay(self, out: Measurement, now_ns: int) -> None:
        """Give what was measured so long ago, the first measurement before that."""
        self._past.append((now_ns, [getattr(out, name).copy() for name in _ARRAYS]))
        then_ns = now_ns - round((self._cfg.value or 0.04) * 1e9)
        while len(self._past) > 1 and self._past[1][0] <= then_ns:
            self._past.popleft()
        for name, values in zip(_ARRAYS, self._past[0][1], strict=True):
            getattr(out, name)[:] = values

    def _freeze(self, out: Measurement, now_ns: int) -> None:
        """The contacts of some feet never change again."""
        if self._held is None:
            self._held = out.foot_contact.copy()
        out.foot_contact[self._chosen] = self._held[self._chosen]
