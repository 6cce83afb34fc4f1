"""What the game loop measures, besides what every process does."""

from __future__ import annotations

from krabby.control.controller import LocomotionController
from krabby.control.modes import Mode
from krabby.control.nav import AXES, REFUSAL_REASONS
from krabby.control.policy_manager import SIGHTS, PolicyRunner
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
    Totals,
    children,
)
from krabby_proto import CommandStatus
from prometheus_client import Counter, Gauge, Histogram, Info

_SUBSCRIBED = ("state", "features", "nav")
_STAGES = ("receive", "observe", "infer", "send", "record")

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
SIGHT = children(
    Gauge("krabby_gameloop_sight", "1 for what the chosen policy acts on now", ["sight"]), SIGHTS
)
FEATURES_LIMIT = Gauge(
    "krabby_policy_features_age_limit_seconds",
    "Oldest features that the chosen policy acts on; 0 for one that reads none",
)
BAD_OUTPUTS = Counter("krabby_policy_bad_outputs_total", "Policy outputs that were not finite")
POLICY_INFO = Info("krabby_policy", "The policy that was chosen to walk with")
INFERENCE = Histogram(
    "krabby_inference_seconds", "One step of the policy network", ["policy"], buckets=WORK_BUCKETS
)
NAV_COMMAND = children(
    Gauge("krabby_nav_command", "What the policy is asked to walk: m/s, m/s, rad/s", ["axis"]),
    AXES,
)
NAV_CLAMPED = children(
    Counter(
        "krabby_nav_clamped_ticks_total",
        "Ticks that were asked for more than configuration or policy allow, by axis",
        ["axis"],
    ),
    AXES,
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


class ControlMetrics:
    """Hands what the controller counts to the metrics.

    Mode, policy, blindness and sight are compared in every tick, so that their gauges and the time
    stamp of a mode are exact; the totals follow a few times a second.
    """

    def __init__(self, controller: LocomotionController) -> None:
        """Watch a controller; its mode and its policy show from now on."""
        self._controller = controller
        self._totals = Totals()
        self._mode = controller.mode
        self._blind = False
        BLIND.set(False)
        self._sight = controller.policies.sight
        SIGHT[self._sight].set(1.0)
        self._chosen: PolicyRunner | None = None
        self._inference: dict[str, Histogram] = {}
        MODE[self._mode.value].set(1.0)
        self._note_policies()

    def note_tick(self, now_ns: int) -> None:
        """Bring the gauges up to date after a tick at `now_ns`; a few comparisons as a rule."""
        mode = self._controller.mode
        if mode is not self._mode:
            MODE[self._mode.value].set(0.0)
            MODE[mode.value].set(1.0)
            MODE_ENTERED[mode.value].set(now_ns * 1e-9)
            self._mode = mode
        self._note_policies()

    def note_inference(self, runner: PolicyRunner) -> None:
        """Count the step that the runner has just made."""
        name = runner.bundle.name
        if name not in self._inference:
            self._inference[name] = INFERENCE.labels(name)
        self._inference[name].observe(runner.infer_s)

    def update(self) -> None:
        """Bring the totals and the walking command up to date."""
        controller, policies = self._controller, self._controller.policies
        self._totals.show(HOLDS, controller.holds)
        self._totals.show(LEASE_LOSSES, controller.permission.lease_losses)
        self._totals.show(BLIND_SWITCHES, policies.blind_switches)
        self._totals.show(BAD_OUTPUTS, policies.bad_outputs)
        for gauge, value in zip(NAV_COMMAND.values(), controller.nav.command, strict=True):
            gauge.set(value)
        for axis, steps in controller.nav.clamped_steps.items():
            self._totals.show(NAV_CLAMPED[axis], steps)

    def _note_policies(self) -> None:
        policies = self._controller.policies
        if policies.blind is not self._blind:
            self._blind = policies.blind
            BLIND.set(self._blind)
        if policies.sight != self._sight:
            SIGHT[self._sight].set(0.0)
            SIGHT[policies.sight].set(1.0)
            self._sight = policies.sight
        if policies.chosen is not self._chosen:
            self._chosen = policies.chosen
            bundle = self._chosen.bundle
            FEATURES_LIMIT.set(bundle.features_age_s if self._chosen.needs_features else 0.0)
            hashes = {name.removesuffix(".onnx"): digest for name, digest in bundle.hashes.items()}
            POLICY_INFO.info({"name": bundle.name, "kind": bundle.kind, **hashes})
