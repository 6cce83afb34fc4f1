"""Unix sockets whose bytes are handed on in batches."""

import contextlib
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from krabby_proto import STATE, Batches, EndpointInUse, LatestSubscriber, Publisher

ROUND_S = 0.01
TEXT = np.random.default_rng(0).bytes(3_000_000)


def until(condition, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.002)
    return found


@pytest.fixture
def batches():
    with Batches(ROUND_S) as batches:
        yield batches


@pytest.fixture
def place(tmp_path):
    tmp_path.chmod(0o700)
    return f"ipc://{tmp_path}/state"


def connected(batches, place):
    """Both ends of a connection: the publisher's and, behind the batches, the reader's."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(place.removeprefix("ipc://"))
        server.listen()
        reader = socket.socket(socket.AF_UNIX)
        reader.connect(batches.through(place).removeprefix("ipc://"))
        server.settimeout(60.0)
        publisher, _ = server.accept()
    return publisher, reader


def test_all_bytes_pass_both_ways_and_those_of_a_publisher_that_ended(batches, place):
    publisher, reader = connected(batches, place)
    with publisher, reader:
        reader.sendall(b"subscribe")
        publisher.settimeout(60.0)
        assert publisher.recv(100) == b"subscribe"
        publisher.setblocking(False)
        sent, got = 0, b""
        reader.setblocking(False)
        while sent < len(TEXT):
            with contextlib.suppress(BlockingIOError):
                sent += publisher.send(TEXT[sent : sent + 100_000])
            with contextlib.suppress(BlockingIOError):
                got += reader.recv(1 << 20)
            time.sleep(0.001)
        publisher.close()
        reader.settimeout(60.0)
        while piece := reader.recv(1 << 20):
            got += piece
    assert got == TEXT


def test_a_reader_that_stands_still_takes_no_memory_and_loses_nothing_that_was_taken(
    batches, place
):
    publisher, reader = connected(batches, place)
    with publisher, reader:
        publisher.setblocking(False)
        sent, refused = 0, 0
        while refused < 20 and sent < len(TEXT):  # it is told to wait, again and again
            try:
                sent += publisher.send(TEXT[sent : sent + 100_000])
                refused = 0
            except BlockingIOError:
                refused += 1
                time.sleep(2 * ROUND_S)
        # Two buffers of the kernel and one piece of 256 KiB.
        buffer = int(Path("/proc/sys/net/core/wmem_default").read_text())
        assert sent <= 2 * buffer + (1 << 18)
        publisher.close()
        reader.settimeout(60.0)
        got = b""
        while piece := reader.recv(1 << 20):
            got += piece
    assert got == TEXT[:sent]


def opened(place):
    """A publisher; libzmq takes a moment to give up the place of the one before."""
    with contextlib.suppress(EndpointInUse):
        return Publisher(place, STATE)
    return None


def states(publisher, count):
    for _ in range(count):
        publisher.publish(np.zeros(STATE.size), capture_ns=1)


def first_heard(publisher, subscriber):
    """Sequence up to which everything came, once the subscription has arrived.

    A message that the publisher's queue does not hold is not sent, so there is always another one.
    """
    newest = 0
    while newest < publisher.sequence or newest == 0:
        states(publisher, 1)
        for _ in range(100):
            newest = max([newest, *(raw.sequence for raw in subscriber.drain_raw())])
            if newest == publisher.sequence:
                break
            time.sleep(0.002)
    return newest


def test_messages_arrive_once_in_order_and_from_a_publisher_that_came_later(batches, place):
    with LatestSubscriber(batches.through(place), STATE, queue=4000) as subscriber:
        for restarts in (0, 1):
            with until(lambda: opened(place)) as publisher:
                before, gaps = first_heard(publisher, subscriber), subscriber.gaps
                sequences = []
                for _ in range(25):
                    # Its queue holds 16, of which libzmq may still count 7 that were sent.
                    states(publisher, 4)
                    while len(sequences) < publisher.sequence - before:
                        sequences += [raw.sequence for raw in until(subscriber.drain_raw)]
                assert sequences == list(range(before + 1, before + 101))
                assert (subscriber.gaps, subscriber.restarts) == (gaps, restarts)


def test_other_transports_are_left_as_they_are(batches):
    assert batches.through("tcp://127.0.0.1:6001") == "tcp://127.0.0.1:6001"


def test_nothing_is_left_behind(place, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Batches(ROUND_S) as batches:
        batches.through(place)
        assert len(list(tmp_path.glob("krabby-batches-*/*"))) == 1
    assert list(tmp_path.iterdir()) == []
