"""Records of what a tick took in and decided, and of what was asked and answered."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from krabby_proto import (
    COMMAND,
    FEATURES,
    FLAG_LATENT,
    FLAG_OPERATOR,
    NAV,
    STATE,
    TICKS,
    CommandReply,
    CommandStatus,
    Exchange,
    ExchangeKind,
    FrameError,
    NavTaken,
    ReplyTaken,
    StateSeen,
    Tick,
    TickReader,
    TickRecord,
    decode,
    encode,
)
from krabby_proto.testing import resting_state

STAMPS = {"instance_id": 7, "capture_ns": 1_000, "publish_ns": 2_000}


def message(stream, payload, sequence=1, flags=0):
    return decode(encode(stream, payload, sequence=sequence, flags=flags, **STAMPS), stream)


STATE_1 = message(STATE, resting_state(), 1)
STATE_2 = message(STATE, resting_state(), 2)
NAV_1 = message(NAV, [0.3, 0.0, -0.1], 5, FLAG_OPERATOR)
LATENT = message(FEATURES, np.arange(32), 9, FLAG_LATENT)
IMAGE = message(FEATURES, np.zeros(58 * 87), 10)
REPLY = CommandReply.unpack(
    CommandReply.pack(
        CommandStatus.APPLIED,
        safety_state=2,
        fault_bits=0,
        position_clamp_mask=0,
        rate_clamp_mask=1,
        request_sequence=4,
        applied_sequence=4,
        applied_ns=900,
        server_ns=950,
    )
)
HEAD = {
    "tick": 12,
    "now_ns": 3_000,
    "mode": "policy",
    "safety_state": 2,
    "sent": True,
    "hal_checked": True,
    "leaving": False,
    "command_sequence": 5,
    "host_ns": (3_001, 3_002),
}


def published(content, sequence=1):
    return message(TICKS, content, sequence)


def a_record():
    record = TickRecord()
    record.add_reply(REPLY, 2_500)
    record.add_seen(STATE_1)
    record.add_nav(NAV_1, 2_900)
    record.add_seen(STATE_2)
    record.add_request("stand", 2)
    record.add_policy({"name": "gait"})
    record.add_decided_on(STATE_2, LATENT)
    record.add_decision(np.linspace(-1, 1, 18), [0.3, 0.0, -0.1], [0.5, 0.0, -0.1])
    record.add_observed(np.arange(102))
    record.add_status({"policy": "gait", "sight": "none"})
    return record


def test_a_tick_gives_back_its_inputs_in_order_and_bit_for_bit():
    tick = Tick.unpack(published(a_record().finish(**HEAD)))
    assert [type(each) for each in tick.inputs] == [ReplyTaken, StateSeen, NavTaken, StateSeen]
    reply, first, nav, second = tick.inputs
    assert (reply.reply, reply.sent_ns) == (REPLY, 2_500)
    assert (first.header, second.header) == (STATE_1.header, STATE_2.header)
    assert (nav.message.frames(), nav.now_ns) == (NAV_1.frames(), 2_900)
    assert tick.state.frames() == STATE_2.frames()
    assert tick.features.frames() == LATENT.frames()
    assert tick.request == ("stand", 2)
    assert tick.policy == {"name": "gait"}
    assert tick.target.tobytes() == np.linspace(-1, 1, 18).tobytes()
    assert tick.nav_command.tolist() == [0.3, 0.0, -0.1]
    assert tick.nav_asked.tolist() == [0.5, 0.0, -0.1]
    assert tick.observed.tolist() == list(range(102))
    assert tick.navs[0].payload.tolist() == NAV_1.payload.tolist()
    found = {name: getattr(tick, name) for name in HEAD}
    assert found == HEAD


def test_what_comes_after_the_cut_belongs_to_the_next_record():
    record = TickRecord()
    record.add_seen(STATE_1)
    parts = record.cut()
    record.add_reply(REPLY, 2_500)  # to the command of this tick
    late = record.cut()
    record.add_parts(parts)
    first = Tick.unpack(published(record.finish(**HEAD)))
    record.add_parts(late)
    record.add_snapshot(b"memory")
    record.add_seen(STATE_2)
    second = Tick.unpack(published(record.finish(**HEAD), 2))
    assert [type(each) for each in first.inputs] == [StateSeen]
    assert [type(each) for each in second.inputs] == [ReplyTaken, StateSeen]
    assert (second.snapshot, second.snapshot_at) == (b"memory", 1)
    assert (first.snapshot, first.snapshot_at) == (None, 0)


def test_features_stand_in_a_record_once_and_images_never():
    record, reader = TickRecord(), TickReader()
    sizes = []
    for sequence in (1, 2):
        record.add_decided_on(STATE_1, LATENT)
        content = record.finish(**HEAD)
        sizes.append(len(content))
        assert reader.read(published(content, sequence)).features.frames() == LATENT.frames()
    assert sizes[0] - sizes[1] == 4 * 32
    record.add_decided_on(STATE_1, IMAGE)
    seen = published(record.finish(**HEAD), 3)
    unknown = reader.read(seen)
    assert (unknown.features, unknown.features_header) == (None, IMAGE.header)
    reader.note_features(IMAGE)
    assert reader.read(seen).features.frames() == IMAGE.frames()


def test_the_status_holds_until_it_changes_or_the_loop_restarts():
    reader, record = TickReader(), TickRecord()
    record.add_status({"policy": "gait"})
    assert reader.read(published(record.finish(**HEAD))).status == {"policy": "gait"}
    assert reader.read(published(record.finish(**HEAD), 2)).status == {"policy": "gait"}
    frames = encode(
        TICKS, record.finish(**HEAD), instance_id=8, sequence=1, capture_ns=1, publish_ns=1
    )
    assert reader.read(decode(frames)).status == {}


def test_a_record_that_is_too_long_is_left_out_and_the_next_one_is_whole():
    record = TickRecord()
    record.add_snapshot(bytes(1 << 17))
    assert record.finish(**HEAD) is None
    record.add_seen(STATE_1)
    assert len(Tick.unpack(published(record.finish(**HEAD))).inputs) == 1


@given(st.data())
def test_a_damaged_record_raises_nothing_but_frame_errors(data):
    content = bytearray(a_record().finish(**HEAD))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = bytes(content[: data.draw(st.integers(1, len(content)))])
    with contextlib.suppress(FrameError):
        Tick.unpack(published(content))


@given(st.binary(max_size=300))
def test_any_bytes_as_an_exchange_raise_nothing_but_frame_errors(content):
    try:
        exchange = Exchange.unpack(content)
        assert exchange.command is None or exchange.command.stream is COMMAND
        assert isinstance(exchange.asked, dict)
        _ = exchange.gate
    except FrameError:
        pass


def test_what_was_no_command_is_kept_as_it_came():
    exchange = Exchange.of_frames(ExchangeKind.COMMAND, 5, [b"command", b"no", b"sense"], b"")
    again = Exchange.unpack(exchange.pack())
    assert (again.request, again.command) == (b"nosense", None)


def test_a_change_of_the_gate_has_its_faults_by_name():
    gate = Exchange.unpack(Exchange.of_gate(5, 4, 0b1001).pack()).gate
    assert (gate.safety_name, gate.faults) == ("damp", ("command_timeout", "tilt"))


@pytest.mark.parametrize("op", ["stand", "sit"])
def test_requests_are_those_of_operators(op):
    record = TickRecord()
    record.add_request(op, 1)
    assert Tick.unpack(published(record.finish(**HEAD))).request.op == op
    with pytest.raises(ValueError, match="use sit or stand"):
        record.add_request("jump", 1)
