"""Writing a recording."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from krabby_proto.codec import Message
from krabby_proto.endpoint import Closing
from krabby_proto.errors import RecordingError
from krabby_proto.recording._chain import LINK, SEAL, ChainedFile, SigningKey
from krabby_proto.recording._format import ENCODING, MAIN, PROFILE, describe, extra
from krabby_proto.schema import schema_hash
from krabby_proto.sockets import RawMessage
from krabby_proto.streams import Stream

__all__ = ["Recorder"]

_U32: Final = 0xFFFFFFFF
_WRITTEN_BYTES: Final = 1 << 18
"""Of a chunk that is written, and one message: what a full disk loses at most."""
_WRITTEN_S: Final = 0.5
"""What is written is in the kernel's hands after this long: a process that is killed loses no more
than that, and what it had not read."""


class Recorder(Closing):
    """Writes messages to a new MCAP file, compressed in chunks.

    Args:
        path: the file; replaced when it exists.
        metadata: text kept with the recording, for example the run id.
        key: signs the hash chain; None for a chain without signatures.
        clock_s: by which it is written twice a second.

    Raises:
        RecordingError: the extra is not installed or the file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        metadata: Mapping[str, str] | None = None,
        *,
        key: SigningKey | None = None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        writer_module = extra("mcap.writer")
        self.path = path
        self.messages = 0
        """Messages written."""
        try:
            self._file = ChainedFile(path.open("wb"), key)
        except OSError as error:
            raise RecordingError(
                f"cannot write the recording {path}: {error.strerror}; give another path"
            ) from error
        self._writer: Any = writer_module.Writer(self._file, chunk_size=_WRITTEN_BYTES)
        self._failed = False
        self._writer.start(profile=PROFILE, library=f"krabby-proto schema {schema_hash()}")
        self._writer.add_metadata(MAIN, {"schema_hash": schema_hash(), **dict(metadata or {})})
        self._channels: dict[int, int] = {}
        self._clock_s = clock_s
        self._flushed_s = clock_s()

    @property
    def size(self) -> int:
        """Bytes of the file so far."""
        return self._file.tell()

    def write(self, message: Message) -> None:
        """Append one message.

        Raises:
            RecordingError: the file takes no more, because the disk is full for example.
        """
        header, payload = message.header, message.payload.tobytes()
        self.write_raw(RawMessage(message.stream, header.pack(), payload))

    def write_raw(self, raw: RawMessage) -> None:
        """Append one message as it came.

        Raises:
            RecordingError: the file takes no more, because the disk is full for example.
        """
        self.write_all((raw,))

    def write_all(self, messages: Iterable[RawMessage]) -> None:
        """Append messages as they came.

        Raises:
            RecordingError: the file takes no more, because the disk is full for example.
        """
        with self._told():
            for raw in messages:
                channel = self._channels.get(raw.stream.id)
                if channel is None:
                    channel = self._channels[raw.stream.id] = self._register(raw.stream)
                self._add(channel, raw.header + raw.payload, raw.publish_ns, raw.sequence)
            self._flush_when_due()

    def register(self, topic: str, schema: str, encoding: str, data: bytes, kind: str) -> int:
        """Add a channel of other messages; returns its number.

        Args:
            topic: name of the channel.
            schema: name of the type of its messages.
            encoding: of the schema, as MCAP names it.
            data: the schema.
            kind: encoding of the messages, as MCAP names it.
        """
        with self._told():
            number = self._writer.register_schema(name=schema, encoding=encoding, data=data)
            channel = self._writer.register_channel(
                topic=topic, message_encoding=kind, schema_id=number
            )
        assert isinstance(channel, int)
        return channel

    def append(self, channel: int, data: bytes, log_ns: int, sequence: int = 0) -> None:
        """Append one message of a channel, of that time [ns].

        Raises:
            RecordingError: the file takes no more, because the disk is full for example.
        """
        with self._told():
            self._add(channel, data, log_ns, sequence)
            self._flush_when_due()

    def _add(self, channel: int, data: bytes, log_ns: int, sequence: int) -> None:
        self._writer.add_message(
            channel_id=channel,
            log_time=log_ns,
            publish_time=log_ns,
            sequence=sequence & _U32,
            data=data,
        )
        self.messages += 1

    def add_metadata(self, name: str, fields: Mapping[str, str]) -> None:
        """Add a record of facts, which `Recording.metadata` gives under this name."""
        with self._told():
            self._writer.flush()
            self._writer.add_metadata(name, dict(fields))
            self._link()

    def flush(self) -> None:
        """Hand all that was appended to the kernel."""
        with self._told():
            self._flushed_s = self._clock_s()
            self._link()

    def flush_when_due(self) -> None:
        """Do that twice a second; for writers that have nothing to append."""
        with self._told():
            self._flush_when_due()

    def _flush_when_due(self) -> None:
        now_s = self._clock_s()
        if now_s - self._flushed_s >= _WRITTEN_S:
            self._flushed_s = now_s
            self._link()

    def _link(self) -> None:
        """Hand all to the kernel, with the hash of all that is in front of it."""
        self._writer.flush()
        self._writer.add_metadata(LINK, self._file.link())
        self._file.flush()

    def _register(self, stream: Stream) -> int:
        name = f"krabby.{stream.name}"
        return self.register(stream.name, name, ENCODING, describe(stream), ENCODING)

    def close(self) -> None:
        """Write the index and close the file."""
        if self._file.closed:
            return
        try:
            with self._told(), contextlib.closing(self._file):
                self._writer.flush()
                seal = self._file.begin_seal()
                self._writer.add_metadata(SEAL, seal)
                self._writer.finish()
                self._file.end_seal(seal)
        except RecordingError:
            if not self._failed:
                raise

    @contextlib.contextmanager
    def _told(self) -> Generator[None, None, None]:
        """A failure to write becomes a `RecordingError`; what was written stays readable."""
        try:
            yield
        except OSError as error:
            self._failed = True
            raise RecordingError(
                f"the recording {self.path} ends after {self.messages} messages: "
                f"{error.strerror}; it can be read up to there"
            ) from error
