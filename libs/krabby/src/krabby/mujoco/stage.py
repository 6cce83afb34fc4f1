"""A robot on a course, as only a simulator knows it: progress, falls, truth, what the camera sees.

A class derived from `Stage` connects the robot with its commands: through a gate in this process
or drives on a bus.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import structlog
from krabby_proto import TRUTH

from krabby.course.mission import STOP, NavCommand, pursue
from krabby.course.progress import RESPAWN_S, CourseProgress, FallCfg, FallMonitor, Pose2
from krabby.hal.measurement import Measurement
from krabby.mujoco.degrade import degraded, differences
from krabby.mujoco.depth_camera import DepthCamera, DepthRenderer, Frame, camera_pose
from krabby.mujoco.own_legs import legs_depth
from krabby.mujoco.world import SUBSTEP_NS, World
from krabby.robot import kinematics, rotations
from krabby.safety.trajectories import rest_joint_pos

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from krabby.course.boxes import Box
    from krabby.course.courses import Course
    from krabby.mujoco.config import StageCfg
    from krabby.robot.description import RobotDescription

__all__ = ["Stage", "stance_m"]

log = structlog.get_logger(__name__)

_RESET_AFTER_NS = round(RESPAWN_S * 1e9)
_STANDING_FEET = 3
"""Legs that carry a standing robot at least."""


class Stage:
    """One robot on one course; time is passed in."""

    def __init__(
        self,
        cfg: StageCfg,
        desc: RobotDescription,
        course: Course,
        *,
        tilt_limit_rad: float,
        auto_reset: bool = True,
        substep_ns: int = SUBSTEP_NS,
        box_half_extents: tuple[float, float, float] | None = None,
        make_world: Callable[..., World] = World,
    ) -> None:
        """Put the robot down where the course begins.

        Args:
            cfg: seed, camera, spawn and mission are used.
            desc: the robot.
            course: what it stands on.
            tilt_limit_rad: tilt from which it has fallen.
            auto_reset: put a robot that fell back 2 s later, or leave it there.
            substep_ns: step of the integrator [ns].
            box_half_extents: of the world's movable box [m]; None for no box.
            make_world: builds the world, as `World` does.
        """
        self.desc = desc
        self.actual = degraded(desc, cfg.degrade)
        """The robot as it really is; who acts goes by `desc`."""
        self.course = course
        self.world = make_world(
            desc,
            course,
            actual=self.actual,
            substep_ns=substep_ns,
            box_half_extents=box_half_extents,
        )
        self.progress = CourseProgress(
            Pose2(*course.spawn), course.waypoints, reach_m=cfg.mission.reach_m
        )
        camera = self.actual.camera
        self.camera = DepthCamera(camera, seed=cfg.seed) if cfg.camera.enabled else None
        self._renderer = DepthRenderer(camera, course.boxes)
        self._degrade = differences(cfg.degrade)
        self._see_robot = cfg.camera.see_robot
        self._nav_speed = cfg.mission.speed
        self._spawn_joint_pos = (
            rest_joint_pos(desc) if cfg.spawn == "lying" else desc.default_joint_pos
        )
        self._repeat = cfg.mission.repeat
        self._auto_reset = auto_reset
        self._falls = FallMonitor(FallCfg(tilt_rad=tilt_limit_rad))
        self._reset_at_ns: int | None = None
        self._down = False
        self._measured = Measurement(len(desc.joint_names), len(desc.leg_names))
        self._truth = np.zeros(TRUTH.size, np.float32)
        self._truth_fields = {name: self._truth[at] for name, at in TRUTH.slices.items()}
        self._edge_feet = 0
        self._edge_ticks = 0
        self.falls = 0
        self.resets = 0
        self.laps = 0
        """Times the course was completed and begun again."""
        self.world.place(self.progress.restart_pose(), self._spawn_joint_pos)
        self.world.measure(self._measured)

    @property
    def measured(self) -> Measurement:
        """What the robot's sensors would say in this slot; written anew in every slot."""
        return self._measured

    # --- for derived classes -----------------------------------------------------------------

    def _put_back(self, now_ns: int, *, new_lap: bool) -> None:
        """The robot is about to be put down anew."""

    def _restart_joint_pos(self) -> NDArray[np.float64]:
        """Joints of a robot that is put down anew [rad], shape (18,)."""
        return self._spawn_joint_pos

    # --- a slot ------------------------------------------------------------------------------

    def reset_if_due(self, now_ns: int) -> None:
        """Put the robot back where it last reached a waypoint, or to the start after the last."""
        if self._reset_at_ns is not None and now_ns >= self._reset_at_ns:
            self.put_back(now_ns)

    def put_back(self, now_ns: int) -> None:
        """Do what `reset_if_due` does, now."""
        new_lap = self.progress.completed and self._repeat
        if new_lap:
            self.laps += 1
            self.progress.start_over()
        self._put_back(now_ns, new_lap=new_lap)
        pose = self.progress.restart_pose()
        self.world.place(pose, self._restart_joint_pos())
        self.progress.restart()
        self._falls.reset()
        self._reset_at_ns = None
        self._down = False
        self.resets += 1
        log.info("put back", x=round(pose.x, 3), y=round(pose.y, 3), yaw=round(pose.yaw, 3))

    def watch(self, now_ns: int, target_joint_pos: NDArray[np.float64] | None) -> bool:
        """Notice a fall; schedule the reset if that is wanted.

        Args:
            now_ns: the clock.
            target_joint_pos: pose the drives are told to hold [rad], None when they are limp.

        Returns:
            Whether the robot fell just now.
        """
        if self._reset_at_ns is not None:
            return False
        pos_w = self.world.base_pos_w
        touches = self.world.base_contact()
        reason = self._falls.update(
            now_ns,
            tilt_rad=float(rotations.tilt(self._measured.base_quat_w)),
            in_pit=self.in_pit(pos_w),
            base_contact=touches,
            stance_m=stance_m(self.desc, target_joint_pos) if touches else 0.0,
        )
        if reason is None:
            self._down = self._down and touches
            return False
        if self._down:
            return False
        self._down = True
        self.falls += 1
        if self._auto_reset:
            self._reset_at_ns = now_ns + _RESET_AFTER_NS
        log.warning(
            "fell",
            reason=str(reason),
            position=[round(float(value), 3) for value in pos_w],
            waypoint=self.progress.index,
            falls=self.falls,
            sim_time_s=round(self.world.sim_time_s, 2),
        )
        return True

    def control_tick(self, now_ns: int) -> NDArray[np.float32]:
        """Once per control period: account for what was walked, return the `truth` payload.

        The array is reused by the next call.
        """
        pos_w = self.world.base_pos_w
        if self._reset_at_ns is None and self.progress.update(pos_w[:2], now_ns):
            log.info(
                "waypoint reached",
                reached=self.progress.index,
                of=self.progress.count,
                sim_time_s=round(self.world.sim_time_s, 2),
            )
            if self.progress.completed and self._repeat:
                self._reset_at_ns = now_ns + _RESET_AFTER_NS
        fields, measured = self._truth_fields, self._measured
        fields["base_pos_w"][:] = pos_w
        fields["base_quat_w"][:] = measured.base_quat_w
        fields["base_lin_vel_w"][:] = self.world.base_lin_vel_w
        fields["base_ang_vel_b"][:] = measured.base_ang_vel_b
        fields["waypoint_index"][:] = self.progress.index
        fields["waypoint_count"][:] = self.progress.count
        fields["distance"][:] = self.progress.distance_m
        fields["falls"][:] = self.falls
        on_edge = self._feet_on_edge()
        self._edge_feet += on_edge
        self._edge_ticks += 1
        fields["feet_on_edge"][:] = on_edge
        fields["sim_time"][:] = self.world.sim_time_s
        fields["reset_count"][:] = self.resets
        return self._truth

    def nav(self) -> NavCommand:
        """Where the mission wants to walk now: towards the next waypoint, stop after the last."""
        target = self.progress.target_xy
        if target is None:
            return STOP
        heading = float(rotations.yaw(self.world.base_quat_w))
        return pursue(self.world.base_pos_w[:2], heading, target, self._nav_speed)

    def show_box(self, box: Box | None) -> None:
        """Put the world's movable box somewhere, for physics and camera; None takes it away."""
        boxes = self.course.boxes
        if box is None:
            self.world.move_box(None)
        else:
            self.world.move_box(box.center, box.quat)
            boxes = (*boxes, box)
        self._renderer = DepthRenderer(self.actual.camera, boxes)

    # --- the camera --------------------------------------------------------------------------

    def expose(self, now_ns: int) -> Frame | None:
        """Take a depth image if one is due; None when not, or when the sensor lost the frame."""
        if self.camera is None or not self.camera.due(now_ns):
            return None
        return self.camera.capture(self.depth(), now_ns)

    def depth(self) -> NDArray[np.float32]:
        """What a flawless camera would see now (height, width) [m], from where it really is."""
        camera = self.actual.camera
        pose = camera_pose(camera, self.world.base_pos_w, self.world.base_quat_w)
        depth = self._renderer.render(*pose)
        if not self._see_robot:
            return depth
        robot = legs_depth(
            self.world.model, self.world.data, self.world.index.base_body,
            *pose, *self._renderer.rays, camera.far_m,
        )  # fmt: skip
        nearer = (robot > 0.0) & ((depth == 0.0) | (robot < depth))
        return np.where(nearer, robot, depth)

    # --- what it came to ---------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """What the walk came to, for the last log line."""
        world = self.world
        mean_square = world.effort_sq_sum / max(world.substeps, 1)
        hardest = int(mean_square.argmax())
        return {
            "distance_m": round(self.progress.distance_m, 3),
            "furthest_m": round(self.progress.furthest_m, 3),
            "falls": self.falls,
            "resets": self.resets,
            "course_completed": self.progress.completed or self.laps > 0,
            "laps": self.laps,
            "waypoints_reached": self.progress.index,
            "waypoints": self.progress.count,
            "course_m": round(self.progress.length_m, 3),
            "edge_feet": round(self._edge_feet / max(self._edge_ticks, 1), 4),
            "degrade": self._degrade,
            "sim_time_s": round(world.sim_time_s, 4),
            "effort_rms_nm": round(float(np.sqrt(mean_square.mean())), 2),
            "effort_rms_max_nm": round(float(np.sqrt(mean_square[hardest])), 2),
            "effort_rms_max_joint": self.desc.joint_names[hardest],
            "saturation_share": round(float(world.saturated.mean()) / max(world.driven, 1), 5),
        }

    def in_pit(self, pos_w: NDArray[np.float64]) -> bool:
        """Whether a point of the robot has fallen into a pit or off the course."""
        return bool(pos_w[2] < self.course.pit_entry_z) and bool(self.course.in_pit(*pos_w))

    def _feet_on_edge(self) -> int:
        down = self._measured.foot_contact > 0.0
        if not down.any():
            return 0
        return int(self.course.feet_on_edge(self.world.foot_soles_w()[down]).sum())


def stance_m(desc: RobotDescription, target: NDArray[np.float64] | None) -> float:
    """How far below the base targets would put the feet that carry it [m]; 0 when limp (None)."""
    if target is None:
        return 0.0
    depths = -kinematics.foot_positions(desc, target)[:, 2]
    return float(np.sort(depths)[-_STANDING_FEET])
