"""Configuration of every robot simulated in MuJoCo: sim-hal, the emulator and evaluation."""

from typing import Annotated, Literal

from msgspec import Meta

from krabby.config import Config, NonNegative, Share, check
from krabby.runtime.config import ServiceCfg

__all__ = [
    "CameraCfg",
    "ColourCfg",
    "CourseCfg",
    "DegradeCfg",
    "MissionCfg",
    "PlantedCfg",
    "StageCfg",
]


class CourseCfg(Config, frozen=True, kw_only=True):
    """The course the robot stands on."""

    name: str = "flat"
    """One of flat, steps, gap, hurdle, ramps, mixed, demo."""
    difficulty: float = 0.5
    """0 is easy, 1 the hardest of the published suite."""
    seed: int = 0
    """Layout of the course."""


class CameraCfg(Config, frozen=True, kw_only=True):
    """The virtual depth camera; its optics and flaws are in robot.toml."""

    enabled: bool = True
    """Render and publish depth images."""
    see_robot: bool = False
    """Show the robot's own legs, as a real camera does. Off, because policies are trained without;
    an image takes 0.2 ms more, 2 ms more with both front legs in view."""


class ColourCfg(Config, frozen=True, kw_only=True):
    """Colour images of the robot's camera, for people and recordings.

    A process beside the loop draws them, and only while the stream is read: 80 ms of a core for one
    of 424 x 240.
    """

    enabled: bool = False
    """Offer the stream `colour`."""
    rate_hz: Annotated[float, Meta(ge=0.2, le=30)] = 5.0
    """Images per second, at most; where the process is too slow there are fewer."""
    scale: Literal[2, 4, 6] = 4
    """Pixels for each pixel of the depth image along both sides: 4 makes 424 x 240."""

    def check_endpoint(self, endpoint: str) -> None:
        """Raise `ConfigError` when the process that draws could not bind it."""
        separate = endpoint != "" and not endpoint.startswith("inproc:")
        expected = "ipc:///path or tcp://127.0.0.1:PORT, since another process binds it"
        check(separate or not self.enabled, "endpoints.colour", endpoint, expected)


class DegradeCfg(Config, frozen=True, kw_only=True):
    """Deviations of the simulated robot from robot.toml that the controller is not told of."""

    frame_drop: Share | None = None
    """Share of depth frames that never arrive, in place of robot.toml's."""
    camera_latency_s: Annotated[float, Meta(ge=0, le=1)] | None = None
    """Mean time from exposure to publication [s], in place of robot.toml's; the jitter stays."""
    depth_noise: Annotated[float, Meta(ge=0, le=100)] = 1.0
    """Factor on the standard deviation of depth."""
    camera_tilt_deg: Annotated[float, Meta(ge=-45, le=45)] = 0.0
    """Error of the mount's pitch, positive nose down [deg]."""
    camera_rate_hz: Annotated[float, Meta(ge=0.5, le=100)] | None = None
    """Exposures per second, in place of robot.toml's."""
    mass_factor: Annotated[float, Meta(ge=0.1, le=5)] = 1.0
    """Factor on mass and inertia of every body."""
    motor_strength: Annotated[float, Meta(ge=0.01, le=2)] = 1.0
    """Factor on the available torque at every speed; gains stay."""
    payload_kg: Annotated[float, Meta(ge=0, le=100)] = 0.0
    """Carried by the body, spread like its own mass [kg]."""
    friction: Annotated[float, Meta(ge=0, le=3)] | None = None
    """Coulomb friction of the feet, in place of robot.toml's; of the body at most this."""


class PlantedCfg(Config, frozen=True, kw_only=True):
    """A fault of wiring or mounting between robot and HAL, to try `krabby diagnose` on."""

    kind: Literal[
        "", "joint-sign", "joints-swapped", "degrees", "imu-rotated", "gravity-flipped", "delay",
        "gain", "camera-mirrored", "contact-stale"
    ] = ""  # fmt: skip
    """Empty: none. For a camera that looks down too far use degrade.camera_tilt_deg."""
    where: tuple[str, ...] = ()
    """Joints of joint-sign (1), joints-swapped (2), gain; legs of contact-stale; empty for all."""
    value: float | None = None
    """Angle of imu-rotated [deg] (90), time of delay [s] (0.04), factor of gain (1.5)."""
    axis: Literal["x", "y", "z"] = "z"
    """Of the base, about which imu-rotated turns the IMU."""
    term: Literal[
        "", "base_quat_w", "base_ang_vel_b", "base_lin_acc_b", "joint_pos", "joint_vel", "command",
        "state"
    ] = ""  # fmt: skip
    """What is in degrees (base_ang_vel_b), flipped (base_lin_acc_b) or late (command)."""
    feedback_only: bool = False
    """joint-sign, joints-swapped: commands reach the right drive, only measurements are wrong."""


class MissionCfg(Config, frozen=True, kw_only=True):
    """The mission, which drives the robot along the waypoints in place of an operator."""

    enabled: bool = True
    """Publish walking commands towards the next waypoint."""
    speed: Annotated[float, Meta(ge=0, le=2)] = 0.35
    """Commanded walking speed [m/s]."""
    repeat: bool = False
    """Respawn the robot at the start when the course is completed, and continue."""
    reach_m: Annotated[float, Meta(ge=0.05, le=1)] = 0.25
    """A waypoint is reached within this distance [m]."""


class StageCfg(ServiceCfg, frozen=True, kw_only=True):
    """Keys of every process that simulates the robot on a course."""

    robot: str = ""
    """Path of robot.toml; empty for the one in the assets folder."""
    course: CourseCfg = CourseCfg()
    seed: Annotated[int, Meta(ge=0)] = 0
    """Seed of the camera's noise, holes, drops and latency."""
    duration_s: NonNegative = 0.0
    """Simulated time to run [s]; 0 for no end."""
    spawn: Literal["lying", "standing"] = "lying"
    """Start and respawn with folded legs on the belly, or in the default pose on the feet."""
    camera: CameraCfg = CameraCfg()
    degrade: DegradeCfg = DegradeCfg()
    mission: MissionCfg = MissionCfg()
