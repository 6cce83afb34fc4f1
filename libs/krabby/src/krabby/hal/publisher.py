"""What a HAL publishes and counts in every slot, alike in real time and in lock-step."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from krabby_proto import FLAG_RESET, NAV, TRACE, HalServer, Publisher, beside
from numpy.typing import NDArray

from krabby.hal.backend import HalBackend, Reading, SimBackend
from krabby.hal.handler import GateHandler
from krabby.hal.measurement import StatePayload
from krabby.hal.metrics import GateMetrics, OversizedRequests
from krabby.runtime.metrics import LOOP_PERIOD, LOOP_WORK, Quantiles, children

__all__ = ["HalPublisher"]

_NAV_PERIODS: Final = 5
"""Control periods between two walking commands: 20 Hz."""
_METRICS_SLOTS: Final = 43
"""Slots between two updates of the gauges; a prime, so that it falls on every part of a period."""


class HalPublisher:
    """The sockets of a HAL, its state and truth, the mission's walking commands, its metrics."""

    def __init__(
        self,
        backend: HalBackend,
        handler: GateHandler,
        endpoints: Mapping[str, str],
        update_metrics: Callable[[], None],
    ) -> None:
        self.backend = backend
        self.sim = backend if isinstance(backend, SimBackend) else None
        self.handler = handler
        self.endpoints = dict(endpoints)
        if self.endpoints.get("trace") == "":
            self.endpoints["trace"] = beside(self.endpoints["command"], TRACE)
        self.endpoints = {name: place for name, place in self.endpoints.items() if place}
        self.payload = StatePayload()
        self.slots = 0
        """Slots run."""
        self.state_sequence = 0
        """Of the newest state."""
        self.was_reset = False
        """Whether the next state has to say that the robot was respawned."""
        stages = (backend.stage, "publish", *(("render",) if self.sim is not None else ()))
        self.stages = children(LOOP_WORK, stages)
        self.render = Quantiles()
        self._server: HalServer | None = None
        self._nav: Publisher | None = None
        self._periods = 0
        self._last_period_ns: int | None = None
        self._gate_metrics = GateMetrics(handler, backend.desc.joint_names)
        self._oversized = OversizedRequests()
        self._update_backend_metrics = update_metrics

    @property
    def server(self) -> HalServer:
        """The sockets of the streams; there are none before `open`."""
        assert self._server is not None, "startup comes first"
        return self._server

    @property
    def commands(self) -> Mapping[str, int]:
        """Commands by status."""
        return {} if self._server is None else self._server.stats.commands

    @property
    def sim_time_s(self) -> float:
        """Simulated time since the start [s]; 0 on a robot."""
        return 0.0 if self.sim is None else self.sim.sim_time_s

    def open(self) -> None:
        """Bind the sockets."""
        backend, clock_ns = self.backend, self.backend.clock_ns
        self._server = HalServer(
            self.endpoints, hello=backend.hello(), handler=self.handler, clock_ns=clock_ns
        )
        if self.sim is not None and "nav" in self.endpoints:
            self._nav = Publisher(self.endpoints["nav"], NAV, clock=clock_ns, bind=False)

    def close(self) -> None:
        """Close what is open."""
        for each in (self._nav, self._server):
            if each is not None:
                each.close()

    def note(self, reading: Reading) -> None:
        """Take in what a slot found out."""
        self._gate_metrics.note_state(self.backend.clock_ns())
        self.was_reset = self.was_reset or reading.was_reset

    def publish_state(self, payload: NDArray[np.float32], capture_ns: int, flags: int) -> None:
        """Publish a state, and the gate as it is now in every reply that follows."""
        self.follow_gate()
        if self.was_reset:
            self.was_reset = False
            flags |= FLAG_RESET
        self.state_sequence = self.server.publish_state(payload, capture_ns, flags)

    def follow_gate(self) -> None:
        """Let every reply from now on carry the gate's state, faults and arm count."""
        gate = self.handler.gate
        self.server.follow_gate(int(gate.state), int(gate.faults), gate.arm_count)

    def begin_period(self, now_ns: int) -> None:
        """A control period begins: publish the truth of a simulation."""
        if self._last_period_ns is not None:
            LOOP_PERIOD.observe((now_ns - self._last_period_ns) * 1e-9)
        self._last_period_ns = now_ns
        self._periods += 1
        if self.sim is not None:
            truth = self.sim.control_tick(now_ns)
            if "truth" in self.endpoints:
                self.server.publish_truth(truth, now_ns)

    def walking_command(self) -> NDArray[np.float32] | None:
        """The mission's walking command, in every fifth control period."""
        if self.sim is None or self._nav is None or (self._periods - 1) % _NAV_PERIODS:
            return None
        return self.sim.mission()

    def publish_nav(self, command: NDArray[np.float32] | None, now_ns: int) -> None:
        """Publish a walking command, if there is one."""
        if command is not None and self._nav is not None:
            self._nav.publish(command, capture_ns=now_ns)

    def expose(self, now_ns: int) -> None:
        """Render the depth image that is due."""
        if self.sim is None or not self.sim.image_due(now_ns):
            return
        started_ns = time.monotonic_ns()
        self.sim.expose(now_ns)
        elapsed_s = (time.monotonic_ns() - started_ns) * 1e-9
        self.stages["render"].observe(elapsed_s)
        self.render.add(elapsed_s)

    def count_slots(self, slots: int) -> bool:
        """Count slots; returns whether the metrics are due."""
        before = self.slots // _METRICS_SLOTS
        self.slots += slots
        return self.slots // _METRICS_SLOTS != before

    def update_metrics(self) -> None:
        """Bring all metrics up to date."""
        self._gate_metrics.update(self.commands)
        self._oversized.update(self.server.oversized)
        self._update_backend_metrics()
