"""A HAL that is always armed, at 200 Hz; at the end it tells the age of every command applied."""

import json
import signal
import sys
import time

from krabby_proto import CommandOutcome, CommandStatus, HalServer, SafetyOutcome, make_hello
from krabby_proto.testing import resting_state


class Handler:
    def __init__(self) -> None:
        self.applied: list[tuple[int, int]] = []

    def on_command(self, message):
        now_ns = time.monotonic_ns()
        self.applied.append((now_ns, now_ns - message.header.publish_ns))
        return CommandOutcome(CommandStatus.APPLIED, safety_state=2, applied_ns=now_ns)

    def on_safety(self, op, by):
        return SafetyOutcome(True, "active")


def main() -> None:
    endpoints, log = json.loads(sys.argv[1]), sys.argv[2]
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    handler = Handler()
    state = resting_state()
    with HalServer(endpoints, hello=make_hello(service="hal"), handler=handler) as server:
        due = time.monotonic()
        while not stop:
            server.publish_state(state, time.monotonic_ns())
            due += 0.005 * max(1, -(-(time.monotonic() - due) // 0.005))
            while (left := due - time.monotonic()) > 0.0:
                server.poll(left)
        stats = server.stats.commands
    with open(log, "w") as file:
        json.dump({"applied": handler.applied, "stats": stats}, file)


main()
