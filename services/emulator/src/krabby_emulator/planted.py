"""Faults of wiring and mounting in the emulated hardware, to try `krabby diagnose` on.

Those of `krabby.mujoco.planted` that exist on this side of the wires: drives that turn the other
way, sit at another joint, answer late or are too stiff, and the IMU's mount and sign.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from krabby.config import check
from krabby.mujoco.actuation_delay import DriveLine
from krabby.mujoco.config import PlantedCfg
from krabby.mujoco.planted import PlantedFault
from krabby.robot.description import RobotDescription
from numpy.typing import NDArray

from krabby_emulator.motor import Law

__all__ = ["PlantedHardware"]

_KINDS: Final = (
    "joint-sign", "joints-swapped", "imu-rotated", "gravity-flipped", "delay", "gain",
)  # fmt: skip

Values = NDArray[np.float64]


class PlantedHardware:
    """Between drives and joints, and between the base and its IMU."""

    def __init__(self, cfg: PlantedCfg, desc: RobotDescription) -> None:
        """No drive has been told anything.

        Raises:
            ConfigError: the fault is none of the hardware, or does not fit the robot.
        """
        kinds = ", ".join(_KINDS)
        check(cfg.kind in _KINDS, "planted.kind", cfg.kind, f"one of {kinds}; sim-hal has others")
        check(not cfg.feedback_only, "planted.feedback_only", True, "false: a drive has one sensor")
        check(cfg.term != "state", "planted.term", cfg.term, "command; late-replies delay states")
        self.fault = PlantedFault(cfg, desc)
        self._chosen = [desc.joint_names.index(name) for name in cfg.where] or slice(None)
        self._stiffer = (cfg.value or 1.5) if cfg.kind == "gain" else 1.0
        self._line: DriveLine[Law] | None = None
        self._told: Law | None = None
        self._given: tuple[Law, Law] | None = None

    def seen(self, values: Values, *, signed: bool = True) -> Values:
        """By drive, for values by joint."""
        return self.fault.across(values, signed=signed) if self.fault.crosses_drives else values

    def law(self, law: Law, now_ns: int) -> Law:
        """What happens at the joints when the drives follow `law`; one object until it changes."""
        if self.fault.command_delay_s:
            if self._line is None:
                self._line = DriveLine(self.fault.command_delay_s, law)
            if law is not self._told:
                self._line.write(law, now_ns)
                self._told = law
            law = self._line.at(now_ns)
        if self._given is None or law is not self._given[0]:
            self._given = law, self._at_joints(law)
        return self._given[1]

    def torque_range(self, low: Values, high: Values) -> tuple[Values, Values]:
        """Least and largest torque at the joints, for those at the drives."""
        if not self.fault.crosses_drives:
            return low, high
        turned = self.fault.turned
        least, most = np.where(turned, -high, low), np.where(turned, -low, high)
        return self.fault.across(least), self.fault.across(most)

    def _at_joints(self, law: Law) -> Law:
        across: Callable[..., Values] = self.fault.across
        if self.fault.crosses_drives:
            return Law(
                across(law.kp),
                across(law.kd),
                across(law.target, signed=True),
                across(law.offset, signed=True),
            )
        if self._stiffer == 1.0:
            return law
        kp = law.kp.copy()
        kp[self._chosen] *= self._stiffer
        return law._replace(kp=kp)
