"""A HAL without a robot, for tests of everything that talks to one."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final, Self

import numpy as np

from krabby_proto.codec import FloatArray, Message, pack
from krabby_proto.endpoint import Context
from krabby_proto.header import FLAG_HOLD
from krabby_proto.hello import make_hello
from krabby_proto.replies import CommandOutcome, SafetyOutcome
from krabby_proto.server import HalServer
from krabby_proto.states import SAFETY_STATES, CommandStatus
from krabby_proto.streams import CAMERA, COMMAND, NUM_FEET, NUM_JOINTS, SAFETY, STATE, TRUTH

__all__ = ["FakeHal", "resting_state"]

_DISARMED: Final = SAFETY_STATES.index("disarmed")
_ACTIVE: Final = SAFETY_STATES.index("active")
_ESTOP: Final = SAFETY_STATES.index("estop")


def resting_state() -> FloatArray:
    """A state payload of a robot that rests level: all joints 0, all feet on the ground."""
    return pack(
        STATE,
        base_quat_w=(0.0, 0.0, 0.0, 1.0),
        base_ang_vel_b=np.zeros(3),
        base_lin_acc_b=(0.0, 0.0, 9.81),
        joint_pos=np.zeros(NUM_JOINTS),
        joint_vel=np.zeros(NUM_JOINTS),
        joint_effort=np.zeros(NUM_JOINTS),
        foot_contact=np.ones(NUM_FEET),
    )


class FakeHal:
    """A `HalServer` with a scripted state; joints follow applied commands at once.

    As a context manager it runs in a thread. Otherwise the test drives it by `step`, with a fake
    clock. Attributes may be set from the test at any time.

    Args:
        endpoints: free TCP ports of this host when None; see `endpoints` for what was bound.
        hello: what it says about itself.
        rate_hz: of the state stream when it runs in a thread.
        armed: whether commands move it from the start.
        clock_ns: stamps states and judges commands.
        context: needed for ``inproc://`` only.
        server: makes the server; a test of bad behaviour passes a subclass of `HalServer`.
        options: passed on to the server, for example ``ttl_s``.
    """

    def __init__(
        self,
        endpoints: Mapping[str, str] | None = None,
        *,
        hello: Mapping[str, object] | None = None,
        rate_hz: float = 100.0,
        armed: bool = False,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        context: Context | None = None,
        server: Callable[..., HalServer] = HalServer,
        **options: object,
    ) -> None:
        self.state: FloatArray = resting_state()
        """Published every period, shape (70,)."""
        self.state_flags = 0
        self.publishing = True
        """Cleared to play a HAL whose state falls silent."""
        self.serving = True
        """Cleared to play a HAL that does not answer."""
        self.safety_state = _ACTIVE if armed else _DISARMED
        self.fault_bits = 0
        self.arm_count = 1
        self.applied: list[Message] = []
        """Every command that was applied, in order."""
        self.operators: list[tuple[str, str]] = []
        """Every operator's request carried out: op, by."""
        self._clock_ns = clock_ns
        self._period_s = 1.0 / rate_hz
        self._jobs: queue.SimpleQueue[Callable[[HalServer], object]] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.server = server(
            endpoints
            or dict.fromkeys(
                (s.name for s in (STATE, CAMERA, TRUTH, COMMAND, SAFETY)), "tcp://127.0.0.1:*"
            ),
            hello=hello or make_hello(service="fake-hal"),
            handler=self,
            clock_ns=clock_ns,
            context=context,
            **options,
        )
        self.endpoints = self.server.endpoints
        """Stream name to endpoint, as bound."""

    def on_command(self, message: Message) -> CommandOutcome:
        """Apply a command when armed."""
        if self.safety_state == _ESTOP:
            return self._outcome(CommandStatus.REJECTED_SAFETY)
        if self.safety_state != _ACTIVE:
            return self._outcome(CommandStatus.NOT_ARMED)
        if not message.flags & FLAG_HOLD:
            state = self.state.copy()
            state[STATE.slices["joint_pos"]] = message.payload
            self.state = state
        self.applied.append(message)
        return self._outcome(CommandStatus.APPLIED, self._clock_ns())

    def _outcome(self, status: CommandStatus, applied_ns: int = 0) -> CommandOutcome:
        return CommandOutcome(
            status,
            self.safety_state,
            fault_bits=self.fault_bits,
            applied_ns=applied_ns,
            arm_count=self.arm_count,
        )

    def on_safety(self, op: str, by: str) -> SafetyOutcome:
        """Arm, disarm, e-stop (latched until reset) at once."""
        reason = ""
        if op != "status":
            self.operators.append((op, by))
        if op == "estop":
            self.safety_state = _ESTOP
        elif op == "arm" and self.safety_state == _ESTOP:
            reason = "the e-stop is latched; reset first"
        elif op == "arm":
            self.safety_state = _ACTIVE
            self.arm_count += 1
        elif op == "reset" or (op == "disarm" and self.safety_state != _ESTOP):
            self.safety_state = _DISARMED
        self.server.safety_state, self.server.arm_count = self.safety_state, self.arm_count
        return SafetyOutcome(not reason, SAFETY_STATES[self.safety_state], (), reason)

    def publish(self) -> int:
        """Publish the state once, captured now; returns its sequence. Not while a thread runs."""
        return self.server.publish_state(self.state, self._clock_ns(), self.state_flags)

    def step(self, timeout_s: float = 0.0) -> int:
        """Publish once and serve what is waiting; returns how many requests were served."""
        if self.publishing:
            self.publish()
        return self.server.poll(timeout_s) if self.serving else 0

    def submit(self, job: Callable[[HalServer], object]) -> None:
        """Have the HAL's thread call `job(server)`, for example to publish an image."""
        self._jobs.put(job)

    def take_note(self, timeout_s: float = 60.0) -> None:
        """Wait until the thread acts on every attribute set so far."""
        noted = threading.Event()
        self.submit(lambda _: noted.set())
        if not noted.wait(timeout_s):
            raise TimeoutError(f"the fake HAL's thread did nothing for {timeout_s} s")

    def start(self) -> None:
        """Run in a thread."""
        self._thread = threading.Thread(target=self._run, name="fake-hal", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, close the sockets; raises what the thread died of."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self.server.close()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            due = time.monotonic()
            while not self._stop.is_set():
                if self.publishing:
                    self.publish()
                while not self._jobs.empty():
                    self._jobs.get()(self.server)
                due = max(due + self._period_s, time.monotonic())
                while (left := due - time.monotonic()) > 0.0 and not self._stop.is_set():
                    if self.serving:
                        self.server.poll(left)
                    else:
                        self._stop.wait(left)
        except BaseException as error:
            self._error = error

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
