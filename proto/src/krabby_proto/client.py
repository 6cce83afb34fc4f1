"""The client of a HAL, and the game loop's request server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from krabby_proto.clocks import PeerClock
from krabby_proto.codec import encode
from krabby_proto.endpoint import Closing, Context, new_instance_id
from krabby_proto.errors import EndpointError, FrameError
from krabby_proto.exchanges import Exchange, ExchangeKind
from krabby_proto.hello import HELLO_TOPIC, HelloAnswer, JsonObject, parse_request
from krabby_proto.operators import ask_hello, ask_safety, is_remote
from krabby_proto.replies import CommandReply
from krabby_proto.requests import Request, Requester, Router, serve_within
from krabby_proto.sockets import LatestSubscriber
from krabby_proto.streams import COMMAND, CONTROL, SAFETY, STATE

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["ControlServer", "HalClient"]

_CONTROL_BATCH: Final = 16
_CONNECT_S: Final = 0.5
"""How long the first hello waits for further connections."""
_FAR_LINKS: Final = 4
"""Commands under way to a HAL on another host: at 100 Hz as many as a round trip of 40 ms has. One
that takes longer is refused there, since it is over 25 ms old."""


class HalClient(Closing):
    """Reads a HAL's state and sends it commands, as one writer with one instance id.

    Args:
        endpoints: stream name to endpoint; of ``state``, ``command`` and ``safety`` those that
            are given are connected, others are ignored.
        clock_ns: stamps commands; the HAL's clock.
        context: needed for ``inproc://`` only.
        instance_id: of this writer; random when None.
    """

    def __init__(
        self,
        endpoints: Mapping[str, str],
        *,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        context: Context | None = None,
        instance_id: int | None = None,
    ) -> None:
        self.endpoints = dict(endpoints)
        self.instance_id = instance_id or new_instance_id()
        self.sequence = 0
        """Sequence of the last command."""
        self.timeouts = 0
        """Commands without an answer in time, or not sent because no server was connected."""
        self.last_round_trip_s: float | None = None
        """From send to answer of the last answered command [s]."""
        self.clock = PeerClock(remote=is_remote(endpoints.values()))
        """The HAL's CLOCK_MONOTONIC, from its answers."""
        self._clock_ns = clock_ns
        self._requesters: dict[str, Requester] = {}
        self._context = context
        self._links: list[Requester] = []
        """Connections for commands: a further one for every command that is under way."""
        self._sent: dict[int, int] = {}
        """When commands were sent that are not answered yet, by sequence [ns]."""
        self._probes = False
        """Whether replies carry the HAL's CLOCK_MONOTONIC: its clock is not simulated."""
        self._state: LatestSubscriber | None = None
        try:
            for stream in (COMMAND, SAFETY):
                if stream.name in endpoints:
                    self._requesters[stream.name] = Requester(
                        endpoints[stream.name], name=stream.name, context=context
                    )
            if STATE.name in endpoints:
                self._state = LatestSubscriber(endpoints[STATE.name], STATE, context=context)
        except BaseException:
            self.close()
            raise

    @property
    def state(self) -> LatestSubscriber:
        """The state stream."""
        if self._state is None:
            raise EndpointError("no endpoint for state; set endpoints.state")
        return self._state

    def hello(self, timeout_s: float = 2.0, via: str | None = None) -> JsonObject:
        """The HAL's hello, through ``command`` or ``safety``; waits for the HAL to appear.

        Raises:
            RequestTimeout: no answer within `timeout_s`.
        """
        requester = self._requester(via or next(iter(self._requesters), COMMAND.name))
        hello = ask_hello(requester, self.clock, timeout_s)
        self._probes = hello.get("clock") == "monotonic"
        if self._probes and not self.clock.shared and COMMAND.name in self._requesters:
            self._connect_far()
        return hello

    @property
    def far(self) -> bool:
        """Whether the HAL is on another host, so that answers come by later calls."""
        return bool(self._links)

    def _connect_far(self) -> None:
        """Have several commands under way from now on."""
        if self._links:
            return
        endpoint = self.endpoints[COMMAND.name]
        self._links.append(self._requesters[COMMAND.name])
        for _ in range(_FAR_LINKS - 1):
            self._links.append(Requester(endpoint, name=COMMAND.name, context=self._context))
        deadline_s = time.monotonic() + _CONNECT_S
        for link in self._links:
            link.wait_connected(deadline_s - time.monotonic())

    def send_command(
        self,
        joint_pos: ArrayLike,
        *,
        capture_ns: int,
        publish_ns: int | None = None,
        deadline_s: float = 0.004,
        flags: int = 0,
    ) -> CommandReply | None:
        """Send joint targets [rad], shape (18,), and wait for the answer, at most `deadline_s`.

        `capture_ns` is that of the state they answer, `publish_ns` the HAL's clock as far as the
        client knows it when None [ns].

        To a HAL on another host several commands may be under way: each has a connection, so that
        one lost segment delays one command, and an answer that comes after `deadline_s` is returned
        by a later call.

        Returns:
            The newest reply that has come, see its `request_sequence`; None without one in time:
            the command may have been applied.
        """
        self.sequence += 1
        start_ns = time.monotonic_ns()
        frames = encode(
            COMMAND,
            joint_pos,
            instance_id=self.instance_id,
            sequence=self.sequence,
            capture_ns=capture_ns,
            publish_ns=self.clock.earliest(self._clock_ns()) if publish_ns is None else publish_ns,
            flags=flags,
        )
        if not self._links:
            link = self._requester(COMMAND.name)
            reply = self._take(link.request(frames, deadline_s), start_ns)
        else:
            self._sent[self.sequence] = start_ns
            reply = self._send_far(frames, deadline_s)
        if reply is None or reply.request_sequence != self.sequence:
            self.timeouts += 1
        else:
            self.last_round_trip_s = (time.monotonic_ns() - start_ns) * 1e-9
        return reply

    def _send_far(self, frames: list[bytes], deadline_s: float) -> CommandReply | None:
        """Send through the connection that waits for no answer, or has waited longest."""
        links = self._links
        late = [self._take(link.late()) for link in links]
        link = links[self.sequence % len(links)]
        replies = [*late, self._take(link.request(frames, deadline_s))]
        for sequence in [one for one in self._sent if one <= self.sequence - len(links)]:
            del self._sent[sequence]
        found = [reply for reply in replies if reply is not None]
        return max(found, key=lambda reply: reply.request_sequence, default=None)

    def _take(self, answer: list[bytes] | None, sent_ns: int | None = None) -> CommandReply | None:
        """Read an answer, which tells the HAL's clock."""
        reply = _command_reply(answer) if answer else None
        if reply is None:
            return None
        if sent_ns is None:
            sent_ns = self._sent.pop(reply.request_sequence, None)
        if self._probes and sent_ns is not None:
            self.clock.note(sent_ns, reply.server_ns, time.monotonic_ns())
        return reply

    def safety(self, op: str, by: str, timeout_s: float = 1.0) -> JsonObject:
        """Ask for one of `SAFETY_OPS`, as `SafetyClient.request` does.

        Raises:
            RequestTimeout: the HAL did not answer.
        """
        return ask_safety(self._requester(SAFETY.name), self.clock, op, by, timeout_s)

    def _requester(self, name: str) -> Requester:
        requester = self._requesters.get(name)
        if requester is None:
            raise EndpointError(f"no endpoint for {name}; set endpoints.{name}")
        return requester

    def close(self) -> None:
        """Close all sockets."""
        for requester in (*self._requesters.values(), *self._links[1:]):
            requester.close()
        if self._state is not None:
            self._state.close()


def _command_reply(answer: list[bytes]) -> CommandReply | None:
    if len(answer) != 2 or answer[0] != COMMAND.topic:
        return None
    try:
        return CommandReply.unpack(answer[1])
    except FrameError:
        return None


class ControlServer(Closing):
    """Answers JSON requests on the gameloop's control endpoint.

    Args:
        endpoint: where to bind.
        hello: what `make_hello` gives.
        context: needed for ``inproc://`` only.
        answered: called with each request and its answer, from the thread that polls.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        hello: Mapping[str, object],
        context: Context | None = None,
        answered: Callable[[Exchange], object] = lambda exchange: None,
    ) -> None:
        self._answered = answered
        self._router = Router(endpoint, name=CONTROL.name, context=context)
        self.endpoint = self._router.endpoint
        self.requests = 0
        self.failures = 0
        """Requests whose handler raised."""
        self._asked: Request | None = None
        self._hello = HelloAnswer(hello, new_instance_id())

    @property
    def oversized(self) -> int:
        """Requests dropped for having more frames than the contract has."""
        return self._router.oversized

    def poll(
        self, timeout_s: float, handler: Callable[[JsonObject], Mapping[str, Any] | None]
    ) -> int:
        """Wait for requests, serve at most 16, return how many; 0 when the time is over.

        `handler` takes a request's JSON object and returns the answer's, or None if it has called
        `defer`. When it raises, the answer has `ok` false and the error as its `reason`.
        """

        def serve() -> int:
            requests = self._router.take(_CONTROL_BATCH)
            for request in requests:
                self._answer(request, handler)
            return len(requests)

        return serve_within(timeout_s, (self._router,), serve)

    def defer(self) -> Callable[[Mapping[str, Any]], None]:
        """For handlers: answer later, by calling what this returns from the thread that polls."""
        request = self._asked
        assert request is not None, "only within a handler"
        return lambda answer: self._reply(request, answer)

    def _answer(
        self, request: Request, handler: Callable[[JsonObject], Mapping[str, Any] | None]
    ) -> None:
        body = request.body
        if body and body[0] == HELLO_TOPIC:
            self._router.reply(request, *self._hello.frames())
            return
        self.requests += 1
        asked = parse_request(body, CONTROL.topic)
        if asked is None:
            self._refuse(request, 'request is not [b"control", {"op": ...}]')
            return
        self._asked = request
        try:
            answer = handler(asked)
            if answer is not None:
                self._reply(request, answer)
        except Exception as error:
            self.failures += 1
            self._refuse(request, f"{type(error).__name__}: {error}")
        finally:
            self._asked = None

    def _refuse(self, request: Request, reason: str) -> None:
        self._reply(request, {"ok": False, "reason": reason})

    def _reply(self, request: Request, answer: Mapping[str, Any]) -> None:
        text = json.dumps(answer).encode()
        self._router.reply(request, CONTROL.topic, text)
        now_ns = time.monotonic_ns()
        self._answered(Exchange.of_frames(ExchangeKind.CONTROL, now_ns, request.body, text))

    def close(self) -> None:
        """Close the socket."""
        self._router.close()
