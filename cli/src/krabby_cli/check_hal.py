"""`krabby check-hal`: check whether a HAL keeps the wire contract.

Nothing moves: commands are tried only while the HAL is disarmed, and every target they carry is the
position just measured. The e-stop is tried near the end and cleared again.
"""

from __future__ import annotations

import argparse
from typing import Any, Final

from krabby_proto import default_endpoints
from krabby_proto.conformance import CheckResult, check_hal

from krabby_cli.endpoints import add_endpoint_options, endpoints_of, parse_endpoint
from krabby_cli.options import add_command, flag, print_json, print_line

__all__ = ["add_parser", "parse_place"]

_EPILOG: Final = """\
examples:
  krabby check-hal                                  the HAL of this host
  krabby check-hal curve://192.168.55.1             standard ports of another host, with a key
  krabby check-hal state=ipc:///run/x/state command=ipc:///run/x/command safety=ipc:///run/x/safety

Start a simulated one to try it on:  python -m krabby_sim_hal auto_arm=false mission.enabled=false
Exit status: 0 when every check passed, 1 when one failed, 3 when none failed and some were not
run, since the HAL is in use: beside a running game loop only what needs no command is checked.
"""

_STREAMS: Final = ("state", "command", "safety", "colour")
_SKIPPED: Final = 3
"""Exit status when nothing failed and not everything was tried."""


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands, "check-hal", run, "check a HAL against the wire contract", __doc__, _EPILOG
    )
    parser.add_argument(
        "places",
        nargs="*",
        type=parse_place,
        metavar="ENDPOINT",
        help="base of all endpoints (ipc:///folder, curve://HOST) or STREAM=ENDPOINT",
    )
    flag(parser, "--json", "print one JSON object per check")
    add_endpoint_options(parser)


def parse_place(text: str) -> dict[str, str]:
    if "=" in text:
        return dict([parse_endpoint(text)])
    scheme, _, rest = text.partition("://")
    is_base = scheme == "ipc" or (scheme in ("tcp", "curve") and ":" not in rest.rpartition("]")[2])
    if not rest or not is_base:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a base (ipc:///folder, curve://HOST) nor STREAM=ENDPOINT, "
            "for example state=ipc:///run/krabby/state"
        )
    return default_endpoints(text)


def run(args: argparse.Namespace) -> int:
    endpoints = endpoints_of(args)
    for place in args.places:
        endpoints |= place
    endpoints = {name: endpoints[name] for name in _STREAMS}
    show = (lambda result: print_json(result._asdict())) if args.json else _print
    results = check_hal(endpoints, show)
    skipped = [result for result in results if result.skipped]
    passed = sum(result.passed for result in results)
    if not args.json:
        if skipped:
            names = ", ".join(result.name for result in skipped)
            print_line(f"skip  {len(skipped)} checks: {names}\n        why: {skipped[0].detail}")
        more = f", {len(skipped)} not run" if skipped else ""
        print_line(f"{passed} of {len(results)} checks passed{more}")
    if passed + len(skipped) < len(results):
        return 1
    return _SKIPPED if skipped else 0


def _print(result: CheckResult) -> None:
    if result.skipped:  # all of them together, at the end
        return
    print_line(
        f"{'ok  ' if result.passed else 'FAIL'}  {result.name}\n"
        f"        tried: {result.tried}\n"
        f"        found: {result.detail}"
    )
