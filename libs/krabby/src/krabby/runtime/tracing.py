"""Traces of single slots over OTLP, off by default: where the time of one tick went.

A loop in real time notes CLOCK_MONOTONIC between its stages anyway. Of one slot in so many they
become a trace once its work is done, when its command has left; a thread sends traces in batches.
Where: `tracing.endpoint`, else OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT;
the other variables of OpenTelemetry (headers, service name, OTEL_SDK_DISABLED) hold too.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

import structlog

from krabby.config import Config, ConfigError, Count, check

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

__all__ = ["SlotTracer", "TracingCfg", "make_tracer"]

log = structlog.get_logger(__name__)

_VARIABLES: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_SEND_EVERY_S: Final = 1.0
_BATCH: Final = 64
"""Spans that are encoded at once: 1 ms in which other threads have to ask for the interpreter."""
_QUEUE: Final = 1024
"""Spans that wait for a receiver that is slow or gone; further ones are dropped."""
_EXPORT_S: Final = 1.0
"""Longest time for a batch, all attempts included [s]."""
_CLOSE_S: Final = 0.3
"""For the last batch: the process may have 0.5 s left to end in [s]."""

Stage = tuple[str, int, int]
"""Name, begin and end [ns, CLOCK_MONOTONIC]."""
Attributes = Mapping[str, str | int | float]


class TracingCfg(Config, frozen=True, kw_only=True):
    """Traces of single slots over OTLP; needs the package's extra `tracing`."""

    endpoint: str = ""
    """Receiver of OTLP over HTTP, http://HOST:4318; empty for OTEL_EXPORTER_OTLP_ENDPOINT of the
    environment, and for no traces without that."""
    every: Count = 100
    """One slot of so many becomes a trace."""

    def __post_init__(self) -> None:
        is_url = self.endpoint.startswith(("http://", "https://"))
        check(is_url or not self.endpoint, "endpoint", self.endpoint, "http://HOST:4318")


def make_tracer(cfg: TracingCfg, service: str) -> SlotTracer | None:
    """A tracer that sends to where `cfg` or the environment say; None where neither does.

    Raises:
        ConfigError: `cfg` names a receiver and OpenTelemetry is not installed. Where only the
            environment names one, a warning is logged.
    """
    named = next((name for name in _VARIABLES if os.environ.get(name)), "")
    if not cfg.endpoint and (not named or os.environ.get("OTEL_SDK_DISABLED") == "true"):
        return None
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
        remedy = "pip install 'krabby[tracing]', in a checkout make setup-tracing"
        if cfg.endpoint:
            raise ConfigError(
                f"is {cfg.endpoint!r} and OpenTelemetry is not installed; {remedy}, or leave the "
                "key empty",
                key="tracing.endpoint",
            )
        log.warning("no traces: OpenTelemetry is not installed", named_by=named, remedy=remedy)
        return None
    return SlotTracer(_provider(cfg.endpoint, service), cfg.every)


class SlotTracer:
    """Makes traces of slots; one thread uses it."""

    def __init__(self, provider: TracerProvider, every: int) -> None:
        """Trace one slot of `every` with an SDK that is set up."""
        self._provider = provider
        self._tracer = provider.get_tracer("krabby")
        self._every = every
        self._slots = 0

    def due(self) -> bool:
        """Count a slot; whether it is one to be traced."""
        self._slots += 1
        return self._slots % self._every == 0

    def trace(
        self,
        name: str,
        began_ns: int,
        ended_ns: int,
        stages: Iterable[Stage],
        attributes: Attributes,
    ) -> None:
        """Make a slot with its stages into a trace; 0.2 ms for five.

        Args:
            name: Of the slot.
            began_ns: Begin of the slot [ns, CLOCK_MONOTONIC].
            ended_ns: Its end, on the same clock [ns].
            stages: Its parts, on the same clock.
            attributes: Facts about the slot.
        """
        from opentelemetry.trace import set_span_in_context

        wall_ns = time.time_ns() - time.monotonic_ns()
        slot = self._tracer.start_span(
            name, start_time=wall_ns + began_ns, attributes=dict(attributes)
        )
        within = set_span_in_context(slot)
        for stage, stage_began_ns, stage_ended_ns in stages:
            span = self._tracer.start_span(stage, within, start_time=wall_ns + stage_began_ns)
            span.end(wall_ns + stage_ended_ns)
        slot.end(wall_ns + ended_ns)

    def close(self) -> None:
        """Send what waits; a receiver that does not answer is given up after 0.3 s."""
        closing = threading.Thread(target=self._shut_down, name="traces", daemon=True)
        closing.start()
        closing.join(_CLOSE_S)

    def _shut_down(self) -> None:
        with contextlib.suppress(Exception):  # traces are of no help any more
            self._provider.shutdown()


def _provider(endpoint: str, service: str) -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    names = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": service}
    if run_id := os.environ.get("KRABBY_RUN_ID"):
        names["service.instance.id"] = run_id
    where = f"{endpoint.rstrip('/')}/v1/traces" if endpoint else None
    provider = TracerProvider(resource=Resource.create(names), shutdown_on_exit=False)
    provider.add_span_processor(
        BatchSpanProcessor(
            OTLPSpanExporter(endpoint=where, timeout=_EXPORT_S),
            max_queue_size=_QUEUE,
            schedule_delay_millis=_SEND_EVERY_S * 1e3,
            max_export_batch_size=_BATCH,
        )
    )
    return provider
