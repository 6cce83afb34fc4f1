"""Endpoints of a run: the options that name them, and the layout of a new one."""

from __future__ import annotations

import argparse
import errno
import json
import socket
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from krabby_proto import STREAMS, default_endpoints, runtime_folder
from krabby_proto.access import use_client_key

from krabby_cli.errors import UsageError
from krabby_cli.options import option

if TYPE_CHECKING:
    import psutil

__all__ = [
    "BASE_PORT",
    "RUN_FILE",
    "Wiring",
    "add_endpoint_options",
    "check_free",
    "endpoints_of",
    "ipc_folder",
    "parse_endpoint",
    "stream_ports",
    "wire",
    "wire_in_process",
]

BASE_PORT: Final = 6000
"""Port of the first stream; the streams table counts from here."""
RUN_FILE: Final = "run.json"
"""In a run's folder: what `krabby up` started, and where."""

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
        ports = iter(_free_ports(len(STREAMS) + len(_STANDARD_METRICS)))
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
                "process, or give another --base-port (0 finds free ones)"
            )


def add_endpoint_options(parser: argparse.ArgumentParser) -> None:
    """The options that say where a running robot or simulation is."""
    group = parser.add_argument_group("where the robot is")
    text = "another host, whose relay is reached with a key (default: this host's Unix sockets)"
    option(group, "--host", "HOST", None, text)
    text = "key file for --host (default: $KRABBY_KEY, else ~/.config/krabby/key.toml)"
    option(group, "--key", "FILE", None, text, type=Path)
    option(group, "--base-port", "N", BASE_PORT, "first port, as given to `krabby up`")
    text = "Unix sockets, or plain TCP on the loopback interface"
    option(group, "--transport", None, "ipc", text, choices=("ipc", "tcp"))
    text = "folder of a run of `krabby up`, whose endpoints replace the options above"
    option(group, "--run", "DIR", None, text, type=Path)
    group.add_argument(
        "--endpoint",
        type=parse_endpoint,
        action="append",
        default=[],
        metavar="STREAM=ENDPOINT",
        help="endpoint of one stream, for example state=curve://10.0.0.5:6001; repeatable",
    )


def endpoints_of(args: argparse.Namespace) -> dict[str, str]:
    """Stream name to endpoint, from the options of `add_endpoint_options`."""
    if args.key is not None:
        use_client_key(args.key)
    if args.run is not None:
        endpoints = _endpoints_of_run(args.run)
    elif args.host is None and args.transport == "ipc":
        endpoints = default_endpoints(f"ipc://{ipc_folder(args.base_port)}")
    else:
        base = f"curve://{args.host}" if args.host else "tcp://127.0.0.1"
        ports = stream_ports(args.base_port)
        endpoints = {name: f"{base}:{port}" for name, port in ports.items()}
    return endpoints | dict(args.endpoint)


def parse_endpoint(text: str) -> tuple[str, str]:
    name, equals, endpoint = text.partition("=")
    if not equals or name not in STREAMS or "://" not in endpoint:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not STREAM=ENDPOINT; streams are {', '.join(STREAMS)}, "
            "endpoints look like ipc:///path, curve://HOST:PORT or tcp://127.0.0.1:PORT"
        )
    return name, endpoint


def stream_ports(base_port: int) -> dict[str, int]:
    """Port of each stream."""
    return {name: base_port + stream.port - BASE_PORT for name, stream in STREAMS.items()}


def _endpoints_of_run(folder: Path) -> dict[str, str]:
    path = folder / RUN_FILE
    try:
        endpoints = json.loads(path.read_text(encoding="utf-8"))["endpoints"]
        return {name: str(endpoints[name]) for name in STREAMS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is not the record of a run ({error!r}); "
            "give the folder that `krabby up` printed at its start"
        ) from error


def ipc_folder(base_port: int) -> Path:
    """One folder per user and base port, so that the other commands find it."""
    return runtime_folder("krabby" if base_port == BASE_PORT else f"krabby-{base_port}")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


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
