"""The HAL's side of the contract: publishes what is measured, serves commands and operators.

A simulator or a robot driver owns the loop; `HalServer.poll` fits between two physics slots.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from krabby_proto.admission import CommandAdmission, untimely
from krabby_proto.codec import Message
from krabby_proto.endpoint import Closing, Context
from krabby_proto.errors import EndpointError
from krabby_proto.exchanges import Exchange, ExchangeKind
from krabby_proto.hello import HELLO_TOPIC, HelloAnswer, parse_request
from krabby_proto.replies import CommandOutcome, CommandReply, SafetyOutcome
from krabby_proto.requests import Request, Router, serve_within
from krabby_proto.sockets import Publisher
from krabby_proto.states import SAFETY_OPS, CommandStatus
from krabby_proto.streams import CAMERA, COMMAND, SAFETY, STATE, TRACE, TRUTH

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["HalHandler", "HalServer", "ServerStats"]

_COMMAND_BATCH: Final = 128  # a second of commands at 100 Hz; more wait for the next poll
_SAFETY_BATCH: Final = 16
_TRACED: Final = 8
"""Records that are published after one batch of requests; of a flood the others are left out."""


class HalHandler(Protocol):
    """Handles commands and requests; called from `HalServer.poll`."""

    def on_command(self, message: Message) -> CommandOutcome:
        """Pass a valid command (joint targets [rad], shape (18,)) to the gate and the drives."""
        ...

    def on_safety(self, op: str, by: str) -> SafetyOutcome:
        """Carry out one of `SAFETY_OPS` for the operator named `by`."""
        ...


class ServerStats:
    """Counters since the start."""

    def __init__(self) -> None:
        self.commands: dict[str, int] = {status.name.lower(): 0 for status in CommandStatus}
        """Commands by status name, every status present."""
        self.hellos = 0


class HalServer(Closing):
    """Binds a HAL's endpoints; single-threaded, driven by the owner's loop.

    Args:
        endpoints: stream name to endpoint; ``state`` and ``command`` are needed, ``camera``,
            ``safety``, ``trace`` and ``truth`` are bound when given, others are ignored.
        hello: what `make_hello` gives; the server adds its instance id.
        handler: receives commands and operators' requests.
        clock_ns: the clock that stamps states; simulated time in lock-step.
        ttl_s: age since publishing from which a command is refused [s].
        lease_s: silence after which another writer may take over [s].
        capture_ttl_s: age of the state a command was computed from, from which it is refused [s].
        process_clock_ns: the clock of leases and operators' requests, which are about processes:
            CLOCK_MONOTONIC when the HAL's clock is simulated, else `clock_ns`.
        context: needed for ``inproc://`` only.
    """

    def __init__(
        self,
        endpoints: Mapping[str, str],
        *,
        hello: Mapping[str, object],
        handler: HalHandler,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        ttl_s: float = 0.025,
        lease_s: float = 0.5,
        capture_ttl_s: float = 0.1,
        process_clock_ns: Callable[[], int] | None = None,
        context: Context | None = None,
    ) -> None:
        missing = [s.name for s in (STATE, COMMAND) if s.name not in endpoints]
        if missing:
            raise EndpointError(f"no endpoint for {', '.join(missing)}; set endpoints.{missing[0]}")
        simulated = hello.get("clock") == "simulated"
        self._handler = handler
        self._clock_ns = clock_ns
        self._process_clock_ns = process_clock_ns or (time.monotonic_ns if simulated else clock_ns)
        self.admission = CommandAdmission(ttl_s=ttl_s, lease_s=lease_s, capture_ttl_s=capture_ttl_s)
        self.stats = ServerStats()
        self.safety_state = 0
        """Safety state put into every reply; follows the handler's outcomes, settable."""
        self.fault_bits = 0
        """Fault bits put into every reply; follow the handler's outcomes, settable."""
        self.arm_count = 0
        """Arm count put into every reply; follows the handler's outcomes, settable."""
        self._applied_instance = 0
        self._applied_sequence = 0
        self._applied_ns = 0
        self._traced_gate: tuple[int, int] | None = None
        self._exchanges: list[Exchange] = []
        self._untold = 0
        """Exchanges of this batch beyond those that are published."""
        self._publishers: dict[str, Publisher] = {}
        self._routers: dict[str, Router] = {}
        try:
            for stream in (STATE, CAMERA, TRACE, TRUTH):
                if stream.name in endpoints:
                    self._publishers[stream.name] = Publisher(
                        endpoints[stream.name], stream, clock=clock_ns, context=context
                    )
            for name in (COMMAND.name, SAFETY.name):
                if name in endpoints:
                    self._routers[name] = Router(endpoints[name], name=name, context=context)
        except BaseException:
            self.close()
            raise
        self._command = self._routers[COMMAND.name]
        self._safety = self._routers.get(SAFETY.name)
        self._trace = self._publishers.get(TRACE.name)
        self.instance_id = self._publishers[STATE.name].instance_id
        self._hello = HelloAnswer(hello, self.instance_id, self._process_clock_ns)

    @property
    def endpoints(self) -> dict[str, str]:
        """Bound addresses by stream, wildcard ports resolved."""
        sockets = {**self._publishers, **self._routers}
        return {name: socket.endpoint for name, socket in sockets.items()}

    @property
    def oversized(self) -> dict[str, int]:
        """Requests dropped for having more frames than the contract has, by endpoint."""
        return {name: router.oversized for name, router in self._routers.items()}

    def publish_state(self, payload: ArrayLike, capture_ns: int, flags: int = 0) -> int:
        """Publish a state, shape (70,) as `STATE` lays it out; returns its sequence."""
        return self._publishers["state"].publish(payload, capture_ns=capture_ns, flags=flags)

    def publish_camera(self, image: ArrayLike, capture_ns: int, flags: int = 0) -> int:
        """Publish a depth image [m], shape (H, W), invalid pixels 0; returns its sequence."""
        return self._publishers["camera"].publish(image, capture_ns=capture_ns, flags=flags)

    def publish_truth(self, payload: ArrayLike, capture_ns: int, flags: int = 0) -> int:
        """Publish the truth, shape (20,) as `TRUTH` lays it out; returns its sequence."""
        return self._publishers["truth"].publish(payload, capture_ns=capture_ns, flags=flags)

    def poll(self, timeout_s: float) -> int:
        """Wait for requests, serve one batch, return how many; 0 when the time is over.

        Operators come first. One batch is at most 16 operators' requests and 128 commands, of
        which one at most reaches the handler: a flood costs a millisecond or two, not the slot.
        """
        return serve_within(timeout_s, tuple(self._routers.values()), self._serve)

    def follow_gate(self, safety_state: int, fault_bits: int, arm_count: int = 0) -> None:
        """Put these into every reply from now on; a change of them is published on ``trace``."""
        self.safety_state, self.fault_bits = safety_state, fault_bits
        self.arm_count = arm_count
        self._trace_gate()

    def _serve(self) -> int:
        served = self._serve_safety() + self._serve_commands()
        if served and self._trace is not None:
            self._publish_exchanges(self._trace)
        return served

    def _publish_exchanges(self, trace: Publisher) -> None:
        """Publish what was asked and answered, once nothing is left to be answered."""
        for exchange in self._exchanges:
            trace.publish(exchange.pack(), capture_ns=exchange.handled_ns)
        trace.leave_out(self._untold)
        self._exchanges.clear()
        self._untold = 0
        self._trace_gate()

    def _trace_gate(self) -> None:
        gate = (self.safety_state, self.fault_bits)
        if self._trace is not None and gate != self._traced_gate:
            self._traced_gate = gate
            now_ns = self._clock_ns()
            self._trace.publish(Exchange.of_gate(now_ns, *gate).pack(), capture_ns=now_ns)

    def _note(self, kind: ExchangeKind, now_ns: int, body: Sequence[bytes], answer: bytes) -> None:
        if self._trace is None:
            return
        if len(self._exchanges) < _TRACED:
            self._exchanges.append(Exchange.of_frames(kind, now_ns, body, answer))
        else:
            self._untold += 1

    def close(self) -> None:
        """Close all sockets."""
        for endpoint in (*self._publishers.values(), *self._routers.values()):
            endpoint.close()

    def _serve_commands(self) -> int:
        """Judge what is waiting at one moment, apply the newest admitted, answer the rest."""
        requests = self._command.take(_COMMAND_BATCH)
        now_ns, process_ns = self._clock_ns(), self._process_clock_ns()
        newest: tuple[Request, Message] | None = None
        others: list[tuple[Request, CommandStatus, int]] = []
        for request in requests:
            if self._answered_hello(self._command, request):
                continue
            status, sequence, message = self.admission.admit(request.body, now_ns, process_ns)
            if message is None:
                others.append((request, status, sequence))
                continue
            if newest is not None:
                others.append((newest[0], CommandStatus.SUPERSEDED, newest[1].sequence))
            newest = (request, message)
        if newest is not None:
            # Reading the others took time, more of it on a machine that is busy.
            if self.admission.is_stale(newest[1], self._clock_ns()):
                others.append((newest[0], CommandStatus.REJECTED_STALE, newest[1].sequence))
            else:
                self._apply(*newest)  # answered first: no client waits for the others any more
        for request, status, sequence in others:
            self._answer(request, status, sequence)
        return len(requests)

    def _answered_hello(self, router: Router, request: Request) -> bool:
        if not request.body or request.body[0] != HELLO_TOPIC:
            return False
        self.stats.hellos += 1
        router.reply(request, *self._hello.frames())
        return True

    def _apply(self, request: Request, message: Message) -> None:
        outcome = self._handler.on_command(message)
        self.safety_state = outcome.safety_state
        self.fault_bits = outcome.fault_bits
        self.arm_count = outcome.arm_count
        if message.header.instance_id != self._applied_instance:
            self._applied_instance = message.header.instance_id
            self._applied_sequence = self._applied_ns = 0
        if outcome.status is CommandStatus.APPLIED:
            self._applied_sequence = message.sequence
            self._applied_ns = outcome.applied_ns
        self._answer(
            request,
            outcome.status,
            message.sequence,
            outcome.position_clamp_mask,
            outcome.rate_clamp_mask,
        )

    def _answer(
        self,
        request: Request,
        status: CommandStatus,
        sequence: int,
        position_clamp_mask: int = 0,
        rate_clamp_mask: int = 0,
    ) -> None:
        self.stats.commands[status.name.lower()] += 1
        server_ns = self._clock_ns()
        reply = CommandReply.pack(
            status,
            safety_state=self.safety_state,
            fault_bits=self.fault_bits,
            position_clamp_mask=position_clamp_mask,
            rate_clamp_mask=rate_clamp_mask,
            arm_count=self.arm_count,
            request_sequence=sequence,
            applied_sequence=self._applied_sequence,
            applied_ns=self._applied_ns,
            server_ns=server_ns,
        )
        self._command.reply(request, COMMAND.topic, reply)
        self._note(ExchangeKind.COMMAND, server_ns, request.body, reply)

    def _serve_safety(self) -> int:
        router = self._safety
        if router is None:
            return 0
        requests = router.take(_SAFETY_BATCH)
        for request in requests:
            if not self._answered_hello(router, request):
                answer = json.dumps(self._operator(request.body)._asdict()).encode()
                router.reply(request, SAFETY.topic, answer)
                self._note(ExchangeKind.SAFETY, self._clock_ns(), request.body, answer)
        return len(requests)

    def _operator(self, body: Sequence[bytes]) -> SafetyOutcome:
        """Carry out one operator's request, or say why not."""
        request = parse_request(body, SAFETY.topic)
        if request is None:
            return self._refuse('request is not [b"safety", {"op": ..., "by": ...}]')
        op = request.get("op")
        if op not in SAFETY_OPS:
            return self._refuse(f"unknown op {str(op)[:40]!r}; use one of {', '.join(SAFETY_OPS)}")
        if op in ("arm", "reset"):
            reason = untimely(op, request.get("sent_ns"), self._process_clock_ns())
            if reason:
                return self._refuse(reason)
        return self._handler.on_safety(op, str(request.get("by", ""))[:200])

    def _refuse(self, reason: str) -> SafetyOutcome:
        now = self._handler.on_safety("status", "")
        return SafetyOutcome(ok=False, state=now.state, faults=now.faults, reason=reason)
