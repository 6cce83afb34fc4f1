"""What the game loop measures, besides what every process does."""

from __future__ import annotations

from krabby.runtime.metrics import (
    COMMAND_REJECTED,
    LOOP_WORK,
    MESSAGE_AGE,
    OBSERVATION_AGE,
    STREAM_DISCARDED,
    STREAM_GAPS,
    STREAM_INVALID,
    STREAM_OVERSIZED,
    STREAM_RECEIVED,
    WORK_BUCKETS,
    children,
)
from krabby_proto import CommandStatus
from prometheus_client import Counter, Gauge, Histogram, Info

from krabby_gameloop.modes import Mode
from krabby_gameloop.nav import REFUSAL_REASONS

_SUBSCRIBED = ("state", "features", "nav")
_STAGES = ("receive", "observe", "infer", "send")

MODE = children(
    Gauge("krabby_gameloop_mode", "1 for what the loop does now", ["mode"]),
    [mode.value for mode in Mode],
)
MODE_ENTERED = children(
    Gauge(
        "krabby_gameloop_mode_entered_seconds",
        "CLOCK_MONOTONIC when the loop last entered the mode; 0 for never",
        ["mode"],
    ),
    [mode.value for mode in Mode],
)
HOLDS = Counter("krabby_gameloop_holds_total", "Ticks that held the last target: state too old")
LEASE_LOSSES = Counter(
    "krabby_gameloop_lease_losses_total", "Times another writer had taken the command lease"
)
BLIND = Gauge("krabby_gameloop_blind", "1 while the blind policy walks in place of the chosen one")
BLIND_SWITCHES = Counter("krabby_gameloop_blind_switches_total", "Times the blind policy took over")
BAD_OUTPUTS = Counter("krabby_policy_bad_outputs_total", "Policy outputs that were not finite")
POLICY_INFO = Info("krabby_policy", "The policy that was chosen to walk with")
INFERENCE = Histogram(
    "krabby_inference_seconds", "One step of the policy network", ["policy"], buckets=WORK_BUCKETS
)
NAV_COMMAND = children(
    Gauge("krabby_nav_command", "What the policy is asked to walk: m/s, m/s, rad/s", ["axis"]),
    ("vx", "vy", "yaw_rate"),
)
NAV_REFUSED = children(
    Counter("krabby_nav_refused_total", "Walking commands left out, by reason", ["reason"]),
    REFUSAL_REASONS,
)

WORK = children(LOOP_WORK, _STAGES)
OBSERVED = children(OBSERVATION_AGE, ("state", "features"))
AGE = children(MESSAGE_AGE, ("state", "features"))
REJECTED = children(
    COMMAND_REJECTED,
    [status.name.lower() for status in CommandStatus if status is not CommandStatus.APPLIED],
)
STREAM_COUNTERS = {
    "received": children(STREAM_RECEIVED, _SUBSCRIBED),
    "discarded": children(STREAM_DISCARDED, _SUBSCRIBED),
    "gaps": children(STREAM_GAPS, _SUBSCRIBED),
    "invalid": children(STREAM_INVALID, _SUBSCRIBED),
    "oversized": children(STREAM_OVERSIZED, _SUBSCRIBED),
}
