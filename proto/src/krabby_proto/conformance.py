"""Checks a HAL against the wire contract; it never moves a robot.

The command checks run only while the HAL is disarmed, and every joint target they send is the
position just measured. The e-stop is tried last and cleared again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import ArrayLike

from krabby_proto.client import HalClient
from krabby_proto.clocks import PeerClock
from krabby_proto.codec import FloatArray, Message, encode
from krabby_proto.endpoint import Closing, Context, new_instance_id, wait_readable
from krabby_proto.errors import EndpointError, FrameError, RequestTimeout
from krabby_proto.header import HEADER_SIZE, SCHEMA_VERSION
from krabby_proto.hello import JsonObject, parse_json
from krabby_proto.jpeg import jpeg_size
from krabby_proto.replies import CommandReply
from krabby_proto.requests import Requester
from krabby_proto.schema import schema_hash
from krabby_proto.sockets import LatestSubscriber
from krabby_proto.states import CommandStatus
from krabby_proto.streams import COLOUR, COMMAND, SAFETY, STATE

__all__ = ["CheckResult", "check_hal"]

_ANSWER_S: Final = 0.5
_PATIENCE_S: Final = 2.0
_WATCH_S: Final = 1.2
_IMAGE_S: Final = 10.0
"""Until the first colour image, which is drawn only once it is asked for."""
_LEASE_WAIT_S: Final = 2.0
_LATE_TRIES: Final = 5
_BRISK_S: Final = 0.1
"""Two requests within this time are within a lease."""
_QUIET: Final = ("not_armed", "rejected_safety")


class CheckResult(NamedTuple):
    """Outcome of one check."""

    name: str
    passed: bool
    detail: str
    """What was found; when it failed, also what is expected."""
    tried: str
    """What was sent or watched."""
    skipped: bool = False
    """Whether it was not tried, for the reason in `detail`; then it has not passed either."""


class _Failed(Exception):  # noqa: N818
    """A check failed; the message is the detail."""


class _Blocked(_Failed):
    """A check failed in a way that makes the rest pointless or unsafe."""


class _InUse(_Blocked):
    """The HAL is in use, which is no fault of it, and the rest would disturb."""


class _Visit(Closing):
    """Sockets and findings the checks share."""

    def __init__(self, endpoints: Mapping[str, str], context: Context | None) -> None:
        self.context = context
        self.endpoints = endpoints
        self.client = HalClient(endpoints, context=context)
        self.writer = _Writer(endpoints[COMMAND.name], context, self.client.clock)
        self.hello: JsonObject = {}
        self.messages: list[Message] = []

    def measured(self) -> FloatArray:
        """Joint positions [rad] as just measured, shape (18,)."""
        message = self.client.state.latest()
        if message is None:
            raise _Blocked("no state was received; joint positions are unknown")
        return message.payload[STATE.slices["joint_pos"]]

    def safety(self, op: str) -> JsonObject:
        try:
            return self.client.safety(op, "check-hal", _ANSWER_S)
        except RequestTimeout as error:
            raise _Failed(str(error)) from error

    def close(self) -> None:
        self.writer.close()
        self.client.close()


class _Writer(Closing):
    """One writing instance that can also send what no client would."""

    def __init__(self, endpoint: str, context: Context | None, clock: PeerClock) -> None:
        self._requester = Requester(endpoint, name=COMMAND.name, context=context)
        self._clock = clock
        self.instance_id = new_instance_id()
        self.sequence = 0

    def frames(self, joint_pos: ArrayLike, *, age_s: float = 0.0) -> list[bytes]:
        """A command as it should be, stamped `age_s` ago."""
        self.sequence += 1
        stamp = self._clock.earliest(time.monotonic_ns()) - round(age_s * 1e9)
        return encode(
            COMMAND,
            joint_pos,
            instance_id=self.instance_id,
            sequence=self.sequence,
            capture_ns=stamp,
            publish_ns=stamp,
        )

    def send(self, frames: list[bytes]) -> CommandReply:
        answer = self._requester.request_patiently(lambda: frames, _ANSWER_S)
        if answer is None:
            raise _Failed(f"no answer within {_ANSWER_S} s; every request has to be answered")
        if len(answer) != 2 or answer[0] != COMMAND.topic:
            raise _Failed(f"answer is {len(answer)} frames, not [command, reply]")
        try:
            return CommandReply.unpack(answer[1])
        except FrameError as error:
            raise _Failed(f"answer cannot be read: {error}") from error

    def send_valid(self, joint_pos: FloatArray) -> CommandReply:
        """Send a good command, again when it came too late: this process may be the slow one."""
        reply = self.send(self.frames(joint_pos))
        for _ in range(_LATE_TRIES):
            if reply.status != CommandStatus.REJECTED_STALE:
                break
            reply = self.send(self.frames(joint_pos))
        return reply

    def offer(self, frames: list[bytes]) -> None:
        """Send without expecting an answer."""
        self._requester.request_patiently(lambda: frames, 0.05)

    def close(self) -> None:
        self._requester.close()


_Check: TypeAlias = "Callable[[_Visit], str]"
"""What was found; raises `_Failed`."""
_Spoil: TypeAlias = "Callable[[_Writer, FloatArray], list[bytes]]"
"""The frames of a command to the measured joint positions, with one fault."""


def _hello(stream_name: str, visit: _Visit) -> str:
    try:
        hello = visit.client.hello(_PATIENCE_S, via=stream_name)
    except RequestTimeout as error:
        raise _Blocked(str(error)) from error
    keys = ("schema_version", "schema_hash", "instance_id", "service", "clock", "robot")
    hello.pop("clocks", None)  # as they were then
    missing = [key for key in keys if key not in hello]
    if missing:
        raise _Failed(f"hello lacks {', '.join(missing)}")
    if visit.hello and visit.hello != hello:
        raise _Failed("hello differs from the one on the command endpoint")
    visit.hello = hello
    return f"{hello['service']}, instance {hello['instance_id']}"


def _schema(visit: _Visit) -> str:
    theirs = visit.hello.get("schema_version"), visit.hello.get("schema_hash")
    ours = SCHEMA_VERSION, schema_hash()
    if theirs != ours:
        raise _Failed(f"schema version and hash are {theirs}, expected {ours}")
    return f"version {ours[0]}, hash {ours[1]}"


def _real_time(visit: _Visit) -> str:
    if visit.hello.get("clock") != "monotonic":
        raise _Blocked(
            f"the HAL's clock is {visit.hello.get('clock')!r}; run it in real time to check it"
        )
    return "stamps are CLOCK_MONOTONIC"


def _watch(visit: _Visit) -> str:
    """Collect a second of states for the checks that follow."""
    state = visit.client.state
    if state.wait(_PATIENCE_S) is None:
        raise _Blocked(f"no state within {_PATIENCE_S:g} s")
    end = time.monotonic() + _WATCH_S
    while (left := end - time.monotonic()) > 0.0:
        if wait_readable((state.socket,), left):
            visit.messages += state.drain()
    if state.invalid:
        raise _Failed(f"{state.invalid} messages could not be read, the last: {state.last_error}")
    if len(visit.messages) < 2:
        raise _Blocked(f"only {len(visit.messages)} states in {_WATCH_S} s")
    return f"{len(visit.messages)} states in {_WATCH_S} s"


def _rate(visit: _Visit) -> str:
    stamps = [message.header.publish_ns for message in visit.messages]
    rate = (len(stamps) - 1) / ((stamps[-1] - stamps[0]) * 1e-9 or 1e-9)
    if rate < 0.95 * STATE.rate_hz:
        raise _Failed(f"{rate:.1f} Hz, expected {STATE.rate_hz:g} Hz or more")
    return f"{rate:.1f} Hz"


def _order(visit: _Visit) -> str:
    state = visit.client.state
    if state.late or state.restarts or state.gaps:
        raise _Failed(
            f"{state.gaps} gaps, {state.late} repeated or falling sequences, "
            f"{state.restarts} changes of instance; expected none"
        )
    captures = np.array([message.capture_ns for message in visit.messages], dtype=np.int64)
    if not np.all(np.diff(captures) > 0):
        raise _Failed("capture times do not rise")
    if any(message.capture_ns > message.header.publish_ns for message in visit.messages):
        raise _Failed("a state was published before it was captured")
    return f"sequences {visit.messages[0].sequence} to {visit.messages[-1].sequence}"


def _age(visit: _Visit) -> str:
    limit = STATE.max_age_s
    ages = np.array([m.header.publish_ns - m.capture_ns for m in visit.messages]) * 1e-9
    visit.client.state.latest()
    newest = visit.client.state.wait(_ANSWER_S)
    if newest is None:
        raise _Failed("the state stream fell silent")
    on_arrival = newest.age_s(visit.client.clock.latest(time.monotonic_ns()))
    worst = max(float(ages.max()), on_arrival)
    if not on_arrival >= 0.0 or worst > limit:
        raise _Failed(
            f"age {on_arrival * 1e3:.1f} ms on arrival, {ages.max() * 1e3:.1f} ms at most when "
            f"published; expected 0 to {limit * 1e3:g} ms on the HAL's CLOCK_MONOTONIC"
        )
    return f"{on_arrival * 1e3:.1f} ms on arrival, {ages.max() * 1e3:.1f} ms at most when published"


def _values(visit: _Visit) -> str:
    payloads = np.stack([message.payload for message in visit.messages])
    if not np.isfinite(payloads).all():
        raise _Failed("a state has NaN or infinity")
    norms = np.linalg.norm(payloads[:, STATE.slices["base_quat_w"]], axis=1)
    if np.abs(norms - 1.0).max() > 1e-3:
        raise _Failed(f"quaternion norm from {norms.min():.4f} to {norms.max():.4f}, expected 1")
    contact = payloads[:, STATE.slices["foot_contact"]]
    if contact.min() < 0.0 or contact.max() > 1.0:
        raise _Failed(f"foot_contact from {contact.min():g} to {contact.max():g}, expected 0 to 1")
    return "finite, unit quaternion, contacts in 0 to 1"


def _colour(visit: _Visit) -> str:
    """Colour images are JPEG of the announced size; none have to be announced."""
    extra: object = visit.hello.get("extra")
    found = cast("JsonObject", extra).get("colour") if isinstance(extra, dict) else None
    if not isinstance(found, dict):
        return "this HAL announces none"
    announced = cast("JsonObject", found)
    endpoint = visit.endpoints.get(COLOUR.name)
    if endpoint is None:
        raise _Failed("announced, but no endpoint was given; give colour=ENDPOINT too")
    with LatestSubscriber(endpoint, COLOUR, context=visit.context) as images:
        image = images.wait(_IMAGE_S)
        if image is None:
            raise _Failed(f"announced, but none came within {_IMAGE_S:g} s: {images.last_error}")
    size = jpeg_size(image.payload.tobytes())
    expected = announced.get("width"), announced.get("height")
    if size != expected:
        raise _Failed(f"an image is {size or 'no JPEG'}, announced was {expected}")
    return f"JPEG of {expected[0]} x {expected[1]}, {image.payload.nbytes} bytes"


def _disarmed(visit: _Visit) -> str:
    state = visit.safety("status").get("state")
    if state != "disarmed":
        remedy = "krabby reset" if state == "estop" else "krabby sit, krabby disarm"
        raise _InUse(
            f"the HAL is {state!r}: nothing was sent to it; stop its game loop, "
            f"{remedy}, check again"
        )
    return "disarmed"


def _sole_writer(visit: _Visit) -> str:
    reply = visit.writer.send_valid(visit.measured())
    if reply.status == CommandStatus.REJECTED_LEASE:
        raise _InUse("another writer holds the lease: stop the game loop, check again")
    if reply.status_name not in _QUIET:
        raise _Blocked(f"answer is {reply.status_name}, expected not_armed")
    if reply.request_sequence != visit.writer.sequence:
        raise _Failed(
            f"the answer names sequence {reply.request_sequence}, sent {visit.writer.sequence}"
        )
    if reply.safety_name not in ("disarmed", "damp"):
        raise _Failed(f"the answer says {reply.safety_name}, the safety endpoint says disarmed")
    return f"answer {reply.status_name}, safety state {reply.safety_name}"


def _refused(expected: CommandStatus, spoil: _Spoil, visit: _Visit) -> str:
    """A spoiled command is refused for the right reason."""
    reply = visit.writer.send(spoil(visit.writer, visit.measured()))
    for _ in range(_LATE_TRIES):  # that it came too late is found before some other faults
        if reply.status == expected or reply.status != CommandStatus.REJECTED_STALE:
            break
        reply = visit.writer.send(spoil(visit.writer, visit.measured()))
    wanted = expected.name.lower()
    if reply.status != expected:
        raise _Failed(f"answer is {reply.status_name}, expected {wanted}")
    return f"answer {wanted}"


def _with_header(frames: list[bytes], start: int, patch: bytes) -> list[bytes]:
    topic, header, payload = frames
    return [topic, header[:start] + patch + header[start + len(patch) :], payload]


def _wrong_length(writer: _Writer, joint_pos: FloatArray) -> list[bytes]:
    frames = writer.frames(joint_pos)
    shorter = (COMMAND.size - 1).to_bytes(4, "little")
    return _with_header([*frames[:2], frames[2][:-4]], 40, shorter)


def _corrupt(writer: _Writer, joint_pos: FloatArray) -> list[bytes]:
    topic, header, payload = writer.frames(joint_pos)
    return [topic, header, bytes([payload[0] ^ 1]) + payload[1:]]


def _other_schema(writer: _Writer, joint_pos: FloatArray) -> list[bytes]:
    return _with_header(writer.frames(joint_pos), 4, bytes([SCHEMA_VERSION + 1, 0]))


def _short_header(writer: _Writer, joint_pos: FloatArray) -> list[bytes]:
    topic, header, payload = writer.frames(joint_pos)
    return [topic, header[:-1], payload]


def _repeated(visit: _Visit) -> str:
    first, second = _send_twice(visit)
    for _ in range(_LATE_TRIES):
        if CommandStatus.REJECTED_STALE not in (first.status, second.status):
            break
        first, second = _send_twice(visit)
    if first.status_name not in _QUIET or second.status != CommandStatus.REJECTED_ORDER:
        raise _Failed(
            f"answers are {first.status_name} and {second.status_name}, "
            "expected not_armed and rejected_order"
        )
    return "answer rejected_order to the second"


def _send_twice(visit: _Visit) -> tuple[CommandReply, CommandReply]:
    frames = visit.writer.frames(visit.measured())
    return visit.writer.send(frames), visit.writer.send(frames)


def _second_writer(visit: _Visit) -> str:
    """The lease keeps a second writer out while the first speaks and lets it in afterwards."""
    other = _Writer(visit.endpoints[COMMAND.name], visit.context, visit.client.clock)
    try:
        first, second, took_s = _one_after_the_other(visit, other)
        for _ in range(_LATE_TRIES):
            if second.status == CommandStatus.REJECTED_LEASE or took_s < _BRISK_S:
                break
            # This process was slow and the lease may have run out: the second one has it now.
            visit.writer, other = other, visit.writer
            first, second, took_s = _one_after_the_other(visit, other)
        if first.status_name not in _QUIET or second.status != CommandStatus.REJECTED_LEASE:
            raise _Failed(
                f"answers are {first.status_name} and {second.status_name}, "
                "expected not_armed and rejected_lease"
            )
        start = time.monotonic()
        while second.status == CommandStatus.REJECTED_LEASE:
            if time.monotonic() - start > _LEASE_WAIT_S:
                raise _Failed(f"the lease was not given up after {_LEASE_WAIT_S} s of silence")
            time.sleep(0.02)
            second = other.send_valid(visit.measured())
    finally:
        visit.writer.close()
        visit.writer = other  # it has the lease now
    return f"refused, then let in after {time.monotonic() - start:.2f} s of silence"


def _one_after_the_other(visit: _Visit, other: _Writer) -> tuple[CommandReply, CommandReply, float]:
    """Answers to the writer and to another one, and how long both took [s]."""
    began_s = time.monotonic()
    first = visit.writer.send_valid(visit.measured())
    second = other.send_valid(visit.measured())
    return first, second, time.monotonic() - began_s


def _oversize(visit: _Visit) -> str:
    """A megabyte where 72 bytes belong: dropped or refused, and the server stays up."""
    topic, header, _ = visit.writer.frames(visit.measured())
    with _Writer(visit.endpoints[COMMAND.name], visit.context, visit.client.clock) as offender:
        offender.offer([topic, header, bytes(1 << 20)])
    reply = visit.writer.send_valid(visit.measured())
    return f"then answered {reply.status_name} to the writer"


def _unknown_op(visit: _Visit) -> str:
    answer = visit.safety("dance")
    if answer.get("ok") is not False or not answer.get("reason"):
        raise _Failed(f"answer is {answer}, expected ok false and a reason")
    return f"refused: {answer['reason']}"


def _not_json(visit: _Visit) -> str:
    endpoint = visit.endpoints[SAFETY.name]
    with Requester(endpoint, name=SAFETY.name, context=visit.context) as requester:
        answer = requester.request_patiently(lambda: [SAFETY.topic, b"\xff{"], _ANSWER_S)
    reply = parse_json(answer[-1]) if answer else None
    if reply is None or reply.get("ok") is not False:
        raise _Failed(f"answer is {answer}, expected ok false and a reason")
    return f"refused: {reply.get('reason')}"


def _estop_latches(visit: _Visit) -> str:
    if (state := visit.safety("estop").get("state")) != "estop":
        raise _Failed(f"after estop the state is {state!r}")
    answer = visit.safety("arm")
    if answer.get("ok") or answer.get("state") != "estop":
        visit.safety("disarm")
        raise _Failed(f"arm was answered {answer} under an e-stop; it was disarmed again")
    if (state := visit.safety("disarm").get("state")) != "estop":
        raise _Failed(f"disarm cleared the e-stop: the state is {state!r}")
    reply = visit.writer.send_valid(visit.measured())
    if reply.status_name not in _QUIET or reply.safety_name != "estop":
        raise _Failed(f"a command was answered {reply.status_name} in {reply.safety_name}")
    return f"arm refused: {answer.get('reason')}"


def _reset_clears(visit: _Visit) -> str:
    if (state := visit.safety("reset").get("state")) != "disarmed":
        raise _Failed(f"after reset the state is {state!r}, expected 'disarmed'")
    return "disarmed again"


def _unharmed(visit: _Visit) -> str:
    reply = visit.writer.send_valid(visit.measured())
    if reply.status_name not in _QUIET:
        raise _Failed(f"a valid command is answered {reply.status_name}, expected not_armed")
    state = visit.client.state
    state.latest()
    if state.wait(_ANSWER_S) is None:
        raise _Failed("the state stream fell silent")
    with LatestSubscriber(visit.endpoints[STATE.name], STATE, context=visit.context) as late:
        if late.wait(_PATIENCE_S) is None:
            raise _Failed("a new subscriber gets no state")
    return "commands are answered and states flow"


_LENGTH: Final = CommandStatus.REJECTED_LENGTH
_VALUE: Final = CommandStatus.REJECTED_NONFINITE
_FRAMES: Final = CommandStatus.REJECTED_MALFORMED
_SCHEMA: Final = CommandStatus.REJECTED_SCHEMA
_STALE: Final = CommandStatus.REJECTED_STALE
_FUTURE: Final = CommandStatus.REJECTED_FUTURE
_NAN, _INFINITY = np.float32(np.nan), np.float32(np.inf)
_SPOILED: Final[tuple[tuple[str, str, CommandStatus, _Spoil], ...]] = (
    ("wrong length", "17 joint targets", _LENGTH, _wrong_length),
    ("NaN", "a target that is NaN", _VALUE, lambda w, q: w.frames(np.append(q[:-1], _NAN))),
    ("infinity", "a target that is -inf", _VALUE, lambda w, q: w.frames([-_INFINITY, *q[1:]])),
    ("stale", "a command stamped 1 s ago", _STALE, lambda w, q: w.frames(q, age_s=1.0)),
    ("future", "a command stamped 1 s ahead", _FUTURE, lambda w, q: w.frames(q, age_s=-1.0)),
    ("corrupt payload", "one bit flipped", CommandStatus.REJECTED_CORRUPT, _corrupt),
    ("other schema", f"schema version {SCHEMA_VERSION + 1}", _SCHEMA, _other_schema),
    ("wrong magic", "magic XXXX", _FRAMES, lambda w, q: _with_header(w.frames(q), 0, b"XXXX")),
    ("short header", f"a header of {HEADER_SIZE - 1} bytes", _FRAMES, _short_header),
    ("extra frame", "a fourth frame", _FRAMES, lambda w, q: [*w.frames(q), b"more"]),
    ("missing frame", "topic and header only", _FRAMES, lambda w, q: w.frames(q)[:2]),
)
"""Commands that have to be refused: name, what is tried, the status to expect, the frames."""

_CHECKS: Final[tuple[tuple[str, str, _Check], ...]] = (
    ("hello", "hello on the command endpoint", partial(_hello, COMMAND.name)),
    ("hello on safety", "hello on the safety endpoint", partial(_hello, SAFETY.name)),
    ("schema", "schema version and hash of the hello", _schema),
    ("real time", "clock of the hello", _real_time),
    ("state stream", f"watched states for {_WATCH_S} s", _watch),
    ("state rate", "publish times", _rate),
    ("state order", "sequences, instance id, capture times", _order),
    ("state age", "capture times against CLOCK_MONOTONIC", _age),
    ("state values", "finite, quaternion norm, foot contacts", _values),
    ("colour images", "the stream colour, if the hello announces one", _colour),
    ("disarmed", "safety status", _disarmed),
    ("disarmed does not apply", "a valid command: the measured joint positions", _sole_writer),
    *((name, tried, partial(_refused, status, spoil)) for name, tried, status, spoil in _SPOILED),
    ("repeated sequence", "the same command twice", _repeated),
    ("second writer", "two writers by turns, then one falls silent", _second_writer),
    ("unknown op", 'safety op "dance"', _unknown_op),
    ("broken request", "a safety request that is not JSON", _not_json),
    ("e-stop latches", "estop, then arm, disarm and a command", _estop_latches),
    ("reset clears", "reset after the e-stop", _reset_clears),
    ("oversize", "a payload of 1 MiB", _oversize),
    ("unharmed", "a valid command, a new subscriber", _unharmed),
)
"""Name, what is tried, and the check; the megabyte comes last."""


def check_hal(
    endpoints: Mapping[str, str],
    report: Callable[[CheckResult], None] | None = None,
    *,
    context: Context | None = None,
) -> list[CheckResult]:
    """Run every check against a HAL.

    Args:
        endpoints: where its ``state``, ``command`` and ``safety`` are, and its ``colour``.
        report: called with each result as it comes.
        context: needed for ``inproc://`` only.

    Returns:
        One result a check. Those that an earlier one makes pointless or unsafe are not tried and
        marked `skipped`; so are those that would disturb a HAL that is in use.
    """
    missing = [s.name for s in (STATE, COMMAND, SAFETY) if s.name not in endpoints]
    if missing:
        raise EndpointError(f"no endpoint for {', '.join(missing)}; give all three of a HAL's")
    results: list[CheckResult] = []
    blocked: str | None = None
    with _Visit(endpoints, context) as visit:
        for name, tried, check in _CHECKS:
            passed, skipped = False, bool(blocked)
            if blocked:
                detail = f"not run, because of {blocked!r}"
            else:
                try:
                    passed, detail = True, check(visit)
                except _InUse as error:
                    skipped, blocked, detail = True, name, str(error)
                except _Blocked as error:
                    blocked, detail = name, str(error)
                except _Failed as error:
                    detail = str(error)
            results.append(CheckResult(name, passed, detail, tried, skipped))
            if report is not None:
                report(results[-1])
    return results
