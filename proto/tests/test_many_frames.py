"""A message of more frames than the contract has costs its reader a bounded piece of work a call.

libzmq hands such a message out as one. The limits: 12 frames are kept, 128 more are dropped a call,
and after 2048 the socket is made anew.
"""

import contextlib
import itertools
import threading

import pytest
import zmq
from krabby_proto import (
    NAV,
    STATE,
    CommandOutcome,
    CommandStatus,
    ControlClient,
    ControlServer,
    HalClient,
    HalServer,
    LatestSubscriber,
    Publisher,
    RequestTimeout,
    SafetyOutcome,
    make_hello,
)
from krabby_proto.requests import Requester, Router

networked = pytest.mark.parametrize("transport", ["ipc", "tcp"], indirect=True)
MOST_FRAMES = 12 + 128


class Counted:
    """Counts the frames that an endpoint reads in one call of its `receive_frames`."""

    def __init__(self, endpoint, monkeypatch):
        self.most = self.calls = 0
        self.endpoint = endpoint
        inner = endpoint.receive_frames
        monkeypatch.setattr(endpoint, "receive_frames", lambda: self.count(inner))

    def count(self, inner):
        socket = self.endpoint.socket
        recv, taken = socket.recv, itertools.count()

        def counting(*arguments, **options):
            next(taken)
            return recv(*arguments, **options)

        socket.recv = counting
        try:
            return inner()
        finally:
            if not socket.closed:
                socket.recv = recv
            self.most = max(self.most, next(taken))
            self.calls += 1


@pytest.fixture
def peer(context):
    peers = []

    def connect(kind, endpoint):
        peers.append(context.socket(kind))
        peers[-1].linger = 0
        peers[-1].connect(endpoint)
        return peers[-1]

    yield connect
    for each in peers:
        each.close()


@networked
@pytest.mark.parametrize(
    ("frames", "renewals"), [(13, 0), (140, 0), (2000, 0), (2100, 1), (50_000, 1)]
)
def test_a_request_of_many_frames_is_read_in_pieces(
    endpoints, context, peer, eventually, monkeypatch, frames, renewals
):
    with Router(endpoints["command"], name="command", context=context) as router:
        counted = Counted(router, monkeypatch)
        flooder, other = (peer(zmq.DEALER, router.endpoint) for _ in range(2))
        flooder.send_multipart([b"", b"hello"])
        assert eventually(router.receive).body == [b"hello"]
        flooder.send_multipart([b""] * (frames - 1))  # the sender's identity is another one
        eventually(lambda: (router.receive() and False) or router.oversized)
        before = counted.calls
        if renewals:
            eventually(lambda: (router.receive() and False) or router.renewals)
            assert counted.calls - before <= 2048 // 128 + 1
        else:
            assert len(eventually(router.receive).body) == 12 - 2
            assert counted.calls - before <= frames // 128 + 1
        assert counted.most <= MOST_FRAMES
        assert (router.oversized, router.renewals) == (1, renewals)

        def answered():
            with contextlib.suppress(zmq.Again):  # its link is down, and its queue full
                other.send_multipart([b"", b"estop"], zmq.NOBLOCK)
            return router.receive()

        assert eventually(answered).body == [b"estop"]


@networked
def test_who_sent_it_and_everybody_else_are_served_again(endpoints, context, peer, eventually):
    with Router(endpoints["command"], name="command", context=context) as router:
        flooder = peer(zmq.DEALER, router.endpoint)
        with Requester(router.endpoint, name="command", context=context) as requester:
            requester.wait_connected(5.0)
            for time in range(1, 4):
                flooder.send_multipart([b""] * 3000)
                eventually(lambda: (router.receive() and False) or router.renewals == time)  # noqa: B023
                stop = threading.Event()

                def serve(stop=stop):
                    while not stop.wait(0.001):
                        request = router.receive()
                        if request is not None:
                            router.reply(request, b"answer")

                server = threading.Thread(target=serve)
                server.start()
                try:
                    answer = eventually(
                        lambda: requester.request_patiently(lambda: [b"estop"], 1.0), 20.0
                    )
                finally:
                    stop.set()
                    server.join()
                assert answer == [b"answer"]


@pytest.mark.parametrize("transport", ["inproc"], indirect=True)
def test_a_peer_in_this_process_is_heard_out(endpoints, context, peer, eventually):
    """It would not connect again."""
    with Router(endpoints["command"], name="command", context=context) as router:
        caller = peer(zmq.DEALER, router.endpoint)
        caller.send_multipart([b""] * 10_000)
        assert len(eventually(router.receive).body) == 10
        assert router.renewals == 0
        caller.send_multipart([b"", b"again"])
        assert eventually(router.receive).body == [b"again"]


@networked
@pytest.mark.parametrize("frames", [200, 50_000])
def test_a_bound_reader_goes_on_with_its_other_publishers(
    endpoints, context, peer, eventually, monkeypatch, frames
):
    with LatestSubscriber(endpoints["nav"], NAV, bind=True, context=context) as reader:
        counted = Counted(reader, monkeypatch)
        flooder = peer(zmq.PUB, reader.endpoint)
        with Publisher(reader.endpoint, NAV, bind=False, context=context) as good:

            def heard():
                good.publish([0.1, 0.0, 0.0], capture_ns=1)
                return reader.wait(0.01)

            eventually(heard)

            def flooded():
                flooder.send_multipart([b"nav", *[b""] * frames])
                reader.wait(0.01)
                return reader.oversized

            eventually(flooded)
            eventually(lambda: (reader.take() and False) or not reader.skipping)
            eventually(heard)
    assert counted.most <= MOST_FRAMES


@networked
def test_a_reader_that_connects_finds_its_publisher_again(
    endpoints, context, eventually, monkeypatch
):
    with context.socket(zmq.PUB) as raw:
        raw.linger = 0
        raw.bind(endpoints["state"])
        where = raw.getsockopt(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()
        with LatestSubscriber(where, STATE, context=context) as reader:
            counted = Counted(reader, monkeypatch)

            def flooded():
                raw.send_multipart([b"state", *[b""] * 5000])
                reader.wait(0.01)
                return reader.renewals

            eventually(flooded)

            def rubbish_arrives():
                raw.send_multipart([b"state", b"too short"])
                reader.wait(0.01)
                return reader.invalid

            eventually(rubbish_arrives)
            assert reader.connected
    assert counted.most <= MOST_FRAMES


@networked
def test_an_answer_of_many_frames_is_a_timeout(endpoints, context):
    with Router(endpoints["command"], name="command", context=context) as router:
        stop = threading.Event()

        def serve():
            while not stop.wait(0.001):
                request = router.receive()
                if request is not None:
                    router.reply(request, *[b""] * 5000)

        server = threading.Thread(target=serve)
        server.start()
        try:
            with Requester(router.endpoint, name="command", context=context) as requester:
                requester.wait_connected(5.0)
                assert requester.request([b"command"], 1.5) is None
                assert (requester.oversized, requester.timeouts) == (1, 1)
        finally:
            stop.set()
            server.join()


class Obedient:
    def __init__(self):
        self.requests = []

    def on_command(self, message):
        return CommandOutcome(CommandStatus.APPLIED, safety_state=2)

    def on_safety(self, op, by):
        if op != "status":
            self.requests.append(op)
        return SafetyOutcome(True, "estop" if op == "estop" else "active", (), "")


@networked
def test_an_e_stop_behind_such_a_message_still_arrives(endpoints, context, peer, eventually):
    """It may be in the queue that is dropped: the client says it again."""
    handler = Obedient()
    with HalServer(
        endpoints, hello=make_hello(service="test-hal"), handler=handler, context=context
    ) as server:
        flooder = peer(zmq.DEALER, server.endpoints["safety"])
        flooder.send_multipart([b"", b"safety", b"{}"])
        eventually(lambda: server.poll(0.01))
        stop, flooded = threading.Event(), threading.Event()

        def serve():
            flooded.wait()
            while not stop.is_set():
                server.poll(0.005)

        thread = threading.Thread(target=serve)
        thread.start()
        with HalClient({"safety": server.endpoints["safety"]}, context=context) as client:
            try:
                assert client._requester("safety").wait_connected(5.0)
                flooder.send_multipart([b""] * 50_000)
                threading.Timer(0.1, flooded.set).start()  # the request is behind it by then
                assert client.safety("estop", "test", timeout_s=60.0)["state"] == "estop"
            finally:
                stop.set()
                flooded.set()
                thread.join()
        assert handler.requests[0] == "estop"
        assert server.oversized == {"command": 0, "safety": 1}


@networked
def test_a_flood_of_messages_keeps_no_reader(endpoints, context, peer, eventually, monkeypatch):
    """A publisher that sends faster than can be read: a call reads 64, then ends after 3 ms."""
    with LatestSubscriber(endpoints["nav"], NAV, bind=True, context=context) as reader:
        endless = itertools.repeat([b"nav", b"no header", b""])
        taken = itertools.count()
        clock = itertools.count(0, 0.001)  # every look at the clock finds it 1 ms later

        def receive():
            next(taken)
            return next(endless)

        monkeypatch.setattr(reader, "receive_frames", receive)
        monkeypatch.setattr("krabby_proto.sockets.time.monotonic", lambda: next(clock))
        assert reader.latest() is None
        assert next(taken) <= 64 + 4


def test_a_reader_that_only_hears_rubbish_waits_no_longer_than_told(context, monkeypatch):
    with LatestSubscriber("inproc://rubbish", STATE, bind=True, context=context) as reader:
        monkeypatch.setattr("krabby_proto.sockets.wait_readable", lambda *_: True)
        assert reader.wait(0.02) is None


@pytest.mark.parametrize("transport", ["tcp"], indirect=True)
def test_an_e_stop_without_a_hal_still_fails_in_time(endpoints, context):
    with (
        HalClient({"safety": "tcp://127.0.0.1:9"}, context=context) as client,
        pytest.raises(RequestTimeout, match=r"within 0.5 s"),
    ):
        client.safety("estop", "test", timeout_s=0.5)


@networked
def test_a_control_server_counts_them(endpoints, context, peer, eventually):
    with ControlServer(
        endpoints["control"], hello=make_hello(service="loop"), context=context
    ) as server:
        peer(zmq.DEALER, server.endpoint).send_multipart([b""] * 100)
        eventually(lambda: (server.poll(0.01, lambda request: {}) and False) or server.oversized)
        assert server.oversized == 1


@networked
def test_a_control_server_made_anew_is_bound_again(endpoints, context, peer, eventually):
    """Its endpoint may be free only a moment later, when nothing can be there to be read."""
    with (
        ControlServer(
            endpoints["control"], hello=make_hello(service="loop"), context=context
        ) as server,
        ControlClient(server.endpoint, context=context) as client,
    ):
        for renewals in range(1, 4):
            peer(zmq.DEALER, server.endpoint).send_multipart([b""] * 5000)

            def renewed():
                server.poll(0.01, lambda request: {})
                return server._router.renewals == renewals  # noqa: B023

            eventually(renewed)
            stop = threading.Event()

            def serve(stop=stop):
                while not stop.is_set():
                    server.poll(0.01, lambda request: {"ok": True})

            thread = threading.Thread(target=serve)
            thread.start()
            try:
                assert client.hello(60.0)["service"] == "loop"  # said again: the first may be lost
            finally:
                stop.set()
                thread.join()
