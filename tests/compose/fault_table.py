"""Containers that are killed, frozen, restarted or cut off: rows of docs/faults.md.

    make faults-containers

Commands and changes of the gate are those of the HAL's stream `trace`, read through the relay. In
the emulated robot's container a watcher says when no drive held a position any more. What takes
the engine or a new process is looked up before a fault begins.
"""

import contextlib
import os
import signal
import subprocess
import threading
import time
from functools import partial
from typing import NamedTuple

import pytest
from krabby_faults.measure import LIMITS, Row
from krabby_faults.report import line, write_rows
from krabby_proto import (
    STREAMS,
    CommandStatus,
    ControlClient,
    Exchange,
    HalClient,
    LatestSubscriber,
    ProtoError,
)

pytestmark = [pytest.mark.slow, pytest.mark.compose, pytest.mark.timeout(900)]

SAFE = ("hold", "damp", "estop", "disarmed")
LIMP = SAFE[1:]
WATCHER = """
import time
from krabby_emulator.config import EndpointsCfg
from krabby_proto import ControlClient
with ControlClient(EndpointsCfg().fault) as robot:
    before = None
    while True:
        try:
            answer = robot.request("status", timeout_s=1.0)
        except Exception:
            continue
        if (answer["drives_running"] > 0) != before:
            before = answer["drives_running"] > 0
            print(int(before), answer["now_ns"], flush=True)
        time.sleep(0.004)
"""
"""Runs in the emulated robot's container; containers of a host share CLOCK_MONOTONIC."""


class Fault(NamedTuple):
    """A fault of one service."""

    text: str
    prepare: object
    """Called with the stack and the service; gives what begins the fault, and what ends it."""
    service: str
    becomes: str
    lasts_s: float


class Watch(threading.Thread):
    """Collects the exchanges of a HAL."""

    def __init__(self, stack):
        super().__init__(daemon=True)
        self._endpoint = stack.through_relay("trace")
        self._stopped = threading.Event()
        self.exchanges = []
        self.lost = 0
        """Records that were sent and not received."""
        self.start()

    def run(self):
        with LatestSubscriber(self._endpoint, STREAMS["trace"], queue=10_000) as trace:
            while not self._stopped.wait(0.02):
                for message in trace.drain():
                    with contextlib.suppress(ProtoError):
                        self.exchanges.append(Exchange.unpack(message.payload))
                self.lost = trace.gaps

    def since(self, began_ns):
        return [each for each in list(self.exchanges) if each.handled_ns >= began_ns]

    def stop(self):
        self._stopped.set()
        self.join(5.0)


class Drives(threading.Thread):
    """When no drive of the emulated robot held a position any more."""

    def __init__(self, stack):
        super().__init__(daemon=True)
        container = stack.container("robot-emulator")
        self._process = subprocess.Popen(
            ["docker", "exec", container, "python", "-c", WATCHER],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.released_ns = []
        self.start()

    def run(self):
        for text in self._process.stdout:
            holds, now_ns = text.split()
            if holds == "0":
                self.released_ns.append(int(now_ns))

    def stop(self):
        self._process.kill()
        with self._process:
            self.join(5.0)


class Robot:
    """A stack of containers, and what an operator does with it through the relay."""

    def __init__(self, stack):
        self.stack = stack
        self.emulated = stack.hal != "sim-hal"
        self.hal = HalClient({"safety": stack.through_relay("safety")})
        self.loop = ControlClient(stack.through_relay("control"))
        self.watch = Watch(stack)
        self.drives = Drives(stack) if self.emulated else None

    def close(self):
        self.watch.stop()
        if self.drives is not None:
            self.drives.stop()
        self.hal.close()
        self.loop.close()

    @property
    def name(self):
        return f"{'emulated' if self.emulated else 'simulated'} in containers"

    def says(self):
        """Mode of the loop and state of the gate."""
        mode = self.loop.request("status", timeout_s=2.0).get("mode")  # none: not reached
        return mode, self.hal.safety("status", "faults", timeout_s=2.0).get("state")

    def walks(self):
        with contextlib.suppress(ProtoError):
            return self.says() == ("policy", "active")
        return False

    def make_walk(self, within_s=60.0):
        """Reset, arm and stand until it walks; whether it had to be armed."""
        armed, end_s = False, time.monotonic() + within_s
        while time.monotonic() < end_s:
            with contextlib.suppress(ProtoError):
                mode, state = self.says()
                if (mode, state) == ("policy", "active"):
                    return armed
                if state == "estop" or (state in ("disarmed", "damp") and mode == "passive"):
                    armed = True
                    self.hal.safety("reset", "faults", timeout_s=2.0)
                    answer = self.hal.safety("arm", "faults", timeout_s=2.0)
                    if self.emulated and "measurement shows" in answer.get("reason", ""):
                        emulator = ("python", "-m", "krabby_emulator", "put-back")
                        self.stack.compose("exec", "-T", "robot-emulator", *emulator)
                elif mode == "passive":
                    self.loop.request("stand", timeout_s=2.0)
            time.sleep(0.02)
        raise AssertionError(f"does not walk within {within_s:g} s: {self.says()}")


def process_of(stack, service):
    """Process of a service on this machine: the child of the container's init."""
    init = stack.inspect(service)["State"]["Pid"]
    with open(f"/proc/{init}/task/{init}/children") as file:
        return int(file.read().split()[0])


def kill(stack, service):
    """The engine starts it again."""
    return partial(os.kill, process_of(stack, service), signal.SIGKILL), None


def freeze(stack, service):
    pid = process_of(stack, service)
    return partial(os.kill, pid, signal.SIGSTOP), partial(os.kill, pid, signal.SIGCONT)


def restart(stack, service):
    """Begins with the signal that the engine sends; it takes a while to get there."""
    pid, container = process_of(stack, service), stack.container(service)
    command = ["docker", "restart", "--time", "10", container]

    def begin():
        os.kill(pid, signal.SIGTERM)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    return begin, None


def cut_off(stack, service):
    """Take its network away; sockets between the services are in a volume."""
    command = (f"{stack.project}_monitoring", stack.container(service))

    def docker(verb):
        subprocess.run(["docker", "network", verb, *command], check=True)
        stack.addresses.clear()

    return partial(docker, "disconnect"), partial(docker, "connect")


def faults(hal, gameloop, camera):
    """Of one robot, whose services have these names."""
    return [
        Fault("killed", kill, gameloop, "limp", 1.0),
        Fault("ended and started by the engine", restart, gameloop, "sits", 1.0),
        Fault("frozen for 0.1 s", freeze, gameloop, "holds", 0.1),
        Fault("frozen for 1 s", freeze, gameloop, "limp", 1.0),
        Fault("frozen for 5 s", freeze, gameloop, "limp", 5.0),
        Fault("without a network for 5 s", cut_off, gameloop, "walks", 5.0),
        Fault("killed", kill, hal, "limp", 1.0),
        Fault("ended and started by the engine", restart, hal, "sits", 1.0),
        Fault("frozen for 0.1 s", freeze, hal, "holds", 0.1),
        Fault("frozen for 1 s", freeze, hal, "limp", 1.0),
        Fault("frozen for 5 s", freeze, hal, "limp", 5.0),
        Fault("killed", kill, camera, "walks", 1.0),
        Fault("frozen for 1 s", freeze, camera, "walks", 1.0),
    ]


SIMULATED = faults("sim-hal", "gameloop", "camera")
EMULATED = [
    *faults("emulated-jetson-hal", "emulated-gameloop", "emulated-camera"),
    Fault("frozen for 1 s", freeze, "robot-emulator", "limp", 1.0),
]


@pytest.fixture(scope="module")
def simulated_robot(stack):
    robot = Robot(stack)
    yield robot
    robot.close()


@pytest.fixture(scope="module")
def emulated_robot(emulated):
    robot = Robot(emulated)
    yield robot
    robot.close()


def named(fault):
    return f"{fault.service} {fault.text}".replace(" ", "-")


@pytest.mark.parametrize("fault", SIMULATED, ids=named)
def test_a_fault_in_a_container_of_the_simulation(simulated_robot, fault, figures, pytestconfig):
    judge(simulated_robot, fault, figures, pytestconfig)


@pytest.mark.usefixtures("priority")
@pytest.mark.parametrize("fault", EMULATED, ids=named)
def test_a_fault_in_a_container_of_the_emulated_robot(emulated_robot, fault, figures, pytestconfig):
    judge(emulated_robot, fault, figures, pytestconfig)


def judge(robot, fault, figures, pytestconfig):
    row = measure(robot, fault)
    figures[f"{row.robot}, {row.fault}"] = line(row)
    if pytestconfig.getoption("--write-faults"):
        write_rows([row])
    assert row.commands > 0
    assert robot.watch.lost == 0
    assert row.problems() == []


def measure(robot, fault):
    """One fault from a walk to the next."""
    robot.make_walk()
    robot.stack.go_first()  # what was started again by the engine asks for it anew
    begin, end = fault.prepare(robot.stack, fault.service)
    time.sleep(0.7)
    robot.make_walk()
    began_ns = time.monotonic_ns()
    begin()
    time.sleep(max(fault.lasts_s - (time.monotonic_ns() - began_ns) * 1e-9, 0.0))
    mended_ns = time.monotonic_ns()
    if end is not None:
        end()
    recovered = "by itself"
    end_s = time.monotonic() + 0.6
    while not (walking := robot.walks()) and time.monotonic() < end_s:
        time.sleep(0.02)
    if not walking and robot.make_walk():
        recovered = "armed"
    recovery_s = (time.monotonic_ns() - mended_ns) * 1e-9
    time.sleep(0.2)  # the last exchanges arrive
    return row_of(robot, fault, began_ns, mended_ns, recovery_s, recovered)


def row_of(robot, fault, began_ns, mended_ns, recovery_s, recovered):
    seen = robot.watch.since(began_ns)
    until_ns = mended_ns + 200_000_000
    entered = [
        (each.handled_ns, each.gate.safety_name)
        for each in seen
        if each.gate is not None and each.handled_ns <= until_ns
    ]
    safe_ns = next((at_ns for at_ns, state in entered if state in SAFE), None)
    limp_ns = next((at_ns for at_ns, state in entered if state in LIMP), None)
    by = "gate"
    if robot.drives is not None:
        drives_ns = next((at for at in list(robot.drives.released_ns) if at >= began_ns), None)
        if drives_ns is not None and drives_ns <= until_ns and drives_ns < (limp_ns or until_ns):
            safe_ns, limp_ns, by = min(safe_ns or drives_ns, drives_ns), drives_ns, "drives"
    elif fault.service == robot.stack.hal:
        safe_ns, limp_ns, by = None, None, "simulation"
    applied = [
        each for each in seen
        if each.command is not None and each.reply.status == CommandStatus.APPLIED
    ]  # fmt: skip
    published, captured = (
        [(each.handled_ns - getattr(each.command.header, name)) * 1e-6 for each in applied]
        for name in ("publish_ns", "capture_ns")
    )
    stale = sum(
        one > LIMITS.since_publish_ms or two > LIMITS.since_capture_ms
        for one, two in zip(published, captured, strict=True)
    )
    return Row(
        fault=f"{fault.service.removeprefix('emulated-')} {fault.text}", robot=robot.name,
        becomes=fault.becomes, safe_ms=ms(safe_ns, began_ns), limp_ms=ms(limp_ns, began_ns), by=by,
        commands=len(applied), since_publish_ms=max(published, default=0.0),
        since_capture_ms=max(captured, default=0.0), stale=stale, rate=None, beyond_rad=None,
        measured_beyond_rad=None, recovery_s=recovery_s, recovered=recovered,
    )  # fmt: skip


def ms(at_ns, began_ns):
    return None if at_ns is None else (at_ns - began_ns) * 1e-6
