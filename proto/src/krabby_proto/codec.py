"""Messages to frames and back: ``[topic, header, payload]``.

The payload is flat little-endian float32, or bytes on the streams that carry records.

NumPy is imported where a payload is made or read: it takes longer to load than all else, and a
process that only sends requests, such as an e-stop, has no payloads.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias
from zlib import crc32

from krabby_proto.errors import (
    CorruptPayload,
    EncodeError,
    WrongFrameCount,
    WrongLength,
    WrongStream,
)
from krabby_proto.header import MAGIC, SCHEMA_VERSION, Header, unpack_header
from krabby_proto.streams import STREAMS, Stream

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

__all__ = ["FloatArray", "Message", "decode", "encode", "pack", "topic_of", "unpack"]

FloatArray: TypeAlias = "NDArray[np.float32]"

_BY_ID: Final = {stream.id: stream for stream in STREAMS.values()}


class Message(NamedTuple):
    """A decoded message. A tuple, because it is made some 500 times a second."""

    header: Header
    payload: FloatArray
    """Flat and read-only; it views the received frame. Of uint8 on streams of records."""

    @property
    def stream(self) -> Stream:
        """The stream it came on."""
        return _BY_ID[self.header.stream_id]

    @property
    def sequence(self) -> int:
        """As in `Header`."""
        return self.header.sequence

    @property
    def capture_ns(self) -> int:
        """As in `Header` [ns]."""
        return self.header.capture_ns

    @property
    def flags(self) -> int:
        """Bits ``FLAG_*``."""
        return self.header.flags

    def frames(self) -> list[bytes]:
        """Topic, header and payload as they were on the wire."""
        return [self.stream.topic, self.header.pack(), self.payload.tobytes()]

    def age_s(self, now_ns: int) -> float:
        """Time since capture [s]; `now_ns` is on the producer's clock."""
        return (now_ns - self.header.capture_ns) * 1e-9


def encode(
    stream: Stream,
    payload: ArrayLike | bytes,
    *,
    instance_id: int,
    sequence: int,
    capture_ns: int,
    publish_ns: int,
    flags: int = 0,
) -> list[bytes]:
    """Frames of one message; `payload` has any shape, `Header` tells what the others are.

    Raises:
        EncodeError: the payload has the wrong size or a number does not fit its field.
    """
    import numpy as np

    if isinstance(payload, bytes) and stream.element == "uint8":
        count, raw = len(payload), payload
    else:
        elements = np.asarray(payload, dtype=_dtype(stream.element))
        count, raw = elements.size, elements.tobytes()
    if not stream.min_elements <= count <= stream.max_elements:
        raise EncodeError(
            f"{stream.name} payload has {count} {_noun(stream)}, the stream has {_sizes(stream)}"
        )
    header = Header(
        *(MAGIC, SCHEMA_VERSION, stream.id, flags, instance_id, sequence),
        *(capture_ns, publish_ns, count, crc32(raw)),
    )
    return [stream.topic, header.pack(), raw]


def decode(frames: Sequence[bytes | memoryview], stream: Stream | None = None) -> Message:
    """Read one message from topic, header and payload, of `stream` or of any.

    Raises:
        FrameError: the kind names the fault. Values are not checked: they may be NaN.
    """
    if len(frames) != 3:
        raise WrongFrameCount(
            f"message has {len(frames)} frames, the contract has 3: topic, header, payload"
        )
    import numpy as np

    topic, raw_header, raw = frames
    header = unpack_header(raw_header)
    known = _BY_ID.get(header.stream_id)
    if known is None or topic != known.topic or (stream is not None and stream.id != known.id):
        raise WrongStream(
            f"topic {bytes(topic[:32])!r} with stream id {header.stream_id}"
            + (f", expected {stream.name!r} with {stream.id}" if stream else " is not in the table")
            + "; check which endpoint is connected to which"
        )
    count = header.num_elements
    if len(raw) != known.element_bytes * count:
        raise WrongLength(
            f"{known.name} payload has {len(raw)} bytes, its header announces {count} "
            f"{known.element}"
        )
    if not known.min_elements <= count <= known.max_elements:
        raise WrongLength(
            f"{known.name} payload has {count} {_noun(known)}, the stream has {_sizes(known)}; "
            "sender and receiver have different stream tables"
        )
    found = crc32(raw)
    if found != header.crc32:
        raise CorruptPayload(
            f"{known.name} payload has CRC-32 {found:#010x}, its header says {header.crc32:#010x}"
        )
    return Message(header, np.frombuffer(raw, dtype=_dtype(known.element)))


def topic_of(raw_header: bytes) -> bytes:
    """Topic of the stream that a packed header names; empty for none of the table.

    Raises:
        FrameError: it is not a header of this contract.
    """
    known = _BY_ID.get(unpack_header(raw_header).stream_id)
    return b"" if known is None else known.topic


@cache
def _dtype(element: str) -> np.dtype[Any]:
    """Of a payload's elements, as on the wire."""
    import numpy as np

    return np.dtype("<f4" if element == "float32" else "u1")


def _noun(stream: Stream) -> str:
    return "floats" if stream.element == "float32" else "bytes"


def _sizes(stream: Stream) -> str:
    return f"{stream.size}" if stream.fields else f"1 to {stream.max_elements}"


def unpack(stream: Stream, payload: FloatArray) -> dict[str, FloatArray]:
    """Views of a payload's fields by name (no copies); `payload` has shape ``(stream.size,)``."""
    return {name: payload[where] for name, where in stream.slices.items()}


def pack(stream: Stream, **fields: ArrayLike) -> FloatArray:
    """A payload of shape ``(stream.size,)`` from all of a stream's fields by name.

    Raises:
        EncodeError: a field is missing, unknown or has the wrong size.
    """
    import numpy as np

    slices = stream.slices
    if fields.keys() != slices.keys():
        missing = ", ".join(sorted(slices.keys() - fields.keys())) or "none"
        unknown = ", ".join(sorted(fields.keys() - slices.keys())) or "none"
        raise EncodeError(f"{stream.name} fields missing: {missing}; not in the table: {unknown}")
    payload = np.empty(stream.size, dtype=np.float32)
    for name, value in fields.items():
        where = slices[name]
        floats = np.asarray(value, dtype=np.float32).ravel()
        if floats.size != where.stop - where.start:
            raise EncodeError(
                f"{stream.name}.{name} has {floats.size} floats, "
                f"the stream has {where.stop - where.start}"
            )
        payload[where] = floats
    return payload
