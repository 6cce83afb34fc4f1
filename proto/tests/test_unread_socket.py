"""A socket that nobody reads for long must not take its process down."""

import subprocess
import sys

import pytest

# libzmq ends the process when it fails an assertion, so this one is a process of its own.
_STALLED_READER = """
import sys, time
import numpy as np
from krabby_proto import FEATURES, LatestSubscriber, Publisher, endpoint

endpoint._HEARTBEAT_IVL_MS, endpoint._HEARTBEAT_TIMEOUT_MS = 50, 200
image = np.zeros(5046, np.float32)

def publish():
    publisher.publish(image, capture_ns=time.monotonic_ns())

with Publisher(sys.argv[1], FEATURES) as publisher:
    with LatestSubscriber(publisher.endpoint, FEATURES) as reader:
        while reader.take() is None:
            publish()
        stalled = time.monotonic()
        while time.monotonic() - stalled < 1.5:  # five heartbeat time-outs
            publish()
            time.sleep(0.002)
        for _ in range(2):  # the backlog, then what came over the new connection
            seen = reader.received
            while reader.received == seen:
                publish()
                reader.take()
        print(reader.received, reader.invalid)
"""


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_a_reader_that_stalls_past_the_heartbeat_lives_and_reads_on(tmp_path, transport):
    endpoint = "tcp://127.0.0.1:*" if transport == "tcp" else f"ipc://{tmp_path}/features"
    done = subprocess.run(
        [sys.executable, "-c", _STALLED_READER, endpoint],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(" 0\n")
