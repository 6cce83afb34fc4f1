"""Runs in simulation, recorded as the processes would be, with a fault between robot and HAL."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from krabby.benchmark.scenario import Cell, Pictures, RobotVariation, Scenario
from krabby.benchmark.trial import Policies, Trial, TrialCfg
from krabby.course.courses import make_course
from krabby.mujoco.config import PlantedCfg
from krabby_proto import CAMERA, COMMAND, STATE, TRACE, CommandReply, Message
from krabby_proto.codec import decode, encode
from krabby_proto.exchanges import Exchange, ExchangeKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from krabby.hal.backend import Image
    from krabby.robot.description import RobotDescription
    from krabby_proto import CommandOutcome, Stream
    from numpy.typing import NDArray

__all__ = ["FAULTS", "Run", "faulty_runs", "record", "sound_runs"]

_SPEED_M_S: Final = 0.35
_LONGEST_S: Final = 3600.0
COURSES: Final = ("mixed", "steps", "flat", "ramps", "gap", "hurdle", "demo", "stairs")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run."""

    name: str
    """Of the fault, or `sound`."""
    policy: str
    course: str
    difficulty: float
    seed: int
    planted: PlantedCfg = PlantedCfg()  # noqa: RUF009 - frozen
    tilt_deg: float = 0.0
    motor_strength: float = 1.0
    """Share of the described torque that the drives have."""
    kind: str = ""
    """Kind of finding that is right; empty for a sound run."""
    where: tuple[str, ...] = ()
    """Joints or legs of it; empty where any is right."""
    variant: str = ""

    @property
    def key(self) -> str:
        """Tells runs apart."""
        return f"{self.name} {self.variant} {self.policy} {self.course} {self.seed}"


FAULTS: Final = (
    "joint sign", "two joints swapped", "degrees for radians", "IMU rotated", "gravity flipped",
    "40 ms delay", "gain x 1.5", "camera 5 degrees down", "camera mirrored", "stale contact",
)  # fmt: skip


def sound_runs(desc: RobotDescription, count: int, first_seed: int) -> Iterator[Run]:
    """Runs without a fault: both policies, eight courses, difficulties 0.3 to 0.7."""
    for i in range(count):
        yield Run(
            name="sound",
            policy=("gait", "parkour")[i % 2],
            course=COURSES[(i // 2) % len(COURSES)],
            difficulty=(0.3, 0.5, 0.7)[(i // 2) % 3],
            seed=first_seed + i,
        )


def faulty_runs(desc: RobotDescription, seeds: range) -> Iterator[Run]:
    """Every fault for both policies and every seed, which also draws joints, legs and variant."""
    for seed in seeds:
        for policy in ("gait", "parkour"):
            for name in FAULTS:
                yield _faulty(desc, name, policy, seed)


def _faulty(desc: RobotDescription, name: str, policy: str, seed: int) -> Run:
    draw = random.Random(f"{name} {policy} {seed}")
    turn = seed % 3
    run = functools.partial(
        Run,
        name=name,
        policy=policy,
        course=COURSES[seed % 6],
        difficulty=0.5,
        seed=seed,
    )
    joints = list(desc.joint_names)
    match name:
        case "joint sign":
            where = (draw.choice([j for j in joints if j.endswith(_JOINTS[turn])]),)
            planted = PlantedCfg(kind="joint-sign", where=where, feedback_only=draw.random() < 0.3)
            variant = "feedback only" if planted.feedback_only else "drive"
            return run(planted=planted, kind="joint-sign", where=where, variant=variant)
        case "two joints swapped":
            same = [j for j in joints if j.endswith(_JOINTS[turn])]
            where = tuple(draw.sample(same, 2))
            planted = PlantedCfg(
                kind="joints-swapped", where=where, feedback_only=draw.random() < 0.3
            )
            variant = "feedback only" if planted.feedback_only else "drives"
            return run(planted=planted, kind="joints-swapped", where=where, variant=variant)
        case "degrees for radians":
            term = ("base_ang_vel_b", "joint_pos", "joint_vel")[turn]
            return run(planted=PlantedCfg(kind="degrees", term=term), kind="degrees", variant=term)
        case "IMU rotated":
            turns: tuple[tuple[Literal["x", "y", "z"], float], ...]
            turns = (("z", 90.0), ("z", -90.0), ("x", 90.0))
            axis, value = turns[turn]
            planted = PlantedCfg(kind="imu-rotated", axis=axis, value=value)
            return run(
                planted=planted, kind="imu-rotated", where=(axis,), variant=f"{axis} {value:+.0f}"
            )
        case "gravity flipped":
            term = ("base_lin_acc_b", "base_quat_w")[turn % 2]
            planted = PlantedCfg(kind="gravity-flipped", term=term)
            return run(planted=planted, kind="gravity-flipped", variant=term)
        case "40 ms delay":
            term = ("command", "state")[turn % 2]
            return run(planted=PlantedCfg(kind="delay", term=term), kind="delay", variant=term)
        case "gain x 1.5":
            return run(planted=PlantedCfg(kind="gain"), kind="gain")
        case "camera 5 degrees down":
            return run(tilt_deg=5.0, kind="camera-pitch", where=("down",))
        case "camera mirrored":
            return run(planted=PlantedCfg(kind="camera-mirrored"), kind="camera-mirrored")
        case _:
            where = () if turn else (draw.choice(list(desc.leg_names)),)
            planted = PlantedCfg(kind="contact-stale", where=where)
            variant = "one foot" if where else "all feet"
            return run(
                planted=planted, kind="contact-stale", where=where or desc.leg_names,
                variant=variant,
            )  # fmt: skip


_JOINTS: Final = ("hip_yaw", "hip_pitch", "knee")


def record(
    run: Run, policies: Policies, desc: RobotDescription, duration_s: float
) -> tuple[list[Message], int]:
    """What the HAL published in that time from lying on the ground, and how often it fell."""
    scenario = Scenario(
        course=make_course(run.course, run.difficulty, run.seed),
        speed=_SPEED_M_S,
        duration_s=_LONGEST_S,
        pictures=Pictures(tilt_deg=run.tilt_deg),
        robot=RobotVariation(motor_strength=run.motor_strength),
    )
    cell = Cell(
        name="recorded", family="recorded", summary="recorded", goal="waypoints",
        make=lambda _: scenario,
    )  # fmt: skip
    cfg = TrialCfg(spawn="lying", camera=True, planted=run.planted)
    trial = _RecordedTrial(cell, run.seed, policies, desc, cfg)
    while trial.sim_time_s < duration_s:
        if trial.period().diverged:
            break
    return trial.messages, trial.robot.falls


class _RecordedTrial(Trial):
    """Keeps the messages of the streams state, camera and trace."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # pyright: ignore[reportArgumentType]
        self.messages: list[Message] = []
        self._numbers: dict[str, int] = {}
        self._gate = (-1, -1)
        self._frame_of, self.robot.frame = self.robot.frame, self._frame
        self._answer_of, self.handler.on_command = self.handler.on_command, self._command

    def _answer(self, payload: NDArray[np.float32]) -> None:
        now_ns = self._clock.now_ns
        self._keep(STATE, payload.copy(), now_ns)
        gate = int(self.handler.gate.state), int(self.handler.gate.faults)
        if gate != self._gate:
            self._gate = gate
            self._keep(TRACE, Exchange.of_gate(now_ns, *gate).pack(), now_ns)
        if self._sight is None:
            self.robot.frame(now_ns)
        super()._answer(payload)

    def _frame(self, now_ns: int) -> Image | None:
        frame = self._frame_of(now_ns)
        if frame is not None:
            self._keep(CAMERA, frame.image.ravel(), frame.capture_ns)
        return frame

    def _command(self, message: Message) -> CommandOutcome:
        outcome = self._answer_of(message)
        now_ns = self._clock.now_ns
        frames = encode(
            COMMAND, message.payload, instance_id=1, sequence=message.sequence,
            capture_ns=message.capture_ns, publish_ns=now_ns, flags=message.flags,
        )  # fmt: skip
        reply = CommandReply.pack(
            outcome.status,
            safety_state=outcome.safety_state,
            fault_bits=outcome.fault_bits,
            position_clamp_mask=outcome.position_clamp_mask,
            rate_clamp_mask=outcome.rate_clamp_mask,
            arm_count=outcome.arm_count,
            request_sequence=message.sequence,
            applied_sequence=message.sequence,
            applied_ns=outcome.applied_ns or 0,
            server_ns=now_ns,
        )
        exchange = Exchange.of_frames(ExchangeKind.COMMAND, now_ns, frames, reply)
        self._keep(TRACE, exchange.pack(), now_ns)
        return outcome

    def _keep(self, stream: Stream, payload: NDArray[np.float32] | bytes, capture_ns: int) -> None:
        number = self._numbers[stream.name] = self._numbers.get(stream.name, 0) + 1
        frames = encode(
            stream, payload, instance_id=1, sequence=number, capture_ns=capture_ns,
            publish_ns=self._clock.now_ns,
        )  # fmt: skip
        self.messages.append(decode(frames))
