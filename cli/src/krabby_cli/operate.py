"""What an operator asks for: arm, stop, stand, sit, another policy."""

from __future__ import annotations

import argparse
import getpass
import sys
from pathlib import Path
from typing import Any, Final

from krabby_proto import ControlClient, HalClient, JsonObject

from krabby_cli.endpoints import add_endpoint_options, endpoints_of
from krabby_cli.errors import CliError

__all__ = ["Refused", "add_parsers", "operator_name"]

_SAFETY: Final = {
    "arm": "stiffen the drives in half a second; what moves is `krabby stand`, or auto_stand",
    "disarm": "let all legs sink damped; `krabby sit` first",
    "estop": "let all legs sink damped at once; latched until `krabby reset`",
    "reset": "clear a latched e-stop; the robot stays disarmed",
}
_CONTROL: Final = {
    "stand": "stand up and walk when told to; every arm needs it anew",
    "sit": "sit down and rest",
}
_TIMEOUT_S: Final = 2.0
_POLICY_TIMEOUT_S: Final = 20.0
"""The game loop tries a policy out in another process first, for 10 s at most."""


class Refused(CliError):  # noqa: N818 - named for what happened
    """The robot understood and said no."""


def add_parsers(commands: Any) -> None:
    """Add the subcommands."""
    for op, text in _SAFETY.items():
        parser = _parser(commands, op, text)
        parser.set_defaults(handler=_run_safety, op=op)
    for op, text in _CONTROL.items():
        parser = _parser(commands, op, text)
        parser.set_defaults(handler=_run_control, op=op)
    parser = _parser(
        commands,
        "policy",
        "swap the policy of the running game loop, without a jump",
        timeout_s=_POLICY_TIMEOUT_S,
    )
    parser.add_argument("name", help="name under assets/policies, or a folder")
    parser.set_defaults(handler=_run_policy)
    parser = _parser(commands, "status", "what the safety gate and the game loop are doing")
    parser.set_defaults(handler=_run_status)


def _parser(
    commands: Any, name: str, text: str, *, timeout_s: float = _TIMEOUT_S
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("--by", default=operator_name(), help="who asks, for the log (%(default)s)")
    parser.add_argument(
        "--timeout", type=float, default=timeout_s, metavar="S", help="default %(default)s s"
    )
    add_endpoint_options(parser)
    return parser


def operator_name() -> str:
    """Who sits here."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "operator"


def _run_safety(args: argparse.Namespace) -> int:
    with HalClient({"safety": endpoints_of(args)["safety"]}) as hal:
        answer = hal.safety(args.op, args.by, timeout_s=args.timeout)
    return _report("safety gate", args.op, answer)


def _run_control(args: argparse.Namespace) -> int:
    with ControlClient(endpoints_of(args)["control"]) as loop:
        answer = loop.request(args.op, timeout_s=args.timeout, by=args.by)
    return _report("game loop", args.op, answer)


def _run_policy(args: argparse.Namespace) -> int:
    # A name is the loop's business, it may have another assets folder; a path is resolved here.
    name = str(Path(args.name).resolve()) if "/" in args.name else args.name
    with ControlClient(endpoints_of(args)["control"]) as loop:
        answer = loop.request("policy", timeout_s=args.timeout, policy=name, by=args.by)
    return _report("game loop", f"policy {args.name}", answer)


def _run_status(args: argparse.Namespace) -> int:
    endpoints = endpoints_of(args)
    with HalClient({"safety": endpoints["safety"]}) as hal:
        _report("safety gate", "status", hal.safety("status", args.by, timeout_s=args.timeout))
    with ControlClient(endpoints["control"]) as loop:
        return _report("game loop", "status", loop.request("status", timeout_s=args.timeout))


def _report(who: str, op: str, answer: JsonObject) -> int:
    if not answer.get("ok"):
        raise Refused(f"the {who} refused {op}: {answer.get('reason') or 'it gave no reason'}")
    state = answer.get("state") or answer.get("mode") or "done"
    shown = ("ok", "state", "mode", "reason")
    facts = {key: value for key, value in answer.items() if key not in shown}
    extra = "".join(
        f", {key} {_plain(value)}" for key, value in facts.items() if value or value == 0
    )
    sys.stdout.write(f"{who}: {state}{extra}\n")
    return 0


def _plain(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
