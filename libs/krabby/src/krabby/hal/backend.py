"""What moves the joints: the interface between the one HAL loop and a simulator or a robot.

A back end measures and drives; the loop (`krabby.hal.loop`) owns the safety gate, the sockets and
the time. In every slot it calls

    write(gate.step) -> read -> faults and measurement to the gate -> judged -> write(gate.step)

so the gate is asked right before the actuators are addressed, and again once it has judged what
was measured; the second `write` is left out where `read` is what addresses them. Between two slots
commands and operators' requests come, each followed by a `write`.
One thread calls all of it. README.md says how to write one; `examples/toy_hal.py` is the smallest.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from krabby_proto import Fault, make_hello
from numpy.typing import NDArray

from krabby.hal.measurement import Measurement
from krabby.robot.description import RobotDescription
from krabby.safety.gate import DriveCommand, GateCfg, SafetyGate

__all__ = ["HalBackend", "Image", "Reading", "SimBackend", "SimulatedClock", "Slot", "limp"]

_NO_FAULT = Fault(0)


class SimulatedClock:
    """Nanoseconds that the simulation advances; a back end on it runs in lock-step."""

    def __init__(self) -> None:
        """Start at 1 s: 0 means "never" in replies. The same in every run, so that runs repeat."""
        self.now_ns = 1_000_000_000

    def __call__(self) -> int:
        """Now [ns]."""
        return self.now_ns


class Slot(NamedTuple):
    """One cycle of the loop; times are those of the back end's clock."""

    scheduled_ns: int
    """When it began on the grid [ns]."""
    woke_ns: int
    """When the loop got the processor for it [ns]."""
    slots: int
    """How many slots of simulated time pass: 1, and missed ones that are made up for. 0 in the
    first turn of lock-step, which measures before time moves."""
    deadline_ns: int
    """When the next one begins [ns]."""


class Reading(NamedTuple):
    """What a back end found out in a slot."""

    measured: Measurement | None
    """The measurement; None while it is incomplete: the gate is told nothing and nothing is
    published."""
    capture_ns: int
    """When it was measured, or a moment before [ns]."""
    faults: Fault = _NO_FAULT
    """What is broken; the gate damps the drives for any of them."""
    was_reset: bool = False
    """Whether the robot was put down anew in this slot."""


class Image(NamedTuple):
    """A depth image to publish."""

    image: NDArray[np.float32]
    """Depth (height, width) [m], or flat; 0 where there is no reading."""
    capture_ns: int
    """When it was exposed [ns]."""
    flags: int = 0
    """Flags of its header."""


class HalBackend(Protocol):
    """A robot, or what stands in for one; derive from it.

    `name`, `desc`, `read` and `write` are needed, all else has a default.
    """

    name: str
    """The service's name in the hello."""
    desc: RobotDescription
    """The robot: the gate's limits come from it."""
    rate_hz: float = 200.0
    """Slots per second, a whole multiple of 100."""
    clock_ns: Callable[[], int] = staticmethod(time.monotonic_ns)
    """CLOCK_MONOTONIC, or a `SimulatedClock` for lock-step."""
    stage: str = "read"
    """What metrics and summary call the work of a cycle."""
    buffered: bool = False
    """Whether `write` only stores, and the next `read` hands it to the drives."""
    camera_model: Mapping[str, Any] | None = None
    """Model of the depth camera for the hello; None when there is none."""
    beat: Callable[[], None] = staticmethod(lambda: None)
    """For a `read` that takes longer than a slot: call it at every step, else the loop counts as
    stuck and the process is ended."""

    def start(self) -> None:
        """Open devices; every drive stays limp. Nothing was opened before."""

    @abstractmethod
    def read(self, slot: Slot) -> Reading:
        """Measure; a simulator lets the time of the slot pass first.

        The measurement may be reused by the next call.
        """

    @abstractmethod
    def write(self, drive: DriveCommand, now_ns: int) -> int:
        """Make this what the drives do from `now_ns` on.

        Returns:
            When that reaches them, as far as is known [ns].
        """

    def close(self) -> None:
        """Leave the robot limp and let go of everything; safe in any state, also not started."""

    def obstacle(self, op: str, gate: SafetyGate) -> str:
        """Why an operator's request must not reach the gate, with the remedy; empty to let it."""
        return ""

    def operated(self, op: str, *, granted: bool) -> None:
        """The gate answered an operator's request other than `status`."""

    def commanded(self, now_ns: int) -> None:
        """A valid command came; the gate has not judged it yet."""

    def judged(self, gate: SafetyGate, now_ns: int) -> None:
        """The gate has taken in the reading; what it decides is written next."""

    def frame(self, now_ns: int) -> Image | None:
        """The depth image to publish in this slot, None when there is none."""
        return None

    def extra(self) -> dict[str, Any]:
        """The hello's `extra`."""
        return {}

    def summary(self) -> dict[str, Any]:
        """What the run came to, for the last log line."""
        return {}

    @property
    def lockstep(self) -> bool:
        """Whether time is simulated."""
        return isinstance(self.clock_ns, SimulatedClock)

    def hello(self) -> dict[str, Any]:
        """What the HAL says about itself."""
        return make_hello(
            service=self.name,
            clock="simulated" if self.lockstep else "monotonic",
            robot=self.desc.identity,
            camera=self.camera_model or {},
            extra=self.extra(),
        )


class SimBackend(HalBackend):
    """A back end that knows the truth, and whose time the loop may hold."""

    @property
    @abstractmethod
    def sim_time_s(self) -> float:
        """Simulated time since the start [s]."""

    @abstractmethod
    def control_tick(self, now_ns: int) -> NDArray[np.float32]:
        """Once per control period of 10 ms: the `truth` payload, reused by the next call."""

    def mission(self) -> NDArray[np.float32] | None:
        """The walking command of an operator's stand-in, None for none."""
        return None

    def image_due(self, now_ns: int) -> bool:
        """Whether `expose` has work to do."""
        return False

    def expose(self, now_ns: int) -> object:
        """Render the depth image that is due; called where a slot is idle."""

    def picture(self, now_ns: int) -> Image | None:
        """What the camera sees now, without flaws and delay; None without a camera."""
        return None


def limp(desc: RobotDescription) -> DriveCommand:
    """What drives do before anything was written: they damp."""
    return SafetyGate(GateCfg.from_description(desc)).step(0)
