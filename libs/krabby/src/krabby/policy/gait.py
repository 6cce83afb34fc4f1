"""A hexapod gait generator, written once for arrays and for a graph.

`Gait.step` is plain NumPy on float32. Recorded by `krabby_assets.onnx_graph`, the same lines become
`assets/policies/gait/policy.onnx` (`krabby_assets.gait_bundle`), which the gameloop loads like any
learned policy. It is the baseline those are compared with, and what the robot walks with when it
cannot see.

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

from krabby.policy.observation import ObservationLayout, standard_term
from krabby.robot.description import RobotDescription
from krabby.robot.kinematics import foot_positions
from krabby.safety.trajectories import min_jerk

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
_LEFT: Final = np.array([[-1.0], [1.0]], np.float32)
_SWAP: Final = np.array([1, 0])
_NEXT: Final = np.array([1, 2, 0])
_LAST: Final = np.array([2, 0, 1])
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
    inset_m: float = 0.0
    """How far the feet's places are inside those of the default pose, along the leg: a shorter
    lever for the weight on hip_pitch."""
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
    outward: _Array
    """Direction from the hip to the foot, x and y, (2, 6)."""
    distance: _Array
    """From the yaw axis to the foot, horizontal [m], (6,)."""
    foot_out: _Array
    """Foot from the hip_pitch axis and from the knee axis, outward [m], (2, 6)."""
    foot_up: _Array
    """Likewise upward [m]."""
    cosines: _Array
    """Of the elevations of femur and tibia, (2, 6)."""
    cos_knee: _Array
    """(6,)"""
    reaches: _Array
    """From the yaw axis to the centres of femur and tibia, horizontal [m], (2, 6)."""


class _Loads:
    """Torques that legs of this mass need. Links are thin; the foot counts as part of the tibia."""

    def __init__(self, desc: RobotDescription, cfg: GaitCfg) -> None:
        self._cfg = cfg
        links = desc.inertials
        femur, tibia = desc.geometry.femur_length, desc.geometry.tibia_length
        foot_mass, femur_mass = links["foot"].mass, links["femur"].mass
        tibia_mass = links["tibia"].mass + foot_mass
        femur_com = links["femur"].com[0]
        tibia_com = (links["tibia"].mass * links["tibia"].com[0] + foot_mass * tibia) / tibia_mass
        femur_inertia = links["femur"].spread_x  # about hip_pitch
        tibia_inertia = links["tibia"].spread_x + foot_mass * tibia**2  # about the knee
        yaw_armature, pitch_armature, knee_armature = desc.armature[:3]
        # From cosines (sines) of the elevations of femur and tibia to their centres, outward
        # (upward) from the hip_pitch axis.
        self.links = _f32([[femur_com, 0.0], [femur, tibia_com]])
        self._link_mass = _f32([[femur_mass], [tibia_mass]] * 3)
        self._gravity = _f32([[0.0]] * 4 + [[_GRAVITY]] * 2)
        # Inertia about hip_yaw: of points, and of the rods about their own centres.
        self._yaw_mass = _f32([[femur_mass, tibia_mass]])
        self._yaw_spin = _f32(
            [[femur_inertia - femur_mass * femur_com**2, tibia_inertia - tibia_mass * tibia_com**2]]
        )
        hip = links["hip"]
        self._yaw_inertia = float(yaw_armature + hip.mass * hip.com[0] ** 2)
        # Inertia about hip_pitch and knee: what is constant, and what goes with the knee's cosine.
        upper = pitch_armature + femur_inertia + tibia_mass * femur**2 + tibia_inertia
        self._inertia = _f32(
            [[upper, tibia_inertia], [tibia_inertia, knee_armature + tibia_inertia]]
        )
        self._coupling = _f32(tibia_mass * femur * tibia_com * np.array([[2.0, 1.0], [1.0, 0.0]]))
        # From the cosines to the torques of the links' own weight on hip_pitch and knee.
        on_femur, on_tibia = femur_mass * femur_com + tibia_mass * femur, tibia_mass * tibia_com
        self._hang = _f32(_GRAVITY * np.array([[on_femur, on_tibia], [0.0, on_tibia]]))
        # Hips stand symmetrically about the base's origin and hardly move.
        self._body_weight = _GRAVITY * (desc.masses.body + 6.0 * desc.masses.hip)
        self._foot_force_max = 0.55 * _GRAVITY * desc.masses.total

    def ground_reaction(
        self, feet: _Array, load: _Array, link_pos: _Array, link_acc: _Array
    ) -> tuple[_Array, _Array]:
        """Force of the ground on the feet in the base frame: x and y (2, 6), z (6,).

        The least forces, in proportion to the planned loads, that carry the weight and give the
        links the accelerations they are about to have, with the body moving steadily.
        """
        force = (self._link_mass * (link_acc + self._gravity)).reshape(3, 12)
        position = link_pos.reshape(3, 12)
        total = np.sum(force, axis=1)
        moment = np.sum(position[_NEXT] * force[_LAST] - position[_LAST] * force[_NEXT], axis=1)
        total_xy, total_z = total[0:2].reshape(2, 1), total[2:3] + self._body_weight
        weight = np.maximum(load * load * (3.0 - 2.0 * load), 1e-3)
        weight = weight / np.sum(weight, axis=0)
        mean = feet[0:2] @ weight.reshape(6, 1)  # (2, 1)
        apart = feet[0:2] - mean
        weighted = weight * apart
        spread = np.sum(weighted * apart, axis=1)  # of x, of y
        # Horizontal forces: x, y and the moment about z.
        turn = moment[2:3] - np.sum(_left_of(mean) * total_xy, axis=0)
        twist = turn / (spread[0:1] + spread[1:2])
        force_xy = weight * total_xy + twist * _left_of(weighted)
        # Vertical ones: z and the moments about x and y, less what the horizontal ones give.
        tilting = _left_of(moment[0:2].reshape(2, 1))  # (-y, x)
        along = np.sum(feet[2] * force_xy, axis=1).reshape(2, 1) + tilting - mean * total_z
        mixed = np.sum(weighted[0] * apart[1], axis=0)
        other = spread[_SWAP].reshape(2, 1)
        determinant = spread[0:1] * spread[1:2] - mixed * mixed
        slope = (along * other - along[_SWAP] * mixed) / determinant
        force_z = weight * (total_z + np.sum(slope * apart, axis=0))
        return force_xy, _clip(force_z, 0.0, self._foot_force_max)

    def leg_dynamics(self, leg: _Pose, joint_acc: _Array) -> _Array:
        """Torques (3, 6) that hold the legs' own weight and accelerate them."""
        inertia = self._yaw_mass @ (leg.reaches * leg.reaches)
        inertia = inertia + self._yaw_spin @ (leg.cosines * leg.cosines) + self._yaw_inertia
        bend = joint_acc[1:3]
        torque = self._inertia @ bend + leg.cos_knee * (self._coupling @ bend)
        return np.concatenate([inertia * joint_acc[0:1], torque + self._hang @ leg.cosines])

    def joint_load(self, leg: _Pose, force_xy: _Array, force_z: _Array) -> _Array:
        """Torques (3, 6) with which the ground reaction turns the joints."""
        outward = np.sum(force_xy * leg.outward, axis=0) - self._cfg.inward_share * force_z
        sideways = leg.distance * np.sum(force_xy * _left_of(leg.outward), axis=0)
        bend = leg.foot_out * force_z - leg.foot_up * outward
        return np.concatenate([sideways.reshape(1, 6), bend])


class Gait:
    """The generator for one robot: its constants, and one control step as a pure function.

    Args:
        desc: The robot.
        cfg: Tuning.
    """

    def __init__(self, desc: RobotDescription, cfg: GaitCfg | None = None) -> None:
        self.cfg = cfg = cfg or GaitCfg(**desc.gait)
        self._rate = cfg.control_rate_hz
        self._slot_s = cfg.swing_s + cfg.transfer_s
        self._set_geometry(desc)
        self._loads = _Loads(desc, cfg)
        self._default = _f32(desc.default_joint_pos.reshape(6, 3).T)
        self._kp, self._kd = _f32(desc.kp.reshape(6, 3).T), _f32(desc.kd.reshape(6, 3).T)
        self._six_down = _f32([[0.0] * 6, [1.0] * 6])
        self._twist_step = _f32(np.array([cfg.lin_acc, cfg.lin_acc, cfg.yaw_acc]) / self._rate)

    def _set_geometry(self, desc: RobotDescription) -> None:
        geometry = desc.geometry
        hip = geometry.hip_pos_b
        self._hip = _f32(hip.T)
        self._link_hip = _f32(np.repeat(hip.T, 2, axis=0))
        self._hip_length = geometry.hip_length
        self._femur, self._tibia = geometry.femur_length, geometry.tibia_length
        self._leg_yaw = _f32(geometry.leg_yaw)
        ahead = np.stack([np.cos(geometry.leg_yaw), np.sin(geometry.leg_yaw)])
        self._ahead, self._aside = _f32(ahead), _f32(ahead[::-1] * _LEFT)
        # From cosines (sines) of the elevations of femur and tibia to the foot outward (upward) of
        # the hip_pitch axis and of the knee axis.
        self._leg = _f32([[self._femur, self._tibia], [0.0, self._tibia]])
        feet = foot_positions(desc, desc.default_joint_pos).T
        feet[0:2] -= self.cfg.inset_m * ahead
        self._nominal_xy, self._nominal_z = _f32(feet[0:2]), _f32(feet[2:3])
        self._nominal_lever = _f32(_left_of(self._nominal_xy))
        # Place of a leg on its side, counted from the rear, and the side's offset in the cycle.
        right = hip[:, 1] < 0.0
        same_side = right[:, None] == right[None, :]
        behind = hip[None, :, 0] < hip[:, None, 0] - 1e-9
        self._place = _f32((same_side & behind).sum(axis=1))
        self._place_backward = _f32((same_side & behind).sum(axis=0))
        self._side_phase = _f32(np.where(right, 0.5, 0.0))

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
        cfg = self.cfg
        nav, joint_pos = obs[0, 0:3], obs[0, 3:21].reshape(6, 3).T + self._default
        first = state["clock"][0:1] < 0.5
        # The first step takes the feet where they are, all of them carrying.
        feet = np.where(first, self._feet(joint_pos), state["feet"])
        legs = np.where(first, self._six_down, state["legs"])
        progress, load = legs[0], legs[1]
        astray = feet[0:2] - self._nominal_xy
        lever = _left_of(feet[0:2])

        requested = _fastest(_velocity_at(nav, self._nominal_lever))
        nav = nav * np.minimum(cfg.speed_max / np.maximum(requested, 1e-6), 1.0)
        still = _fastest(_velocity_at(state["twist"], self._nominal_lever)) < cfg.still_speed
        standing = np.logical_and(still, np.max(progress, axis=0) <= 0.0)
        clock, leg_phase, rate = self._advance(state["clock"], nav[0:1], requested, standing)
        # To reverse it comes to rest first, because the wave turns round too. Other directions than
        # back and forth are walked with either wave.
        mostly = np.maximum(0.5 * np.minimum(requested, cfg.speed_max), cfg.still_speed)
        turning = nav[0:1] * (1.0 - 2.0 * clock[3:4]) < -mostly
        nav = np.where(turning, 0.0, nav)
        limit = self._reach_limit(_velocity_at(nav, lever), astray, leg_phase, rate)
        twist = self._smooth(nav, state["twist"], limit)
        velocity = _velocity_at(twist, self._nominal_lever)

        off_place = _norm(astray) > np.where(turning, cfg.reach_m, cfg.still_offset_m)
        wanted = np.logical_or(_fastest(velocity) > cfg.still_speed, off_place)
        steps = self._take_steps(leg_phase, rate, np.where(wanted, _ONE, _ZERO), progress, load)
        feet = self._move_feet(-_velocity_at(twist, lever), velocity, rate, feet, steps)

        leg = self._pose(feet[0:2], feet[2] + steps.lift)
        joint_vel = np.where(first, 0.0, (leg.joint_pos - state["joint_pos"]) * self._rate)
        joint_acc = (joint_vel - state["joint_vel"]) * self._rate
        link_vel = np.where(first, 0.0, (leg.link_pos - state["link_pos"]) * self._rate)
        link_acc = (link_vel - state["link_vel"]) * self._rate

        ground = self._loads.ground_reaction(feet, steps.load, leg.link_pos, link_acc)
        torque = self._loads.leg_dynamics(leg, joint_acc) - self._loads.joint_load(leg, *ground)
        torque = _clip(torque, -cfg.torque_max, cfg.torque_max)
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

    def _reach_limit(
        self, velocity: _Array, astray: _Array, leg_phase: _Array, rate: _Array
    ) -> _Array:
        """Share of the command at which every foot can stay on the ground until its turn.

        Args:
            velocity: Of the body at the feet (2, 6), as commanded.
            astray: The feet from their places (2, 6).
            leg_phase: (6,)
            rate: Cycles per second.
        """
        in_turn = leg_phase < rate * self.cfg.swing_s
        left_s = np.where(in_turn, _ZERO, (1.0 - leg_phase) / rate)
        speed = np.maximum(_norm(velocity), 1e-3)
        behind = -np.sum(astray * velocity, axis=0) / speed
        share = (self.cfg.reach_m - behind) / (speed * np.maximum(left_s, 0.1))
        return _clip(np.min(share, axis=0), 0.0, 1.0)

    def _take_steps(
        self, leg_phase: _Array, rate: _Array, wanted: _Array, progress: _Array, load: _Array
    ) -> _Steps:
        """Which legs are in the air, how far their steps are, and what each foot carries.

        Args:
            leg_phase: (6,)
            rate: Cycles per second.
            wanted: 1 for legs that would step if it were their turn, (6,).
            progress: Of the steps under way, before this control step, (6,).
            load: Planned, before this control step, (6,).
        """
        cfg = self.cfg
        transfer = rate * cfg.transfer_s
        before = np.where(progress > _LANDED, _ZERO, progress)
        in_air = before > 0.0
        # A foot hands its load over before its turn begins and lifts when it does.
        turn = np.where(leg_phase < transfer, wanted, _ZERO)
        lifts = np.where(np.logical_or(in_air, load > 0.5), _ZERO, turn)
        stepping = np.where(in_air, _ONE, lifts)
        leaving = np.where(leg_phase > 1.0 - transfer, wanted, turn)
        change = 1.0 / (self._rate * cfg.transfer_s)
        load = load + _clip(1.0 - np.maximum(stepping, leaving) - load, -change, change)
        after = stepping * np.minimum(before + 1.0 / (self._rate * cfg.swing_s), 1.0)
        done = min_jerk(before)
        share = (min_jerk(after) - done) / np.maximum(1.0 - done, 1e-6) * stepping
        half_way = after * (1.0 - after)
        lift = (64.0 * cfg.lift_m) * (half_way * half_way * half_way)
        return _Steps(after, load, lifts, share, (1.0 - before) * cfg.swing_s, lift)

    def _move_feet(
        self, drift: _Array, velocity: _Array, rate: _Array, feet: _Array, steps: _Steps
    ) -> _Array:
        """All feet drift with the ground; stepping ones also move on towards their landing.

        Over a whole step the shares add up to a minimum-jerk curve over the ground, which ends at
        rest on it, ahead of the foot's place by half the way it drifts until it lifts again. The
        landing is chosen when the foot lifts: following the command any later would jerk the leg.
        """
        stance_s = 1.0 / rate - self.cfg.swing_s
        ahead = self._nominal_xy + velocity * (0.5 * stance_s)
        landing = np.where(steps.lifts > 0.0, ahead, feet[3:5])
        expected = feet[0:2] + drift * steps.remaining_s
        settle = self.cfg.settle_rate / self._rate
        height = feet[2:3]
        height = height + _clip((self._nominal_z - height) * (2.0 / self._rate), -settle, settle)
        moved = feet[0:2] + drift * (1.0 / self._rate) + steps.share * (landing - expected)
        return np.concatenate([moved, height, landing])

    def _feet(self, joint_pos: _Array) -> _Array:
        """State "feet" (5, 6) of feet that stand where joint angles (3, 6) put them."""
        elevation = np.stack([joint_pos[1], joint_pos[1] + joint_pos[2]])
        reach = self._hip_length + self._leg[0:1] @ np.cos(elevation)
        heading = self._leg_yaw + joint_pos[0]
        xy = self._hip[0:2] + reach * np.stack([np.cos(heading), np.sin(heading)])
        return np.concatenate([xy, self._hip[2:3] + self._leg[0:1] @ np.sin(elevation), xy])

    def _pose(self, feet_xy: _Array, height: _Array) -> _Pose:
        """Closed-form inverse kinematics, and where the links are then."""
        femur, tibia = self._femur, self._tibia
        arm = feet_xy - self._hip[0:2]
        height = height - self._hip[2]
        distance = _norm(arm)
        outward = arm / distance
        yaw = np.arctan(np.sum(self._aside * arm, axis=0) / np.sum(self._ahead * arm, axis=0))
        reach = distance - self._hip_length
        square = reach * reach + height * height
        cos_knee = (square - (femur**2 + tibia**2)) * (1.0 / (2.0 * femur * tibia))
        knee = -np.arccos(_clip(cos_knee, -1.0, 1.0))
        cos_femur = (square + (femur**2 - tibia**2)) / (2.0 * femur * np.sqrt(square))
        pitch = np.arctan(height / reach) + np.arccos(_clip(cos_femur, -1.0, 1.0))
        elevation = np.stack([pitch, pitch + knee])
        cosines, sines = np.cos(elevation), np.sin(elevation)
        reaches = self._hip_length + self._loads.links @ cosines
        link_xy = outward.reshape(2, 1, 6) * reaches.reshape(1, 2, 6)
        link_pos = np.concatenate([link_xy.reshape(4, 6), self._loads.links @ sines])
        return _Pose(
            joint_pos=np.stack([yaw, pitch, knee]),
            link_pos=self._link_hip + link_pos,
            outward=outward,
            distance=distance,
            foot_out=self._leg @ cosines,
            foot_up=self._leg @ sines,
            cosines=cosines,
            cos_knee=cos_knee,
            reaches=reaches,
        )


def _velocity_at(twist: _Array, lever: _Array) -> _Array:
    """Velocity (2, 6) of the body at points whose `_left_of` is `lever`."""
    return twist[0:2].reshape(2, 1) + twist[2:3] * lever


def _left_of(vector: _Array) -> _Array:
    """Vectors (2, n) turned left by a quarter."""
    return vector[_SWAP] * _LEFT


def _norm(vector: _Array) -> _Array:
    """Lengths (6,) of vectors (2, 6)."""
    return np.sqrt(np.sum(vector * vector, axis=0))


def _fastest(velocity: _Array) -> _Array:
    """Largest length, shape (1,), of velocities (2, 6)."""
    return np.sqrt(np.max(np.sum(velocity * velocity, axis=0), axis=0)) * _ONE


def _fraction(value: _Array) -> _Array:
    return value - np.floor(value)


def _clip(value: _Array, low: Any, high: Any) -> _Array:
    return np.minimum(np.maximum(value, low), high)


def _f32(value: ArrayLike) -> NDArray[np.float32]:
    return np.asarray(value, dtype=np.float32)
