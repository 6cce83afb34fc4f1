"""Configuration of locomotion control."""

import dataclasses

from krabby_proto.streams import FEATURES, NAV, STATE

from krabby.runtime.config import check, check_range

__all__ = ["ControlCfg", "FreshnessCfg", "NavCfg"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FreshnessCfg:
    """How old inputs may be; ages count from the sensor's capture."""

    state_hold_s: float = STATE.max_age_s
    """State older than this: the last target is held [s]."""
    state_stop_s: float = 0.1
    """State older than this: no more commands, the HAL's deadman damps the robot [s]."""
    features_s: float = FEATURES.max_age_s
    """Features older than this: the blind policy walks [s]."""
    features_recover_s: float = 0.5
    """Features must have been fresh for this long before they are trusted again [s]."""
    nav_s: float = NAV.max_age_s
    """Walking commands older than this are left out, and end in standing still [s]."""
    operator_s: float = 1.0
    """For this long after an operator's message was read a mission's is ignored [s]."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_range(self, field.name, minimum=0.001, maximum=10.0)
        check(
            self.state_hold_s <= self.state_stop_s,
            "state_hold_s",
            self.state_hold_s,
            f"at most state_stop_s = {self.state_stop_s}",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class NavCfg:
    """Limits on walking commands of operators and missions alike."""

    max_vx: float = 1.0
    """[m/s]"""
    max_vy: float = 0.4
    """[m/s]"""
    max_yaw_rate: float = 0.8
    """[rad/s]"""
    max_acc: float = 1.0
    """Fastest change of vx and vy [m/s²]."""
    max_yaw_acc: float = 2.0
    """Fastest change of yaw_rate [rad/s²]."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_range(self, field.name, minimum=0.0, maximum=20.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlCfg:
    """What `LocomotionController` and `PolicyManager` are configured with."""

    policy: str = "gait"
    """Policy bundle to walk with: a name under assets/policies, or a folder."""
    blind_policy: str = "gait"
    """Bundle that walks while features are stale; it must need none. Empty: stand still instead."""
    rate_hz: float = 100.0
    """Control rate; bundles are made for one rate and refuse another."""
    blend_s: float = 0.3
    """Over this long a newly chosen policy takes over from the last target [s]."""
    max_bad_outputs: int = 3
    """Outputs in a row that are not finite before the blind policy takes over for good."""
    auto_stand: bool = True
    """Stand up by itself after every arm, unless the last request was `sit`; otherwise each
    arm needs a new request `stand`."""
    freshness: FreshnessCfg = dataclasses.field(default_factory=FreshnessCfg)
    nav: NavCfg = dataclasses.field(default_factory=NavCfg)

    def __post_init__(self) -> None:
        check_range(self, "rate_hz", minimum=1.0, maximum=1000.0)
        check_range(self, "blend_s", minimum=0.0, maximum=5.0)
        check_range(self, "max_bad_outputs", minimum=1, maximum=1000)
