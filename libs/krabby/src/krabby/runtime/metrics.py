"""One way to measure: the metrics every process shares, and the thread that exposes them.

Base units, `krabby_` in front, the same name in every service (the scraper's `job` label tells them
apart). Bucket edges sit on the deadlines. Prometheus is for people; nothing safety depends on it.
Observing costs about a microsecond, `labels()` doubles that: keep what `children()` returns.
"""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer
from typing import TypeVar

import structlog
from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    Metric,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

__all__ = [
    "AGE_BUCKETS",
    "CAMERA_FRAMES_DROPPED",
    "COMMAND_REJECTED",
    "COMMAND_ROUND_TRIP",
    "COMMAND_TIMEOUTS",
    "DEADLINE_MISSES",
    "LOG_LINES_DROPPED",
    "LOOP_LATENESS",
    "LOOP_LATENESS_MAX",
    "LOOP_PERIOD",
    "LOOP_WORK",
    "MESSAGE_AGE",
    "OBSERVATION_AGE",
    "PERIOD_BUCKETS",
    "REALTIME_ENABLED",
    "REALTIME_REQUESTED",
    "SERVICE_INFO",
    "SKIPPED_CYCLES",
    "STREAM_DISCARDED",
    "STREAM_GAPS",
    "STREAM_INVALID",
    "STREAM_OVERSIZED",
    "STREAM_RECEIVED",
    "WORK_BUCKETS",
    "MetricsPortInUse",
    "MetricsServer",
    "Quantiles",
    "Totals",
    "children",
    "render",
]

log = structlog.get_logger(__name__)

# Without the time when each series began: a quarter of the page, and not used.
disable_created_metrics()

_MS = 1e-3
PERIOD_BUCKETS = tuple(
    ms * _MS for ms in (9, 9.5, 9.8, 9.9, 10, 10.1, 10.2, 10.5, 11, 12, 15, 20, 30, 50)
)
"""Edges [s] around the 10 ms period of the policy loop."""
LATENESS_BUCKETS = tuple(ms * _MS for ms in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20))
"""Edges [s] for wake-up lateness."""
WORK_BUCKETS = tuple(ms * _MS for ms in (0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 4, 5, 8, 10, 20))
"""Edges [s] for the work inside one period."""
AGE_BUCKETS = tuple(
    ms * _MS
    for ms in (
        *(0.5, 1, 2, 3, 4, 5, 5.5, 6, 7.5, 10, 10.5, 11, 12, 15, 15.5, 20),
        *(30, 50, 75, 100, 150, 250, 500, 1000),
    )
)
"""Edges [s] for ages; 25-30 ms and 100-150 ms are where the freshness contract acts.

A HAL that exchanges every 5 ms sends a command with its next exchange, so ages come in clusters a
little above whole slots: edges right behind them, or a quantile between 10 and 15 is made up."""

LOOP_PERIOD = Histogram(
    "krabby_loop_period_seconds", "Time between two wake-ups of the loop", buckets=PERIOD_BUCKETS
)
LOOP_LATENESS = Histogram(
    "krabby_loop_wakeup_lateness_seconds",
    "How late the loop woke up for its slot",
    buckets=LATENESS_BUCKETS,
)
LOOP_LATENESS_MAX = Gauge(
    "krabby_loop_wakeup_lateness_max_seconds", "Worst wake-up of the last 5 to 10 seconds"
)
LOOP_WORK = Histogram(
    "krabby_loop_work_seconds", "Work inside one slot", ["stage"], buckets=WORK_BUCKETS
)
DEADLINE_MISSES = Counter(
    "krabby_loop_deadline_misses_total", "Slots whose work ended after the slot did"
)
SKIPPED_CYCLES = Counter("krabby_loop_skipped_cycles_total", "Slots never run")
MESSAGE_AGE = Histogram(
    "krabby_message_age_seconds",
    "Age of a message when it was used, since capture",
    ["stream"],
    buckets=AGE_BUCKETS,
)
OBSERVATION_AGE = Histogram(
    "krabby_observation_age_at_actuation_seconds",
    "From the sensor's capture to the return of the actuator write",
    ["stream"],
    buckets=AGE_BUCKETS,
)
STREAM_RECEIVED = Counter("krabby_stream_received_total", "Messages taken off the wire", ["stream"])
STREAM_DISCARDED = Counter(
    "krabby_stream_discarded_total", "Messages dropped because a newer one was there", ["stream"]
)
STREAM_GAPS = Counter(
    "krabby_stream_gap_messages_total", "Messages that never arrived, by sequence", ["stream"]
)
STREAM_INVALID = Counter("krabby_stream_invalid_total", "Messages refused by the codec", ["stream"])
STREAM_OVERSIZED = Counter(
    "krabby_stream_oversized_total",
    "Messages dropped for having more frames than the contract has",
    ["stream"],
)
COMMAND_ROUND_TRIP = Histogram(
    "krabby_command_round_trip_seconds", "Command sent to reply received", buckets=WORK_BUCKETS
)
COMMAND_TIMEOUTS = Counter(
    "krabby_command_timeouts_total", "Commands without a reply before the deadline"
)
COMMAND_REJECTED = Counter(
    "krabby_command_rejected_total", "Commands answered with a refusal", ["reason"]
)
CAMERA_FRAMES_DROPPED = Counter(
    "krabby_camera_frames_dropped_total", "Depth frames that went no further", ["reason"]
)
REALTIME_ENABLED = Gauge(
    "krabby_runtime_realtime_enabled", "1 when the real-time feature is in effect", ["feature"]
)
REALTIME_REQUESTED = Gauge(
    "krabby_runtime_realtime_requested", "1 when the configuration asks for it", ["feature"]
)
LOG_LINES_DROPPED = Counter(
    "krabby_log_lines_dropped_total", "Lines not written, because stdout or stderr is not read"
)
SERVICE_INFO = Info("krabby_service", "Which service this is and which run it belongs to")

M = TypeVar("M", Counter, Gauge, Histogram)


def children(metric: M, values: Iterable[str]) -> dict[str, M]:
    """Make the children of a one-label metric exist, and return them for use without a look-up.

    A labelled metric is not exposed before its first use, so a rate over it has no zero to start
    from; a dictionary look-up is also half the price of `labels()`.
    """
    return {value: metric.labels(value) for value in values}


class Totals:
    """Lets counters catch up with totals that a loop counts in plain integers."""

    def __init__(self) -> None:
        self._shown: dict[Counter, int] = {}

    def show(self, counter: Counter, total: int) -> None:
        """Bring a counter to `total`; nothing happens when it is there."""
        news = total - self._shown.get(counter, 0)
        if news:
            counter.inc(news)
            self._shown[counter] = total


class Quantiles:
    """Streaming quantiles in constant memory: log-spaced buckets 1 % apart, 1 µs to 1000 s.

    For the summary at the end of a run, where the buckets of the exposition are too coarse.
    A quantile is right to half a per cent; count, mean, minimum and maximum are exact.
    """

    _GROWTH = math.log(1.01)
    _LOW = 1e-6
    _HIGH = 1e3
    _SIZE = math.ceil(math.log(_HIGH / _LOW) / _GROWTH) + 1

    __slots__ = ("_counts", "_total", "count", "maximum", "minimum")

    def __init__(self) -> None:
        self._counts = [0] * self._SIZE
        self._total = 0.0
        self.count = 0
        self.maximum = -math.inf
        self.minimum = math.inf

    def add(
        self,
        value: float,
        _log: Callable[[float], float] = math.log,
        _scale: float = 1.0 / _GROWTH,
        _offset: float = -math.log(_LOW) / _GROWTH,
    ) -> None:
        """Count one value; NaN is left out, what lies outside the range goes to its edge."""
        if self._LOW < value < self._HIGH:
            self._counts[int(_log(value) * _scale + _offset)] += 1
        elif value <= self._LOW:
            self._counts[0] += 1
        elif value >= self._HIGH:
            self._counts[-1] += 1
        else:
            return
        self.count += 1
        self._total += value
        if value > self.maximum:
            self.maximum = value
        if value < self.minimum:
            self.minimum = value

    @property
    def mean(self) -> float:
        """Arithmetic mean; NaN before the first value."""
        return self._total / self.count if self.count else math.nan

    def quantile(self, q: float) -> float:
        """The value below which a share `q` of all values lies; NaN before the first value."""
        if not self.count:
            return math.nan
        rank, seen = q * self.count, 0
        for index, count in enumerate(self._counts):
            seen += count
            if count and seen >= rank:
                middle = self._LOW * math.exp((index + 0.5) * self._GROWTH)
                return min(max(middle, self.minimum), self.maximum)
        return self.maximum

    def summary_ms(self, prefix: str = "") -> dict[str, float]:
        """`{prefix_p50_ms, prefix_p99_ms, prefix_max_ms}` of values in seconds; {} when empty."""
        if not self.count:
            return {}
        head = f"{prefix}_" if prefix else ""
        named = {
            "p50_ms": self.quantile(0.5),
            "p99_ms": self.quantile(0.99),
            "max_ms": self.maximum,
        }
        return {head + name: round(value * 1e3, 3) for name, value in named.items()}


class MetricsPortInUse(Exception):  # noqa: N818 - named for what happened
    """Another process has the port of the exposition."""


class MetricsServer:
    """One thread that answers `/metrics`, and `/healthz` when there is something to ask."""

    def __init__(
        self,
        port: int,
        address: str = "127.0.0.1",
        *,
        healthy: Callable[[], bool] | None = None,
        doing: Callable[[], str] = str,
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        """Bind and start answering.

        Args:
            port: TCP port; 0 takes a free one, see `port`.
            address: Interface to bind; loopback unless the network is trusted.
            healthy: Answers `/healthz` with 200 or 503.
            doing: What `/healthz` answers in place of "ok"; empty for nothing to tell.
            registry: What to expose.

        Raises:
            MetricsPortInUse: Another process has the port.
        """
        try:
            self._server = _Server((address, port), _handler(registry, healthy, doing))
        except OSError as error:
            raise MetricsPortInUse(
                f"cannot serve metrics on {address}:{port} ({error.strerror}); stop the other "
                "process, or set metrics_port to another port or to 0 for no metrics"
            ) from error
        self.port = int(self._server.server_address[1])
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering and free the port; a scraper that hangs is not waited for."""
        self._closing = True
        with contextlib.suppress(OSError):  # wakes the thread: its `accept` fails
            self._server.socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(_CLOSE_S)
        self._server.server_close()

    def _serve(self) -> None:
        while not self._closing:
            self._server.handle_request()

    def __enter__(self) -> MetricsServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_CLOSE_S = 0.1
"""For a page that is being rendered: the game loop may have 0.5 s left to end in."""
_RENDER_BURST_S = 100e-6
_RENDER_PAUSE_S = 1e-3


def render(registry: CollectorRegistry) -> bytes:
    """The page of `/metrics`, a metric at a time with pauses in between.

    A page costs milliseconds of the interpreter, which the loop has to share: in one piece it makes
    a tick that late, and with a scrape each second that tick is the 99th percentile.
    """
    page: list[bytes] = []
    began_s = time.perf_counter()
    for metric in registry.collect():
        page.append(generate_latest(_Only(metric)))
        if time.perf_counter() - began_s >= _RENDER_BURST_S:
            time.sleep(_RENDER_PAUSE_S)
            began_s = time.perf_counter()
    return b"".join(page)


class _Only(Collector):
    """One metric, dressed as a registry for the library's encoder."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        return (self._metric,)


class _Server(TCPServer):
    # not HTTPServer: that one asks the name service for the host's name when it binds
    allow_reuse_address = True
    timeout = 0.25

    def handle_error(
        self, request: socket.socket | tuple[bytes, socket.socket], client_address: object
    ) -> None:
        log.debug("scrape failed", client=str(client_address), exc_info=True)


def _handler(
    registry: CollectorRegistry, healthy: Callable[[], bool] | None, doing: Callable[[], str]
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 2.0  # one thread: a scraper that hangs must not hold the next one up

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path in ("/", "/metrics"):
                self._answer(200, CONTENT_TYPE_PLAIN_0_0_4, render(registry))
            elif path == "/healthz" and healthy is not None:
                ok = healthy()
                body = (doing() or "ok") if ok else "stalled"
                self._answer(200 if ok else 503, "text/plain", f"{body}\n".encode())
            else:
                self._answer(404, "text/plain", b"try /metrics\n")

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Scrapes are not news."""

    return Handler
