"""A HAL server seen through raw sockets: it answers any input by name and continues."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import zmq
from krabby_proto import (
    CAMERA,
    COMMAND,
    STATE,
    TRACE,
    TRUTH,
    CommandOutcome,
    CommandReply,
    CommandStatus,
    EndpointError,
    EndpointInUse,
    Exchange,
    ExchangeKind,
    HalServer,
    LatestSubscriber,
    SafetyOutcome,
    encode,
    make_hello,
)

INVALID = json.loads((Path(__file__).parents[1] / "golden" / "invalid.json").read_text())


def rejected(server):
    return {
        name: count
        for name, count in server.stats.commands.items()
        if count and name.startswith("rejected_")
    }


class Handler:
    """Remembers what it was told; applies every command 40 us after the clock's reading."""

    def __init__(self, clock):
        self.clock = clock
        self.commands = []
        self.requests = []
        self.outcome = CommandOutcome(CommandStatus.APPLIED, safety_state=2)

    def on_command(self, message):
        self.commands.append(message)
        return self.outcome._replace(applied_ns=self.clock() + 40_000)

    def on_safety(self, op, by):
        if op != "status":
            self.requests.append((op, by))
        return SafetyOutcome(True, "active", ("tilt",), "")


@pytest.fixture
def handler(clock):
    return Handler(clock)


@pytest.fixture
def server(endpoints, context, handler, clock):
    hello = make_hello(service="test-hal", robot={"name": "crab_hex"})
    with HalServer(
        endpoints, hello=hello, handler=handler, clock_ns=clock, context=context
    ) as server:
        yield server


class Caller:
    """A DEALER that writes the envelope by hand, as a client in another language would."""

    def __init__(self, context, endpoint, server):
        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(endpoint)
        self.server = server

    def send(self, *body, envelope=(b"",)):
        self.socket.send_multipart([*envelope, *body])

    def receive(self):
        for _ in range(500):
            self.server.poll(0.01)
            if self.socket.poll(0):
                return self.socket.recv_multipart()
        pytest.fail("no answer")

    def ask(self, *body, envelope=(b"",)):
        self.send(*body, envelope=envelope)
        answer = self.receive()
        assert answer[: len(envelope)] == list(envelope)
        return answer[len(envelope) :]

    def command(self, frames):
        topic, raw = self.ask(*frames)
        assert topic == b"command"
        return CommandReply.unpack(raw)

    def close(self):
        self.socket.close()


@pytest.fixture
def call(context, server):
    callers = []

    def connect(name="command"):
        callers.append(Caller(context, server.endpoints[name], server))
        return callers[-1]

    yield connect
    for caller in callers:
        caller.close()


@pytest.fixture
def frames(clock):
    """Make a command as it should be, stamped now."""

    def make(sequence, writer=1, joint_pos=None):
        return encode(
            COMMAND,
            np.zeros(18) if joint_pos is None else joint_pos,
            instance_id=writer,
            sequence=sequence,
            capture_ns=clock() - 3_000_000,
            publish_ns=clock(),
        )

    return make


def test_a_command_that_aged_while_others_were_read_is_not_applied(
    server, call, frames, clock, handler, monkeypatch
):
    """25 ms after publication; the batch is judged at one moment, and a busy machine takes time."""
    admit = server.admission.admit

    def slow(*args):
        admission = admit(*args)
        clock.advance_s(0.026)
        return admission

    monkeypatch.setattr(server.admission, "admit", slow)
    assert call().command(frames(1)).status == CommandStatus.REJECTED_STALE
    assert handler.commands == []


def test_an_applied_command_is_answered_with_all_the_client_needs(server, call, frames, clock):
    server._handler.outcome = CommandOutcome(
        CommandStatus.APPLIED,
        safety_state=2,
        fault_bits=0x10,
        position_clamp_mask=0b101,
        rate_clamp_mask=0b010,
        arm_count=0xFFFF_FFFF,
    )
    reply = call().command(frames(5))
    assert reply.applied
    assert (reply.safety_name, reply.fault_bits) == ("active", 0x10)
    assert (reply.position_clamp_mask, reply.rate_clamp_mask) == (0b101, 0b010)
    assert (reply.request_sequence, reply.applied_sequence) == (5, 5)
    assert reply.arm_count == 0xFFFF_FFFF
    assert (reply.applied_ns, reply.server_ns) == (clock() + 40_000, clock())
    assert server.stats.commands["applied"] == 1


def test_a_request_id_frame_is_echoed(call, frames):
    answer = call().ask(*frames(1), envelope=(b"\x00\x00\x00\x01", b""))
    assert CommandReply.unpack(answer[1]).applied


@pytest.mark.parametrize("transport", ["inproc"], indirect=True)
def test_of_a_batch_only_the_newest_is_applied(server, call, frames, handler):
    caller = call()
    for sequence in (1, 2, 3, 4):
        caller.send(*frames(sequence))
    assert server.poll(1.0) == 4
    answers = [CommandReply.unpack(caller.receive()[2]) for _ in range(4)]
    assert [(r.request_sequence, r.status_name, r.applied_sequence) for r in answers] == [
        (4, "applied", 4),
        (1, "superseded", 4),
        (2, "superseded", 4),
        (3, "superseded", 4),
    ]
    assert [message.sequence for message in handler.commands] == [4]
    assert (server.stats.commands["applied"], server.stats.commands["superseded"]) == (1, 3)


@pytest.mark.parametrize("transport", ["inproc"], indirect=True)
def test_after_a_stall_nothing_old_is_applied(server, call, frames, handler, clock):
    """A server that slept a second finds a second of commands: one is young enough."""
    caller = call()
    for sequence in range(1, 101):
        caller.send(*frames(sequence))
        clock.advance_s(0.01)
    while not handler.commands:
        server.poll(0.0)
    # stamped 0.99 s after the first, 10 ms before now; 3 of 100 are at most 25 ms old
    assert [message.sequence for message in handler.commands] == [100]
    assert rejected(server) == {"rejected_stale": 98}
    assert server.stats.commands["superseded"] == 1


@pytest.mark.parametrize("case", INVALID, ids=[case["name"] for case in INVALID])
def test_bad_frames_are_answered_by_name_and_the_next_command_works(
    call, frames, handler, server, case
):
    caller = call()
    reply = caller.command([bytes.fromhex(frame) for frame in case["frames"]])
    assert reply.status == case["status"]
    assert handler.commands == []
    assert caller.command(frames(1)).applied
    assert rejected(server) == {reply.status_name: 1}


def test_rejections_tell_the_safety_state_too(server, call, frames):
    server.follow_gate(5, 0x40, 7)
    reply = call().command(frames(1)[:2])
    assert (reply.status_name, reply.safety_name) == ("rejected_malformed", "estop")
    assert (reply.fault_bits, reply.arm_count) == (0x40, 7)


def test_nan_stale_repeated_and_foreign_commands_are_told_apart(call, frames, clock, handler):
    first, second = call(), call()
    assert first.command(frames(1)).applied
    assert first.command(frames(1)).status_name == "rejected_order"
    assert first.command(frames(2, joint_pos=[np.nan] * 18)).status_name == "rejected_nonfinite"
    assert second.command(frames(1, writer=2)).status_name == "rejected_lease"
    old = frames(3)
    clock.advance_s(0.026)
    assert first.command(old).status_name == "rejected_stale"
    clock.advance_s(0.5)  # the first writer died; its successor has another instance id
    taken_over = second.command(frames(1, writer=3))
    assert (taken_over.status_name, taken_over.applied_sequence) == ("applied", 1)
    assert first.command(frames(4)).status_name == "rejected_lease"
    assert [m.header.instance_id for m in handler.commands] == [1, 3]


def test_applied_sequence_is_the_lease_holders_own(server, call, frames, clock, handler):
    assert call().command(frames(50)).applied_sequence == 50
    clock.advance_s(1.0)
    handler.outcome = CommandOutcome(CommandStatus.NOT_ARMED, safety_state=0)
    reply = call().command(frames(1, writer=2))
    assert (reply.status_name, reply.applied_sequence, reply.applied_ns) == ("not_armed", 0, 0)


def test_what_has_no_envelope_is_dropped_and_counted(server, call, frames):
    caller = call()
    caller.send(b"command", b"x", b"y", envelope=())
    caller.send(b"z", envelope=())
    assert caller.command(frames(1)).applied
    assert server._command.malformed == 2


def test_a_message_of_a_thousand_frames_is_one_malformed_request(call, frames):
    caller = call()
    assert caller.command([b"x"] * 1000).status_name == "rejected_malformed"
    assert caller.command(frames(1)).applied


@pytest.mark.parametrize("transport", ["ipc", "tcp"], indirect=True)
def test_an_oversized_frame_costs_its_sender_the_connection(
    server, call, frames, handler, eventually
):
    good, bad = call(), call()
    assert good.command(frames(1)).applied
    monitor = bad.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    bad.send(*frames(1)[:2], bytes(1 << 20))
    eventually(lambda: server.poll(0.0) or monitor.poll(10))
    bad.socket.disable_monitor()
    monitor.close()
    assert good.command(frames(2)).applied
    assert bad.command(frames(3)).applied  # it has reconnected
    assert len(handler.commands) == 3


@pytest.mark.parametrize("transport", ["inproc"], indirect=True)  # no limit on frames there
def test_an_oversized_payload_is_refused_for_its_length(call, frames):
    caller = call()
    reply = caller.command([*frames(1)[:2], bytes(1 << 20)])
    assert reply.status_name == "rejected_length"


def test_a_flood_does_not_keep_the_writer_out(server, call, frames, handler):
    writer, flooder = call(), call()
    assert writer.command(frames(1)).applied
    for sequence in range(400):
        flooder.send(*frames(sequence, writer=9))
    assert server.poll(1.0) <= 128
    assert writer.command(frames(2)).applied
    assert [message.header.instance_id for message in handler.commands] == [1, 1]


def test_a_caller_that_never_reads_does_not_block_the_server(server, call, frames, eventually):
    deaf, writer = call(), call()
    for _ in range(3000):
        deaf.socket.send_multipart([b"", b"rubbish"])
        server.poll(0.0)
    assert writer.command(frames(1)).applied


def test_an_operator_is_served_in_the_middle_of_a_flood(server, call, frames, handler):
    flooder, operator = call(), call("safety")
    for sequence in range(400):
        flooder.send(*frames(sequence))
    (topic, raw) = operator.ask(b"safety", b'{"op": "estop", "by": "anna"}')
    assert (topic, json.loads(raw)["ok"]) == (b"safety", True)
    assert handler.requests == [("estop", "anna")]


def test_an_operator_gets_state_faults_and_reason(call):
    _, raw = call("safety").ask(b"safety", b'{"op": "status", "by": "x"}')
    assert json.loads(raw) == {"ok": True, "state": "active", "faults": ["tilt"], "reason": ""}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ((b"safety", b'{"op": "dance"}'), "unknown op 'dance'; use one of arm, disarm, estop"),
        ((b"safety", b'{"op": ["arm"]}'), "unknown op \"['arm']\""),
        ((b"safety", b"{}"), "unknown op 'None'"),
        ((b"safety", b"\xff{"), "request is not"),
        ((b"safety", b"[" * 60_000), "request is not"),
        ((b"safety", b'"arm"'), "request is not"),
        ((b"safety",), "request is not"),
        ((b"command", b'{"op": "arm"}'), "request is not"),
        ((b"safety", b'{"op": "arm"}', b""), "request is not"),
        ((), "request is not"),
    ],
)
def test_a_broken_operators_request_is_refused_with_a_reason(call, handler, body, reason):
    operator = call("safety")
    _, raw = operator.ask(*body)
    answer = json.loads(raw)
    assert answer["ok"] is False
    assert reason in answer["reason"]
    assert handler.requests == []


def test_an_arm_request_that_waited_a_second_is_refused_an_estop_never(call, handler, clock):
    operator = call("safety")
    sent_ns = clock()
    clock.advance_s(1.001)
    for op, ok in (("arm", False), ("reset", False), ("disarm", True), ("estop", True)):
        request = {"op": op, "by": "anna", "sent_ns": sent_ns}
        _, raw = operator.ask(b"safety", json.dumps(request).encode())
        assert json.loads(raw)["ok"] is ok
    assert handler.requests == [("disarm", "anna"), ("estop", "anna")]


def test_an_arm_request_stamped_ahead_of_this_hosts_clock_is_refused_by_how_much(
    call, handler, clock
):
    operator = call("safety")
    for op, ahead_ns, ok in (
        ("arm", 1_000_001, False),
        ("reset", 3_600_000_000_000, False),
        ("arm", 1_000_000, True),
        ("estop", 3_600_000_000_000, True),
    ):
        request = {"op": op, "by": "anna", "sent_ns": clock() + ahead_ns}
        _, raw = operator.ask(b"safety", json.dumps(request).encode())
        answer = json.loads(raw)
        assert answer["ok"] is ok
        if not ok and op == "arm":
            assert answer["reason"] == (
                "arm is stamped 0.001 s ahead of this host's clock; send it from this host"
            )
        elif not ok:
            assert answer["reason"].startswith("reset refused: clocks differ by 3600 s: the sender")
    assert handler.requests == [("arm", "anna"), ("estop", "anna")]


def test_hello_is_answered_on_both_endpoints(server, call, clock):
    answers = [call(name).ask(b"hello", b"{}") for name in ("command", "safety")]
    hello, other = (json.loads(answer[1]) for answer in answers)
    for clocks in (hello.pop("clocks"), other.pop("clocks")):
        assert clocks["monotonic_ns"] == clock()
        assert abs(clocks["wall_ns"] - time.time_ns()) < 60e9
    assert hello == other
    assert hello["service"] == "test-hal"
    assert hello["robot"] == {"name": "crab_hex"}
    assert hello["instance_id"] == f"{server.instance_id:016x}"
    assert server.stats.hellos == 2
    assert sum(server.stats.commands.values()) == 0


def test_streams_go_out_with_the_servers_stamps(server, context, clock, eventually):
    sends = {
        STATE: lambda: server.publish_state(np.zeros(70), clock() - 5, 1),
        CAMERA: lambda: server.publish_camera(np.zeros((2, 3)), clock() - 5, 1),
        TRUTH: lambda: server.publish_truth(np.zeros(20), clock() - 5, 1),
    }
    for stream, send in sends.items():
        with LatestSubscriber(server.endpoints[stream.name], stream, context=context) as subscriber:
            message = eventually(lambda s=send, r=subscriber: s() and r.wait(0.01))
            assert message.header.publish_ns == clock()
            assert (message.capture_ns, message.flags) == (clock() - 5, 1)


def test_poll_returns_in_time_and_at_once_when_something_comes(server, call, frames):
    assert server.poll(0.0) == 0
    waits = []
    while len(waits) < 1000 and min(waits, default=1.0) >= 0.001:  # others are busy here too
        waits.append(timed(lambda: server.poll(0.0005)))
    assert 0.0005 <= min(waits) < 0.001
    call().send(*frames(1))
    assert timed(lambda: server.poll(60.0)) < 50.0


def timed(work):
    start = time.monotonic()
    work()
    return time.monotonic() - start


@pytest.mark.parametrize("transport", ["tcp"], indirect=True)
def test_a_server_without_its_endpoints_says_which(endpoints, handler, context):
    del endpoints["command"]
    with pytest.raises(EndpointError, match=r"no endpoint for command; set endpoints\.command"):
        HalServer(endpoints, hello=make_hello(service="x"), handler=handler, context=context)


@pytest.mark.parametrize("transport", ["tcp"], indirect=True)
def test_a_server_that_finds_one_endpoint_busy_gives_up_the_others(
    endpoints, handler, context, server
):
    second = {**endpoints, "safety": server.endpoints["safety"]}
    with pytest.raises(EndpointInUse, match=r"\(safety\) is already in use"):
        HalServer(second, hello=make_hello(service="x"), handler=handler, context=context)


@pytest.mark.parametrize("transport", ["tcp"], indirect=True)
def test_camera_safety_and_truth_may_be_absent(endpoints, handler, context):
    few = {name: endpoints[name] for name in ("state", "command")}
    with HalServer(few, hello=make_hello(service="x"), handler=handler, context=context) as server:
        assert server.endpoints.keys() == few.keys()
        assert server.poll(0.0) == 0


def test_a_simulated_clock_leaves_leases_to_the_host(endpoints, handler, context):
    hello = make_hello(service="x", clock="simulated")
    with HalServer(
        endpoints, hello=hello, handler=handler, clock_ns=lambda: 0, context=context
    ) as server:
        assert server._process_clock_ns is time.monotonic_ns


def heard(trace, is_last):
    """The records that arrive, up to one that is the last."""
    records, deadline = [], time.monotonic() + 60.0
    while not (records and is_last(records[-1])) and time.monotonic() < deadline:
        records += [Exchange.unpack(each.payload.tobytes()) for each in trace.drain()]
        time.sleep(0.005)
    return records


def test_changes_of_the_gate_and_requests_are_traced(server, endpoints, context):
    place = {**endpoints, **server.endpoints}["trace"]
    with LatestSubscriber(place, TRACE, context=context) as trace:
        deadline, state = time.monotonic() + 60.0, 1
        while not trace.drain() and time.monotonic() < deadline:
            state = 3 - state  # until the subscription has arrived
            server.follow_gate(state, 0)
            time.sleep(0.01)
        server.follow_gate(3, 0)
        heard(trace, lambda each: each.gate == (3, 0))
        server.follow_gate(4, 0b1001)
        server.follow_gate(4, 0b1001)  # no change
        # As when many ask at once: eight are told, the others are numbered and so counted.
        for number in range(11):
            server._note(
                ExchangeKind.SAFETY, number, [b"safety", b'{"op": "arm"}'], b'{"ok": true}'
            )
        server._publish_exchanges(server._trace)
        server.follow_gate(2, 0)
        change, *told, last = heard(trace, lambda each: each.gate == (2, 0))
        assert (change.kind, change.gate) == (ExchangeKind.GATE, (4, 0b1001))
        assert [each.handled_ns for each in told] == list(range(8))
        assert told[0].asked == {"op": "arm"}
        assert told[0].answered == {"ok": True}
        assert last.kind is ExchangeKind.GATE
        assert trace.gaps == 3
