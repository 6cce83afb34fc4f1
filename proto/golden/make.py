"""Writes the golden byte vectors; run it only when the contract changes on purpose.

The vectors are the contract in bytes: a reader or writer in any language is right when it maps
each file's fields to its frames and back, and refuses every frame list of ``invalid.json``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from krabby_proto import CommandReply, CommandStatus, encode
from krabby_proto.exchanges import Exchange, ExchangeKind
from krabby_proto.header import FLAG_LATENT, FLAG_LOCKSTEP, FLAG_NAV_DUE, FLAG_OPERATOR
from krabby_proto.streams import (
    CAMERA,
    COLOUR,
    COMMAND,
    FEATURES,
    NAV,
    STATE,
    TICKS,
    TRACE,
    TRUTH,
    Stream,
)
from krabby_proto.ticks import TickRecord

HERE = Path(__file__).parent
INSTANCE = 0x0123456789ABCDEF
JPEG = bytes.fromhex("ffd8ffe000104a46494600010100000100010000ffd9")
"""Begin and end of one, with nothing in between."""
STATUS = {
    "SchemaVersionMismatch": CommandStatus.REJECTED_SCHEMA,
    "WrongLength": CommandStatus.REJECTED_LENGTH,
    "CorruptPayload": CommandStatus.REJECTED_CORRUPT,
}
"""Of an error on reading; any other is malformed."""


def ramp(size: int) -> list[float]:
    """0, 0.25, 0.5 ... : every value is exact in float32, neighbours differ."""
    return [0.25 * index for index in range(size)]


MESSAGES: tuple[tuple[Stream, list[float], int], ...] = (
    (CAMERA, [0.0, 0.5, 1.25, 2.0, 3.75, 4.0], 0),
    (STATE, ramp(STATE.size), FLAG_LOCKSTEP | FLAG_NAV_DUE),
    (COMMAND, [value - 2.0 for value in ramp(COMMAND.size)], 0),
    (FEATURES, ramp(32), FLAG_LATENT),
    (NAV, [0.35, -0.05, 0.1], FLAG_OPERATOR),
    (TRUTH, ramp(TRUTH.size), 0),
)


def record_of_exchange() -> bytes:
    """A command as it came, and its reply."""
    frames = encode(
        COMMAND, ramp(18), instance_id=INSTANCE, sequence=44, capture_ns=3, publish_ns=4
    )
    answer = bytes.fromhex(reply()["frame"])
    return Exchange.of_frames(ExchangeKind.COMMAND, 1_000_000_600_000, frames, answer).pack()


def record_of_tick() -> bytes:
    """A tick that took a request and a reading of the clock, and sent nothing."""
    record = TickRecord()
    record.add_request("stand", 3)
    content = record.finish(
        tick=7,
        now_ns=1_000_000_000_000,
        mode="passive",
        safety_state=2,
        sent=False,
        hal_checked=True,
        leaving=False,
        command_sequence=0,
        host_ns=[1_000_000_000_001],
    )
    assert content is not None
    return content


def vector(stream: Stream, payload: list[float] | bytes, flags: int) -> dict[str, Any]:
    """One message as fields and as bytes."""
    capture_ns, publish_ns = 1_000_000_000_000 + stream.id, 1_000_000_250_000 + stream.id
    frames = encode(
        stream,
        payload,
        instance_id=INSTANCE,
        sequence=41 + stream.id,
        capture_ns=capture_ns,
        publish_ns=publish_ns,
        flags=flags,
    )
    return {
        "stream": stream.name,
        "header": {
            "magic": "KRBY",
            "schema_version": 1,
            "stream_id": stream.id,
            "flags": flags,
            "instance_id": f"{INSTANCE:016x}",
            "sequence": 41 + stream.id,
            "capture_ns": capture_ns,
            "publish_ns": publish_ns,
            "num_elements": len(payload),
            "crc32": f"{int.from_bytes(frames[1][44:48], 'little'):08x}",
        },
        "payload": payload.hex()
        if isinstance(payload, bytes)
        else np.asarray(payload, dtype=np.float32).tolist(),
        "frames": [frame.hex() for frame in frames],
    }


def reply() -> dict[str, Any]:
    """A reply with every field different from 0."""
    fields = {
        "safety_state": 2,
        "fault_bits": 0x0000_0011,
        "position_clamp_mask": 0x0002_0001,
        "rate_clamp_mask": 0x0001_0002,
        "arm_count": 0x0003_0005,
        "request_sequence": 44,
        "applied_sequence": 44,
        "applied_ns": 1_000_000_500_000,
        "server_ns": 1_000_000_600_000,
    }
    frame = CommandReply.pack(CommandStatus.APPLIED, **fields)
    return {"status": int(CommandStatus.APPLIED), **fields, "frame": frame.hex()}


def invalid() -> list[dict[str, Any]]:
    """Commands that must be refused, with the error on reading and the status in the reply."""
    topic, header, payload = encode(
        COMMAND, ramp(18), instance_id=INSTANCE, sequence=7, capture_ns=1, publish_ns=1
    )
    flipped = bytes([payload[0] ^ 1]) + payload[1:]
    cases: list[tuple[str, list[bytes], str]] = [
        ("no payload frame", [topic, header], "WrongFrameCount"),
        ("a fourth frame", [topic, header, payload, b"x"], "WrongFrameCount"),
        ("header one byte short", [topic, header[:-1], payload], "ShortFrame"),
        ("header one byte long", [topic, header + b"\0", payload], "ShortFrame"),
        ("other magic", [topic, b"ROSX" + header[4:], payload], "BadMagic"),
        (
            "schema version 2",
            [topic, header[:4] + b"\2\0" + header[6:], payload],
            "SchemaVersionMismatch",
        ),
        ("stream id of nav", [topic, header[:6] + b"\5" + header[7:], payload], "WrongStream"),
        ("topic of state", [b"state", header, payload], "WrongStream"),
        ("payload one float short, count 18", [topic, header, payload[:-4]], "WrongLength"),
        (
            "payload and count 17",
            [topic, header[:40] + b"\x11\0\0\0" + header[44:], payload[:-4]],
            "WrongLength",
        ),
        ("one bit flipped", [topic, header, flipped], "CorruptPayload"),
    ]
    return [
        {
            "name": name,
            "frames": [frame.hex() for frame in frames],
            "error": error,
            "status": int(STATUS.get(error, CommandStatus.REJECTED_MALFORMED)),
        }
        for name, frames, error in cases
    ]


def main() -> None:
    """Write every file beside this one."""
    records = (
        (TRACE, record_of_exchange(), 0),
        (TICKS, record_of_tick(), 0),
        (COLOUR, JPEG, 0),
    )
    files: dict[str, Any] = {
        stream.name: vector(stream, payload, flags)
        for stream, payload, flags in (*MESSAGES, *records)
    }
    files |= {"reply": reply(), "invalid": invalid()}
    for name, content in files.items():
        (HERE / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
