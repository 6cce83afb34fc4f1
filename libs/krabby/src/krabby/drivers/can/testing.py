"""The drives' end of a bus, for tests and benchmarks.

`FakeDrive` is one drive as a state machine with the clock passed in; `FakeDrives` puts all of a
`HardwareDescription` on its buses, a thread each. They follow their targets without physics.
"""

import contextlib
import math
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Self

import can
import numpy as np

from krabby.drivers.can.can_io import frame_of, message_of, open_bus
from krabby.drivers.can.codec import Codec, Feedback, Frame, Kind, Parameter, Reply, Scale
from krabby.drivers.can.hardware import BusSpec, HardwareDescription, JointDrive
from krabby.drivers.can.identity import emulated_identity
from krabby.drivers.can.types import DriveFault, DriveMode
from krabby.drivers.errors import DriveError

__all__ = ["FakeDrive", "FakeDrives", "SteppedDrives", "fake_drives", "free_multicast_channels"]

_SPARE = 0x7E
_STEP_RAD = 0.05
"""How far a fake drive turns towards its target per command."""


@dataclass
class FakeDrive:
    """One drive. What a test wants to go wrong is an attribute."""

    spec: JointDrive
    codec: Codec
    position: float = 0.0
    """Angle of the shaft [rad]."""
    velocity: float = 0.0
    torque: float = 0.0
    temperature_c: float = 30.0
    voltage_v: float = 48.0
    mode: DriveMode = DriveMode.OFF
    faults: int = 0
    """`DriveFault` bits."""
    hard_faults: int = 0
    """Come back whenever faults are cleared."""
    muted: bool = False
    """Hears commands and says nothing."""
    lose_next: int = 0
    """This many replies are lost from now on."""
    delay_s: float = 0.0
    """Of its replies, for a test's own bus."""
    stuck: bool = False
    """The encoder does not move."""
    ignores_enable: bool = False
    kp: float = 0.0
    kd: float = 0.0
    target: float = 0.0
    """Of the newest command [rad]."""
    identity: str | None = None
    """Its unique number, hexadecimal; empty for a drive that does not say, None for a spare's."""
    commands: int = 0
    requests: list[Kind] = field(default_factory=list)
    """Everything but commands, in order."""
    _heard_s: float = -math.inf

    def __post_init__(self) -> None:
        """Parameters as delivered."""
        model = self.spec.model
        if self.identity is None:
            self.identity = emulated_identity(_SPARE, self.codec.identity_digits)
        self.parameters = {
            Parameter.CAN_TIMEOUT: 0.0,
            Parameter.RUN_MODE: 0.0,
            Parameter.POSITION_RANGE: model.position_range,
            Parameter.VELOCITY_RANGE: model.velocity_range,
            Parameter.TORQUE_RANGE: model.torque_range,
        }
        self._scale = Scale.of([model])
        self._id = np.array([self.spec.can_id], np.uint32)

    def handle(self, frame: Frame, now_s: float) -> Frame | None:
        """Hear a frame; the answer, if it is for this drive."""
        request = self.codec.parse_request(frame)
        if request is None or request.can_id != self.spec.can_id:
            return None
        self.tick(now_s)
        self._heard_s = now_s
        if request.kind != Kind.COMMAND:
            self.requests.append(request.kind)
        match request.kind:
            case Kind.COMMAND:
                self._follow(frame)
            case Kind.ENABLE if not (self.ignores_enable or self.faults):
                self.mode = DriveMode.RUN
            case Kind.DISABLE:
                self.mode = DriveMode.OFF
            case Kind.CLEAR_FAULTS:
                self.mode, self.faults = DriveMode.OFF, self.hard_faults
            case Kind.SET_ZERO:
                self.position = 0.0
            case Kind.WRITE:
                self.parameters[request.parameter] = request.value
        is_write = request.kind == Kind.WRITE and not self.codec.write_answers_with_feedback
        if request.parameter == Parameter.IDENTITY:
            if not self.identity:
                return None
            known = Reply(request.can_id, Parameter.IDENTITY, 1.0, identity=self.identity)
            return self._out(self.codec.reply(known))
        if request.kind == Kind.READ or is_write:
            known = self.parameters | {Parameter.VOLTAGE: self.voltage_v}
            value = known.get(request.parameter, math.nan)
            reply = Reply(request.can_id, request.parameter, value, request.index)
            return self._out(self.codec.reply(reply))
        return self._out(self.feedback())

    def tick(self, now_s: float) -> None:
        """Switch off if nothing was heard for the time-out."""
        timeout_s = self.parameters[Parameter.CAN_TIMEOUT]
        if self.mode == DriveMode.RUN and 0.0 < timeout_s < now_s - self._heard_s:
            self.mode = DriveMode.OFF
            self.torque = self.kp = 0.0
            if self.codec.timeout_is_fault:
                self.faults |= DriveFault.CAN_TIMEOUT

    def feedback(self) -> Frame:
        """What it reports."""
        measured = [self.position], [self.velocity], [self.torque], [self.temperature_c]
        position, velocity, torque, temperature_c = map(np.array, measured)
        mode, faults = np.array([self.mode], np.uint8), np.array([self.faults], np.uint32)
        values = Feedback(position, velocity, torque, temperature_c, mode, faults)
        ids, data = self.codec.encode_feedbacks(self._id, self._scale, values)
        return Frame(int(ids[0]), data[0].tobytes(), self.codec.is_extended)

    def _follow(self, frame: Frame) -> None:
        ids = np.array([frame.arbitration_id], np.uint32)
        data = np.frombuffer(frame.data, np.uint8).reshape(1, 8)
        command = self.codec.decode_commands(self._scale, ids, data)
        self.commands += 1
        self.target, self.kp, self.kd = (
            float(values[0]) for values in (command.position, command.kp, command.kd)
        )
        if self.mode != DriveMode.RUN:
            return
        error = self.target - self.position
        self.torque = self.kp * error + float(command.torque[0]) - self.kd * self.velocity
        if self.kp > 0.0 and not self.stuck:
            self.position += max(-_STEP_RAD, min(_STEP_RAD, error))

    def _out(self, frame: Frame) -> Frame | None:
        if self.lose_next:
            self.lose_next -= 1
            return None
        return None if self.muted else frame


def fake_drives(hardware: HardwareDescription) -> list[FakeDrive]:
    """One drive for every joint, in joint order, each with its own number."""
    makes = [hardware.codec_of(spec.bus) for spec in hardware.drives]
    return [
        FakeDrive(spec, make, identity=emulated_identity(joint, make.identity_digits))
        for joint, (spec, make) in enumerate(zip(hardware.drives, makes, strict=True))
    ]


class FakeDrives:
    """All drives of the robot on their buses; a context manager."""

    def __init__(self, hardware: HardwareDescription) -> None:
        """Every drive stands at its zero, switched off."""
        self.drives = fake_drives(hardware)
        """In joint order."""
        self.twins: list[FakeDrive] = []
        """Second drives under ids of those; each answers after the first."""
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(
                target=self._run,
                args=(
                    open_bus(spec),
                    spec,
                    [self.drives[j] for j in hardware.drives_of(spec.name)],
                ),
                daemon=True,
            )
            for spec in hardware.buses
        ]

    def __enter__(self) -> Self:
        """Begin to answer."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Fall silent and leave the buses."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, bus: can.BusABC, spec: BusSpec, drives: list[FakeDrive]) -> None:
        """Answer until the end; where the interface goes away, on the next one of its name."""
        while not self._stop.is_set():
            with contextlib.suppress(can.CanError), bus:
                self._answer(bus, drives)
            while not self._stop.wait(0.01):
                with contextlib.suppress(DriveError):
                    bus = open_bus(spec)
                    break

    def _answer(self, bus: can.BusABC, drives: list[FakeDrive]) -> None:
        by_id = {drive.spec.can_id: drive for drive in drives}
        codec = drives[0].codec
        while not self._stop.is_set():
            message = bus.recv(0.01)
            if message is None or message.is_error_frame:
                continue
            frame = frame_of(message)
            request = codec.parse_request(frame)
            drive = None if request is None else by_id.get(request.can_id)
            if drive is None:
                continue
            for hearing in (drive, *(twin for twin in self.twins if twin.spec == drive.spec)):
                answer = hearing.handle(frame, time.monotonic())
                if answer is not None:
                    bus.send(message_of(answer))


class SteppedDrives:
    """All drives on virtual buses in one thread; they answer when `clock_ns` is asked for the time.

    So a run is the same however slow the machine is.
    """

    def __init__(self, hardware: HardwareDescription, name: str) -> None:
        """`name` keeps the buses apart from those of others in this process."""
        names = {bus.name: f"{name}-{bus.name}" for bus in hardware.buses}
        self.hardware = hardware.with_interface("virtual", names)
        self.drives = fake_drives(self.hardware)
        self.order = list(range(len(hardware.buses)))
        """Whose drives hang on each bus's wires."""
        self.now_ns = 1_000_000_000
        self._peers = [open_bus(spec) for spec in self.hardware.buses]

    def clock_ns(self) -> int:
        """Now; 20 us later than the last time [ns]."""
        self.now_ns += 20_000
        for number, peer in enumerate(self._peers):
            joints = self.hardware.drives_of(self.hardware.buses[self.order[number]].name)
            while (message := peer.recv(0.0)) is not None:
                frame = frame_of(message)
                request = self.drives[joints[0]].codec.parse_request(frame)
                for joint in joints:
                    drive = self.drives[joint]
                    if request is None or request.can_id != drive.spec.can_id:
                        continue
                    answer = drive.handle(frame, self.now_ns * 1e-9)
                    if answer is not None:
                        peer.send(message_of(answer))
        return self.now_ns

    def wait(self, duration_s: float) -> None:
        """Let time pass [s]."""
        self.now_ns += round(duration_s * 1e9)

    def close(self) -> None:
        """Leave the buses."""
        for peer in self._peers:
            peer.shutdown()


def free_multicast_channels(hardware: HardwareDescription) -> dict[str, str]:
    """Channels for `with_interface("udp_multicast", ...)` that are free on this host."""
    channels = {}
    with contextlib.ExitStack() as stack:
        for number, bus in enumerate(hardware.buses):
            probe = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            probe.bind(("", 0))
            channels[bus.name] = f"239.74.163.{number + 1}:{probe.getsockname()[1]}"
    return channels
