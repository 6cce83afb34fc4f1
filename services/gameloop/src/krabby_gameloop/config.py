"""Configuration of the game loop."""

import dataclasses

from krabby.control.config import ControlCfg
from krabby.policy.tensorrt.config import InferenceCfg
from krabby.runtime.app import ServiceCfg
from krabby.runtime.config import check_range
from krabby_proto import default_endpoints

__all__ = ["EndpointsCfg", "GameloopCfg"]

_ENDPOINTS = default_endpoints()


@dataclasses.dataclass(frozen=True, kw_only=True)
class EndpointsCfg:
    """Where the streams are: tcp://, ipc:// or inproc://."""

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class GameloopCfg(ControlCfg, ServiceCfg):
    """The 100 Hz policy loop."""

    metrics_port: int = 9103
    """TCP port of the Prometheus exposition and of /healthz; 0 for none."""
    robot: str = ""
    """Path of robot.toml; empty for the one in the assets folder."""
    phase_s: float = 0.0015
    """Where in the period of the host's clock a tick begins [s]: a little after the HAL's state."""
    state_wait_s: float = 0.005
    """How long a tick waits for the state of its period when the HAL is late [s]; acting on the
    one before instead would make it 5 ms older."""
    command_deadline_s: float = 0.004
    """Longest wait for the HAL's answer to a command [s]."""
    sit_on_exit_s: float = 2.5
    """On SIGTERM or Ctrl-C sit down first, for at most this long [s]; 0 just stops commanding."""
    endpoints: EndpointsCfg = dataclasses.field(default_factory=EndpointsCfg)
    inference: InferenceCfg = dataclasses.field(default_factory=InferenceCfg)

    def __post_init__(self) -> None:
        ServiceCfg.__post_init__(self)
        ControlCfg.__post_init__(self)
        check_range(self, "phase_s", minimum=0.0, maximum=1.0)
        check_range(self, "state_wait_s", minimum=0.0, maximum=0.5 / self.rate_hz)
        check_range(self, "command_deadline_s", minimum=0.0005, maximum=1.0)
        check_range(self, "sit_on_exit_s", minimum=0.0, maximum=2.5)
