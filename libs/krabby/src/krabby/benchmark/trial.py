"""One trial: the robot in MuJoCo behind the real gate, commanded by the real loop's controller.

The order of a control period is that of the processes in lock-step, so that the same scenario
gives the same trajectory, bit for bit: two slots of the HAL with an exposure between them, the
camera's features, the walking command, the controller's decision, the gate's answer.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
from krabby_proto import (
    CAMERA,
    FEATURES,
    FLAG_HOLD,
    NAV,
    STATE,
    CommandReply,
    Message,
    SafetyState,
)
from krabby_proto.header import MAGIC, SCHEMA_VERSION, Header
from krabby_proto.replies import REPLY_MAGIC

from krabby.benchmark.director import Director
from krabby.benchmark.sight import Sight
from krabby.benchmark.teacher import TeacherRunner, load_any
from krabby.benchmark.trace import CONTROL_S, Tick, TrialFacts, TrialResult
from krabby.control.config import ControlCfg
from krabby.control.controller import LocomotionController
from krabby.control.modes import Mode
from krabby.control.policy_manager import PolicyManager, PolicyRunner
from krabby.hal.backend import SimulatedClock, Slot
from krabby.hal.config import LockstepCfg
from krabby.hal.handler import GateHandler
from krabby.hal.measurement import StatePayload
from krabby.mujoco.backend import SLOT_NS, MujocoBackend
from krabby.mujoco.config import CameraCfg, DegradeCfg, MissionCfg, PlantedCfg, StageCfg
from krabby.mujoco.errors import PhysicsDiverged
from krabby.mujoco.stage import stance_m
from krabby.mujoco.world import SUBSTEP_NS, StepLog
from krabby.robot import rotations

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from krabby_proto import Stream
    from numpy.typing import NDArray

    from krabby.benchmark.scenario import Cell, Scenario
    from krabby.benchmark.trace import FigureMaker, Judge, Recorder
    from krabby.control.controller import JointCommand
    from krabby.course.courses import Course
    from krabby.hal.measurement import Measurement
    from krabby.mujoco.stage import Stage
    from krabby.robot.description import RobotDescription
    from krabby.safety.gate import SafetyGate

__all__ = ["Policies", "Trial", "TrialCfg", "local_message"]

_START_S: Final = 12.0
"""A robot that does not walk after this long will not [s]."""
_NAV_PERIODS: Final = 5
_SLOTS: Final = 2
_ANSWER_NS: Final = round(LockstepCfg().answer_delay_s * 1e9)


@dataclass(frozen=True, kw_only=True)
class TrialCfg:
    """How trials are run, in every scenario."""

    substep_ns: int = SUBSTEP_NS
    """Step of the physics; a whole number of them make a slot of 5 ms. 1 ms for contact peaks."""
    spawn: str = "standing"
    """Start on the feet, or `lying`."""
    camera: bool = False
    """Make pictures for a blind policy too."""
    planted: PlantedCfg = PlantedCfg()  # noqa: RUF009 - frozen
    """A fault between the robot and its HAL; none by default."""

    def __post_init__(self) -> None:
        if self.substep_ns < 100_000 or SLOT_NS % self.substep_ns:
            raise ValueError(
                f"substep_ns is {self.substep_ns}; give a divisor of {SLOT_NS}, such as 1000000"
            )


class Policies:
    """Policies that were loaded once and walk trial after trial, one at a time."""

    def __init__(
        self,
        desc: RobotDescription,
        policy: str,
        *,
        control: ControlCfg | None = None,
        load: Callable[[str, RobotDescription, float], PolicyRunner] = load_any,
    ) -> None:
        """Load nothing yet.

        Args:
            desc: the robot.
            policy: name or folder of the bundle that trials start with.
            control: configuration of the loop; `policy` replaces its policy.
            load: makes a runner, for policies that are no bundles.
        """
        base = ControlCfg() if control is None else control
        self.cfg = msgspec.structs.replace(base, policy=policy)
        self._desc = desc
        self._load = load
        self._robot: Stage | None = None
        self._runners: dict[tuple[str, str], PolicyRunner] = {}
        self._sights: dict[str, Sight] = {}

    def manager(self) -> PolicyManager:
        """A fresh manager over the loaded policies."""
        roles = iter(("chosen", "blind"))
        manager = PolicyManager(
            self.cfg, self._desc, load=lambda name, _desc, _rate: self.runner(name, next(roles))
        )
        for runner in manager.runners:
            runner.reset()
        return manager

    def runner(self, name: str, role: str) -> PolicyRunner:
        """The policy `name`; one object for every role, since each has its own memory."""
        if (name, role) not in self._runners:
            self._runners[name, role] = self._load(name, self._desc, self.cfg.rate_hz)
        runner = self._runners[name, role]
        if isinstance(runner, TeacherRunner) and self._robot is not None:
            runner.follow(self._robot)
        return runner

    def follow(self, robot: Stage) -> None:
        """Walk this robot from now on; privileged policies are told its surroundings."""
        self._robot = robot
        for runner in self._runners.values():
            if isinstance(runner, TeacherRunner):
                runner.follow(robot)

    def sight(self, runner: PolicyRunner) -> Sight | None:
        """What makes this policy's features, with nothing in its memory; None for blind ones."""
        if not runner.needs_features:
            return None
        key = str(runner.bundle.path)
        if key not in self._sights:
            self._sights[key] = Sight(runner.bundle, self._desc)
        self._sights[key].reset()
        return self._sights[key]


class _Robot(MujocoBackend):
    """Arms once it is ready, and not again after a fault."""

    name = "benchmark"

    def judged(self, gate: SafetyGate, now_ns: int) -> None:
        if gate.state is SafetyState.DISARMED:
            self._arm_if_due(gate, now_ns)

    def _feet_on_edge(self) -> int:
        return 0  # no figure of the benchmark, and a tenth of a trial's time


class Trial:
    """One robot, from lying or standing limp to the outcome."""

    def __init__(
        self,
        cell: Cell,
        seed: int,
        policies: Policies,
        desc: RobotDescription,
        cfg: TrialCfg | None = None,
    ) -> None:
        """Put the robot down.

        Args:
            cell: makes the scenario.
            seed: of the scenario, of the camera's noise and of the start.
            policies: that walk; not used by another trial meanwhile.
            desc: the robot as it is described.
            cfg: how the trial is run.
        """
        began_s = time.process_time()
        self.cfg = TrialCfg() if cfg is None else cfg
        self.cell, self.seed = cell, seed
        self.scenario = scenario = cell.make(seed)
        self._policies = policies
        self._clock = SimulatedClock()
        manager = policies.manager()
        self._sight = policies.sight(manager.chosen)
        boxes = [event.half_extents for event in scenario.events if event.action == "box"]
        self.robot = _Robot(
            _stage_cfg(scenario, seed, self.cfg, sees=self._sight is not None or self.cfg.camera),
            desc,
            _course(scenario, seed),
            clock_ns=self._clock,
            auto_reset=False,
            substep_ns=self.cfg.substep_ns,
            box_half_extents=boxes[0] if boxes else None,
        )
        self._log = StepLog.of(_SLOTS * SLOT_NS // self.cfg.substep_ns, len(desc.joint_names), 6)
        self.robot.world.log = self._log
        policies.follow(self.robot)
        self.handler = GateHandler(self.robot, answer_delay_ns=_ANSWER_NS)
        self.controller = LocomotionController(policies.cfg, desc, manager)
        self.controller.hal_checked = True
        self._director = Director(scenario, self)
        if self.cfg.planted.kind:
            self.robot.plant(self.cfg.planted)
        self._payload = StatePayload()
        self._sequence = self._periods = 0
        self._features: Message | None = None
        self._asked = np.zeros(3)
        self._go_ns: int | None = None
        self._clamps = (0, 0)
        self.facts = self._facts()
        self.cpu_s = time.process_time() - began_s
        """Processor time so far [s]."""

    def run(
        self,
        judge: Judge,
        figures: FigureMaker | None = None,
        recorders: Sequence[Recorder] = (),
    ) -> TrialResult:
        """Walk until the judge decides or the time is over."""
        began_s = time.process_time()
        outcome: str | None = None
        listeners = [*recorders] if figures is None else [figures, *recorders]
        while outcome is None:
            tick = self.period()
            for listener in listeners:
                listener.tick(tick)
            outcome = judge.tick(tick)
            if outcome is None and tick.time_s >= self.scenario.duration_s - 0.5 * CONTROL_S:
                outcome = judge.at_end()
            if tick.diverged or (self._go_ns is None and self.sim_time_s > _START_S):
                break
        reason = judge.reason
        if outcome is None:
            outcome = "fell"
            reason = reason or f"it did not stand up and walk within {_START_S:g} s"
        self.cpu_s += time.process_time() - began_s
        progress = self.robot.progress
        found = {} if figures is None else figures.figures()
        return TrialResult(
            cell=self.cell.name,
            seed=self.seed,
            policy=self.facts.policy,
            outcome=str(outcome),
            reason=reason,
            time_s=round(max(self._since_go_s(), 0.0), 3),
            waypoints=progress.index,
            of_waypoints=progress.count,
            progress_m=round(progress.furthest_m, 3),
            course_m=round(progress.length_m, 3),
            figures=found | self._director.disturbance(str(outcome)) if found else {},
            wall_s=round(self.cpu_s, 3),
        )

    @property
    def sim_time_s(self) -> float:
        """Simulated time since the robot was put down [s]."""
        return self.robot.sim_time_s

    def swap(self, name: str | None) -> None:
        """Walk with the policy `name`; None: with the first one again.

        The camera continues to make the features of the first one, as its service does.
        """
        first = self._policies.runner(self._policies.cfg.policy, "chosen")
        runner = first if name is None else self._policies.runner(name, "swapped")
        self.controller.swap_policy(runner, self._clock.now_ns)

    def period(self) -> Tick:
        """Let one control period pass and answer the state at its end."""
        clock, robot = self._clock, self.robot
        diverged = False
        try:
            if self._periods == 0:
                measured = robot.read(Slot(clock.now_ns, clock.now_ns, 0, 0)).measured
            else:
                measured = self._slots()
        except PhysicsDiverged:
            diverged, measured = True, robot.measured
        assert measured is not None, "a simulator always measures"
        self._periods += 1
        if not diverged:
            self._answer(self._payload.fill(measured))
        return self._tick(diverged)

    def _slots(self) -> Measurement | None:
        clock, robot = self._clock, self.robot
        measured: Measurement | None = None
        for index in range(_SLOTS):
            clock.now_ns += SLOT_NS
            measured = self.handler.cycle(Slot(clock.now_ns, clock.now_ns, 1, 0)).measured
            if index == 0 and robot.image_due(clock.now_ns):
                robot.expose(clock.now_ns)
        return measured

    def _answer(self, payload: NDArray[np.float32]) -> None:
        """What happens at one instant: truth, features, walking command, decision, gate."""
        now_ns, robot, controller = self._clock.now_ns, self.robot, self.controller
        robot.control_tick(now_ns)
        if self._go_ns is not None:
            self._director.step(self._since_go_s())
        self._sequence += 1
        state = local_message(STATE, payload, now_ns, self._sequence)
        controller.handle_state(state)
        if (self._periods - 1) % _NAV_PERIODS == 0:
            self._asked = self._director.command(self._since_go_s()).as_array()
            nav = local_message(NAV, self._asked, now_ns, self._sequence)
            controller.nav.receive(nav, now_ns)
        if self._sight is not None:
            self._look(self._sight, state)
        sent = controller.tick(state, self._features, now_ns)
        if controller.mode is Mode.POLICY and self._go_ns is None:
            self._go_ns = now_ns
        self._clamps = (0, 0)
        if sent is not None:
            self._send(sent, now_ns)

    def _look(self, sight: Sight, state: Message) -> None:
        """Take in the picture whose latency has passed; a perfect one in the first period."""
        now_ns = self._clock.now_ns
        sight.note(state)
        frame = self.robot.frame(now_ns)
        if self._periods == 1:
            frame = self.robot.picture(now_ns)
        seen = None if frame is None else sight.see(frame.image, frame.capture_ns)
        if seen is not None:
            self._features = local_message(
                FEATURES, seen.payload, seen.capture_ns, self._sequence, seen.flags
            )

    def _send(self, sent: JointCommand, now_ns: int) -> None:
        payload = sent.joint_pos.astype(np.float32)
        flags = FLAG_HOLD if sent.hold else 0
        message = local_message(CAMERA, payload, sent.state.capture_ns, self._sequence, flags)
        outcome = self.handler.on_command(message)
        self._clamps = (outcome.position_clamp_mask, outcome.rate_clamp_mask)
        reply = CommandReply(
            REPLY_MAGIC, SCHEMA_VERSION, int(outcome.status), outcome.safety_state,
            outcome.fault_bits, *self._clamps, outcome.arm_count, self._sequence, self._sequence,
            outcome.applied_ns, now_ns,
        )  # fmt: skip
        self.controller.handle_reply(reply)

    # --- what is said about it ---------------------------------------------------------------

    def _since_go_s(self) -> float:
        """Time since go, -1 before it [s]."""
        return -1.0 if self._go_ns is None else (self._clock.now_ns - self._go_ns) * 1e-9

    def _tick(self, diverged: bool) -> Tick:
        robot, world, controller = self.robot, self.robot.world, self.controller
        policies, gate, measured = controller.policies, self.handler.gate, self.robot.measured
        pos_w, quat_w = world.base_pos_w, measured.base_quat_w.copy()
        touches = world.base_contact()
        target = gate.target
        used = self._features if policies.active.needs_features else None
        walking = controller.mode is Mode.POLICY
        return Tick(
            time_s=self._since_go_s(),
            mode=controller.mode,
            safety=gate.state,
            faults=int(gate.faults),
            policy=policies.active.bundle.name,
            blind=policies.blind,
            feature_age_s=math.nan if used is None else used.age_s(self._clock.now_ns),
            asked=self._asked.astype(np.float64),
            command=controller.nav.command.copy(),
            walks=walking and bool(self._asked.any()),
            base_pos_w=pos_w,
            base_quat_w=quat_w,
            base_lin_vel_b=rotations.rotate_inverse(quat_w, world.base_lin_vel_w),
            base_ang_vel_b=measured.base_ang_vel_b.copy(),
            tilt_rad=float(rotations.tilt(quat_w)),
            joint_pos=measured.joint_pos.copy(),
            joint_target=target,
            joint_vel=self._log.joint_vel,
            joint_torque=self._log.joint_torque,
            foot_force=self._log.foot_force,
            foot_soles_w=world.foot_soles_w(),
            body_contact=touches,
            box_contact=world.box_contact(),
            in_pit=robot.in_pit(pos_w),
            stance_m=stance_m(robot.desc, target) if touches and gate.state.following else 0.0,
            position_clamps=self._clamps[0].bit_count(),
            rate_clamps=self._clamps[1].bit_count(),
            waypoint=robot.progress.index,
            progress_m=robot.progress.furthest_m,
            diverged=diverged,
        )

    def _facts(self) -> TrialFacts:
        desc, robot = self.robot.desc, self.robot
        return TrialFacts(
            cell=self.cell,
            scenario=self.scenario,
            seed=self.seed,
            policy=self.controller.policies.chosen.bundle.name,
            mass_kg=robot.actual.masses.total,
            rated_torque=desc.rated_torque,
            joint_names=desc.joint_names,
            leg_names=desc.leg_names,
            substep_s=self.cfg.substep_ns * 1e-9,
            course_m=robot.progress.length_m,
            waypoints=robot.progress.count,
            tilt_limit_rad=desc.safety.tilt_limit_rad,
        )


def local_message(
    stream: Stream,
    payload: NDArray[np.float32],
    capture_ns: int,
    sequence: int,
    flags: int = 0,
) -> Message:
    """A message as it would come off the wire, without the wire."""
    header = Header(
        MAGIC, SCHEMA_VERSION, stream.id, flags, 1, sequence, capture_ns, capture_ns,
        payload.size, 0,
    )  # fmt: skip
    return Message(header, payload)


def _stage_cfg(scenario: Scenario, seed: int, cfg: TrialCfg, *, sees: bool) -> StageCfg:
    robot, pictures = scenario.robot, scenario.pictures
    return StageCfg(
        seed=seed,
        spawn="lying" if cfg.spawn == "lying" else "standing",
        camera=CameraCfg(enabled=sees),
        degrade=DegradeCfg(
            frame_drop=pictures.drop_share,
            camera_latency_s=pictures.latency_s,
            camera_rate_hz=pictures.rate_hz,
            depth_noise=pictures.noise_factor,
            camera_tilt_deg=pictures.tilt_deg,
            mass_factor=robot.mass_factor,
            motor_strength=robot.motor_strength,
            payload_kg=robot.payload_kg,
            friction=robot.friction,
        ),
        mission=MissionCfg(speed=min(scenario.speed, 2.0)),
    )


def _course(scenario: Scenario, seed: int) -> Course:
    """The course with the start of this trial."""
    robot, course = scenario.robot, scenario.course
    if scenario.spawn is None and not (robot.start_xy_m or robot.start_yaw_rad):
        return course
    x, y, yaw = scenario.spawn or course.spawn
    draw = np.random.Generator(np.random.PCG64((seed, 3)))
    dx, dy = draw.uniform(-robot.start_xy_m, robot.start_xy_m, 2)
    turn = draw.uniform(-robot.start_yaw_rad, robot.start_yaw_rad)
    return dataclasses.replace(course, spawn=(float(x + dx), float(y + dy), float(yaw + turn)))
