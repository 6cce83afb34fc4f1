"""The loop: an exchange with the drives in every slot, and in between whatever comes on the wire.

Slots lie on the grid of CLOCK_MONOTONIC, whose even ones begin a 10 ms control period at 200 Hz, as
in sim-hal. A command that arrives in a slot reaches the drives at the begin of the next.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from krabby.hal.handler import follow_gate, hal_hello, publish_state
from krabby.hal.metrics import OBSERVATION, OversizedRequests
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
from krabby_proto import HalServer

from krabby_jetson_hal.backend import Robot
from krabby_jetson_hal.camera_relay import CameraRelay
from krabby_jetson_hal.devices import Devices, load_devices
from krabby_jetson_hal.estop import open_estop
from krabby_jetson_hal.metrics import BUS_PERIOD, WORK, Exposition

if TYPE_CHECKING:
    from collections.abc import Mapping

    from krabby.runtime.app import Runtime
    from krabby.runtime.rate import Tick
    from krabby_proto import Message

    from krabby_jetson_hal.config import JetsonHalCfg

__all__ = ["JetsonHal"]

log = structlog.get_logger(__name__)

_CONTROL_HZ = 100.0
_GRACE = 0.8
"""Share of a slot by which it may begin late and is still run: a slot that is skipped is a state
that nobody gets."""
_METRICS_SLOTS = 43
"""Slots between two updates of the gauges; a prime, so that it falls on every part of a period."""
_SINK_STEP_S = 0.005
_STILL_STEPS = 40
"""Damped exchanges in a row that find the robot at rest before its drives are switched off."""


class JetsonHal:
    """`krabby.runtime.Service` around a `Robot`."""

    def __init__(self, cfg: JetsonHalCfg, devices: Devices | None = None) -> None:
        """Check what the configuration names; nothing is opened.

        Args:
            cfg: the configuration.
            devices: hardware in place of what the configuration names.
        """
        self._cfg = cfg
        self._desc = RobotDescription.load(Path(cfg.robot) if cfg.robot else None)
        self._devices = load_devices(cfg, self._desc) if devices is None else devices
        self._slot_ns = round(1e9 / self._devices.rate_hz)
        self._slots_per_period = round(self._devices.rate_hz / _CONTROL_HZ)
        self._reply_ns = min(round(cfg.cycle.reply_s * 1e9), round(0.8 * self._slot_ns))
        self.robot: Robot | None = None
        self.server: HalServer | None = None
        self._relay: CameraRelay | None = None
        self._exposition: Exposition | None = None
        self._oversized = OversizedRequests()
        self._pending: Message | None = None
        self._observation_age = Quantiles()
        self._period = Quantiles()
        self._exchange = Quantiles()
        self._began_ns: int | None = None
        self._last_period_ns: int | None = None
        self._slots = self._skipped = self._misses = self._incomplete = 0

    def startup(self) -> None:
        cfg, devices = self._cfg, self._devices
        estop = open_estop(cfg.estop)
        robot = Robot(cfg, self._desc, devices, estop, clock_ns=time.monotonic_ns)
        self.robot = robot
        robot.handler.on_actuated = self._handed_over
        if not devices.calibrated:
            log.warning(
                "not calibrated: every joint is taken to sit as hardware.toml has it, which only "
                "an emulated robot does",
                remedy="calibrate this robot and set can.calibration",
            )
        robot.open()
        robot.check_imu(time.sleep, cfg.imu.settle_s)
        endpoints = dataclasses.asdict(cfg.endpoints)
        raw = endpoints.pop("raw")
        self.server = HalServer(endpoints, hello=self._hello(), handler=robot)
        self._relay = CameraRelay(raw) if raw else None
        buses = tuple(dict.fromkeys(devices.bus_of_joint))
        self._exposition = Exposition(robot, self._relay, buses)
        robot.enable()
        log.info(
            "drives are on and limp; an operator arms them (krabby arm)",
            robot=self._desc.name,
            rate_hz=devices.rate_hz,
            bus_load={bus: round(load, 3) for bus, load in robot.bus.bus_load.items()},
            endpoints=self.server.endpoints,
        )

    def run(self, runtime: Runtime) -> None:
        rate = Rate(self._slot_ns * 1e-9, grace=_GRACE)
        collector = IdleCollector() if self._cfg.realtime.collect_when_idle else None
        while not runtime.stopping:
            tick = rate.wait()
            self._robot.next_exchange_ns = rate.next_deadline_ns
            self._slot(tick)
            if time.monotonic_ns() > rate.next_deadline_ns:
                DEADLINE_MISSES.inc()
                self._misses += 1
            self._serve_until(rate.next_deadline_ns)
            if collector is not None:
                collector.offer(rate.next_deadline_ns)
            runtime.beat()

    def shutdown(self) -> Mapping[str, object]:
        """Let the robot sink, switch its drives off, say what it came to."""
        summary = self._summary()
        if self.robot is not None:
            try:
                self._sink()
            finally:
                with contextlib.suppress(Exception):  # the sockets are of no help any more
                    self._update_metrics()
                self.robot.close()
        if self._relay is not None:
            self._relay.close()
        if self.server is not None:
            self.server.close()
        return summary

    # --- a slot ------------------------------------------------------------------------------

    def _slot(self, tick: Tick) -> None:
        self._note_times(tick)
        robot, server = self._robot, self._server
        began_ns = time.monotonic_ns()
        state = robot.cycle(began_ns + self._reply_ns)
        exchanged_ns = time.monotonic_ns()
        elapsed_s = (exchanged_ns - began_ns) * 1e-9
        WORK["exchange"].observe(elapsed_s)
        self._exchange.add(elapsed_s)
        self._count_age(began_ns)
        if self._exposition is not None:
            self._exposition.note_state(exchanged_ns)
        if state is None:
            self._incomplete += 1
            follow_gate(server, robot.gate)
        else:
            publish_state(server, robot.gate, *state)
        if self._relay is not None:
            self._relay.forward(server)
        WORK["publish"].observe((time.monotonic_ns() - exchanged_ns) * 1e-9)
        self._slots += 1
        if self._slots % _METRICS_SLOTS == 0:
            server.poll(0.0)  # a command must not wait for the gauges
            self._update_metrics()

    def _note_times(self, tick: Tick) -> None:
        LOOP_LATENESS.observe(tick.lateness_s)
        if tick.skipped:
            SKIPPED_CYCLES.inc(tick.skipped)
            self._skipped += tick.skipped
        if self._began_ns is not None:
            period_s = (tick.woke_ns - self._began_ns) * 1e-9
            BUS_PERIOD.observe(period_s)
            self._period.add(period_s)
        self._began_ns = tick.woke_ns
        if (tick.scheduled_ns // self._slot_ns) % self._slots_per_period == 0:
            if self._last_period_ns is not None:
                LOOP_PERIOD.observe((tick.woke_ns - self._last_period_ns) * 1e-9)
            self._last_period_ns = tick.woke_ns

    def _serve_until(self, deadline_ns: int) -> None:
        """Whatever the slot took: a command that is there goes out with the next exchange."""
        self._server.poll(0.0)
        while (left_ns := deadline_ns - time.monotonic_ns()) > 0:
            self._server.poll(left_ns * 1e-9)

    def _handed_over(self, message: Message, applied_ns: int) -> None:
        self._pending = message

    def _count_age(self, began_ns: int) -> None:
        """The newest command went out with this exchange: how old is the state behind it?"""
        if self._pending is not None:
            age_s = self._pending.age_s(began_ns)
            OBSERVATION.observe(age_s)
            self._observation_age.add(age_s)
            self._pending = None

    # --- the end -----------------------------------------------------------------------------

    def _sink(self) -> None:
        """Damped exchanges until the robot lies still or the time is over."""
        robot = self._robot
        robot.gate.request("disarm", time.monotonic_ns())
        end_ns = time.monotonic_ns() + round(self._cfg.cycle.damp_on_exit_s * 1e9)
        still = 0
        while time.monotonic_ns() < end_ns and still < _STILL_STEPS:
            begin_ns = time.monotonic_ns()
            still = still + 1 if robot.sink(begin_ns + self._reply_ns) else 0
            time.sleep(max(0.0, _SINK_STEP_S - (time.monotonic_ns() - begin_ns) * 1e-9))

    # --- what is said about it ---------------------------------------------------------------

    @property
    def _robot(self) -> Robot:
        assert self.robot is not None, "startup comes first"
        return self.robot

    @property
    def _server(self) -> HalServer:
        assert self.server is not None, "startup comes first"
        return self.server

    def _hello(self) -> dict[str, Any]:
        return hal_hello(
            "jetson-hal",
            self._desc,
            camera=dataclasses.asdict(self._desc.camera) if self._cfg.endpoints.raw else None,
            extra={
                "rate_hz": self._devices.rate_hz,
                "calibrated": self._devices.calibrated,
            },
        )

    def _update_metrics(self) -> None:
        if self._exposition is not None:
            self._exposition.update(self._server.stats.commands, time.monotonic_ns())
            self._oversized.update(self._server.oversized)

    def _summary(self) -> dict[str, Any]:
        robot = self.robot
        commands = {} if self.server is None else dict(self.server.stats.commands)
        facts: dict[str, Any] = {
            "slots": self._slots,
            "slots_skipped": self._skipped,
            "deadline_misses": self._misses,
            "measurements_incomplete": self._incomplete,
            "commands": {status: count for status, count in commands.items() if count},
            "frames": 0 if self._relay is None else self._relay.forwarded,
        }
        if robot is not None:
            position = int(robot.handler.position_clamps.sum())
            rate = int(robot.handler.rate_clamps.sum())
            facts |= {
                "gate_clamps": position + rate,
                "gate_position_clamps": position,
                "gate_rate_clamps": rate,
                "bus_load": {bus: round(load, 3) for bus, load in robot.bus.bus_load.items()},
            }
            if robot.readings is not None:
                facts["replies_missed"] = int(robot.readings.missed.sum())
        facts |= self._period.summary_ms("bus_period")
        facts |= self._exchange.summary_ms("exchange")
        return facts | self._observation_age.summary_ms("obs_age")
