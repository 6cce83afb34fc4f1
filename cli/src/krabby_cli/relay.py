"""`krabby relay`: serve a robot's streams and requests over TCP to clients with a key.

Two processes do the work, one for e-stops (stream safety) and one for all other streams, so that
neither can take the other's descriptors or time. This process starts them again when they end or
freeze: a hostile peer can end them, and a changed key does, which also closes the connections of
the old one. When this process freezes, they kill it, and its supervisor starts the relay again.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import multiprocessing
import os
import resource
import secrets
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import Any, Final

import structlog
from krabby.runtime.health import Pulse
from krabby.runtime.logging import configure_logging, flush_logs
from krabby.runtime.metrics import MetricsPortInUse, MetricsServer, Totals
from krabby_proto import STREAMS, EndpointError
from krabby_proto.access import KeyFolder
from krabby_proto.relay import NEXT_PORTS, Relay, RelayEnd
from prometheus_client import REGISTRY, Counter, Gauge

from krabby_cli.endpoints import BASE_PORT, ipc_folder, parse_endpoint, stream_ports
from krabby_cli.errors import CliError, UsageError
from krabby_cli.host_metrics import HostMetrics
from krabby_cli.key_files import add_folder_option, open_folder
from krabby_cli.options import add_command, option
from krabby_cli.signals import Signals

__all__ = ["add_parser", "relay_command"]

log = structlog.get_logger(__name__)

_GROUPS: Final[Mapping[str, tuple[str, ...]]] = {
    "estop": ("safety",),
    "streams": tuple(name for name in STREAMS if name != "safety"),
}
"""Streams of each process; the metrics of the second are one port above the first's."""
_POLL_S: Final = 0.2
_UNUSABLE: Final = 2
"""Exit status of a process that cannot serve: a port in use, an unusable key file."""
_PAUSE_S: Final = {_UNUSABLE: 1.0}
_SHORTEST_PAUSE_S: Final = 0.02
_START_S: Final = 10.0
"""What a process may take before its first beat, besides the 2 s of any other."""
_DESCRIPTORS: Final = 16384
_MEMORY: Final = 256 << 20
"""Most private writable memory of a process [bytes]."""
_PR_SET_PDEATHSIG: Final = 1

_REFUSED = Counter(
    "krabby_relay_refused_total", "Connections and messages refused", ["stream", "reason"]
)
_CONNECTIONS = Gauge("krabby_relay_connections", "Open connections", ["stream"])
_STARTS = Gauge("krabby_relay_starts", "Times this process was started, the first included")

_EPILOG: Final = """\
examples:
  krabby relay --address 0.0.0.0             beside `krabby up`, for clients of other hosts
  krabby keys create anna --roles see,operate
"""


@dataclass(frozen=True, kw_only=True)
class _Serving:
    """What the processes are started with."""

    keys: Path
    upstream: Mapping[str, str]
    address: str
    base_port: int
    metrics_port: int
    metrics_address: str
    run_id: str

    def place(self, name: str, plus: int) -> str:
        return f"tcp://{self.address}:{stream_ports(self.base_port)[name] + plus}"


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands, "relay", run, "serve the robot over TCP to clients with a key", __doc__, _EPILOG
    )
    option(parser, "--address", "HOST", "127.0.0.1", "address of an interface; 0.0.0.0: all")
    text = f"first port, as given to `krabby up`; a rotated key is served {NEXT_PORTS} higher"
    option(parser, "--base-port", "N", BASE_PORT, text)
    add_folder_option(parser)
    parser.add_argument(
        "--endpoint",
        type=parse_endpoint,
        action="append",
        default=[],
        metavar="STREAM=ENDPOINT",
        help="endpoint of the robot's process for one stream; repeatable",
    )
    option(parser, "--metrics-port", "N", 0, "port of the metrics and the next one; 0: none")
    option(parser, "--metrics-address", "HOST", "127.0.0.1", "address that serves the metrics")


def relay_command(
    address: str, base_port: int, keys: Path, endpoints: Mapping[str, str]
) -> tuple[str, ...]:
    """Command that starts a relay for a run."""
    return (
        *(sys.executable, "-P", "-m", "krabby_cli", "relay"),
        *(f"--address={address}", f"--base-port={base_port}", f"--keys={keys}"),
        *(f"--endpoint={name}={endpoint}" for name, endpoint in endpoints.items()),
    )


def run(args: argparse.Namespace) -> int:
    open_folder(args.keys)
    standard = {name: f"ipc://{ipc_folder(args.base_port)}/{name}" for name in STREAMS}
    serving = _Serving(
        keys=args.keys,
        upstream=standard | dict(args.endpoint),
        address=f"[{args.address}]" if ":" in args.address else args.address,
        base_port=args.base_port,
        metrics_port=args.metrics_port,
        metrics_address=args.metrics_address,
        run_id=os.environ.get("KRABBY_RUN_ID") or secrets.token_hex(4),
    )
    with Signals().caught() as signals:
        _supervise(serving, signals)
    return 0


@dataclass(kw_only=True)
class _Worker:
    """A process of the relay and what shows that it and this one are alive."""

    group: str
    follows_frozen: bool = False
    """Whether it takes the place of one that was frozen; it logs that, as this one has no log."""
    process: Any = None
    frozen: bool = False
    its: Pulse = field(default_factory=lambda: Pulse(look_s=_POLL_S, starts_s=_START_S))
    ours: Pulse = field(default_factory=lambda: Pulse(look_s=_POLL_S))

    @property
    def status(self) -> int | None:
        """Exit status; None while it runs. One that is frozen is ended."""
        self.ours.beat()
        if self.process.exitcode is None and self.its.stalled():
            self.frozen = True
            self.process.kill()
            self.process.join()
        return self.process.exitcode

    def close(self) -> None:
        self.its.close()
        self.ours.close()


def _supervise(serving: _Serving, signals: Signals) -> None:
    """Keep one process for each group of streams; this one opens no sockets and has no threads."""
    forking = multiprocessing.get_context("fork")
    running: dict[str, _Worker] = {}
    starts = dict.fromkeys(_GROUPS, 0)
    was_frozen = dict.fromkeys(_GROUPS, False)
    due_s = dict.fromkeys(_GROUPS, 0.0)
    try:
        while not signals.count:
            now_s = time.monotonic()
            for group in _GROUPS:
                worker = running.get(group)
                status = None if worker is None else worker.status
                if worker is not None and status is not None:
                    running.pop(group).close()
                    was_frozen[group] = worker.frozen
                    if status == _UNUSABLE and starts[group] == 1:
                        raise CliError("the relay cannot serve; its log above says why")
                    due_s[group] = now_s + _PAUSE_S.get(status, _SHORTEST_PAUSE_S)
                if group not in running and now_s >= due_s[group]:
                    starts[group] += 1
                    worker = _Worker(group=group, follows_frozen=was_frozen[group])
                    running[group] = worker
                    worker.process = forking.Process(
                        target=_serve,
                        args=(serving, worker, starts[group], os.getpid()),
                        name=group,
                        daemon=True,
                    )
                    worker.process.start()
            sentinels = [worker.process.sentinel for worker in running.values()]
            if len(sentinels) < len(_GROUPS):
                time.sleep(_SHORTEST_PAUSE_S)
            else:
                connection.wait(sentinels, _POLL_S)
    finally:
        for worker in running.values():
            worker.process.terminate()
        for worker in running.values():
            worker.process.join(1.0)
            worker.process.kill()


def _serve(serving: _Serving, worker: _Worker, starts: int, parent: int) -> None:
    """One process of the relay; ends with a status."""
    group = worker.group
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    configure_logging("relay", serving.run_id)
    if worker.follows_frozen:
        log.warning("relay process was frozen, started again", group=group)
    try:
        with contextlib.ExitStack() as stack:
            _limit_descriptors()
            if serving.metrics_port:
                index = list(_GROUPS).index(group)
                port = serving.metrics_port + index
                if index == 0:  # no loop shares this process
                    REGISTRY.register(HostMetrics())
                stack.enter_context(MetricsServer(port, serving.metrics_address))
            # Not closed at the end, which the kernel does: nothing may keep the process from it.
            relay = Relay(
                KeyFolder(serving.keys), serving.upstream, serving.place, streams=_GROUPS[group]
            )
            _limit_memory()
            _STARTS.set(starts)
            keys = [f"{one.name} ({', '.join(sorted(one.roles))})" for one in relay.listed.values()]
            log.info("running", group=group, starts=starts, endpoints=relay.endpoints, keys=keys)
            _forward(relay, worker, parent)
    except RelayEnd as error:
        log.warning("relay process starts again", group=group, reason=str(error))
        status = 0
    except (EndpointError, MetricsPortInUse) as error:
        log.error("relay cannot serve", group=group, reason=str(error))
        status = _UNUSABLE
    except Exception:
        log.exception("relay process crashed", group=group)
        status = 1
    flush_logs(0.2)
    os._exit(status)


def _forward(relay: Relay, worker: _Worker, parent: int) -> None:
    totals = Totals()
    refused: dict[tuple[str, str], Counter] = {}
    connections = {door.name: _CONNECTIONS.labels(door.name) for door in relay.doors}
    while True:
        worker.its.beat()
        if worker.ours.stalled():
            log.error("the relay's first process is frozen, the relay ends")
            flush_logs(0.2)
            os.kill(parent, signal.SIGKILL)  # which ends this process and the other one
        relay.poll(_POLL_S)
        for kind, count in list(relay.refusals.counts.items()):
            if kind not in refused:
                refused[kind] = _REFUSED.labels(*kind)
            totals.show(refused[kind], count)
        for name, count in relay.connections.items():
            connections[name].set(count)


def _limit_descriptors() -> None:
    """As many descriptors as allowed, and no core dumps."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if most == resource.RLIM_INFINITY else min(most, _DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    # An abort is no reason to write the memory to disk, which takes longer than the next start.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_memory() -> None:
    """A peer that takes more ends this process alone."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _MEMORY if most == resource.RLIM_INFINITY else min(most, _MEMORY)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def check_listen(address: str | None, base_port: int, streams: Sequence[str]) -> None:
    """Refuse a relay where a run has no fixed ports."""
    if address is not None and base_port == 0:
        raise UsageError(
            f"--listen {address} with --base-port 0: clients need known ports for "
            f"{', '.join(streams)}; give another --base-port"
        )
