"""The emulated robot without its wires: physics moved by the drives, and its sensors."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import structlog
from krabby.config import to_dict
from krabby.course.courses import Course
from krabby.drivers.imu import ImuSample
from krabby.hal.measurement import Measurement
from krabby.mujoco.stage import Stage
from krabby.mujoco.world import SUBSTEP_NS
from krabby.robot import rotations
from krabby.robot.description import RobotDescription
from numpy.typing import NDArray

from krabby_emulator.config import EmulatorCfg
from krabby_emulator.faults import Fault, FaultBoard
from krabby_emulator.motor import DriveBank, Law
from krabby_emulator.planted import PlantedHardware

__all__ = ["EmulatedRobot"]

log = structlog.get_logger(__name__)

_SUBSTEP_S = SUBSTEP_NS * 1e-9
_STOPS_GIVE_RAD = 0.02
"""Rubber in the stops: a joint this far beyond its limit leans on them, it has not left them."""


class EmulatedRobot(Stage):
    """A robot on a course whose drives are commanded by frames, not by a gate."""

    def __init__(
        self,
        cfg: EmulatorCfg,
        desc: RobotDescription,
        course: Course,
        *,
        buses: Sequence[str],
        bus_of: Sequence[int],
    ) -> None:
        """Put it down, switched on and limp; `bus_of` is the index into `buses` of every joint."""
        super().__init__(
            cfg, desc, course, tilt_limit_rad=desc.safety.tilt_limit_rad, auto_reset=cfg.auto_reset
        )
        self.world.set_friction(cfg.drive.coulomb_friction, cfg.drive.viscous_friction)
        self.bank = DriveBank(desc, cfg.drive, cfg.supply, seed=cfg.seed)
        self.board = FaultBoard(desc.joint_names, buses, bus_of)
        self._planted = PlantedHardware(cfg.planted, desc) if cfg.planted.kind else None
        if cfg.planted.kind:
            log.warning("fault planted", **to_dict(cfg.planted))
        self._imu = cfg.imu
        self._imu_random = np.random.default_rng((cfg.seed, 1))
        self._gyro_bias = cfg.imu.gyro_bias * self._imu_random.standard_normal(3)
        self._law: Law | None = None
        """What the physics was told last."""
        self.limit_excess = np.full(len(desc.joint_names), -np.inf)
        """How far every joint ever was beyond its limits [rad]; negative: never there."""
        self.bank.report(self._seen(self.world.joint_pos), self._seen(self.world.joint_vel))

    def substep(self, now_ns: int) -> None:
        """Let `SUBSTEP_NS` pass, with what the drives have been told until `now_ns`."""
        board, bank, world = self.board, self.bank, self.world
        board.refresh(now_ns)
        bank.supply(board.powered, now_ns)
        bank.protect(now_ns)
        planted = self._planted
        law = bank.law(self._seen(world.joint_pos), board.stuck)
        if planted is not None:
            law = planted.law(law, now_ns)
        if law is not self._law:
            world.set_law(*law)
            self._law = law
        low, high = bank.torque_range(self._seen(world.joint_vel))
        if planted is not None:
            low, high = planted.torque_range(low, high)
        effort = world.step(low, high, driven=bool(bank.on.any()))
        joint_pos = world.joint_pos
        bank.settle(
            self._seen(effort),
            self._seen(joint_pos),
            self._seen(world.joint_vel),
            _SUBSTEP_S,
            heat_c=board.heat_c if board.heated else None,
            sag_v=board.sag_v,
        )
        beyond = np.maximum(self.desc.joint_lower - joint_pos, joint_pos - self.desc.joint_upper)
        np.maximum(self.limit_excess, beyond, out=self.limit_excess)

    def sense(self, now_ns: int, *, watched: bool = True) -> ImuSample | None:
        """After the substeps of a slot: what the IMU says, None if it is mute; look for falls."""
        self.reset_if_due(now_ns)
        self.world.measure(self._measured)
        if watched:
            holding = bool(self.bank.holding.all())
            self.watch(now_ns, self._seen(self.bank.target_pos) if holding else None)
        if self.board.imu_silent:
            return None
        felt = self._measured
        if self._planted is not None:
            felt = self._planted.fault.measurement(felt, now_ns)
        return self._disturbed(felt, now_ns)

    def inject(self, kind: str, now_ns: int, **where: Any) -> Fault:
        """Break something; see `FaultBoard.inject`."""
        fault = self.board.inject(kind, now_ns, **where)
        if kind == "brown-out":
            self.bank.brown_out(now_ns)
        for joint in fault.joints if kind == "reset" else ():
            self.bank.reboot(joint, now_ns)
        for joint in fault.joints if kind == "wrap" else ():
            self.bank.wrapped[joint] += round(fault.value)
        log.warning("fault injected", kind=kind, where=fault.where, value=fault.value)
        return fault

    def summary(self) -> dict[str, Any]:
        """What the run came to, for the last log line."""
        bank = self.bank
        worst = int(self.limit_excess.argmax())
        hottest = int(bank.winding_c.argmax())
        excess = float(self.limit_excess[worst])
        return super().summary() | {
            "joint_limits_kept": excess <= _STOPS_GIVE_RAD,
            "joint_limit_excess_rad": round(excess, 4),
            "joint_limit_excess_joint": self.desc.joint_names[worst],
            "winding_max_c": round(float(bank.winding_c[hottest]), 1),
            "winding_max_joint": self.desc.joint_names[hottest],
            "supply_v": round(bank.supply_v, 2),
            "drive_trips": bank.trips,
            "faults_injected": {kind: n for kind, n in self.board.injected.items() if n},
        }

    def _restart_joint_pos(self) -> NDArray[np.float64]:
        # Drives that hold a pose would see their joints jump, as no hand could make them.
        if self.bank.holding.all():
            return self.world.joint_pos
        return super()._restart_joint_pos()

    def _put_back(self, now_ns: int, *, new_lap: bool) -> None:
        self._law = None  # putting the robot down also resets what its actuators hold

    def _seen(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Angles, velocities or torques by drive, for those by joint, and the other way round."""
        return values if self._planted is None else self._planted.seen(values)

    def _felt(self, force_b: NDArray[np.float64]) -> NDArray[np.float64]:
        """What the accelerometer makes of a specific force."""
        board = self.board
        if board.force_scale == 1.0 and not board.force_roll:
            return force_b
        turn = rotations.from_euler(board.force_roll, 0.0, 0.0)
        return board.force_scale * rotations.rotate(turn, force_b)

    def _disturbed(self, measured: Measurement, now_ns: int) -> ImuSample:
        """What the IMU reports: noise, bias and an injected roll."""
        cfg = self._imu
        noise = self._imu_random.standard_normal((3, 3))
        turn = (cfg.attitude_noise * noise[0]).tolist()
        turn[0] += self.board.imu_roll
        return ImuSample(
            np.array(_turned(measured.base_quat_w.tolist(), turn)),
            measured.base_ang_vel_b + self._gyro_bias + cfg.gyro_noise * noise[1],
            self._felt(measured.base_lin_acc_b) + cfg.accelerometer_noise * noise[2],
            now_ns,
            cfg.temperature_c,
        )


def _turned(quat: Sequence[float], turn: Sequence[float]) -> tuple[float, float, float, float]:
    """`quat` (x, y, z, w), then turned about the body's axes, x first [rad]; of unit length.

    `rotations` does the same for arrays, which takes four times as long for one.
    """
    x, y, z, w = quat
    for axis in (2, 1, 0):
        s, c = math.sin(0.5 * turn[axis]), math.cos(0.5 * turn[axis])
        if axis == 0:
            x, y, z, w = c * x + s * w, c * y + s * z, c * z - s * y, c * w - s * x
        elif axis == 1:
            x, y, z, w = c * x - s * z, c * y + s * w, c * z + s * x, c * w - s * y
        else:
            x, y, z, w = c * x + s * y, c * y - s * x, c * z + s * w, c * w - s * z
    length = math.sqrt(x * x + y * y + z * z + w * w)
    return x / length, y / length, z / length, w / length
