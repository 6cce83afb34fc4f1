"""Unix sockets whose bytes are handed on a few times a second, for readers that may be late.

libzmq's thread wakes for every message, which costs more than the message. Here a thread sleeps,
then moves what the kernel has kept for it meanwhile, so that libzmq reads a batch. The kernel keeps
208 KB of a connection by default, of the stream `state` 0.8 s; beyond that the publisher drops
messages for this reader, as for any that is slow. The bytes are not looked at.
"""

from __future__ import annotations

import os
import select
import shutil
import socket as unix
import tempfile
import threading
from collections.abc import Container
from pathlib import Path
from typing import Final

from krabby_proto.endpoint import Closing

__all__ = ["Batches"]

_SCHEME: Final = "ipc://"
_PIECE_BYTES: Final = 1 << 18
_MOST_PIECES: Final = 16
"""Of one connection in one round: a flood does not hold up the others."""


class Batches(Closing):
    """A thread between publishers and readers of this process.

    Args:
        period_s: between two rounds.
    """

    def __init__(self, period_s: float = 0.2) -> None:
        self._period_s = period_s
        self._folder = Path(tempfile.mkdtemp(prefix="krabby-batches-"))  # of mode 0700
        self._doors: list[tuple[unix.socket, str]] = []
        self._links: list[_Link] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)
        self._thread.start()

    def through(self, endpoint: str) -> str:
        """The endpoint to connect to in place of `endpoint`; the same one where it is not ipc."""
        if not endpoint.startswith(_SCHEME):
            return endpoint
        path = self._folder / str(len(self._doors))
        door = unix.socket(unix.AF_UNIX, unix.SOCK_STREAM)
        door.setblocking(False)
        door.bind(os.fspath(path))
        door.listen()
        self._doors.append((door, endpoint.removeprefix(_SCHEME)))
        return f"{_SCHEME}{path}"

    def close(self) -> None:
        """End the thread and the connections."""
        self._stop.set()
        self._thread.join()
        for door, _ in self._doors:
            door.close()
        for link in self._links:
            link.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self) -> None:
        piece = memoryview(bytearray(_PIECE_BYTES))
        while not self._stop.wait(self._period_s):
            waiting = select.poll()
            for door, _ in self._doors:
                waiting.register(door, select.POLLIN)
            for link in self._links:
                for end in link.ends:
                    waiting.register(end, select.POLLIN)
            ready = {number for number, _ in waiting.poll(0)}
            for door, path in tuple(self._doors):
                if door.fileno() in ready:
                    self._open(door, path)
            self._links = [link for link in self._links if link.carry(ready, piece)]

    def _open(self, door: unix.socket, path: str) -> None:
        """Connect a reader that waits at a door; where no publisher is, libzmq tries again."""
        try:
            reader, _ = door.accept()
        except OSError:  # it hung up meanwhile, or there are too many open files
            return
        publisher = unix.socket(unix.AF_UNIX, unix.SOCK_STREAM)
        for end in (reader, publisher):
            end.setblocking(False)
        link = _Link(publisher, reader)
        try:
            publisher.connect(path)
        except OSError:
            link.close()
        else:
            self._links.append(link)


class _Link:
    """Two connections, one behind the other."""

    def __init__(self, publisher: unix.socket, reader: unix.socket) -> None:
        self.ends = (publisher, reader)
        self._held = [b"", b""]
        """Came from that end and was not taken by the other one yet."""

    def carry(self, ready: Container[int], piece: memoryview) -> bool:
        """Move what is there, both ways; False when an end has hung up.

        Args:
            ready: file numbers that can be read.
            piece: what is moved at a time; its content is lost.
        """
        alive = all([self._move(source, ready, piece) for source in (0, 1)])
        if not alive:
            self.close()
        return alive

    def close(self) -> None:
        for end in self.ends:
            end.close()

    def _move(self, number: int, ready: Container[int], piece: memoryview) -> bool:
        source, sink, held = self.ends[number], self.ends[1 - number], self._held[number]
        if not held and source.fileno() not in ready:
            return True
        try:
            if held:
                self._held[number] = held = held[sink.send(held) :]
            for _ in range(_MOST_PIECES):
                if held:
                    return True
                count = source.recv_into(piece)
                if count == 0:
                    return False
                self._held[number] = held = _rest(sink, piece[:count])
                if count < len(piece):
                    return True
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True


def _rest(sink: unix.socket, data: memoryview) -> bytes:
    """Send; what is not taken is returned."""
    try:
        return bytes(data[sink.send(data) :])
    except BlockingIOError:
        return bytes(data)
