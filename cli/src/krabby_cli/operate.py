"""Requests of an operator: arm, disarm, e-stop, reset, stand, sit, policy, mark, status."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from krabby_proto import ControlClient, SafetyClient

from krabby_cli.endpoints import add_endpoint_options, endpoints_of
from krabby_cli.errors import CliError
from krabby_cli.options import POLICY_HELP, add_command, option, print_line
from krabby_cli.text import printable

__all__ = ["POLICY_TIMEOUT_S", "Refused", "add_parser", "operator_name"]

_SAFETY: Final = {
    "arm": "stiffen the drives in half a second; then `krabby stand`, or auto_stand, moves them",
    "disarm": "damp the drives, the robot sinks; `krabby sit` first",
    "estop": "damp the drives at once, the robot sinks; latched until `krabby reset`",
    "reset": "clear a latched e-stop; the robot stays disarmed",
}
_CONTROL: Final = {
    "stand": "stand up and follow walking commands; needed again after every arm",
    "sit": "sit down and rest",
}
_TAKEN: Final = {
    ("stand", "passive"): "stands up once the drives are stiff",
    ("sit", "policy"): "sits down",
}
_TIMEOUT_S: Final = 2.0
POLICY_TIMEOUT_S: Final = 20.0
"""The game loop first loads a policy in another process, for at most 10 s."""


class Refused(CliError):  # noqa: N818 - named for what happened
    """The robot refused the request."""


def add_parser(commands: Any, only: str = "") -> None:
    """Add all commands, or `only` one: an e-stop does not wait for the options of the others."""
    for op, text in _SAFETY.items():
        if only in ("", op):
            _add(commands, op, partial(_ask_gate, op=op), text)
    for op, text in _CONTROL.items():
        if only in ("", op):
            _add(commands, op, partial(_ask_loop, op=op), text)
    if only in ("", "policy", "mark", "status"):
        _add_others(commands)


def _add_others(commands: Any) -> None:
    text = "swap the policy of the running game loop, without a jump"
    parser = _add(commands, "policy", _ask_for_policy, text, timeout_s=POLICY_TIMEOUT_S)
    parser.add_argument("name", metavar="NAME", help=POLICY_HELP)
    text = "note this moment in recordings; the black box writes the last minute to a file"
    parser = _add(commands, "mark", _mark, text)
    parser.add_argument("text", nargs="?", default="", metavar="TEXT", help="what there was to see")
    _add(commands, "status", _ask_both, "show the state of safety gate and game loop")


def _add(
    commands: Any, name: str, run: Any, text: str, *, timeout_s: float = _TIMEOUT_S
) -> argparse.ArgumentParser:
    words = f"{name} gait" if name == "policy" else name
    examples = f"examples:\n  krabby {words}\n  krabby {words} --host 192.168.55.1 --timeout 5"
    parser = add_command(commands, name, run, text, epilog=examples)
    option(parser, "--by", "NAME", operator_name(), "operator, for the log")
    option(parser, "--timeout", "S", timeout_s, "longest wait for the answer")
    add_endpoint_options(parser)
    return parser


def operator_name() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "operator"


def _ask_gate(args: argparse.Namespace, op: str) -> int:
    with SafetyClient(endpoints_of(args)["safety"]) as gate:
        return _report("safety gate", op, gate.request(op, args.by, timeout_s=args.timeout))


def _ask_loop(args: argparse.Namespace, op: str, **arguments: object) -> int:
    with ControlClient(endpoints_of(args)["control"]) as loop:
        answer = loop.request(op, timeout_s=args.timeout, by=args.by, **arguments)
    return _report("game loop", " ".join((op, *map(str, arguments.values()))), answer)


def _ask_for_policy(args: argparse.Namespace) -> int:
    # The loop resolves a name, it may have another assets folder; a path is resolved here.
    name = str(Path(args.name).resolve()) if "/" in args.name else args.name
    return _ask_loop(args, "policy", policy=name)


def _mark(args: argparse.Namespace) -> int:
    return _ask_loop(args, "mark", text=args.text)


def _ask_both(args: argparse.Namespace) -> int:
    from krabby_cli.status import gate_lines, loop_lines  # which an e-stop does not wait for

    endpoints = endpoints_of(args)
    with SafetyClient(endpoints["safety"]) as gate:
        answer = gate.request("status", args.by, timeout_s=args.timeout)
    _check("safety gate", "status", answer)
    _print_lines(gate_lines(answer))
    with ControlClient(endpoints["control"]) as loop:
        answer = loop.request("status", timeout_s=args.timeout, by=args.by)
    _check("game loop", "status", answer)
    _print_lines(loop_lines(answer))
    return 0


def _print_lines(lines: list[str]) -> None:
    for line in lines:
        print_line(printable(line))


def _report(who: str, op: str, answer: Mapping[str, Any]) -> int:
    _check(who, op, answer)
    state = answer.get("state") or answer.get("mode") or "done"
    if (op, state) in _TAKEN:  # the loop answers before its next tick, which begins it
        state = _TAKEN[op, state]
    faults = ", ".join(map(str, answer.get("faults", ())))
    policy = answer.get("policy")
    facts = (f"faults {faults}" if faults else "", f"policy {policy}" if policy else "")
    print_line(printable(f"{who}: {', '.join(filter(None, (str(state), *facts)))}"))
    return 0


def _check(who: str, op: str, answer: Mapping[str, Any]) -> None:
    if not answer.get("ok"):
        raise Refused(
            f"the {who} refused {op}: {printable(str(answer.get('reason') or 'no reason given'))}"
        )
