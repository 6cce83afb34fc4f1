"""Ports that are free, for processes that are started together."""

from __future__ import annotations

import contextlib
import random
import socket
from typing import Final

__all__ = ["free_port", "free_ports"]

_RANGE: Final = range(16_000, 32_000)
"""Below the ports that Linux gives to outgoing connections, of which one could take a port between
here and the process that is to bind it."""


def free_port() -> int:
    """A TCP port of the loopback interface that is not in use."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Different free TCP ports of the loopback interface."""
    chance = random.SystemRandom()
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        while len(ports) < count:
            port = chance.choice(_RANGE)
            with contextlib.suppress(OSError):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
                ports.append(port)
        return ports
