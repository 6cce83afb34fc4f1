"""One target under atheris, in a separate process."""

from __future__ import annotations

import importlib
import sys
from typing import Any

__all__ = ["run"]


def run(name: str) -> None:
    """Fuzz a target as the command line says; does not return."""
    atheris: Any = importlib.import_module("atheris")  # on x86-64 only
    ours = ("krabby", "krabby_proto", "krabby_cli", "tomllib", "zipfile")
    with atheris.instrument_imports(include=list(ours), enable_loader_override=False):
        from krabby_fuzz.targets import TARGETS
    target = TARGETS[name]

    def test_one_input(data: bytes) -> None:
        try:
            target.parse(data)
        except target.refuses:
            return

    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
