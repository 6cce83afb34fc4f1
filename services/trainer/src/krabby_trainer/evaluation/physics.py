"""One robot on its course in MuJoCo, as the runtime simulates it; no torch, so that it starts fast.

The same safety gate stands before the same drives: targets are limited and rate-limited, reach the
drives late, and torque keeps to the torque-speed envelope. Time runs in substeps of 2.5 ms. The
gate sees a measurement every 5 ms, as in the HAL.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import mujoco
import numpy as np
from krabby.course.courses import make_course
from krabby.course.ground import Ground
from krabby.course.progress import Pose2
from krabby.hal.backend import limp
from krabby.hal.measurement import Measurement
from krabby.mujoco.actuation_delay import DriveLine
from krabby.mujoco.config import DegradeCfg
from krabby.mujoco.degrade import degraded
from krabby.mujoco.errors import PhysicsDiverged
from krabby.mujoco.world import SUBSTEP_NS, World
from krabby.robot import rotations
from krabby.safety.gate import GateCfg, SafetyGate

if TYPE_CHECKING:
    from krabby.robot.description import Contact, RobotDescription
    from numpy.typing import NDArray

__all__ = ["CONTROL_S", "FIELDS", "WIDTH", "Conditions", "Robot", "RobotSpec"]

CONTROL_S: Final = 0.01
_SUBSTEPS: Final = 4
_GATE_EVERY: Final = 2
"""Substeps between the gate's measurements."""
_ANSWER_NS: Final = 2_500_000
"""From a measurement to the command that answers it: what the control loop takes."""
_START_HEIGHT_M: Final = 0.46
"""Of the base above the ground at the start, as in training: a drop of a few centimetres."""
_BORDER_M: Final = 6.0
"""Level ground round the tile, as round the training grounds."""

_LAYOUT: Final = (
    ("base_pos_w", 3),
    ("base_quat_w", 4),
    ("base_lin_vel_w", 3),
    ("base_ang_vel_b", 3),
    ("joint_pos", 18),
    ("joint_vel", 18),
    ("foot_contact", 6),
    ("feet_on_edge", 6),
    ("torque", 18),  # root mean square over the control step
    ("saturated", 18),  # share of its substeps
    ("base_contact", 1),
    ("in_pit", 1),
    ("faults", 1),  # why the safety gate made the robot limp; 0 when it did not
    ("diverged", 1),
    ("friction", 1),
    ("added_mass_kg", 1),
    ("heights", 325),  # of the ground under the scan points
)


def _fields() -> dict[str, slice]:
    ends = np.cumsum([size for _, size in _LAYOUT]).tolist()
    return {name: slice(e - size, e) for (name, size), e in zip(_LAYOUT, ends, strict=True)}


FIELDS: Final = _fields()
"""What a robot reports after a control step, and where: slices of a row of `WIDTH` numbers."""
WIDTH: Final = sum(size for _, size in _LAYOUT)


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What differs between robots and episodes; ranges are (low, high), uniform."""

    friction: tuple[float, float]
    """Of the feet; drawn once per robot, the rest of it scaled alike."""
    push_interval_s: tuple[float, float]
    push_speed: float
    """Largest change of the base's velocity along x and y [m/s]; 0: no pushes."""
    start_xy_m: float
    start_yaw_rad: float
    start_joint_rad: float
    payload_kg: tuple[float, float] = (0.0, 0.0)
    """On the base; drawn once per robot."""
    motor_strength: tuple[float, float] = (1.0, 1.0)
    """Share of the torque-speed envelope; drawn once per robot."""
    mass_factor: tuple[float, float] = (1.0, 1.0)
    """On mass and inertia of every body; drawn once per robot."""


@dataclass(frozen=True, kw_only=True)
class RobotSpec:
    """A robot of an evaluation: its course and the seed of its draws."""

    course: str
    difficulty: float
    course_seed: int
    seed: tuple[int, ...]
    """Seed of everything that is drawn for this robot."""


class Robot:
    """One robot, from episode to episode: `reset`, then `step` and `report` in turns.

    Args:
        scan_points_b: where the ground is looked up, yaw-aligned with the base, (325, 2) [m].
    """

    def __init__(
        self,
        desc: RobotDescription,
        spec: RobotSpec,
        conditions: Conditions,
        scan_points_b: NDArray[np.float64],
    ) -> None:
        self._desc = desc
        self._conditions = conditions
        self._rng = np.random.Generator(np.random.PCG64(spec.seed))
        self._course = make_course(
            spec.course, spec.difficulty, spec.course_seed, border_m=_BORDER_M
        )
        self._ground = Ground(self._course)
        self._scan_x, self._scan_y = np.ascontiguousarray(scan_points_b.T)
        self.friction = float(self._rng.uniform(*conditions.friction))
        self._push_in_s = float(self._rng.uniform(*conditions.push_interval_s))
        # Streams of their own: what is not varied leaves the other draws as they are.
        extra = np.random.Generator(np.random.PCG64((*spec.seed, 2)))
        payload_kg = float(extra.uniform(*conditions.payload_kg))
        strength = float(extra.uniform(*conditions.motor_strength))
        factor = float(extra.uniform(*conditions.mass_factor))
        actual = degraded(
            desc,
            DegradeCfg(payload_kg=payload_kg, motor_strength=strength, mass_factor=factor),
        )
        actual = dataclasses.replace(actual, contact=_scaled(desc.contact, self.friction))
        self.world = World(desc, self._course, actual=actual)
        self.added_mass_kg = actual.masses.total - desc.masses.total
        """More than described, in all; told to who may know."""
        self._gate_cfg = GateCfg.from_description(desc, arming_s=1e-9)
        self._measured = Measurement(len(desc.joint_names), len(desc.leg_names))
        self.reset()

    def reset(self) -> None:
        """Put the robot at the start of its course, standing, its gate armed."""
        draw, conditions, world = self._rng.uniform, self._conditions, self.world
        x, y, yaw = self._course.spawn
        reach = conditions.start_xy_m
        x, y = x + draw(-reach, reach), y + draw(-reach, reach)
        yaw += draw(-conditions.start_yaw_rad, conditions.start_yaw_rad)
        spread = conditions.start_joint_rad
        joint_pos = self._desc.default_joint_pos + draw(-spread, spread, len(self._desc.kp))
        np.clip(joint_pos, self._gate_cfg.target_lower, self._gate_cfg.target_upper, out=joint_pos)
        # The start platform is level, at height 0.
        world.place(Pose2(x, y, yaw), joint_pos, height_m=_START_HEIGHT_M)
        self._now_ns = 0
        self._diverged = False
        self._keep_state()
        self._keep_sums()
        self._gate = SafetyGate(self._gate_cfg)
        world.measure(self._measured)
        self._observe()
        self._gate.request("arm", 0)
        self._now_ns = 1  # the gate is active a nanosecond after
        self._line = DriveLine(self._desc.latency.command_s, limp(self._desc))
        self._line.current = self._gate.step(self._now_ns)

    def step(self, joint_pos_target: NDArray[np.float64]) -> None:
        """Answer the newest report with targets (18,) [rad]; integrate one control step."""
        if self._diverged:
            return
        self._keep_sums()
        self._gate.command(joint_pos_target, self._now_ns)
        self._line.write(self._gate.step(self._now_ns), self._now_ns + _ANSWER_NS)
        for substep in range(_SUBSTEPS):
            self.world.substep(self._line.at(self._now_ns))
            self._now_ns += SUBSTEP_NS
            if (substep + 1) % _GATE_EVERY == 0:
                try:
                    self.world.measure(self._measured)
                except PhysicsDiverged:
                    self._give_up()
                    return
                self._observe()
                self._line.write(self._gate.step(self._now_ns), self._now_ns)
        self._keep_state()
        self._push()

    def report(self, into: NDArray[np.float32]) -> None:
        """Write what is true now into a row of `WIDTH` numbers."""
        world = self.world
        base, quat = world.base_pos_w, world.base_quat_w
        contact = world.foot_contact()
        steps = max(world.substeps - self._before[0], 1)
        first = world.index.base_dof + 3
        values = {
            "base_pos_w": base,
            "base_quat_w": quat,
            "base_lin_vel_w": world.base_lin_vel_w,
            "base_ang_vel_b": world.data.qvel[first : first + 3],
            "joint_pos": world.joint_pos,
            "joint_vel": world.joint_vel,
            "foot_contact": contact,
            "feet_on_edge": self._feet_on_edge(contact),
            "torque": np.sqrt((world.effort_sq_sum - self._before[1]) / steps),
            "saturated": (world.saturated - self._before[2]) / steps,
            "base_contact": world.base_contact(),
            "in_pit": base[2] < self._course.pit_entry_z and bool(self._course.in_pit(*base)),
            "faults": int(self._gate.faults),
            "diverged": self._diverged,
            "friction": self.friction,
            "added_mass_kg": self.added_mass_kg,
            "heights": self._heights(base, quat),
        }
        for name, value in values.items():
            into[FIELDS[name]] = value

    def _keep_state(self) -> None:
        """Remember a state that is finite."""
        self._last_good = self.world.data.qpos.copy(), self.world.data.qvel.copy()

    def _keep_sums(self) -> None:
        """Remember what was added up before a control step."""
        world = self.world
        self._before = world.substeps, world.effort_sq_sum.copy(), world.saturated.copy()

    def _observe(self) -> None:
        measured = self._measured
        self._gate.observe(
            measured.joint_pos,
            measured.joint_vel,
            measured.joint_effort,
            measured.base_quat_w,
            self._now_ns,
        )

    def _give_up(self) -> None:
        """Back to the newest finite state, there to wait for a reset."""
        self._diverged = True
        world = self.world
        mujoco.mj_resetData(world.model, world.data)  # pyright: ignore[reportAttributeAccessIssue]
        world.data.qpos[:], world.data.qvel[:] = self._last_good
        mujoco.mj_forward(world.model, world.data)  # pyright: ignore[reportAttributeAccessIssue]
        world.substeps, world.effort_sq_sum[:], world.saturated[:] = self._before

    def _push(self) -> None:
        conditions = self._conditions
        self._push_in_s -= CONTROL_S
        if self._push_in_s > 0.5 * CONTROL_S or not conditions.push_speed:
            return
        self._push_in_s = float(self._rng.uniform(*conditions.push_interval_s))
        most = conditions.push_speed
        self.world.push((*self._rng.uniform(-most, most, 2), 0.0))

    def _feet_on_edge(self, contact: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Feet in contact that stand on an edge, (6,)."""
        found = np.zeros(contact.shape, bool)
        if contact.any():
            found[contact] = self._course.feet_on_edge(self.world.foot_soles_w()[contact])
        return found

    def _heights(self, base: NDArray[np.float64], quat: NDArray[np.float64]) -> NDArray[np.float64]:
        yaw = rotations.yaw(quat)
        cos, sin = np.cos(yaw), np.sin(yaw)
        x = base[0] + cos * self._scan_x - sin * self._scan_y
        y = base[1] + sin * self._scan_x + cos * self._scan_y
        return self._ground.heights(x, y)


def _scaled(contact: Contact, friction: float) -> Contact:
    """This friction of the feet, the body's scaled alike."""
    share = friction / contact.foot_friction
    return dataclasses.replace(
        contact, foot_friction=friction, body_friction=share * contact.body_friction
    )
