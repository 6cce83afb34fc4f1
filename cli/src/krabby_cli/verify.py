"""`krabby verify`: whether a recording is, to the last bit, as it was written."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

from krabby_proto.recording import verify

from krabby_cli.errors import UsageError
from krabby_cli.options import add_command, option, print_line

__all__ = ["add_parser"]

_KEY_DIGITS: Final = 64
_EPILOG: Final = """\
examples:
  krabby verify run.mcap
  krabby verify incidents/*.mcap --signer "$ROBOT_KEY"      signed by this public key

A file that was cut short is intact up to a byte, which is named. Exit status: 0 when every byte of
every file is as it was written, else 1.
"""


def add_parser(commands: Any) -> None:
    parser = add_command(commands, "verify", run, "check recordings bit by bit", __doc__, _EPILOG)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="MCAP file")
    text = "public key that must have signed them (default: any, or none)"
    option(parser, "--signer", "HEX", None, text)


def run(args: argparse.Namespace) -> int:
    signer = args.signer or ""
    if signer and (len(signer) != _KEY_DIGITS or set(signer.lower()) - set("0123456789abcdef")):
        raise UsageError(f"--signer {signer!r} is not a key of {_KEY_DIGITS} hexadecimal digits")
    bad = 0
    for path in args.files:
        if not path.is_file():
            raise UsageError(f"no recording at {path}; give the path of an .mcap file")
        verdict = verify(path, signer)
        signed = f", signed by {verdict.signer}" if verdict.signer else ""
        print_line(
            f"{path}: {'intact' if verdict.intact else 'NOT INTACT'}: {verdict.text}{signed}"
        )
        bad += not verdict.intact
    return 1 if bad else 0
