"""The one HAL loop: a back end in slots on a grid, and in between whatever comes on the wire.

Real time: slots lie on the grid of CLOCK_MONOTONIC. The first of a 10 ms control period begins it,
its command arrives some 3 ms later; simulated depth images are made in the last one, where no
command is expected.

Lock-step, for a back end on a `SimulatedClock`: the clock stands still while the loop waits for the
one command that answers the state it published; what it said is said again until then. Nothing
depends on how long that takes or who connects when, so a run repeats exactly.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import structlog
from krabby_proto import (
    FLAG_FEATURES_DUE,
    FLAG_LOCKSTEP,
    FLAG_NAV_DUE,
    FLAG_RESET,
    NAV,
    HalServer,
    Message,
    Publisher,
)

from krabby.hal.backend import Image, SimBackend, SimulatedClock, Slot
from krabby.hal.config import LockstepCfg
from krabby.hal.errors import BackendUnusable, LoopSilent
from krabby.hal.handler import GateHandler
from krabby.hal.measurement import StatePayload
from krabby.hal.metrics import OBSERVATION, GateMetrics, OversizedRequests
from krabby.runtime.metrics import (
    DEADLINE_MISSES,
    LOOP_LATENESS,
    LOOP_PERIOD,
    LOOP_WORK,
    SKIPPED_CYCLES,
    Quantiles,
    children,
)
from krabby.runtime.rate import Rate
from krabby.runtime.realtime import IdleCollector

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from krabby.hal.backend import HalBackend, Reading
    from krabby.runtime.app import Runtime
    from krabby.runtime.rate import Tick

__all__ = ["HalLoop"]

log = structlog.get_logger(__name__)

_CONTROL_HZ: Final = 100
"""The game loop's control periods per second."""
_CATCH_UP_SLOTS: Final = 4
"""Missed slots whose simulated time is made up for at most; after a longer stall it falls behind
instead of running off in a burst."""
_GRACE: Final = 0.8
"""Share of a slot by which it may begin late and is still run: its work takes less, and a slot
that is skipped is a state that nobody gets."""
_NAV_PERIODS: Final = 5
"""Control periods between two walking commands: 20 Hz."""
_METRICS_SLOTS: Final = 43
"""Slots between two updates of the gauges; a prime, so that it falls on every part of a period."""
_RESEND_S: Final = 0.2
"""Lock-step: how often what was not answered yet is said again, since a subscriber that is still
connecting misses what was said before."""
_FAREWELL_S: Final = 0.05
"""Lock-step: time for the answer to the last command to leave before the sockets close."""


class _Turn(NamedTuple):
    """Lock-step: what one control period says, however often."""

    now_ns: int
    frame: Image | None
    nav: NDArray[np.float32] | None
    state: NDArray[np.float32]
    flags: int


class HalLoop:
    """`krabby.runtime.Service` around one back end."""

    def __init__(
        self,
        backend: HalBackend,
        endpoints: Mapping[str, str],
        *,
        collect_when_idle: bool = False,
        duration_s: float = 0.0,
        lockstep: LockstepCfg | None = None,
        update_metrics: Callable[[], None] = lambda: None,
    ) -> None:
        """Nothing is opened yet.

        Args:
            backend: Measures and drives.
            endpoints: Stream name to endpoint: state, camera, command, safety; with a
                `SimBackend` also truth, and nav, which is connected, for its mission.
            collect_when_idle: Collect garbage in the idle part of a slot; see `RealtimeCfg`.
            duration_s: Simulated time to run [s]; 0 for ever.
            lockstep: Timeouts and delays for a back end on a `SimulatedClock`.
            update_metrics: Brings the back end's own metrics up to date; called a few times a
                second.

        Raises:
            BackendUnusable: The rate is no multiple of 100 Hz, or a back end that is no
                `SimBackend` has a simulated clock.
        """
        if backend.rate_hz <= 0.0 or backend.rate_hz % _CONTROL_HZ:
            raise BackendUnusable(
                f"{backend.name} would run at {backend.rate_hz:g} Hz; commands come at "
                f"{_CONTROL_HZ} Hz, give it a whole multiple of that"
            )
        self.backend = backend
        self._sim = backend if isinstance(backend, SimBackend) else None
        if backend.lockstep and self._sim is None:
            raise BackendUnusable(
                f"{backend.name} has a simulated clock; derive it from SimBackend, or give it "
                "time.monotonic_ns"
            )
        self._endpoints = dict(endpoints)
        self._collect_when_idle = collect_when_idle
        self._duration_s = duration_s
        self._lockstep = LockstepCfg() if lockstep is None else lockstep
        delay_s = self._lockstep.answer_delay_s if backend.lockstep else 0.0
        self.handler = GateHandler(backend, answer_delay_ns=round(delay_s * 1e9))
        self.handler.on_actuated = self._actuated
        self._update_backend_metrics = update_metrics
        self.server: HalServer | None = None
        self._nav: Publisher | None = None
        self._slot_ns = round(1e9 / backend.rate_hz)
        self._slots_per_period = round(backend.rate_hz / _CONTROL_HZ)
        self._payload = StatePayload()
        self._gate_metrics = GateMetrics(self.handler, backend.desc.joint_names)
        self._oversized = OversizedRequests()
        stages = (backend.stage, "publish", *(("render",) if self._sim is not None else ()))
        self._stages = children(LOOP_WORK, stages)
        self._work, self._render, self._observation_age = Quantiles(), Quantiles(), Quantiles()
        self._pending: Message | None = None
        self._was_reset = False
        self._slots = self._periods = self._skipped = self._lost = 0
        self._misses = self._incomplete = 0
        self._last_period_ns: int | None = None
        self._turn: _Turn | None = None

    def startup(self) -> None:
        """Bind the sockets, then open the devices: a second HAL fails before it touches a drive."""
        backend = self.backend
        self.server = HalServer(
            self._endpoints, hello=backend.hello(), handler=self.handler, clock_ns=backend.clock_ns
        )
        if self._sim is not None and "nav" in self._endpoints:
            self._nav = Publisher(self._endpoints["nav"], NAV, clock=backend.clock_ns, bind=False)
        backend.start()
        log.info(
            "serving",
            robot=backend.desc.name,
            rate_hz=backend.rate_hz,
            endpoints=self.server.endpoints,
        )

    def run(self, runtime: Runtime) -> None:
        """Work until told to stop, or until the simulated time is over."""
        if isinstance(self.backend.clock_ns, SimulatedClock):
            self._run_lockstep(runtime, self.backend.clock_ns)
        else:
            self._run_realtime(runtime)

    def shutdown(self) -> Mapping[str, object]:
        """Disarm, let the back end leave the robot limp, say what the run came to."""
        try:
            summary = self.backend.summary() | self.handler.summary() | self._summary()
            self.handler.gate.request("disarm", self.backend.clock_ns())
            if self.server is not None:
                with contextlib.suppress(Exception):  # the metrics are of no help any more
                    self._update_metrics()
            return summary
        finally:
            try:
                self.backend.close()
            finally:
                for endpoint in (self._nav, self.server):
                    if endpoint is not None:
                        endpoint.close()

    # --- real time ---------------------------------------------------------------------------

    def _run_realtime(self, runtime: Runtime) -> None:
        rate = Rate(self._slot_ns * 1e-9, grace=_GRACE)
        collector = IdleCollector() if self._collect_when_idle else None
        while not runtime.stopping and not self._finished():
            tick = rate.wait()
            self._run_slot(self._slot_of(tick, rate.next_deadline_ns))
            if time.monotonic_ns() > rate.next_deadline_ns:
                DEADLINE_MISSES.inc()
                self._misses += 1
            self._serve_until(rate.next_deadline_ns)
            if collector is not None:
                collector.offer(rate.next_deadline_ns)
            runtime.beat()

    def _slot_of(self, tick: Tick, deadline_ns: int) -> Slot:
        LOOP_LATENESS.observe(tick.lateness_s)
        slots = 1 + min(tick.skipped, _CATCH_UP_SLOTS)
        if tick.skipped:
            SKIPPED_CYCLES.inc(tick.skipped)
            self._skipped += tick.skipped
            self._lost += 1 + tick.skipped - slots
        return Slot(tick.scheduled_ns, tick.woke_ns, slots, deadline_ns)

    def _run_slot(self, slot: Slot) -> None:
        server, now_ns = self._server, slot.woke_ns
        index = (slot.scheduled_ns // self._slot_ns) % self._slots_per_period
        began_ns = time.monotonic_ns()
        reading = self.handler.cycle(slot)
        read_ns = time.monotonic_ns()
        self._stages[self.backend.stage].observe((read_ns - began_ns) * 1e-9)
        self._work.add((read_ns - began_ns) * 1e-9)
        if self._pending is not None:  # it went out with this cycle
            self._count_age(self._pending, began_ns)
            self._pending = None
        self._note(reading)
        if reading.measured is None:
            self._incomplete += 1
            self._follow_gate()
        else:
            self._publish_state(self._payload.fill(reading.measured), reading.capture_ns, 0)
        if index == 0:
            self._begin_period(now_ns)
            walk = self._walking_command()
            if walk is not None and self._nav is not None:
                self._nav.publish(walk, capture_ns=now_ns)
        frame = self.backend.frame(now_ns)
        if frame is not None:
            server.publish_camera(*frame)
        self._stages["publish"].observe((time.monotonic_ns() - read_ns) * 1e-9)
        if index == self._slots_per_period - 1 and self._sim is not None:
            server.poll(0.0)  # a late command must not wait for an image
            self._expose(self._sim, now_ns)
        self._slots += 1
        if self._slots % _METRICS_SLOTS == 0:
            server.poll(0.0)  # nor for the gauges
            self._update_metrics()

    def _serve_until(self, deadline_ns: int) -> None:
        """Whatever the slot took: what came meanwhile is served before the next one."""
        self._server.poll(0.0)
        while (left_ns := deadline_ns - time.monotonic_ns()) > 0:
            self._server.poll(left_ns * 1e-9)

    # --- lock-step ---------------------------------------------------------------------------

    def _run_lockstep(self, runtime: Runtime, clock: SimulatedClock) -> None:
        sim = self._sim
        assert sim is not None, "the constructor checks it"
        # A picture of this moment, for whom the first state is the first he hears.
        first = sim.read(Slot(clock.now_ns, clock.now_ns, 0, clock.now_ns + self._slot_ns))
        self._begin_turn(first, sim.picture(clock.now_ns))
        self._await_command(runtime, self._lockstep.start_timeout_s)
        while not runtime.stopping and not self._finished():
            reading = first
            for index in range(self._slots_per_period):
                clock.now_ns += self._slot_ns
                reading = self.handler.cycle(
                    Slot(clock.now_ns, clock.now_ns, 1, clock.now_ns + self._slot_ns)
                )
                self._note(reading)
                if index + 1 < self._slots_per_period:
                    self._expose(sim, clock.now_ns)
            self._begin_turn(reading)
            self._await_command(runtime, self._lockstep.answer_timeout_s)
            before = self._slots
            self._slots += self._slots_per_period
            if self._slots // _METRICS_SLOTS != before // _METRICS_SLOTS:
                self._update_metrics()
        self._server.poll(_FAREWELL_S)

    def _begin_turn(self, reading: Reading, picture: Image | None = None) -> None:
        """Decide what this control period says, and say it for the first time."""
        now_ns = self.backend.clock_ns()
        if reading.measured is None:
            raise BackendUnusable(
                f"{self.backend.name} has an incomplete measurement in lock-step; a simulator "
                "always measures"
            )
        self._begin_period(now_ns)
        frame = self.backend.frame(now_ns)
        frame = frame if picture is None else picture
        nav = self._walking_command()
        flags = FLAG_LOCKSTEP
        flags |= FLAG_FEATURES_DUE if frame is not None else 0
        flags |= FLAG_NAV_DUE if nav is not None else 0
        if self._was_reset:
            self._was_reset = False
            flags |= FLAG_RESET
        self.handler.expected_capture_ns = now_ns
        self._turn = _Turn(now_ns, frame, nav, self._payload.fill(reading.measured), flags)
        self._say()

    def _say(self) -> None:
        """Send the turn: what its answer depends on first, the state last."""
        turn = self._turn
        assert turn is not None, "a turn begins first"
        if turn.frame is not None:
            image, capture_ns, flags = turn.frame
            self._server.publish_camera(image, capture_ns, flags | FLAG_LOCKSTEP)
        if turn.nav is not None and self._nav is not None:
            self._nav.publish(turn.nav, capture_ns=turn.now_ns)
        self._publish_state(turn.state, turn.now_ns, turn.flags)

    def _await_command(self, runtime: Runtime, timeout_s: float) -> None:
        """Wait for the turn's answer, saying it again and again: who connects late missed it.

        Raises:
            LoopSilent: None came in time.
        """
        began_s = time.monotonic()
        resend_s = began_s + _RESEND_S
        now_ns = self.backend.clock_ns()
        while not runtime.stopping and self.handler.last_command_ns != now_ns:
            runtime.beat()
            now_s = time.monotonic()
            if now_s >= began_s + timeout_s:
                raise LoopSilent(self._silence(timeout_s))
            if now_s >= resend_s:
                resend_s = now_s + _RESEND_S
                self._say()
            self._server.poll(min(began_s + timeout_s, resend_s) - now_s)
        runtime.beat()

    def _silence(self, timeout_s: float) -> str:
        """What a game loop that does not answer comes to, and what to do."""
        look = "its log says what it waits for: a policy that sees needs the camera service"
        if self.handler.last_command_ns is None:
            return (
                f"no command within {timeout_s:g} s of the first state; start the gameloop with "
                f"endpoints.state={self._endpoints['state']} and "
                f"endpoints.command={self._endpoints['command']}. If it runs, {look}"
            )
        return (
            f"the game loop did not answer the state of simulated time {self._sim_time_s:.3f} s "
            f"within {timeout_s:g} s; {look}. Raise lockstep.answer_timeout_s if this machine is "
            "that slow"
        )

    # --- parts of a slot ---------------------------------------------------------------------

    def _note(self, reading: Reading) -> None:
        self._gate_metrics.note_state(self.backend.clock_ns())
        self._was_reset = self._was_reset or reading.was_reset

    def _publish_state(self, payload: NDArray[np.float32], capture_ns: int, flags: int) -> None:
        self._follow_gate()
        if self._was_reset:
            self._was_reset = False
            flags |= FLAG_RESET
        self._server.publish_state(payload, capture_ns, flags)

    def _follow_gate(self) -> None:
        """Let every reply from now on carry the gate's state and faults."""
        server, gate = self._server, self.handler.gate
        server.safety_state = int(gate.state)
        server.fault_bits = int(gate.faults)

    def _begin_period(self, now_ns: int) -> None:
        if self._last_period_ns is not None:
            LOOP_PERIOD.observe((now_ns - self._last_period_ns) * 1e-9)
        self._last_period_ns = now_ns
        self._periods += 1
        if self._sim is not None:
            truth = self._sim.control_tick(now_ns)
            if "truth" in self._endpoints:
                self._server.publish_truth(truth, now_ns)

    def _walking_command(self) -> NDArray[np.float32] | None:
        """What the mission wants, where it speaks in this control period."""
        if self._sim is None or self._nav is None or (self._periods - 1) % _NAV_PERIODS:
            return None
        return self._sim.mission()

    def _expose(self, sim: SimBackend, now_ns: int) -> None:
        if not sim.image_due(now_ns):
            return
        started_ns = time.monotonic_ns()
        sim.expose(now_ns)
        elapsed_s = (time.monotonic_ns() - started_ns) * 1e-9
        self._stages["render"].observe(elapsed_s)
        self._render.add(elapsed_s)

    def _actuated(self, message: Message, applied_ns: int) -> None:
        if self.backend.buffered:
            self._pending = message  # what the newest waits for is known when it goes out
        else:
            self._count_age(message, applied_ns)

    def _count_age(self, message: Message, applied_ns: int) -> None:
        """How old is the state behind a command that reaches the drives?"""
        age_s = message.age_s(applied_ns)
        OBSERVATION.observe(age_s)
        self._observation_age.add(age_s)

    def _finished(self) -> bool:
        return 0.0 < self._duration_s <= self._sim_time_s

    @property
    def _sim_time_s(self) -> float:
        return 0.0 if self._sim is None else self._sim.sim_time_s

    @property
    def _server(self) -> HalServer:
        assert self.server is not None, "startup comes first"
        return self.server

    # --- what is said about it ---------------------------------------------------------------

    def _update_metrics(self) -> None:
        self._gate_metrics.update(self._server.stats.commands)
        self._oversized.update(self._server.oversized)
        self._update_backend_metrics()

    def _summary(self) -> dict[str, Any]:
        commands = {} if self.server is None else self.server.stats.commands
        facts: dict[str, Any] = {
            "slots": self._slots,
            "slots_skipped": self._skipped,
            "slots_lost": self._lost,
            "deadline_misses": self._misses,
            "measurements_incomplete": self._incomplete,
            "commands": {status: count for status, count in commands.items() if count},
        }
        facts |= self._work.summary_ms(self.backend.stage)
        if not self.backend.lockstep:  # in simulated time an answer takes no time at all
            facts |= self._observation_age.summary_ms("obs_age")
        return facts | self._render.summary_ms("render")
