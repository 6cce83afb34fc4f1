"""The game loop's process: meeting the HAL, pacing in real time, leaving.

Real time: an absolute grid; every tick takes the newest of everything, complete or not.
Lock-step: `krabby_gameloop.lockstep`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import structlog
from krabby.control.controller import LocomotionController, Request
from krabby.control.nav import AXES
from krabby.control.policy_manager import PolicyManager
from krabby.policy.network import Backend
from krabby.policy.tensorrt.backend import EngineBackend, move
from krabby.robot.description import RobotDescription
from krabby.runtime.app import Runtime
from krabby.runtime.loop import LoopStats
from krabby.runtime.provenance import provenance
from krabby.runtime.rate import Rate, Tick
from krabby.runtime.realtime import IdleCollector
from krabby.runtime.throttle import log_every
from krabby.runtime.tracing import make_tracer
from krabby_proto import (
    LatestSubscriber,
    Message,
    PeerClock,
    RequestTimeout,
    check_hello,
    make_hello,
)

from krabby_gameloop.config import GameloopCfg
from krabby_gameloop.control_socket import ControlSocket
from krabby_gameloop.lockstep import run_lockstep
from krabby_gameloop.tape import Tape
from krabby_gameloop.tick import TickIO

__all__ = ["Gameloop", "state_of_period"]

log = structlog.get_logger(__name__)

_HELLO_TIMEOUT_S = 0.2
_HAL_STARTS_S = 5.0
"""How long a HAL may take to start [s]."""
_HELLO_PAUSE_NS = 500_000_000
_CLOCK_ERROR_S = 0.01
"""Largest error with which the clock of a HAL on another host may be known [s]: stamps of commands
are older by up to twice as much than they are, and are refused from 25 ms on."""
_HEAR_OF_ARM_S = 0.05
"""How long a request to stand waits for the gate to be seen armed before it is refused [s]."""


class Gameloop:
    """`krabby.runtime.Service`: the 100 Hz policy loop."""

    def __init__(self, cfg: GameloopCfg) -> None:
        self._cfg = cfg
        self._desc = RobotDescription.load(Path(cfg.robot) if cfg.robot else None)
        self._tape = Tape()
        self.controller = LocomotionController(
            cfg,
            self._desc,
            PolicyManager(cfg, self._desc),
            host_clock=self._tape.host_clock,
            tape=self._tape.record,
        )
        self._warn = log_every(log)
        self._opened: TickIO | None = None
        self._control: ControlSocket | None = None
        self._stats: LoopStats | None = None
        self._next_hello_ns = 0
        self._tracer = make_tracer(cfg.tracing, "gameloop")
        self._swap_backend: Backend | None = None
        self._leave_at_ns: int | None = None

    def prepare(self, runtime: Runtime) -> None:
        """Move the policies to the configured back end: an engine may have to be built."""
        backend = move(self.controller.policies.runners, self._cfg.inference, runtime)
        # A swap happens while the robot walks: it takes an engine from the cache and builds none.
        if isinstance(backend, EngineBackend):
            self._swap_backend = backend.without_building()

    def startup(self) -> None:
        """Open every socket; no peer is expected to be there yet."""
        self._opened = TickIO(self._cfg.endpoints, self.controller, self._tape)
        self._control = ControlSocket(
            self._cfg.endpoints.control,
            self._desc,
            control_rate_hz=self._cfg.rate_hz,
            hello=self._hello(),
            status=self._status,
            request=self._request,
            backend=self._swap_backend,
            answered=self._tape.answered,
        )

    def run(self, runtime: Runtime) -> None:
        """Walk until told to stop."""
        theirs = self._meet(runtime)
        if theirs is None:
            return
        self._tape.begin(self.controller)
        if theirs["clock"] != "simulated":
            with runtime.watched():
                self._run_realtime(runtime)
            return
        run_lockstep(
            self._io,
            runtime,
            lambda: self._may_leave(runtime, time.monotonic_ns()),
            lambda: self._meet_again(time.monotonic_ns()),
            self._control.take_runner if self._control is not None else lambda: None,
        )

    def shutdown(self) -> Mapping[str, object]:
        """Stop commanding and close; the HAL's deadman does the rest."""
        summary = self._summary()
        for each in (self._control, self._opened, self._tracer):
            if each is not None:
                each.close()
        return summary

    def _hello(self) -> dict[str, object]:
        """With all that a recorder writes down about this loop."""
        return make_hello(
            service="gameloop",
            robot=self._desc.identity,
            extra={
                "config": msgspec.to_builtins(self._cfg),
                "policies": [runner.identity for runner in self.controller.policies.runners],
                **provenance("krabby", "onnxruntime"),
            },
        )

    @property
    def _io(self) -> TickIO:
        assert self._opened is not None, "startup comes first"
        return self._opened

    # --- meeting the HAL ---------------------------------------------------------------------

    def _meet(self, runtime: Runtime) -> dict[str, Any] | None:
        """Wait for the HAL and check that it is the right one; None when told to stop.

        A HAL that starts together with this loop is no reason for a warning.
        """
        warn_s = time.monotonic() + _HAL_STARTS_S
        while not runtime.stopping:
            runtime.beat()
            theirs = self._greet()
            if theirs is not None:
                return theirs
            say = self._warn.info if time.monotonic() < warn_s else self._warn.warning
            say("waiting for the HAL", command=self._cfg.endpoints.command)
        return None

    def _greet(self) -> dict[str, Any] | None:
        """Ask for the HAL's hello; None when there is no answer.

        Raises:
            HelloMismatch: Another contract or another robot; naming the first difference.
        """
        try:
            theirs = self._io.client.hello(_HELLO_TIMEOUT_S)
        except RequestTimeout:
            return None
        ours = make_hello(service="gameloop", robot=self._desc.identity)
        check_hello(theirs, {key: ours[key] for key in ("schema_version", "schema_hash", "robot")})
        clock = self._io.client.clock
        if clock.error_s > _CLOCK_ERROR_S:
            # A later hello may have a shorter way.
            self._warn.warning(
                "the HAL's clock is not known well enough to move",
                **_facts(clock),
                remedy="a link with a round trip below 20 ms",
            )
            return None
        # Nothing arrived from it yet, or it is the instance that speaks: either way it is checked.
        log.info(
            "met the HAL", hal=theirs.get("service"), clock=theirs.get("clock"), **_facts(clock)
        )
        self.controller.hal_checked = True
        return theirs

    def _meet_again(self, now_ns: int) -> None:
        """A HAL that restarted is asked again before anything moves.

        So is one on another host that has answered nothing for long: by the bounds on its clock its
        states are old, and a loop that is silent for that gets no answers that narrow them.
        """
        clock = self._io.client.clock
        vague = clock.known and clock.is_vague(time.monotonic_ns(), _CLOCK_ERROR_S)
        if (self.controller.hal_checked and not vague) or now_ns < self._next_hello_ns:
            return
        self._next_hello_ns = now_ns + _HELLO_PAUSE_NS
        self._greet()

    # --- real time ---------------------------------------------------------------------------

    def _run_realtime(self, runtime: Runtime) -> None:
        rate = Rate(1.0 / self._cfg.rate_hz, phase_s=self._cfg.phase_s)
        self._stats = stats = LoopStats(rate)
        collector = IdleCollector() if self._cfg.realtime.collect_when_idle else None
        io, control, tracer = self._io, self._control, self._tracer
        hal_clock = io.client.clock  # states and commands are stamped by it
        phase_ns = round(self._cfg.phase_s * 1e9)
        wait_ns = round(self._cfg.state_wait_s * 1e9)
        while not self._may_leave(runtime, time.monotonic_ns()):
            tick = rate.wait()
            stats.begin(tick)
            runtime.beat()
            began_ns, due_ns = tick.scheduled_ns - phase_ns, tick.scheduled_ns + wait_ns
            before = io.client.state.latest()
            if before is not None:
                # A robot that was put back counts, also when a newer state overtakes this one.
                self.controller.handle_state(before)
            state = state_of_period(io.client.state, hal_clock.latest(began_ns), due_ns)
            features = io.features.latest()
            io.take_nav(lambda: hal_clock.latest(time.monotonic_ns()))
            if state is not None:
                self.controller.handle_state(state)
                self._meet_again(tick.woke_ns)
            now_ns = time.monotonic_ns()
            io.observe("receive", (now_ns - tick.woke_ns) * 1e-9)
            swap = control.take_runner() if control is not None else None
            sent = io.decide(state, features, hal_clock.latest(now_ns), swap)
            decided_ns = time.monotonic_ns()
            if sent is not None:
                io.send(sent, None, self._cfg.command_deadline_s)
            sent_ns = time.monotonic_ns()
            io.record()
            ended_ns = time.monotonic_ns()
            stats.end(ended_ns)
            if tracer is not None and tracer.due():
                stages = [
                    ("read", tick.woke_ns, now_ns),
                    *io.policy_stages,
                    ("exchange", decided_ns, sent_ns),
                    ("record", sent_ns, ended_ns),
                ]
                tracer.trace("tick", tick.woke_ns, ended_ns, stages, self._facts_of(tick, state))
            io.expose()
            if collector is not None:
                collector.offer(rate.next_deadline_ns)

    def _facts_of(self, tick: Tick, state: Message | None) -> dict[str, str | int | float]:
        """What a trace says of its tick; the state's sequence leads to the HAL's cycle."""
        facts: dict[str, str | int | float] = {
            "krabby.mode": self.controller.mode.value,
            "krabby.policy": self.controller.policies.active.bundle.name,
            "krabby.lateness_ms": tick.lateness_s * 1e3,
            "krabby.command.sequence": self._io.client.sequence,
        }
        if state is not None:
            facts["krabby.state.sequence"] = state.sequence
        return facts

    def _may_leave(self, runtime: Runtime, now_ns: int) -> bool:
        """Whether the loop ends: at once when nothing would fall, else after sitting down."""
        if not runtime.stopping:
            return False
        if self._leave_at_ns is None:
            self._leave_at_ns = runtime.stopped_ns + round(self._cfg.sit_on_exit_s * 1e9)
            self.controller.permission.sit_for_good()
            self._tape.leaving = True
            log.info("leaving", reason=runtime.stop_reason, mode=self.controller.mode.value)
        return self.controller.resting or now_ns >= self._leave_at_ns

    # --- requests and reports ----------------------------------------------------------------

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
        controller, policies = self.controller, self.controller.policies
        within = policies.command_range
        stats = self._stats  # none in lock-step
        ticks = {} if stats is None else {"ticks": stats.ticks + stats.skipped, "late": stats.late}
        return {
            **ticks,
            "mode": controller.mode.value,
            "safety": controller.permission.safety.name.lower(),
            "policy": policies.chosen.bundle.name,
            "walking": policies.active.bundle.name,
            "blind": policies.blind,
            "sight": policies.sight,
            "abilities": dataclasses.asdict(policies.abilities),
            "command_range": None
            if within is None
            else dict(zip(AXES, within.T.tolist(), strict=True)),
            "nav": [round(float(value), 4) for value in controller.nav.command],
            "nav_asked": [round(float(value), 4) for value in controller.nav.asked],
            "nav_clamped": list(controller.nav.clamped),
            "nav_source": controller.nav.source,
        }

    def _summary(self) -> dict[str, object]:
        io, policies = self._opened, self.controller.policies
        loop = {"ticks": 0 if io is None else io.ticks}
        return {
            **(loop if self._stats is None else self._stats.summary()),
            **({} if io is None else io.summary()),
            "holds": self.controller.holds,
            "lease_losses": self.controller.permission.lease_losses,
            "policy_s": round(policies.ticks / self._cfg.rate_hz, 2),
            "blind_s": round(policies.blind_ticks / self._cfg.rate_hz, 2),
            "memory_s": round(policies.memory_ticks / self._cfg.rate_hz, 2),
            "blind_switches": policies.blind_switches,
            "bad_outputs": policies.bad_outputs,
            "policy": policies.chosen.bundle.name,
        }


def _facts(clock: PeerClock) -> dict[str, float]:
    """How a HAL's clock differs from this host's, for the log; nothing when they share one."""
    if clock.error_s == 0.0:
        return {}
    return {
        "clocks_differ_by_s": round(clock.offset_s, 4),
        "within_ms": round(clock.error_s * 1e3, 2),
    }


def state_of_period(subscriber: LatestSubscriber, begins_ns: int, until_ns: int) -> Message | None:
    """The newest state; one captured before the period began is not taken before `until_ns`.

    `begins_ns` is on the clock of the states, `until_ns` on this host's.

    A HAL that is a millisecond late would otherwise be answered from the state before, which is
    5 ms older: that, not the work, was the 98th percentile of the age.
    """
    state = subscriber.latest()
    left_ns = until_ns - time.monotonic_ns()
    if state is None or state.capture_ns >= begins_ns or left_ns <= 0:
        return state
    return subscriber.wait(left_ns * 1e-9) or state
