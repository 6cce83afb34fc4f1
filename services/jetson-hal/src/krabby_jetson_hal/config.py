"""Configuration of jetson-hal: defaults in code, then one TOML file, then the command line."""

import dataclasses
from typing import Literal

from krabby.drivers.can.config import CanCfg
from krabby.hal.config import HalCfg, HalEndpointsCfg
from krabby.runtime.config import check, check_range

__all__ = [
    "ContactsCfg",
    "CycleCfg",
    "EndpointsCfg",
    "EstopCfg",
    "ImuCfg",
    "JetsonHalCfg",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CycleCfg:
    """One exchange with all drives and what follows from it."""

    reply_s: float = 0.004
    """How long after its begin a cycle waits for replies; then it goes on without [s]."""
    fresh_s: float = 0.02
    """A joint whose last reply is older makes the measurement incomplete: no state is published,
    and the gate holds 30 ms after the last complete one [s]."""
    damp_on_exit_s: float = 1.0
    """At the end the joints sink damped for at most this long, until the drives are switched
    off [s]."""

    def __post_init__(self) -> None:
        check_range(self, "reply_s", minimum=0.0002, maximum=0.02)
        check_range(self, "fresh_s", minimum=0.005, maximum=0.03)
        check_range(self, "damp_on_exit_s", minimum=0.0, maximum=2.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImuCfg:
    """The inertial sensor."""

    port: str = ""
    """Port in place of the one in hardware.toml: a device, a pty, socket://host:port."""
    silent_after_s: float = 0.03
    """Without a sample for this long the IMU has failed [s]."""
    settle_s: float = 0.5
    """At start it is listened to for this long before it is believed [s]."""

    def __post_init__(self) -> None:
        check_range(self, "silent_after_s", minimum=0.01, maximum=0.1)
        check_range(self, "settle_s", minimum=0.05, maximum=10.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContactsCfg:
    """Loads at which a foot is taken to touch down and to lift off, told from its leg's torques."""

    on_n: float = 20.0
    """Touches down from this load on [N]."""
    off_n: float = 10.0
    """Lifts off below this load [N]."""

    def __post_init__(self) -> None:
        check_range(self, "on_n", minimum=1.0, maximum=500.0)
        check(0.0 < self.off_n <= self.on_n, "off_n", self.off_n, f"above 0 to on_n = {self.on_n}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EstopCfg:
    """Input of the emergency stop: a normally closed contact between a GPIO line and ground."""

    chip: str = ""
    """GPIO chip, /dev/gpiochip0 for example; empty for no input."""
    line: str = ""
    """Number or name of the line, as gpioinfo prints it."""
    bias: Literal["pull_up", "as_is"] = "pull_up"
    """Pull-up of the chip, or as_is with a resistor on the board."""
    confirm: int = 2
    """Readings in a row, one each cycle, that must find the contact open."""

    def __post_init__(self) -> None:
        check(
            bool(self.line) or not self.chip,
            "line",
            self.line,
            f"the number or name of a line of {self.chip}; gpioinfo lists them",
        )
        check_range(self, "confirm", minimum=1, maximum=10)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EndpointsCfg(HalEndpointsCfg):
    """Where the streams are: tcp://, ipc:// or inproc://. All are bound but raw."""

    raw: str = "tcp://127.0.0.1:6020"
    """Connected: where the camera process publishes its depth images; empty for none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class JetsonHalCfg(HalCfg):
    """HAL server over real drives and an IMU."""

    robot: str = ""
    """Path of robot.toml; empty for the one in the assets folder."""
    rate_hz: float = 0.0
    """Exchanges per second with every drive, whatever the rate of commands; 0 for hardware.toml's.
    A whole multiple of 100."""
    can: CanCfg = dataclasses.field(default_factory=CanCfg)
    cycle: CycleCfg = dataclasses.field(default_factory=CycleCfg)
    imu: ImuCfg = dataclasses.field(default_factory=ImuCfg)
    contacts: ContactsCfg = dataclasses.field(default_factory=ContactsCfg)
    estop: EstopCfg = dataclasses.field(default_factory=EstopCfg)
    endpoints: EndpointsCfg = dataclasses.field(default_factory=EndpointsCfg)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "rate_hz", minimum=0.0, maximum=1000.0)
