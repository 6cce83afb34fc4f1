"""The checker passes a good HAL and fails each kind of bad one at the check made for it."""

import re
import time
from concurrent.futures import ThreadPoolExecutor, wait
from types import SimpleNamespace

import numpy as np
import pytest
from krabby_proto import (
    COLOUR,
    STATE,
    CommandStatus,
    EndpointError,
    HalServer,
    SafetyOutcome,
    WatchedPublisher,
    make_hello,
)
from krabby_proto import conformance as conformance_module
from krabby_proto.admission import Admission, CommandAdmission
from krabby_proto.codec import Message, decode
from krabby_proto.conformance import check_hal
from krabby_proto.jpeg import jpeg_size
from krabby_proto.testing import FakeHal

BUSY = {"state rate", "state order", "state age"}
"""What also fails when the host is too busy to run a fake HAL and its reader on time."""


@pytest.fixture
def quick(monkeypatch):
    """Watch the state for less long: the broken HALs here are broken all the time."""
    monkeypatch.setattr(conformance_module, "_WATCH_S", 0.2)
    monkeypatch.setattr(conformance_module, "_PATIENCE_S", 5.0)
    monkeypatch.setattr(conformance_module, "_ANSWER_S", 5.0)  # this host may be busy
    monkeypatch.setattr(conformance_module, "_LEASE_WAIT_S", 1.0)


def fake(context, kind=FakeHal, **options):
    return kind(context=context, **{"lease_s": 0.12, **options})


def failures(hal, context):
    with hal:
        results = check_hal(hal.endpoints, context=context)
    return {result.name: result.detail for result in results if not result.passed}


def test_a_good_hal_passes_every_check_on_every_transport(endpoints, context, quick):
    with FakeHal(endpoints, context=context, lease_s=0.12) as hal:
        for _ in range(3):  # a busy host may run the fake late once
            hal.operators.clear()
            seen = []
            results = check_hal(hal.endpoints, seen.append, context=context)
            if all(result.passed for result in results):
                break
        assert [(r.name, r.detail) for r in results if not r.passed] == []
        assert hal.applied == []
        assert hal.safety_state == 0
        # nothing but the e-stop and its clearing was ever asked of the robot
        assert [op for op, _ in hal.operators] == ["estop", "arm", "disarm", "reset"]
    assert seen == results
    assert all(result.tried and result.detail for result in results)
    assert len({result.name for result in results}) == len(results) >= 28


class Lenient(CommandAdmission):
    """Admits what the contract refuses for the reasons given."""

    ignored: frozenset[CommandStatus] = frozenset()

    def admit(self, body, now_ns, process_ns):
        verdict = super().admit(body, now_ns, process_ns)
        if verdict.status not in self.ignored:
            return verdict
        try:
            message = decode(body)
        except Exception:
            message = Message(None, np.zeros(18, np.float32))
        return Admission(CommandStatus.APPLIED, verdict.sequence, message)

    def is_stale(self, message, now_ns):
        if message.header is None or CommandStatus.REJECTED_STALE in self.ignored:
            return False
        return super().is_stale(message, now_ns)


def lenient_server(*ignored, **settings):
    def make(*args, **kwargs):
        server = HalServer(*args, **{**kwargs, **settings})
        server.admission = Lenient(ttl_s=0.025, lease_s=0.5, capture_ttl_s=0.1)
        server.admission.ignored = frozenset(ignored)
        server._apply = lambda request, message: server._answer(
            request, CommandStatus.NOT_ARMED, 0 if message.header is None else message.sequence
        )
        return server

    return make


@pytest.mark.parametrize(
    ("ignored", "names"),
    [
        (CommandStatus.REJECTED_LENGTH, {"wrong length"}),
        (CommandStatus.REJECTED_NONFINITE, {"NaN", "infinity"}),
        (CommandStatus.REJECTED_STALE, {"stale"}),
        (CommandStatus.REJECTED_FUTURE, {"future"}),
        (CommandStatus.REJECTED_ORDER, {"repeated sequence"}),
        (CommandStatus.REJECTED_CORRUPT, {"corrupt payload"}),
        (CommandStatus.REJECTED_SCHEMA, {"other schema"}),
        (
            CommandStatus.REJECTED_MALFORMED,
            {"wrong magic", "short header", "extra frame", "missing frame"},
        ),
        (CommandStatus.REJECTED_LEASE, {"second writer"}),
    ],
)
def test_a_hal_that_accepts_what_it_must_refuse_fails_that_check(context, quick, ignored, names):
    hal = fake(context, server=lenient_server(ignored))
    found = failures(hal, context)
    assert names <= found.keys() <= names | BUSY
    for detail in found.values():
        assert "expected" in detail


def test_a_hal_with_a_long_ttl_applies_stale_commands_and_fails(context, quick):
    found = failures(fake(context, ttl_s=5.0, capture_ttl_s=5.0), context)
    assert found["stale"] == "answer is not_armed, expected rejected_stale"
    assert found.keys() <= {"stale"} | BUSY


def test_a_lease_that_is_never_given_up_fails(context, quick):
    found = failures(fake(context, lease_s=1e6), context)
    assert found["second writer"] == "the lease was not given up after 1.0 s of silence"


class AppliesDisarmed(FakeHal):
    def on_command(self, message):
        self.applied.append(message)
        return self._outcome(CommandStatus.APPLIED, 1)


def test_a_hal_that_applies_commands_while_disarmed_fails_and_is_left_alone(context, quick):
    hal = fake(context, AppliesDisarmed)
    found = failures(hal, context)
    assert found["disarmed does not apply"] == "answer is applied, expected not_armed"
    assert "not run" in found["NaN"]
    assert len(hal.applied) == 1
    assert hal.applied[0].payload.tolist() == [0.0] * 18  # the measured position: no motion


def test_an_armed_hal_is_not_sent_a_single_command(context, quick):
    hal = fake(context, armed=True)
    found = failures(hal, context)
    assert (
        "is 'active': nothing was sent to it; stop its game loop, krabby sit, krabby disarm"
        in (found["disarmed"])
    )
    assert "not run, because of 'disarmed'" in found["e-stop latches"]
    assert sum(hal.server.stats.commands.values()) == 0
    assert hal.operators == []


def test_a_hal_in_use_is_left_to_its_writer(context, quick):
    hal = fake(context, lease_s=1e6)
    hal.server.admission.holder = 1
    hal.server.admission._lease_until_ns = 1 << 63
    found = failures(hal, context)
    assert "another writer holds the lease: stop the game loop" in found["disarmed does not apply"]


def test_a_hal_in_use_has_checks_that_are_skipped_and_none_that_failed(context, quick):
    with fake(context, armed=True) as hal:
        results = check_hal(hal.endpoints, context=context)
    names = [result.name for result in results]
    skipped = [result.name for result in results if result.skipped]
    assert skipped == names[names.index("disarmed") :]
    failed = {r.name for r in results if not (r.passed or r.skipped)}
    assert failed <= BUSY
    assert not any(result.passed for result in results if result.skipped)


class NoLatch(FakeHal):
    """Forgets the e-stop when asked to arm."""

    def on_safety(self, op, by):
        if op == "arm":
            self.safety_state = 0
        return super().on_safety(op, by)


class WrongReset(FakeHal):
    def on_safety(self, op, by):
        outcome = super().on_safety(op, by)
        return outcome._replace(state="active") if op == "reset" else outcome


class ClearedByDisarm(FakeHal):
    def on_safety(self, op, by):
        return super().on_safety("reset" if op == "disarm" else op, by)


class EstopIgnored(FakeHal):
    def on_safety(self, op, by):
        return super().on_safety("status" if op == "estop" else op, by)


@pytest.mark.parametrize(
    ("kind", "name", "detail"),
    [
        (NoLatch, "e-stop latches", "it was disarmed again"),
        (ClearedByDisarm, "e-stop latches", "disarm cleared the e-stop"),
        (EstopIgnored, "e-stop latches", "after estop the state is 'disarmed'"),
        (WrongReset, "reset clears", "after reset the state is 'active'"),
    ],
)
def test_an_estop_that_does_not_hold_fails(context, quick, kind, name, detail):
    hal = fake(context, kind)
    found = failures(hal, context)
    assert detail in found[name]
    assert hal.safety_state == 0


class Obliging(HalServer):
    def _operator(self, body):
        return SafetyOutcome(True, "disarmed")


def test_a_hal_that_says_yes_to_everything_fails(context, quick):
    found = failures(fake(context, server=Obliging), context)
    assert {"unknown op", "broken request", "e-stop latches"} <= found.keys()


def test_a_slow_state_stream_fails(context, quick):
    found = failures(fake(context, rate_hz=60.0), context)
    assert found.keys() <= BUSY
    assert "expected 100 Hz or more" in found["state rate"]


class OldState(FakeHal):
    def publish(self):
        return self.server.publish_state(self.state, self._clock_ns() - 40_000_000)


class TomorrowsState(FakeHal):
    def publish(self):
        return self.server.publish_state(self.state, self._clock_ns() + 40_000_000)


class FrozenCapture(FakeHal):
    def publish(self):
        now = self._clock_ns()
        return self.server.publish_state(self.state, now - now % 20_000_000)


class RepeatsItself(FakeHal):
    def publish(self):
        self.count = getattr(self, "count", 0) + 1
        if self.count % 5 == 0:
            self.server._publishers["state"].sequence -= 1
        return super().publish()


class ChangesInstance(FakeHal):
    def publish(self):
        publisher = self.server._publishers["state"]
        publisher.instance_id += publisher.sequence % 5 == 0
        return super().publish()


class SkipsSequences(FakeHal):
    def publish(self):
        self.server._publishers["state"].sequence += 1
        return super().publish()


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (OldState, {"state age"}),
        (TomorrowsState, {"state age", "state order"}),
        (FrozenCapture, {"state order"}),
        (RepeatsItself, {"state order"}),
        (ChangesInstance, {"state order"}),
        (SkipsSequences, {"state order"}),
    ],
)
def test_states_with_wrong_times_or_numbers_fail(context, quick, kind, names):
    found = failures(fake(context, kind), context)
    assert names <= found.keys() <= names | BUSY


@pytest.mark.parametrize(
    ("field", "value", "detail"),
    [
        ("base_quat_w", 2.0, "quaternion norm"),
        ("joint_vel", np.nan, "NaN"),
        ("foot_contact", 1.5, "foot_contact"),
    ],
)
def test_states_that_are_no_measurements_fail(context, quick, field, value, detail):
    hal = fake(context)
    hal.state[STATE.slices[field]] = value
    assert detail in failures(hal, context)["state values"]


def test_another_schema_fails(context, quick):
    hello = {**make_hello(service="old"), "schema_hash": "0" * 16}
    found = failures(fake(context, hello=hello), context)
    assert {"schema"} <= found.keys() <= {"schema"} | BUSY


def test_an_incomplete_hello_fails(context, quick):
    hello = make_hello(service="old")
    del hello["robot"]
    found = failures(fake(context, hello=hello), context)
    assert found["hello"] == "hello lacks robot"


def test_a_hal_in_lock_step_is_asked_to_run_in_real_time(context, quick):
    hello = make_hello(service="sim", clock="simulated")
    found = failures(fake(context, hello=hello), context)
    assert "run it in real time" in found["real time"]
    assert "not run" in found["state rate"]


def test_a_silent_state_stream_blocks_what_needs_it(context, quick, monkeypatch):
    monkeypatch.setattr(conformance_module, "_PATIENCE_S", 2.0)
    hal = fake(context)
    hal.publishing = False
    found = failures(hal, context)
    assert "no state within 2 s" in found["state stream"]
    assert "not run" in found["NaN"]


def test_an_absent_hal_is_said_once(tmp_path, context, quick, monkeypatch):
    monkeypatch.setattr(conformance_module, "_PATIENCE_S", 0.5)
    endpoints = {name: f"ipc://{tmp_path}/{name}" for name in ("state", "command", "safety")}
    start = time.monotonic()
    results = check_hal(endpoints, context=context)
    assert time.monotonic() - start < 20.0
    assert not any(result.passed for result in results)
    assert "no answer from ipc://" in results[0].detail
    assert all("not run" in result.detail for result in results[1:])


def test_missing_endpoints_are_named(context):
    with pytest.raises(EndpointError, match="no endpoint for command, safety"):
        check_hal({"state": "inproc://x"}, context=context)


def jpeg(width, height):
    """Begin, a comment, the size and the end of a JPEG file."""
    size = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return b"\xff\xd8\xff\xfe\0\4hi\xff\xc0\0\x0b\x08" + size + b"\1\1\x11\0\xff\xd9"


def test_the_size_of_a_jpeg_is_read_from_its_frame():
    assert jpeg_size(jpeg(424, 240)) == (424, 240)
    whole = jpeg(424, 240)
    for broken in (b"", whole[:-1], b"x" + whole, b"\xff\xd8\xff\xd9", b"\xff\xd8" * 9):
        assert jpeg_size(broken) is None


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (jpeg(424, 240), None),
        (jpeg(212, 120), "an image is (212, 120), announced was (424, 240)"),
        (b"GIF89a", "an image is no JPEG, announced was (424, 240)"),
        (None, "announced, but none came within 0.2 s"),
    ],
)
def test_colour_images_are_as_the_hello_announces_them(
    image, words, tmp_path, context, monkeypatch
):
    monkeypatch.setattr(conformance_module, "_IMAGE_S", 20.0 if image else 0.2)
    announced = {"colour": {"width": 424, "height": 240, "rate_hz": 5.0}}
    endpoint = f"ipc://{tmp_path}/colour"
    hello = make_hello(service="fake", extra=announced)
    with WatchedPublisher(endpoint, COLOUR, context=context) as publisher:
        visit = SimpleNamespace(hello=hello, endpoints={"colour": endpoint}, context=context)
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(conformance_module._colour, visit)
            while image is not None and not found.done():
                if publisher.wait_for_reader(0.05):
                    publisher.publish(image, capture_ns=1)
                    wait([found], 0.02)
            if words is None:
                assert found.result() == f"JPEG of 424 x 240, {len(image)} bytes"
            else:
                with pytest.raises(conformance_module._Failed, match=re.escape(words)):
                    found.result()


def test_colour_images_that_are_not_announced_are_not_asked_for():
    visit = SimpleNamespace(hello=make_hello(service="fake"), endpoints={}, context=None)
    assert conformance_module._colour(visit) == "this HAL announces none"
