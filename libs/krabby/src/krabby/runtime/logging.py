"""One way to log: an event, then its facts as keys, one JSON object a line on stdout.

A log call never waits for stdout to be read (`krabby.runtime.output`); `flush_logs` does, at the
end, for a second at most.

Every line carries wall time for people, `mono_ns` (CLOCK_MONOTONIC, the clock of every stamp on the
wire) for machines, the service and the run. Third-party records from the standard library come
out the same way. Nothing above debug belongs on a 100 Hz path: rates are metrics, and a warning
that can repeat goes through `log_every`.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import sys
import time
from collections.abc import Generator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, Literal, TextIO, cast

import msgspec
import numpy as np
import structlog
from structlog.types import Processor

from krabby.runtime.output import LineStream, Output, descriptor
from krabby.runtime.throttle import log_every

__all__ = [
    "FLUSH_S",
    "LEVELS",
    "LogFormat",
    "configure_logging",
    "flush_logs",
    "log_every",
    "prints_queued",
]

FLUSH_S = 1.0
"""How long the end of a process waits for its last lines to be read."""

LogFormat = Literal["json", "console"]
LEVELS = ("debug", "info", "warning", "error")


def configure_logging(
    service: str,
    run_id: str,
    *,
    level: str = "info",
    fmt: LogFormat = "json",
    stream: TextIO | None = None,
) -> None:
    """Set up structlog and the standard library's logging, once per process.

    Args:
        service: Name on every line.
        run_id: Run on every line.
        level: One of `LEVELS`.
        fmt: JSON lines for machines, or coloured text for people.
        stream: Where to write, at once; by default to stdout, through an `Output`.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    write = _Writer(stream)

    def stamp(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["service"] = service
        event["run_id"] = run_id
        event["mono_ns"] = time.monotonic_ns()
        return event

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        stamp,
    ]
    if fmt == "json":
        shared.append(structlog.processors.format_exc_info)
        render: Processor = _render_json
    else:
        render = structlog.dev.ConsoleRenderer(colors=write.to_terminal)

    def notice(count: int) -> str:
        event: MutableMapping[str, Any] = {
            "event": "log lines dropped, stdout was not read",
            "dropped": count,
        }
        for process in (*shared, render):
            event = process(None, "warning", event)  # type: ignore[assignment]
        return str(event)

    flush_logs()  # of an earlier set-up
    fd = descriptor(sys.stdout) if stream is None else None
    if fd is not None:
        write.output = _outputs[fd] = Output(fd, notice)
        atexit.register(flush_logs)
    structlog.configure(
        processors=[*shared, render],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=write,
        cache_logger_on_first_use=False,
    )
    handler = _StandardLibraryHandler(write)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    logging.basicConfig(handlers=[handler], level=number, force=True)
    logging.captureWarnings(True)


_outputs: dict[int, Output] = {}
"""By descriptor: the log's, and stderr's if prints are queued."""


def flush_logs(timeout_s: float = FLUSH_S) -> bool:
    """Wait until every line is written, `timeout_s` at most; says whether they are."""
    end = time.monotonic() + timeout_s
    return all([output.flush(end - time.monotonic()) for output in _outputs.values()])


@contextlib.contextmanager
def prints_queued() -> Generator[None, None, None]:
    """Inside, what is printed goes the log's way: a print would wait for its reader as well.

    To be entered after `configure_logging`; has no effect where stdout or stderr is in memory.
    """
    before = sys.stdout, sys.stderr
    out, err = descriptor(sys.stdout), descriptor(sys.stderr)
    if out in _outputs and err is not None:
        _outputs[err] = _outputs.get(err) or Output(err, _stderr_notice)
        sys.stdout, sys.stderr = LineStream(_outputs[out], out), LineStream(_outputs[err], err)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _stderr_notice(count: int) -> str:
    return f"{count} lines dropped, stderr was not read"


class _Writer:
    """Writes lines; never raises, since a reader that went away must not stop a robot's loop."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.output: Output | None = None
        """Takes the lines, if there is one."""

    def __call__(self, *_: Any) -> _Writer:
        return self  # structlog asks its factory for a logger

    @property
    def to_terminal(self) -> bool:
        return (self._stream or sys.stdout).isatty()

    def write(self, line: str) -> None:
        if self.output is not None:
            self.output.write(line)
            return
        out = self._stream or sys.stdout
        with contextlib.suppress(OSError, ValueError):
            out.write(line + "\n")
            out.flush()

    msg = log = debug = info = warning = warn = error = critical = exception = fatal = write


class _StandardLibraryHandler(logging.Handler):
    def __init__(self, writer: _Writer) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception as error:  # handleError would write a traceback to stderr, and wait
            line = _render_json(
                None, "", {"level": "error", "event": record.msg, "error": repr(error)}
            )
        self._writer.write(line)


_FIRST = ("time", "level", "service", "event")
_encoder = msgspec.json.Encoder(enc_hook=lambda value: _plain(value))


def _render_json(_: Any, __: str, event: MutableMapping[str, Any]) -> str:
    ordered = {key: event.pop(key) for key in _FIRST if key in event}
    ordered.update(event)
    try:
        return _encoder.encode(ordered).decode()
    except (TypeError, ValueError):  # a key that is not text, a surrogate: say it anyhow
        return _encoder.encode({str(k): repr(v) for k, v in ordered.items()}).decode()


def _plain(value: object) -> object:
    """What the encoder cannot write, as something it can; a log line must never raise."""
    if isinstance(value, np.generic):
        return cast("object", value.item())
    if isinstance(value, np.ndarray):
        return cast("object", value.tolist())
    if isinstance(value, Mapping):
        return dict(cast("Mapping[object, object]", value))
    if isinstance(value, Path | BaseException):
        return str(value)
    return repr(value)
