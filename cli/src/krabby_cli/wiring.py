"""The layout of a new run: its endpoints and metrics ports, and whether they are free."""

from __future__ import annotations

import errno
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from krabby.runtime.ports import free_ports
from krabby_proto import STREAMS, default_endpoints

from krabby_cli.endpoints import BASE_PORT, ipc_folder, stream_ports
from krabby_cli.errors import UsageError

if TYPE_CHECKING:
    import psutil

__all__ = ["Wiring", "check_free", "wire", "wire_in_process"]

_STANDARD_METRICS: Final = {"sim-hal": 9101, "camera": 9102, "gameloop": 9103}
_METRICS_OFFSET: Final = 11
"""With another base port the metrics ports follow the streams."""
_MAX_OFFSET: Final = 13


@dataclass(frozen=True, kw_only=True)
class Wiring:
    """Endpoints of every stream and metrics port of every service of one run."""

    endpoints: Mapping[str, str]
    metrics_ports: Mapping[str, int]
    own_folder: str | None = None
    """Made for this run's Unix sockets; to be removed with them."""


def wire(transport: str, base_port: int) -> Wiring:
    """Lay out a run in a folder of Unix sockets, or as plain TCP on the loopback interface.

    Args:
        transport: ``ipc`` or ``tcp``.
        base_port: of the first stream; it also selects the folder of the sockets. 0: free ports
            and a new folder.
    """
    if not (base_port == 0 or 1024 <= base_port <= 65535 - _MAX_OFFSET):
        raise UsageError(
            f"base port {base_port} is out of range; give 0 for free ports or "
            f"1024 to {65535 - _MAX_OFFSET}"
        )
    if base_port == 0:
        ports = iter(free_ports(len(STREAMS) + len(_STANDARD_METRICS)))
        streams = {name: next(ports) for name in STREAMS}
        metrics = {name: next(ports) for name in _STANDARD_METRICS}
    else:
        streams = stream_ports(base_port)
        metrics = dict(_STANDARD_METRICS)
        if base_port != BASE_PORT:
            first = base_port + _METRICS_OFFSET
            metrics = {name: first + index for index, name in enumerate(metrics)}
    if transport == "ipc":
        own = tempfile.mkdtemp(prefix="krabby-") if base_port == 0 else None
        endpoints = default_endpoints(f"ipc://{own or ipc_folder(base_port)}")
        return Wiring(endpoints=endpoints, metrics_ports=metrics, own_folder=own)
    endpoints = {name: f"tcp://127.0.0.1:{port}" for name, port in streams.items()}
    return Wiring(endpoints=endpoints, metrics_ports=metrics)


def wire_in_process(run_id: str) -> Wiring:
    """Lay out a run whose services are threads of this process; they expose no metrics."""
    return Wiring(
        endpoints=default_endpoints(f"inproc://{run_id}"),
        metrics_ports=dict.fromkeys(_STANDARD_METRICS, 0),
    )


def check_free(wiring: Wiring) -> None:
    """Check that the endpoints and the metrics ports are free.

    Raises:
        UsageError: names the endpoint, its purpose, and the process that has it if that is visible.
    """
    ports = wiring.metrics_ports.items()
    metrics = {f"metrics of {name}": f"tcp://127.0.0.1:{port}" for name, port in ports}
    places = {**wiring.endpoints, **metrics}
    for name, endpoint in places.items():
        if not _is_free(endpoint):
            raise UsageError(
                f"{endpoint} ({name}) is already in use{_owner(endpoint)}; stop the other "
                "process, or give another --base-port (0 finds free ones; through make: "
                "UP_ARGS='--base-port 0')"
            )


def _is_free(endpoint: str) -> bool:
    scheme, _, rest = endpoint.partition("://")
    if scheme == "ipc":
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(rest) != 0
    host, _, port = rest.rpartition(":")
    with socket.socket() as probe:
        # As the services do: a lingering connection of the last run does not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise UsageError(f"{endpoint} cannot be bound: {error.strerror}") from error
    return True


def _owner(endpoint: str) -> str:
    """By which process a port is used, as far as this user may see it."""
    import psutil

    port = endpoint.rpartition(":")[2]
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status != psutil.CONN_LISTEN or connection.pid is None:
                continue
            if str(getattr(connection.laddr, "port", "")) == port:
                return f" by process {connection.pid} ({_program(psutil.Process(connection.pid))})"
    except psutil.Error:
        pass
    return ""


def _program(process: psutil.Process) -> str:
    """The module of `python -m MODULE`, else the program's name."""
    words = process.cmdline()
    return words[words.index("-m") + 1] if "-m" in words[:-1] else process.name()
