"""Sends commands at 100 Hz like a gameloop; at the end it tells what each tick saw."""

import json
import signal
import sys
import time

import numpy as np
from krabby_proto import HalClient

PERIOD_S = 0.01


def main() -> None:
    endpoints, log = json.loads(sys.argv[1]), sys.argv[2]
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    ticks: list[dict[str, float | str | None]] = []
    targets = np.zeros(18, dtype=np.float32)
    with HalClient(endpoints) as client:
        client.hello(60.0)
        client.state.wait(60.0)
        due = time.monotonic()
        while not stop:
            due += PERIOD_S * max(1, -(-(time.monotonic() - due) // PERIOD_S))
            time.sleep(max(0.0, due - time.monotonic()))
            start_ns = time.monotonic_ns()
            message = client.state.latest()
            read_ns = time.monotonic_ns()
            reply = client.send_command(targets, capture_ns=message.capture_ns)
            done_ns = time.monotonic_ns()
            ticks.append(
                {
                    "start_ns": start_ns,
                    "read_s": (read_ns - start_ns) * 1e-9,
                    "state_age_s": message.age_s(read_ns),
                    "command_s": (done_ns - read_ns) * 1e-9,
                    "status": reply.status_name if reply else None,
                }
            )
    with open(log, "w") as file:
        json.dump(ticks, file)


main()
