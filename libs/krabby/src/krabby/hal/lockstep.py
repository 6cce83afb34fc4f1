"""The HAL loop in lock-step, for a simulation on a `SimulatedClock`.

The clock stands still while the loop waits for the one command that answers the state it published;
until then it publishes the same again. Nothing depends on how long that takes or on the order in
which peers connect, so a run repeats exactly.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from krabby_proto import FLAG_FEATURES_DUE, FLAG_LOCKSTEP, FLAG_NAV_DUE, FLAG_RESET
from numpy.typing import NDArray

from krabby.course.timing import CONTROL_HZ
from krabby.hal.backend import Image, Reading, SimBackend, SimulatedClock, Slot
from krabby.hal.config import LockstepCfg
from krabby.hal.errors import BackendUnusable, LoopSilent
from krabby.hal.publisher import HalPublisher
from krabby.runtime.app import Runtime

__all__ = ["Lockstep"]

_RESEND_S: Final = 0.2
"""How often an unanswered turn is published again: a subscriber that is still connecting misses
what was published before."""
_FAREWELL_S: Final = 0.05
"""Time for the answer to the last command to leave before the sockets close."""


class _Turn(NamedTuple):
    """What one control period publishes, however often."""

    now_ns: int
    frame: Image | None
    nav: NDArray[np.float32] | None
    state: NDArray[np.float32]
    flags: int


class Lockstep:
    """One turn for each control period: measure, publish, wait for the command."""

    def __init__(
        self, out: HalPublisher, sim: SimBackend, clock: SimulatedClock, cfg: LockstepCfg
    ) -> None:
        self._out = out
        self._sim = sim
        self._clock = clock
        self._cfg = cfg

    def run(self, runtime: Runtime, finished: Callable[[], bool]) -> None:
        """Work until told to stop or finished."""
        out, sim, clock = self._out, self._sim, self._clock
        slot_ns = round(1e9 / sim.rate_hz)
        slots = round(sim.rate_hz / CONTROL_HZ)
        # A picture of this moment: peers may have missed any earlier one.
        reading = sim.read(Slot(clock.now_ns, clock.now_ns, 0, clock.now_ns + slot_ns))
        self._take_turn(runtime, reading, self._cfg.start_timeout_s, sim.picture(clock.now_ns))
        while not runtime.stopping and not finished():
            for index in range(slots):
                clock.now_ns += slot_ns
                now_ns = clock.now_ns
                reading = out.handler.cycle(Slot(now_ns, now_ns, 1, now_ns + slot_ns))
                out.note(reading)
                if index + 1 < slots:
                    out.expose(now_ns)
            self._take_turn(runtime, reading, self._cfg.answer_timeout_s)
            if out.count_slots(slots):
                out.update_metrics()
        out.server.poll(_FAREWELL_S)

    def _take_turn(
        self, runtime: Runtime, reading: Reading, timeout_s: float, picture: Image | None = None
    ) -> None:
        turn = self._turn(reading, picture)
        self._publish(turn)
        self._await_command(runtime, turn, timeout_s)

    def _turn(self, reading: Reading, picture: Image | None) -> _Turn:
        """Decide what this control period publishes."""
        out, now_ns = self._out, self._clock.now_ns
        if reading.measured is None:
            raise BackendUnusable(
                f"{self._sim.name} has an incomplete measurement in lock-step; a simulator "
                "always measures"
            )
        out.begin_period(now_ns)
        frame = self._sim.frame(now_ns)
        frame = frame if picture is None else picture
        nav = out.walking_command()
        flags = FLAG_LOCKSTEP
        flags |= FLAG_FEATURES_DUE if frame is not None else 0
        flags |= FLAG_NAV_DUE if nav is not None else 0
        if out.was_reset:
            out.was_reset = False
            flags |= FLAG_RESET
        out.handler.expected_capture_ns = now_ns
        return _Turn(now_ns, frame, nav, out.payload.fill(reading.measured), flags)

    def _publish(self, turn: _Turn) -> None:
        """What the answer depends on first, the state last."""
        if turn.frame is not None:
            image, capture_ns, flags = turn.frame
            self._out.server.publish_camera(image, capture_ns, flags | FLAG_LOCKSTEP)
        self._out.publish_nav(turn.nav, turn.now_ns)
        self._out.publish_state(turn.state, turn.now_ns, turn.flags)

    def _await_command(self, runtime: Runtime, turn: _Turn, timeout_s: float) -> None:
        """Wait for the turn's answer, publishing it again from time to time.

        Raises:
            LoopSilent: None came in time.
        """
        began_s = time.monotonic()
        resend_s = began_s + _RESEND_S
        while not runtime.stopping and self._out.handler.last_command_ns != turn.now_ns:
            runtime.beat()
            now_s = time.monotonic()
            if now_s >= began_s + timeout_s:
                raise LoopSilent(self._silence(timeout_s))
            if now_s >= resend_s:
                resend_s = now_s + _RESEND_S
                self._publish(turn)
            self._out.server.poll(min(began_s + timeout_s, resend_s) - now_s)
        runtime.beat()

    def _silence(self, timeout_s: float) -> str:
        """What happened when the game loop does not answer, and what to do."""
        look = "its log names what it waits for: a policy with vision needs the camera service"
        if self._out.handler.last_command_ns is None:
            endpoints = self._out.endpoints
            return (
                f"no command within {timeout_s:g} s of the first state; start the gameloop with "
                f"endpoints.state={endpoints['state']} and "
                f"endpoints.command={endpoints['command']}. If it runs, {look}"
            )
        return (
            f"the game loop did not answer the state of simulated time {self._sim.sim_time_s:.3f} "
            f"s within {timeout_s:g} s; {look}. Raise lockstep.answer_timeout_s if this machine is "
            "that slow"
        )
