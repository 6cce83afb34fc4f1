"""The simulated robot behind the wire: physics, drives, safety gate, camera, falls and resets.

Everything but sockets, pacing and metrics. Time is passed in, except where the clock is asked for
the moment an actuator write returned; so a test drives it with a clock of its own, and lock-step
with simulated time.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog
from krabby_proto import (
    SAFETY_STATES,
    STATE,
    TRUTH,
    CommandOutcome,
    CommandStatus,
    Message,
    SafetyOutcome,
    fault_names,
)
from krabby_robot import frames, kinematics
from krabby_robot.gate import GateCfg, SafetyGate
from krabby_robot.trajectories import rest_joint_pos

from sim_hal.auto_arm import AutoArm
from sim_hal.depth_camera import DepthCamera, DepthRenderer, Frame, camera_pose
from sim_hal.drives import DriveLine
from sim_hal.physics import SUBSTEP_NS, Measurement, World
from sim_hal.progress import CourseProgress, FallCfg, FallMonitor, Pose2

if TYPE_CHECKING:
    from collections.abc import Callable

    from krabby_robot.courses import Course
    from krabby_robot.description import RobotDescription
    from krabby_robot.gate import DriveCommand
    from numpy.typing import NDArray

    from sim_hal.config import SimHalCfg

__all__ = ["Simulator"]

log = structlog.get_logger(__name__)

_RESET_AFTER_NS = 2_000_000_000
"""A robot that fell lies there for this long before it is put back."""
_STANDING_FEET = 3
"""Legs that carry a standing robot at least."""

_STATUS = {
    "applied": CommandStatus.APPLIED,
    "not_armed": CommandStatus.NOT_ARMED,
    "held": CommandStatus.HELD,
    "refused": CommandStatus.REJECTED_SAFETY,
}


class Simulator:
    """One robot on one course; implements `krabby_proto.HalHandler`."""

    def __init__(
        self,
        cfg: SimHalCfg,
        desc: RobotDescription,
        course: Course,
        *,
        clock_ns: Callable[[], int],
    ) -> None:
        self.desc = desc
        self.course = course
        self.world = World(desc, course)
        self.gate = SafetyGate(GateCfg.from_description(desc))
        self.progress = CourseProgress(
            Pose2(*course.spawn), course.waypoints, reach_m=cfg.mission.reach_m
        )
        self.camera = DepthCamera(desc.camera, seed=cfg.seed) if cfg.camera.enabled else None
        self._renderer = DepthRenderer(desc.camera, course.boxes)
        self._see_robot = cfg.camera.see_robot
        self._clock_ns = clock_ns
        self._spawn_joint_pos = (
            rest_joint_pos(desc) if cfg.spawn == "lying" else desc.default_joint_pos
        )
        self._answer_delay_ns = round(cfg.lockstep.answer_delay_s * 1e9) if cfg.speed == 0.0 else 0
        self._repeat = cfg.mission.repeat
        self._auto_arm = AutoArm(enabled=cfg.auto_arm)
        self._falls = FallMonitor(FallCfg(tilt_rad=self.gate.cfg.tilt_limit_rad))
        self._reset_at_ns: int | None = None
        self._just_reset = False
        self._measured = Measurement(len(desc.joint_names), len(desc.leg_names))
        self._state = np.zeros(STATE.size, np.float32)
        self._state_fields = {name: self._state[at] for name, at in STATE.slices.items()}
        self._truth = np.zeros(TRUTH.size, np.float32)
        self._truth_fields = {name: self._truth[at] for name, at in TRUTH.slices.items()}
        self._hash = hashlib.sha256()

        self.falls = 0
        self.resets = 0
        self.laps = 0
        """Times the course was completed and begun again."""
        self.expected_capture_ns: int | None = None
        """Lock-step: capture time of the state to be answered; commands for others are refused."""
        self.last_command_ns: int | None = None
        """Capture time of the state that the newest accepted command answers."""
        self.on_actuated: Callable[[Message, int], None] = lambda message, applied_ns: None
        """Called with a command and the time its actuator write returned."""
        self.position_clamps = np.zeros(len(desc.joint_names), np.int64)
        self.rate_clamps = np.zeros(len(desc.joint_names), np.int64)
        """Targets cut by the gate, per joint."""

        self.world.place(self.progress.restart_pose(), self._spawn_joint_pos)
        self._line = DriveLine(desc.latency.command_s, self.gate.step(clock_ns()))
        self.world.measure(self._measured)

    @property
    def measured(self) -> Measurement:
        """What the robot's sensors said in this slot; written anew in every slot."""
        return self._measured

    @property
    def drive(self) -> DriveCommand:
        """What the drives were last told."""
        return self._line.current

    def advance(self, slot_ns: int, now_ns: int, substeps: int) -> None:
        """Let the world catch up with `slot_ns`, then let the gate judge what was measured.

        Args:
            slot_ns: The time the world shall have reached; the last substep ends there.
            now_ns: The clock, at or after `slot_ns`: the capture time of the measurement.
            substeps: How many to integrate.
        """
        if self._reset_at_ns is not None and now_ns >= self._reset_at_ns:
            self._reset(now_ns)
        begin_ns = slot_ns - substeps * SUBSTEP_NS
        for index in range(substeps):
            self.world.substep(self._line.at(begin_ns + index * SUBSTEP_NS))
        measured = self._measured
        self.world.measure(measured)
        self.gate.observe(
            measured.joint_pos,
            measured.joint_vel,
            measured.joint_effort,
            measured.base_quat_w,
            now_ns,
        )
        self._watch(now_ns)
        if self._reset_at_ns is None and self._auto_arm.due(now_ns, self.gate.state):
            reply = self.gate.request("arm", now_ns)
            log.info("armed by itself", ok=reply.ok, reason=reply.reason)
        self._line.write(self.gate.step(now_ns), now_ns)

    def state(self) -> tuple[NDArray[np.float32], bool]:
        """The `state` payload, and whether it is the first one after a reset.

        The array is reused by the next call.
        """
        fields, measured = self._state_fields, self._measured
        fields["base_quat_w"][:] = measured.base_quat_w
        fields["base_ang_vel_b"][:] = measured.base_ang_vel_b
        fields["base_lin_acc_b"][:] = measured.base_lin_acc_b
        fields["joint_pos"][:] = measured.joint_pos
        fields["joint_vel"][:] = measured.joint_vel
        fields["joint_effort"][:] = measured.joint_effort
        fields["foot_contact"][:] = measured.foot_contact
        was_reset, self._just_reset = self._just_reset, False
        return self._state, was_reset

    def control_tick(self, now_ns: int) -> NDArray[np.float32]:
        """Once per control period: account for what was walked, return the `truth` payload.

        The array is reused by the next call.
        """
        self._hash.update(self.world.state_bytes())
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
        fields["feet_on_edge"][:] = self._feet_on_edge()
        fields["sim_time"][:] = self.world.sim_time_s
        fields["reset_count"][:] = self.resets
        return self._truth

    def expose(self, now_ns: int) -> Frame | None:
        """Take a depth image if one is due; None when not, or when the sensor lost the frame."""
        if self.camera is None or not self.camera.due(now_ns):
            return None
        return self.camera.capture(self.depth(), now_ns)

    def depth(self) -> NDArray[np.float32]:
        """What a flawless camera would see now (height, width) [m]."""
        camera = self.desc.camera
        pose = camera_pose(camera, self.world.base_pos_w, self.world.base_quat_w)
        depth = self._renderer.render(*pose)
        if not self._see_robot:
            return depth
        robot = self.world.robot_depth(*pose, *self._renderer.rays, camera.far_m)
        nearer = (robot > 0.0) & ((depth == 0.0) | (robot < depth))
        return np.where(nearer, robot, depth)

    def on_command(self, message: Message) -> CommandOutcome:
        """Give a valid command to the gate, and what the gate makes of it to the drives."""
        now_ns = self._clock_ns()
        expected = self.expected_capture_ns
        if expected is not None and message.capture_ns != expected:
            return self._outcome(CommandStatus.REJECTED_STALE)
        self.last_command_ns = message.capture_ns
        self._auto_arm.command(now_ns)
        result = self.gate.command(message.payload, now_ns)
        status = _STATUS[result.status]
        if status is not CommandStatus.APPLIED:
            return self._outcome(status)
        self._line.write(self.gate.step(now_ns), now_ns + self._answer_delay_ns)
        applied_ns = self._clock_ns()
        self.on_actuated(message, applied_ns)
        _count_bits(self.position_clamps, result.position_clamp_mask)
        _count_bits(self.rate_clamps, result.rate_clamp_mask)
        return self._outcome(
            status,
            position_clamp_mask=result.position_clamp_mask,
            rate_clamp_mask=result.rate_clamp_mask,
            applied_ns=applied_ns,
        )

    def on_safety(self, op: str, by: str) -> SafetyOutcome:
        """Carry out what an operator asked for."""
        now_ns = self._clock_ns()
        reply = self.gate.request(op, now_ns)
        if op != "status":
            self._auto_arm.operator(op, granted=reply.ok)
            self._line.write(self.gate.step(now_ns), now_ns)
            log.info("operator", op=op, by=by, ok=reply.ok, reason=reply.reason)
        return SafetyOutcome(
            ok=reply.ok,
            state=SAFETY_STATES[self.gate.state],
            faults=tuple(fault_names(int(self.gate.faults))),
            reason=reply.reason,
        )

    def summary(self) -> dict[str, Any]:
        """What the run came to, for the last log line."""
        world = self.world
        mean_square = world.effort_sq_sum / max(world.substeps, 1)
        hardest = int(mean_square.argmax())
        position, rate = int(self.position_clamps.sum()), int(self.rate_clamps.sum())
        return {
            "distance_m": round(self.progress.distance_m, 3),
            "furthest_m": round(self.progress.furthest_m, 3),
            "falls": self.falls,
            "resets": self.resets,
            "course_completed": self.progress.completed or self.laps > 0,
            "laps": self.laps,
            "waypoints_reached": self.progress.index,
            "waypoints": self.progress.count,
            "sim_time_s": round(world.sim_time_s, 4),
            "trajectory_hash": self._hash.hexdigest(),
            "gate_clamps": position + rate,
            "gate_position_clamps": position,
            "gate_rate_clamps": rate,
            "effort_rms_nm": round(float(np.sqrt(mean_square.mean())), 2),
            "effort_rms_max_nm": round(float(np.sqrt(mean_square[hardest])), 2),
            "effort_rms_max_joint": self.desc.joint_names[hardest],
            "saturation_share": round(float(world.saturated.mean()) / max(world.driven, 1), 5),
        }

    def _watch(self, now_ns: int) -> None:
        """Notice a fall, make the robot limp, and schedule its reset."""
        if self._reset_at_ns is not None:
            return
        pos_w = self.world.base_pos_w
        touches = self.world.base_contact()
        reason = self._falls.update(
            now_ns,
            tilt_rad=float(frames.tilt(self._measured.base_quat_w)),
            in_pit=bool(pos_w[2] < self.course.pit_entry_z) and bool(self.course.in_pit(*pos_w)),
            base_contact=touches,
            stance_m=self._commanded_stance() if touches else 0.0,
        )
        if reason is None:
            return
        self.falls += 1
        self._reset_at_ns = now_ns + _RESET_AFTER_NS
        self.gate.request("disarm", now_ns)
        log.warning(
            "fell",
            reason=str(reason),
            position=[round(float(value), 3) for value in pos_w],
            waypoint=self.progress.index,
            falls=self.falls,
            sim_time_s=round(self.world.sim_time_s, 2),
        )

    def _reset(self, now_ns: int) -> None:
        """Put the robot back where it last reached a waypoint, or to the start after the last."""
        if self.progress.completed and self._repeat:
            self.laps += 1
            self.progress.start_over()
            self.gate.request("disarm", now_ns)
        pose = self.progress.restart_pose()
        self.world.place(pose, self._spawn_joint_pos)
        self.progress.restart()
        self._falls.reset()
        self._auto_arm.reset()
        self._reset_at_ns = None
        self._just_reset = True
        self.resets += 1
        log.info("put back", x=round(pose.x, 3), y=round(pose.y, 3), yaw=round(pose.yaw, 3))

    def _commanded_stance(self) -> float:
        """How far below the base the targets would put the feet that carry it [m]; 0 when limp."""
        if not self.gate.state.following:
            return 0.0
        depths = -kinematics.foot_positions(self.desc, self.gate.target)[:, 2]
        return float(np.sort(depths)[-_STANDING_FEET])

    def _feet_on_edge(self) -> int:
        down = self._measured.foot_contact > 0.0
        if not down.any():
            return 0
        return int(self.course.feet_on_edge(self.world.foot_soles_w()[down]).sum())

    def _outcome(self, status: CommandStatus, **facts: int) -> CommandOutcome:
        return CommandOutcome(status, int(self.gate.state), int(self.gate.faults), **facts)


def _count_bits(counts: NDArray[np.int64], mask: int) -> None:
    """Add one wherever the mask has a bit; commands without a clamp cost nothing."""
    while mask:
        low = mask & -mask
        counts[low.bit_length() - 1] += 1
        mask ^= low
