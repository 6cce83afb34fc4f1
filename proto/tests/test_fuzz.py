"""Millions of broken frames: the codec refuses with its own errors, a server stays in business."""

import json
import random
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zmq
from krabby_proto import (
    COMMAND,
    STREAMS,
    CommandOutcome,
    CommandReply,
    CommandStatus,
    FrameError,
    HalServer,
    SafetyOutcome,
    decode,
    encode,
    make_hello,
)
from krabby_proto.admission import CommandAdmission

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parents[1] / "golden"
SEEDS = [
    [bytes.fromhex(frame) for frame in json.loads((GOLDEN / f"{name}.json").read_text())["frames"]]
    for name in ("camera", "state", "command", "features", "nav", "trace", "ticks", "truth")
]
INTERESTING = [b"\x00" * 4, b"\xff" * 4, b"\x00\x00\x80\x7f", b"\x00\x00\xc0\xff", b"KRBY", b"KRPL"]


def flip(rng, frames):
    at = rng.randrange(len(frames))
    frame = bytearray(frames[at])
    for _ in range(rng.randrange(1, 4) if frame else 0):
        frame[rng.randrange(len(frame))] ^= 1 << rng.randrange(8)
    frames[at] = bytes(frame)


def patch(rng, frames):
    at = rng.randrange(len(frames))
    frame, start = frames[at], rng.randrange(len(frames[at]) + 1)
    value = rng.choice(INTERESTING)
    frames[at] = frame[:start] + value + frame[start + len(value) :]


def cut(rng, frames):
    at = rng.randrange(len(frames))
    frames[at] = frames[at][: rng.randrange(len(frames[at]) + 1)]


def grow(rng, frames):
    at = rng.randrange(len(frames))
    frames[at] += rng.randbytes(rng.randrange(1, 300))


def replace(rng, frames):
    frames[rng.randrange(len(frames))] = rng.randbytes(rng.choice((0, 1, 4, 47, 48, 49, 72, 280)))


def drop(rng, frames):
    del frames[rng.randrange(len(frames))]


def double(rng, frames):
    at = rng.randrange(len(frames))
    frames.insert(at, frames[at])


def splice(rng, frames):
    at = rng.randrange(len(frames))
    frames[at] = rng.choice(rng.choice(SEEDS))


def renumber(rng, frames):
    """Another schema version, stream or element count in a header that is fine otherwise."""
    start, size = rng.choice(((4, 2), (6, 1), (7, 1), (40, 4)))
    header = frames[1]
    frames[1] = header[:start] + rng.randbytes(size) + header[start + size :]


MUTATIONS = (flip, patch, cut, grow, replace, drop, double, splice)


def fuzzed(rng):
    """One message: usually a valid one with a few things wrong, sometimes only noise."""
    if rng.random() < 0.1:
        return [rng.randbytes(rng.randrange(120)) for _ in range(rng.randrange(5))]
    frames = list(rng.choice(SEEDS))
    if rng.random() < 0.3:
        renumber(rng, frames)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if frames:
            rng.choice(MUTATIONS)(rng, frames)
    return frames


@pytest.mark.timeout(300)
def test_a_million_fuzzed_messages_raise_nothing_but_frame_errors(capsys):
    rng = random.Random(20_26)
    counts: dict[str, int] = {}
    admission = CommandAdmission(ttl_s=1e18, lease_s=0.0, capture_ttl_s=1e18)
    total = 1_000_000
    for _ in range(total):
        frames = fuzzed(rng)
        try:
            message = decode(frames)
        except FrameError as error:
            outcome = type(error).__name__
        else:
            outcome = "valid"
            assert message.payload.size == message.header.num_elements
            assert message.frames() == frames
        counts[outcome] = counts.get(outcome, 0) + 1
        verdict = admission.admit(frames, 1 << 63, 0)
        assert (verdict.message is None) == (verdict.status is not CommandStatus.APPLIED)
    with capsys.disabled():
        sys.stdout.write(f"\n{total} messages: {counts}\n")
    # every kind was met, and the mutations are not all so crude that only the first check works
    assert set(counts) == {error.__name__ for error in FrameError.__subclasses__()} | {"valid"}
    assert min(counts.values()) > 1000


def test_half_a_million_fuzzed_replies_raise_nothing_but_frame_errors():
    rng = random.Random(7)
    valid = bytes.fromhex(json.loads((GOLDEN / "reply.json").read_text())["frame"])
    readable = 0
    for _ in range(500_000):
        frames = [valid]
        rng.choice((flip, patch, cut, grow, replace))(rng, frames)
        try:
            reply = CommandReply.unpack(frames[0])
        except FrameError:
            continue
        readable += 1
        assert reply.status_name
        assert reply.safety_name
    assert readable > 1000


class Handler:
    def on_command(self, message):
        assert np.isfinite(message.payload).all()
        return CommandOutcome(CommandStatus.APPLIED, safety_state=2, applied_ns=1)

    def on_safety(self, op, by):
        return SafetyOutcome(True, "active")


def test_a_server_survives_fuzzed_requests_on_all_its_sockets(context, endpoints):
    rng = random.Random(11)
    with HalServer(
        endpoints,
        hello=make_hello(service="hal"),
        handler=Handler(),
        lease_s=0.0,
        context=context,
    ) as server:
        callers = []
        for name in ("command", "safety"):
            caller = context.socket(zmq.DEALER)
            caller.linger = 0
            caller.connect(server.endpoints[name])
            callers.append(caller)
        for count in range(20_000):
            envelope = rng.choice(([b""], [b""], [b"\0\0\0\1", b""], [], [b"x" * 9]))
            frames = [*envelope, *fuzzed(rng)] or [b""]
            for caller in callers:
                caller.send_multipart(frames)
            if count % 20 == 0:
                while server.poll(0.0):
                    pass
                for caller in callers:
                    while caller.poll(0):
                        caller.recv_multipart()
        while server.poll(0.05):
            pass
        with context.socket(zmq.REQ) as fresh:
            fresh.linger = 0
            fresh.connect(server.endpoints["command"])
            now_ns = time.monotonic_ns()
            stamps = {"capture_ns": now_ns, "publish_ns": now_ns}
            fresh.send_multipart(encode(COMMAND, np.zeros(18), instance_id=5, sequence=1, **stamps))
            while not fresh.poll(0):
                server.poll(0.01)
            status = CommandReply.unpack(fresh.recv_multipart()[1]).status_name
        for caller in callers:
            caller.close()
    assert status in ("applied", "rejected_stale")
    assert STREAMS["command"].name in server.endpoints
