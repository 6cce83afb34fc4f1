"""Containers that are killed, frozen, restarted or cut off: rows of docs/faults.md.

What is measured comes from the metrics: when the gate entered a state, and the histogram of the
age of the state behind an applied command, whose buckets round up. Everything that takes the engine
or a process of its own is looked up before the clock starts.
"""

import math
import os
import signal
import subprocess
import time
from functools import partial

import pytest
from krabby_faults.measure import Row
from krabby_faults.report import write_rows

pytestmark = [pytest.mark.slow, pytest.mark.compose, pytest.mark.timeout(600)]

AGES = "krabby_observation_age_at_actuation_seconds"
SAFE = ("hold", "damp", "estop")
ROWS = []


def process_of(stack, service):
    """Process of a service on this machine: the child of the container's init."""
    init = stack.inspect(service)["State"]["Pid"]
    with open(f"/proc/{init}/task/{init}/children") as file:
        return int(file.read().split()[0])


def kill(stack, service):
    """The engine starts it again."""
    pid = process_of(stack, service)
    return partial(os.kill, pid, signal.SIGKILL), None


def freeze(stack, service):
    pid = process_of(stack, service)
    return partial(os.kill, pid, signal.SIGSTOP), partial(os.kill, pid, signal.SIGCONT)


def restart(stack, service):
    return partial(stack.compose, "restart", "--timeout", "10", service), None


def cut_off(stack, service):
    """Take its network away; sockets between the services are in a volume."""
    container = stack.container(service)
    network = f"{stack.project}_monitoring"

    def docker(verb):
        subprocess.run(["docker", "network", verb, network, container], check=True)
        stack.addresses.clear()

    return partial(docker, "disconnect"), partial(docker, "connect")


FAULTS = [
    ("killed", kill, "gameloop", "limp", 1.0),
    ("ended and started by the engine", restart, "gameloop", "sits", 1.0),
    ("frozen for 0.1 s", freeze, "gameloop", "holds", 0.1),
    ("frozen for 1 s", freeze, "gameloop", "limp", 1.0),
    ("frozen for 5 s", freeze, "gameloop", "limp", 5.0),
    ("without a network for 5 s", cut_off, "gameloop", "walks", 5.0),
    ("killed", kill, "sim-hal", "limp", 1.0),
    ("ended and started by the engine", restart, "sim-hal", "sits", 1.0),
    ("frozen for 1 s", freeze, "sim-hal", "limp", 1.0),
    ("frozen for 5 s", freeze, "sim-hal", "limp", 5.0),
    ("killed", kill, "camera", "walks", 1.0),
    ("frozen for 1 s", freeze, "camera", "walks", 1.0),
]


@pytest.mark.parametrize(
    ("text", "prepare", "service", "becomes", "lasts_s"), FAULTS,
    ids=[f"{service} {text}" for text, _, service, *_ in FAULTS],
)  # fmt: skip
def test_a_fault_in_a_container(
    stack, wait_until, counters, figures, text, prepare, service, becomes, lasts_s
):
    wait_until(stack.walks, 60, "it walks")
    inject, mend = prepare(stack, service)
    before = stack.metrics("sim-hal")
    began_s = time.monotonic()
    inject()
    time.sleep(max(began_s + lasts_s - time.monotonic(), 0.0))
    if mend is not None:
        mend()
    mended_s = time.monotonic()
    wait_until(stack.walks, 60, "it walks again")
    recovery_s = time.monotonic() - mended_s
    after = stack.metrics("sim-hal")
    entered = {
        state: stack.value("sim-hal", "krabby_safety_state_entered_seconds", state=state)
        for state in SAFE
    }
    stops_simulation = service == "sim-hal"
    base = [] if stops_simulation and "frozen" not in text else before  # its counters began anew

    def applied(edge):
        label = "+Inf" if edge == math.inf else repr(edge)
        return counters.increase(base, after, f"{AGES}_bucket", stream="state", le=label)

    edges = sorted(
        float(s.labels["le"]) for s in after
        if s.name == f"{AGES}_bucket" and s.labels["stream"] == "state"
    )  # fmt: skip
    total = applied(math.inf)
    safe = [at_s for at_s in entered.values() if began_s < at_s < mended_s + 0.2]
    limp = [entered[s] for s in ("damp", "estop") if began_s < entered[s] < mended_s + 0.2]
    row = Row(
        fault=f"{service} {text}", robot="simulated in containers", becomes=becomes,
        safe_ms=None if stops_simulation or not safe else (min(safe) - began_s) * 1e3,
        limp_ms=None if stops_simulation or not limp else (min(limp) - began_s) * 1e3,
        by="simulation" if stops_simulation else "gate",
        commands=int(total), since_publish_ms=None,
        since_capture_ms=1e3 * next(edge for edge in edges if applied(edge) == total),
        stale=int(total - applied(0.1)), rate=None, beyond_rad=None, measured_beyond_rad=None,
        recovery_s=recovery_s, recovered="by itself",
    )  # fmt: skip
    figures[f"{row.robot}, {row.fault}"] = f"safe {row.safe_ms}, limp {row.limp_ms} ms"
    ROWS.append(row)
    assert row.commands > 0
    assert row.problems() == []


def test_the_rows_are_on_the_page(pytestconfig):
    if pytestconfig.getoption("--write-faults") and ROWS:
        write_rows(ROWS)
