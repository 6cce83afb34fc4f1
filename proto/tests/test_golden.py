"""The bytes in ``golden/`` are the contract; nothing here may be regenerated to make it pass."""

import json
from pathlib import Path

import pytest
from krabby_proto import (
    STREAMS,
    CommandReply,
    CommandStatus,
    Exchange,
    ExchangeKind,
    Tick,
    decode,
    encode,
)
from krabby_proto import errors as errors_module

GOLDEN = Path(__file__).parents[1] / "golden"
MESSAGES = [
    *("camera", "state", "command", "features", "nav", "trace", "ticks", "truth", "colour"),
]
INVALID = json.loads((GOLDEN / "invalid.json").read_text())


def load(name):
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    if isinstance(golden.get("payload"), str):  # bytes, in hex
        golden["payload"] = bytes.fromhex(golden["payload"])
    return golden


@pytest.mark.parametrize("name", MESSAGES)
def test_fields_become_the_golden_bytes(name):
    golden = load(name)
    header = golden["header"]
    frames = encode(
        STREAMS[name],
        golden["payload"],
        instance_id=int(header["instance_id"], 16),
        sequence=header["sequence"],
        capture_ns=header["capture_ns"],
        publish_ns=header["publish_ns"],
        flags=header["flags"],
    )
    assert [frame.hex() for frame in frames] == golden["frames"]


@pytest.mark.parametrize("name", MESSAGES)
def test_the_golden_bytes_become_the_fields(name):
    golden = load(name)
    message = decode([bytes.fromhex(frame) for frame in golden["frames"]], STREAMS[name])
    fields = message.header._asdict()
    fields["magic"] = fields["magic"].decode()
    fields["instance_id"] = f"{fields['instance_id']:016x}"
    fields["crc32"] = f"{fields['crc32']:08x}"
    assert fields == golden["header"]
    assert message.payload.tolist() == list(golden["payload"])


def test_the_golden_exchange_is_a_command_and_its_reply():
    exchange = Exchange.unpack(load("trace")["payload"])
    assert (exchange.kind, exchange.handled_ns) == (ExchangeKind.COMMAND, 1_000_000_600_000)
    assert exchange.command.payload.tolist() == [0.25 * n for n in range(18)]
    assert exchange.reply.applied
    assert exchange.gate == (2, 0x11)
    assert exchange.gate.faults == ("command_timeout", "effort_budget")
    assert exchange.pack() == load("trace")["payload"]


def test_the_golden_tick_took_a_request_and_sent_nothing():
    frames = [bytes.fromhex(frame) for frame in load("ticks")["frames"]]
    tick = Tick.unpack(decode(frames, STREAMS["ticks"]))
    assert (tick.tick, tick.now_ns, tick.mode) == (7, 1_000_000_000_000, "passive")
    assert (tick.sent, tick.hal_checked, tick.leaving) == (False, True, False)
    assert tick.request == ("stand", 3)
    assert tick.host_ns == (1_000_000_000_001,)
    assert (tick.state, tick.features, tick.target) == (None, None, None)


def test_the_reply_and_its_golden_bytes_agree_both_ways():
    golden = load("reply")
    frame = bytes.fromhex(golden.pop("frame"))
    reply = CommandReply.unpack(frame)
    assert {name: getattr(reply, name) for name in golden} == golden
    assert CommandReply.pack(**golden) == frame


@pytest.mark.parametrize("case", INVALID, ids=[case["name"] for case in INVALID])
def test_invalid_golden_frames_are_refused_for_the_reason_given(case):
    with pytest.raises(getattr(errors_module, case["error"])):
        decode([bytes.fromhex(frame) for frame in case["frames"]], STREAMS["command"])
    assert CommandStatus(case["status"]).name.startswith("REJECTED_")
