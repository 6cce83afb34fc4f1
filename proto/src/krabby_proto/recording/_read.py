"""Reading a recording."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from krabby_proto.codec import Message, decode, topic_of
from krabby_proto.errors import FrameError, RecordingError
from krabby_proto.exchanges import Exchange
from krabby_proto.header import HEADER_SIZE, MAGIC
from krabby_proto.recording._facts import RunFacts
from krabby_proto.recording._records import (
    CHUNK,
    MESSAGE,
    METADATA,
    RECORD,
    records_of,
    text_map,
    unpacked,
)
from krabby_proto.streams import FEATURES, TICKS, TRACE, Stream
from krabby_proto.ticks import Tick, TickReader

__all__ = ["Overview", "Recording"]

_MESSAGE_HEAD: Final = 22
"""Bytes of a message record before its data."""
_HELD_BYTES: Final = 32 << 20
"""Most that is held back to give messages in order of time."""
_MESSAGES: Final = frozenset({CHUNK, MESSAGE})
_FACTS: Final = frozenset({METADATA})


@dataclass(frozen=True, kw_only=True)
class Overview:
    """What is in a recording."""

    messages: Mapping[str, int]
    """By raw stream."""
    gaps: Mapping[str, int]
    """Messages missing between two sequences of one instance, by raw stream; those without."""
    first_ns: int
    """Earliest publish time on the robot's clock [ns]; 0 without a message."""
    last_ns: int
    damage: str

    @property
    def duration_s(self) -> float:
        """Time between the first and the last message [s]."""
        return (self.last_ns - self.first_ns) * 1e-9


class Recording:
    """Reads a recording; iterating gives each raw `Message` in order of publish time.

    A file that was cut short or damaged gives what is readable of it; `damage` then says what is
    missing. No more than some 100 MiB are held, even if the file declares more.

    Raises:
        RecordingError: the extra is not installed, there is no such file, or nothing in it is
            readable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damage = ""
        """What the last reading could not read; empty when it read everything."""
        if not path.is_file():
            raise RecordingError(f"no recording at {path}; give the path of an .mcap file")

    def __iter__(self) -> Iterator[Message]:
        return self.messages()

    def messages(self, *streams: Stream) -> Iterator[Message]:
        """The messages of these raw streams, of all when none is named, in order of time."""
        self.damage = ""
        wanted = frozenset(stream.id for stream in streams)
        held: list[tuple[int, int, Message]] = []
        given, order, held_bytes = False, itertools.count(), 0
        for start_ns, records in self._chunks():
            while held and (held[0][0] <= start_ns or held_bytes > _HELD_BYTES):
                _, _, message = heapq.heappop(held)
                held_bytes -= message.payload.nbytes
                given = True
                yield message
            for message in self._messages(records, wanted):
                heapq.heappush(held, (message.header.publish_ns, next(order), message))
                held_bytes += message.payload.nbytes
        given = given or bool(held)
        while held:
            yield heapq.heappop(held)[2]
        if self.damage and not given:
            raise RecordingError(f"{self.path} is not a readable recording: {self.damage}")

    def ticks(self) -> Iterator[Tick]:
        """What each tick of the game loop took in and decided, in order."""
        reader = TickReader()
        for message in self.messages(TICKS, FEATURES):
            if message.stream is FEATURES:
                reader.note_features(message)
                continue
            try:
                yield reader.read(message)
            except FrameError as error:
                self._note(str(error))

    def exchanges(self) -> Iterator[Exchange]:
        """What HAL and game loop were asked and answered, and each change of the gate."""
        reader = TickReader()
        for message in self.messages(TRACE, TICKS):
            try:
                if message.stream is TRACE:
                    yield Exchange.unpack(message.payload.tobytes())
                else:
                    yield from reader.read(message).exchanges
            except FrameError as error:
                self._note(str(error))

    def navs(self) -> Iterator[Message]:
        """The walking commands of all writers that the game loop read, in order."""
        for tick in self.ticks():
            yield from tick.navs

    @cached_property
    def metadata(self) -> Mapping[str, Mapping[str, str]]:
        """Text by key by record; of two records of one name the later one."""
        found: dict[str, Mapping[str, str]] = {}
        for _, _, content in records_of(self.path, self._note, wanted=_FACTS):
            try:
                name, fields = text_map(content)
            except ValueError as error:
                self._note(str(error))
                continue
            found[name] = fields
        return found

    @cached_property
    def run(self) -> RunFacts:
        """Course, policies, robot and the like."""
        return RunFacts.read(self.metadata)

    def overview(self) -> Overview:
        """Count what is in it; reads all of it."""
        counts: Counter[str] = Counter()
        gaps: Counter[str] = Counter()
        newest: dict[tuple[int, int], int] = {}
        first_ns = last_ns = 0
        for message in self.messages():
            header, name = message.header, message.stream.name
            counts[name] += 1
            writer = (header.stream_id, header.instance_id)
            gaps[name] += max(header.sequence - newest.get(writer, header.sequence - 1) - 1, 0)
            newest[writer] = header.sequence
            first_ns = first_ns or header.publish_ns
            last_ns = header.publish_ns
        return Overview(
            messages=dict(counts),
            gaps=dict(gaps),
            first_ns=first_ns,
            last_ns=last_ns,
            damage=self.damage,
        )

    def _chunks(self) -> Iterator[tuple[int, bytes]]:
        """Time of the first message [ns] and records of each chunk, in order of the file."""
        for _, opcode, content in records_of(self.path, self._note, wanted=_MESSAGES):
            if opcode == MESSAGE:  # of a file without chunks
                yield 0, RECORD.pack(opcode, len(content)) + content
                continue
            try:
                yield unpacked(content)
            except ValueError as error:
                self._note(f"a chunk is damaged ({error})")

    def _messages(self, records: bytes, wanted: frozenset[int]) -> Iterator[Message]:
        view = memoryview(records)
        while view:
            if len(view) < RECORD.size:
                self._note("a chunk ends in the middle")
                return
            opcode, length = RECORD.unpack_from(view)
            content, view = view[RECORD.size :][:length], view[RECORD.size :][length:]
            if len(content) < length:
                self._note("a chunk ends in the middle")
                return
            if opcode == MESSAGE and bytes(content[_MESSAGE_HEAD:][:4]) == MAGIC:
                if wanted and content[_MESSAGE_HEAD + _STREAM_ID] not in wanted:
                    continue
                data = bytes(content[_MESSAGE_HEAD:])
                try:  # its channel may have been in a chunk that is damaged
                    topic = topic_of(data[:HEADER_SIZE])
                    yield decode([topic, data[:HEADER_SIZE], data[HEADER_SIZE:]])
                except FrameError as error:
                    self._note(str(error))

    def _note(self, damage: str) -> None:
        """Keep the first damage that is found."""
        self.damage = self.damage or damage


_STREAM_ID: Final = 6
"""Place of the stream's id in a header."""
