"""What the controller takes in and decides, tick by tick, on the stream `ticks`.

The controller notes its inputs itself (`krabby.control.tape`); this adds what a tick is given and
what came of it, and publishes after the command has left, so that it delays none. From any record
with a snapshot on, every command can be computed again: `krabby_proto.ticks`.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Final, NamedTuple

import numpy as np
from krabby.control import snapshot
from krabby.control.controller import JointCommand, LocomotionController
from krabby.control.policy_manager import PolicyRunner
from krabby.policy.observation import ObservationLayout
from krabby_proto import (
    FLAG_LOCKSTEP,
    TICKS,
    Exchange,
    Message,
    Publisher,
    SafetyState,
    TickRecord,
    beside,
)
from numpy.typing import NDArray

from krabby_gameloop.config import EndpointsCfg

__all__ = ["HostClock", "Tape"]

_STATUS_TICKS: Final = 100
"""The status is written when it changed, and after so many ticks; a snapshot after as many."""
_EXCHANGES: Final = 8
"""Answers to operators that one tick writes down; more wait for the next one."""
_READINGS: Final = 512
"""Readings of the clock that are kept where no tick comes to write them down."""


class HostClock:
    """CLOCK_MONOTONIC that remembers what it said since the last tick."""

    def __init__(self) -> None:
        self._read_ns: deque[int] = deque(maxlen=_READINGS)

    def __call__(self) -> int:
        """Now [ns]."""
        now_ns = time.monotonic_ns()
        self._read_ns.append(now_ns)
        return now_ns

    def take(self) -> list[int]:
        """The readings since the last call, in order [ns]."""
        taken = list(self._read_ns)
        self._read_ns.clear()
        return taken


class _Decision(NamedTuple):
    inputs: list[bytes]
    state: Message | None
    features: Message | None
    now_ns: int
    sent: JointCommand | None
    stepped: PolicyRunner | None
    safety: SafetyState
    host_ns: list[int]


class Tape:
    """Publishes a record of every tick, where recorders listen; never waits."""

    def __init__(self) -> None:
        """Not open: nothing is published, and what would be is dropped."""
        self.record = TickRecord()
        """Takes the controller's inputs."""
        self.host_clock = HostClock()
        """The one that the controller judges operators by."""
        self.leaving = False
        """Whether the robot was told to sit down for good."""
        self._publisher: Publisher | None = None
        self._decision: _Decision | None = None
        self._exchanges: deque[Exchange] = deque(maxlen=4 * _EXCHANGES)
        self._status: tuple[object, ...] = ()
        self._newest: tuple[ObservationLayout, NDArray[np.intp]] | None = None
        self._ticks = 0

    def open(self, endpoints: EndpointsCfg) -> None:
        """Bind the stream, where the configuration has one."""
        endpoint = endpoints.ticks or beside(endpoints.control, TICKS)
        if endpoint:
            self._publisher = Publisher(endpoint, TICKS)

    @property
    def endpoint(self) -> str:
        """Where it is bound; empty for nowhere."""
        return "" if self._publisher is None else self._publisher.endpoint

    def answered(self, exchange: Exchange) -> None:
        """An operator's request was answered; called by the thread that answers."""
        self._exchanges.append(exchange)

    def begin(self, controller: LocomotionController) -> None:
        """Before the first tick: write down what the controller begins with."""
        if self._ticks == 0 and self._publisher is not None:
            self.record.add_snapshot(snapshot.pack(controller))

    def decided(
        self,
        controller: LocomotionController,
        state: Message | None,
        features: Message | None,
        now_ns: int,
        sent: JointCommand | None,
        stepped: PolicyRunner | None,
    ) -> None:
        """The controller decided on these; `stepped` is the policy that was asked.

        What it takes in from here on belongs to the next record.
        """
        inputs, host_ns = self.record.cut(), self.host_clock.take()
        if self._publisher is not None:
            safety = controller.permission.safety
            self._decision = _Decision(
                inputs, state, features, now_ns, sent, stepped, safety, host_ns
            )

    def publish(self, controller: LocomotionController, command_sequence: int) -> None:
        """Publish the record of the tick that was decided last, if it was not yet.

        Args:
            controller: That decided.
            command_sequence: Of the command that was sent, if one was.
        """
        publisher, decision = self._publisher, self._decision
        if publisher is None or decision is None:
            return
        self._decision = None
        content = self._finish(controller, decision, command_sequence)
        state = decision.state
        lockstep = 0 if state is None else state.flags & FLAG_LOCKSTEP
        if content is None:
            publisher.leave_out(1)
        else:
            publisher.publish(
                content,
                capture_ns=decision.now_ns,
                publish_ns=decision.now_ns if lockstep else None,
                flags=lockstep,
            )
        if self._ticks % _STATUS_TICKS == 0:
            self.record.add_snapshot(snapshot.pack(controller))
        self._ticks += 1

    def _finish(
        self, controller: LocomotionController, decision: _Decision, command_sequence: int
    ) -> bytes | None:
        record, sent = self.record, decision.sent
        late = record.cut()  # replies to this command, which the next tick begins with
        record.add_parts(decision.inputs)
        record.add_decided_on(decision.state, decision.features)
        if sent is not None:
            record.add_decision(sent.joint_pos, controller.nav.command, controller.nav.asked)
        if decision.stepped is not None:
            self._add_observed(decision.stepped)
        self._add_status(controller)
        for _ in range(min(_EXCHANGES, len(self._exchanges))):
            record.add_exchange(self._exchanges.popleft())
        content = record.finish(
            tick=self._ticks,
            now_ns=decision.now_ns,
            mode=controller.mode.value,
            safety_state=int(decision.safety),
            sent=sent is not None,
            hal_checked=controller.hal_checked,
            leaving=self.leaving,
            command_sequence=command_sequence if sent is not None else 0,
            host_ns=decision.host_ns,
        )
        record.add_parts(late)
        return content

    def _add_observed(self, runner: PolicyRunner) -> None:
        """The newest frame of every term of the observation."""
        observation, layout = runner.history, runner.bundle.observation
        if observation is None:
            return
        if self._newest is None or self._newest[0] is not layout:
            ends = [layout.slices[term.name].stop for term in layout.terms]
            parts = zip(ends, layout.terms, strict=True)
            places = [np.arange(end - term.size, end) for end, term in parts]
            self._newest = layout, np.concatenate(places)
        self.record.add_observed(observation[0, self._newest[1]])

    def _add_status(self, controller: LocomotionController) -> None:
        """Which policy walks, on what: when that changed, and from time to time."""
        policies, nav = controller.policies, controller.nav
        facts = (
            policies.chosen.bundle.name,
            policies.active.bundle.name,
            policies.blind,
            policies.sight,
            nav.source,
        )
        if facts == self._status and self._ticks % _STATUS_TICKS:
            return
        self._status = facts
        names = ("policy", "walking", "blind", "sight", "nav_source")
        self.record.add_status(dict(zip(names, facts, strict=True)))

    def close(self) -> None:
        """Close the socket."""
        if self._publisher is not None:
            self._publisher.close()
            self._publisher = None
