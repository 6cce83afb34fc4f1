"""Configuration of jetson-hal: defaults in code, then one TOML file, then the command line."""

from typing import Annotated, Literal

from krabby.config import Config, check
from krabby.drivers.can.config import CanCfg
from krabby.hal.config import HalCfg, HalEndpointsCfg
from krabby.runtime.tracing import TracingCfg
from krabby_proto import runtime_folder
from msgspec import Meta

__all__ = [
    "ContactsCfg",
    "CycleCfg",
    "EndpointsCfg",
    "EstopCfg",
    "ImuCfg",
    "JetsonHalCfg",
]


class CycleCfg(Config, frozen=True, kw_only=True):
    """One exchange with all drives and what follows from it."""

    reply_s: Annotated[float, Meta(ge=0.0002, le=0.02)] = 0.004
    """How long after its begin a cycle waits for replies; then it continues without [s]."""
    fresh_s: Annotated[float, Meta(ge=0.005, le=0.03)] = 0.02
    """A joint whose last reply is older makes the measurement incomplete: no state is published,
    and the gate holds 30 ms after the last complete one [s]."""
    damp_on_exit_s: Annotated[float, Meta(ge=0, le=2)] = 1.0
    """At the end the joints sink damped for at most this long, until the drives are switched
    off [s]."""


class ImuCfg(Config, frozen=True, kw_only=True):
    """The inertial sensor."""

    port: str = ""
    """Port in place of the one in hardware.toml: a device, a pty, socket://host:port."""
    silent_after_s: Annotated[float, Meta(ge=0.01, le=0.1)] = 0.03
    """Without a sample for this long the IMU has failed [s]."""
    settle_s: Annotated[float, Meta(ge=0.05, le=10)] = 0.5
    """At start it is listened to for this long before it is believed [s]."""


class ContactsCfg(Config, frozen=True, kw_only=True):
    """Loads at which a foot is taken to touch down and to lift off, told from its leg's torques."""

    on_n: Annotated[float, Meta(ge=1, le=500)] = 20.0
    """Touches down from this load on [N]."""
    off_n: float = 10.0
    """Lifts off below this load [N]."""

    def __post_init__(self) -> None:
        check(0.0 < self.off_n <= self.on_n, "off_n", self.off_n, f"above 0 to on_n = {self.on_n}")


class EstopCfg(Config, frozen=True, kw_only=True):
    """Input of the emergency stop: a normally closed contact between a GPIO line and ground."""

    chip: str = ""
    """GPIO chip, /dev/gpiochip0 for example; empty for no input."""
    line: str = ""
    """Number or name of the line, as gpioinfo prints it."""
    bias: Literal["pull_up", "as_is"] = "pull_up"
    """Pull-up of the chip, or as_is with a resistor on the board."""
    confirm: Annotated[int, Meta(ge=1, le=10)] = 2
    """Readings in a row, one each cycle, that must find the contact open."""

    def __post_init__(self) -> None:
        check(
            bool(self.line) or not self.chip,
            "line",
            self.line,
            f"the number or name of a line of {self.chip}; gpioinfo lists them",
        )


class EndpointsCfg(HalEndpointsCfg, frozen=True, kw_only=True):
    """Endpoints of the streams: ipc:///path, or tcp://127.0.0.1:PORT. All are bound but raw."""

    raw: str = f"ipc://{runtime_folder()}/raw"
    """Connected: where the camera process publishes its depth images; empty for none."""


class JetsonHalCfg(HalCfg, frozen=True, kw_only=True):
    """HAL server over real drives and an IMU."""

    robot: str = ""
    """Path of robot.toml; empty for the one in the assets folder."""
    rate_hz: Annotated[float, Meta(ge=0, le=1000)] = 0.0
    """Exchanges per second with every drive, at any rate of commands; 0 for hardware.toml's.
    A whole multiple of 100."""
    can: CanCfg = CanCfg()
    cycle: CycleCfg = CycleCfg()
    imu: ImuCfg = ImuCfg()
    contacts: ContactsCfg = ContactsCfg()
    estop: EstopCfg = EstopCfg()
    endpoints: EndpointsCfg = EndpointsCfg()
    tracing: TracingCfg = TracingCfg()
