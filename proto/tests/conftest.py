"""Sockets for tests: a context of their own, and free endpoints of every transport."""

import time

import pytest
import zmq
from krabby_proto import STREAMS


@pytest.fixture
def context():
    """A ZeroMQ context whose leftover sockets do not hold up the end of a test."""
    context = zmq.Context()
    yield context
    context.destroy(linger=0)


@pytest.fixture(params=["inproc", "ipc", "tcp"])
def transport(request):
    return request.param


@pytest.fixture
def endpoints(transport, tmp_path):
    """Where a HAL may bind, by stream name; TCP ports are found by the system."""
    if transport == "tcp":
        return dict.fromkeys(STREAMS, "tcp://127.0.0.1:*")
    base = f"ipc://{tmp_path}" if transport == "ipc" else "inproc:/"
    return {name: f"{base}/{name}" for name in STREAMS}


@pytest.fixture
def eventually():
    """Call something until it gives a true value; for what the other end of a socket does."""

    def wait(attempt, timeout_s=60.0):
        deadline = time.monotonic() + timeout_s
        while not (result := attempt()):
            if time.monotonic() > deadline:
                pytest.fail(f"{attempt} gave nothing true within {timeout_s} s")
            time.sleep(0.001)  # a busy wait keeps the interpreter's lock from the other end
        return result

    return wait


class SteppedClock:
    """Nanoseconds that pass only when told."""

    def __init__(self) -> None:
        self.now_ns = 10_000_000_000

    def __call__(self) -> int:
        return self.now_ns

    def advance_s(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


@pytest.fixture
def clock():
    return SteppedClock()
