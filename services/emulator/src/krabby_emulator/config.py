"""Configuration of the emulated robot: sim-hal's course, camera and mission, and what drives are.

The drives' figures are a model, not a datasheet: they are chosen so that the rating of `robot.toml`
is what the model bears without end.
"""

from typing import Annotated

from krabby.config import Config, NonNegative, Port, Share, check
from krabby.drivers.can.config import CanCfg
from krabby.mujoco.config import ColourCfg, PlantedCfg, StageCfg
from krabby_proto import default_endpoints, runtime_folder
from msgspec import Meta

__all__ = ["DriveCfg", "EmulatorCfg", "EndpointsCfg", "ImuCfg", "SupplyCfg"]

_ENDPOINTS = default_endpoints()


class DriveCfg(Config, frozen=True, kw_only=True):
    """What is inside every drive, seen at the joint."""

    coulomb_friction: NonNegative = 0.6
    """Dry friction of gear and seals [N·m]: half a percent of the peak torque."""
    viscous_friction: NonNegative = 0.05
    """Friction that grows with speed [N·m·s/rad]."""
    off_damping: NonNegative = 10.0
    """Braking by the shorted winding of a drive that is off or timed out [N·m·s/rad]."""
    motor_constant: Annotated[float, Meta(ge=1e-6)] = 4.0
    """Torque per root of copper loss [N·m/√W]: 40 N·m, the rating, cost 100 W."""
    winding_capacity: Annotated[float, Meta(ge=1e-6)] = 60.0
    """Heat that warms the winding by one degree [J/K]."""
    winding_to_housing: Annotated[float, Meta(ge=1e-6)] = 0.3
    """[K/W]; with the capacity a time constant of 18 s."""
    housing_capacity: Annotated[float, Meta(ge=1e-6)] = 600.0
    """[J/K]"""
    housing_to_air: Annotated[float, Meta(ge=1e-6)] = 0.5
    """[K/W]; 100 W without end make 25 + 100 · 0.8 = 105 °C in the winding."""
    heat_speed: Annotated[float, Meta(ge=1, le=100)] = 1.0
    """How many times faster everything warms up and cools: at 20 a walk of 60 s heats the drives as
    20 minutes do."""
    ambient_c: float = 25.0
    """Air around the robot [°C]."""
    winding_limit_c: float = 130.0
    """The drive switches itself off above this [°C]."""
    encoder_counts: Annotated[int, Meta(ge=2)] = 16384
    """Per turn of the joint: 14 bits, as dual-encoder joint motors have."""
    position_noise: NonNegative = 1e-4
    """Standard deviation of the angle before it is quantised [rad]."""
    velocity_noise: NonNegative = 0.02
    """Standard deviation of the velocity [rad/s]."""
    effort_noise: NonNegative = 0.2
    """Standard deviation of the torque, which is measured as a current [N·m]."""
    boot_s: NonNegative = 0.25
    """A drive that was reset is mute for this long [s]."""

    def __post_init__(self) -> None:
        check(
            self.winding_limit_c > self.ambient_c,
            "winding_limit_c",
            self.winding_limit_c,
            f"more than ambient_c, {self.ambient_c:g}",
        )


class SupplyCfg(Config, frozen=True, kw_only=True):
    """The battery that all drives share."""

    voltage: Annotated[float, Meta(ge=1)] = 48.0
    """Without load [V]; the no-load speed of robot.toml holds here."""
    resistance: Share = 0.06
    """Of battery and cables [Ω]: 50 A take 3 V."""
    idle_power: NonNegative = 40.0
    """What the electronics of all drives take [W]."""
    undervoltage: float = 24.0
    """Drives switch off below this [V]."""

    def __post_init__(self) -> None:
        check(
            0.0 <= self.undervoltage < self.voltage,
            "undervoltage",
            self.undervoltage,
            f"less than voltage, {self.voltage:g}",
        )


class ImuCfg(Config, frozen=True, kw_only=True):
    """The IMU: a VN-100 as far as its bytes go."""

    listen: str = "tcp://127.0.0.1:6022"
    """tcp://address:port, read as socket://address:port; or pty, whose path is logged."""
    gyro_noise: NonNegative = 0.005
    """Standard deviation [rad/s]."""
    gyro_bias: NonNegative = 0.001
    """Standard deviation of the bias, drawn once for each axis [rad/s]."""
    accelerometer_noise: NonNegative = 0.05
    """Standard deviation [m/s²]."""
    attitude_noise: NonNegative = 0.001
    """Standard deviation about every axis [rad]."""
    temperature_c: float = 35.0
    """Reported [°C]."""


class EndpointsCfg(Config, frozen=True, kw_only=True):
    """Endpoints of the streams: ipc:///path, or tcp://127.0.0.1:PORT. Bound but nav and state."""

    raw: str = f"ipc://{runtime_folder()}/raw"
    """Bound: depth images, as the camera service publishes them on the robot."""
    truth: str = _ENDPOINTS["truth"]
    """Bound: what only a simulator knows; for evaluation."""
    fault: str = f"ipc://{runtime_folder()}/fault"
    """Bound: what breaks and mends the robot; empty for none."""
    nav: str = _ENDPOINTS["nav"]
    """Connected: where the game loop listens for walking commands."""
    state: str = _ENDPOINTS["state"]
    """Connected with colour.enabled: the HAL's, for the joint angles of colour images."""
    colour: str = _ENDPOINTS["colour"]
    """Bound with colour.enabled: what the camera sees in colour, as the camera service publishes
    it on the robot."""


class EmulatorCfg(StageCfg, frozen=True, kw_only=True):
    """The robot's hardware, emulated at the wire."""

    metrics_port: Port = 9105
    auto_reset: bool = False
    """Put a robot that fell back 2 s later, as sim-hal does; else it lies there."""
    planted: PlantedCfg = PlantedCfg()
    can: CanCfg = CanCfg()
    drive: DriveCfg = DriveCfg()
    supply: SupplyCfg = SupplyCfg()
    imu: ImuCfg = ImuCfg()
    colour: ColourCfg = ColourCfg()
    endpoints: EndpointsCfg = EndpointsCfg()

    def __post_init__(self) -> None:
        self.colour.check_endpoint(self.endpoints.colour)
