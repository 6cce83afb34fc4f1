"""The drives' side of the CAN buses: takes command frames, answers each at once.

Frames and their meaning are those of `krabby.drivers.can`, which jetson-hal uses too. What a
batch of commands asks goes to the `DriveBank` in one pass, and so do the feedbacks that answer it.
"""

import copy
import dataclasses
import heapq
import itertools
import math
import select
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import can
import numpy as np
import structlog
from krabby.drivers.can.calibration import Calibration, Mounting
from krabby.drivers.can.can_io import frame_of, hold, is_ahead, message_of, open_bus, release
from krabby.drivers.can.codec import Feedback, Frame, Kind, Parameter, Reply, Request, Scale
from krabby.drivers.can.hardware import HardwareDescription
from krabby.drivers.can.plan import codec_of
from krabby.drivers.can.testing import FakeDrive
from numpy.typing import NDArray

from krabby_emulator.faults import FaultBoard
from krabby_emulator.motor import DriveBank

__all__ = ["CanSide"]

log = structlog.get_logger(__name__)

_BATCH = 32
"""Frames taken off a bus before physics gets its turn again."""
_GATHER_NS = 100_000
"""The next frames of a wake-up are waited for this long: a 1 Mbit/s bus takes 0.13 ms for each, and
translating them one by one would cost three times as much."""
_POLL_S = 0.0005
"""A bus without a file descriptor, as `virtual` is, is looked at this often."""
_TURN = 2.0 * math.pi
_ERROR_BUS_OFF = 0x40
"""Id of the error frame with which Linux tells of a bus-off (linux/can/error.h)."""


class _Command(NamedTuple):
    """A command frame and whose it is."""

    bus: _Bus
    joint: int
    frame: Frame


class _Group(NamedTuple):
    """Some drives of one make, as the codec wants them."""

    joints: list[int]
    can_ids: NDArray[np.uint32]
    scale: Scale
    mounting: Mounting


class CanSide:
    """All buses with all drives on them; one thread uses it."""

    def __init__(
        self,
        hardware: HardwareDescription,
        calibration: Calibration,
        bank: DriveBank,
        board: FaultBoard,
        *,
        seed: int = 0,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Say who hears what; `open` connects.

        Args:
            hardware: which drive is on which bus.
            calibration: how the drives really sit.
            bank: what the drives do.
            board: what is broken.
            seed: of the replies that are lost.
            clock_ns: CLOCK_MONOTONIC.
        """
        self._bank = bank
        self._board = board
        self._clock_ns = clock_ns
        self._random = np.random.default_rng((seed, 2))
        self._mounting = Mounting(hardware, calibration)
        self._zero = self._mounting.offset.copy()
        """Joint angle at which the encoder's own zero is; drives count from there or a turn off."""
        self._can_ids = np.array([drive.can_id for drive in hardware.drives], np.uint32)
        self._scale = Scale.of([drive.model for drive in hardware.drives])
        self._zero_range = [0] * len(hardware.drives)
        self._groups: dict[tuple[int, ...], _Group] = {}
        self._buses = [_Bus(hardware, index) for index in range(len(hardware.buses))]
        self._pollable: dict[int, _Bus] = {}
        self._waiting: list[_Command] = []
        """Taken and not carried out yet."""
        self._asked: list[tuple[_Bus, int, Request]] = []
        """Parameters to be told once the commands that wait are answered."""
        self._drives = hardware.drives
        self._twins: dict[int, FakeDrive] = {}
        """Second drives under the id of a joint's; each turns a shaft without a load."""
        self._heard_by_twins: list[tuple[_Bus, int, Frame]] = []
        self._late: list[tuple[int, int, _Bus, can.Message]] = []
        self._order = itertools.count()
        self._was_off = [False] * len(self._buses)

    def open(self) -> None:
        """Open every bus; raises `BusError` naming the one that cannot be."""
        for bus in self._buses:
            bus.open()
            if bus.fileno >= 0:
                self._pollable[bus.fileno] = bus

    def close(self) -> None:
        """Close every bus."""
        for bus in self._buses:
            bus.close()

    def describe(self) -> list[dict[str, Any]]:
        """Where the buses are, for the log and the hello."""
        return [msgspec.structs.asdict(bus.spec) for bus in self._buses]

    def totals(self) -> dict[str, dict[str, int]]:
        """Frames by bus and direction: taken in, answered, lost on purpose."""
        return {
            bus.name: {"in": bus.received, "out": bus.sent, "lost": bus.lost} for bus in self._buses
        }

    def serve(self, until_ns: int) -> int:
        """Wait for frames until `until_ns`, answer those of one wake-up; returns how many."""
        now_ns = self._clock_ns()
        if self._board.twins.keys() != self._twins.keys():
            self._plug_twins()
        self._wake_rebooted()
        self._announce_bus_off()
        self._send_late(now_ns)
        if self._late:
            until_ns = min(until_ns, self._late[0][0])
        left_s = max(until_ns - now_ns, 0) * 1e-9
        if len(self._pollable) < len(self._buses):
            taken = self._take()
            if not taken:
                time.sleep(min(left_s, _POLL_S))
        else:
            ready, _, _ = select.select(list(self._pollable), (), (), left_s)
            taken = self._gather(until_ns) if ready else 0
        self._carry_out()
        return taken

    # --- frames in -----------------------------------------------------------------------------

    def _gather(self, until_ns: int) -> int:
        """Take frames until every drive was spoken to, or no more come; returns how many."""
        taken = 0
        while True:
            if self._clock_ns() + _GATHER_NS < until_ns:
                time.sleep(_GATHER_NS * 1e-9)
            more = self._take()
            taken += more
            if not more or len(self._waiting) >= len(self._can_ids) or self._clock_ns() >= until_ns:
                return taken

    def _take(self) -> int:
        """Take what is waiting on the buses and do what it asks; commands wait for one another."""
        taken = 0
        for bus in self._buses:
            messages = bus.take(_BATCH)
            taken += len(messages)
            if self._board.bus_off[bus.index]:
                bus.lost += len(messages)
                continue
            now_ns = self._clock_ns()
            for message in messages:
                frame = frame_of(message)
                request = bus.codec.parse_request(frame)  # other drives' replies ask nothing
                joint = None if request is None else bus.joints.get(request.can_id)
                if request is None or joint is None or now_ns < self._bank.ready_ns[joint]:
                    continue
                bus.received += 1
                if joint in self._twins:
                    self._heard_by_twins.append((bus, joint, frame))
                if request.kind is Kind.READ:
                    self._asked.append((bus, joint, request))  # it changes nothing
                    continue
                waiting = self._waiting
                if request.kind is not Kind.COMMAND or (
                    waiting and waiting[0].bus.codec is not bus.codec
                ):
                    # What came first takes effect first, and a batch is of one make.
                    self._carry_out()
                if request.kind is Kind.COMMAND:
                    self._waiting.append(_Command(bus, joint, frame))
                else:
                    self._request(bus, joint, request, now_ns)
        return taken

    def _carry_out(self) -> None:
        """Carry out what waits: commands to drives of one make, then questions; answer each."""
        now_ns = self._clock_ns()
        if self._waiting:
            commands, self._waiting = self._waiting, []
            self._command(commands, now_ns)
        asked, self._asked = self._asked, []
        for bus, joint, request in asked:
            value = self._read(joint, request.parameter)
            self._tell(bus, joint, request, value, now_ns)
        heard, self._heard_by_twins = self._heard_by_twins, []
        for bus, joint, frame in heard:
            twin = self._twins.get(joint)
            answer = None if twin is None else twin.handle(frame, now_ns * 1e-9)
            if answer is not None:
                self._send(bus, joint, answer, now_ns)

    def _plug_twins(self) -> None:
        """Plug in the second drives that there are to be now, pull out the others."""
        wanted = self._board.twins
        self._twins = {joint: twin for joint, twin in self._twins.items() if joint in wanted}
        here = self._mounting.drive_pos(self._bank.reported_pos)
        for joint in wanted.keys() - self._twins.keys():
            bus = next(bus for bus in self._buses if joint in bus.joints.values())
            position = float(here[joint]) + wanted[joint]
            self._twins[joint] = FakeDrive(self._drives[joint], bus.codec, position=position)

    def _command(self, commands: list[_Command], now_ns: int) -> None:
        codec = commands[0].bus.codec
        group = self._group(tuple(command.joint for command in commands))
        ids = np.array([command.frame.arbitration_id for command in commands], np.uint32)
        data = np.frombuffer(b"".join(command.frame.data for command in commands), np.uint8)
        asked = codec.decode_commands(group.scale, ids, data.reshape(-1, 8))
        pos, vel, kp, kd, torque = np.asarray(asked, np.float64)
        mounting = group.mounting
        self._bank.command(
            group.joints,
            mounting.joint_pos(pos),
            mounting.joint_vel(vel),
            kp * mounting.stiffness_ratio,
            kd * mounting.stiffness_ratio,
            mounting.joint_torque(torque),
            now_ns,
        )
        self._feed_back([command.bus for command in commands], group, now_ns)

    def _request(self, bus: _Bus, joint: int, request: Request, now_ns: int) -> None:
        """Carry out anything else."""
        bank = self._bank
        match request.kind:
            case Kind.ENABLE:
                bank.enable(joint, now_ns)
            case Kind.DISABLE:
                bank.disable(joint)
            case Kind.CLEAR_FAULTS:
                bank.disable(joint, clear=True)
            case Kind.SET_ZERO:
                self._zero[joint] = bank.reported_pos[joint]
                self._count_from(joint, self._zero[joint])
            case Kind.WRITE:
                self._write(joint, request)
            case _:  # SAVE changes nothing, since power never goes here
                pass
        if request.kind is Kind.WRITE and not bus.codec.write_answers_with_feedback:
            self._tell(bus, joint, request, self._read(joint, request.parameter), now_ns)
        else:
            self._feed_back([bus], self._group((joint,)), now_ns)

    def _tell(self, bus: _Bus, joint: int, request: Request, value: float, now_ns: int) -> None:
        reply = Reply(request.can_id, request.parameter, value, request.index)
        self._send(bus, joint, bus.codec.reply(reply), now_ns)

    def _write(self, joint: int, request: Request) -> None:
        bank = self._bank
        match request.parameter:
            case Parameter.CAN_TIMEOUT:
                bank.timeout_ns[joint] = round(request.value * 1e9)
            case Parameter.TORQUE_LIMIT:
                bank.limit_torque(joint, abs(request.value * self._mounting.ratio[joint]))
            case Parameter.ZERO_RANGE:
                self._zero_range[joint] = round(request.value)
            case _:  # the run mode is MIT whatever is written; the rest there is not
                pass

    def _read(self, joint: int, parameter: Parameter) -> float:
        bank = self._bank
        match parameter:
            case Parameter.CAN_TIMEOUT:
                return float(bank.timeout_ns[joint]) * 1e-9
            case Parameter.TORQUE_LIMIT:
                return float(bank.torque_limit[joint] / abs(self._mounting.ratio[joint]))
            case Parameter.VOLTAGE:
                return bank.supply_v
            case Parameter.ZERO_RANGE:
                return self._zero_range[joint]
            case Parameter.RUN_MODE:
                return 0.0
            case Parameter.POSITION_RANGE:
                return float(self._scale.position[joint])
            case Parameter.VELOCITY_RANGE:
                return float(self._scale.velocity[joint])
            case Parameter.TORQUE_RANGE:
                return float(self._scale.torque[joint])
        return float("nan")

    def _wake_rebooted(self) -> None:
        """A drive that wakes up knows its angle within a turn, and counts from there."""
        bank, ratio = self._bank, self._mounting.ratio
        while bank.rebooted:
            joint = bank.rebooted.pop()
            lowest = -math.pi if self._zero_range[joint] else 0.0
            shaft = (bank.reported_pos[joint] - self._zero[joint]) * ratio[joint]
            turns = math.floor((shaft - lowest) / _TURN)
            self._count_from(joint, self._zero[joint] + turns * _TURN / ratio[joint])

    def _count_from(self, joint: int, joint_pos: float) -> None:
        self._mounting.offset[joint] = joint_pos
        self._groups.clear()  # they hold copies

    # --- frames out ----------------------------------------------------------------------------

    def _feed_back(self, buses: list[_Bus], group: _Group, now_ns: int) -> None:
        bank, joints, mounting = self._bank, group.joints, group.mounting
        codec = buses[0].codec
        feedback = Feedback(
            mounting.drive_pos(bank.reported_pos[joints]),
            mounting.drive_vel(bank.reported_vel[joints]),
            mounting.drive_torque(bank.reported_effort[joints]),
            bank.winding_c[joints],
            bank.mode[joints],
            bank.faults[joints],
        )
        ids, data = codec.encode_feedbacks(group.can_ids, group.scale, feedback)
        raw = data.tobytes()
        here = dict.fromkeys(buses)
        for bus in here:
            bus.hold()
        for place, arbitration_id in enumerate(ids.tolist()):
            frame = Frame(arbitration_id, raw[8 * place : 8 * place + 8], codec.is_extended)
            self._send(buses[place], joints[place], frame, now_ns)
        for bus in here:
            bus.release()

    def _send(self, bus: _Bus, joint: int, frame: Frame, now_ns: int) -> None:
        """Let a reply go: at once, late or never, as the faults have it."""
        board = self._board
        if board.lost_share[joint] and self._random.random() < board.lost_share[joint]:
            bus.lost += 1
            return
        message = message_of(frame)
        if board.delay_ns[joint]:
            due_ns = now_ns + board.delay_ns[joint]
            heapq.heappush(self._late, (due_ns, next(self._order), bus, message))
            return
        bus.send(message)

    def _send_late(self, now_ns: int) -> None:
        while self._late and self._late[0][0] <= now_ns:
            _, _, bus, message = heapq.heappop(self._late)
            if self._board.bus_off[bus.index]:
                bus.lost += 1
            else:
                bus.send(message)

    def _announce_bus_off(self) -> None:
        """Tell the host what its own controller would: an error frame, once."""
        if self._board.bus_off == self._was_off:
            return
        for bus, off, was_off in zip(self._buses, self._board.bus_off, self._was_off, strict=True):
            if off and not was_off:
                bus.send(
                    can.Message(
                        arbitration_id=_ERROR_BUS_OFF,
                        is_extended_id=False,
                        is_error_frame=True,
                        data=bytes(8),
                    )
                )
        self._was_off = list(self._board.bus_off)

    def _group(self, joints: tuple[int, ...]) -> _Group:
        group = self._groups.get(joints)
        if group is None:
            at = list(joints)
            mounting = copy.copy(self._mounting)
            mounting.offset = mounting.offset[at]
            mounting.ratio = mounting.ratio[at]
            mounting.stiffness_ratio = mounting.stiffness_ratio[at]
            scale = Scale(*(values[at] for values in self._scale))
            group = self._groups[joints] = _Group(at, self._can_ids[at], scale, mounting)
        return group


class _Bus:
    """One CAN bus and who sits on it."""

    def __init__(self, hardware: HardwareDescription, index: int) -> None:
        self.index = index
        self.spec = hardware.buses[index]
        self.name = self.spec.name
        self.codec = codec_of(hardware, self.name)
        self.joints = {hardware.drives[i].can_id: i for i in hardware.drives_of(self.name)}
        self.received = 0
        self.sent = 0
        self.lost = 0
        """Frames that a fault swallowed."""
        self.fileno = -1
        self._can: can.BusABC | None = None

    def open(self) -> None:
        self._can = open_bus(self.spec)
        try:
            self.fileno = self._can.fileno()
        except NotImplementedError:
            self.fileno = -1

    def take(self, most: int) -> list[can.Message]:
        """Frames that are waiting."""
        bus = self._can
        assert bus is not None, "open comes first"
        messages: list[can.Message] = []
        # What the bus has in hand would not wake `select`.
        while len(messages) < most or is_ahead(bus):
            try:
                message = bus.recv(0.0)
            except can.CanError as error:  # a datagram that is no CAN frame
                log.debug("unreadable frame", bus=self.name, error=str(error))
                continue
            if message is None:
                break
            if not (message.is_error_frame or message.is_remote_frame):
                messages.append(message)
        return messages

    def send(self, message: can.Message) -> None:
        assert self._can is not None, "open comes first"
        try:
            self._can.send(message)
            self.sent += 1
        except can.CanError as error:  # nobody there, or the queue is full: the wire forgets
            self.lost += 1
            log.debug("frame not sent", bus=self.name, error=str(error))

    def hold(self) -> None:
        """Let what is sent from now on go out together, at `release`."""
        assert self._can is not None, "open comes first"
        hold(self._can)

    def release(self) -> None:
        assert self._can is not None, "open comes first"
        try:
            release(self._can)
        except can.CanError as error:  # as in `send`
            log.debug("frames not sent", bus=self.name, error=str(error))

    def close(self) -> None:
        if self._can is not None:
            self._can.shutdown()
            self._can = None
