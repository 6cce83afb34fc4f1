"""The 48 bytes in front of every payload, and what their flags mean.

The fields are ordered so that in C a packed struct and a naturally aligned one are the same.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from krabby_proto.errors import BadMagic, EncodeError, SchemaVersionMismatch, ShortFrame

__all__ = [
    "FLAG_FEATURES_DUE",
    "FLAG_HOLD",
    "FLAG_LATENT",
    "FLAG_LOCKSTEP",
    "FLAG_NAV_DUE",
    "FLAG_OPERATOR",
    "FLAG_RESET",
    "HEADER_FORMAT",
    "HEADER_SIZE",
    "MAGIC",
    "SCHEMA_VERSION",
    "Header",
    "unpack_header",
]

MAGIC: Final = b"KRBY"
SCHEMA_VERSION: Final = 1
"""Rises with every change of header, reply or streams table that an old peer would misread."""

HEADER_FORMAT: Final = "<4sHBBQQQQII"
_HEADER = struct.Struct(HEADER_FORMAT)
HEADER_SIZE: Final = _HEADER.size

FLAG_LOCKSTEP: Final = 1
"""The producer's clock is simulated time: consumers pace themselves by this stream and wait."""
FLAG_FEATURES_DUE: Final = 2
"""State: a camera frame was published just before; wait for features newer than the last ones."""
FLAG_NAV_DUE: Final = 4
"""State: a nav message with the same capture time was published."""
FLAG_LATENT: Final = 8
"""Features: the payload is a depth-encoder latent, else it is an image."""
FLAG_OPERATOR: Final = 16
"""Nav: from a person; outranks a mission for one second after it was received."""
FLAG_RESET: Final = 32
"""State: the first sample after the robot was put back to its start."""
FLAG_HOLD: Final = 64
"""Command: no motion is asked for. The HAL counts it as a command and keeps the target it has."""


class Header(NamedTuple):
    """One message's header, in wire order. A tuple, because it is made some 500 times a second."""

    magic: bytes
    schema_version: int
    stream_id: int
    flags: int
    instance_id: int
    """Random per sending socket: a restart is a new instance."""
    sequence: int
    """From 1, rising by one with every message of an instance."""
    capture_ns: int
    """When the physical quantity was sampled [ns, CLOCK_MONOTONIC]; kept across every hop."""
    publish_ns: int
    """When this message was handed to the socket [ns, CLOCK_MONOTONIC]."""
    num_elements: int
    """Elements (float32) of the payload."""
    crc32: int
    """CRC-32 (zlib, polynomial 0x04C11DB7 reflected) of the payload bytes."""

    def pack(self) -> bytes:
        """The 48 bytes; raises `EncodeError` when a number does not fit its field."""
        try:
            return _HEADER.pack(*self)
        except struct.error as error:
            fields = ", ".join(f"{name} {value}" for name, value in self._asdict().items())
            raise EncodeError(
                f"header does not fit ({error}): {fields}; "
                "times and counters are unsigned 64-bit integers"
            ) from error


def unpack_header(frame: bytes | memoryview) -> Header:
    """Read a header frame; checks size, magic and schema version, nothing else.

    Raises:
        ShortFrame: the frame is not 48 bytes long.
        BadMagic: it does not start with ``KRBY``.
        SchemaVersionMismatch: the sender speaks another version.
    """
    if len(frame) != HEADER_SIZE:
        raise ShortFrame(
            f"header frame has {len(frame)} bytes, the contract has {HEADER_SIZE}; "
            "the sender is not a krabby process or the frame was cut"
        )
    header = Header._make(_HEADER.unpack(frame))
    if header.magic != MAGIC:
        raise BadMagic(
            f"header starts with {header.magic!r}, expected {MAGIC!r}; "
            "the sender is not a krabby process"
        )
    if header.schema_version != SCHEMA_VERSION:
        raise SchemaVersionMismatch(
            f"sender has schema version {header.schema_version}, this process has "
            f"{SCHEMA_VERSION}; install the same krabby-proto on both sides"
        )
    return header
