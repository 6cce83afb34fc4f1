"""`krabby record`: everything that the robot's processes say, in MCAP files that viewers open.

FILE gets all of it until the end. With --ring the last minute stays in memory, and is written to a
separate file when something happens: a fault of the gate, an e-stop, a fall, `krabby mark` or
SIGUSR1. Raw streams stand beside messages of Foxglove's schemas (joint states, transforms, depth,
course, log), which Foxglove, Rerun and PlotJuggler draw; course, policies, configuration and
versions are in the metadata. `krabby verify` checks the hash chain.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final

from krabby.robot.description import RobotDescription
from krabby.runtime.metrics import MetricsServer, children
from krabby_proto import Batches, LatestSubscriber, RawMessage
from krabby_proto.recording import GAPS, Recorder, SigningKey
from prometheus_client import Counter, Gauge

from krabby_cli.blackbox import BlackBox, Trigger, Triggers
from krabby_cli.drawing import Drawing
from krabby_cli.endpoints import add_endpoint_options, endpoints_of
from krabby_cli.errors import NoAnswer, UsageError
from krabby_cli.hellos import Hello, Hellos
from krabby_cli.listen import RECORDED, Listener, add_streams_argument, audible
from krabby_cli.options import add_command, flag, option, print_line
from krabby_cli.revision import revision
from krabby_cli.signals import Signals

__all__ = ["add_parser"]

_ROUND_S: Final = 0.2
"""Between two looks at the streams; in batches a message costs a third."""
_SMALL: Final = tuple(name for name in RECORDED if name not in ("camera", "colour"))
"""Streams that come in batches while there is a black box alone. The kernel keeps 0.2 s of images,
which is too little for it."""
_KEPT: Final = tuple(name for name in RECORDED if name != "colour")
"""Streams of a black box alone. A simulator draws colour images because somebody reads them, and
that would be always."""
_QUEUE_S: Final = 10.0
"""How much of every stream may wait while this process gets no processor [s]."""
_BATCH: Final = 64
"""RawMessages that one look takes from a stream at least, where there are so many."""
_LOOK_AT_DISK_S: Final = 2.0


def _counter(name: str, text: str) -> dict[str, Counter]:
    return children(Counter(f"krabby_recorder_{name}_total", text, ["stream"]), RECORDED)


_WRITTEN: Final = _counter("messages", "RawMessages written to the file")
_MISSED: Final = _counter("missed_messages", "RawMessages that never came, by sequence")
_INCIDENTS: Final = Counter("krabby_recorder_incidents_total", "Files that the black box began")

_INCIDENT: Final = Gauge(
    "krabby_recorder_incident_timestamp_seconds",
    "When the newest incident of a kind came, whose last minute is in the file",
    ["kind", "path"],
)
_FILE: Final = Gauge("krabby_recorder_file_info", "File that is being written", ["path"])

_EPILOG: Final = """\
examples:
  krabby record run.mcap
  krabby record --ring incidents            the last minute, whenever something happens
  krabby record depth.mcap camera --duration 20
  python -m krabby_camera source=replay replay.path=depth.mcap        play it to the game loop
"""


def add_parser(commands: Any) -> None:
    parser = add_command(commands, "record", run, "record streams to a file", __doc__, _EPILOG)
    parser.add_argument("file", type=Path, nargs="?", metavar="FILE", help="new MCAP file")
    add_streams_argument(parser, RECORDED)
    text = "folder for the last minute before and after each incident (default: none)"
    option(parser, "--ring", "DIR", None, text, type=Path)
    option(parser, "--ring-files", "N", 20, "incidents that are kept; older ones are removed")
    option(parser, "--ring-megabytes", "N", 500, "size of all of them together")
    option(parser, "--duration", "S", 0.0, "length of the recording; 0: until Ctrl-C")
    option(parser, "--min-free", "N", 500, "free megabytes at which FILE ends")
    text = "sign the hash chain with the Ed25519 key in this file, made when it is not there"
    option(parser, "--sign", "KEYFILE", None, text, type=Path)
    flag(parser, "--raw", "leave out what viewers draw")
    option(parser, "--metrics-port", "N", 0, "port of the metrics; 0: none")
    option(parser, "--metrics-address", "HOST", "127.0.0.1", "address that serves the metrics")
    add_endpoint_options(parser)


def run(args: argparse.Namespace) -> int:
    if args.file is None and args.ring is None:
        raise UsageError("nothing to write: name a FILE, or a folder with --ring")
    if args.file is not None and args.file.exists():
        raise UsageError(f"{args.file} exists already; remove it or give another name")
    names = audible(args.streams, RECORDED if args.file is not None else _KEPT)
    key = None if args.sign is None else SigningKey(args.sign)
    endpoints = endpoints_of(args)
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals().caught())
        if args.metrics_port:
            stack.enter_context(MetricsServer(args.metrics_port, args.metrics_address))
        if args.file is not None:
            _FILE.labels(str(args.file.absolute())).set(1)
        places = dict(endpoints)
        if args.file is None:
            batches = stack.enter_context(Batches(_ROUND_S))
            places |= {name: batches.through(places[name]) for name in names if name in _SMALL}
        listener = stack.enter_context(Listener(places, names, _QUEUE_S))
        hellos = stack.enter_context(Hellos(endpoints))
        outputs: list[_File | _Ring] = []
        if args.file is not None:
            outputs.append(_File(args, key))
        if args.ring is not None:
            outputs.append(_Ring(args, key))
            stack.enter_context(outputs[-1].requests())  # type: ignore[union-attr]
        for output in outputs:
            stack.callback(output.close)
        meter = _Meter(listener)
        _record(outputs, meter, hellos, signals, args.duration)
        if args.file is not None and not meter.said:
            raise NoAnswer(f"{args.file} has no messages: {listener.silence()}")
    if args.file is None:
        return 0
    print_line(f"{args.file}: {meter.said}" + (f"; {meter.gaps} missed" if meter.gaps else ""))
    return 0


def _record(
    outputs: Sequence[_File | _Ring],
    meter: _Meter,
    hellos: Hellos,
    signals: Signals,
    duration_s: float,
) -> None:
    """Hand everything that comes to the outputs, until the time is up or a signal comes."""
    started = time.monotonic()
    over = False
    while not over:
        left = started + duration_s - time.monotonic() if duration_s else _ROUND_S
        over = signals.count > 0 or left <= 0
        if not over:
            signals.wait(min(left, _ROUND_S))
        for hello in hellos.take():
            for output in outputs:
                output.take_hello(hello)
        for messages in meter.take():
            for output in outputs:
                output.take(messages)
        for output in outputs:
            over |= not output.work(meter)


class _Meter:
    """Takes what comes and counts it."""

    def __init__(self, listener: Listener) -> None:
        self._subscribers = listener.subscribers
        self.counts = dict.fromkeys(self._subscribers, 0)
        self.missed = dict.fromkeys(self._subscribers, 0)

    def take(self) -> list[list[RawMessage]]:
        """Every message that came, a list for each stream that spoke."""
        taken: list[list[RawMessage]] = []
        for name, subscriber in self._subscribers.items():
            messages = _drained(subscriber)
            if messages:
                taken.append(messages)
                self.counts[name] += len(messages)
                _WRITTEN[name].inc(len(messages))
            if subscriber.gaps != self.missed[name]:
                _MISSED[name].inc(subscriber.gaps - self.missed[name])
                self.missed[name] = subscriber.gaps
        return taken

    @property
    def gaps(self) -> int:
        return sum(self.missed.values())

    @property
    def said(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in self.counts.items() if count)


def _drained(subscriber: LatestSubscriber) -> list[RawMessage]:
    messages = subscriber.drain_raw()
    while len(messages) % _BATCH == 0 and messages:
        more = subscriber.drain_raw()
        if not more:
            break
        messages += more
    return messages


class _File:
    """The recording of everything."""

    def __init__(self, args: argparse.Namespace, key: SigningKey | None) -> None:
        self._recorder = Recorder(args.file, _facts(), key=key)
        drawn = not args.raw
        self._drawing = Drawing(self._recorder, RobotDescription.load()) if drawn else None
        self._least_free = args.min_free << 20
        self._missed = 0
        self._looked_s = time.monotonic()
        self._gaps: dict[str, int] = {}
        self._newest_ns = 0

    def take(self, messages: Sequence[RawMessage]) -> None:
        for message in messages:
            self._recorder.write_raw(message)
            if self._drawing is not None:
                self._drawing.take(message)
        self._newest_ns = messages[-1].publish_ns

    def take_hello(self, hello: Hello) -> None:
        self._recorder.add_metadata(*hello.metadata)
        if self._drawing is not None:
            self._drawing.take_hello(hello.name, hello.facts, self._newest_ns)

    def work(self, meter: _Meter) -> bool:
        """Write what is due; False when the disk is nearly full."""
        self._gaps = dict(meter.missed)
        if self._drawing is not None and meter.gaps > self._missed:
            text = f"{meter.gaps - self._missed} messages missed"
            self._drawing.log(text, self._newest_ns, name="recorder")
        self._missed = meter.gaps
        self._recorder.flush_when_due()
        now_s = time.monotonic()
        if now_s - self._looked_s < _LOOK_AT_DISK_S:
            return True
        self._looked_s = now_s
        free = shutil.disk_usage(self._recorder.path.parent).free
        if free >= self._least_free:
            return True
        _say(f"{self._recorder.path} ends: {free >> 20} MB are free, see --min-free")
        return False

    def close(self) -> None:
        self._recorder.add_metadata(GAPS, {name: str(n) for name, n in self._gaps.items()})
        self._recorder.close()


class _Ring:
    """The black box."""

    def __init__(self, args: argparse.Namespace, key: SigningKey | None) -> None:
        self._box = BlackBox(
            args.ring,
            _facts,
            _say,
            key=key,
            most_files=args.ring_files,
            most_bytes=args.ring_megabytes << 20,
        )
        self._triggers = Triggers()
        self._requested = False
        self._told: dict[tuple[str, str], None] = {}
        self._most_told: int = args.ring_files

    @contextlib.contextmanager
    def requests(self) -> Any:
        """SIGUSR1 writes the ring."""
        before = signal.signal(signal.SIGUSR1, self._request)
        try:
            yield
        finally:
            signal.signal(signal.SIGUSR1, before)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self._requested = True

    def take(self, messages: Sequence[RawMessage]) -> None:
        self._box.take(messages)
        for trigger in self._triggers.look(messages):
            self._write(trigger)

    def take_hello(self, hello: Hello) -> None:
        self._box.take_hello(hello)

    def work(self, meter: _Meter) -> bool:
        if self._requested:
            self._requested = False
            self._write(Trigger("request", "SIGUSR1"))
        self._box.work()
        return True

    def close(self) -> None:
        self._box.finish()

    def _write(self, trigger: Trigger) -> None:
        files, now_s = self._box.files, time.time()
        self._box.trigger(trigger)
        _INCIDENTS.inc(self._box.files - files)
        if self._box.path is not None:
            self._tell(trigger.kind, str(self._box.path.absolute()), now_s)

    def _tell(self, kind: str, path: str, now_s: float) -> None:
        """Expose the incident for a mark on the dashboards, of the newest files alone."""
        _INCIDENT.labels(kind, path).set(now_s)
        self._told[kind, path] = None
        while len(self._told) > self._most_told:
            oldest = next(iter(self._told))
            del self._told[oldest]
            _INCIDENT.remove(*oldest)


def _facts() -> dict[str, str]:
    """What the metadata of every recording begin with."""
    return {
        "run_id": os.environ.get("KRABBY_RUN_ID") or secrets.token_hex(4),
        "revision": revision(),
        "wall_ns": str(time.time_ns()),
        "monotonic_ns": str(time.monotonic_ns()),
    }


def _say(text: str) -> None:
    sys.stderr.write(f"krabby record: {text}\n")
    sys.stderr.flush()
