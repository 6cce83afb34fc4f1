"""The parts of a tick: sockets, walking commands, decision, reply, and what is measured of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import structlog
from krabby.control.controller import JointCommand, LocomotionController
from krabby.control.policy_manager import PolicyRunner
from krabby.runtime.metrics import COMMAND_ROUND_TRIP, COMMAND_TIMEOUTS, Quantiles, Totals
from krabby.runtime.throttle import log_every
from krabby_proto import (
    FEATURES,
    FLAG_HOLD,
    FLAG_OPERATOR,
    NAV,
    CommandReply,
    HalClient,
    LatestSubscriber,
    Message,
    clocks_differ,
)

from krabby_gameloop import metrics
from krabby_gameloop.config import EndpointsCfg
from krabby_gameloop.tape import Tape

__all__ = ["TickIO"]

log = structlog.get_logger(__name__)

_EXPOSE_TICKS = 50
"""Ticks between two updates of the slow metrics."""
_FIRST_STATE_TICKS = 100
"""Ticks for which it is no fault that no state has come yet."""
_LATEST_ANSWER = 16
"""Commands after which an answer is not waited for any more."""
_UNANSWERED = 5
"""Commands in a row without an answer that are worth a warning: after 50 ms the gate holds."""


class TickIO:
    """Open sockets around a controller; one call for each part of a tick."""

    def __init__(
        self, endpoints: EndpointsCfg, controller: LocomotionController, tape: Tape | None = None
    ) -> None:
        """Open the sockets.

        Args:
            endpoints: Where.
            controller: Decides.
            tape: The one that the controller notes its inputs on.
        """
        self.controller = controller
        self.tape = tape or Tape()
        with contextlib.ExitStack() as opened:
            enter = opened.enter_context
            self.client = enter(HalClient({"state": endpoints.state, "command": endpoints.command}))
            self.features = enter(LatestSubscriber(endpoints.features, FEATURES))
            self.nav = enter(LatestSubscriber(endpoints.nav, NAV, bind=True))
            if tape is not None:
                tape.open(endpoints)
                opened.callback(tape.close)
            self._sockets = opened.pop_all()
        self.warn = log_every(log)
        self.ticks = 0
        self._sent: dict[int, int] = {}
        """Tick of the newest commands, by sequence [ns]."""
        self._unanswered = 0
        """Commands since the last answer."""
        self.not_applied: dict[str, int] = {}
        """Commands that were answered and not applied, by status."""
        self._age = {"state": Quantiles(), "features": Quantiles()}
        self._features_age, self._round_trip = Quantiles(), Quantiles()
        self._stage = {name: Quantiles() for name in ("observe", "infer", "receive", "record")}
        self._totals = Totals()
        self._exposition = metrics.ControlMetrics(controller)
        self._oversized: dict[str, int] = {}
        self.policy_stages: list[tuple[str, int, int]] = []
        """Observation and inference of the last tick: name, begin, end [ns]; none without."""

    def close(self) -> None:
        """Bring the metrics up to date and close the sockets."""
        self._exposition.update()
        self._sockets.close()

    def take_nav(self, clock: Callable[[], int]) -> list[Message]:
        """Give the newest message of every writer to the filter; returns them."""
        messages = self.nav.newest_by_writer()
        now_ns = clock()  # after they came: none of them can honestly be from later
        for message in messages:
            refusal = self.controller.nav.receive(message, now_ns)
            if refusal is not None:
                metrics.NAV_REFUSED[refusal.reason].inc()
                self.warn.warning(
                    f"walking command refused: {clocks_differ(refusal.age_s) or refusal.reason}",
                    age_s=round(refusal.age_s, 4),
                    operator=bool(message.flags & FLAG_OPERATOR),
                    instance_id=f"{message.header.instance_id:016x}",
                    command=message.payload.tolist(),
                )
        return messages

    def decide(
        self,
        state: Message | None,
        features: Message | None,
        now_ns: int,
        swap: PolicyRunner | None,
    ) -> JointCommand | None:
        """Let the controller decide, with another policy from now on if `swap` is one."""
        if swap is not None:
            self.controller.swap_policy(swap, now_ns)
        sent = self.controller.tick(state, features, now_ns)
        runner = self.controller.policies.active
        stepped = runner if sent is not None and runner.infer_s else None
        self.tape.decided(self.controller, state, features, now_ns, sent, stepped)
        self._exposition.note_tick(now_ns)
        self.policy_stages.clear()
        if stepped is not None:
            self._note_stages(stepped)
            self.observe("observe", runner.observe_s)
            self.observe("infer", runner.infer_s)
            self._exposition.note_inference(runner)
            runner.infer_s = 0.0
        if sent is None and (state is not None or self.ticks >= _FIRST_STATE_TICKS):
            age_s = None if state is None else state.age_s(now_ns)
            self.warn.warning("no fresh state, silent", age_s=age_s)
        if features is not None:
            age_s = features.age_s(now_ns)
            metrics.AGE["features"].observe(age_s)
            self._features_age.add(age_s)
        if state is not None:
            metrics.AGE["state"].observe(state.age_s(now_ns))
        self.ticks += 1
        return sent

    def _note_stages(self, runner: PolicyRunner) -> None:
        began_ns = round(runner.began_s * 1e9)
        observed_ns = began_ns + round(runner.observe_s * 1e9)
        self.policy_stages += [
            ("observe", began_ns, observed_ns),
            ("infer", observed_ns, observed_ns + round(runner.infer_s * 1e9)),
        ]

    def send(self, sent: JointCommand, now_ns: int | None, deadline_s: float) -> bool:
        """Send a command and handle the newest reply; False when there was none to this one.

        `now_ns` stamps it; the client's idea of the HAL's clock when None.
        """
        started = time.perf_counter()
        reply = self.client.send_command(
            sent.joint_pos,
            capture_ns=sent.state.capture_ns,
            publish_ns=now_ns,
            deadline_s=deadline_s,
            flags=FLAG_HOLD if sent.hold else 0,
        )
        elapsed_s = time.perf_counter() - started
        metrics.WORK["send"].observe(elapsed_s)
        sequence = self.client.sequence
        self._sent[sequence] = self.controller.permission.sent_ns
        self._sent.pop(sequence - _LATEST_ANSWER, None)
        if reply is None:
            COMMAND_TIMEOUTS.inc()
            self._unanswered += not self.client.far  # else it is under way
            if self._unanswered >= _UNANSWERED:
                self.warn.warning("no answer to commands", commands=self._unanswered)
            return False
        self._unanswered = 0
        # From another host the answer to an earlier command may be the newest there is.
        current = reply.request_sequence == sequence
        if current:
            COMMAND_ROUND_TRIP.observe(elapsed_s)
            self._round_trip.add(elapsed_s)
        sent_ns = self._sent.get(reply.request_sequence)
        if sent_ns is not None:
            self.controller.handle_reply(reply, sent_ns)
        if reply.applied and not current:
            return False
        if reply.applied:
            self._count_age("state", reply, sent.state)
            if sent.features is not None:
                self._count_age("features", reply, sent.features)
        else:
            name = reply.status_name
            self.not_applied[name] = self.not_applied.get(name, 0) + 1
            if name in metrics.REJECTED:
                metrics.REJECTED[name].inc()
        return current

    def _count_age(self, stream: str, reply: CommandReply, message: Message) -> None:
        age_s = message.age_s(reply.applied_ns)
        metrics.OBSERVED[stream].observe(age_s)
        self._age[stream].add(age_s)

    def observe(self, stage: str, elapsed_s: float) -> None:
        """Count the time that a stage of the tick took [s]."""
        metrics.WORK[stage].observe(elapsed_s)
        self._stage[stage].add(elapsed_s)

    def record(self) -> None:
        """Publish what the tick took in and decided, once its command has left."""
        began_s = time.perf_counter()
        self.tape.publish(self.controller, self.client.sequence)
        self.observe("record", time.perf_counter() - began_s)

    def expose(self) -> None:
        """Bring the slow metrics up to date, every 50 ticks."""
        if self.ticks % _EXPOSE_TICKS:
            return
        streams = {"state": self.client.state, "features": self.features, "nav": self.nav}
        for name, subscriber in streams.items():
            for what, counters in metrics.STREAM_COUNTERS.items():
                self._totals.show(counters[name], getattr(subscriber, what))
            total = subscriber.oversized
            if total > self._oversized.get(name, 0):
                self._oversized[name] = total
                self.warn.warning("messages with too many frames dropped", stream=name, total=total)
        self._exposition.update()

    def summary(self) -> dict[str, object]:
        """Ages, round trips and refusals of the run."""
        stages: dict[str, float] = {}
        for stage, quantiles in self._stage.items():
            stages |= quantiles.summary_ms(stage)
        return {
            **self._age["state"].summary_ms("obs_age"),
            **self._features_age.summary_ms("features_age"),
            **self._age["features"].summary_ms("features_age_at_actuation"),
            **self._round_trip.summary_ms("command_rtt"),
            **stages,
            "command_timeouts": self.client.timeouts,
            "not_applied": self.not_applied,
        }
