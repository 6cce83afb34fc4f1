"""Configuration of the game loop."""

from typing import Annotated

from krabby.config import Config, NonNegative, Port, Share, check
from krabby.control.config import ControlCfg
from krabby.policy.tensorrt.config import InferenceCfg
from krabby.runtime.tracing import TracingCfg
from krabby_proto import default_endpoints
from msgspec import Meta

__all__ = ["EndpointsCfg", "GameloopCfg"]

_ENDPOINTS = default_endpoints()


class EndpointsCfg(Config, frozen=True, kw_only=True):
    """Endpoints of the streams: ipc:///path, or tcp://127.0.0.1:PORT."""

    state: str = _ENDPOINTS["state"]
    """Connected: what the robot measures."""
    command: str = _ENDPOINTS["command"]
    """Connected: joint position targets to the HAL."""
    features: str = _ENDPOINTS["features"]
    """Connected: what the camera service sees."""
    nav: str = _ENDPOINTS["nav"]
    """Bound: walking commands from a person or a mission."""
    control: str = _ENDPOINTS["control"]
    """Bound: stand, sit, policy, status."""
    ticks: str = ""
    """Bound: what each tick took in and decided, for recorders; empty for the socket `ticks` beside
    `control`, or for none where that is no Unix socket."""


class GameloopCfg(ControlCfg, frozen=True, kw_only=True):
    """The 100 Hz policy loop."""

    metrics_port: Port = 9103
    robot: str = ""
    """Path of robot.toml; empty for the one in the assets folder."""
    phase_s: Share = 0.0015
    """Where in the period of the host's clock a tick begins [s]: a little after the HAL's state."""
    state_wait_s: NonNegative = 0.005
    """How long a tick waits for the state of its period when the HAL is late [s]; acting on the
    one before instead would make it 5 ms older."""
    command_deadline_s: Annotated[float, Meta(ge=0.0005, le=1)] = 0.004
    """Longest wait for the HAL's answer to a command [s]."""
    sit_on_exit_s: Annotated[float, Meta(ge=0, le=2.5)] = 2.5
    """On SIGTERM or Ctrl-C sit down first, for at most this long [s]; 0 just stops commanding."""
    endpoints: EndpointsCfg = EndpointsCfg()
    inference: InferenceCfg = InferenceCfg()
    tracing: TracingCfg = TracingCfg()

    def __post_init__(self) -> None:
        half = 0.5 / self.rate_hz
        check(
            self.state_wait_s <= half,
            "state_wait_s",
            self.state_wait_s,
            f"at most half a period, {half:g}",
        )
