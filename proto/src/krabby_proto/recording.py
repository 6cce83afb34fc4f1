"""Streams to an MCAP file and back: the wire's own bytes, one channel a stream.

Needs the extra ``recording``. A channel's data is header and payload as they were on the wire,
its schema is text that describes both, log time is the publish time.
"""

from __future__ import annotations

import contextlib
import heapq
import importlib
import itertools
import json
import struct
import zlib
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from krabby_proto.codec import Message, decode, topic_of
from krabby_proto.endpoint import Closing
from krabby_proto.errors import FrameError, RecordingError
from krabby_proto.header import HEADER_FORMAT, HEADER_SIZE, MAGIC, SCHEMA_VERSION, Header
from krabby_proto.streams import Stream, schema_hash

__all__ = ["Recorder", "Recording"]

_ENCODING: Final = "krabby"
_PROFILE: Final = "krabby"
_U32: Final = 0xFFFFFFFF
_MAGIC: Final = b"\x89MCAP0\r\n"
_RECORD: Final = struct.Struct("<BQ")
_FOOTER, _MESSAGE, _CHUNK, _DATA_END = 0x02, 0x05, 0x06, 0x0F
_CHUNK_HEAD: Final = struct.Struct("<QQQII")
_MESSAGE_HEAD: Final = 22
"""Bytes of a message record before its data."""
_WRITTEN_BYTES: Final = 1 << 18
"""Of a chunk that is written, and one message: what a power cut or a full disk loses at most. All
streams of a robot that sees fill it in 0.3 s, its state alone in 7 s."""
_CHUNK_BYTES: Final = 32 << 20
"""Largest record and largest chunk that are read."""
_HELD_BYTES: Final = 32 << 20
"""Most that is held back to give messages in order of time."""


class Recorder(Closing):
    """Writes messages to a new MCAP file, compressed in chunks.

    Args:
        path: the file; replaced when it exists.
        metadata: text kept with the recording, for example the run id.

    Raises:
        RecordingError: the extra is not installed or the file cannot be written.
    """

    def __init__(self, path: Path, metadata: Mapping[str, str] | None = None) -> None:
        writer_module = _extra("mcap.writer")
        self.path = path
        self.messages = 0
        """Messages written."""
        try:
            self._file = path.open("wb")
        except OSError as error:
            raise RecordingError(
                f"cannot write the recording {path}: {error.strerror}; give another path"
            ) from error
        self._writer: Any = writer_module.Writer(self._file, chunk_size=_WRITTEN_BYTES)
        self._failed = False
        self._writer.start(profile=_PROFILE, library=f"krabby-proto schema {schema_hash()}")
        self._writer.add_metadata("krabby", {"schema_hash": schema_hash(), **dict(metadata or {})})
        self._channels: dict[int, int] = {}

    def write(self, message: Message) -> None:
        """Append one message.

        Raises:
            RecordingError: the file takes no more, because the disk is full for example.
        """
        with self._told():
            self._write(message)
        self.messages += 1

    def _write(self, message: Message) -> None:
        header = message.header
        channel = self._channels.get(header.stream_id)
        if channel is None:
            channel = self._channels[header.stream_id] = self._register(message.stream)
        self._writer.add_message(
            channel_id=channel,
            log_time=header.publish_ns,
            publish_time=header.publish_ns,
            sequence=header.sequence & _U32,
            data=header.pack() + message.payload.tobytes(),
        )

    def _register(self, stream: Stream) -> int:
        schema = self._writer.register_schema(
            name=f"krabby.{stream.name}", encoding=_ENCODING, data=_describe(stream)
        )
        return self._writer.register_channel(
            topic=stream.name, message_encoding=_ENCODING, schema_id=schema
        )

    def close(self) -> None:
        """Write the index and close the file."""
        if self._file.closed:
            return
        try:
            with self._told(), self._file:
                self._writer.finish()
        except RecordingError:
            if not self._failed:
                raise

    @contextlib.contextmanager
    def _told(self) -> Generator[None, None, None]:
        """A failure to write becomes a `RecordingError`; what was written stays readable."""
        try:
            yield
        except OSError as error:
            self._failed, failed = True, self._failed
            raise RecordingError(
                f"the recording {self.path} ends after {self.messages} messages: "
                f"{error.strerror}; {'' if failed else 'it can be read up to there'}"
            ) from error


class Recording:
    """Reads a recording; iterating gives each `Message` in order of publish time.

    A file that was cut short or damaged gives what is readable of it; `damage` then says what is
    missing. No more than some 100 MiB are held, even if the file declares more.

    Raises:
        RecordingError: the extra is not installed, there is no such file, or nothing in it is
            readable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damage = ""
        """What the last iteration could not read; empty when it read everything."""
        if not path.is_file():
            raise RecordingError(f"no recording at {path}; give the path of an .mcap file")

    def __iter__(self) -> Iterator[Message]:
        self.damage = ""
        held: list[tuple[int, int, Message]] = []
        given, order, held_bytes = False, itertools.count(), 0
        for start_ns, records in self._chunks():
            while held and (held[0][0] <= start_ns or held_bytes > _HELD_BYTES):
                _, _, message = heapq.heappop(held)
                held_bytes -= message.payload.nbytes
                given = True
                yield message
            for message in self._messages(records):
                heapq.heappush(held, (message.header.publish_ns, next(order), message))
                held_bytes += message.payload.nbytes
        given = given or bool(held)
        while held:
            yield heapq.heappop(held)[2]
        if self.damage and not given:
            raise RecordingError(f"{self.path} is not a readable recording: {self.damage}")

    def _chunks(self) -> Iterator[tuple[int, bytes]]:
        """Time of the first message [ns] and records of each chunk, in order of the file."""
        try:
            with self.path.open("rb") as file:
                if file.read(len(_MAGIC)) != _MAGIC:
                    self._note("it does not begin as an MCAP file does")
                    return
                for opcode, content in self._records(file):
                    if opcode == _CHUNK:
                        yield from self._opened(content)
                    elif opcode == _MESSAGE:  # of a file without chunks
                        yield 0, _RECORD.pack(opcode, len(content)) + content
        except OSError as error:
            self._note(f"{error.strerror} while reading")

    def _records(self, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
        """Opcode and content of each record up to the end of the data."""
        while True:
            head = file.read(_RECORD.size)
            if len(head) == _RECORD.size:
                opcode, length = _RECORD.unpack(head)
                if opcode in (_DATA_END, _FOOTER):
                    return
                if length > _CHUNK_BYTES:
                    self._note(f"a record claims {length} bytes, at most {_CHUNK_BYTES} are read")
                    return
                content = file.read(length)
                if len(content) == length:
                    yield opcode, content
                    continue
            self._note("it ends in the middle; was the recorder stopped cleanly?")
            return

    def _opened(self, content: bytes) -> Iterator[tuple[int, bytes]]:
        """The records of a chunk, decompressed; nothing when it is damaged."""
        try:
            start_ns, _, size, crc, count = _CHUNK_HEAD.unpack_from(content)
            compression = content[_CHUNK_HEAD.size :][:count]
            packed = content[_CHUNK_HEAD.size + count + 8 :]  # behind its own length
            records = _unpacked(compression, packed, size, crc)
        except (ValueError, struct.error) as error:
            self._note(f"a chunk is damaged ({error})")
            return
        yield start_ns, records

    def _messages(self, records: bytes) -> Iterator[Message]:
        view = memoryview(records)
        while view:
            if len(view) < _RECORD.size:
                self._note("a chunk ends in the middle")
                return
            opcode, length = _RECORD.unpack_from(view)
            content, view = view[_RECORD.size :][:length], view[_RECORD.size :][length:]
            if len(content) < length:
                self._note("a chunk ends in the middle")
                return
            if opcode == _MESSAGE and bytes(content[_MESSAGE_HEAD:][:4]) == MAGIC:
                data = bytes(content[_MESSAGE_HEAD:])
                try:  # its channel may have been in a chunk that is damaged
                    topic = topic_of(data[:HEADER_SIZE])
                    yield decode([topic, data[:HEADER_SIZE], data[HEADER_SIZE:]])
                except FrameError as error:
                    self._note(str(error))

    def _note(self, damage: str) -> None:
        """Keep the first damage that is found."""
        self.damage = self.damage or damage


def _unpacked(compression: bytes, packed: bytes, size: int, crc: int) -> bytes:
    """The records of a chunk, `size` bytes with that CRC-32 (0 for none).

    Raises:
        ValueError: they are not what the chunk says, or more than is read.
    """
    if size > _CHUNK_BYTES:
        raise ValueError(f"it claims {size} bytes, at most {_CHUNK_BYTES} are read")
    if compression == b"zstd":
        zstandard = _extra("zstandard")
        opener = zstandard.ZstdDecompressor(max_window_size=_CHUNK_BYTES)
        try:
            with opener.stream_reader(packed) as reader:
                data: bytes = reader.read(size + 1)
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error
    elif compression == b"":
        data = packed
    else:
        raise ValueError(f"its compression {compression!r} is not supported")
    if len(data) != size:
        has = f"more than {size}" if len(data) > size else f"{len(data)}"
        raise ValueError(f"it claims {size} bytes and has {has}")
    if crc not in (0, zlib.crc32(data)):
        raise ValueError("its CRC-32 is another one")
    return data


def _describe(stream: Stream) -> bytes:
    """What a reader without this package needs, as JSON text."""
    description = {
        "schema_version": SCHEMA_VERSION,
        "schema_hash": schema_hash(),
        "header": {"struct": HEADER_FORMAT, "bytes": HEADER_SIZE, "fields": Header._fields},
        "payload": {
            "dtype": "little-endian float32",
            "description": stream.description,
            "fields": [[field.name, field.size, field.unit] for field in stream.fields],
        },
    }
    return json.dumps(description).encode()


def _extra(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RecordingError(
            "recordings need the mcap package; install krabby-proto[recording]"
        ) from error
