"""Containers that are killed, frozen and restarted: the rows of docs/faults.md in containers.

What is measured comes from the metrics: when the gate entered a state, and the histogram of the
age of the state behind an applied command, whose buckets round up.
"""

import contextlib
import math
import os
import signal
import time
from functools import partial

import pytest
from krabby_faults.measure import Row
from krabby_faults.report import write_rows
from krabby_proto import ControlClient, HalClient, ProtoError

pytestmark = [pytest.mark.slow, pytest.mark.compose, pytest.mark.timeout(600)]

AGES = "krabby_observation_age_at_actuation_seconds"
SAFE = ("hold", "damp", "estop")
ROWS = []


class Robot:
    """A running project, whose robot is made to walk by an operator where it needs one."""

    def __init__(self, stack, name):
        self.stack, self.name = stack, f"{name} in containers"
        self.emulated = name == "emulated"
        self.gameloop, self.hal = stack.gameloop, stack.hal

    def pid(self, service):
        """Process of a service, on this machine."""
        init = self.stack.inspect(service)["State"]["Pid"]
        with open(f"/proc/{init}/task/{init}/children") as file:
            children = file.read().split()
        return int(children[0]) if children else init

    def signal(self, service, number):
        os.kill(self.pid(service), number)

    def entered(self, state):
        """When the gate entered a state last [s]; minus infinity while the HAL does not answer."""
        try:
            return self.stack.value(self.hal, "krabby_safety_state_entered_seconds", state=state)
        except (OSError, AssertionError):
            self.stack.addresses.clear()
            return -math.inf

    def walks(self):
        """Whether it walks; operated for that where nothing stands up by itself."""
        if self.stack.walks():
            return True
        if self.emulated:
            with contextlib.suppress(ProtoError):
                self.operate()
        return False

    def operate(self):
        with HalClient({"safety": self.stack.through_relay("safety")}) as hal:
            state = hal.safety("status", "faults", timeout_s=2.0)["state"]
            if state in ("disarmed", "damp"):
                hal.safety("reset", "faults", timeout_s=2.0)
                answer = hal.safety("arm", "faults", timeout_s=2.0)
                if "measurement shows" in answer["reason"]:
                    command = ("python", "-m", "krabby_emulator", "put-back")
                    self.stack.compose("exec", "-T", "robot-emulator", *command, check=False)
            elif state == "active":
                with ControlClient(self.stack.through_relay("control")) as loop:
                    loop.request("stand", timeout_s=2.0)

    def drives(self):
        with contextlib.suppress(OSError, AssertionError):
            return self.stack.value("robot-emulator", "krabby_emulator_drives_running")
        return math.nan


@pytest.fixture(params=["simulated", "emulated"], scope="module")
def robot(request):
    fixture = "stack" if request.param == "simulated" else "emulated"
    if request.param == "emulated":
        request.getfixturevalue("priority_of_module")
    return Robot(request.getfixturevalue(fixture), request.param)


@pytest.fixture(scope="module")
def priority_of_module(emulated_project):
    if not emulated_project.raises_limits and not os.access("/sys/fs/cgroup/cpu", os.W_OK):
        pytest.skip("loops have no priority here: emulated drives, HAL and physics share cores")


def freeze(robot, service, seconds):
    robot.signal(service, signal.SIGSTOP)
    robot.thaw = partial(robot.signal, service, signal.SIGCONT)
    robot.lasts_s = seconds


def kill(robot, service):
    robot.signal(service, signal.SIGKILL)  # the engine starts it again


def restart(robot, service):
    robot.stack.compose("restart", "--timeout", "10", service)


FAULTS = [
    ("killed", kill, "gameloop", "limp"),
    ("restarted", restart, "gameloop", "sits"),
    ("frozen for 0.1 s", partial(freeze, seconds=0.1), "gameloop", "holds"),
    ("frozen for 1 s", partial(freeze, seconds=1.0), "gameloop", "limp"),
    ("frozen for 5 s", partial(freeze, seconds=5.0), "gameloop", "limp"),
    ("killed", kill, "hal", "limp"),
    ("frozen for 1 s", partial(freeze, seconds=1.0), "hal", "limp"),
]


@pytest.mark.parametrize(
    ("text", "inject", "role", "becomes"), FAULTS, ids=[f"{f[2]} {f[0]}" for f in FAULTS]
)
def test_a_fault_in_a_container(robot, wait_until, counters, figures, text, inject, role, becomes):
    wait_until(robot.walks, 60, "it walks")
    time.sleep(1.0)
    robot.thaw, robot.lasts_s = None, 1.0
    before = robot.stack.metrics(robot.hal)
    service = getattr(robot, role)
    began_s = time.monotonic()
    inject(robot, service)
    off_s = None
    while time.monotonic() - began_s < robot.lasts_s:
        if off_s is None and robot.emulated and role == "hal" and robot.drives() == 0:
            off_s = time.monotonic()
        time.sleep(0.005)
    if robot.thaw:
        robot.thaw()
    mended_s = time.monotonic()
    simulation = role == "hal" and not robot.emulated
    if becomes != "walks" and not simulation and role != "hal":
        wait_until(lambda: any(robot.entered(s) > began_s for s in SAFE), 5, "it is safe")
    times = {state: robot.entered(state) for state in SAFE}
    wait_until(robot.walks, 60, "it walks again")
    walking_s = time.monotonic()
    after = robot.stack.metrics(robot.hal)
    again = role == "hal" and "killed" in text  # its counters began anew
    edges = sorted(
        float(s.labels["le"]) for s in after
        if s.name == f"{AGES}_bucket" and s.labels["stream"] == "state"
    )  # fmt: skip
    base = [] if again else before

    def applied(edge):
        label = "+Inf" if edge == math.inf else repr(edge)
        return counters.increase(base, after, f"{AGES}_bucket", stream="state", le=label)

    total = applied(math.inf)
    oldest_s = next(edge for edge in edges if applied(edge) == total)
    safe = [time_s for time_s in times.values() if time_s > began_s]
    limp = [times[s] for s in ("damp", "estop") if times[s] > began_s]
    if off_s is not None:
        safe.append(off_s)
        limp.append(off_s)
    row = Row(
        fault=f"{role} {text}", robot=robot.name, becomes=becomes,
        safe_ms=None if simulation or not safe else (min(safe) - began_s) * 1e3,
        limp_ms=None if simulation or not limp else (min(limp) - began_s) * 1e3,
        by="simulation" if simulation else "drives" if off_s is not None else "gate",
        commands=int(total), since_publish_ms=None, since_capture_ms=oldest_s * 1e3,
        stale=int(total - applied(0.1)) if 0.1 in edges else 0, rate=None, beyond_rad=None,
        measured_beyond_rad=None, recovery_s=walking_s - mended_s,
        recovered="armed" if robot.emulated and limp else "by itself",
    )  # fmt: skip
    figures[f"{row.robot}, {row.fault}"] = f"safe {row.safe_ms}, limp {row.limp_ms} ms"
    ROWS.append(row)
    assert row.problems() == []


def test_the_rows_are_on_the_page(pytestconfig):
    if pytestconfig.getoption("--write-faults") and ROWS:
        write_rows(ROWS)
