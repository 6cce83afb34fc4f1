"""What libzmq would end the whole process for, or stop all its messages.

Each case runs in a separate process: a failed assertion of libzmq is an abort.
"""

import subprocess
import sys

import pytest


def played(script, *arguments):
    """What a script said, once it has ended well."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if "is plain TCP" not in line]
    assert (done.returncode, said) == (0, [])
    return done.stdout.split()


@pytest.fixture
def endpoint(transport, tmp_path):
    return "tcp://127.0.0.1:*" if transport == "tcp" else f"ipc://{tmp_path}/socket"


networked = pytest.mark.parametrize("transport", ["tcp", "ipc"], indirect=True)

# Small messages: some of all that libzmq says in two seconds then lies in what the reader took in
# one go, behind a full queue.
_UNREAD = """
import sys, time
import numpy as np
from krabby_proto import TRUTH, LatestSubscriber, Publisher

def publish():
    publisher.publish(np.zeros(TRUTH.size), capture_ns=time.monotonic_ns())

with Publisher(sys.argv[1], TRUTH) as publisher:
    reader = LatestSubscriber(publisher.endpoint, TRUTH)
    while reader.take() is None:
        publish()
    unread = time.monotonic()
    while time.monotonic() - unread < 2.0:
        publish()
        time.sleep(0.02)
with reader, Publisher(publisher.endpoint, TRUTH) as publisher:
    while not reader.restarts:
        publish()
        reader.take()
    print(reader.invalid)
"""


@pytest.mark.slow
@networked
def test_a_reader_that_was_stalled_while_its_publisher_went_reads_the_next_one(endpoint):
    assert played(_UNREAD, endpoint) == ["0"]


_STALLED = """
import sys, time
import numpy as np
from krabby_proto import STREAMS, LatestSubscriber, Publisher

stream = STREAMS[sys.argv[2]]
payload = np.zeros(stream.size or 5046)

def publish():
    publisher.publish(payload, capture_ns=time.monotonic_ns())

with Publisher(sys.argv[1], stream) as publisher:
    with LatestSubscriber(publisher.endpoint, stream) as reader:
        while reader.take() is None:
            publish()
        stalled = time.monotonic()
        while time.monotonic() - stalled < 4.5:
            publish()
            time.sleep(0.02)
        fresh = publisher.sequence
        while reader.latest().sequence < fresh:
            publish()
        print(reader.invalid, reader.revivals)
"""


@pytest.mark.slow
@networked
@pytest.mark.parametrize("stream", ["truth", "features"])
def test_a_reader_that_was_stalled_for_seconds_reads_on(endpoint, stream):
    assert played(_STALLED, endpoint, stream) == ["0", "0"]


# libzmq hears of a lost connection at every hundredth frame read, or when there is none to read.
_HANG_UP = """
import multiprocessing, sys, time
from krabby_proto.requests import Requester, Router

def serve(endpoint, where):
    with Router(endpoint, name="command") as router:
        where.put(router.endpoint)
        while True:
            request = router.receive()
            if request is not None:
                router.reply(request, b"command", b"answer")

def read_one_frame_then_lose_the_server(*arguments, **options):
    frame = recv(*arguments, **options)
    if frame.more:
        server.kill()
        while requester.connected or requester._dead:  # until it is about to connect again
            time.sleep(0.001)
    return frame

fork = multiprocessing.get_context("fork")
where = fork.SimpleQueue()
server = fork.Process(target=serve, args=(sys.argv[1], where))
server.start()
with Requester(where.get(), name="command") as requester:
    requester.wait_connected(10.0)
    for _ in range(49):
        requester.request([b"command"], 10.0)
    recv = requester.socket.recv
    requester.socket.recv = read_one_frame_then_lose_the_server
    print(*requester.request([b"command"], 10.0))
"""


@networked
def test_a_server_that_dies_while_its_answer_is_read_does_no_harm(endpoint):
    assert played(_HANG_UP, endpoint) == ["b'command'", "b'answer'"]


_GIVEN_UP = """
import sys, time
import zmq
from krabby_proto import STATE, LatestSubscriber
from krabby_proto.endpoint import wait_readable

with zmq.Context() as context, context.socket(zmq.PUB) as raw:
    raw.linger = 0
    raw.bind(sys.argv[1])
    where = raw.getsockopt(zmq.LAST_ENDPOINT).decode()
    with LatestSubscriber(where, STATE) as reader:
        while not reader.invalid:
            raw.send_multipart([b"state", b"too short"])
            reader.wait(0.01)
        raw.send_multipart([b"state", b"too short"])
        raw.send_multipart([b"state", bytes(1 << 20)])  # larger than a reader takes: it hangs up
        wait_readable((reader.socket,), 10.0)
        while reader.connected:
            time.sleep(0.001)
        while not reader.revivals:
            reader._revive_at = 0.0
            reader.take()
        print(reader.revivals)
"""


@networked
def test_what_came_before_a_link_failed_is_read_before_it_is_made_anew(endpoint):
    assert played(_GIVEN_UP, endpoint) == ["1"]


_IN_VAIN = """
import socket
import zmq
from krabby_proto import endpoint
from krabby_proto.requests import Requester

impatient = {zmq.RECONNECT_IVL: 1, zmq.RECONNECT_IVL_MAX: 0}
usual = endpoint._common_options
endpoint._common_options = lambda *arguments: (dict(usual(*arguments)) | impatient).items()
with socket.create_server(("127.0.0.1", 0)) as stranger:
    stranger.settimeout(10.0)
    with Requester(f"tcp://127.0.0.1:{stranger.getsockname()[1]}", name="command"):
        for _ in range(2500):
            stranger.accept()[0].close()
print("still trying")
"""


@pytest.mark.slow
def test_a_socket_that_is_not_used_never_tires_of_connecting():
    assert played(_IN_VAIN) == ["still", "trying"]
