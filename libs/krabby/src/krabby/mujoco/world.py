"""The robot on a course in MuJoCo: simulator, emulator, benchmark and trainer move this one.

This is the only module that touches MuJoCo's data. Everything that leaves it is in the project's
terms: quaternions (x, y, z, w), vectors with their frame, joints in the order of `robot.toml`.
"""

# mujoco is compiled and comes without type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import mujoco
import numpy as np

from krabby.mujoco.degrade import make_real
from krabby.mujoco.errors import PhysicsDiverged
from krabby.mujoco.model import (
    COLLISION_GROUP,
    TERRAIN_GROUP,
    ModelIndex,
    build_model,
    from_mujoco_quat,
    set_robot_state,
    to_mujoco_quat,
)
from krabby.mujoco.placing import lift_clear
from krabby.robot import kinematics, rotations
from krabby.safety.gate import DriveMode

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from krabby.course.courses import Course
    from krabby.course.progress import Pose2
    from krabby.hal.measurement import Measurement
    from krabby.robot.description import RobotDescription
    from krabby.safety.gate import DriveCommand

__all__ = ["SUBSTEP_NS", "StepLog", "World"]

SUBSTEP_NS = 2_500_000
"""Usual step of the integrator [ns]: two per HAL slot."""

_CONTACT_N = 1.0
"""Normal force from which a foot counts as standing on something."""
_SATURATED = 0.99
"""Share of the torque that is available from which a drive counts as saturated."""
_BOX_BODY = "movable_box"
_OUT_OF_THE_WAY_M = -1000.0


@dataclass(kw_only=True, eq=False)
class StepLog:
    """Samples of `len(joint_vel)` integration steps, the newest last once all were written."""

    joint_vel: NDArray[np.float64]
    """After each step [rad/s], shape (S, 18)."""
    joint_torque: NDArray[np.float64]
    """In each step [N·m], shape (S, 18)."""
    foot_force: NDArray[np.float64]
    """Normal contact force of each foot in each step [N], shape (S, 6)."""
    count: int = 0
    """Steps written so far; sample i of S is step i modulo S."""

    @classmethod
    def of(cls, steps: int, joints: int, feet: int) -> Self:
        """Room for so many steps."""
        return cls(
            joint_vel=np.zeros((steps, joints)),
            joint_torque=np.zeros((steps, joints)),
            foot_force=np.zeros((steps, feet)),
        )

    def add(
        self,
        joint_vel: NDArray[np.float64],
        joint_torque: NDArray[np.float64],
        foot_force: NDArray[np.float64],
    ) -> None:
        """Write one step."""
        at = self.count % len(self.joint_vel)
        self.joint_vel[at] = joint_vel
        self.joint_torque[at] = joint_torque
        self.foot_force[at] = foot_force
        self.count += 1


class World:
    """Robot, course and physics: `place`, then `substep` and `measure` in turns."""

    def __init__(
        self,
        desc: RobotDescription,
        course: Course,
        *,
        actual: RobotDescription | None = None,
        substep_ns: int = SUBSTEP_NS,
        box_half_extents: tuple[float, float, float] | None = None,
    ) -> None:
        """Build the robot on the course.

        Args:
            desc: the robot as it is described, and as its model was generated.
            course: what it stands on.
            actual: the robot as it really is: drives, masses and friction are taken from it; as
                described when None.
            substep_ns: step of the integrator [ns].
            box_half_extents: of a box that `move_box` can put somewhere [m]; None for no box.
        """
        self._desc = actual or desc
        self._course = course
        self.substep_ns = substep_ns
        self._substep_s = substep_ns * 1e-9
        joints = len(desc.joint_names)
        terrain = course if box_half_extents is None else _WithBox(course, box_half_extents)
        self.model = build_model(desc, terrain, timestep_s=self._substep_s, visuals=False)
        # A state that diverged must be seen and reported, not silently replaced by a fresh one.
        self.model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
        self.data = mujoco.MjData(self.model)
        self.index = ModelIndex.of(self.model, desc)
        if actual is not None:
            make_real(self.model, self.data, self.index, desc, actual)
        self._gravity_w = np.array(self.model.opt.gravity)
        self.substeps = 0
        """Substeps since the start: the simulated time, in units of `substep_ns`."""
        self._drive: DriveCommand | None = None
        self._limp: NDArray[np.bool_] | None = None
        self._effort_sum = np.zeros(joints)
        self._averaged = 0
        self._last_velocity_w = np.zeros(3)
        self.effort_sq_sum = np.zeros(joints)
        """Torque squared, summed over all substeps [N²·m²]."""
        self.saturated = np.zeros(joints, np.int64)
        """Substeps in which a drive gave all it had, per joint."""
        self.driven = 0
        """Substeps in which the drives held a position."""
        self.log: StepLog | None = None
        """Where every substep is written to, if anywhere."""
        self._is_base_geom = (self.model.geom_bodyid == self.index.base_body) & (
            self.model.geom_group == COLLISION_GROUP
        )
        self._is_box_geom = np.zeros(self.model.ngeom, bool)
        if box_half_extents is not None:
            self._is_box_geom[self.model.geom(_BOX_BODY).id] = True

    @property
    def simulator(self) -> str:
        """Name and version of what integrates."""
        return f"mujoco {mujoco.__version__}"

    @property
    def has_to_be_built(self) -> bool:
        """Whether `start` comes before the first step, and takes long."""
        return False

    def start(self) -> None:
        """Do what takes long, before the first step."""

    def close(self) -> None:
        """Let go of everything."""

    @property
    def sim_time_s(self) -> float:
        """Simulated time since the start [s]."""
        return self.substeps * self._substep_s

    @property
    def base_pos_w(self) -> NDArray[np.float64]:
        """Base in the world [m], shape (3,)."""
        first = self.index.base_qpos
        return self.data.qpos[first : first + 3].copy()

    @property
    def base_quat_w(self) -> NDArray[np.float64]:
        """Base to world, xyzw, shape (4,)."""
        first = self.index.base_qpos + 3
        return from_mujoco_quat(self.data.qpos[first : first + 4])

    @property
    def base_lin_vel_w(self) -> NDArray[np.float64]:
        """Velocity of the base in the world [m/s], shape (3,)."""
        first = self.index.base_dof
        return self.data.qvel[first : first + 3].copy()

    @property
    def joint_pos(self) -> NDArray[np.float64]:
        """Joint angles [rad], shape (18,), a copy."""
        return self.data.qpos[self.index.joint_qpos]

    @property
    def joint_vel(self) -> NDArray[np.float64]:
        """Joint velocities [rad/s], shape (18,), a copy."""
        return self.data.qvel[self.index.joint_dof]

    def place(
        self, pose: Pose2, joint_pos: NDArray[np.float64], *, height_m: float | None = None
    ) -> None:
        """Put the robot down at rest: level, facing `pose.yaw`, its base at this height.

        Without a height it stands on the highest ground that is below any of its parts.
        """
        self._put(pose, height_m or 0.0, joint_pos)
        if height_m is None:  # now its parts are where they can be looked at
            base_z = self.data.qpos[self.index.base_qpos + 2]
            self._put(pose, lift_clear(self.model, self.data, self._course, base_z), joint_pos)
        self._drive = None
        self._start_slot()

    def substep(self, drive: DriveCommand) -> None:
        """Integrate one step with what the drives are told."""
        if drive is not self._drive:
            self.set_law(drive.kp, drive.kd, drive.joint_pos)
            self._drive = drive
        low, high = kinematics.torque_speed_limit(self._desc, self.joint_vel)
        if self._limp is not None:
            low[self._limp] = high[self._limp] = 0.0
        np.maximum(low, -drive.effort_limit, out=low)
        np.minimum(high, drive.effort_limit, out=high)
        self.step(low, high, driven=drive.mode is DriveMode.POSITION)

    def set_law(
        self,
        kp: NDArray[np.float64],
        kd: NDArray[np.float64],
        target: NDArray[np.float64],
        offset: NDArray[np.float64] | float = 0.0,
    ) -> None:
        """Torque on every joint from now on: kp (target - angle) - kd velocity + offset [N·m].

        The integrator takes the velocity's part implicitly, as a drive at some kHz would.
        """
        model, actuator = self.model, self.index.actuator
        model.actuator_gainprm[actuator, 0] = kp
        model.actuator_biasprm[actuator, 0] = offset
        model.actuator_biasprm[actuator, 1] = -kp
        model.actuator_biasprm[actuator, 2] = -kd
        self.data.ctrl[actuator] = target

    def set_limp(self, joints: NDArray[np.bool_]) -> None:
        """From now on the drives of these joints (18,) give no torque in `substep`."""
        self._limp = joints.copy() if joints.any() else None

    def push(self, change_w: ArrayLike) -> None:
        """Change the base's velocity at once, world frame [m/s], shape (3,)."""
        first = self.index.base_dof
        self.data.qvel[first : first + 3] += change_w

    def move_box(self, center_w: ArrayLike | None, quat_wb: ArrayLike = (0, 0, 0, 1)) -> None:
        """Put the movable box somewhere, xyzw; None takes it out of the way."""
        self.data.mocap_pos[0] = (0, 0, _OUT_OF_THE_WAY_M) if center_w is None else center_w
        self.data.mocap_quat[0] = to_mujoco_quat(quat_wb)

    def set_friction(self, coulomb: float, viscous: float) -> None:
        """Give every joint dry friction [N·m] and viscous friction [N·m·s/rad]."""
        self.model.dof_frictionloss[self.index.joint_dof] = coulomb
        self.model.dof_damping[self.index.joint_dof] = viscous

    def step(
        self, low: NDArray[np.float64], high: NDArray[np.float64], *, driven: bool
    ) -> NDArray[np.float64]:
        """Integrate one step; the law's torque, cut to `low`..`high` [N·m], is returned.

        Args:
            low: Least torque there is now, shape (18,).
            high: Largest.
            driven: Whether the drives hold a position, for the count of saturations.
        """
        effort = self._integrate(low, high)
        self.substeps += 1
        self._effort_sum += effort
        self._averaged += 1
        self.effort_sq_sum += effort * effort
        if driven:
            self.driven += 1
            self.saturated += (effort >= _SATURATED * high) | (effort <= _SATURATED * low)
        if self.log is not None:
            forces = self.data.sensordata[self.index.foot_touch]
            self.log.add(self.joint_vel, effort, forces)
        return effort

    def _integrate(
        self, low: NDArray[np.float64], high: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Let one step of time pass; the torque on every joint, cut to `low`..`high` [N·m]."""
        model, actuator = self.model, self.index.actuator
        model.actuator_forcerange[actuator, 0] = low
        model.actuator_forcerange[actuator, 1] = high
        mujoco.mj_step(model, self.data)
        return self.data.actuator_force[actuator]

    def measure(self, into: Measurement) -> None:
        """Read the robot's sensors; means are over the substeps since the last call.

        Raises:
            PhysicsDiverged: the state is not finite.
        """
        data, index = self.data, self.index
        if not (np.isfinite(data.qpos).all() and np.isfinite(data.qvel).all()):
            raise PhysicsDiverged(
                f"the simulation diverged {self.sim_time_s:.4f} s after its start; run the same "
                "seed with speed=0 to see it again, and look at gains and masses in robot.toml"
            )
        into.base_quat_w[:] = self.base_quat_w
        gyro = index.base_dof + 3
        into.base_ang_vel_b[:] = data.qvel[gyro : gyro + 3]
        into.joint_pos[:] = data.qpos[index.joint_qpos]
        into.joint_vel[:] = data.qvel[index.joint_dof]
        velocity_w = self.base_lin_vel_w
        if self._averaged:
            elapsed_s = self._averaged * self._substep_s
            force_w = (velocity_w - self._last_velocity_w) / elapsed_s - self._gravity_w
            into.base_lin_acc_b[:] = rotations.rotate_inverse(into.base_quat_w, force_w)
            np.divide(self._effort_sum, self._averaged, out=into.joint_effort)
        else:  # just put down, at rest
            into.base_lin_acc_b[:] = rotations.rotate_inverse(into.base_quat_w, -self._gravity_w)
            into.joint_effort[:] = 0.0
        into.foot_contact[:] = self.foot_contact()
        self._start_slot()

    def foot_contact(self) -> NDArray[np.bool_]:
        """Which feet carry load, shape (6,)."""
        return self.data.sensordata[self.index.foot_touch] > _CONTACT_N

    def foot_soles_w(self) -> NDArray[np.float64]:
        """Lowest point of every foot in the world [m], shape (6, 3)."""
        soles = self.data.site_xpos[self.index.foot_site]
        soles[:, 2] -= self._desc.geometry.foot_radius
        return soles

    def base_contact(self) -> bool:
        """Whether the body, not a leg, touches the course."""
        if not self.data.ncon:
            return False
        return bool(self._is_base_geom[self.data.contact.geom].any())

    def box_contact(self) -> bool:
        """Whether anything touches the movable box."""
        if not self.data.ncon:
            return False
        return bool(self._is_box_geom[self.data.contact.geom].any())

    def state_bytes(self) -> bytes:
        """Positions and velocities bit by bit, for the trajectory hash."""
        return self.data.qpos.tobytes() + self.data.qvel.tobytes()

    def _start_slot(self) -> None:
        self._effort_sum[:] = 0.0
        self._averaged = 0
        self._last_velocity_w = self.base_lin_vel_w

    def _put(self, pose: Pose2, height: float, joint_pos: NDArray[np.float64]) -> None:
        set_robot_state(
            self.model,
            self.data,
            self.index,
            base_pos_w=(pose.x, pose.y, height),
            base_quat_w=rotations.from_yaw(pose.yaw),
            joint_pos=joint_pos,
        )


class _WithBox:
    """A course and, far below it, a box that can be moved: `krabby.mujoco.model.Terrain`."""

    def __init__(self, course: Course, half_extents: tuple[float, float, float]) -> None:
        self._course = course
        self._half_extents = half_extents

    def add_to_mjspec(self, spec: mujoco.MjSpec) -> None:
        self._course.add_to_mjspec(spec)
        body = spec.worldbody.add_body(
            name=_BOX_BODY, pos=(0.0, 0.0, _OUT_OF_THE_WAY_M), mocap=True
        )
        body.add_geom(
            name=_BOX_BODY,
            type=mujoco.mjtGeom.mjGEOM_BOX,
            size=self._half_extents,
            group=TERRAIN_GROUP,
        )
