"""Any bytes and any JSON object at a HAL's endpoints: the next request is answered."""

import json
import time

import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from krabby.hal.backend import HalBackend
from krabby.hal.handler import GateHandler
from krabby.robot.description import RobotDescription
from krabby_proto import SAFETY_OPS, HalServer

DESC = RobotDescription.load()

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
requests = st.fixed_dictionaries(
    {"op": st.sampled_from([*SAFETY_OPS, "jump"]) | json_values},
    optional={"by": json_values, "sent_ns": json_values},
)
bodies = st.one_of(
    st.lists(st.binary(max_size=80), max_size=15),
    requests.map(lambda value: [b"safety", json.dumps(value).encode()]),
    json_values.map(lambda value: [b"safety", json.dumps(value).encode()]),
    st.tuples(st.sampled_from([b"safety", b"command", b"hello"]), st.binary(max_size=80)).map(list),
)


class Drives(HalBackend):
    """They take what they are given."""

    name = "test-hal"
    desc = DESC

    def read(self, slot):
        raise AssertionError("no cycle is run here")

    def write(self, drive, now_ns):
        return now_ns


class Hal:
    """A server and a caller, both driven by the test."""

    def __init__(self, context, folder):
        backend = Drives()
        names = ("state", "command", "safety")
        self.server = HalServer(
            {name: f"ipc://{folder}/{name}" for name in names},
            hello=backend.hello(),
            handler=GateHandler(backend),
            context=context,
        )
        self.callers = {name: context.socket(zmq.DEALER) for name in names[1:]}
        for name, caller in self.callers.items():
            caller.connect(self.server.endpoints[name])

    def answer(self, name, *body):
        """What is answered to a request; answers to earlier ones are passed over."""
        caller = self.callers[name]
        caller.send_multipart([b"", *body])
        end = time.monotonic() + 60.0
        while time.monotonic() < end:
            self.server.poll(0.01)
            while caller.poll(0):
                frames = caller.recv_multipart()
                if frames[1] == body[0]:
                    yield frames[2]


@pytest.fixture
def hal(tmp_path):
    context = zmq.Context()
    hal = Hal(context, tmp_path)
    yield hal
    hal.server.close()
    context.destroy(linger=0)


@pytest.mark.parametrize("endpoint", ["command", "safety"])
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(body=bodies)
def test_whatever_comes_in_the_next_request_is_answered(hal, endpoint, body):
    hal.callers[endpoint].send_multipart([b"", *body])
    for name in ("safety", "command"):
        hello = json.loads(next(hal.answer(name, b"hello", b"{}")))
        assert hello["service"] == "test-hal"
    reply = json.loads(next(hal.answer("safety", b"safety", b'{"op": "status"}')))
    assert reply["state"] in ("disarmed", "arming", "estop", "active", "hold", "damp")


@pytest.mark.parametrize(
    "text",
    [
        b'{"op": ' + b"[" * 30_000 + b"]" * 30_000 + b"}",
        b'{"op": ' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000 + b"}",
        b'{"op": ' + b"[" * 900 + b"]" * 900 + b"}",  # deep, and yet Python reads it
        b'{"op": "arm", "sent_ns": NaN}',
        b'{"op": "arm", "sent_ns": 1e999}',
        b'{"op": "arm", "sent_ns": ' + b"9" * 5000 + b"}",
        b"\xff\xfe",
        b"[]",
    ],
    ids=range(8),
)
def test_a_request_that_is_none_is_refused_with_the_form_it_should_have(hal, text):
    reply = json.loads(next(hal.answer("safety", b"safety", text)))
    assert not reply["ok"]
    assert reply["reason"].startswith("request is not")


@pytest.mark.parametrize("op", ["arm", "reset"])
def test_a_stamp_that_no_float_holds_is_refused(hal, op):
    text = b'{"op": "%s", "sent_ns": %s}' % (op.encode(), b"9" * 400)
    reply = json.loads(next(hal.answer("safety", b"safety", text)))
    assert reply["reason"] == f"{op} refused: its sent_ns is not a time in ns"
