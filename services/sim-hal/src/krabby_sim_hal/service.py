"""The loop: physics every 5 ms, state out, commands in until the next slot.

Real time: slots lie on the grid of CLOCK_MONOTONIC. Even slots begin a 10 ms control period, whose
command arrives some 3 ms later; depth images are made in odd slots, where none is expected.

Lock-step: the clock is simulated and stands still while the loop waits for the one command that
answers the state it published; what it said is said again until then. Nothing depends on how long
that takes or who connects when, so a run repeats exactly.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import mujoco
import structlog
from krabby.course.courses import make_course
from krabby.hal.handler import hal_hello, publish_state
from krabby.hal.metrics import OBSERVATION, OversizedRequests
from krabby.mujoco.camera_faults import answer_fault_request
from krabby.mujoco.depth_camera import Frame
from krabby.mujoco.world import SUBSTEP_NS
from krabby.robot.description import RobotDescription
from krabby.runtime.metrics import (
    DEADLINE_MISSES,
    LOOP_LATENESS,
    LOOP_PERIOD,
    SKIPPED_CYCLES,
    Quantiles,
)
from krabby.runtime.rate import Rate
from krabby.runtime.realtime import IdleCollector
from krabby_proto import (
    FLAG_FEATURES_DUE,
    FLAG_LOCKSTEP,
    FLAG_NAV_DUE,
    FLAG_RESET,
    NAV,
    ControlServer,
    HalServer,
    Message,
    Publisher,
)

from krabby_sim_hal.backend import Simulator
from krabby_sim_hal.errors import LoopSilent
from krabby_sim_hal.metrics import WORK, Exposition

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from krabby.runtime.app import Runtime
    from krabby.runtime.rate import Tick
    from numpy.typing import NDArray

    from krabby_sim_hal.config import SimHalCfg

__all__ = ["SimHal"]

log = structlog.get_logger(__name__)

SLOT_NS = 5_000_000
"""Physics, gate and state run at 200 Hz."""
SLOTS_PER_PERIOD = 2
"""The game loop's control period: 100 Hz."""
SUBSTEPS_PER_SLOT = SLOT_NS // SUBSTEP_NS

_CATCH_UP_SLOTS = 4
"""Missed slots whose physics is made up for at most; after a longer stall simulated time falls
behind instead of running off in a burst."""
_GRACE = 0.8
"""Share of a slot by which it may begin late and is still run: its work takes about a tenth, and
a slot that is skipped is a state that nobody gets."""
_NAV_PERIODS = 5
"""Control periods between two walking commands: 20 Hz."""
_METRICS_SLOTS = 21
"""Slots between two updates of the gauges; odd, so that it falls on both kinds of slot."""
_RESEND_S = 0.2
"""Lock-step: how often what was not answered yet is said again, since a subscriber that is still
connecting misses what was said before."""
_FAREWELL_S = 0.05
"""Lock-step: time for the answer to the last command to leave before the sockets close."""


class SimulatedClock:
    """Nanoseconds that pass when the simulation says so."""

    def __init__(self) -> None:
        # Not 0, which means "never" in replies; the same in every run, so that runs repeat.
        self.now_ns = 1_000_000_000

    def __call__(self) -> int:
        return self.now_ns


class _Turn(NamedTuple):
    """Lock-step: what one control period says, however often."""

    now_ns: int
    frame: Frame | None
    nav: NDArray[np.float32] | None
    state: NDArray[np.float32]
    flags: int


class SimHal:
    """`krabby.runtime.Service` around a `Simulator`."""

    def __init__(self, cfg: SimHalCfg) -> None:
        self._cfg = cfg
        self._lockstep = cfg.speed == 0.0
        self._simulated = SimulatedClock()
        self._clock_ns = self._simulated if self._lockstep else time.monotonic_ns
        desc = RobotDescription.load(Path(cfg.robot) if cfg.robot else None)
        course = make_course(cfg.course.name, cfg.course.difficulty, cfg.course.seed)
        self.sim = Simulator(cfg, desc, course, clock_ns=self._clock_ns)
        self.sim.handler.on_actuated = self._actuated
        self.server: HalServer | None = None
        self._nav: Publisher | None = None
        self._faults: ControlServer | None = None
        self._exposition = Exposition(self.sim)
        self._oversized = OversizedRequests()
        self._observation_age = Quantiles()
        self._render_time = Quantiles()
        self._periods = 0
        self._slots = 0
        self._skipped = 0
        self._lost_slots = 0
        self._last_period_ns: int | None = None
        self._turn: _Turn | None = None
        self._started_s = time.monotonic()

    def startup(self) -> None:
        cfg = self._cfg
        self.server = HalServer(
            dataclasses.asdict(cfg.endpoints),
            hello=self._hello(),
            handler=self.sim,
            clock_ns=self._clock_ns,
        )
        if cfg.mission.enabled:
            self._nav = Publisher(cfg.endpoints.nav, NAV, clock=self._clock_ns, bind=False)
        if cfg.endpoints.fault:
            self._faults = ControlServer(cfg.endpoints.fault, hello=self._hello())
        log.info(
            "simulating",
            course=self.sim.course.name,
            boxes=len(self.sim.course.boxes),
            waypoints=self.sim.progress.count,
            robot=self.sim.desc.name,
            endpoints=self.server.endpoints,
        )

    def run(self, runtime: Runtime) -> None:
        self._started_s = time.monotonic()
        if self._lockstep:
            self._run_lockstep(runtime)
        else:
            self._run_realtime(runtime)

    def shutdown(self) -> Mapping[str, object]:
        summary = self.sim.summary() | self._loop_summary()
        if self._nav is not None:
            self._nav.close()
        if self._faults is not None:
            self._faults.close()
        if self.server is not None:
            self._update_metrics()
            self.server.close()
        return summary

    # --- real time ---------------------------------------------------------------------------

    def _run_realtime(self, runtime: Runtime) -> None:
        rate = Rate(SLOT_NS * 1e-9, grace=_GRACE)
        collector = IdleCollector() if self._cfg.realtime.collect_when_idle else None
        while not runtime.stopping and not self._finished():
            tick = rate.wait()
            self._slot(tick)
            if time.monotonic_ns() > rate.next_deadline_ns:
                DEADLINE_MISSES.inc()
            self._serve_until(rate.next_deadline_ns)
            if collector is not None:
                collector.offer(rate.next_deadline_ns)
            runtime.beat()

    def _slot(self, tick: Tick) -> None:
        started_ns = time.monotonic_ns()
        LOOP_LATENESS.observe(tick.lateness_s)
        slots = 1 + min(tick.skipped, _CATCH_UP_SLOTS)
        if tick.skipped:
            SKIPPED_CYCLES.inc(tick.skipped)
            self._skipped += tick.skipped
            self._lost_slots += 1 + tick.skipped - slots
        self.sim.advance(tick.scheduled_ns, tick.woke_ns, slots * SUBSTEPS_PER_SLOT)
        self._exposition.note_state(tick.woke_ns)
        advanced_ns = time.monotonic_ns()
        WORK["physics"].observe((advanced_ns - started_ns) * 1e-9)
        state, was_reset = self.sim.state()
        flags = FLAG_RESET if was_reset else 0
        publish_state(self._server, self.sim.gate, state, tick.woke_ns, flags)
        begins_period = (tick.scheduled_ns // SLOT_NS) % SLOTS_PER_PERIOD == 0
        if begins_period:
            self._begin_period(tick.woke_ns)
            if self._nav is not None and self._nav_due:
                self._nav.publish(self.sim.nav().as_array(), capture_ns=tick.woke_ns)
        frame = self._frame(tick.woke_ns)
        if frame is not None:
            self._server.publish_camera(frame.image, frame.capture_ns, 0)
        WORK["publish"].observe((time.monotonic_ns() - advanced_ns) * 1e-9)
        if not begins_period:
            self._serve(0.0)  # a late command must not wait for an image
            self._expose(tick.woke_ns)
        self._slots += 1
        if self._slots % _METRICS_SLOTS == 0:
            self._update_metrics()

    def _serve_until(self, deadline_ns: int) -> None:
        while (left_ns := deadline_ns - time.monotonic_ns()) > 0:
            self._serve(left_ns * 1e-9)

    # --- lock-step ---------------------------------------------------------------------------

    def _run_lockstep(self, runtime: Runtime) -> None:
        clock = self._simulated
        self._begin_turn()
        self._await_command(runtime, self._cfg.lockstep.start_timeout_s)
        while not runtime.stopping and not self._finished():
            for slot in range(SLOTS_PER_PERIOD):
                clock.now_ns += SLOT_NS
                self.sim.advance(clock.now_ns, clock.now_ns, SUBSTEPS_PER_SLOT)
                self._exposition.note_state(clock.now_ns)
                if slot + 1 < SLOTS_PER_PERIOD:
                    self._expose(clock.now_ns)
            self._begin_turn()
            self._await_command(runtime, self._cfg.lockstep.answer_timeout_s)
            self._slots += SLOTS_PER_PERIOD
            if self._periods % _METRICS_SLOTS == 0:
                self._update_metrics()
        self._serve(_FAREWELL_S)

    def _begin_turn(self) -> None:
        """Decide what this control period says, and say it for the first time."""
        now_ns = self._simulated.now_ns
        first = self._periods == 0
        self._begin_period(now_ns)
        frame = self._frame(now_ns)
        if first and self.sim.camera is not None:
            # Whoever is to see must hear the camera before time moves: a picture of this moment.
            frame = Frame(self.sim.depth(), now_ns, now_ns)
        nav = self.sim.nav().as_array() if self._nav is not None and self._nav_due else None
        state, was_reset = self.sim.state()
        flags = FLAG_LOCKSTEP
        flags |= FLAG_RESET if was_reset else 0
        flags |= FLAG_FEATURES_DUE if frame is not None else 0
        flags |= FLAG_NAV_DUE if nav is not None else 0
        self.sim.expected_capture_ns = now_ns
        self._turn = _Turn(now_ns, frame, nav, state, flags)
        self._say()

    def _say(self) -> None:
        """Send the turn: what its answer depends on first, the state last."""
        turn = self._turn
        assert turn is not None, "a turn begins first"
        if turn.frame is not None:
            self._server.publish_camera(turn.frame.image, turn.frame.capture_ns, FLAG_LOCKSTEP)
        if turn.nav is not None and self._nav is not None:
            self._nav.publish(turn.nav, capture_ns=turn.now_ns)
        publish_state(self._server, self.sim.gate, turn.state, turn.now_ns, turn.flags)

    def _await_command(self, runtime: Runtime, timeout_s: float) -> None:
        """Wait for the turn's answer, saying it again and again: who connects late missed it.

        Raises:
            LoopSilent: None came in time.
        """
        began_s = time.monotonic()
        resend_s = began_s + _RESEND_S
        now_ns = self._simulated.now_ns
        while not runtime.stopping and self.sim.last_command_ns != now_ns:
            runtime.beat()
            now_s = time.monotonic()
            if now_s >= began_s + timeout_s:
                raise LoopSilent(self._silence(timeout_s))
            if now_s >= resend_s:
                resend_s = now_s + _RESEND_S
                self._say()
            self._serve(min(began_s + timeout_s, resend_s) - now_s)
        runtime.beat()

    def _silence(self, timeout_s: float) -> str:
        """What a game loop that does not answer comes to, and what to do."""
        look = "its log says what it waits for: a policy that sees needs the camera service"
        if self.sim.last_command_ns is None:
            endpoints = self._cfg.endpoints
            return (
                f"no command within {timeout_s:g} s of the first state; start the gameloop with "
                f"endpoints.state={endpoints.state} and endpoints.command={endpoints.command}. "
                f"If it runs, {look}"
            )
        return (
            f"the game loop did not answer the state of simulated time "
            f"{self.sim.world.sim_time_s:.3f} s within {timeout_s:g} s; {look}. Raise "
            "lockstep.answer_timeout_s if this machine is that slow"
        )

    # --- parts of a slot ---------------------------------------------------------------------

    def _begin_period(self, now_ns: int) -> None:
        if self._last_period_ns is not None:
            LOOP_PERIOD.observe((now_ns - self._last_period_ns) * 1e-9)
        self._last_period_ns = now_ns
        self._periods += 1
        self._server.publish_truth(self.sim.control_tick(now_ns), now_ns)
        if self._faults is not None:
            self._faults.poll(
                0.0, lambda request: answer_fault_request(self.sim.camera, request, now_ns)
            )

    @property
    def _nav_due(self) -> bool:
        """Whether the mission speaks in this control period."""
        return (self._periods - 1) % _NAV_PERIODS == 0

    def _expose(self, now_ns: int) -> None:
        camera = self.sim.camera
        if camera is None or not camera.due(now_ns):
            return
        started_ns = time.monotonic_ns()
        self.sim.expose(now_ns)
        elapsed_s = (time.monotonic_ns() - started_ns) * 1e-9
        WORK["render"].observe(elapsed_s)
        self._render_time.add(elapsed_s)

    def _frame(self, now_ns: int) -> Frame | None:
        """The image whose latency has passed, None when there is none."""
        return None if self.sim.camera is None else self.sim.camera.pop(now_ns)

    def _serve(self, timeout_s: float) -> None:
        self._server.poll(timeout_s)

    def _actuated(self, message: Message, applied_ns: int) -> None:
        age_s = message.age_s(applied_ns)
        OBSERVATION.observe(age_s)
        self._observation_age.add(age_s)

    def _finished(self) -> bool:
        duration_s = self._cfg.duration_s
        return duration_s > 0.0 and self.sim.world.sim_time_s >= duration_s

    @property
    def _server(self) -> HalServer:
        assert self.server is not None, "startup comes first"
        return self.server

    # --- what is said about it ---------------------------------------------------------------

    @property
    def _real_time_factor(self) -> float:
        return self.sim.world.sim_time_s / max(time.monotonic() - self._started_s, 1e-9)

    def _hello(self) -> dict[str, Any]:
        desc, course, camera = self.sim.desc, self.sim.course, self.sim.desc.camera
        return hal_hello(
            "sim-hal",
            desc,
            clock="simulated" if self._lockstep else "monotonic",
            camera=dataclasses.asdict(camera) if self._cfg.camera.enabled else None,
            extra={
                "simulator": f"mujoco {mujoco.__version__}",
                "course": {
                    "name": course.name,
                    "difficulty": course.difficulty,
                    "seed": course.seed,
                    "hash": course.content_hash,
                    "spawn": course.spawn,
                    "waypoints": course.waypoints.round(4).tolist(),
                },
            },
        )

    def _update_metrics(self) -> None:
        self._exposition.update(self._server.stats.commands, self._real_time_factor)
        self._oversized.update(self._server.oversized)

    def _loop_summary(self) -> dict[str, Any]:
        commands = {} if self.server is None else dict(self.server.stats.commands)
        camera = self.sim.camera
        facts: dict[str, Any] = {
            "real_time_factor": round(self._real_time_factor, 4),
            "slots": self._slots,
            "slots_skipped": self._skipped,
            "slots_lost": self._lost_slots,
            "commands": {status: count for status, count in commands.items() if count},
            "frames": 0 if camera is None else camera.captured,
            "frames_dropped": 0 if camera is None else camera.dropped,
        }
        if not self._lockstep:  # in simulated time an answer takes no time at all
            facts |= self._observation_age.summary_ms("obs_age")
        return facts | self._render_time.summary_ms("render")
