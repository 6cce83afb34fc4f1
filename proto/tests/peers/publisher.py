"""Publishes states at a fixed rate until told to stop; then tells when it published what."""

import json
import signal
import sys
import time

import numpy as np
from krabby_proto import STATE, Publisher


def main() -> None:
    endpoint, rate_hz, log = sys.argv[1], float(sys.argv[2]), sys.argv[3]
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    period = 1.0 / rate_hz
    published: list[tuple[int, int]] = []
    payload = np.zeros(STATE.size, dtype=np.float32)
    with Publisher(endpoint, STATE) as publisher:
        due = time.monotonic()
        while not stop:
            now_ns = time.monotonic_ns()
            sequence = publisher.publish(payload, capture_ns=now_ns, publish_ns=now_ns)
            published.append((sequence, now_ns))
            due += period * max(1, -(-(time.monotonic() - due) // period))
            time.sleep(max(0.0, due - time.monotonic()))
    with open(log, "w") as file:
        json.dump(published, file)


main()
