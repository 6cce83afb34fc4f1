"""Streams to an MCAP file and back: the wire's own bytes, one channel a stream.

Needs the extra ``recording``. A channel's data is header and payload as they were on the wire,
its schema is text that describes both, log time is the publish time.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from krabby_proto.codec import Message, decode
from krabby_proto.endpoint import Closing
from krabby_proto.errors import FrameError, RecordingError
from krabby_proto.header import HEADER_FORMAT, HEADER_SIZE, SCHEMA_VERSION, Header
from krabby_proto.streams import Stream, schema_hash

__all__ = ["Recorder", "Recording"]

_ENCODING: Final = "krabby"
_PROFILE: Final = "krabby"
_U32: Final = 0xFFFFFFFF


class Recorder(Closing):
    """Writes messages to a new MCAP file, compressed in chunks.

    Args:
        path: the file; replaced when it exists.
        metadata: text kept with the recording, for example the run id.

    Raises:
        RecordingError: the extra is not installed or the file cannot be written.
    """

    def __init__(self, path: Path, metadata: Mapping[str, str] | None = None) -> None:
        writer_module = _mcap("writer")
        self.path = path
        self.messages = 0
        """Messages written."""
        try:
            self._file = path.open("wb")
        except OSError as error:
            raise RecordingError(
                f"cannot write the recording {path}: {error.strerror}; give another path"
            ) from error
        self._writer: Any = writer_module.Writer(self._file)
        self._writer.start(profile=_PROFILE, library=f"krabby-proto schema {schema_hash()}")
        self._writer.add_metadata("krabby", {"schema_hash": schema_hash(), **dict(metadata or {})})
        self._channels: dict[int, int] = {}

    def write(self, message: Message) -> None:
        """Append one message."""
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
        self.messages += 1

    def _register(self, stream: Stream) -> int:
        schema = self._writer.register_schema(
            name=f"krabby.{stream.name}", encoding=_ENCODING, data=_describe(stream)
        )
        return self._writer.register_channel(
            topic=stream.name, message_encoding=_ENCODING, schema_id=schema
        )

    def close(self) -> None:
        """Write the index and close the file."""
        if not self._file.closed:
            self._writer.finish()
            self._file.close()


class Recording:
    """Reads a recording; iterating gives each `Message` in order of publish time.

    Raises:
        RecordingError: the extra is not installed, or the file is not a recording of ours.
    """

    def __init__(self, path: Path) -> None:
        self._reader_module = _mcap("reader")
        self.path = path
        if not path.is_file():
            raise RecordingError(f"no recording at {path}; give the path of an .mcap file")

    def __iter__(self) -> Iterator[Message]:
        with self.path.open("rb") as file:
            try:
                reader = self._reader_module.make_reader(file)
                for _, channel, record in reader.iter_messages():
                    if channel.message_encoding == _ENCODING:
                        data = record.data
                        yield decode(
                            [channel.topic.encode(), data[:HEADER_SIZE], data[HEADER_SIZE:]]
                        )
            except FrameError as error:
                raise RecordingError(f"{self.path} cannot be replayed: {error}") from error
            except _mcap("exceptions").McapError as error:
                raise RecordingError(
                    f"{self.path} is not a readable MCAP file ({error}); "
                    "was the recorder stopped cleanly?"
                ) from error


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


def _mcap(module: str) -> Any:
    try:
        return importlib.import_module(f"mcap.{module}")
    except ImportError as error:
        raise RecordingError(
            "recordings need the mcap package; install krabby-proto[recording]"
        ) from error
