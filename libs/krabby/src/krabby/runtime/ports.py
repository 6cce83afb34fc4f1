"""Ports that are free, for processes that are started together."""

from __future__ import annotations

import contextlib
import socket

__all__ = ["free_port", "free_ports"]


def free_port() -> int:
    """A TCP port of the loopback interface that is not in use."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Different free TCP ports of the loopback interface."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
