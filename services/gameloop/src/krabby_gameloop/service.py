"""The process around the controller: sockets, pacing, what is measured.

Real time: an absolute grid; every tick takes the newest of everything, whatever arrived or not.
Lock-step: the HAL's clock is simulated and waits; every state is answered exactly once, with the
features and walking commands it says were published before it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
from krabby.control.controller import LocomotionController
from krabby.control.policy_manager import PolicyManager
from krabby.policy.tensorrt.backend import EngineBackend, move
from krabby.robot.description import RobotDescription
from krabby.runtime.loop import LoopStats
from krabby.runtime.metrics import COMMAND_ROUND_TRIP, COMMAND_TIMEOUTS, Quantiles, Totals
from krabby.runtime.rate import Rate
from krabby.runtime.realtime import IdleCollector
from krabby.runtime.throttle import log_every
from krabby_proto import (
    FEATURES,
    FLAG_FEATURES_DUE,
    FLAG_NAV_DUE,
    FLAG_OPERATOR,
    NAV,
    HalClient,
    LatestSubscriber,
    RequestTimeout,
    check_hello,
    make_hello,
    wait_any,
)

from krabby_gameloop import metrics
from krabby_gameloop.control_socket import ControlSocket

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from krabby.control.controller import JointCommand, Request
    from krabby.policy.network import Backend
    from krabby.runtime.app import Runtime
    from krabby_proto import CommandReply, Message

    from krabby_gameloop.config import GameloopCfg

__all__ = ["Gameloop", "state_of_period"]

log = structlog.get_logger(__name__)
T = TypeVar("T")

_HELLO_TIMEOUT_S = 0.2
_HELLO_PAUSE_NS = 500_000_000
_LOCKSTEP_WAIT_S = 0.1
_LOCKSTEP_INPUT_S = 1.0
"""Lock-step: how long to wait for features and nav that were announced before saying so, or before
going without when leaving [s, wall clock]."""
_LOCKSTEP_REPLY_S = 1.5
"""Lock-step: a HAL that waits answers at once; longer only if it is gone [s, wall clock]."""
_LOCKSTEP_GONE_S = 1.0
"""Lock-step, on leaving: a HAL that waits says its state again every 0.2 s; after this long without
one it has ended, and no robot is there to sit down [s, wall clock]."""
_HEAR_OF_ARM_S = 0.05
"""How long a request to stand waits for the gate to be seen armed before it is refused [s]."""
_EXPOSE_TICKS = 50
"""Ticks between two updates of the slow metrics."""


class Gameloop:
    """`krabby.runtime.Service`: the 100 Hz policy loop."""

    def __init__(self, cfg: GameloopCfg) -> None:
        self._cfg = cfg
        self._desc = RobotDescription.load(Path(cfg.robot) if cfg.robot else None)
        self.controller = LocomotionController(cfg, self._desc, PolicyManager(cfg, self._desc))
        self._warn = log_every(log)
        self._client: HalClient | None = None
        self._features: LatestSubscriber | None = None
        self._nav: LatestSubscriber | None = None
        self._control: ControlSocket | None = None
        self._stats: LoopStats | None = None
        self._age = {"state": Quantiles(), "features": Quantiles()}
        self._features_age = Quantiles()
        self._round_trip = Quantiles()
        self._stage = {"observe": Quantiles(), "infer": Quantiles(), "receive": Quantiles()}
        self._not_applied: dict[str, int] = {}
        self._totals = Totals()
        self._exposition = metrics.ControlMetrics(self.controller)
        self._oversized: dict[str, int] = {}
        self._next_hello_ns = 0
        self._swap_backend: Backend | None = None
        self._leave_at_ns: int | None = None
        self._ticks = 0

    def prepare(self, runtime: Runtime) -> None:
        """Put the policies where the configuration wants them: an engine may have to be built."""
        backend = move(self.controller.policies.runners, self._cfg.inference, runtime)
        # A swap happens while the robot walks: it gets an engine that is there, and builds none.
        if isinstance(backend, EngineBackend):
            self._swap_backend = backend.without_building()

    def startup(self) -> None:
        """Open every socket; nothing is expected to be there yet."""
        endpoints = self._cfg.endpoints
        self._client = HalClient({"state": endpoints.state, "command": endpoints.command})
        self._features = LatestSubscriber(endpoints.features, FEATURES)
        self._nav = LatestSubscriber(endpoints.nav, NAV, bind=True)
        self._control = ControlSocket(
            endpoints.control,
            self._desc,
            control_rate_hz=self._cfg.rate_hz,
            hello=make_hello(service="gameloop", robot=self._desc.identity),
            status=self._status,
            request=self._request,
            backend=self._swap_backend,
        )

    def run(self, runtime: Runtime) -> None:
        """Walk until told to stop."""
        theirs = self._meet(runtime)
        if theirs is None:
            return
        if theirs["clock"] == "simulated":
            self._run_lockstep(runtime)
        else:
            self._run_realtime(runtime)

    def shutdown(self) -> Mapping[str, object]:
        """Stop commanding and close; the HAL's deadman does the rest."""
        summary = self._summary()
        self._exposition.update()
        for each in (self._control, self._client, self._features, self._nav):
            if each is not None:
                each.close()
        return summary

    # --- meeting the HAL ---------------------------------------------------------------------

    def _meet(self, runtime: Runtime) -> dict[str, Any] | None:
        """Wait for the HAL and check that it is the right one; None when told to stop."""
        while not runtime.stopping:
            runtime.beat()
            theirs = self._greet()
            if theirs is not None:
                return theirs
            self._warn.warning("waiting for the HAL", command=self._cfg.endpoints.command)
        return None

    def _greet(self) -> dict[str, Any] | None:
        """Ask the HAL who it is; None when it does not answer.

        Raises:
            HelloMismatch: Another contract or another robot; naming the first difference.
        """
        client = self._sockets[0]
        try:
            theirs = client.hello(_HELLO_TIMEOUT_S)
        except RequestTimeout:
            return None
        ours = make_hello(service="gameloop", robot=self._desc.identity)
        check_hello(theirs, {key: ours[key] for key in ("schema_version", "schema_hash", "robot")})
        # Nothing arrived from it yet, or it is the instance that speaks: either way it is checked.
        log.info("met the HAL", hal=theirs.get("service"), clock=theirs.get("clock"))
        self.controller.hal_checked = True
        return theirs

    def _meet_again(self, now_ns: int) -> None:
        """A HAL that restarted is asked again before anything moves."""
        if self.controller.hal_checked or now_ns < self._next_hello_ns:
            return
        self._next_hello_ns = now_ns + _HELLO_PAUSE_NS
        self._greet()

    # --- real time ---------------------------------------------------------------------------

    def _run_realtime(self, runtime: Runtime) -> None:
        rate = Rate(1.0 / self._cfg.rate_hz, phase_s=self._cfg.phase_s)
        self._stats = stats = LoopStats(rate)
        collector = IdleCollector() if self._cfg.realtime.collect_when_idle else None
        client, features_in, nav_in = self._sockets
        phase_ns = round(self._cfg.phase_s * 1e9)
        wait_ns = round(self._cfg.state_wait_s * 1e9)
        while not self._may_leave(runtime, time.monotonic_ns()):
            tick = rate.wait()
            stats.begin(tick)
            runtime.beat()
            began_ns, due_ns = tick.scheduled_ns - phase_ns, tick.scheduled_ns + wait_ns
            before = client.state.latest()
            if before is not None:
                # A robot that was put back counts, also when a newer state overtakes this one.
                self.controller.handle_state(before)
            state = state_of_period(client.state, began_ns, due_ns)
            features = features_in.latest()
            self._take_nav(nav_in, time.monotonic_ns)
            if state is not None:
                self.controller.handle_state(state)
                self._meet_again(tick.woke_ns)
            now_ns = time.monotonic_ns()
            self._observe("receive", (now_ns - tick.woke_ns) * 1e-9)
            sent = self._decide(state, features, now_ns)
            if sent is not None:
                self._send(sent, time.monotonic_ns(), self._cfg.command_deadline_s)
            stats.end(time.monotonic_ns())
            self._expose()
            if collector is not None:
                collector.offer(rate.next_deadline_ns)

    # --- lock-step ---------------------------------------------------------------------------

    def _run_lockstep(self, runtime: Runtime) -> None:
        client, features_in, nav_in = self._sockets
        answered: JointCommand | None = None
        heard = False
        features: Message | None = None  # changes when announced, so that runs repeat exactly
        state_s = time.monotonic()
        while not self._may_leave(runtime, time.monotonic_ns()):
            runtime.beat()
            state = client.state.wait(_LOCKSTEP_WAIT_S)
            if state is None:
                if runtime.stopping and time.monotonic() - state_s > _LOCKSTEP_GONE_S:
                    break
                continue
            state_s = time.monotonic()
            now_ns = state.capture_ns
            if answered is not None and answered.state.capture_ns == now_ns:
                # Said again, answered alike; not if the HAL has the answer, and went on since.
                heard = heard or self._send(answered, now_ns, _LOCKSTEP_REPLY_S)
                continue
            self.controller.handle_state(state)
            self._meet_again(time.monotonic_ns())
            self._take_announced_nav(runtime, nav_in, now_ns, bool(state.flags & FLAG_NAV_DUE))
            if state.flags & FLAG_FEATURES_DUE and self.controller.policies.needs_features:
                last_ns = features.header.publish_ns + 1 if features is not None else 0
                features = self._announced(runtime, features_in, last_ns) or features
            else:
                features_in.take()  # an unread queue fills up, and its publisher hangs up
            answered = self._decide(state, features, now_ns)
            if answered is not None:
                heard = self._send(answered, now_ns, _LOCKSTEP_REPLY_S)
            self._expose()

    def _announced(
        self, runtime: Runtime, subscriber: LatestSubscriber, since_ns: int
    ) -> Message | None:
        """The newest message, published at `since_ns` or later; None only when leaving.

        In lock-step publication is the capture of the frame that is answered; the features may show
        an older one.
        """

        def newest() -> Message | None:
            message = subscriber.latest()
            if message is None or message.header.publish_ns < since_ns:
                return None
            return message

        return self._await(runtime, subscriber, newest)

    def _take_announced_nav(
        self, runtime: Runtime, nav_in: LatestSubscriber, now_ns: int, due: bool
    ) -> None:
        """Take what operators say, and the mission's command when one was announced."""

        def taken() -> bool | None:
            messages = self._take_nav(nav_in, lambda: now_ns)
            return not due or any(_is_mission_of(message, now_ns) for message in messages) or None

        self._await(runtime, nav_in, taken)

    def _await(
        self, runtime: Runtime, subscriber: LatestSubscriber, look: Callable[[], T | None]
    ) -> T | None:
        """Read until `look` has what was announced; None only when leaving.

        The HAL waits too, and says everything again: who goes on without does not repeat exactly.
        """
        began_s = time.monotonic()
        while (found := look()) is None:
            runtime.beat()
            wait_any((subscriber,), _LOCKSTEP_WAIT_S)
            waited_s = time.monotonic() - began_s
            if waited_s < _LOCKSTEP_INPUT_S:
                continue
            if runtime.stopping:
                return None
            self._warn.warning(
                "waiting for an announced message",
                stream=subscriber.stream.name,
                endpoint=subscriber.endpoint,
                waited_s=round(waited_s, 1),
            )
        return found

    # --- parts of a tick ---------------------------------------------------------------------

    @property
    def _sockets(self) -> tuple[HalClient, LatestSubscriber, LatestSubscriber]:
        assert self._client is not None, "startup comes first"
        assert self._features is not None
        assert self._nav is not None
        return self._client, self._features, self._nav

    def _take_nav(self, nav_in: LatestSubscriber, clock: Callable[[], int]) -> list[Message]:
        """Give every writer's newest to the filter, which decides whose counts; what there was."""
        messages = nav_in.newest_by_writer()
        now_ns = clock()  # after they came: none of them can honestly be from later
        for message in messages:
            refusal = self.controller.nav.receive(message, now_ns)
            if refusal is not None:
                metrics.NAV_REFUSED[refusal.reason].inc()
                self._warn.warning(
                    f"walking command refused: {refusal.reason}",
                    age_s=round(refusal.age_s, 4),
                    operator=bool(message.flags & FLAG_OPERATOR),
                    instance_id=f"{message.header.instance_id:016x}",
                    command=message.payload.tolist(),
                )
        return messages

    def _decide(
        self, state: Message | None, features: Message | None, now_ns: int
    ) -> JointCommand | None:
        control = self._control
        if control is not None:
            runner = control.take_runner()
            if runner is not None:
                self.controller.swap_policy(runner, now_ns)
        sent = self.controller.tick(state, features, now_ns)
        self._exposition.note_tick(now_ns)
        runner = self.controller.policies.active
        if sent is not None and runner.infer_s:
            self._observe("observe", runner.observe_s)
            self._observe("infer", runner.infer_s)
            self._exposition.note_inference(runner)
            runner.infer_s = 0.0
        if sent is None:
            self._warn.warning(
                "no fresh state, silent", age_s=None if state is None else state.age_s(now_ns)
            )
        if features is not None:
            age_s = features.age_s(now_ns)
            metrics.AGE["features"].observe(age_s)
            self._features_age.add(age_s)
        if state is not None:
            metrics.AGE["state"].observe(state.age_s(now_ns))
        self._ticks += 1
        return sent

    def _send(self, sent: JointCommand, now_ns: int, deadline_s: float) -> bool:
        """Send a command and take the reply in; False when there was none."""
        client = self._sockets[0]
        started = time.perf_counter()
        reply = client.send_command(
            sent.joint_pos,
            capture_ns=sent.state.capture_ns,
            publish_ns=now_ns,
            deadline_s=deadline_s,
        )
        elapsed_s = time.perf_counter() - started
        metrics.WORK["send"].observe(elapsed_s)
        if reply is None:
            COMMAND_TIMEOUTS.inc()
            self._warn.warning("no answer to a command", waited_s=round(elapsed_s, 4))
            return False
        COMMAND_ROUND_TRIP.observe(elapsed_s)
        self._round_trip.add(elapsed_s)
        self.controller.handle_reply(reply)
        if reply.applied:
            self._count_age("state", reply, sent.state)
            if sent.features is not None:
                self._count_age("features", reply, sent.features)
        else:
            name = reply.status_name
            self._not_applied[name] = self._not_applied.get(name, 0) + 1
            if name in metrics.REJECTED:
                metrics.REJECTED[name].inc()
        return True

    def _count_age(self, stream: str, reply: CommandReply, message: Message) -> None:
        age_s = message.age_s(reply.applied_ns)
        metrics.OBSERVED[stream].observe(age_s)
        self._age[stream].add(age_s)

    def _observe(self, stage: str, elapsed_s: float) -> None:
        metrics.WORK[stage].observe(elapsed_s)
        self._stage[stage].add(elapsed_s)

    def _may_leave(self, runtime: Runtime, now_ns: int) -> bool:
        """Whether the loop ends: at once when nothing would fall, else after sitting down."""
        if not runtime.stopping:
            return False
        if self._leave_at_ns is None:
            self._leave_at_ns = runtime.stopped_ns + round(self._cfg.sit_on_exit_s * 1e9)
            self.controller.sit_for_good()
            log.info("leaving", reason=runtime.stop_reason, mode=self.controller.mode.value)
        return self.controller.resting or now_ns >= self._leave_at_ns

    # --- what is said about it ---------------------------------------------------------------

    def _request(self, request: Request) -> str | None:
        """Called by the control thread: hand a request to the controller; why not, when refused.

        The loop hears of an `arm` with the next answer to a command, so a `stand` right behind it
        is tried for a few periods.
        """
        until_s = time.monotonic() + _HEAR_OF_ARM_S
        reason = self.controller.request(request)
        while reason is not None and time.monotonic() < until_s:
            time.sleep(0.2 * _HEAR_OF_ARM_S)
            reason = self.controller.request(request)
        return reason

    def _status(self) -> dict[str, object]:
        controller = self.controller
        return {
            "mode": controller.mode.value,
            "safety": controller.safety.name.lower(),
            "policy": controller.policies.chosen.bundle.name,
            "walking": controller.policies.active.bundle.name,
            "blind": controller.policies.blind,
            "nav": [round(float(value), 4) for value in controller.nav.command],
            "nav_source": controller.nav.source,
        }

    def _expose(self) -> None:
        if self._ticks % _EXPOSE_TICKS:
            return
        client, features, nav = self._sockets
        for name, subscriber in (("state", client.state), ("features", features), ("nav", nav)):
            for what, counters in metrics.STREAM_COUNTERS.items():
                self._totals.show(counters[name], getattr(subscriber, what))
            if subscriber.oversized > self._oversized.get(name, 0):
                self._oversized[name] = subscriber.oversized
                self._warn.warning(
                    "messages with too many frames dropped",
                    stream=name,
                    total=subscriber.oversized,
                )
        self._exposition.update()

    def _summary(self) -> dict[str, object]:
        loop = self._stats.summary() if self._stats is not None else {"ticks": self._ticks}
        timeouts = self._client.timeouts if self._client is not None else 0
        policies = self.controller.policies
        stages: dict[str, float] = {}
        for stage, quantiles in self._stage.items():
            stages |= quantiles.summary_ms(stage)
        return {
            **loop,
            **self._age["state"].summary_ms("obs_age"),
            **self._features_age.summary_ms("features_age"),
            **self._age["features"].summary_ms("features_age_at_actuation"),
            **self._round_trip.summary_ms("command_rtt"),
            **stages,
            "command_timeouts": timeouts,
            "not_applied": self._not_applied,
            "holds": self.controller.holds,
            "lease_losses": self.controller.lease_losses,
            "policy_s": round(policies.ticks / self._cfg.rate_hz, 2),
            "blind_s": round(policies.blind_ticks / self._cfg.rate_hz, 2),
            "blind_switches": policies.blind_switches,
            "bad_outputs": policies.bad_outputs,
            "policy": policies.chosen.bundle.name,
        }


def _is_mission_of(message: Message, turn_ns: int) -> bool:
    """Whether this is the walking command announced by the state of a lock-step turn."""
    return not message.flags & FLAG_OPERATOR and message.capture_ns >= turn_ns


def state_of_period(subscriber: LatestSubscriber, begins_ns: int, until_ns: int) -> Message | None:
    """The newest state; one captured before the period began is not taken before `until_ns`.

    A HAL that is a millisecond late would otherwise be answered from the state before, which is
    5 ms older: that, not the work, was the 98th percentile of the age.
    """
    state = subscriber.latest()
    left_ns = until_ns - time.monotonic_ns()
    if state is None or state.capture_ns >= begins_ns or left_ns <= 0:
        return state
    return subscriber.wait(left_ns * 1e-9) or state
