"""Two network namespaces of one machine as two hosts, with a link that delays, loses or is cut.

A TUN device in each namespace, and this process between them: it moves IP packets, each after a
delay, and drops some. Real TCP with its retransmissions runs over it. Needs root.

`python -m krabby_faults.tun A_PID B_PID` joins the namespaces of two processes; lines on stdin such
as `delay_s=0.005 loss=0.01` change the link.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import os
import random
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

__all__ = ["ADDRESSES", "Link", "tool_environment"]

ADDRESSES: Final = ("10.200.0.1", "10.200.0.2")
"""Of the host of the HAL, and of the other one."""
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN_NO_PI: Final = 0x0001 | 0x1000
_CLONE_NEWNET: Final = 0x40000000
_MTU: Final = 1500


def tool_environment() -> dict[str, str]:
    """Environment of processes that import this package and fail by a signal (`sabotage`)."""
    here = Path(__file__).parent
    paths = (str(here.parent), str(here / "sabotage"), os.environ.get("PYTHONPATH", ""))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


class Link:
    """A second host with another clock, reached over an emulated link.

    The first host is the namespace of this process.
    """

    def __init__(self, *, clock_ahead_s: int = 0) -> None:
        clock = ["-T", "--monotonic", str(clock_ahead_s), "--boottime", str(clock_ahead_s)]
        self._host = subprocess.Popen(
            ["unshare", "-n", *(clock if clock_ahead_s else ["-T"]), "--fork", "--kill-child",
             "sh", "-c", "ip link set lo up; echo; exec sleep infinity"],
            stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert self._host.stdout is not None
        self._host.stdout.readline()
        self._inner = _child_of(self._host.pid)
        self._relay = subprocess.Popen(
            [sys.executable, "-m", "krabby_faults.tun", str(os.getpid()), str(self._inner)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=tool_environment(),
        )  # fmt: skip
        assert self._relay.stdout is not None
        assert self._relay.stdin is not None
        if self._relay.stdout.readline() != "ready\n":
            self.close()
            raise OSError("the relay between two network namespaces did not start; it needs root")

    def set(
        self, delay_s: float = 0.0, loss: float = 0.0, there: float = 1, back: float = 1
    ) -> None:
        """Change the link; `there` and `back` are 0 for a direction that is cut."""
        assert self._relay.stdin is not None
        self._relay.stdin.write(f"delay_s={delay_s} loss={loss} there={there} back={back}\n")
        self._relay.stdin.flush()

    def on_host(self, argv: Sequence[str]) -> list[str]:
        """A command line that runs on the second host."""
        pid = str(self._inner)
        return ["nsenter", "-t", pid, "-n", "-T", *argv]

    def close(self) -> None:
        """Give up the link and the host."""
        for process in (getattr(self, "_relay", None), self._host):
            if process is not None:
                process.kill()
                with process:  # waits, and closes the pipes
                    pass
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._inner, signal.SIGKILL)


def _child_of(pid: int) -> int:
    """The process in the new namespaces: time namespaces hold for children only."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return int(file.read().split()[0])


def _device(pid: int, address: str, peer: str) -> int:
    """A TUN device in the network namespace of a process; its file descriptor."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/self/ns/net") as mine, open(f"/proc/{pid}/ns/net") as theirs:
        if libc.setns(theirs.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", b"link0", _IFF_TUN_NO_PI))
        for words in (
            ("address", "add", address, "peer", peer, "dev", "link0"),
            ("link", "set", "link0", "up", "mtu", str(_MTU)),
        ):
            subprocess.run(["ip", *words], check=True)
        libc.setns(mine.fileno(), _CLONE_NEWNET)
    return device


def _settings(text: str) -> dict[str, float]:
    pairs = (word.split("=") for word in text.split())
    return {name: float(value) for name, value in pairs}


def main() -> int:
    """Move packets until stdin ends."""
    first, second = (int(pid) for pid in sys.argv[1:3])
    a, b = ADDRESSES
    devices = (_device(first, a, b), _device(second, b, a))
    link = {"delay_s": 0.0, "loss": 0.0, "there": 1.0, "back": 1.0}
    chance = random.Random(1)
    under_way: list[tuple[float, int, int, bytes]] = []
    count = 0
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        wait_s = max(under_way[0][0] - time.monotonic(), 0.0) if under_way else None
        readable, _, _ = select.select([*devices, sys.stdin], (), (), wait_s)
        if sys.stdin in readable:
            text = sys.stdin.readline()
            if not text:
                return 0
            link |= _settings(text)
        now_s = time.monotonic()
        for index, device in enumerate(devices):
            if device not in readable:
                continue
            with contextlib.suppress(BlockingIOError):
                for _ in range(64):
                    packet = os.read(device, _MTU + 100)
                    way = "back" if index == 0 else "there"
                    if not link[way] or chance.random() < link["loss"]:
                        continue
                    count += 1
                    heapq.heappush(
                        under_way, (now_s + link["delay_s"], count, devices[1 - index], packet)
                    )
        while under_way and under_way[0][0] <= time.monotonic():
            _, _, device, packet = heapq.heappop(under_way)
            with contextlib.suppress(BlockingIOError, OSError):
                os.write(device, packet)


if __name__ == "__main__":
    sys.exit(main())
