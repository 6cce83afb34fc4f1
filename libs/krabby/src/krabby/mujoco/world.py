"""The simulated world: the robot on a course in MuJoCo, moved in substeps by what the drives get.

This is the only module that touches MuJoCo's data. Everything that leaves it is in the project's
terms: quaternions (x, y, z, w), vectors with their frame, joints in the order of `robot.toml`.
"""

# mujoco is compiled and comes without type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import TYPE_CHECKING

import mujoco
import numpy as np

from krabby.mujoco.errors import PhysicsDiverged
from krabby.mujoco.model import (
    COLLISION_GROUP,
    ModelIndex,
    build_model,
    from_mujoco_quat,
    set_robot_state,
)
from krabby.robot import kinematics, rotations
from krabby.safety.gate import DriveMode

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from krabby.course.courses import Course
    from krabby.course.progress import Pose2
    from krabby.hal.measurement import Measurement
    from krabby.robot.description import RobotDescription
    from krabby.safety.gate import DriveCommand

__all__ = ["SUBSTEP_NS", "World"]

SUBSTEP_NS = 2_500_000
"""Step of the integrator [ns]: two per HAL slot."""

_SUBSTEP_S = SUBSTEP_NS * 1e-9
_CONTACT_N = 1.0
"""Normal force from which a foot counts as standing on something."""
_SATURATED = 0.99
"""Share of the torque that is available from which a drive counts as saturated."""
_CLEARANCE_M = 0.002
"""The robot is put down this far above the ground, so that it does not start inside it."""

_GRID = np.stack(np.meshgrid(*[np.linspace(-1, 1, 5)] * 2, [-1.0]), axis=-1).reshape(-1, 3)
"""Underside of a box of half extents 1."""
_AXIS = np.linspace(-1, 1, 9)[:, None] * [0.0, 0.0, 1.0]
"""Axis of a capsule of half length 1."""


class World:
    """Robot, course and physics: `place`, then `substep` and `measure` in turns."""

    def __init__(
        self, desc: RobotDescription, course: Course, *, actual: RobotDescription | None = None
    ) -> None:
        """Build the robot on the course.

        Args:
            desc: the robot as it is described, and as its model was generated.
            course: what it stands on.
            actual: the robot as it really is: drives, mass of the body and friction are taken from
                it; as described when None.
        """
        self._desc = actual or desc
        self._course = course
        joints = len(desc.joint_names)
        self.model = build_model(desc, course, timestep_s=_SUBSTEP_S, visuals=False)
        # A state that diverged must be seen and reported, not silently replaced by a fresh one.
        self.model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
        self.data = mujoco.MjData(self.model)
        self._index = ModelIndex.of(self.model, desc)
        if actual is not None:
            self._degrade(desc, actual)
        self._gravity_w = np.array(self.model.opt.gravity)
        self.substeps = 0
        """Substeps since the start: the simulated time, in units of `SUBSTEP_NS`."""
        self._drive: DriveCommand | None = None
        self._effort_sum = np.zeros(joints)
        self._averaged = 0
        self._last_velocity_w = np.zeros(3)
        self.effort_sq_sum = np.zeros(joints)
        """Torque squared, summed over all substeps [N²·m²]."""
        self.saturated = np.zeros(joints, np.int64)
        """Substeps in which a drive gave all it had, per joint."""
        self.driven = 0
        """Substeps in which the drives held a position."""
        self._is_base_geom = (self.model.geom_bodyid == self._index.base_body) & (
            self.model.geom_group == COLLISION_GROUP
        )

    @property
    def sim_time_s(self) -> float:
        """Simulated time since the start [s]."""
        return self.substeps * _SUBSTEP_S

    @property
    def base_pos_w(self) -> NDArray[np.float64]:
        """Base in the world [m], shape (3,)."""
        first = self._index.base_qpos
        return self.data.qpos[first : first + 3].copy()

    @property
    def base_quat_w(self) -> NDArray[np.float64]:
        """Base to world, xyzw, shape (4,)."""
        first = self._index.base_qpos + 3
        return from_mujoco_quat(self.data.qpos[first : first + 4])

    @property
    def base_lin_vel_w(self) -> NDArray[np.float64]:
        """Velocity of the base in the world [m/s], shape (3,)."""
        first = self._index.base_dof
        return self.data.qvel[first : first + 3].copy()

    @property
    def joint_pos(self) -> NDArray[np.float64]:
        """Joint angles [rad], shape (18,), a copy."""
        return self.data.qpos[self._index.joint_qpos]

    @property
    def joint_vel(self) -> NDArray[np.float64]:
        """Joint velocities [rad/s], shape (18,), a copy."""
        return self.data.qvel[self._index.joint_dof]

    def place(self, pose: Pose2, joint_pos: NDArray[np.float64]) -> None:
        """Put the robot down at rest: level, facing `pose.yaw`, on whatever is highest below it."""
        self._put(pose, 0.0, joint_pos)  # to see where its parts are
        self._put(pose, self._lift_clear(), joint_pos)
        self._drive = None
        self._start_slot()

    def substep(self, drive: DriveCommand) -> None:
        """Integrate one `SUBSTEP_NS` with what the drives are told."""
        if drive is not self._drive:
            self.set_law(drive.kp, drive.kd, drive.joint_pos)
            self._drive = drive
        low, high = kinematics.torque_speed_limit(self._desc, self.joint_vel)
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
        model, actuator = self.model, self._index.actuator
        model.actuator_gainprm[actuator, 0] = kp
        model.actuator_biasprm[actuator, 0] = offset
        model.actuator_biasprm[actuator, 1] = -kp
        model.actuator_biasprm[actuator, 2] = -kd
        self.data.ctrl[actuator] = target

    def set_friction(self, coulomb: float, viscous: float) -> None:
        """Give every joint dry friction [N·m] and viscous friction [N·m·s/rad]."""
        self.model.dof_frictionloss[self._index.joint_dof] = coulomb
        self.model.dof_damping[self._index.joint_dof] = viscous

    def step(
        self, low: NDArray[np.float64], high: NDArray[np.float64], *, driven: bool
    ) -> NDArray[np.float64]:
        """Integrate one `SUBSTEP_NS`; the law's torque, cut to `low`..`high` [N·m], is returned.

        Args:
            low: Least torque there is now, shape (18,).
            high: Largest.
            driven: Whether the drives hold a position, for the count of saturations.
        """
        model, actuator = self.model, self._index.actuator
        model.actuator_forcerange[actuator, 0] = low
        model.actuator_forcerange[actuator, 1] = high
        mujoco.mj_step(model, self.data)
        self.substeps += 1
        effort = self.data.actuator_force[actuator]
        self._effort_sum += effort
        self._averaged += 1
        self.effort_sq_sum += effort * effort
        if driven:
            self.driven += 1
            self.saturated += (effort >= _SATURATED * high) | (effort <= _SATURATED * low)
        return effort

    def measure(self, into: Measurement) -> None:
        """Read the robot's sensors; means are over the substeps since the last call.

        Raises:
            PhysicsDiverged: the state is not finite.
        """
        data, index = self.data, self._index
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
            elapsed_s = self._averaged * _SUBSTEP_S
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
        return self.data.sensordata[self._index.foot_touch] > _CONTACT_N

    def foot_soles_w(self) -> NDArray[np.float64]:
        """Lowest point of every foot in the world [m], shape (6, 3)."""
        soles = self.data.site_xpos[self._index.foot_site]
        soles[:, 2] -= self._desc.geometry.foot_radius
        return soles

    def base_contact(self) -> bool:
        """Whether the body, not a leg, touches the course."""
        if not self.data.ncon:
            return False
        return bool(self._is_base_geom[self.data.contact.geom].any())

    def state_bytes(self) -> bytes:
        """Positions and velocities bit by bit, for the trajectory hash."""
        return self.data.qpos.tobytes() + self.data.qvel.tobytes()

    def robot_depth(
        self,
        pos_w: NDArray[np.float64],
        optical_wc: NDArray[np.float64],
        right: NDArray[np.float32],
        down: NDArray[np.float32],
        range_m: float,
    ) -> NDArray[np.float32]:
        """Optical-axis distance to the robot's own legs (rows, columns) [m], 0 where none is.

        By rays, but only where a part can be: the legs stand mostly beside the view. The body lies
        behind the camera.
        """
        depth = np.zeros((len(down), len(right)), np.float32)
        mujoco.mj_kinematics(self.model, self.data)
        rows, columns = np.nonzero(self._may_show_legs(pos_w, optical_wc, right, down))
        count = len(rows)
        if not count:
            return depth
        rays_w = np.column_stack([right[columns], down[rows], np.ones(count)]) @ optical_wc.T
        length = np.linalg.norm(rays_w, axis=1)
        rays_w /= length[:, None]
        distance = np.empty(count)
        groups = np.zeros(mujoco.mjNGROUP, np.uint8)
        groups[COLLISION_GROUP] = 1
        mujoco.mj_multiRay(
            self.model, self.data, pos_w, rays_w.ravel(), groups, 1, self._index.base_body,
            np.empty(count, np.int32), distance, None, count, range_m * float(length.max()),
        )  # fmt: skip
        depth[rows, columns] = np.where(distance >= 0.0, distance / length, 0.0)
        depth[depth > range_m] = 0.0
        return depth

    def _may_show_legs(
        self,
        pos_w: NDArray[np.float64],
        optical_wc: NDArray[np.float64],
        right: NDArray[np.float32],
        down: NDArray[np.float32],
    ) -> NDArray[np.bool_]:
        """Pixels within the outlines of the legs' bounding spheres (rows, columns)."""
        model = self.model
        legs = (model.geom_group == COLLISION_GROUP) & ~self._is_base_geom
        centers = (self.data.geom_xpos[legs] - pos_w) @ optical_wc
        found = np.zeros((len(down), len(right)), bool)
        for (x, y, z), radius in zip(centers, model.geom_rbound[legs], strict=True):
            if z > -radius:
                found |= _cuts(down, y, z, radius)[:, None] & _cuts(right, x, z, radius)
        return found

    def _degrade(self, desc: RobotDescription, actual: RobotDescription) -> None:
        """Change the model where the robot is not as described."""
        model, base = self.model, self._index.base_body
        heavier = actual.masses.body / desc.masses.body
        model.body_mass[base] *= heavier
        model.body_inertia[base] *= heavier
        collides = model.geom_group == COLLISION_GROUP
        model.geom_friction[collides, 0] = actual.contact.body_friction
        model.geom_friction[self._index.foot_geom, 0] = actual.contact.foot_friction
        mujoco.mj_setConst(model, self.data)  # what the solver derived from the masses

    def _start_slot(self) -> None:
        self._effort_sum[:] = 0.0
        self._averaged = 0
        self._last_velocity_w = self.base_lin_vel_w

    def _put(self, pose: Pose2, height: float, joint_pos: NDArray[np.float64]) -> None:
        set_robot_state(
            self.model,
            self.data,
            self._index,
            base_pos_w=(pose.x, pose.y, height),
            base_quat_w=rotations.from_yaw(pose.yaw),
            joint_pos=joint_pos,
        )

    def _lift_clear(self) -> float:
        """Height of the base at which the robot's parts are above what is below them.

        Beside a wall a rounded part may still reach into it, by less than its own radius.
        """
        points_w, radii = self._support_points()
        ground = self._course.height_at(points_w[:, 0], points_w[:, 1])
        base_z = self.data.qpos[self._index.base_qpos + 2]
        return float(base_z + (ground - points_w[:, 2] + radii).max()) + _CLEARANCE_M

    def _support_points(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Sample of the robot's collision shapes: points (n, 3) [m] and the radius around each."""
        model, data = self.model, self.data
        points: list[NDArray[np.float64]] = []
        radii: list[float] = []
        for geom in np.flatnonzero(model.geom_group == COLLISION_GROUP):
            size = model.geom_size[geom]
            kind = model.geom_type[geom]
            if kind == mujoco.mjtGeom.mjGEOM_BOX:
                local, radius = _GRID * size, 0.0
            elif kind == mujoco.mjtGeom.mjGEOM_CAPSULE:
                local, radius = _AXIS * size[1], float(size[0])
            else:
                local, radius = np.zeros((1, 3)), float(model.geom_rbound[geom])
            points.append(data.geom_xpos[geom] + local @ data.geom_xmat[geom].reshape(3, 3).T)
            radii.extend([radius] * len(local))
        return np.concatenate(points), np.array(radii)


def _cuts(
    tangents: NDArray[np.float32], aside: float, ahead: float, radius: float
) -> NDArray[np.bool_]:
    """Which planes through the eye, by their tangents, cut a sphere."""
    return np.abs(aside - tangents * ahead) <= radius * np.sqrt(1.0 + tangents * tangents)
