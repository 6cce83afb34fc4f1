"""Configuration of locomotion control."""

from typing import Annotated, Any

from krabby_proto.streams import NAV, STATE
from msgspec import Meta

from krabby.config import Config, check, to_dict
from krabby.course.timing import CONTROL_HZ
from krabby.runtime.config import ServiceCfg

__all__ = ["DEFAULT_POLICY", "ControlCfg", "FreshnessCfg", "NavCfg", "control_keys"]

DEFAULT_POLICY = "parkour"
"""Policy of the game loop and of `krabby up` where none is named; the containers follow `.env`."""

Age = Annotated[float, Meta(ge=0.001, le=10)]
Limit = Annotated[float, Meta(ge=0, le=20)]


class FreshnessCfg(Config, frozen=True, kw_only=True):
    """Largest age of each input, counted from the sensor's capture."""

    state_hold_s: Age = STATE.max_age_s
    """State older than this: the last target is held [s]."""
    state_stop_s: Age = 0.1
    """State older than this: no more commands, the HAL's deadman damps the robot [s]."""
    features_recover_s: Age = 0.5
    """After the blind policy had to walk, features must have been fresh for this long before the
    chosen one takes over again [s]."""
    nav_s: Age = NAV.max_age_s
    """Walking commands older than this are ignored; the robot then stands still [s]."""
    operator_s: Age = 1.0
    """For this long after an operator's message was read, a mission's is ignored [s]."""

    def __post_init__(self) -> None:
        check(
            self.state_hold_s <= self.state_stop_s,
            "state_hold_s",
            self.state_hold_s,
            f"at most state_stop_s = {self.state_stop_s}",
        )


class NavCfg(Config, frozen=True, kw_only=True):
    """Limits on walking commands of operators and missions alike."""

    max_vx: Limit = 1.0
    """[m/s]"""
    max_vy: Limit = 0.4
    """[m/s]"""
    max_yaw_rate: Limit = 0.8
    """[rad/s]"""
    max_acc: Limit = 1.0
    """Fastest change of vx and vy [m/s²]."""
    max_yaw_acc: Limit = 2.0
    """Fastest change of yaw_rate [rad/s²]."""


class ControlCfg(ServiceCfg, frozen=True, kw_only=True):
    """Keys of a process that controls locomotion."""

    policy: str = DEFAULT_POLICY
    """Policy bundle to walk with: a name under assets/policies, or a folder."""
    blind_policy: str = "gait"
    """Bundle that walks while features are stale; it must need none. Empty: stand still instead."""
    rate_hz: Annotated[float, Meta(ge=1, le=1000)] = CONTROL_HZ
    """Control rate; a bundle is made for one rate and refuses any other."""
    blend_s: Annotated[float, Meta(ge=0, le=5)] = 0.3
    """Over this long a newly chosen policy takes over from the last target [s]."""
    max_bad_outputs: Annotated[int, Meta(ge=1, le=1000)] = 3
    """Outputs in a row that are not finite before the blind policy takes over for good."""
    auto_stand: bool = True
    """Stand up after every arm, unless the last request was `sit`; otherwise each arm needs a
    new request `stand`."""
    freshness: FreshnessCfg = FreshnessCfg()
    nav: NavCfg = NavCfg()


def control_keys(cfg: ControlCfg) -> dict[str, Any]:
    """The keys of `ControlCfg` alone, of a configuration that may have more; values as in JSON."""
    values = to_dict(cfg)
    return {name: values[name] for name in ControlCfg.__struct_fields__}
