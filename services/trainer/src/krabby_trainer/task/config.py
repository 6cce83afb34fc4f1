"""Configuration of the environment: plain values, one tree for Hydra, files and tests."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from typing import Annotated, Final, Literal

from krabby.course.progress import DWELL_S, PASS_WIDTH_M, REACH_M
from krabby.isaac.config import SolverCfg
from msgspec import Meta

from krabby_trainer.fields import (
    TINY,
    Count,
    NonNegative,
    Pair,
    Positive,
    Share,
    check,
    check_ordered,
)
from krabby_trainer.task.rewards import REWARDS
from krabby_trainer.vision.config import DepthErrorsCfg

__all__ = [
    "CONTROL_STEP_S",
    "CameraCfg",
    "CommandCfg",
    "CurriculumCfg",
    "EnvCfg",
    "PhysicsCfg",
    "RandomisationCfg",
    "RewardCfg",
    "TerrainCfg",
    "evaluation_env",
    "play_env",
    "student_env",
    "teacher_env",
]

CONTROL_STEP_S: Final = 0.01


@dataclass
class TerrainCfg:
    """A grid of courses: rows are difficulties, columns are layouts of one obstacle type each."""

    types: list[str] = field(
        default_factory=lambda: ["steps", "gap", "hurdle", "ramps", "mixed", "flat"]
    )
    """Courses of `krabby.course.courses`."""
    shares: list[float] = field(default_factory=lambda: [0.2, 0.2, 0.2, 0.25, 0.1, 0.05])
    """Share of the columns of each type; every type gets one at least."""
    levels: Annotated[int, Meta(ge=1, le=1000)] = 13
    columns: Annotated[int, Meta(ge=1, le=1000)] = 24
    difficulty_low: float = 0.0
    difficulty_high: float = 1.8
    """1 is the hardest of the published suite."""
    ranges: dict[str, Pair] = field(default_factory=dict)
    """Difficulties [low, high] of types that have their own."""
    random_difficulty: bool = False
    """Draw every tile's difficulty uniformly instead of raising it from row to row."""
    seed: Annotated[int, Meta(ge=0)] = 0


@dataclass
class CommandCfg:
    """Waypoints and velocity commands."""

    speed_low: NonNegative = 0.3
    speed_high: Positive = 1.0
    """Commanded speed [m/s], drawn once per episode."""
    reach_m: Positive = REACH_M
    """A waypoint counts once the base has been this near ..."""
    dwell_s: NonNegative = DWELL_S
    """... for this long."""
    pass_width_m: NonNegative = PASS_WIDTH_M
    """A waypoint passed this close to its side counts too; 0 for the published rule."""
    hurry_speed: Positive = 1.0
    """Allowed speed [m/s], or the commanded one plus `hurry_margin` if that is more; above it
    `reward.overspeed` counts."""
    hurry_margin: NonNegative = 0.0
    """[m/s]"""
    slack: Pair = field(default_factory=lambda: [0.0, 0.0])
    """Walking towards a waypoint earns all from this much below the commanded speed on: so many
    m/s, and such a share of it, together at most half. Speed sways within a step, and what earns
    at most the commanded one rewards a mean above it."""
    pause_share: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Share of the time with a zero command."""
    pause_s: Pair = field(default_factory=lambda: [1.0, 3.0])
    """Length of a pause."""
    rest_s: NonNegative = 0.0
    """How long robots are commanded to stand at the last waypoint before the episode ends [s]."""
    stand_off_s: NonNegative = 10.0
    """How long robots are to stand before something impassable until the episode ends [s]."""
    stand_off_m: NonNegative = 0.0
    """Farther than this before something impassable, walking on earns as much as standing, so that
    robots may look at it; 0: from the last waypoint before it on, standing alone earns [m]."""
    halt_every_s: NonNegative = 0.0
    """Mean time between halts [s], 0 for none: the joints go to the default pose within
    `krabby.safety.trajectories.HALT_S` and ignore the policy, as when the runtime stops the robot.
    Half of the robots that reach the last waypoint are halted too."""
    halt_s: Pair = field(default_factory=lambda: [0.5, 1.0])
    """How long the pose is held."""
    free_flat: bool = False
    """Robots on `flat` are free: they follow velocity commands instead of waypoints, begin anywhere
    on the columns of `flat` and may walk over all of them."""
    free_share: Share = 0.0
    """Share of the episodes on other courses in which robots are free. They begin at any waypoint
    of a tile up to their level; leaving the tile ends the episode as a time-out."""
    free_vx: Pair = field(default_factory=lambda: [-0.5, 1.0])
    free_vy: Pair = field(default_factory=lambda: [-0.4, 0.4])
    """[m/s]"""
    free_yaw_rate: Pair = field(default_factory=lambda: [-0.8, 0.8])
    """[rad/s]"""
    free_still: Share = 0.15
    """Share of zero velocity commands."""
    redraw_s: Pair = field(default_factory=lambda: [3.0, 5.0])
    """How long a velocity command holds [s] ..."""
    long_share: Share = 0.3
    """... but four times as long for this share of them."""

    def __post_init__(self) -> None:
        check_ordered(self, "pause_s", "halt_s", least=TINY, of=", above 0")
        check_ordered(self, "free_vx", "free_vy", "free_yaw_rate")
        low, high = self.speed_low, self.speed_high
        check(low <= high, "speed_high", high, f"at least speed_low, {low}")
        fits = self.slack[0] >= 0.0 and 0.0 <= self.slack[1] <= 0.5
        check(fits, "slack", self.slack, "[m/s at least 0, a share of 0 to 0.5]")
        check_ordered(self, "redraw_s", least=0.01, of=", at least a control step of 0.01")

    def only_in_isaac(self) -> list[str]:
        """Keys in use that MuJoCo does not have: stops and free robots."""
        keys = ("pause_share", "rest_s", "halt_every_s", "free_flat", "free_share")
        return [key for key in keys if getattr(self, key)]


@dataclass
class CurriculumCfg:
    """When a robot moves to a harder or an easier tile; see `krabby_trainer.task.curriculum`."""

    enabled: bool = True
    start_level: Annotated[int, Meta(ge=0)] = 2
    """Robots start at a random level up to this one."""
    promote_levels: Count = 2
    """How many levels a robot moves up at once."""
    promote_goals: Count = 7
    """Waypoints reached in an episode that move it up."""
    demote_goals: Annotated[int, Meta(ge=0)] = 3
    """A fall before this many waypoints moves it down."""
    demote_speed: Share = 0.4
    """So does less than this share of the commanded distance at a time-out."""
    revisit: Share = 0.4
    """Share of the episodes on tiles easier than the robot's level, against forgetting."""


@dataclass
class RandomisationCfg:
    """Everything that differs between robots and episodes: the one table of domain randomisation.

    Ranges are [low, high], uniform.
    """

    enabled: bool = True
    friction: Pair = field(default_factory=lambda: [0.5, 1.25])
    """Of feet and legs on the terrain."""
    mass_factor: Pair = field(default_factory=lambda: [1.0, 1.0])
    """On mass and inertia of every body of a robot alike."""
    added_mass_kg: Pair = field(default_factory=lambda: [-1.0, 4.0])
    """On the base."""
    com_offset_m: Pair = field(default_factory=lambda: [-0.05, 0.05])
    """Of the base, each axis."""
    gain_factor: Pair = field(default_factory=lambda: [0.9, 1.1])
    """On kp and kd, each joint."""
    motor_strength: Pair = field(default_factory=lambda: [1.0, 1.0])
    """Of the torque-speed envelope, all joints of a robot alike."""
    command_delay: Pair = field(default_factory=lambda: [0.3, 1.0])
    """From observation to the drive, in control steps."""
    push_interval_s: Pair = field(default_factory=lambda: [6.0, 10.0])
    push_speed: NonNegative = 0.5
    """Largest change of the base's velocity along x and y [m/s]."""
    joint_pos_bias: NonNegative = 0.01
    """Largest constant error of an encoder [rad]."""
    gyro_bias: NonNegative = 0.03
    """Largest constant error of the gyro [rad/s]."""
    joint_pos_noise: NonNegative = 0.005
    joint_vel_noise: NonNegative = 0.1
    gyro_noise: NonNegative = 0.05
    gravity_noise: NonNegative = 0.01
    scan_noise_m: NonNegative = 0.01
    scan_bias_m: NonNegative = 0.02
    start_xy_m: NonNegative = 0.3
    """Start position, plus or minus."""
    start_yaw_rad: NonNegative = 0.3
    start_joint_rad: NonNegative = 0.1

    def __post_init__(self) -> None:
        above = ("friction", "mass_factor", "gain_factor", "motor_strength", "push_interval_s")
        check_ordered(self, *above, least=TINY, of=", above 0")
        check_ordered(self, "added_mass_kg", "com_offset_m")
        check_ordered(self, "command_delay", least=0.0, most=1.0, of=" within 0 to 1")


_WEIGHTS = [(term.name, float, field(default=term.weight)) for term in REWARDS]


@dataclass
class RewardCfg(make_dataclass("_Weights", _WEIGHTS)):
    """Weights of `krabby_trainer.task.rewards.REWARDS`, per second."""


@dataclass
class PhysicsCfg(SolverCfg):
    """Newton with the MuJoCo-Warp solver; or MuJoCo on the processor, for imitation."""

    backend: Literal["isaac", "mujoco"] = "isaac"
    """`mujoco` is for the task distill on a machine without a GPU; of the other keys only
    `processes` applies then."""
    processes: Annotated[int, Meta(ge=0)] = 0
    """Processes that share MuJoCo's physics; 0 for one per core."""
    decimation: Count = 2

    def __post_init__(self) -> None:
        steps = CONTROL_STEP_S / self.step_s
        check(
            abs(self.decimation - steps) < 1e-6,
            "decimation",
            self.decimation,
            f"{steps:g}, since step_s={self.step_s:g} and the control step is {CONTROL_STEP_S:g} s",
        )


@dataclass
class CameraCfg:
    enabled: bool = False
    errors: DepthErrorsCfg = field(default_factory=DepthErrorsCfg)


@dataclass
class EnvCfg:
    num_envs: Annotated[int, Meta(ge=1, le=2**20)] = 4096
    episode_s: Annotated[float, Meta(ge=0.1)] = 30.0
    grounded_s: NonNegative = 0.0
    """A base in contact for this long has failed, as in the benchmark; 0: it has not [s]."""
    terrain: TerrainCfg = field(default_factory=TerrainCfg)
    command: CommandCfg = field(default_factory=CommandCfg)
    curriculum: CurriculumCfg = field(default_factory=CurriculumCfg)
    randomisation: RandomisationCfg = field(default_factory=RandomisationCfg)
    reward: RewardCfg = field(default_factory=RewardCfg)
    physics: PhysicsCfg = field(default_factory=PhysicsCfg)
    camera: CameraCfg = field(default_factory=CameraCfg)
    cuda_graphs: bool = True
    """Record the kernels of a step once and replay them; on CUDA only."""

    def __post_init__(self) -> None:
        check(
            not self.command.free_flat or "flat" in self.terrain.types,
            "command.free_flat",
            self.command.free_flat,
            f"false, since env.terrain.types={self.terrain.types} has no flat",
        )


def teacher_env() -> EnvCfg:
    return EnvCfg()


def student_env() -> EnvCfg:
    """Training of a student: cameras, and difficulties spread evenly."""
    cfg = EnvCfg(camera=CameraCfg(enabled=True), curriculum=CurriculumCfg(enabled=False))
    cfg.terrain.difficulty_high = 1.3
    return cfg


_SENSOR_ERRORS = (
    *("joint_pos_bias", "gyro_bias", "scan_bias_m", "joint_pos_noise", "joint_vel_noise"),
    *("gyro_noise", "gravity_noise", "scan_noise_m"),
)


def evaluation_env(
    *,
    num_envs: int = 256,
    types: list[str] | None = None,
    difficulty: tuple[float, float] = (0.0, 1.0),
    seed: int = 1,
) -> EnvCfg:
    """The published evaluation: difficulties drawn uniformly, robots spread evenly over types.

    Friction, pushes and commanded speeds vary; masses, gains and sensors are true. Every robot has
    its own tile, up to 64 per type.
    """
    cfg = EnvCfg(num_envs=num_envs)
    types = types or ["steps", "gap", "hurdle", "ramps"]
    cfg.terrain = TerrainCfg(
        types=types,
        shares=[1.0 / len(types)] * len(types),
        levels=max(1, min(8, num_envs // len(types))),
        columns=len(types) * max(1, min(8, num_envs // (8 * len(types)))),
        difficulty_low=difficulty[0],
        difficulty_high=difficulty[1],
        random_difficulty=True,
        seed=seed,
    )
    cfg.episode_s = 20.0
    cfg.command = CommandCfg(speed_low=0.3, speed_high=0.8, pass_width_m=0.0)
    cfg.curriculum = CurriculumCfg(enabled=False)
    cfg.randomisation = RandomisationCfg(
        friction=[0.6, 1.2],
        added_mass_kg=[0.0, 0.0],
        com_offset_m=[0.0, 0.0],
        gain_factor=[1.0, 1.0],
        command_delay=[0.8, 0.8],
        push_interval_s=[6.0, 6.0],
    )
    for name in _SENSOR_ERRORS:
        setattr(cfg.randomisation, name, 0.0)
    return cfg


def play_env() -> EnvCfg:
    """A few robots to look at: no pushes."""
    cfg = evaluation_env(num_envs=16)
    cfg.randomisation.enabled = False
    return cfg
