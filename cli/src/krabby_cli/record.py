"""`krabby record`: write streams, as they come over the wire, to one MCAP file."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from krabby.runtime.metrics import MetricsServer, children
from krabby_proto.recording import GAPS, HELLO, Recorder
from prometheus_client import Counter, Gauge

from krabby_cli.endpoints import add_endpoint_options, endpoints_of
from krabby_cli.errors import NoAnswer, UsageError
from krabby_cli.hellos import Hello, Hellos
from krabby_cli.listen import RECORDED, Listener, add_streams_argument, audible
from krabby_cli.options import add_command, option, print_line
from krabby_cli.revision import revision
from krabby_cli.signals import Signals

__all__ = ["add_parser"]

_SLICE_S: Final = 0.2
_QUEUE_S: Final = 3.0
"""How much of every stream may wait while this process gets no processor [s]."""


def _counter(name: str, text: str) -> dict[str, Counter]:
    return children(Counter(f"krabby_recorder_{name}_total", text, ["stream"]), RECORDED)


_WRITTEN: Final = _counter("messages", "Messages written to the file")
_MISSED: Final = _counter("missed_messages", "Messages that never came, by sequence")

_FILE: Final = Gauge("krabby_recorder_file_info", "File that is being written", ["path"])

_EPILOG: Final = """\
examples:
  krabby record run.mcap
  krabby record depth.mcap camera --duration 20
  python -m krabby_camera source=replay replay.path=depth.mcap        play it to the game loop
"""


def add_parser(commands: Any) -> None:
    parser = add_command(commands, "record", run, "record streams to a file", __doc__, _EPILOG)
    parser.add_argument("file", type=Path, metavar="FILE", help="new MCAP file")
    add_streams_argument(parser, RECORDED)
    option(parser, "--duration", "S", 0.0, "length of the recording; 0: until Ctrl-C")
    option(parser, "--metrics-port", "N", 0, "port of the metrics; 0: none")
    option(parser, "--metrics-address", "HOST", "127.0.0.1", "address that serves the metrics")
    add_endpoint_options(parser)


def run(args: argparse.Namespace) -> int:
    names = audible(args.streams, RECORDED)
    if args.file.exists():
        raise UsageError(f"{args.file} exists already; remove it or give another name")
    counts, missed = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    endpoints = endpoints_of(args)
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals().caught())
        if args.metrics_port:
            stack.enter_context(MetricsServer(args.metrics_port, args.metrics_address))
        _FILE.labels(str(args.file.absolute())).set(1)
        listener = stack.enter_context(Listener(endpoints, names, _QUEUE_S))
        hellos = stack.enter_context(Hellos(endpoints))
        recorder = stack.enter_context(Recorder(args.file, facts_of_recorder()))

        def keep(name: str, message: Any, _: int) -> None:
            recorder.write(message)
            counts[name] += 1
            _WRITTEN[name].inc()

        while not signals.count:
            left = started + args.duration - time.monotonic() if args.duration else _SLICE_S
            if left <= 0:
                break
            listener.listen(min(left, _SLICE_S), keep)
            write_hellos(recorder, hellos.take())
            recorder.flush_when_due()
            for name, subscriber in listener.subscribers.items():
                _MISSED[name].inc(subscriber.gaps - missed[name])
                missed[name] = subscriber.gaps
        write_hellos(recorder, hellos.take())
        recorder.add_metadata(GAPS, {name: str(count) for name, count in missed.items()})
        said = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        if not said:
            raise NoAnswer(f"{args.file} has no messages: {listener.silence()}")
    gaps = sum(missed.values())
    print_line(f"{args.file}: {said}" + (f"; {gaps} missed" if gaps else ""))
    return 0


def facts_of_recorder() -> dict[str, str]:
    """What the metadata of every recording begin with."""
    return {
        "run_id": os.environ.get("KRABBY_RUN_ID") or secrets.token_hex(4),
        "revision": revision(),
        "wall_ns": str(time.time_ns()),
        "monotonic_ns": str(time.monotonic_ns()),
    }


def write_hellos(recorder: Recorder, hellos: Sequence[Hello]) -> None:
    """Add what processes say about themselves to the metadata."""
    for name, facts in hellos:
        recorder.add_metadata(f"{HELLO}{name}", {"hello": json.dumps(facts)})
