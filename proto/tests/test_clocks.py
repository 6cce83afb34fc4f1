"""Clocks of peers: bounds, with numbers worked by hand, and over sockets."""

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from krabby_proto import (
    CommandOutcome,
    CommandStatus,
    ControlClient,
    ControlServer,
    HalClient,
    HalServer,
    PeerClock,
    Requester,
    Router,
    SafetyOutcome,
    clocks_differ,
    make_hello,
    untimely,
)

MS = 1_000_000
S = 1_000_000_000


def test_an_answer_bounds_the_offset_by_the_round_trip():
    clock = PeerClock()
    # sent at 100 s, answered at 5100.004 s there, received at 100.010 s
    clock.note(100 * S, 5100 * S + 4 * MS, 100 * S + 10 * MS)
    assert not clock.shared
    assert clock.offset_s == pytest.approx(4999.999)  # 4999.994 to 5000.004
    assert clock.error_s == pytest.approx(0.005, rel=0.01)
    # and 10 us more, by which the clocks may have drifted apart meanwhile
    now = 100 * S + 10 * MS
    assert clock.earliest(now) == pytest.approx(5100 * S + 4 * MS - 10_000, abs=5)
    assert clock.latest(now) == pytest.approx(5100 * S + 14 * MS + 10_000, abs=5)


def test_a_quicker_answer_narrows_the_bounds_and_a_slower_one_does_not_widen_them():
    clock = PeerClock()
    clock.note(0, 5000 * S + 5 * MS, 10 * MS)  # 4999.995 to 5000.005
    clock.note(10 * MS, 5000 * S + 11 * MS, 12 * MS)  # 4999.999 to 5000.001
    assert clock.error_s == pytest.approx(0.001, rel=0.01)
    clock.note(20 * MS, 5000 * S + 60 * MS, 100 * MS)  # 4999.960 to 5000.040
    assert clock.error_s == pytest.approx(0.001, rel=0.1)
    assert clock.steps == 0


def test_the_bounds_widen_by_a_millisecond_a_second_as_two_clocks_may_drift():
    clock = PeerClock()
    clock.note(0, 5000 * S, 0)
    assert clock.latest(10 * S) == pytest.approx(5010 * S + 10 * MS, abs=5)
    assert clock.earliest(10 * S) == pytest.approx(5010 * S - 10 * MS, abs=5)


def test_an_answer_that_contradicts_the_bounds_is_of_another_clock():
    clock = PeerClock()
    clock.note(0, 5000 * S, 2 * MS)
    clock.note(S, 70 * S, S + 2 * MS)  # the peer has booted again
    assert clock.steps == 1
    assert clock.offset_s == pytest.approx(69.0, abs=0.0011)


def test_a_clock_whose_offset_may_be_zero_is_this_hosts_own():
    clock = PeerClock()
    assert clock.shared
    assert not clock.known
    clock.note(S, S + MS // 2, S + MS)
    assert clock.known
    assert clock.shared
    assert clock.earliest(7 * S) == clock.latest(7 * S) == 7 * S
    assert clock.offset_s == clock.error_s == 0.0


@given(
    offset_ns=st.integers(-(10**14), 10**14),
    drift=st.floats(-900e-6, 900e-6),
    answers=st.lists(
        st.tuples(st.integers(0, 20 * S), st.integers(0, 200 * MS), st.integers(0, 200 * MS)),
        min_size=1,
        max_size=20,
    ),
    later_ns=st.integers(0, 60 * S),
)
def test_the_peers_clock_always_lies_within_the_bounds(offset_ns, drift, answers, later_ns):
    def peer(local_ns):
        return local_ns + offset_ns + round(local_ns * drift)

    clock, now = PeerClock(), 0
    for pause, there, back in answers:
        sent = now + pause
        now = sent + there + back
        clock.note(sent, peer(sent + there), now)
        if not clock.shared:
            assert clock.earliest(now) - 2 <= peer(now) <= clock.latest(now) + 2
    now += later_ns
    if not clock.shared:
        assert clock.earliest(now) - 2 <= peer(now) <= clock.latest(now) + 2
    assert clock.steps == 0


def test_an_absurd_age_is_named_and_a_late_message_is_not():
    assert clocks_differ(5000.2).startswith("clocks differ by 5000 s")
    assert clocks_differ(-3600.0).startswith("clocks differ by 3600 s")
    assert clocks_differ(9.9) == ""


@pytest.mark.parametrize(
    ("sent_ns", "why"),
    [
        (100 * S - 900 * MS, ""),
        (100.0 * S - 900.0 * MS, ""),  # of a client whose numbers are floats
        (100 * S - 1100 * MS, "over 1 s"),
        (100.0 * S - 1100.0 * MS, "over 1 s"),
        (100 * S + 2 * MS, "ahead"),
        (1.0, "clocks differ by 100 s"),
        (True, "clocks differ by 100 s"),
        (-1, "not a time"),
        (1e308, "not a time"),
        (10**400, "not a time"),  # more than a float holds
        (-(10**400), "not a time"),
        (None, ""),
        ("soon", ""),
    ],
)
def test_a_request_is_judged_by_any_number_it_is_stamped_with(sent_ns, why):
    assert why.replace("over", "more than") in untimely("arm", sent_ns, 100 * S)
    assert bool(untimely("arm", sent_ns, 100 * S)) == bool(why)


def test_an_offset_of_a_remote_peer_that_may_be_zero_is_not_zero():
    # 40 ms each way to a host whose clock is 20 ms behind: -60 to +20 ms
    sent, there, received = 100 * S, 100 * S + 20 * MS, 100 * S + 80 * MS
    clock, local = PeerClock(remote=True), PeerClock()
    for each in (clock, local):
        each.note(sent, there, received)
    assert clock.error_s == pytest.approx(0.040, rel=0.01)
    # A stamp of now counts as 40 ms old there at once, and as 80 ms when it arrives: never less
    # than the 40 ms that it is.
    arrives = received + 40 * MS - 20 * MS
    assert arrives - clock.earliest(received) == pytest.approx(80 * MS, abs=100_000)
    assert clock.latest(received) - received == pytest.approx(20 * MS, abs=100_000)
    assert local.earliest(received) == received


# --- over sockets ---------------------------------------------------------------------------


TARGET = np.zeros(18, np.float32)


def far_ns():
    """CLOCK_MONOTONIC of a host that booted 5000 s before this one."""
    return time.monotonic_ns() + 5000 * S


class Handler:
    def on_command(self, message):
        return CommandOutcome(CommandStatus.APPLIED, safety_state=2, applied_ns=far_ns())

    def on_safety(self, op, by):
        return SafetyOutcome(True, "active", (), "")


class Hal:
    """A HAL on that host, served by a thread or by the test."""

    def __init__(self, endpoints, context):
        self.server = HalServer(
            endpoints, hello=make_hello(service="far"), handler=Handler(), clock_ns=far_ns,
            context=context,
        )  # fmt: skip
        self._stop = threading.Event()
        self._thread = None

    def start(self):
        self._stop.clear()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self):
        while not self._stop.is_set():
            self.server.poll(0.01)

    def stop(self):
        self._stop.set()
        self._thread.join()

    def close(self):
        if self._thread is not None and self._thread.is_alive():
            self.stop()
        self.server.close()


@pytest.fixture
def hal(endpoints, context):
    hal = Hal(endpoints, context)
    hal.start()
    yield hal
    hal.close()


@pytest.fixture
def client(hal, context):
    with HalClient(hal.server.endpoints, context=context) as client:
        yield client


def test_commands_to_a_hal_with_another_clock_are_translated_and_untranslated_ones_refused(
    hal, client
):
    client.hello(60.0)
    assert client.clock.offset_s == pytest.approx(5000.0, abs=client.clock.error_s + 1e-6)
    untranslated = client.send_command(
        TARGET, capture_ns=far_ns(), publish_ns=time.monotonic_ns(), deadline_s=60.0
    )
    assert untranslated.status == CommandStatus.REJECTED_STALE
    statuses = []
    while len(statuses) < 40 or (statuses.count("applied") <= 10 and len(statuses) < 1000):
        reply = client.send_command(TARGET, capture_ns=far_ns(), deadline_s=60.0)
        statuses.append("" if reply is None else reply.status_name)
    assert "rejected_future" not in statuses  # translated with the bound that makes it older
    assert statuses.count("applied") > 10  # the others were over 25 ms on their way: a busy host
    assert client.clock.steps == 0


def test_an_operators_request_to_a_hal_with_another_clock_is_translated(hal, client):
    assert client.safety("arm", "test", timeout_s=60.0)["ok"]
    assert not client.clock.shared


def age(clock, seconds):
    """As if the last answer had come so much earlier."""
    low, high, noted_ns = clock._bracket
    clock._bracket = low, high, noted_ns - round(seconds * S)


def test_an_operators_request_long_after_the_hello_is_not_stale(hal, client):
    """The bounds are 2 s wide after 1000 s without an answer."""
    client.hello(60.0)
    age(client.clock, 2000.0)
    assert client.safety("arm", "test", timeout_s=60.0)["reason"] == ""


def test_a_clock_is_vague_before_the_first_answer_and_long_after_the_last():
    clock, local = PeerClock(), PeerClock()
    assert clock.is_vague(0, 0.01)
    clock.note(0, 5000 * S + 2 * MS, 4 * MS)  # within 2 ms, and 1 ms more after each second
    local.note(0, 2 * MS, 4 * MS)
    assert not clock.is_vague(7 * S, 0.01)
    assert clock.is_vague(9 * S, 0.01)
    assert not local.is_vague(9000 * S, 0.01)


def test_a_request_to_stand_is_translated_to_the_clock_of_the_game_loop(
    endpoints, context, monkeypatch
):
    server = ControlServer(endpoints["control"], hello=make_hello(service="loop"), context=context)
    monkeypatch.setattr(server._hello, "_clock_ns", far_ns)
    done = threading.Event()

    def serve():
        while not done.is_set():
            server.poll(0.01, lambda asked: {"late": untimely("stand", asked["sent_ns"], far_ns())})

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with ControlClient(server.endpoint, context=context) as loop:
            assert loop.request("stand", timeout_s=60.0)["late"] == ""
            age(loop.clock, 2000.0)
            assert loop.request("stand", timeout_s=60.0)["late"] == ""
    finally:
        done.set()
        thread.join()
        server.close()


def test_a_later_hello_does_not_wait_for_connections_that_are_lost(
    hal, client, context, monkeypatch
):
    """The game loop asks again within its period, and is ended when it does not beat for 0.8 s."""
    client.hello(60.0)
    monkeypatch.setattr("krabby_proto.client._CONNECT_S", 60.0)
    for number, link in enumerate(client._links[1:], start=1):
        link.close()
        client._links[number] = Requester("inproc://unbound", name="command", context=context)
    began_s = time.monotonic()
    client.hello(60.0)
    assert time.monotonic() - began_s < 50.0


def test_an_answer_that_comes_after_the_deadline_is_returned_by_a_later_call(hal, client):
    client.hello(60.0)
    hal.stop()  # the network takes longer than the deadline from here on

    def send():
        return client.send_command(TARGET, capture_ns=far_ns(), deadline_s=0.001)

    def served(count):
        end = time.monotonic() + 60.0
        while sum(hal.server.stats.commands.values()) < count and time.monotonic() < end:
            hal.server.poll(0.01)
        time.sleep(0.02)  # for the answer's way back

    assert send() is None
    served(1)
    reply = None
    while reply is None and client.sequence < 1000:  # further connections come up meanwhile
        reply = send()
    assert 1 <= reply.request_sequence < client.sequence
    assert client.timeouts == client.sequence


def test_an_answer_is_not_waited_for_after_a_request_that_could_not_be_sent(
    endpoints, context, eventually
):
    server = Router(endpoints["control"], name="control", context=context)
    with Requester(server.endpoint, name="control", context=context) as requester:
        assert requester.wait_connected(60.0)
        assert requester.request([b"control", b"{}"], 0.001) is None
        server.close()  # for longer than the connection lasts
        eventually(lambda: not requester.wait_connected(0.01))
        assert requester.request([b"control", b"{}"], 0.001) is None
        assert requester.late() is None
