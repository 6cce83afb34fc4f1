"""Reads the latest state at a fixed rate for a while; then tells what it saw when."""

import json
import sys
import time

from krabby_proto import STATE, LatestSubscriber


def main() -> None:
    endpoint, rate_hz, reads, log = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    period = 1.0 / rate_hz
    seen: list[tuple[int, int, int]] = []
    with LatestSubscriber(endpoint, STATE) as subscriber:
        if subscriber.wait(20.0) is None:
            raise SystemExit("no publisher")
        due = time.monotonic()
        while len(seen) < reads:
            due += period * max(1, -(-(time.monotonic() - due) // period))
            time.sleep(max(0.0, due - time.monotonic()))
            before_ns = time.monotonic_ns()
            message = subscriber.latest()
            after_ns = time.monotonic_ns()
            seen.append((before_ns, after_ns, message.sequence))
        counts = {"discarded": subscriber.discarded, "gaps": subscriber.gaps}
    with open(log, "w") as file:
        json.dump({"seen": seen, **counts}, file)


main()
