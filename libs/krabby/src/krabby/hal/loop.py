"""The one HAL loop: a back end in slots on a grid, and the wire's requests in between.

Real time: slots lie on the grid of CLOCK_MONOTONIC. The first of a 10 ms control period begins it,
its command arrives some 3 ms later; simulated depth images are made in the last one, where no
command is expected. A back end on a `SimulatedClock` runs in lock-step (`krabby.hal.lockstep`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog
from krabby_proto import Message

from krabby.course.timing import CONTROL_HZ
from krabby.hal.backend import HalBackend, SimBackend, SimulatedClock, Slot
from krabby.hal.config import LockstepCfg
from krabby.hal.errors import BackendUnusable
from krabby.hal.handler import GateHandler
from krabby.hal.lockstep import Lockstep
from krabby.hal.metrics import OBSERVATION
from krabby.hal.publisher import HalPublisher
from krabby.runtime.app import Runtime
from krabby.runtime.metrics import DEADLINE_MISSES, LOOP_LATENESS, SKIPPED_CYCLES, Quantiles
from krabby.runtime.rate import Rate, Tick
from krabby.runtime.realtime import IdleCollector
from krabby.runtime.tracing import SlotTracer

__all__ = ["HalLoop"]

log = structlog.get_logger(__name__)

_CATCH_UP_SLOTS: Final = 4
"""Missed slots whose simulated time is made up for at most; after a longer stall it falls behind
instead of running off in a burst."""
_GRACE: Final = 0.8
"""Share of a slot by which it may begin late and is still run: its work takes less, and a skipped
slot is a state that is not published."""


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
        tracer: SlotTracer | None = None,
    ) -> None:
        """Nothing is opened yet.

        Args:
            backend: Measures and drives.
            endpoints: Stream name to endpoint: state, camera, command, safety; with a
                `SimBackend` also truth, and nav, which is connected, for its mission.
            collect_when_idle: Collect garbage in the idle part of a slot; see `RealtimeCfg`.
            duration_s: Simulated time to run [s]; 0 for no end.
            lockstep: Timeouts and delays for a back end on a `SimulatedClock`.
            update_metrics: Brings the back end's own metrics up to date; called a few times a
                second.
            tracer: Makes traces of slots in real time; None for none.

        Raises:
            BackendUnusable: The rate is not a multiple of 100 Hz, or a back end that is not a
                `SimBackend` has a simulated clock.
        """
        if backend.rate_hz <= 0.0 or backend.rate_hz % CONTROL_HZ:
            raise BackendUnusable(
                f"{backend.name} would run at {backend.rate_hz:g} Hz; commands come at "
                f"{CONTROL_HZ} Hz, give it a whole multiple of that"
            )
        if backend.lockstep and not isinstance(backend, SimBackend):
            raise BackendUnusable(
                f"{backend.name} has a simulated clock; derive it from SimBackend, or give it "
                "time.monotonic_ns"
            )
        self.backend = backend
        self._collect_when_idle = collect_when_idle
        self._duration_s = duration_s
        self._tracer = tracer
        self._lockstep = LockstepCfg() if lockstep is None else lockstep
        delay_s = self._lockstep.answer_delay_s if backend.lockstep else 0.0
        self.handler = GateHandler(backend, answer_delay_ns=round(delay_s * 1e9))
        self.handler.on_actuated = self._actuated
        self._out = HalPublisher(backend, self.handler, endpoints, update_metrics)
        self._slot_ns = round(1e9 / backend.rate_hz)
        self._slots_per_period = round(backend.rate_hz / CONTROL_HZ)
        self._work, self._observation_age = Quantiles(), Quantiles()
        self._pending: Message | None = None
        self._skipped = self._lost = self._misses = self._incomplete = 0

    def startup(self) -> None:
        """Bind the sockets, then open the devices: a second HAL fails before it touches a drive."""
        self._out.open()
        self.backend.start()
        log.info(
            "serving",
            robot=self.backend.desc.name,
            rate_hz=self.backend.rate_hz,
            endpoints=self._out.server.endpoints,
        )

    def run(self, runtime: Runtime) -> None:
        """Work until told to stop, or until the simulated time is over."""
        sim, clock = self._out.sim, self.backend.clock_ns
        if sim is not None and isinstance(clock, SimulatedClock):
            Lockstep(self._out, sim, clock, self._lockstep).run(runtime, self._finished)
        else:
            self.backend.beat = runtime.beat
            with runtime.watched():
                self._run_realtime(runtime)

    def shutdown(self) -> Mapping[str, object]:
        """Disarm, let the back end leave the robot limp, return the summary of the run."""
        try:
            summary = self.backend.summary() | self.handler.summary() | self._summary()
            self.handler.gate.request("disarm", self.backend.clock_ns())
            with contextlib.suppress(Exception):  # the metrics are of no help any more
                self._out.update_metrics()
            return summary
        finally:
            try:
                self.backend.close()
            finally:
                self._out.close()
                if self._tracer is not None:
                    self._tracer.close()

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
        out, now_ns = self._out, slot.woke_ns
        index = (slot.scheduled_ns // self._slot_ns) % self._slots_per_period
        began_ns = time.monotonic_ns()
        reading = self.handler.cycle(slot)
        read_ns = time.monotonic_ns()
        out.stages[self.backend.stage].observe((read_ns - began_ns) * 1e-9)
        self._work.add((read_ns - began_ns) * 1e-9)
        if self._pending is not None:  # it went out with this cycle
            self._count_age(self._pending, began_ns)
            self._pending = None
        out.note(reading)
        if reading.measured is None:
            self._incomplete += 1
            out.follow_gate()
        else:
            out.publish_state(out.payload.fill(reading.measured), reading.capture_ns, 0)
        if index == 0:
            out.begin_period(now_ns)
            out.publish_nav(out.walking_command(), now_ns)
        frame = self.backend.frame(now_ns)
        if frame is not None:
            out.server.publish_camera(*frame)
        published_ns = time.monotonic_ns()
        out.stages["publish"].observe((published_ns - read_ns) * 1e-9)
        if index == self._slots_per_period - 1 and out.sim is not None:
            out.server.poll(0.0)  # a late command must not wait for an image
            out.expose(now_ns)
        if out.count_slots(1):
            out.server.poll(0.0)  # nor for the gauges
            out.update_metrics()
        if self._tracer is not None and self._tracer.due():
            self._trace(slot, began_ns, read_ns, published_ns)

    def _trace(self, slot: Slot, began_ns: int, read_ns: int, published_ns: int) -> None:
        """Make the slot that has just been run into a trace."""
        assert self._tracer is not None
        ended_ns = time.monotonic_ns()
        stages = [
            (self.backend.stage, began_ns, read_ns),
            ("publish", read_ns, published_ns),
            ("render and serve", published_ns, ended_ns),
        ]
        gate = self.handler.gate
        facts = {
            "krabby.safety": gate.state.name.lower(),
            "krabby.lateness_ms": (slot.woke_ns - slot.scheduled_ns) * 1e-6,
            "krabby.state.sequence": self._out.state_sequence,
        }
        self._tracer.trace("cycle", slot.woke_ns, ended_ns, stages, facts)

    def _serve_until(self, deadline_ns: int) -> None:
        """Serve what arrived during the slot, then what arrives until the next one."""
        server = self._out.server
        server.poll(0.0)
        while (left_ns := deadline_ns - time.monotonic_ns()) > 0:
            server.poll(left_ns * 1e-9)

    def _actuated(self, message: Message, applied_ns: int) -> None:
        if self.backend.buffered:
            self._pending = message  # when it reaches the drives is known when it goes out
        else:
            self._count_age(message, applied_ns)

    def _count_age(self, message: Message, applied_ns: int) -> None:
        """Count the age of the state behind a command that reaches the drives."""
        age_s = message.age_s(applied_ns)
        OBSERVATION.observe(age_s)
        self._observation_age.add(age_s)

    def _finished(self) -> bool:
        return 0.0 < self._duration_s <= self._out.sim_time_s

    def _summary(self) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "slots": self._out.slots,
            "slots_skipped": self._skipped,
            "slots_lost": self._lost,
            "deadline_misses": self._misses,
            "measurements_incomplete": self._incomplete,
            "commands": {status: count for status, count in self._out.commands.items() if count},
        }
        facts |= self._work.summary_ms(self.backend.stage)
        if not self.backend.lockstep:  # in simulated time an answer takes no time at all
            facts |= self._observation_age.summary_ms("obs_age")
        return facts | self._out.render.summary_ms("render")
