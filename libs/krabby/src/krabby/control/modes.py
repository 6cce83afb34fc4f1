"""What the loop does next: a pure function of what it does now and what it knows.

    SILENT ──fresh state──► PASSIVE ──armed──► STAND_UP ──done──► POLICY
      ▲                        ▲                   │                │ sit
      └──state too old─────────┤                   └──► SIT_DOWN ◄──┘
        (from anywhere)        └──not armed, done, HAL restarted──┘

NO_LEASE, from anywhere but SILENT, while another writer holds the command lease.

The gate in the HAL decides what is safe; this machine only asks for what makes sense.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from krabby_proto import SafetyState

from krabby.control.config import FreshnessCfg

__all__ = ["Mode", "Situation", "holds", "next_mode"]


class Mode(Enum):
    """What the loop sends."""

    SILENT = "silent"
    """Nothing: the state is missing or too old to act on."""
    PASSIVE = "passive"
    """The measured pose while not armed, the last target while armed, marked as a hold: the gate
    keeps its own target, so nothing moves."""
    STAND_UP = "stand_up"
    """The way from the measured pose to standing."""
    POLICY = "policy"
    """What the policy says."""
    SIT_DOWN = "sit_down"
    """The way from the measured pose to resting on the belly."""
    NO_LEASE = "no_lease"
    """The measured pose, which the HAL refuses: another writer holds the command lease."""


class Situation(NamedTuple):
    """Inputs of the state machine, once a tick."""

    state_age_s: float
    """Age of the newest state [s]; infinite before the first."""
    safety: SafetyState
    """The gate's state as of its last answer."""
    has_lease: bool
    """False after the HAL refused a command because another writer holds the lease."""
    hal_checked: bool
    """Whether this HAL's hello was checked, and it has not restarted or reset since."""
    stand_requested: bool
    """What the operator wants; False: to rest."""
    trajectory_done: bool
    """Whether the stand-up or sit-down under way has come to its end."""


def next_mode(mode: Mode, now: Situation, limits: FreshnessCfg) -> Mode:
    """The mode of this tick, given that of the last one."""
    if now.state_age_s >= limits.state_stop_s:
        return Mode.SILENT
    if not now.has_lease:
        return Mode.NO_LEASE
    if not now.hal_checked or not now.safety.following:
        return Mode.PASSIVE
    match mode:
        case Mode.SILENT | Mode.PASSIVE | Mode.NO_LEASE:
            # Standing up begins with a gate that follows, not with one that has just been late.
            ready = now.stand_requested and now.safety is SafetyState.ACTIVE
            return Mode.STAND_UP if ready else Mode.PASSIVE
        case Mode.STAND_UP if not now.stand_requested:
            return Mode.SIT_DOWN
        case Mode.STAND_UP if now.trajectory_done:
            return Mode.POLICY
        case Mode.POLICY if not now.stand_requested:
            return Mode.SIT_DOWN
        case Mode.SIT_DOWN if now.stand_requested:
            return Mode.STAND_UP
        case Mode.SIT_DOWN if now.trajectory_done:
            return Mode.PASSIVE
    return mode


def holds(now: Situation, limits: FreshnessCfg) -> bool:
    """Whether the state is too old to compute from, so that the last target is sent again."""
    return now.state_age_s >= limits.state_hold_s
