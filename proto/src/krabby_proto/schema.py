"""What two peers must agree on to read each other's bytes, as one hash."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import Final

from krabby_proto.header import FLAG_HOLD, HEADER_FORMAT, MAGIC, SCHEMA_VERSION
from krabby_proto.replies import REPLY_FORMAT, REPLY_MAGIC, CommandReply
from krabby_proto.states import FAULT_BITS, SAFETY_OPS, SAFETY_STATES, CommandStatus
from krabby_proto.streams import STREAMS

__all__ = ["schema_hash"]

_HASHED_FAULT_BITS: Final = 13
"""Fault bits that this schema version began with. A peer that does not know one appended later
reads it as ``bit_<n>``, as `fault_names` does, so the two understand each other."""
_HASHED_STREAMS: Final = 10
"""Stream ids that this schema version began with. A peer that does not know one appended later
never subscribes to it."""


@cache
def schema_hash() -> str:
    """16 hex digits over everything two peers must agree on to read each other's bytes.

    SHA-256, cut, of a canonical JSON of the header and reply layouts, the enumerations that travel
    as numbers, the flag that a loop relies on for a HAL not to move, and the streams table without
    its prose. Fault bits and streams appended since the schema version began are left out: a peer
    that does not know them misreads nothing.
    """
    table = {
        "version": SCHEMA_VERSION,
        "header": [MAGIC.decode(), HEADER_FORMAT],
        "reply": [REPLY_MAGIC.decode(), REPLY_FORMAT, *CommandReply._fields],
        "hold": FLAG_HOLD,
        "status": {status.name: int(status) for status in CommandStatus},
        "safety": [SAFETY_OPS, SAFETY_STATES, FAULT_BITS[:_HASHED_FAULT_BITS]],
        "streams": {
            stream.name: [
                stream.id,
                stream.pattern,
                stream.max_elements,
                [[field.name, field.size, field.unit] for field in stream.fields],
                *([] if stream.element == "float32" else [stream.element]),
            ]
            for stream in STREAMS.values()
            if stream.id <= _HASHED_STREAMS
        },
    }
    text = json.dumps(table, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]
