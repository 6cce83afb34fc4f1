"""Endpoints of a run, and the options that name them; the layout of a new one: `wiring`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Final

from krabby_proto import STREAMS, default_endpoints, runtime_folder

from krabby_cli.errors import UsageError
from krabby_cli.options import option

__all__ = [
    "BASE_PORT",
    "RUN_FILE",
    "add_endpoint_options",
    "endpoints_of",
    "ipc_folder",
    "parse_endpoint",
    "stream_ports",
]

BASE_PORT: Final = 6000
"""Port of the first stream; the streams table counts from here."""
RUN_FILE: Final = "run.json"
"""In a run's folder: what `krabby up` started, and where."""


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
        from krabby_proto.access import use_client_key  # an e-stop on this host needs no key

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
