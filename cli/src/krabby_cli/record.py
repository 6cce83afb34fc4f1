"""`krabby record`: every stream that can be heard, as it came over the wire, in one MCAP file."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from krabby.runtime.metrics import children, serve_metrics
from krabby_proto.recording import Recorder
from prometheus_client import Counter

from krabby_cli.endpoints import add_endpoint_options, endpoints_of
from krabby_cli.errors import NoAnswer, UsageError
from krabby_cli.listen import AUDIBLE, Listener, audible

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["add_parser"]

_SLICE_S: Final = 0.2

_WRITTEN: Final = children(
    Counter("krabby_recorder_messages_total", "Messages written to the file", ["stream"]), AUDIBLE
)
_MISSED: Final = children(
    Counter(
        "krabby_recorder_missed_messages_total", "Messages that never came, by sequence", ["stream"]
    ),
    AUDIBLE,
)

_EPILOG: Final = """\
examples:
  krabby record run.mcap
  krabby record depth.mcap camera --duration 20
  camera source=replay replay.path=depth.mcap        play it to the game loop
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "record",
        help="record streams to a file",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="new MCAP file")
    parser.add_argument(
        "streams", nargs="*", metavar="STREAM", help=f"of {', '.join(AUDIBLE)}; all by default"
    )
    parser.add_argument(
        "--duration", type=float, default=0.0, metavar="S", help="0 until Ctrl-C (default)"
    )
    parser.add_argument(
        "--metrics-port", type=int, default=0, metavar="N", help="0 for no metrics (default)"
    )
    parser.add_argument(
        "--metrics-address", default="127.0.0.1", metavar="HOST", help="default %(default)s"
    )
    add_endpoint_options(parser)
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Record until the time is over or a signal comes."""
    names = audible(args.streams)
    if args.file.exists():
        raise UsageError(f"{args.file} exists already; remove it or give another name")
    stop: list[int] = []

    def on_signal(number: int, _: FrameType | None) -> None:
        stop.append(number)

    counts, missed = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.signal(number, on_signal))
        server = serve_metrics(args.metrics_port, args.metrics_address)
        if server is not None:
            stack.enter_context(server)
        listener = stack.enter_context(Listener(endpoints_of(args), names))
        recorder = stack.enter_context(Recorder(args.file))

        def keep(name: str, message: Any, _: int) -> None:
            recorder.write(message)
            counts[name] += 1
            _WRITTEN[name].inc()

        while not stop:
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
    sys.stdout.write(f"{args.file}: {said}" + (f"; {gaps} missed" if gaps else "") + "\n")
    return 0
