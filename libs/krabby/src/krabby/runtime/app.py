"""The shape every process shares: startup, run, shutdown.

`main` does what is alike: command line, configuration, logging, metrics, signals, real-time
features, the summary at the end and an honest exit status. A service brings a configuration class
and three methods.

Exit status: 0 after a clean end, a signal included; 2 for a configuration that cannot be used;
1 for a failure while running. stdout carries log lines only; the one line for people who made a
mistake goes to stderr.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import importlib.metadata
import os
import platform
import secrets
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import structlog

from krabby.config import ConfigError, describe, load, to_dict
from krabby.runtime.config import ServiceCfg
from krabby.runtime.ending import EXIT_FAILED, Ending
from krabby.runtime.health import Heartbeat
from krabby.runtime.logging import (
    FLUSH_S,
    LEVELS,
    LogFormat,
    configure_logging,
    flush_logs,
    prints_queued,
)
from krabby.runtime.metrics import SERVICE_INFO, MetricsPortInUse, MetricsServer
from krabby.runtime.realtime import apply_realtime, freeze_garbage
from krabby.runtime.watchdog import watched

__all__ = ["Preparing", "Runtime", "Service", "main"]

log = structlog.get_logger(__name__)

EXIT_CONFIG = 2

_SWITCH_INTERVAL_S = 0.0005
"""How long another thread may keep the interpreter while the loop waits for it.

Python's default is 5 ms, half a period, and a scrape being rendered makes a tick that late: p90 of
the wake-up lateness 4.9 ms at the default, 0.8 ms at this, with a scraper asking all the time."""


class Runtime:
    """What the process gives its service while it runs."""

    def __init__(
        self,
        service: str,
        run_id: str = "",
        heartbeat: Heartbeat | None = None,
        *,
        watched: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self.service = service
        self.watched = watched
        """Context in which a loop that does not beat for `watchdog.STUCK_S` ends the process; for
        loops in real time. In a thread that is not a process's main one it watches nothing."""
        self.run_id = run_id
        self.heartbeat = Heartbeat() if heartbeat is None else heartbeat
        self.stop_reason = ""
        """Why the service was told to stop; empty while it is to go on."""
        self.stopped_ns = 0
        """When it was told to, CLOCK_MONOTONIC [ns]; 0 while it is to go on."""
        self.summary: dict[str, object] = {}
        """What `shutdown` returned, once it has."""

    @property
    def stopping(self) -> bool:
        """Whether `run` is to return. Look at it at least five times a second."""
        return bool(self.stop_reason)

    def stop(self, reason: str) -> None:
        """Ask the service to return from `run`; the first reason stays."""
        self.stopped_ns = self.stopped_ns or time.monotonic_ns()
        self.stop_reason = self.stop_reason or reason

    def beat(self) -> None:
        """Say that the loop turned; cheap enough for every tick."""
        self.heartbeat.beat()

    def doing(self, what: str) -> None:
        """Say what keeps the service from its work, as `/healthz` then does; "" for nothing."""
        self.heartbeat.doing = what


class Service(Protocol):
    """One process. The constructor checks the configuration against the files it names.

    What `run` still does after it was told to stop, and `shutdown`, have `ending.STOP_S` together.
    """

    def startup(self) -> None:
        """Open sockets and devices, allocate, warm up."""
        ...

    def run(self, runtime: Runtime) -> None:
        """Work until `runtime.stopping`, or until there is nothing left to do."""
        ...

    def shutdown(self) -> Mapping[str, object]:
        """Make safe and release, also after a startup that failed half-way.

        Returns:
            Facts for the `summary` event.
        """
        ...


@runtime_checkable
class Preparing(Protocol):
    """A service with something slow to do once, before it has real-time features and sockets."""

    def prepare(self, runtime: Runtime) -> None:
        """Prepare, for minutes if need be: beat, say what you are doing, and watch `stopping`.

        It comes before `startup`; metrics and `/healthz` are already served.
        """
        ...


C = TypeVar("C", bound=ServiceCfg)


def main(
    service: str,
    cfg_cls: type[C],
    factory: Callable[[C], Service],
    *,
    errors: tuple[type[Exception], ...] = (),
    argv: Sequence[str] | None = None,
) -> int:
    """Run a service as this process; the return value is the exit status.

    Args:
        service: Name in logs and metrics.
        cfg_cls: Its configuration.
        factory: Builds it. Any of `errors` that it raises counts as a bad configuration.
        errors: Exceptions whose message is meant for the person at the keyboard: one line, no
            traceback. `ConfigError` always is.
        argv: Command line without the program's name; the process's own by default.
    """
    expected = (ConfigError, MetricsPortInUse, *errors)
    options = _parser(service, cfg_cls).parse_args(argv)
    # argparse checks choices of what was typed, not of a default
    if options.log_level not in LEVELS:
        problem = f"{options.log_level!r} is not a log level; expected one of {', '.join(LEVELS)}"
        return _complain(service, ConfigError(problem, source="KRABBY_LOG_LEVEL"), EXIT_CONFIG)
    run_id = os.environ.get("KRABBY_RUN_ID") or secrets.token_hex(6)
    with contextlib.ExitStack() as stack:
        try:
            cfg = load(cfg_cls, options.config, options.overrides)
            configure_logging(service, run_id, level=options.log_level, fmt=options.log_format)
            stack.enter_context(prints_queued())
            if options.check:
                factory(cfg)
                log.info("configuration is usable", config=to_dict(cfg))
                return 0
            instance = factory(cfg)
        except expected as error:
            return _complain(service, error, EXIT_CONFIG)
        runtime = _runtime(service, run_id, cfg)
        with Ending(runtime.stop, flush_logs) as ending:
            try:
                _run(runtime, cfg, instance, ending)
                status = 0
            except expected as error:
                log.error("failed", error=type(error).__name__, reason=str(error))
                status = _complain(service, error, EXIT_FAILED)
            except Exception:
                log.exception("crashed")
                status = EXIT_FAILED
            _finish(ending, status)
        return status


def _runtime(service: str, run_id: str, cfg: ServiceCfg) -> Runtime:
    heartbeat = Heartbeat(Path(cfg.health_file) if cfg.health_file else None)
    return Runtime(
        service, run_id, heartbeat, watched=lambda: watched(lambda: heartbeat.beats, flush_logs)
    )


def _run(runtime: Runtime, cfg: ServiceCfg, instance: Service, ending: Ending) -> None:
    service, heartbeat = runtime.service, runtime.heartbeat
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        stack.callback(heartbeat.clear)
        if cfg.metrics_port:
            server = MetricsServer(
                cfg.metrics_port,
                cfg.metrics_address,
                healthy=heartbeat.healthy,
                doing=lambda: heartbeat.doing,
            )
            stack.enter_context(server)
        SERVICE_INFO.info(
            {"service": service, "run_id": runtime.run_id, "version": _version(service)}
        )
        log.info(
            "starting",
            version=_version(service),
            pid=os.getpid(),
            python=platform.python_version(),
            config=to_dict(cfg),
        )
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        try:
            if isinstance(instance, Preparing):
                instance.prepare(runtime)
            apply_realtime(cfg.realtime)  # after the metrics thread, before the sockets' threads
            instance.startup()
            freeze_garbage()
            log.info("running")
            instance.run(runtime)
        finally:
            ending.expect()
            runtime.summary = dict(instance.shutdown())
            log.info(
                "summary",
                stopped_by=runtime.stop_reason or "end",
                uptime_s=round(time.monotonic() - started, 3),
                **runtime.summary,
            )


_OURS = frozenset({"output", "ending", "deadline", "metrics", "watchdog"})


def _finish(ending: Ending, status: int) -> None:
    """Write the last lines; a thread that is still at work is left behind.

    Python would go on to take the interpreter apart, and a library that is in the middle of
    something then crashes or hangs.
    """
    others = [
        thread.name
        for thread in threading.enumerate()
        if thread is not threading.current_thread() and thread.name not in _OURS
    ]
    if others:
        log.warning("threads left behind", threads=others)
    flush_logs(min(FLUSH_S, max(ending.left_s, 0.0)))
    atexit.unregister(flush_logs)  # it has had its time
    if others:
        os._exit(status)


def _program(service: str) -> str:
    """What starts this process, `python -m krabby_sim_hal`; of a script, the service's name."""
    spec = sys.modules["__main__"].__spec__
    return f"python -m {spec.parent}" if spec is not None and spec.parent else service


def _parser(service: str, cfg_cls: type[ServiceCfg]) -> argparse.ArgumentParser:
    program = _program(service)
    parser = argparse.ArgumentParser(
        prog=program,
        usage=f"{program} [--config FILE] [--check] [--log-level LEVEL] [--log-format FORMAT] "
        "[key=value ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="keys of the configuration, in the file as TOML or here as key=value:\n"
        + describe(cfg_cls).replace("%", "%%"),
    )
    config = os.environ.get("KRABBY_CONFIG")
    parser.add_argument(
        "--config",
        type=Path,
        default=Path(config) if config else None,
        metavar="FILE",
        help="TOML file; default from KRABBY_CONFIG, else none",
    )
    parser.add_argument(
        "--check", action="store_true", help="check configuration and the files it names, then exit"
    )
    parser.add_argument(
        "--log-level",
        choices=LEVELS,
        default=os.environ.get("KRABBY_LOG_LEVEL", "info").lower(),
        help="default from KRABBY_LOG_LEVEL, else info",
    )
    formats: tuple[LogFormat, ...] = ("json", "console")
    parser.add_argument("--log-format", choices=formats, default="json", help="default json")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the file")
    return parser


def _complain(service: str, error: Exception, status: int) -> int:
    sys.stderr.write(f"{service}: {error}\n")
    return status


def _version(service: str) -> str:
    try:
        return importlib.metadata.version(f"krabby-{service}")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
