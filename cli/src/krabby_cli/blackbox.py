"""The last minute of every stream in memory, written when something happens.

Kept as compressed pieces of a second, 60 s and 24 MB at most. Of the camera every third image is
kept, since its images are nine tenths of all bytes; all else is complete. A trigger writes what is
kept at once, which takes 0.4 s of processor time, and records on for some seconds; then what
viewers draw is added, and the file is sealed. Triggers are a fault of the gate, an e-stop, a fall
in simulation, `krabby mark` and SIGUSR1.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import zstandard
from krabby.robot.description import RobotDescription
from krabby_proto import (
    CAMERA,
    STREAMS,
    TRUTH,
    Exchange,
    ExchangeKind,
    Fault,
    FrameError,
    GateView,
    Message,
    RawMessage,
    RecordingError,
    SafetyState,
    Tick,
)
from krabby_proto.header import HEADER_SIZE
from krabby_proto.recording import Recorder, SigningKey

from krabby_cli.drawing import Drawing
from krabby_cli.hellos import Hello

__all__ = ["BlackBox", "Ring", "Trigger", "Triggers"]

KEPT_S: Final = 60.0
_KEPT_BYTES: Final = 24 << 20
_PIECE_S: Final = 1.0
_PIECE_BYTES: Final = 4 << 20
_IMAGES: Final = 3
"""One of so many camera images is kept."""
_AFTER_S: Final = 5.0
"""Recorded on after the last trigger."""
_LONGEST_S: Final = 30.0
"""Recorded on at most, however many triggers come."""
_DRAWN_AT_ONCE: Final = 200
"""Messages that are drawn between two looks at the streams."""
_FREE_BYTES: Final = 200 << 20
_LEAVING: Final = 4
"""Flag of a record of `ticks`."""
_GATE: Final = bytes([ExchangeKind.GATE])
_F4: Final = struct.Struct("<f")
_FALLS_AT: Final = _F4.size * TRUTH.slices["falls"].start
_LENGTH: Final = struct.Struct("<I")


class Trigger(NamedTuple):
    """Why the black box is written."""

    kind: str
    """`fault`, `estop`, `fall`, `mark` or `request`; part of the file's name."""
    text: str


class Triggers:
    """Finds what is worth a file in the messages, one after the other."""

    def __init__(self) -> None:
        self._gate = GateView(0, 0)
        self._leaving = False
        """Whether the game loop ends: then commands stop coming, as they should."""
        self._falls: float | None = None
        self._finders = {"trace": self._of_trace, "truth": self._of_truth, "ticks": self._of_tick}

    def look(self, messages: Sequence[RawMessage]) -> list[Trigger]:
        """Reasons to write among messages of one stream; one that is damaged is none."""
        find = self._finders.get(messages[0].stream.name)
        if find is None:
            return []
        found: list[Trigger] = []
        for message in messages:
            try:
                trigger = find(message)
            except (FrameError, IndexError, struct.error):
                continue
            if trigger is not None:
                found.append(trigger)
        return found

    def _of_trace(self, raw: RawMessage) -> Trigger | None:
        if raw.payload[:1] != _GATE:
            return None
        return self._of_gate(Exchange.unpack(raw.payload).gate)

    def _of_tick(self, raw: RawMessage) -> Trigger | None:
        self._leaving = bool(raw.payload[3] & _LEAVING)
        return _mark(raw.decode()) if b'"mark"' in raw.payload else None

    def _of_gate(self, gate: GateView | None) -> Trigger | None:
        if gate is None:
            return None
        before, self._gate = self._gate, gate
        known = before.fault_bits | (Fault.COMMAND_TIMEOUT if self._leaving else 0)
        new = GateView(gate.safety_state, gate.fault_bits & ~int(known))
        if gate.safety_state == SafetyState.ESTOP != before.safety_state:
            return Trigger("estop", "emergency stop")
        if new.fault_bits:
            return Trigger("fault", f"gate {gate.safety_name}: {', '.join(new.faults)}")
        return None

    def _of_truth(self, raw: RawMessage) -> Trigger | None:
        (falls,) = _F4.unpack_from(raw.payload, _FALLS_AT)
        before, self._falls = self._falls, falls
        return Trigger("fall", "the robot fell") if before is not None and falls > before else None


def _mark(message: Message) -> Trigger | None:
    for exchange in Tick.unpack(message).exchanges:
        if exchange.asked.get("op") == "mark":
            return Trigger("mark", str(exchange.asked.get("text", ""))[:200] or "marked")
    return None


class Ring:
    """The last minute, in compressed pieces."""

    def __init__(self, kept_s: float = KEPT_S, kept_bytes: int = _KEPT_BYTES) -> None:
        self._kept_s, self._kept_bytes = kept_s, kept_bytes
        self._packer = zstandard.ZstdCompressor(level=1)
        self._pieces: deque[tuple[float, bytes]] = deque()
        self._open: list[RawMessage] = []
        self._open_bytes = 0
        self._opened_s = 0.0
        self._image = 0
        """Images since the last one that was kept."""
        self.bytes = 0
        """Of all compressed pieces."""

    def add(self, messages: Sequence[RawMessage], now_s: float) -> None:
        """Keep messages of one stream that came until `now_s`."""
        if messages[0].stream is CAMERA:
            first, self._image = -self._image % _IMAGES, (self._image + len(messages)) % _IMAGES
            messages = messages[first::_IMAGES]
        if not self._open:
            self._opened_s = now_s
        self._open += messages
        self._open_bytes += sum([len(message.payload) for message in messages])
        if now_s - self._opened_s >= _PIECE_S or self._open_bytes >= _PIECE_BYTES:
            self._close_piece(now_s)

    def messages(self) -> Iterator[RawMessage]:
        """What is kept, in the order in which it came."""
        opener = zstandard.ZstdDecompressor()
        for _, packed in tuple(self._pieces):
            yield from _messages_of(opener.decompress(packed))
        yield from tuple(self._open)

    def _close_piece(self, now_s: float) -> None:
        parts: list[bytes] = []
        for _, header, payload in self._open:
            parts += (_LENGTH.pack(len(payload)), header, payload)
        packed = self._packer.compress(b"".join(parts))
        self._open, self._open_bytes = [], 0
        self._pieces.append((now_s, packed))
        self.bytes += len(packed)
        while self._pieces and (
            now_s - self._pieces[0][0] > self._kept_s or self.bytes > self._kept_bytes
        ):
            self.bytes -= len(self._pieces.popleft()[1])


def _messages_of(content: bytes) -> Iterator[RawMessage]:
    at = 0
    while at < len(content):
        (size,) = _LENGTH.unpack_from(content, at)
        begin = at + _LENGTH.size
        header, at = content[begin : begin + HEADER_SIZE], begin + HEADER_SIZE
        stream = _STREAMS.get(header[_STREAM_ID])
        if stream is not None:
            yield RawMessage(stream, header, content[at : at + size])
        at += size


_STREAM_ID: Final = 6
"""Place of the stream's id in a header."""
_STREAMS: Final = {stream.id: stream for stream in STREAMS.values()}


class BlackBox:
    """Keeps the ring and writes it to a folder.

    Args:
        folder: gets a file for every incident; made when it is not there.
        facts: metadata of every file.
        say: told of each file that is begun, and of what keeps one from being written.
        key: signs the files; None for unsigned ones.
        most_files: older ones than these are removed.
        most_bytes: so are the oldest of them while all together are larger.
        clock_s: of the arrival of messages.
    """

    def __init__(
        self,
        folder: Path,
        facts: Callable[[], dict[str, str]],
        say: Callable[[str], None],
        *,
        key: SigningKey | None = None,
        most_files: int = 20,
        most_bytes: int = 500 << 20,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ring = Ring()
        self.files = 0
        """Files begun."""
        self._folder, self._facts, self._say, self._key = folder, facts, say, key
        self._most_files, self._most_bytes = most_files, most_bytes
        self._clock_s = clock_s
        self._hellos: dict[str, Hello] = {}
        self._file: _Incident | None = None

    @property
    def path(self) -> Path | None:
        """The file that is being written; None for none."""
        return None if self._file is None else self._file.path

    def take_hello(self, hello: Hello) -> None:
        """A process said what it is: that goes into every file."""
        self._hellos[hello.name] = hello
        if self._file is not None:
            self._file.take_hello(hello)

    def take(self, messages: Sequence[RawMessage]) -> None:
        """Messages of one stream came."""
        self.ring.add(messages, self._clock_s())
        if self._file is not None:
            self._guarded(self._file.take, messages)

    def trigger(self, trigger: Trigger) -> None:
        """Write the ring now, and record on for a while."""
        now_s = self._clock_s()
        if self._file is not None:
            self._file.add_trigger(trigger, now_s)
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self._folder).free
            if free < _FREE_BYTES:
                self._say(
                    f"no black box of {trigger.text}: {free >> 20} MB are free in "
                    f"{self._folder}, {_FREE_BYTES >> 20} are needed"
                )
                return
            self._make_room()
            stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
            path = self._folder / f"blackbox-{stamp}-{trigger.kind}.mcap"
            facts = self._facts() | {"trigger": trigger.kind, "reason": trigger.text}
            self._file = _Incident(path, facts, self._key, trigger, now_s)
            self.files += 1
        except (OSError, RecordingError) as error:
            self._say(f"no black box of {trigger.text}: {error}")
            return
        for hello in self._hellos.values():
            self._file.take_hello(hello)
        if self._guarded(self._file.write_ring, self.ring.messages()):
            self._say(f"{trigger.text}: the last minute is in {path}")

    def work(self) -> None:
        """Go on with the file that is open; to be called a few times a second."""
        incident = self._file
        if (
            incident is not None
            and self._guarded(incident.work)
            and incident.is_over(self._clock_s())
        ):
            self.finish()

    def finish(self) -> None:
        """Complete and seal the file that is open."""
        incident, self._file = self._file, None
        if incident is not None:
            with contextlib.suppress(RecordingError):
                incident.close()

    def _guarded(self, call: Callable[..., None], *arguments: object) -> bool:
        """Call; a full disk ends the file and nothing else."""
        try:
            call(*arguments)
        except RecordingError as error:
            self._say(str(error))
            self.finish()
            return False
        return True

    def _make_room(self) -> None:
        """Remove the oldest files beyond the limits; theirs alone."""
        files = sorted(self._folder.glob("blackbox-*.mcap"))
        sizes = [file.stat().st_size for file in files]
        while files and (len(files) >= self._most_files or sum(sizes) > self._most_bytes):
            files.pop(0).unlink()
            sizes.pop(0)


class _Incident:
    """One file while it is written."""

    def __init__(
        self,
        path: Path,
        facts: dict[str, str],
        key: SigningKey | None,
        trigger: Trigger,
        now_s: float,
    ) -> None:
        self.path = path
        self._recorder = Recorder(path, facts, key=key)
        self._drawing = Drawing(self._recorder, RobotDescription.load())
        self._undrawn: deque[RawMessage] = deque()
        self._hellos: list[Hello] = []
        self._began_s = self._triggered_s = now_s
        self._reasons: list[Trigger] = [trigger]

    def take_hello(self, hello: Hello) -> None:
        self._recorder.add_metadata(*hello.metadata)
        self._hellos.append(hello)

    def write_ring(self, messages: Iterator[RawMessage]) -> None:
        self.take(messages)
        self._recorder.flush()

    def take(self, messages: Iterable[RawMessage]) -> None:
        begin = len(self._undrawn)
        self._undrawn += messages
        self._recorder.write_all(itertools.islice(self._undrawn, begin, None))

    def add_trigger(self, trigger: Trigger, now_s: float) -> None:
        self._triggered_s = now_s
        if len(self._reasons) < 100:
            self._reasons.append(trigger)

    def work(self) -> None:
        self._draw(_DRAWN_AT_ONCE)
        self._recorder.flush_when_due()

    def is_over(self, now_s: float) -> bool:
        over = now_s - self._triggered_s >= _AFTER_S or now_s - self._began_s >= _LONGEST_S
        return over and len(self._undrawn) <= _DRAWN_AT_ONCE

    def close(self) -> None:
        self._draw(len(self._undrawn))
        reasons = {
            f"{number}": f"{one.kind}: {one.text}" for number, one in enumerate(self._reasons)
        }
        self._recorder.add_metadata("krabby.triggers", reasons)
        self._recorder.close()

    def _draw(self, count: int) -> None:
        for _ in range(min(count, len(self._undrawn))):
            raw = self._undrawn.popleft()
            for hello in self._hellos:
                self._drawing.take_hello(hello.name, hello.facts, raw.publish_ns)
            self._hellos.clear()
            self._drawing.take(raw)
