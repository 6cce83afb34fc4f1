"""Host names in endpoints, looked up beside the thread that carries the messages.

libzmq asks the name service in its I/O thread: where no name server answers, every message of the
process waits there for ten seconds, and again at every attempt to connect. Here another thread
asks, and libzmq is given addresses.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
import threading
from typing import Final, Self

__all__ = ["HostName"]

_WITH_HOST: Final = re.compile(r"tcp://([^\[\]*;/:]+):(\d+)")


class HostName:
    """The host of a TCP endpoint; the first look-up begins at once."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._found: tuple[str, ...] = ()
        self._look_up()

    @classmethod
    def of(cls, endpoint: str) -> Self | None:
        """The name in an endpoint; None where there is nothing to look up."""
        found = _WITH_HOST.fullmatch(endpoint)
        if found is None:
            return None
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(found[1])
            return None
        return cls(found[1], int(found[2]))

    def endpoints(self, wait_s: float = 0.0) -> tuple[str, ...]:
        """What the last look-up found, IPv4 first, and begin another one.

        Args:
            wait_s: How long to wait for one that is under way [s].

        Returns:
            Endpoints with addresses; none while the look-up is under way, or when it failed.
        """
        self._thread.join(wait_s)
        if self._thread.is_alive():
            return ()
        found = self._found
        self._look_up()
        return found

    def _look_up(self) -> None:
        self._thread = threading.Thread(target=self._ask, name="names", daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        try:
            answers = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            self._found = ()
            return
        answers.sort(key=lambda answer: answer[0] != socket.AF_INET)
        hosts = dict.fromkeys(str(address[0]) for *_, address in answers)
        self._found = tuple(
            f"tcp://[{host}]:{self._port}" if ":" in host else f"tcp://{host}:{self._port}"
            for host in hosts
        )
