"""A hexapod gait generator, written once for arrays and for a graph.

`Gait.step` is plain NumPy on float32. Recorded by `krabby_robot.onnx_graph`, the same lines become
`assets/policies/gait/policy.onnx` (`krabby_robot.gait`), which the gameloop loads like any learned
policy. It is the baseline those are compared with, and what the robot walks with when it cannot
see.

**Steps.** A clock runs through one cycle. On each side the rear leg steps first and every leg
further to the front 1 - duty of a cycle later; the right side half a cycle after the left. The
share of the cycle a leg has to itself, 1 - duty, grows with speed so that steps keep their length:
one leg at a time when slow (wave, duty 5/6), then pairs (tetrapod, 2/3), at last nearly threes
(tripod, 1/2). In the first `swing_s` of its share the foot is in the air; in the remaining
`transfer_s` it takes load from the foot that lifts next. Feet on the ground move opposite to the
commanded twist. A leg whose foot is where it belongs does not step: without a command the robot
stands still on six feet.

**Soft drives.** At 30 N·m a joint gives way by 7 degrees, and the legs weigh more than the body.
Targets are therefore displaced by the torque they have to give over the drive's stiffness: weight
and inertia of the leg itself, and its share of the ground reaction that carries the robot and
answers the swing of the other legs. The shares come from planned loads, not from sensors: the
generator reads the commanded twist and, on its first step alone, the joint angles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from krabby_robot.description import RobotDescription
from krabby_robot.kinematics import foot_positions
from krabby_robot.observation import ObservationLayout, standard_term

__all__ = ["OBSERVATION", "STATE_SHAPES", "Gait", "GaitCfg"]

OBSERVATION: Final = ObservationLayout(
    (standard_term("nav_command"), standard_term("joint_pos_rel"))
)
"""What `Gait.step` reads, 21 numbers."""

STATE_SHAPES: Final[Mapping[str, tuple[int, ...]]] = {
    "clock": (4,),
    "twist": (3,),
    "legs": (2, 6),
    "feet": (5, 6),
    "joint_pos": (3, 6),
    "joint_vel": (3, 6),
    "link_pos": (6, 6),
    "link_vel": (6, 6),
}
"""Recurrent state by name; all zero after a reset. Legs are the last axis.

    clock      0 before the first step and 1 after it; phase of the cycle [0, 1); duty; 1 when the
               wave runs from front to rear
    twist      what is walked with: vx, vy [m/s], yaw_rate [rad/s]
    legs       progress of the step in the air; planned load; both 0 to 1
    feet       x, y of the feet, height of the ground, x, y of the landing, base frame [m]
    joint_*    undisplaced joint angles [rad] and their rates: hip_yaw, hip_pitch, knee
    link_*     centres of mass of femur and tibia, base frame [m], and their velocities:
               femur x, tibia x, femur y, tibia y, femur z, tibia z
"""

_GRAVITY: Final = 9.81
_ZERO: Final = np.zeros(1, np.float32)
_ONE: Final = np.ones(1, np.float32)
_LANDED: Final = 0.999
"""Progress of a step that is over, less rounding."""

_Array = Any
"""A float32 array, or a `Symbol` while the graph is recorded."""


@dataclass(frozen=True, kw_only=True)
class GaitCfg:
    """What can be tuned; the defaults were tuned in MuJoCo for little torque and little slip."""

    control_rate_hz: float = 100.0
    """Steps a second."""
    swing_s: float = 0.36
    """A foot's time in the air."""
    transfer_s: float = 0.08
    """Time in which load moves from the foot that lifts to the one that has landed."""
    stride_m: float = 0.4
    """How far the body travels in a leg's cycle less one share; gives duty from speed."""
    duty_min: float = 0.55
    """A little above a tripod's 1/2: never do three legs change places at one instant."""
    duty_max: float = 5.0 / 6.0
    """One leg after the other."""
    duty_return: float = 0.7
    """To bring the feet back to their places after a stop: not one by one, that takes long."""
    duty_fall: float = 0.6
    """How much a falling duty may slow the front legs' phases, of their rate."""
    duty_rise_rate: float = 0.05
    """Fastest rise of duty [1/s]: it speeds the front legs' phases up."""
    lift_m: float = 0.14
    """Height of a step: over 0.1 m obstacles, which costs 1 N·m RMS more than 0.1 m does."""
    speed_max: float = 0.8
    """Fastest a foot moves over the body [m/s]; a faster twist is scaled down as a whole."""
    lin_acc: float = 0.4
    """Fastest change of the twist [m/s²]."""
    yaw_acc: float = 0.8
    """Fastest change of the twist's yaw rate [rad/s²]."""
    reach_m: float = 0.32
    """How far a foot may fall behind its place; the twist is reduced until it can step."""
    smoothing_s: float = 0.15
    """Time constant with which the twist follows the command."""
    still_speed: float = 0.02
    """Slower than this [m/s] counts as standing."""
    still_offset_m: float = 0.03
    """A standing robot steps with a foot that is further than this from its place."""
    settle_rate: float = 0.08
    """Fastest change of the body's height [m/s] towards the default one."""
    inward_share: float = 0.3
    """Horizontal force of the ground towards the body, per vertical force. Moves load from
    hip_pitch, which has most of it, to the knee. Friction has to allow for it."""
    torque_max: float = 100.0
    """Largest torque by which a target is displaced [N·m]."""


class _Steps(NamedTuple):
    """What the legs do in one control step; each (6,)."""

    progress: _Array
    """Of the step, at the end of this control step."""
    load: _Array
    """Planned, 0 to 1."""
    lifts: _Array
    """1 when the foot lifts now."""
    share: _Array
    """How much of what is left of the way to the landing is covered now."""
    remaining_s: _Array
    """Time in the air left before this control step."""
    lift: _Array
    """Height of the foot above the ground [m]."""


class _Pose(NamedTuple):
    """A pose of all legs: joint angles and what is computed on the way to them."""

    joint_pos: _Array
    """(3, 6)"""
    link_pos: _Array
    """(6, 6), see `STATE_SHAPES`."""
    outward: tuple[_Array, _Array]
    """Direction from the hip to the foot, x and y."""
    distance: _Array
    """From the yaw axis to the foot, horizontal [m]."""
    foot_from_pitch: tuple[_Array, _Array]
    """Foot from the hip_pitch axis, outward and up [m]."""
    foot_from_knee: tuple[_Array, _Array]
    """Foot from the knee axis, outward and up [m]."""
    cosines: tuple[_Array, _Array, _Array]
    """Of the femur's elevation, of the tibia's, and of the knee angle."""
    reaches: tuple[_Array, _Array]
    """From the yaw axis to the centres of femur and tibia, horizontal [m]."""


class Gait:
    """The generator for one robot: its constants, and one control step as a pure function.

    Args:
        desc: The robot.
        cfg: Tuning.
    """

    def __init__(self, desc: RobotDescription, cfg: GaitCfg | None = None) -> None:
        self.cfg = cfg = cfg or GaitCfg()
        self._rate = cfg.control_rate_hz
        self._slot_s = cfg.swing_s + cfg.transfer_s
        geometry, masses = desc.geometry, desc.masses
        hip = geometry.hip_pos_b
        self._hip = _f32(hip.T)
        self._link_hip = _f32(np.repeat(hip.T, 2, axis=0))
        self._hip_length = geometry.hip_length
        self._leg_yaw = _f32(geometry.leg_yaw)
        self._cos_yaw, self._sin_yaw = (
            _f32(np.cos(geometry.leg_yaw)),
            _f32(np.sin(geometry.leg_yaw)),
        )
        self._default = _f32(desc.default_joint_pos.reshape(6, 3).T)
        self._kp, self._kd = _f32(desc.kp.reshape(6, 3).T), _f32(desc.kd.reshape(6, 3).T)
        self._nominal = _f32(foot_positions(desc, desc.default_joint_pos).T)

        # Links are slender rods; the foot counts as part of the tibia.
        self._femur, self._tibia = geometry.femur_length, geometry.tibia_length
        self._femur_mass, self._tibia_mass = masses.femur, masses.tibia + masses.foot
        self._femur_com = 0.5 * self._femur
        self._tibia_com = (0.5 * masses.tibia + masses.foot) * self._tibia / self._tibia_mass
        self._femur_inertia = masses.femur * self._femur**2 / 3.0  # about hip_pitch
        self._tibia_inertia = (masses.tibia / 3.0 + masses.foot) * self._tibia**2  # about the knee
        self._femur_spin = self._femur_inertia - masses.femur * self._femur_com**2
        self._tibia_spin = self._tibia_inertia - self._tibia_mass * self._tibia_com**2
        self._hip_inertia = masses.hip * (0.5 * geometry.hip_length) ** 2
        self._armature = desc.armature
        self._link_mass = _f32([[self._femur_mass], [self._tibia_mass]] * 3)
        self._gravity = _f32([[0.0]] * 4 + [[_GRAVITY]] * 2)
        # Hips stand symmetrically about the base's origin and hardly move.
        self._foot_force_max = 0.55 * _GRAVITY * masses.total
        self._body_weight = _GRAVITY * (masses.body + 6.0 * masses.hip)

        # Place of a leg on its side, counted from the rear, and the side's offset in the cycle.
        right = hip[:, 1] < 0.0
        same_side = right[:, None] == right[None, :]
        behind = hip[None, :, 0] < hip[:, None, 0] - 1e-9
        self._place = _f32((same_side & behind).sum(axis=1))
        self._place_backward = _f32((same_side & behind).sum(axis=0))
        self._side_phase = _f32(np.where(right, 0.5, 0.0))
        self._six_down = _f32([[0.0] * 6, [1.0] * 6])
        acc = np.array([cfg.lin_acc, cfg.lin_acc, cfg.yaw_acc])
        self._twist_step = _f32(acc / self._rate)

    def initial_state(self) -> dict[str, NDArray[np.float32]]:
        """The state after a reset."""
        return {name: np.zeros(shape, np.float32) for name, shape in STATE_SHAPES.items()}

    def step(self, obs: _Array, **state: _Array) -> dict[str, _Array]:
        """One control step.

        Args:
            obs: `OBSERVATION`, shape (1, 21).
            **state: The recurrent state, as `STATE_SHAPES` says.

        Returns:
            "actions" (1, 18), displacements from the default pose [rad], and the new state, each
            name with "_out" appended.
        """
        nav, joint_pos = obs[0, 0:3], obs[0, 3:21].reshape(6, 3).T + self._default
        first = state["clock"][0:1] < 0.5
        # The first step takes the feet where they are, all of them carrying.
        measured = self._feet(joint_pos)
        feet = np.where(first, np.concatenate([measured, measured[0:2]]), state["feet"])
        legs = np.where(first, self._six_down, state["legs"])

        requested = _fastest(_velocity_at(nav, self._nominal))
        nav = nav * np.minimum(self.cfg.speed_max / np.maximum(requested, 1e-6), 1.0)
        still = _fastest(_velocity_at(state["twist"], self._nominal)) < self.cfg.still_speed
        standing = np.logical_and(still, np.max(legs[0], axis=0) <= 0.0)
        clock, leg_phase, rate = self._advance(state["clock"], nav[0:1], requested, standing)
        # To reverse it comes to rest first, because the wave turns round too. Other directions than
        # back and forth are walked with either wave.
        mostly = np.maximum(0.5 * np.minimum(requested, self.cfg.speed_max), self.cfg.still_speed)
        turning = nav[0:1] * (1.0 - 2.0 * clock[3:4]) < -mostly
        nav = np.where(turning, 0.0, nav)
        limit = self._reach_limit(nav, feet, leg_phase, rate)
        twist = self._smooth(nav, state["twist"], limit)
        velocity = _velocity_at(twist, self._nominal)

        steps = self._take_steps(leg_phase, rate, _fastest(velocity), feet, legs, turning)
        feet = self._move_feet(twist, velocity, rate, feet, steps)

        leg = self._pose(feet[0:3], steps.lift)
        joint_vel = np.where(first, 0.0, (leg.joint_pos - state["joint_pos"]) * self._rate)
        joint_acc = (joint_vel - state["joint_vel"]) * self._rate
        link_vel = np.where(first, 0.0, (leg.link_pos - state["link_pos"]) * self._rate)
        link_acc = (link_vel - state["link_vel"]) * self._rate

        ground = self._ground_reaction(feet, steps.load, leg.link_pos, link_acc)
        torque = self._leg_dynamics(leg, joint_acc) - self._joint_load(leg, ground)
        torque = _clip(torque, -self.cfg.torque_max, self.cfg.torque_max)
        target = leg.joint_pos + (torque + self._kd * joint_vel) / self._kp
        return {
            "actions": (target - self._default).T.reshape(1, 18),
            "clock_out": clock,
            "twist_out": twist,
            "legs_out": np.stack([steps.progress, steps.load]),
            "feet_out": feet,
            "joint_pos_out": leg.joint_pos,
            "joint_vel_out": joint_vel,
            "link_pos_out": leg.link_pos,
            "link_vel_out": link_vel,
        }

    def _smooth(self, nav: _Array, twist: _Array, slow_down: _Array) -> _Array:
        """The twist to walk with: what the legs can do, and changing gently."""
        change = (nav * slow_down - twist) * (1.0 / (self._rate * self.cfg.smoothing_s))
        return twist + _clip(change, -self._twist_step, self._twist_step)

    def _advance(
        self, clock: _Array, vx: _Array, requested: _Array, standing: _Array
    ) -> tuple[_Array, ...]:
        """The clock one control step on, every leg's phase (6,), and cycles per second."""
        cfg = self.cfg
        wanted = cfg.stride_m / (cfg.stride_m + requested * self._slot_s)
        wanted = _clip(wanted, cfg.duty_min, cfg.duty_max)
        wanted = np.where(requested < cfg.still_speed, cfg.duty_return, wanted)
        # Walking, a leg's phase must not turn back; the front leg's takes twice duty's change.
        phase, duty, backward = clock[1:2], clock[2:3], clock[3:4]
        fall = (1.0 - duty) * (cfg.duty_fall / (2.0 * self._slot_s * self._rate))
        change = np.minimum(np.maximum(wanted - duty, -fall), cfg.duty_rise_rate / self._rate)
        duty = np.where(standing, wanted, duty + change)
        backward = np.where(standing, np.where(vx < 0.0, _ONE, _ZERO), backward)
        rate = (1.0 - duty) * (1.0 / self._slot_s)
        phase = _fraction(phase + rate * (1.0 / self._rate))
        place = np.where(backward > 0.5, self._place_backward, self._place)
        leg_phase = _fraction(phase - place * (1.0 - duty) - self._side_phase)
        return np.concatenate([_ONE, phase, duty, backward]), leg_phase, rate

    def _reach_limit(self, nav: _Array, feet: _Array, leg_phase: _Array, rate: _Array) -> _Array:
        """Share of the command at which every foot can stay on the ground until its turn."""
        in_turn = leg_phase < rate * self.cfg.swing_s
        left_s = np.where(in_turn, _ZERO, (1.0 - leg_phase) / rate)
        drift = -_velocity_at(nav, feet)
        speed = np.maximum(np.sqrt(drift[0] * drift[0] + drift[1] * drift[1]), 1e-3)
        x_off, y_off = feet[0] - self._nominal[0], feet[1] - self._nominal[1]
        along = (x_off * drift[0] + y_off * drift[1]) / speed
        share = (self.cfg.reach_m - along) / (speed * np.maximum(left_s, 0.1))
        return _clip(np.min(share, axis=0), 0.0, 1.0)

    def _take_steps(
        self,
        leg_phase: _Array,
        rate: _Array,
        speed: _Array,
        feet: _Array,
        legs: _Array,
        turning: _Array,
    ) -> _Steps:
        """Which legs are in the air, how far their steps are, and what each foot carries."""
        cfg = self.cfg
        transfer = rate * cfg.transfer_s
        x_off, y_off = feet[0] - self._nominal[0], feet[1] - self._nominal[1]
        allowed = np.where(turning, cfg.reach_m, cfg.still_offset_m)
        astray = np.sqrt(x_off * x_off + y_off * y_off) > allowed
        wanted = np.where(np.logical_or(speed > cfg.still_speed, astray), _ONE, _ZERO)
        before = np.where(legs[0] > _LANDED, _ZERO, legs[0])
        # A foot hands its load over before its turn begins and lifts when it does.
        turn = np.where(leg_phase < transfer, wanted, _ZERO)
        lifts = np.where(np.logical_or(before > 0.0, legs[1] > 0.5), _ZERO, turn)
        stepping = np.where(before > 0.0, _ONE, lifts)
        leaving = np.where(leg_phase > 1.0 - transfer, wanted, turn)
        change = 1.0 / (self._rate * cfg.transfer_s)
        load = legs[1] + _clip(1.0 - np.maximum(stepping, leaving) - legs[1], -change, change)
        after = stepping * np.minimum(before + 1.0 / (self._rate * cfg.swing_s), 1.0)
        done = _min_jerk(before)
        share = (_min_jerk(after) - done) / np.maximum(1.0 - done, 1e-6) * stepping
        half_way = after * (1.0 - after)
        lift = (64.0 * cfg.lift_m) * (half_way * half_way * half_way)
        return _Steps(after, load, lifts, share, (1.0 - before) * cfg.swing_s, lift)

    def _move_feet(
        self, twist: _Array, velocity: _Array, rate: _Array, feet: _Array, steps: _Steps
    ) -> _Array:
        """All feet drift with the ground; stepping ones also move on towards their landing.

        Over a whole step the shares add up to a minimum-jerk curve over the ground, which ends at
        rest on it, ahead of the foot's place by half the way it drifts until it lifts again. The
        landing is chosen when the foot lifts: following the command any later would jerk the leg.
        """
        drift = -_velocity_at(twist, feet)
        stance_s = 1.0 / rate - self.cfg.swing_s
        ahead = self._nominal[0:2] + velocity * (0.5 * stance_s)
        landing = np.where(steps.lifts > 0.0, ahead, feet[3:5])
        expected = feet[0:2] + drift * steps.remaining_s
        settle = self.cfg.settle_rate / self._rate
        height = feet[2:3] + _clip(
            (self._nominal[2:3] - feet[2:3]) * (2.0 / self._rate), -settle, settle
        )
        moved = feet[0:2] + drift * (1.0 / self._rate) + steps.share * (landing - expected)
        return np.concatenate([moved, height, landing])

    def _feet(self, joint_pos: _Array) -> _Array:
        """Feet in the base frame (3, 6) for joint angles (3, 6)."""
        pitch, shin = joint_pos[1], joint_pos[1] + joint_pos[2]
        reach = self._hip_length + self._femur * np.cos(pitch) + self._tibia * np.cos(shin)
        height = self._femur * np.sin(pitch) + self._tibia * np.sin(shin)
        heading = self._leg_yaw + joint_pos[0]
        return self._hip + np.stack([reach * np.cos(heading), reach * np.sin(heading), height])

    def _pose(self, feet: _Array, lift: _Array) -> _Pose:
        """Closed-form inverse kinematics, and where the links are then."""
        femur, tibia = self._femur, self._tibia
        arm = feet - self._hip
        dx, dy, height = arm[0], arm[1], arm[2] + lift
        distance = np.sqrt(dx * dx + dy * dy)
        ux, uy = dx / distance, dy / distance
        yaw = np.arctan(
            (self._cos_yaw * dy - self._sin_yaw * dx) / (self._cos_yaw * dx + self._sin_yaw * dy)
        )
        reach = distance - self._hip_length
        square = reach * reach + height * height
        cos_knee = (square - (femur**2 + tibia**2)) * (1.0 / (2.0 * femur * tibia))
        knee = -np.arccos(_clip(cos_knee, -1.0, 1.0))
        cos_femur = (square + (femur**2 - tibia**2)) / (2.0 * femur * np.sqrt(square))
        pitch = np.arctan(height / reach) + np.arccos(_clip(cos_femur, -1.0, 1.0))
        shin = pitch + knee
        cos_pitch, sin_pitch, cos_shin, sin_shin = (
            np.cos(pitch), np.sin(pitch), np.cos(shin), np.sin(shin),
        )  # fmt: skip
        femur_reach = self._hip_length + self._femur_com * cos_pitch
        tibia_reach = self._hip_length + femur * cos_pitch + self._tibia_com * cos_shin
        femur_height = self._femur_com * sin_pitch
        tibia_height = femur * sin_pitch + self._tibia_com * sin_shin
        link_pos = self._link_hip + np.stack(
            [ux * femur_reach, ux * tibia_reach, uy * femur_reach, uy * tibia_reach,
             femur_height, tibia_height]
        )  # fmt: skip
        return _Pose(
            joint_pos=np.stack([yaw, pitch, knee]),
            link_pos=link_pos,
            outward=(ux, uy),
            distance=distance,
            foot_from_pitch=(
                femur * cos_pitch + tibia * cos_shin,
                femur * sin_pitch + tibia * sin_shin,
            ),
            foot_from_knee=(tibia * cos_shin, tibia * sin_shin),
            cosines=(cos_pitch, cos_shin, cos_knee),
            reaches=(femur_reach, tibia_reach),
        )

    def _ground_reaction(
        self, feet: _Array, load: _Array, link_pos: _Array, link_acc: _Array
    ) -> tuple[_Array, ...]:
        """Force of the ground on each foot, x, y and z in the base frame, each (6,).

        The least forces, in proportion to the planned loads, that carry the weight and give the
        links the accelerations they are about to have, with the body moving steadily.
        """
        force = (self._link_mass * (link_acc + self._gravity)).reshape(3, 12)
        position = link_pos.reshape(3, 12)
        total = np.sum(force, axis=1)
        fx, fy, fz = total[0:1], total[1:2], total[2:3] + self._body_weight
        moment = [
            np.sum(position[i] * force[j] - position[j] * force[i], axis=0)
            for i, j in ((1, 2), (2, 0), (0, 1))
        ]
        x, y, z = feet[0], feet[1], feet[2]
        weight = np.maximum(load * load * (3.0 - 2.0 * load), 1e-3)
        per_foot = weight / np.sum(weight, axis=0)
        x_mean, y_mean = np.sum(per_foot * x, axis=0), np.sum(per_foot * y, axis=0)
        x_rel, y_rel = x - x_mean, y - y_mean
        xx = np.sum(per_foot * x_rel * x_rel, axis=0)
        xy = np.sum(per_foot * x_rel * y_rel, axis=0)
        yy = np.sum(per_foot * y_rel * y_rel, axis=0)
        # Horizontal forces: fx, fy and the moment about z.
        twist = (moment[2] - x_mean * fy + y_mean * fx) / (xx + yy)
        foot_fx = per_foot * (fx - twist * y_rel)
        foot_fy = per_foot * (fy + twist * x_rel)
        # Vertical ones: fz and the moments about x and y, less what the horizontal ones give.
        along_x = np.sum(z * foot_fx, axis=0) - moment[1] - x_mean * fz
        along_y = np.sum(z * foot_fy, axis=0) + moment[0] - y_mean * fz
        determinant = xx * yy - xy * xy
        a = (along_x * yy - along_y * xy) / determinant
        b = (along_y * xx - along_x * xy) / determinant
        foot_fz = _clip(per_foot * (fz + a * x_rel + b * y_rel), 0.0, self._foot_force_max)
        return foot_fx, foot_fy, foot_fz

    def _leg_dynamics(self, leg: _Pose, joint_acc: _Array) -> _Array:
        """Torques (3, 6) that hold the legs' own weight and accelerate them."""
        cos_pitch, cos_shin, cos_knee = leg.cosines
        femur_reach, tibia_reach = leg.reaches
        coupling = self._tibia_mass * self._femur * self._tibia_com * cos_knee
        yaw_inertia = (
            (self._armature + self._hip_inertia)
            + self._femur_mass * femur_reach * femur_reach
            + self._femur_spin * cos_pitch * cos_pitch
            + self._tibia_mass * tibia_reach * tibia_reach
            + self._tibia_spin * cos_shin * cos_shin
        )
        knee_inertia = self._armature + self._tibia_inertia
        cross_inertia = self._tibia_inertia + coupling
        pitch_inertia = (
            self._armature + self._femur_inertia + self._tibia_mass * self._femur**2
        ) + (self._tibia_inertia + 2.0 * coupling)
        femur_weight = _GRAVITY * self._femur_mass * self._femur_com
        tibia_weight = _GRAVITY * self._tibia_mass
        hang = tibia_weight * self._tibia_com * cos_shin
        pitch_weight = (femur_weight + tibia_weight * self._femur) * cos_pitch + hang
        return np.stack(
            [
                yaw_inertia * joint_acc[0],
                pitch_inertia * joint_acc[1] + cross_inertia * joint_acc[2] + pitch_weight,
                cross_inertia * joint_acc[1] + knee_inertia * joint_acc[2] + hang,
            ]
        )

    def _joint_load(self, leg: _Pose, ground: tuple[_Array, ...]) -> _Array:
        """Torques (3, 6) with which the ground reaction turns the joints."""
        fx, fy, fz = ground
        ux, uy = leg.outward
        outward = fx * ux + fy * uy - self.cfg.inward_share * fz
        sideways = fy * ux - fx * uy
        (pitch_out, pitch_up), (knee_out, knee_up) = leg.foot_from_pitch, leg.foot_from_knee
        return np.stack(
            [
                leg.distance * sideways,
                pitch_out * fz - pitch_up * outward,
                knee_out * fz - knee_up * outward,
            ]
        )


def _velocity_at(twist: _Array, points: _Array) -> _Array:
    """Velocity (2, 6) of the body at points (3, 6) of it."""
    return np.stack([twist[0:1] - twist[2:3] * points[1], twist[1:2] + twist[2:3] * points[0]])


def _fastest(velocity: _Array) -> _Array:
    """Largest norm, shape (1,), of velocities (2, 6)."""
    return np.sqrt(np.max(velocity[0] * velocity[0] + velocity[1] * velocity[1], axis=0)) * _ONE


def _fraction(value: _Array) -> _Array:
    return value - np.floor(value)


def _min_jerk(s: _Array) -> _Array:
    """From 0 to 1 with neither speed nor acceleration at the ends."""
    return s * s * s * (10.0 + s * (6.0 * s - 15.0))


def _clip(value: _Array, low: Any, high: Any) -> _Array:
    return np.minimum(np.maximum(value, low), high)


def _f32(value: ArrayLike) -> NDArray[np.float32]:
    return np.asarray(value, dtype=np.float32)
