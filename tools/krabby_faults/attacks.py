"""What a peer that can connect may send: raw ZMTP 3 without a mechanism."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
from collections.abc import Iterator
from typing import Final

import numpy as np
import zmq
from krabby_proto import (
    COMMAND,
    FLAG_OPERATOR,
    NAV,
    STREAMS,
    HalClient,
    Publisher,
    RequestTimeout,
    encode,
    new_instance_id,
)
from krabby_proto.access import ClientKey, KeyFolder, KeyPair

from krabby_faults.stack import Stack
from krabby_faults.tun import ADDRESSES

__all__ = ["ATTACKS", "UNBOUNDED", "plain_tcp", "unlisted_key"]

_SENT_MB: Final = 64
"""Most that an endless attack sends."""


def _connect(endpoint: str, kind: bytes) -> socket.socket:
    """A connection after its handshake; from here on it may send anything."""
    scheme, _, address = endpoint.partition("://")
    if scheme == "ipc":
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(address)
    else:
        host, _, port = address.rpartition(":")
        peer = socket.create_connection((host, int(port)))
    try:
        peer.settimeout(2.0)
        peer.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
        body = b"\x05READY\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind
        peer.sendall(b"\x04" + bytes([len(body)]) + body)
        received = 0
        while received < 64 + 20:
            found = peer.recv(1000)
            if not found:
                break
            received += len(found)
    except OSError:
        peer.close()
        raise
    return peer


def _frame(body: bytes, *, more: bool) -> bytes:
    flag = int(more)
    if len(body) < 256:
        return bytes([flag, len(body)]) + body
    return bytes([flag | 2]) + struct.pack(">Q", len(body)) + body


def _send(endpoint: str, kind: bytes, chunks: Iterator[bytes]) -> None:
    """Send until it ends, the peer hangs up, or it was enough."""
    left = _SENT_MB << 20
    with contextlib.suppress(OSError), _connect(endpoint, kind) as peer:
        for chunk in chunks:
            peer.sendall(chunk)
            left -= len(chunk)
            if left <= 0:
                return


def _endless(topic: bytes) -> Iterator[bytes]:
    yield _frame(topic, more=True)
    while True:
        yield _frame(b"y" * 60_000, more=True)


def many_frames(stack: Stack) -> None:
    """One message of 50,000 empty frames to each of three endpoints."""
    for name, kind in (("safety", b"DEALER"), ("command", b"DEALER"), ("nav", b"PUB")):
        first = b"nav" if name == "nav" else b""
        message = _frame(first, more=True) + _frame(b"", more=True) * 50_000
        _send(stack.endpoints[name], kind, iter([message + _frame(b"", more=False)]))


def endless_message(stack: Stack) -> None:
    """A message of 64 MB that does not end, to the command endpoint."""
    _send(stack.endpoints["command"], b"DEALER", _endless(b""))


def subscriptions(stack: Stack) -> None:
    """20,000 different subscriptions to the state stream."""
    topics = (b"\x01%09d" % number + b"z" * 180 for number in range(20_000))
    _send(stack.endpoints["state"], b"SUB", (_frame(topic, more=False) for topic in topics))


def idle_connections(stack: Stack) -> None:
    """400 connections to the safety endpoint that say nothing, for 2 s."""
    with contextlib.ExitStack() as opened:
        for _ in range(400):
            with contextlib.suppress(OSError):
                opened.enter_context(_connect(stack.endpoints["safety"], b"DEALER"))
        time.sleep(2.0)


def garbage(stack: Stack) -> None:
    """10,000 requests of random bytes to the command and safety endpoints."""
    random = np.random.default_rng(7)
    for name in ("command", "safety"):
        bodies = (random.bytes(int(size)) for size in random.integers(0, 300, 5000))
        frames = (_frame(b"", more=True) + _frame(body, more=False) for body in bodies)
        _send(stack.endpoints[name], b"DEALER", frames)


def command_flood(stack: Stack) -> None:
    """Valid commands of another writer, as fast as they go, for 2 s."""
    writer, sequence, end = new_instance_id(), 0, time.monotonic() + 2.0

    def commands() -> Iterator[bytes]:
        nonlocal sequence
        while time.monotonic() < end:
            sequence += 1
            now_ns = time.monotonic_ns()
            frames = encode(
                COMMAND, np.zeros(18, np.float32), instance_id=writer, sequence=sequence,
                capture_ns=now_ns, publish_ns=now_ns,
            )  # fmt: skip
            *most, last = [b"", *frames]
            yield b"".join(_frame(f, more=True) for f in most) + _frame(last, more=False)

    _send(stack.endpoints["command"], b"DEALER", commands())


def future_mission(stack: Stack) -> None:
    """Walking commands stamped an hour ahead, of a person and of a mission, for 2 s."""
    with Publisher(stack.endpoints["nav"], NAV, bind=False) as nav:
        end = time.monotonic() + 2.0
        while time.monotonic() < end:
            ahead_ns = time.monotonic_ns() + 3_600_000_000_000
            for flags in (0, FLAG_OPERATOR):
                nav.publish((1.0, 0.4, 0.8), capture_ns=ahead_ns, flags=flags)
            time.sleep(0.01)


def request_storm(stack: Stack) -> None:
    """`reset` and `arm` 200 times a second for 2 s."""
    with HalClient({"safety": stack.endpoints["safety"]}) as client:
        end = time.monotonic() + 2.0
        while time.monotonic() < end:
            for op in ("reset", "arm"):
                with contextlib.suppress(RequestTimeout):
                    client.safety(op, "storm", timeout_s=0.2)
            time.sleep(0.005)


def plain_tcp(stack: Stack) -> None:
    """200 peers that speak plain TCP to the relay, send requests and a PING, and hang up."""
    ping = b"\x04\x0a\x04PING\x00\x0aabc"
    request = _frame(b"", more=True) + _frame(b"m" * 100, more=False)
    for number in range(200):
        name = ("command", "safety", "state")[number % 3]
        endpoint = f"tcp://{ADDRESSES[0]}:{STREAMS[name].port}"
        _send(endpoint, b"DEALER", iter([request * 500 + ping]))


def unlisted_key(stack: Stack) -> None:
    """An e-stop and an arm with a key that the robot does not know: neither is answered."""
    key = ClientKey(KeyPair.make(), KeyFolder(stack.folder / "keys").robot().public)
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.linger = 0
        for option, value in key.options:
            peer.setsockopt(option, value)
        peer.connect(f"tcp://{ADDRESSES[0]}:{STREAMS['safety'].port}")
        for op in ("estop", "arm"):
            peer.send_multipart([b"", b"safety", json.dumps({"op": op, "by": "stranger"}).encode()])
        assert not peer.poll(1000), "an unlisted key was answered"


ATTACKS: Final = (
    many_frames, endless_message, subscriptions, idle_connections, garbage, command_flood,
    future_mission, request_storm,
)  # fmt: skip
UNBOUNDED: Final = (endless_message, subscriptions)
"""libzmq has no limit for these, and keeps the memory that they take."""
