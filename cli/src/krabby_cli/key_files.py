"""`krabby keys`: keys of the clients that may use a robot over TCP, and of the robot itself.

They are in the robot's key folder. A relay that serves it follows every change within a second.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, Final

from krabby_proto.access import ROLES, ClientKey, KeyFolder, KeyPair
from krabby_proto.relay import NEXT_PORTS

from krabby_cli.errors import UsageError
from krabby_cli.options import add_command, flag, option, print_line

__all__ = ["FIRST_CLIENT", "add_folder_option", "add_parser", "default_folder", "open_folder"]

FIRST_CLIENT: Final = "operator"
"""Made with a new folder; its file lies in the folder until it is moved to the client."""
_FIRST_ROLES: Final = ("see", "operate")

_EPILOG: Final = """\
roles
  see       streams and status
  operate   arm, reset, disarm, stand, sit, policy, walking commands
  command   joint commands
  stop      nothing else; every key may e-stop

examples
  krabby keys create anna --roles see,operate     writes anna.toml, to be moved to her computer
  krabby teleop --host crab --key anna.toml       there
  krabby keys revoke anna
  krabby keys rotate                              a new key of the robot, beside the present one
"""


def default_folder() -> Path:
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config, "krabby", "keys")


def add_folder_option(parser: Any) -> None:
    text = "key folder of the robot (default ~/.config/krabby/keys)"
    option(parser, "--keys", "DIR", None, text, type=Path)


def open_folder(path: Path | None) -> KeyFolder:
    """The robot's key folder; a new one gets a key of the robot and one of a first client."""
    path = path or default_folder()
    is_new = not (path / "robot.toml").exists()
    folder = KeyFolder(path)
    if is_new:
        _create(folder, FIRST_CLIENT, _FIRST_ROLES, path / f"{FIRST_CLIENT}.toml")
    return folder


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands, "keys", lambda _: _no_action(), "keys of clients over TCP", __doc__, _EPILOG
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    roles = f"roles, separated by commas: {', '.join(ROLES)}"

    create = add_command(actions, "create", run_create, "make and authorise a key of a client")
    create.add_argument("name", metavar="NAME", help="name of the client")
    option(create, "--roles", "ROLES", None, roles, type=_roles, required=True)
    option(create, "--out", "FILE", None, "new file for the client (default NAME.toml)", type=Path)

    add_command(actions, "show", run_show, "public key of the robot, and the clients' roles")

    authorise = add_command(
        actions, "authorise", run_authorise, "let in a key that was made elsewhere, or set roles"
    )
    authorise.add_argument("name", metavar="NAME", help="name of the client")
    authorise.add_argument("public", metavar="PUBLIC_KEY", help="its public key, 40 characters")
    option(authorise, "--roles", "ROLES", None, roles, type=_roles, required=True)

    revoke = add_command(actions, "revoke", run_revoke, "shut a client's key out")
    revoke.add_argument("name", metavar="NAME", help="name of the client")

    rotate = add_command(
        actions, "rotate", run_rotate, "replace the key of a client, or of the robot in two steps"
    )
    rotate.add_argument("name", nargs="?", metavar="NAME", help="client (default: the robot)")
    option(rotate, "--out", "FILE", None, "new file for the client (default NAME.toml)", type=Path)
    flag(rotate, "--finish", "second step for the robot: serve the new key only")
    for each in (create, authorise, revoke, rotate, actions.choices["show"]):
        add_folder_option(each)


def _no_action() -> int:
    raise AssertionError("an action is required")


def _roles(text: str) -> tuple[str, ...]:
    roles = tuple(text.split(","))
    wrong = [role for role in roles if role not in ROLES]
    if wrong:
        raise argparse.ArgumentTypeError(f"no role is called {wrong[0]!r}; use {', '.join(ROLES)}")
    return roles


def _create(folder: KeyFolder, name: str, roles: tuple[str, ...], out: Path) -> None:
    """The client's file first: without it the key is of no use to anyone."""
    pair = KeyPair.make()
    folder.check_name(name)
    ClientKey(pair, folder.robot().public).write(out)
    folder.authorise(name, pair.public, roles)


def run_create(args: argparse.Namespace) -> int:
    folder = open_folder(args.keys)
    if args.name in {one.name for one in folder.authorised()}:
        raise UsageError(f"a key is called {args.name} already; rotate or revoke it")
    out = args.out or Path(f"{args.name}.toml")
    _create(folder, args.name, args.roles, out)
    print_line(
        f"{args.name} may {', '.join(args.roles)} and e-stop; move {out} to the client, as "
        "~/.config/krabby/key.toml or for --key"
    )
    return 0


def run_show(args: argparse.Namespace) -> int:
    folder = open_folder(args.keys)
    following = folder.next_robot()
    print_line(f"{'robot':<16} {folder.robot().public}")
    if following is not None:
        print_line(f"{'robot, next':<16} {following.public}  on ports {NEXT_PORTS} higher")
    for one in folder.authorised():
        roles = ", ".join(role for role in ROLES if role in one.roles)
        print_line(f"{one.name:<16} {one.public}  {roles}")
    return 0


def run_authorise(args: argparse.Namespace) -> int:
    open_folder(args.keys).authorise(args.name, args.public, args.roles)
    print_line(f"{args.name} may {', '.join(args.roles)} and e-stop")
    return 0


def run_revoke(args: argparse.Namespace) -> int:
    open_folder(args.keys).revoke(args.name)
    print_line(f"{args.name} is shut out; its connections end within a second")
    return 0


def run_rotate(args: argparse.Namespace) -> int:
    folder = open_folder(args.keys)
    if args.name is not None:
        if args.finish:
            raise UsageError("--finish is the second step for the robot's key; leave NAME out")
        known = {one.name: one.roles for one in folder.authorised()}
        if args.name not in known:
            raise UsageError(f"no key is called {args.name!r}; there is {', '.join(known)}")
        out = args.out or Path(f"{args.name}.toml")
        _create(folder, args.name, tuple(r for r in ROLES if r in known[args.name]), out)
        print_line(f"the old key of {args.name} is shut out; move {out} to the client")
    elif args.finish:
        folder.finish_rotation()
        print_line(f"the robot's only key is {folder.robot().public}")
    else:
        following = folder.begin_rotation()
        print_line(
            f"the next key of the robot is {following.public}, served on ports {NEXT_PORTS} "
            "higher.\nSet robot to it in each client's file and try --base-port with that port;\n"
            "then run krabby keys rotate --finish, which moves it to the standard ports."
        )
    return 0
