"""Containers that are killed, frozen, restarted or cut off, and what comes of it.

Commands and changes of the gate are those of the HAL's stream `trace`, read through the relay. In
the emulated robot's container a watcher says when no drive held a position any more. What takes
the engine or a new process is looked up before a fault begins.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

from krabby_proto import (
    STREAMS,
    CommandStatus,
    ControlClient,
    Exchange,
    HalClient,
    LatestSubscriber,
    ProtoError,
)

from krabby_faults.measure import LIMITS, Row

__all__ = ["EMULATED", "SIMULATED", "Containers", "Fault", "Robot", "measure"]

_SAFE: Final = ("hold", "damp", "estop", "disarmed")
_LIMP: Final = _SAFE[1:]
_QUEUE: Final = 10_000
"""Records that may wait while this process does something else."""
_WATCHER: Final = """
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

Step = Callable[[], object]


class Containers(Protocol):
    """A compose project that runs."""

    project: str
    hal: str
    addresses: dict[str, str]

    def compose(self, *args: str) -> Any:
        """Run `docker compose` on it."""
        ...

    def container(self, service: str) -> str:
        """Id of a service's container."""
        ...

    def inspect(self, service: str) -> dict[str, Any]:
        """What the engine knows about it."""
        ...

    def through_relay(self, stream: str) -> str:
        """Endpoint of a stream for this process, which has the operator's key."""
        ...

    def go_first(self) -> None:
        """Give loops the priority that they were refused."""
        ...


class _Watch(threading.Thread):
    """Collects the exchanges of a HAL."""

    def __init__(self, stack: Containers) -> None:
        super().__init__(daemon=True)
        self._endpoint = stack.through_relay("trace")
        self._stopped = threading.Event()
        self._exchanges: list[Exchange] = []
        self.lost = 0
        """Records that were sent and not received."""
        self.start()

    def run(self) -> None:
        with LatestSubscriber(self._endpoint, STREAMS["trace"], queue=_QUEUE) as trace:
            while not self._stopped.wait(0.02):
                for message in trace.drain():
                    with contextlib.suppress(ProtoError):
                        self._exchanges.append(Exchange.unpack(bytes(message.payload)))
                self.lost = trace.gaps

    def since(self, began_ns: int) -> list[Exchange]:
        return [each for each in list(self._exchanges) if each.handled_ns >= began_ns]

    def stop(self) -> None:
        self._stopped.set()
        self.join(5.0)


class _Drives(threading.Thread):
    """When no drive of the emulated robot held a position any more."""

    def __init__(self, stack: Containers) -> None:
        super().__init__(daemon=True)
        container = stack.container("robot-emulator")
        self._process = subprocess.Popen(
            ["docker", "exec", container, "python", "-c", _WATCHER],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.released_ns: list[int] = []
        self.start()

    def run(self) -> None:
        assert self._process.stdout is not None
        for text in self._process.stdout:
            holds, now_ns = text.split()
            if holds == "0":
                self.released_ns.append(int(now_ns))

    def stop(self) -> None:
        self._process.kill()
        with self._process:
            self.join(5.0)


class Robot:
    """A stack of containers, and what an operator does with it through the relay."""

    def __init__(self, stack: Containers) -> None:
        """Of a stack that is up."""
        self.stack = stack
        self.emulated = stack.hal != "sim-hal"
        self.hal = HalClient({"safety": stack.through_relay("safety")})
        self.loop = ControlClient(stack.through_relay("control"))
        self.watch = _Watch(stack)
        self.drives = _Drives(stack) if self.emulated else None

    def close(self) -> None:
        """End the watches; the stack stays."""
        self.watch.stop()
        if self.drives is not None:
            self.drives.stop()
        self.hal.close()
        self.loop.close()

    @property
    def name(self) -> str:
        """For the report."""
        return f"{'emulated' if self.emulated else 'simulated'} in containers"

    def status(self) -> tuple[str, str]:
        """Mode of the loop and state of the gate; empty when the relay does not reach one."""
        mode = self.loop.request("status", timeout_s=2.0).get("mode", "")
        return mode, self.hal.safety("status", "faults", timeout_s=2.0).get("state", "")

    def walks(self) -> bool:
        """Whether the policy moves it and the gate lets it."""
        with contextlib.suppress(ProtoError):
            return self.status() == ("policy", "active")
        return False

    def put_back(self) -> None:
        """Put the emulated robot back on its feet."""
        emulator = ("python", "-m", "krabby_emulator", "put-back")
        self.stack.compose("exec", "-T", "robot-emulator", *emulator)

    def make_walk(self, within_s: float = 60.0) -> bool:
        """Reset, arm and stand until it walks; whether it had to be armed."""
        armed, end_s = False, time.monotonic() + within_s
        while time.monotonic() < end_s:
            with contextlib.suppress(ProtoError):
                mode, state = self.status()
                if (mode, state) == ("policy", "active"):
                    return armed
                if state == "estop" or (state in ("disarmed", "damp") and mode == "passive"):
                    armed = True
                    self.hal.safety("reset", "faults", timeout_s=2.0)
                    answer = self.hal.safety("arm", "faults", timeout_s=2.0)
                    if self.emulated and "measurement shows" in answer.get("reason", ""):
                        self.put_back()
                elif mode == "passive":
                    self.loop.request("stand", timeout_s=2.0)
            time.sleep(0.02)
        raise TimeoutError(f"does not walk within {within_s:g} s: {self.status()}")


# --- faults ---------------------------------------------------------------------------------


class Fault(NamedTuple):
    """A fault of one service."""

    text: str
    prepare: Callable[[Containers, str], tuple[Step, Step | None]]
    """Gives what begins the fault, and what ends it."""
    service: str
    becomes: str
    """As in `Row`."""
    lasts_s: float


def _process_of(stack: Containers, service: str) -> int:
    """Process of a service on this machine: the child of the container's init."""
    init = stack.inspect(service)["State"]["Pid"]
    with open(f"/proc/{init}/task/{init}/children") as file:
        return int(file.read().split()[0])


def _kill(stack: Containers, service: str) -> tuple[Step, Step | None]:
    """The engine starts it again."""
    return partial(os.kill, _process_of(stack, service), signal.SIGKILL), None


def _freeze(stack: Containers, service: str) -> tuple[Step, Step | None]:
    pid = _process_of(stack, service)
    return partial(os.kill, pid, signal.SIGSTOP), partial(os.kill, pid, signal.SIGCONT)


def _restart(stack: Containers, service: str) -> tuple[Step, Step | None]:
    """The signal that the engine sends comes first: the engine takes a while to get there."""
    pid, container = _process_of(stack, service), stack.container(service)

    def begin() -> None:
        os.kill(pid, signal.SIGTERM)
        command = ["docker", "restart", "--time", "10", container]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    return begin, None


def _cut_off(stack: Containers, service: str) -> tuple[Step, Step | None]:
    """Take its network away; sockets between the services are in a volume."""
    place = (f"{stack.project}_monitoring", stack.container(service))

    def network(verb: str) -> None:
        subprocess.run(["docker", "network", verb, *place], check=True)
        stack.addresses.clear()

    return partial(network, "disconnect"), partial(network, "connect")


def _faults(hal: str, gameloop: str, camera: str) -> list[Fault]:
    """Of one robot, whose services have these names."""
    return [
        Fault("killed", _kill, gameloop, "limp", 1.0),
        Fault("ended and started by the engine", _restart, gameloop, "sits", 1.0),
        Fault("frozen for 0.1 s", _freeze, gameloop, "holds", 0.1),
        Fault("frozen for 1 s", _freeze, gameloop, "limp", 1.0),
        Fault("frozen for 5 s", _freeze, gameloop, "limp", 5.0),
        Fault("without a network for 5 s", _cut_off, gameloop, "walks", 5.0),
        Fault("killed", _kill, hal, "limp", 1.0),
        Fault("ended and started by the engine", _restart, hal, "sits", 1.0),
        Fault("frozen for 0.1 s", _freeze, hal, "holds", 0.1),
        Fault("frozen for 1 s", _freeze, hal, "limp", 1.0),
        Fault("frozen for 5 s", _freeze, hal, "limp", 5.0),
        Fault("killed", _kill, camera, "walks", 1.0),
        Fault("frozen for 1 s", _freeze, camera, "walks", 1.0),
    ]


SIMULATED: Final = _faults("sim-hal", "gameloop", "camera")
EMULATED: Final = [
    *_faults("emulated-jetson-hal", "emulated-gameloop", "emulated-camera"),
    Fault("frozen for 1 s", _freeze, "robot-emulator", "limp", 1.0),
]


def measure(robot: Robot, fault: Fault) -> Row:
    """One fault from a walk to the next.

    Raises:
        TimeoutError: It does not walk, before or after.
    """
    robot.make_walk()
    robot.stack.go_first()  # what the engine has started again asks for it anew
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
    seen = robot.watch.since(began_ns)
    safe_ns, limp_ns, by = _stopped(robot, fault, seen, began_ns, mended_ns + 200_000_000)
    applied = [
        (each.handled_ns, command.header)
        for each in seen
        if (command := each.command) is not None
        and (reply := each.reply) is not None
        and reply.status == CommandStatus.APPLIED
    ]
    published = [(at_ns - header.publish_ns) * 1e-6 for at_ns, header in applied]
    captured = [(at_ns - header.capture_ns) * 1e-6 for at_ns, header in applied]
    stale = sum(
        one > LIMITS.since_publish_ms or two > LIMITS.since_capture_ms
        for one, two in zip(published, captured, strict=True)
    )
    return Row(
        fault=f"{fault.service.removeprefix('emulated-')} {fault.text}",
        robot=robot.name,
        becomes=fault.becomes,
        safe_ms=None if safe_ns is None else (safe_ns - began_ns) * 1e-6,
        limp_ms=None if limp_ns is None else (limp_ns - began_ns) * 1e-6,
        by=by,
        commands=len(applied),
        since_publish_ms=max(published, default=0.0),
        since_capture_ms=max(captured, default=0.0),
        stale=stale,
        rate=None,
        beyond_rad=None,
        measured_beyond_rad=None,
        recovery_s=recovery_s,
        recovered=recovered,
    )


def _stopped(
    robot: Robot, fault: Fault, seen: list[Exchange], began_ns: int, until_ns: int
) -> tuple[int | None, int | None, str]:
    """When it was safe and when limp, and by what."""
    entered = [
        (each.handled_ns, gate.safety_name)
        for each in seen
        if (gate := each.gate) is not None and each.handled_ns <= until_ns
    ]
    safe_ns = next((at_ns for at_ns, state in entered if state in _SAFE), None)
    limp_ns = next((at_ns for at_ns, state in entered if state in _LIMP), None)
    if robot.drives is None:
        stops_simulation = fault.service == robot.stack.hal
        return (None, None, "simulation") if stops_simulation else (safe_ns, limp_ns, "gate")
    released = [at_ns for at_ns in list(robot.drives.released_ns) if began_ns <= at_ns <= until_ns]
    if released and (limp_ns is None or released[0] < limp_ns):
        first = released[0]
        return first if safe_ns is None else min(safe_ns, first), first, "drives"
    return safe_ns, limp_ns, "gate"
