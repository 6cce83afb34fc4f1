"""`krabby record`: write streams, as they come over the wire, to one MCAP file."""

from __future__ import annotations

import argparse
import contextlib
import time
from pathlib import Path
from typing import Any, Final

from krabby.runtime.metrics import MetricsServer, children
from krabby_proto.recording import Recorder
from prometheus_client import Counter

from krabby_cli.endpoints import add_endpoint_options, endpoints_of
from krabby_cli.errors import NoAnswer, UsageError
from krabby_cli.listen import AUDIBLE, Listener, add_streams_argument, audible
from krabby_cli.options import add_command, option, print_line
from krabby_cli.signals import Signals

__all__ = ["add_parser"]

_SLICE_S: Final = 0.2


def _counter(name: str, text: str) -> dict[str, Counter]:
    return children(Counter(f"krabby_recorder_{name}_total", text, ["stream"]), AUDIBLE)


_WRITTEN: Final = _counter("messages", "Messages written to the file")
_MISSED: Final = _counter("missed_messages", "Messages that never came, by sequence")

_EPILOG: Final = """\
examples:
  krabby record run.mcap
  krabby record depth.mcap camera --duration 20
  python -m krabby_camera source=replay replay.path=depth.mcap        play it to the game loop
"""


def add_parser(commands: Any) -> None:
    parser = add_command(commands, "record", run, "record streams to a file", __doc__, _EPILOG)
    parser.add_argument("file", type=Path, metavar="FILE", help="new MCAP file")
    add_streams_argument(parser)
    option(parser, "--duration", "S", 0.0, "length of the recording; 0: until Ctrl-C")
    option(parser, "--metrics-port", "N", 0, "port of the metrics; 0: none")
    option(parser, "--metrics-address", "HOST", "127.0.0.1", "address that serves the metrics")
    add_endpoint_options(parser)


def run(args: argparse.Namespace) -> int:
    names = audible(args.streams)
    if args.file.exists():
        raise UsageError(f"{args.file} exists already; remove it or give another name")
    counts, missed = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals().caught())
        if args.metrics_port:
            stack.enter_context(MetricsServer(args.metrics_port, args.metrics_address))
        listener = stack.enter_context(Listener(endpoints_of(args), names))
        recorder = stack.enter_context(Recorder(args.file))

        def keep(name: str, message: Any, _: int) -> None:
            recorder.write(message)
            counts[name] += 1
            _WRITTEN[name].inc()

        while not signals.count:
            left = started + args.duration - time.monotonic() if args.duration else _SLICE_S
            if left <= 0:
                break
            listener.listen(min(left, _SLICE_S), keep)
            for name, subscriber in listener.subscribers.items():
                _MISSED[name].inc(subscriber.gaps - missed[name])
                missed[name] = subscriber.gaps
        said = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        if not said:
            raise NoAnswer(f"{args.file} has no messages: {listener.silence()}")
    gaps = sum(missed.values())
    print_line(f"{args.file}: {said}" + (f"; {gaps} missed" if gaps else ""))
    return 0
