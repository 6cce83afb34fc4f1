import contextlib
import socket as unix
import struct
import threading
import time

import numpy as np
import pytest
import zmq
from krabby_proto import (
    COLOUR,
    FLAG_LOCKSTEP,
    FLAG_OPERATOR,
    FLAG_RESET,
    NAV,
    STATE,
    EndpointError,
    EndpointInUse,
    HalClient,
    LatestSubscriber,
    Publisher,
    RequestTimeout,
    WatchedPublisher,
    WrongFrameCount,
    encode,
    wait_any,
)
from krabby_proto.requests import Requester, Router
from krabby_proto.sockets import wait_readable

ZEROS = np.zeros(STATE.size)


def join(publisher, subscriber, eventually):
    """Publish until the subscriber is in; it then has seen everything that was sent."""

    def attempt():
        publisher.publish(np.zeros(publisher.stream.size), capture_ns=1)
        return subscriber.wait(0.01)

    eventually(attempt)
    eventually(lambda: subscriber.latest().sequence == publisher.sequence)


@pytest.fixture
def link(endpoints, context, eventually):
    with (
        Publisher(endpoints["state"], STATE, context=context) as publisher,
        LatestSubscriber(publisher.endpoint, STATE, context=context) as subscriber,
    ):
        join(publisher, subscriber, eventually)
        yield publisher, subscriber


@pytest.fixture
def two_writers(context, eventually):
    """A subscriber that binds, and a maker of publishers that connect to it."""
    publishers = []

    def make(stream, subscriber, instance_id):
        publisher = Publisher(
            subscriber.endpoint, stream, bind=False, context=context, instance_id=instance_id
        )
        publishers.append(publisher)
        return publisher

    yield make
    for publisher in publishers:
        publisher.close()


def test_latest_is_the_newest_and_counts_what_it_skipped(link, eventually):
    publisher, subscriber = link
    discarded, received = subscriber.discarded, subscriber.received
    for value in range(10):
        last = publisher.publish(ZEROS + value, capture_ns=value)
    eventually(lambda: subscriber.latest().sequence == last)
    assert subscriber.latest().payload.tolist() == [9.0] * 70
    assert subscriber.received - received == 10
    assert subscriber.discarded - discarded <= 9
    assert (subscriber.gaps, subscriber.late, subscriber.invalid) == (0, 0, 0)


def test_latest_repeats_what_take_gives_once(link):
    publisher, subscriber = link
    publisher.publish(ZEROS, capture_ns=7)
    message = subscriber.wait(60.0)
    assert message.capture_ns == 7
    assert subscriber.take() is None
    assert subscriber.latest() is message


def test_a_reset_that_is_overtaken_is_told_by_what_overtakes_it_and_once(link, eventually):
    publisher, subscriber = link
    for first in range(2, 200, 2):
        publisher.publish(ZEROS, capture_ns=first, flags=FLAG_RESET)
        publisher.publish(ZEROS, capture_ns=first + 1)
        seen = {}

        def newest(seen=seen):
            message = subscriber.latest()
            if message is not None and message.capture_ns >= first:  # noqa: B023
                seen[message.capture_ns] = bool(message.flags & FLAG_RESET)
            return first + 1 in seen  # noqa: B023

        eventually(newest)
        # Both came in one go, or one after the other: the reset is told once, by the first seen.
        assert list(seen.values()) in ([True], [True, False])
        if list(seen.values()) == [True]:
            break
    else:
        pytest.fail("no message ever overtook another")
    publisher.publish(ZEROS, capture_ns=1000)
    assert not subscriber.wait(60.0).flags & FLAG_RESET


def test_drain_gives_every_message_in_order(link, eventually):
    publisher, subscriber = link
    first = publisher.sequence + 1
    for _ in range(8):
        publisher.publish(ZEROS, capture_ns=1)
    got = []
    eventually(lambda: got.extend(subscriber.drain()) or len(got) == 8)
    assert [message.sequence for message in got] == list(range(first, first + 8))


def test_wait_gives_up_in_time(link):
    _, subscriber = link
    waits = [_duration(lambda: subscriber.wait(0.02)) for _ in range(5)]
    assert subscriber.wait(0.02) is None
    assert 0.02 <= min(waits) < 0.2


def test_nothing_was_received_yet(endpoints, context):
    with (
        Publisher(endpoints["state"], STATE, context=context) as publisher,
        LatestSubscriber(publisher.endpoint, STATE, context=context) as subscriber,
    ):
        assert subscriber.latest() is None
        assert subscriber.drain() == []


def test_missing_messages_are_counted(link):
    publisher, subscriber = link
    publisher.sequence += 3
    publisher.publish(ZEROS, capture_ns=1)
    assert subscriber.wait(60.0).sequence == publisher.sequence
    assert subscriber.gaps == 3


@pytest.fixture
def after_a_stall(link):
    """A link whose reader was in step, then takes every call for the first after a stall."""
    publisher, subscriber = link
    publisher.publish(ZEROS, capture_ns=1)
    assert subscriber.wait(60.0) is not None
    subscriber._stall_ns = -1
    subscriber._in_step = True
    return publisher, subscriber


def assert_newest_is_read_behind_an_old_one(publisher, subscriber):
    a_second_ago = time.monotonic_ns() - 1_000_000_000
    publisher.publish(ZEROS, capture_ns=1, publish_ns=a_second_ago)
    fresh = threading.Timer(0.01, lambda: publisher.publish(ZEROS, capture_ns=2))
    fresh.start()
    assert subscriber.latest().capture_ns == 2
    fresh.join()


def test_a_reader_that_was_stalled_waits_for_the_end_of_the_backlog(after_a_stall, monkeypatch):
    monkeypatch.setattr("krabby_proto.sockets._SETTLE_S", 5.0)  # this host may be busy
    publisher, subscriber = after_a_stall
    assert_newest_is_read_behind_an_old_one(publisher, subscriber)


def test_a_reader_that_was_stopped_while_it_read_waits_for_the_end_of_the_backlog(
    link, monkeypatch
):
    monkeypatch.setattr("krabby_proto.sockets._SETTLE_S", 5.0)  # this host may be busy
    publisher, subscriber = link
    publisher.publish(ZEROS, capture_ns=1)
    assert subscriber.wait(60.0) is not None
    subscriber._in_step = True
    receive_all = subscriber._receive_all

    def stopped_for_a_second(keep, limit=None):
        receive_all(keep, limit)
        subscriber._drained_ns -= 1_000_000_000

    monkeypatch.setattr(subscriber, "_receive_all", stopped_for_a_second)
    assert_newest_is_read_behind_an_old_one(publisher, subscriber)


def test_a_reader_that_was_stalled_waits_for_a_dead_publisher_only_once(after_a_stall):
    _, subscriber = after_a_stall
    subscriber._newest_ns -= 1_000_000_000  # when the last message came
    assert _duration(subscriber.latest) >= 0.04
    assert min(_duration(subscriber.latest) for _ in range(10)) < 0.02


def test_a_reader_in_lock_step_waits_for_no_backlog(after_a_stall):
    publisher, subscriber = after_a_stall
    publisher.publish(ZEROS, capture_ns=1, publish_ns=5, flags=FLAG_LOCKSTEP)
    while subscriber.latest().header.publish_ns != 5:
        time.sleep(0.001)
    assert not subscriber._in_step


@pytest.mark.parametrize("transport", ["ipc", "tcp"], indirect=True)  # inproc has no reconnect
def test_reader_follows_a_restarted_publisher(endpoints, context, eventually):
    with Publisher(endpoints["state"], STATE, context=context) as first:
        endpoint = first.endpoint
        subscriber = LatestSubscriber(endpoint, STATE, context=context)
        join(first, subscriber, eventually)
    with Publisher(endpoint, STATE, context=context) as second, subscriber:
        join(second, subscriber, eventually)
        assert subscriber.latest().header.instance_id == second.instance_id
        assert (subscriber.restarts, subscriber.revivals) == (1, 0)


@pytest.mark.parametrize("transport", ["ipc", "tcp"], indirect=True)
def test_however_quickly_it_connected_a_reader_knows_it(endpoints, context, eventually):
    with Publisher(endpoints["state"], STATE, context=context) as publisher:
        for _ in range(30):
            with LatestSubscriber(publisher.endpoint, STATE, context=context) as subscriber:
                eventually(lambda s=subscriber: s.connected)


def test_late_messages_of_a_replaced_instance_are_dropped(context, two_writers, eventually):
    with LatestSubscriber("inproc://state", STATE, bind=True, context=context) as subscriber:
        old = two_writers(STATE, subscriber, 1)
        new = two_writers(STATE, subscriber, 2)
        old.sequence = 100
        join(old, subscriber, eventually)
        join(new, subscriber, eventually)  # its sequence starts again at 1
        newest = subscriber.latest()
        assert (newest.header.instance_id, subscriber.restarts) == (2, 1)
        old.publish(ZEROS, capture_ns=1)
        eventually(lambda: subscriber.take() is None and subscriber.late == 1)
        assert subscriber.latest() is newest


def test_a_repeated_sequence_is_dropped(link, eventually):
    publisher, subscriber = link
    newest = subscriber.latest()
    publisher.sequence -= 1
    publisher.publish(ZEROS + 1.0, capture_ns=2)
    eventually(lambda: subscriber.take() is None and subscriber.late == 1)
    assert subscriber.latest() is newest


def test_several_nav_writers_are_followed_side_by_side(context, two_writers, eventually):
    with LatestSubscriber("inproc://nav", NAV, bind=True, context=context) as subscriber:
        mission = two_writers(NAV, subscriber, 1)
        teleop = two_writers(NAV, subscriber, 2)
        join(mission, subscriber, eventually)
        join(teleop, subscriber, eventually)
        for writer in (mission, teleop, mission):
            writer.publish([0, 0, 0], capture_ns=1)
        got = []
        eventually(lambda: got.extend(subscriber.drain()) or len(got) == 3)
        assert sorted(message.header.instance_id for message in got) == [1, 1, 2]
        assert (subscriber.late, subscriber.restarts) == (0, 0)


def test_each_writers_newest_is_given_however_many_others_spoke_since(
    context, two_writers, eventually
):
    with LatestSubscriber("inproc://nav", NAV, bind=True, context=context) as subscriber:
        mission, teleop, both = (two_writers(NAV, subscriber, n) for n in (1, 2, 3))
        for writer in (mission, teleop, both):
            join(writer, subscriber, eventually)
        discarded = subscriber.discarded
        teleop.publish([1, 0, 0], capture_ns=1, flags=FLAG_OPERATOR)
        both.publish([2, 0, 0], capture_ns=2, flags=FLAG_OPERATOR)
        both.publish([3, 0, 0], capture_ns=3)
        mission.publish([4, 0, 0], capture_ns=4)
        mission.publish([5, 0, 0], capture_ns=5)
        got = []
        eventually(lambda: got.extend(subscriber.newest_by_writer()) or len(got) >= 4)
        assert sorted(message.payload[0] for message in got) == [1, 2, 3, 5]
        assert subscriber.discarded - discarded == 1
        assert subscriber.newest_by_writer() == []


def test_a_flood_delays_no_other_writer_and_costs_a_bounded_number_of_messages(
    context, two_writers, eventually
):
    with LatestSubscriber("inproc://nav", NAV, bind=True, context=context) as subscriber:
        teleop = two_writers(NAV, subscriber, 2)
        join(teleop, subscriber, eventually)
        with context.socket(zmq.PUB) as flood:
            flood.setsockopt(zmq.SNDHWM, 0)  # within a process: no limit at all, nothing is lost
            flood.connect(subscriber.endpoint)
            frames = [
                encode(NAV, [9, 0, 0], instance_id=1, sequence=n, capture_ns=n, publish_ns=n)
                for n in range(1, 20_101)
            ]
            eventually(lambda: flood.send_multipart(frames.pop(0)) or subscriber.wait(0.01))
            assert len(frames) > 20_000
            for each in frames:
                flood.send_multipart(each)
            before = subscriber.received
            teleop.publish([0, 0, 0], capture_ns=1, flags=FLAG_OPERATOR)
            got = subscriber.newest_by_writer()
            assert {message.header.instance_id for message in got} == {1, 2}
            assert subscriber.received - before == 64
            teleop.publish([0, 0, 0], capture_ns=2, flags=FLAG_OPERATOR)
            assert [m.capture_ns for m in subscriber.newest_by_writer() if m.flags] == [2]


@pytest.mark.parametrize("sequence", [1 << 63, (1 << 64) - 1])
def test_a_sequence_out_of_range_is_heard_and_its_writer_still_is_afterwards(
    context, two_writers, eventually, sequence
):
    with LatestSubscriber("inproc://nav", NAV, bind=True, context=context) as subscriber:
        writer = two_writers(NAV, subscriber, 1)
        join(writer, subscriber, eventually)
        honest = writer.sequence
        for vx in (1, 2):
            writer.sequence = sequence - 1
            writer.publish([vx, 0, 0], capture_ns=1)
            assert [m.payload[0] for m in subscriber.newest_by_writer()] == [vx]
        writer.sequence = honest + 2
        writer.publish([3, 0, 0], capture_ns=2)
        assert [m.payload[0] for m in subscriber.newest_by_writer()] == [3]
        assert (subscriber.gaps, subscriber.late) == (0, 0)
        other = two_writers(NAV, subscriber, 2)
        other.sequence = sequence - 1
        eventually(lambda: other.publish([4, 0, 0], capture_ns=1) or subscriber.newest_by_writer())


def test_within_one_read_a_person_outranks_a_mission(context, two_writers, eventually):
    with LatestSubscriber("inproc://nav", NAV, bind=True, context=context) as subscriber:
        writer = two_writers(NAV, subscriber, 1)
        join(writer, subscriber, eventually)
        writer.publish([1, 0, 0], capture_ns=1, flags=FLAG_OPERATOR)
        writer.publish([2, 0, 0], capture_ns=2)
        assert subscriber.take().payload.tolist() == [1, 0, 0]
        writer.publish([3, 0, 0], capture_ns=3)
        assert subscriber.take().payload.tolist() == [3, 0, 0]


def test_a_stream_of_new_nav_writers_does_not_grow_without_bound(context, two_writers, eventually):
    with LatestSubscriber("inproc://nav", NAV, bind=True, context=context) as subscriber:
        writer = two_writers(NAV, subscriber, 1)
        join(writer, subscriber, eventually)
        for writer.instance_id in range(2, 40):
            join(writer, subscriber, eventually)
            assert subscriber.latest().header.instance_id == writer.instance_id
        assert len(subscriber._sequences) == 16


@pytest.mark.parametrize(
    "rubbish",
    [
        [b"state"],
        [b"state", b""],
        [b"state", b"x" * 48, b""],
        [b"state"] * 40,
        [b"state", b"\0" * 500, b"\0" * 900],
    ],
)
def test_rubbish_is_counted_and_the_reader_goes_on(transport, endpoints, context, rubbish):
    with (
        context.socket(zmq.PUB) as raw,
        Publisher(f"inproc://{transport}", STATE, context=context) as publisher,
    ):
        raw.bind(endpoints["state"])
        endpoint = raw.getsockopt(zmq.LAST_ENDPOINT).decode()
        with LatestSubscriber(endpoint, STATE, context=context) as subscriber:
            while not subscriber.invalid:
                raw.send_multipart(rubbish)
                subscriber.wait(0.01)
            assert subscriber.last_error is not None
            assert subscriber.latest() is None
            valid = LatestSubscriber(publisher.endpoint, STATE, context=context)
            with valid:
                while valid.wait(0.01) is None:
                    publisher.publish(ZEROS, capture_ns=1)
                raw.send_multipart(valid.latest().frames())
            assert subscriber.wait(60.0).payload.tolist() == ZEROS.tolist()
    if len(rubbish) != 3:
        assert isinstance(subscriber.last_error, WrongFrameCount)


@pytest.fixture
def quick_revival(monkeypatch):
    """Look every 20 ms, not every second, whether a link is dead."""
    monkeypatch.setattr("krabby_proto.endpoint.REVIVE_S", 0.02)
    monkeypatch.setattr("krabby_proto.sockets.REVIVE_S", 0.02)
    monkeypatch.setattr("krabby_proto.requests.REVIVE_S", 0.02)


def test_an_oversized_message_costs_the_connection_not_the_stream(
    context, eventually, quick_revival
):
    with context.socket(zmq.PUB) as raw:
        raw.bind("tcp://127.0.0.1:*")
        endpoint = raw.getsockopt(zmq.LAST_ENDPOINT).decode()
        with LatestSubscriber(endpoint, STATE, context=context) as subscriber:

            def another_arrives():
                before = subscriber.invalid
                raw.send_multipart([b"state"])
                subscriber.wait(0.01)
                return subscriber.invalid > before

            eventually(another_arrives)
            raw.send_multipart([b"state", bytes(48), bytes(1 << 20)])
            eventually(lambda: not subscriber.connected)
            eventually(another_arrives)
            assert subscriber.revivals >= 1  # more where the host is late
            assert isinstance(subscriber.last_error, WrongFrameCount)  # never the large one


def test_a_look_between_a_lost_connection_and_the_next_attempt_is_no_dead_link(
    context, quick_revival
):
    def told(event):
        says.send_multipart([struct.pack("=Hi", event, 0), b""])
        subscriber._revive_at = 0.0
        subscriber.take()
        return subscriber.revivals

    with (
        Publisher("tcp://127.0.0.1:*", STATE, context=context) as publisher,
        LatestSubscriber(publisher.endpoint, STATE, context=context) as subscriber,
        context.socket(zmq.PAIR) as says,
        context.socket(zmq.PAIR) as hears,
    ):
        says.bind("inproc://told")
        hears.connect("inproc://told")
        subscriber.socket.disable_monitor()
        subscriber._monitor.close(linger=0)
        subscriber._monitor = hears
        assert told(zmq.EVENT_DISCONNECTED) == 0
        assert told(zmq.EVENT_CONNECT_RETRIED) == 0
        assert told(zmq.EVENT_DISCONNECTED) == 0
        assert told(zmq.EVENT_DISCONNECTED) == 1  # libzmq is silent on it: it has given up


@pytest.mark.parametrize(
    "junk",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n" * 9, b"\xff" + bytes(8) + b"\x7f\x03\x00junk" * 20, b""],
    ids=["http", "broken handshake", "hang-up"],
)
def test_reader_finds_the_hal_that_replaces_a_stranger(context, eventually, quick_revival, junk):
    with unix.create_server(("127.0.0.1", 0)) as stranger:
        stranger.settimeout(60.0)
        endpoint = f"tcp://127.0.0.1:{stranger.getsockname()[1]}"
        subscriber = LatestSubscriber(endpoint, STATE, context=context)
        requester = Requester(endpoint, name="command", context=context)
        for _ in range(2):
            caller, _ = stranger.accept()
            with caller:
                caller.sendall(junk)
    with subscriber, requester:
        with Publisher(endpoint, STATE, context=context) as publisher:
            join(publisher, subscriber, eventually)
        with Router(endpoint, name="command", context=context):
            # until just now a PUB was there, which a REQ cannot talk to either
            assert requester.wait_connected(60.0)


def test_a_writer_finds_the_reader_that_replaces_a_stranger(context, eventually, quick_revival):
    with unix.create_server(("127.0.0.1", 0)) as stranger:
        stranger.settimeout(60.0)
        endpoint = f"tcp://127.0.0.1:{stranger.getsockname()[1]}"
        writer = Publisher(endpoint, NAV, bind=False, context=context)
        caller, _ = stranger.accept()
        with caller:
            caller.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00junk" * 20)
    with writer, LatestSubscriber(endpoint, NAV, bind=True, context=context) as subscriber:
        join(writer, subscriber, eventually)


def test_a_server_that_dies_in_the_handshake_on_a_unix_socket_is_not_taken_for_a_wrong_key(
    tmp_path, context, caplog
):
    with unix.socket(unix.AF_UNIX) as dying:
        dying.bind(str(tmp_path / "safety"))
        dying.listen()
        dying.settimeout(60.0)
        with HalClient({"safety": f"ipc://{tmp_path}/safety"}, context=context) as client:
            for _ in range(3):
                caller, _ = dying.accept()
                with caller:
                    caller.recv(10)
                    caller.sendall(b"\xff" + bytes(8) + b"\x7f\x03\0")
            with pytest.raises(RequestTimeout, match="no answer") as raised:
                client.hello(0.5)
    assert raised.type is RequestTimeout
    assert "key" not in caplog.text


SUB_READY = b"\x05READY\x0bSocket-Type\0\0\0\x03SUB"


@pytest.mark.parametrize("size", [63, 64])
def test_a_subscription_longer_than_any_topic_costs_its_peer_the_connection(
    tmp_path, context, size
):
    """With the byte that says "subscribe": 64 bytes are taken, 65 are not."""
    with (
        Publisher(f"ipc://{tmp_path}/state", STATE, context=context) as publisher,
        unix.socket(unix.AF_UNIX) as peer,
    ):
        peer.settimeout(60.0)
        peer.connect(str(tmp_path / "state"))
        peer.sendall(b"\xff" + bytes(8) + b"\x7f\x03\0" + b"NULL".ljust(20, b"\0") + bytes(32))
        peer.sendall(bytes([4, len(SUB_READY)]) + SUB_READY)
        heard = b""
        while b"Socket-Type" not in heard:
            heard += peer.recv(1000)
        with contextlib.suppress(ConnectionError):
            for topic in (b"z" * size, b"state"):
                peer.sendall(bytes([0, 1 + len(topic)]) + b"\x01" + topic)
        got = b""
        if size == 63:
            while b"state" not in got:
                publisher.publish(ZEROS, capture_ns=1)
                peer.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    got += peer.recv(1000)
                time.sleep(0.001)
        else:
            with contextlib.suppress(ConnectionError):
                while got := peer.recv(1000):  # until it is closed
                    pass
            assert got == b""


def test_wait_any_names_the_readable(context, eventually):
    with (
        Publisher("inproc://state", STATE, context=context) as states,
        Publisher("inproc://nav", NAV, context=context) as navs,
        LatestSubscriber("inproc://state", STATE, context=context) as state,
        LatestSubscriber("inproc://nav", NAV, context=context) as nav,
    ):
        join(states, state, eventually)
        join(navs, nav, eventually)
        assert wait_any([state, nav], 0.0) == []
        navs.publish([0, 0, 0], capture_ns=1)
        assert wait_any([state, nav], 60.0) == [nav]
        states.publish(ZEROS, capture_ns=1)
        assert wait_any([state, nav], 60.0) == [state, nav]


def test_short_waits_are_not_rounded_to_milliseconds(link):
    _, subscriber = link
    waits = []
    while len(waits) < 1000 and min(waits, default=1.0) >= 1e-3:  # others are busy here too
        waits.append(_duration(lambda: wait_readable((subscriber.socket,), 2e-4)))
    assert 2e-4 <= min(waits) < 1e-3


def _duration(call):
    start = time.monotonic()
    call()
    return time.monotonic() - start


def test_a_busy_endpoint_names_itself_and_the_remedy(endpoints, context):
    with (
        Publisher(endpoints["state"], STATE, context=context) as first,
        pytest.raises(EndpointInUse) as raised,
    ):
        Publisher(first.endpoint, STATE, context=context)
    message = str(raised.value)
    assert first.endpoint in message
    assert "stop the other process that binds it or set endpoints.state" in message


def test_an_ipc_socket_of_another_process_is_not_taken_over(tmp_path, context, eventually):
    # Another context is as foreign as another process; plain libzmq would unlink the live socket.
    path = f"ipc://{tmp_path}/state"
    with (
        zmq.Context() as other,
        Publisher(path, STATE, context=other) as owner,
        LatestSubscriber(path, STATE, context=other) as reader,
    ):
        with pytest.raises(EndpointInUse):
            Publisher(path, STATE, context=context)
        join(owner, reader, eventually)


def test_a_socket_file_left_by_a_dead_process_is_no_obstacle(tmp_path, context):
    path = tmp_path / "state"
    with unix.socket(unix.AF_UNIX, unix.SOCK_STREAM) as dead:
        dead.bind(str(path))
    assert path.exists()
    Publisher(f"ipc://{path}", STATE, context=context).close()


def test_the_folder_of_an_ipc_endpoint_is_made(tmp_path, context):
    Publisher(f"ipc://{tmp_path}/run/krabby/state", STATE, context=context).close()


@pytest.mark.parametrize(
    "endpoint",
    ["state", "tcp://127.0.0.1", "tcp://127.0.0.1:99999", "udp//x", "", "tcp://300.1.1.1:6001"],
)
def test_an_endpoint_that_is_none_is_refused(endpoint, context):
    with pytest.raises(
        EndpointError, match=r"cannot be (bound|used): .*; set endpoints\.state to ipc://"
    ):
        Publisher(endpoint, STATE, context=context)


def test_an_ipc_path_that_cannot_be_made_is_refused(tmp_path, context):
    (tmp_path / "file").write_text("")
    with pytest.raises(EndpointError, match="cannot be made: File exists"):
        Publisher(f"ipc://{tmp_path}/file/state", STATE, context=context)
    with pytest.raises(EndpointInUse.__bases__[0], match="cannot be bound"):
        Publisher(f"ipc://{tmp_path}/{'long' * 40}", STATE, context=context)


def test_an_endpoint_that_cannot_be_connected_is_refused(context):
    with pytest.raises(EndpointError, match="cannot be connected"):
        LatestSubscriber("nowhere", STATE, context=context)


def test_a_watched_publisher_knows_whether_it_is_read(endpoints, context, eventually):
    with WatchedPublisher(endpoints["colour"], COLOUR, context=context) as publisher:
        assert not publisher.is_read()
        assert not publisher.wait_for_reader(0.01)
        with (
            LatestSubscriber(publisher.endpoint, COLOUR, context=context) as one,
            LatestSubscriber(publisher.endpoint, COLOUR, context=context) as other,
        ):
            assert publisher.wait_for_reader(60.0)

            def both_are_in():
                publisher.publish(b"image", capture_ns=1)
                return one.wait(0.01) and other.wait(0.01)

            eventually(both_are_in)
            one.close()
            assert publisher.is_read(), "the other one reads on"
        eventually(lambda: not publisher.is_read())


def test_a_subscription_to_another_topic_reads_nothing(context, tmp_path, eventually):
    endpoint = f"ipc://{tmp_path}/colour"
    with WatchedPublisher(endpoint, COLOUR, context=context) as publisher:
        foreign, known = context.socket(zmq.SUB), context.socket(zmq.SUB)
        with foreign, known:
            foreign.setsockopt(zmq.SUBSCRIBE, b"camera")
            foreign.connect(endpoint)
            known.setsockopt(zmq.SUBSCRIBE, b"")
            known.connect(endpoint)
            assert publisher.wait_for_reader(60.0)
            known.close()
            eventually(lambda: not publisher.is_read())
