"""What writer and reader of recordings agree on."""

from __future__ import annotations

import importlib
import json
from typing import Any, Final

from krabby_proto.errors import RecordingError
from krabby_proto.header import HEADER_FORMAT, HEADER_SIZE, SCHEMA_VERSION, Header
from krabby_proto.schema import schema_hash
from krabby_proto.streams import Stream

__all__ = ["ENCODING", "GAPS", "HELLO", "MAIN", "PROFILE", "describe", "extra"]

ENCODING: Final = "krabby"
"""Of raw channels: header and payload as they were on the wire."""
PROFILE: Final = "krabby"
MAIN: Final = "krabby"
"""Metadata record of the recorder itself."""
GAPS: Final = "krabby.gaps"
"""Metadata record with the number of messages by stream that never came."""
HELLO: Final = "krabby.hello."
"""Begin of the name of a metadata record with a process's hello as JSON in `hello`."""


def describe(stream: Stream) -> bytes:
    """What a reader without this package needs, as JSON text."""
    element = "little-endian float32" if stream.element == "float32" else "bytes"
    description = {
        "schema_version": SCHEMA_VERSION,
        "schema_hash": schema_hash(),
        "header": {"struct": HEADER_FORMAT, "bytes": HEADER_SIZE, "fields": Header._fields},
        "payload": {
            "dtype": element,
            "description": stream.description,
            "fields": [[field.name, field.size, field.unit] for field in stream.fields],
        },
    }
    return json.dumps(description).encode()


def extra(module: str) -> Any:
    """A module of the extra; raises `RecordingError` when it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RecordingError(
            "recordings need the mcap package; install krabby-proto[recording]"
        ) from error
