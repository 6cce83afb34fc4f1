"""What the environment can be told: plain values, so that one tree serves Hydra, files and tests.

Rewards are per second: the environment multiplies each by the control step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from krabby_trainer.vision.depth import DepthErrorsCfg

__all__ = [
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


@dataclass
class TerrainCfg:
    """A grid of courses: rows are difficulties, columns are layouts of one obstacle type each."""

    types: list[str] = field(
        default_factory=lambda: ["steps", "gap", "hurdle", "ramps", "mixed", "flat"]
    )
    """Courses of `krabby.course.courses`."""
    shares: list[float] = field(default_factory=lambda: [0.2, 0.2, 0.2, 0.25, 0.1, 0.05])
    """Share of the columns of each type; every type gets one at least."""
    levels: int = 13
    columns: int = 24
    difficulty_low: float = 0.0
    difficulty_high: float = 1.8
    """1 is the hardest of the published suite."""
    random_difficulty: bool = False
    """Draw every tile's difficulty uniformly instead of raising it from row to row."""
    seed: int = 0


@dataclass
class CommandCfg:
    """Where the robot is asked to go and how fast."""

    speed_low: float = 0.3
    speed_high: float = 1.0
    """[m/s], drawn once per episode."""
    reach_m: float = 0.2
    """A waypoint counts once the base has been this near ..."""
    dwell_s: float = 0.1
    """... for this long."""
    pass_width_m: float = 0.5
    """A waypoint passed this close to its side counts too; 0 for the published rule."""
    hurry_speed: float = 1.0
    """A robot may walk faster than it is asked to, up to this [m/s], or the speed asked for and
    `hurry_margin` if that is more; beyond, it pays `reward.overspeed`."""
    hurry_margin: float = 0.0
    """[m/s]"""
    pause_share: float = 0.0
    """Share of the time in which robots are asked to stand still."""
    pause_s: list[float] = field(default_factory=lambda: [1.0, 3.0])
    """How long each time."""
    rest_s: float = 0.0
    """How long robots are asked to stand still behind the last waypoint before the episode ends
    [s]: there, too, they shall know what to do."""
    halt_every_s: float = 0.0
    """Mean time between stops [s], 0 for none: wherever a robot is, its joints go to the default
    pose within `krabby.safety.trajectories.HALT_S`, as when the runtime stops it, whatever it
    wants. So it learns to walk as one that can be stopped. Half of those that arrive are
    stopped too."""
    halt_s: list[float] = field(default_factory=lambda: [0.5, 1.0])
    """How long it is held there."""
    free_flat: bool = False
    """Robots on `flat` are free: asked for velocities in every direction instead of waypoints. They
    begin anywhere on the columns of `flat` and may walk all over them."""
    free_share: float = 0.0
    """Share of the episodes on other courses in which robots are free. They begin at any waypoint
    of a tile up to their level; leaving the tile ends the episode as its clock would."""
    free_vx: list[float] = field(default_factory=lambda: [-0.5, 1.0])
    free_vy: list[float] = field(default_factory=lambda: [-0.4, 0.4])
    """[m/s]"""
    free_yaw_rate: list[float] = field(default_factory=lambda: [-0.8, 0.8])
    """[rad/s]"""
    free_still: float = 0.15
    """Share of the commands that ask to stand still."""
    redraw_s: list[float] = field(default_factory=lambda: [3.0, 5.0])
    """How long a command holds [s] ..."""
    long_share: float = 0.3
    """... but four times as long for this share of them."""


@dataclass
class CurriculumCfg:
    """When a robot moves to a harder or an easier tile; see `krabby_trainer.task.curriculum`."""

    enabled: bool = True
    start_level: int = 2
    """Robots start at a random level up to this one."""
    promote_levels: int = 2
    """How many levels a robot moves up at once."""
    promote_goals: int = 7
    """Waypoints reached in an episode that move it up."""
    demote_goals: int = 3
    """A fall before this many waypoints moves it down."""
    demote_speed: float = 0.4
    """So does less than this share of the distance asked for, when time runs out."""
    revisit: float = 0.4
    """Share of the episodes on tiles easier than the robot's level: nothing shall be forgotten."""


@dataclass
class RandomisationCfg:
    """Everything that differs between robots and episodes: the one table of domain randomisation.

    Ranges are [low, high], uniform.
    """

    enabled: bool = True
    friction: list[float] = field(default_factory=lambda: [0.5, 1.25])
    """Of feet and legs on the terrain."""
    mass_factor: list[float] = field(default_factory=lambda: [1.0, 1.0])
    """On mass and inertia of every body of a robot alike."""
    added_mass_kg: list[float] = field(default_factory=lambda: [-1.0, 4.0])
    """On the base."""
    com_offset_m: list[float] = field(default_factory=lambda: [-0.05, 0.05])
    """Of the base, each axis."""
    gain_factor: list[float] = field(default_factory=lambda: [0.9, 1.1])
    """On kp and kd, each joint."""
    motor_strength: list[float] = field(default_factory=lambda: [1.0, 1.0])
    """Of the torque-speed envelope, all joints of a robot alike."""
    command_delay: list[float] = field(default_factory=lambda: [0.3, 1.0])
    """From observation to the drive, in control steps."""
    push_interval_s: list[float] = field(default_factory=lambda: [6.0, 10.0])
    push_speed: float = 0.5
    """Largest change of the base's velocity along x and y [m/s]."""
    joint_pos_bias: float = 0.01
    """Largest constant error of an encoder [rad]."""
    gyro_bias: float = 0.03
    """Largest constant error of the gyro [rad/s]."""
    joint_pos_noise: float = 0.005
    joint_vel_noise: float = 0.1
    gyro_noise: float = 0.05
    gravity_noise: float = 0.01
    scan_noise_m: float = 0.01
    scan_bias_m: float = 0.02
    start_xy_m: float = 0.3
    """Start position, plus or minus."""
    start_yaw_rad: float = 0.3
    start_joint_rad: float = 0.1


@dataclass
class RewardCfg:
    """Weights of the terms in `krabby_trainer.task.mdp`, per second."""

    goal_velocity: float = 1.5
    overspeed: float = -2.0
    goal_heading: float = 0.5
    track_velocity: float = 0.0
    """Of free robots, over ground ..."""
    track_yaw: float = 0.0
    """... and in turning."""
    vertical_velocity: float = -0.5
    roll_pitch_rate: float = -0.05
    orientation: float = -0.3
    joint_deviation: float = -0.02
    rest_pose: float = 0.0
    """Joint deviation, in addition, where no motion is asked for."""
    stature: float = 0.0
    """Base higher than `STATURE_M` above the default stand: the taller, the sooner it tips over."""
    feet_high: float = 0.0
    """Feet more than `FEET_HIGH_M` above the base, per metre."""
    action_rate: float = -0.01
    joint_acceleration: float = 0.0
    """Of the order of -1e-7."""
    joint_limits: float = 0.0
    """Joints within `LIMIT_MARGIN_RAD` of the limits of their targets, per radian."""
    power: float = 0.0
    """Mechanical, per watt."""
    torque: float = -8e-6
    effort_budget: float = -4.0
    base_contact: float = -1.0
    leg_contact: float = -0.1
    contact_force: float = 0.0
    """Feet that carry more than the robot's weight, per weight."""
    stumble: float = -0.3
    edge: float = -6.0
    pit: float = -1.0
    fall: float = -300.0
    """Per second over one control step: -3 for a fall at 100 Hz."""


@dataclass
class PhysicsCfg:
    """Newton with the MuJoCo-Warp solver; or MuJoCo on the processor, to imitate in."""

    backend: str = "isaac"
    """`isaac`; or `mujoco`, for the task distill on a machine without a GPU: none of the other keys
    but `processes` counts then."""
    processes: int = 0
    """That share MuJoCo's physics; 0 for one per core."""
    step_s: float = 0.005
    decimation: int = 2
    iterations: int = 5
    """Most robots need two; all wait for the slowest."""
    ls_iterations: int = 20
    max_constraints: int = 400
    """Per robot."""
    max_contacts: int = 100
    """Per robot."""
    warn: bool = False
    """Let the solver print when an iteration or a contact was one too many: slow."""


@dataclass
class CameraCfg:
    """Depth cameras, for students."""

    enabled: bool = False
    errors: DepthErrorsCfg = field(default_factory=DepthErrorsCfg)


@dataclass
class EnvCfg:
    """One environment, of many robots."""

    num_envs: int = 4096
    episode_s: float = 30.0
    terrain: TerrainCfg = field(default_factory=TerrainCfg)
    command: CommandCfg = field(default_factory=CommandCfg)
    curriculum: CurriculumCfg = field(default_factory=CurriculumCfg)
    randomisation: RandomisationCfg = field(default_factory=RandomisationCfg)
    reward: RewardCfg = field(default_factory=RewardCfg)
    physics: PhysicsCfg = field(default_factory=PhysicsCfg)
    camera: CameraCfg = field(default_factory=CameraCfg)
    cuda_graphs: bool = True
    """Record the kernels of observations and rewards once and replay them; on CUDA only."""


def teacher_env() -> EnvCfg:
    """Training of the teacher."""
    return EnvCfg()


def student_env() -> EnvCfg:
    """Training of a student: cameras, and difficulties spread evenly."""
    cfg = EnvCfg(camera=CameraCfg(enabled=True), curriculum=CurriculumCfg(enabled=False))
    cfg.terrain.difficulty_high = 1.3
    return cfg


def evaluation_env(
    *,
    num_envs: int = 256,
    types: list[str] | None = None,
    difficulty: tuple[float, float] = (0.0, 1.0),
    seed: int = 1,
) -> EnvCfg:
    """The published evaluation: difficulties drawn uniformly, robots spread evenly over types.

    Friction, pushes and the speed asked for vary; masses, gains and sensors are true. Every robot
    has a tile of its own, up to 64 a type.
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
        joint_pos_bias=0.0,
        gyro_bias=0.0,
        joint_pos_noise=0.0,
        joint_vel_noise=0.0,
        gyro_noise=0.0,
        gravity_noise=0.0,
        scan_noise_m=0.0,
        scan_bias_m=0.0,
    )
    return cfg


def play_env() -> EnvCfg:
    """A few robots to look at: no pushes."""
    cfg = evaluation_env(num_envs=16)
    cfg.randomisation.enabled = False
    return cfg
