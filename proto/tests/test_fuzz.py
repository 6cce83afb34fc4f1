"""A server survives fuzzed requests; the parsers alone are fuzzed by `make fuzz`."""

import random
import time

import numpy as np
import pytest
import zmq
from krabby_fuzz.mutate import mutated
from krabby_proto import (
    COMMAND,
    CommandOutcome,
    CommandReply,
    CommandStatus,
    HalServer,
    SafetyOutcome,
    encode,
    make_hello,
)

pytestmark = pytest.mark.slow

STAMPS = {"capture_ns": 1, "publish_ns": 1}
COMMAND_FRAMES = encode(COMMAND, np.zeros(18), instance_id=5, sequence=1, **STAMPS)
SEEDS = [COMMAND_FRAMES, [b"safety", b'{"op": "arm", "by": "x", "sent_ns": 1}'], [b"hello", b"{}"]]


def fuzzed(rng):
    """One message: usually a valid one with a few things wrong, sometimes fewer or more frames."""
    frames = list(rng.choice(SEEDS))
    at = rng.randrange(len(frames))
    frames[at] = mutated(rng, [frames[at]])
    if rng.random() < 0.2:
        del frames[rng.randrange(len(frames))]
    if rng.random() < 0.2:
        frames.insert(at, mutated(rng, COMMAND_FRAMES))
    return frames


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
        assert len([n for n in server.stats.commands.values() if n]) > 4, "told apart"
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
