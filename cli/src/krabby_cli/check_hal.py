"""`krabby check-hal`: does whatever listens there keep the contract?

Nothing moves: commands are only tried while the HAL is disarmed, and every target they carry is the
position just measured. The e-stop is tried last and cleared again.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any, Final

from krabby_proto import default_endpoints
from krabby_proto.conformance import CheckResult, check_hal

from krabby_cli.endpoints import add_endpoint_options, endpoints_of, parse_endpoint

__all__ = ["add_parser", "parse_place"]

_EPILOG: Final = """\
examples:
  krabby check-hal                                  the HAL of this host
  krabby check-hal tcp://192.168.55.1               standard ports of another host
  krabby check-hal state=tcp://10.0.0.5:7001 command=tcp://10.0.0.5:7002 safety=tcp://10.0.0.5:7005
  krabby check-hal --state ipc:///tmp/hal/state --command ipc:///tmp/hal/command \\
                   --safety ipc:///tmp/hal/safety

Start a simulated one to try it on:  python -m krabby_sim_hal auto_arm=false mission.enabled=false
Exit status: 0 when every check passed, 1 otherwise.
"""

_STREAMS: Final = ("state", "command", "safety")


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "check-hal",
        help="check a HAL against the contract",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "places",
        nargs="*",
        type=parse_place,
        metavar="ENDPOINT",
        help="a base (tcp://HOST, ipc:///folder) or STREAM=ENDPOINT",
    )
    for name in _STREAMS:
        parser.add_argument(f"--{name}", metavar="ENDPOINT", help=f"endpoint of {name}")
    parser.add_argument("--json", action="store_true", help="one JSON object a check")
    add_endpoint_options(parser)
    parser.set_defaults(handler=run)


def parse_place(text: str) -> dict[str, str]:
    """Read a base of endpoints or one stream's endpoint."""
    if "=" in text:
        return dict([parse_endpoint(text)])
    scheme, _, rest = text.partition("://")
    is_base = scheme == "ipc" or (scheme == "tcp" and ":" not in rest.rpartition("]")[2])
    if not rest or not is_base:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a base (tcp://HOST, ipc:///folder) nor STREAM=ENDPOINT, "
            "for example state=tcp://127.0.0.1:6001"
        )
    return default_endpoints(text)


def run(args: argparse.Namespace) -> int:
    """Run all checks, print each as it comes."""
    endpoints = endpoints_of(args)
    for place in args.places:
        endpoints |= place
    endpoints |= {name: value for name in _STREAMS if (value := getattr(args, name)) is not None}
    endpoints = {name: endpoints[name] for name in _STREAMS}
    results = check_hal(endpoints, _print_json if args.json else _print)
    failed = [result for result in results if not result.passed]
    if not args.json:
        sys.stdout.write(f"{len(results) - len(failed)} of {len(results)} checks passed\n")
    return 1 if failed else 0


def _print(result: CheckResult) -> None:
    sys.stdout.write(
        f"{'ok  ' if result.passed else 'FAIL'}  {result.name}\n"
        f"        tried: {result.tried}\n"
        f"        found: {result.detail}\n"
    )
    sys.stdout.flush()


def _print_json(result: CheckResult) -> None:
    sys.stdout.write(json.dumps(result._asdict()) + "\n")
    sys.stdout.flush()
