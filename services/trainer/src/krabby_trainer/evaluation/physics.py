"""One robot on its course in MuJoCo, as the runtime simulates it; no torch, so that it starts fast.

The same safety gate stands before the same drives: targets are limited and rate-limited, reach the
drives late, and torque keeps to the torque-speed envelope. Time runs in substeps of 2.5 ms. The
gate sees a measurement every 5 ms, as in the HAL.
"""

# mujoco is compiled and comes without type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import mujoco
import numpy as np
from krabby.course.courses import make_course
from krabby.course.ground import Ground
from krabby.course.lanes import PIT_DEPTH_M
from krabby.mujoco.model import (
    COLLISION_GROUP,
    ModelIndex,
    build_model,
    from_mujoco_quat,
    set_robot_state,
)
from krabby.robot import kinematics, rotations
from krabby.safety.gate import GateCfg, SafetyGate

if TYPE_CHECKING:
    from krabby.course.courses import Course
    from krabby.robot.description import RobotDescription
    from krabby.safety.gate import DriveCommand
    from numpy.typing import NDArray

__all__ = ["CONTROL_S", "FIELDS", "WIDTH", "Conditions", "Robot", "RobotSpec"]

SUBSTEP_S: Final = 0.0025
CONTROL_S: Final = 0.01
_SUBSTEP_NS: Final = 2_500_000
_SUBSTEPS: Final = 4
_GATE_EVERY: Final = 2
"""Substeps between the gate's measurements."""
_ANSWER_NS: Final = 2_500_000
"""From a measurement to the command that answers it: what the control loop takes."""
_CONTACT_N: Final = 1.0
_SATURATED: Final = 0.99
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
    """Largest change of the base's velocity along x and y [m/s]; 0 pushes nobody."""
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
    """Who walks where, and with which luck."""

    course: str
    difficulty: float
    course_seed: int
    luck: tuple[int, ...]
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
        self._rng = np.random.Generator(np.random.PCG64(spec.luck))
        self._course = make_course(
            spec.course, spec.difficulty, spec.course_seed, border_m=_BORDER_M
        )
        self._ground = Ground(self._course)
        self._scan_x, self._scan_y = np.ascontiguousarray(scan_points_b.T)
        self.model = build_model(desc, self._course, timestep_s=SUBSTEP_S, visuals=False)
        # A state that diverged must be seen, not silently replaced by a fresh one.
        self.model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
        self.data = mujoco.MjData(self.model)
        self._index = ModelIndex.of(self.model, desc)
        own = self.model.geom_group == COLLISION_GROUP
        self._is_base_geom = own & (self.model.geom_bodyid == self._index.base_body)
        self.friction = float(self._rng.uniform(*conditions.friction))
        self.model.geom_friction[own, 0] *= self.friction / desc.contact.foot_friction
        self._push_in_s = float(self._rng.uniform(*conditions.push_interval_s))
        # Streams of their own: what is not varied leaves the other draws as they are.
        extra = np.random.Generator(np.random.PCG64((*spec.luck, 2)))
        payload_kg = float(extra.uniform(*conditions.payload_kg))
        self._strength = float(extra.uniform(*conditions.motor_strength))
        self._weigh(float(extra.uniform(*conditions.mass_factor)), payload_kg)
        self.added_mass_kg = float(self.model.body_mass.sum()) - desc.masses.total
        """More than described, in all; told to who may know."""
        self._gate_cfg = GateCfg.from_description(desc, arming_s=1e-9)
        self._delay_ns = round(desc.latency.command_s * 1e9)
        joints = len(desc.joint_names)
        self._square_sum, self._saturated = np.zeros(joints), np.zeros(joints)
        self.reset()

    def reset(self) -> None:
        """Put the robot at the start of its course, standing, its gate armed."""
        draw, conditions = self._rng.uniform, self._conditions
        x, y, yaw = self._course.spawn
        reach = conditions.start_xy_m
        start = np.array([x + draw(-reach, reach), y + draw(-reach, reach)])
        yaw += draw(-conditions.start_yaw_rad, conditions.start_yaw_rad)
        spread = conditions.start_joint_rad
        joint_pos = self._desc.default_joint_pos + draw(-spread, spread, self._square_sum.shape)
        np.clip(joint_pos, self._gate_cfg.target_lower, self._gate_cfg.target_upper, out=joint_pos)
        set_robot_state(
            self.model,
            self.data,
            self._index,
            base_pos_w=(*start, _START_HEIGHT_M),  # the start platform is level, at height 0
            base_quat_w=rotations.from_yaw(yaw),
            joint_pos=joint_pos,
        )
        self._now_ns = 0
        self._last_good = self.data.qpos.copy(), self.data.qvel.copy()
        self._diverged = False
        self._start_step()
        self._gate = SafetyGate(self._gate_cfg)
        self._observe(np.zeros_like(self._square_sum))
        self._gate.request("arm", 0)
        self._now_ns = 1  # the gate is active a nanosecond after
        self._drive = self._gate.step(self._now_ns)
        self._load(self._drive)
        self._pending: deque[tuple[int, DriveCommand]] = deque()

    def step(self, joint_pos_target: NDArray[np.float64]) -> None:
        """Answer the newest report with targets (18,) [rad]; integrate one control step."""
        self._start_step()
        if self._diverged:
            return
        self._gate.command(joint_pos_target, self._now_ns)
        drive = self._gate.step(self._now_ns)
        self._pending.append((self._now_ns + _ANSWER_NS + self._delay_ns, drive))
        effort = np.zeros_like(self._square_sum)
        for substep in range(_SUBSTEPS):
            self._integrate(effort)
            if (substep + 1) % _GATE_EVERY == 0:
                if not self._is_finite():
                    self._give_up()
                    return
                self._observe(effort / _GATE_EVERY)
                effort[:] = 0.0
                drive = self._gate.step(self._now_ns)
                self._pending.append((self._now_ns + self._delay_ns, drive))
        self._last_good = self.data.qpos.copy(), self.data.qvel.copy()
        self._push()

    def report(self, into: NDArray[np.float32]) -> None:
        """Write what is true now into a row of `WIDTH` numbers."""
        data, index = self.data, self._index
        base = data.qpos[index.base_qpos : index.base_qpos + 3]
        quat = from_mujoco_quat(data.qpos[index.base_qpos + 3 : index.base_qpos + 7])
        contact = data.sensordata[index.foot_touch] > _CONTACT_N
        values = {
            "base_pos_w": base,
            "base_quat_w": quat,
            "base_lin_vel_w": data.qvel[index.base_dof : index.base_dof + 3],
            "base_ang_vel_b": data.qvel[index.base_dof + 3 : index.base_dof + 6],
            "joint_pos": data.qpos[index.joint_qpos],
            "joint_vel": data.qvel[index.joint_dof],
            "foot_contact": contact,
            "feet_on_edge": self._feet_on_edge(contact),
            "torque": np.sqrt(self._square_sum / max(self._averaged, 1)),
            "saturated": self._saturated / max(self._averaged, 1),
            "base_contact": self._base_contact(),
            "in_pit": base[2] < self._course.pit_entry_z and bool(self._course.in_pit(*base)),
            "faults": int(self._gate.faults),
            "diverged": self._diverged,
            "friction": self.friction,
            "added_mass_kg": self.added_mass_kg,
            "heights": self._heights(base, quat),
        }
        for name, value in values.items():
            into[FIELDS[name]] = value

    def _start_step(self) -> None:
        self._square_sum[:] = 0.0
        self._saturated[:] = 0.0
        self._averaged = 0

    def _integrate(self, effort: NDArray[np.float64]) -> None:
        """One substep with what the drives are told by now; adds the torque to `effort`."""
        model, data, index = self.model, self.data, self._index
        while self._pending and self._pending[0][0] <= self._now_ns:
            self._drive = self._pending.popleft()[1]
            self._load(self._drive)
        low, high = kinematics.torque_speed_limit(self._desc, data.qvel[index.joint_dof])
        if self._strength != 1.0:
            low *= self._strength
            high *= self._strength
        np.maximum(low, -self._drive.effort_limit, out=low)
        np.minimum(high, self._drive.effort_limit, out=high)
        model.actuator_forcerange[index.actuator, 0] = low
        model.actuator_forcerange[index.actuator, 1] = high
        mujoco.mj_step(model, data)
        self._now_ns += _SUBSTEP_NS
        torque = data.actuator_force[index.actuator]
        effort += torque
        self._square_sum += torque * torque
        self._saturated += (torque >= _SATURATED * high) | (torque <= _SATURATED * low)
        self._averaged += 1

    def _load(self, drive: DriveCommand) -> None:
        model, actuator = self.model, self._index.actuator
        model.actuator_gainprm[actuator, 0] = drive.kp
        model.actuator_biasprm[actuator, 1] = -drive.kp
        model.actuator_biasprm[actuator, 2] = -drive.kd
        self.data.ctrl[actuator] = drive.joint_pos

    def _observe(self, effort: NDArray[np.float64]) -> None:
        data, index = self.data, self._index
        self._gate.observe(
            data.qpos[index.joint_qpos],
            data.qvel[index.joint_dof],
            effort,
            from_mujoco_quat(data.qpos[index.base_qpos + 3 : index.base_qpos + 7]),
            self._now_ns,
        )

    def _weigh(self, factor: float, payload_kg: float) -> None:
        """Scale every body, and spread a payload as the base's own mass is, as in training."""
        model, base = self.model, self._index.base_body
        if factor == 1.0 and not payload_kg:
            return
        ratio = np.full(model.nbody, factor)
        ratio[base] += payload_kg / model.body_mass[base]
        model.body_inertia *= ratio[:, None]
        model.body_mass *= ratio
        mujoco.mj_setConst(model, self.data)

    def _is_finite(self) -> bool:
        return bool(np.isfinite(self.data.qpos).all() and np.isfinite(self.data.qvel).all())

    def _give_up(self) -> None:
        """Back to the newest finite state, there to wait for a reset."""
        self._diverged = True
        self._start_step()
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:], self.data.qvel[:] = self._last_good
        mujoco.mj_forward(self.model, self.data)

    def _push(self) -> None:
        conditions = self._conditions
        self._push_in_s -= CONTROL_S
        if self._push_in_s > 0.5 * CONTROL_S or not conditions.push_speed:
            return
        self._push_in_s = float(self._rng.uniform(*conditions.push_interval_s))
        first, most = self._index.base_dof, conditions.push_speed
        self.data.qvel[first : first + 2] += self._rng.uniform(-most, most, 2)

    def _feet_on_edge(self, contact: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Feet in contact that stand on an edge, (6,)."""
        found = np.zeros(contact.shape, bool)
        if contact.any():
            soles = self.data.site_xpos[self._index.foot_site]
            soles[:, 2] -= self._desc.geometry.foot_radius
            found[contact] = self._course.feet_on_edge(soles[contact])
        return found

    def _base_contact(self) -> bool:
        if not self.data.ncon:
            return False
        return bool(self._is_base_geom[self.data.contact.geom].any())

    def _heights(self, base: NDArray[np.float64], quat: NDArray[np.float64]) -> NDArray[np.float64]:
        yaw = rotations.yaw(quat)
        cos, sin = np.cos(yaw), np.sin(yaw)
        x = base[0] + cos * self._scan_x - sin * self._scan_y
        y = base[1] + sin * self._scan_x + cos * self._scan_y
        return self._ground.heights(x, y)
