"""The drives' end of the CAN buses: takes frames and answers each at once.

Faults on the wire happen here: replies that are lost or late, a bus that is off, a second drive.
"""

import heapq
import itertools
import select
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import can
import msgspec
import numpy as np
import structlog
from krabby.drivers.can.calibration import Calibration
from krabby.drivers.can.can_io import (
    FrameBatch,
    frame_of,
    hold,
    is_ahead,
    message_of,
    open_bus,
    receive,
    release,
    send_frames,
    source_of,
    takes_batches,
)
from krabby.drivers.can.codec import Frame, Kind, Request
from krabby.drivers.can.hardware import HardwareDescription
from krabby.drivers.can.testing import FakeDrive

from krabby_emulator.drives import EmulatedDrives
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
_REPEAT_NS = 170_000
"""A damaged frame, the flag and gap after it [ns]."""
_FRAME_BITS = 150
_ERROR_CONTROLLER = 0x04
_ERROR_BUS_OFF = 0x40
"""Id of the error frame with which Linux tells of a bus-off (linux/can/error.h)."""


class _Bus:
    """One CAN bus and its drives."""

    def __init__(self, hardware: HardwareDescription, index: int) -> None:
        self.index = index
        self.spec = hardware.buses[index]
        self.name = self.spec.name
        self.codec = hardware.codec_of(self.name)
        self.joints = {hardware.drives[i].can_id: i for i in hardware.drives_of(self.name)}
        self.counts = {"in": 0, "out": 0, "lost": 0}
        """Frames taken in, answered, swallowed by a fault."""
        self.was_off = self.was_noisy = False
        self.replugged = 0
        """How often its adapter was pulled, so far."""
        self._sources: set[object] = set()
        """Sockets that were heard since."""
        self._dead: set[object] = set()
        """Sockets that were opened before the adapter was pulled."""
        self.fileno = -1
        self._can: Any = None

    def open(self) -> None:
        self._can = open_bus(self.spec)
        try:
            self.fileno = self._can.fileno()
        except NotImplementedError:
            self.fileno = -1

    @property
    def takes_batches(self) -> bool:
        """Whether `send_frames` may be used."""
        return self.codec.is_extended and takes_batches(self._can)

    def take(self, most: int) -> list[Frame]:
        """Data frames that are waiting."""
        bus = self._can
        frames: list[Frame] = []
        # What the bus has in hand would not wake `select`.
        while len(frames) < most or is_ahead(bus):
            try:
                received = receive(bus, 0.0)
            except can.CanError as error:  # a datagram that is no CAN frame
                log.debug("unreadable frame", bus=self.name, error=str(error))
                continue
            if received is None:
                break
            source = source_of(bus)
            if source in self._dead:
                continue
            if source is not None:
                self._sources.add(source)
            if isinstance(received, FrameBatch):
                frames += [Frame(i, data, True) for i, data in received.frames]
            elif not (received.is_error_frame or received.is_remote_frame):
                frames.append(frame_of(received))
        return frames

    def send_frames(self, frames: Sequence[tuple[int, bytes]]) -> None:
        """Send replies at once: arbitration id and data of each."""
        try:
            send_frames(self._can, frames)
            self.counts["out"] += len(frames)
        except can.CanError as error:  # as in `send`
            self.counts["lost"] += len(frames)
            log.debug("frames not sent", bus=self.name, error=str(error))

    def send(self, message: can.Message) -> None:
        try:
            self._can.send(message)
            self.counts["out"] += 1
        except can.CanError as error:  # no receiver, or the queue is full
            self.counts["lost"] += 1
            log.debug("frame not sent", bus=self.name, error=str(error))

    def replug(self, count: int) -> None:
        """The adapter was pulled so often: what was opened before is dead."""
        if count > self.replugged:
            self._dead |= self._sources
            self._sources.clear()
        self.replugged = count

    def hold(self) -> None:
        """Let what is sent from now on go out together, at `release`."""
        hold(self._can)

    def release(self) -> None:
        try:
            release(self._can)
        except can.CanError as error:  # as in `send`
            log.debug("frames not sent", bus=self.name, error=str(error))

    def close(self) -> None:
        if self._can is not None:
            self._can.shutdown()
            self._can = None


class _Heard(NamedTuple):
    """A frame for a drive."""

    bus: _Bus
    joint: int
    frame: Frame
    request: Request | None
    """None for a command."""


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
        """`calibration` is how the drives really sit, `seed` that of the replies that are lost."""
        self._bank, self._board, self._clock_ns = bank, board, clock_ns
        self._random = np.random.default_rng((seed, 2))
        self._drives = EmulatedDrives(hardware, calibration, bank)
        self._count = len(hardware.drives)
        self._buses = [_Bus(hardware, index) for index in range(len(hardware.buses))]
        self._joints_on = [bus.joints for bus in self._buses]
        """By bus of the host: whose drive listens to an id there."""
        self._commands_on: list[dict[int, int]] = []
        """The same by what a command is recognised by, where its id tells."""
        self._list_commands()
        self._pollable: list[int] = []
        self._waiting: list[_Heard] = []
        """Commands that are taken and not carried out yet."""
        self._asked: list[_Heard] = []
        """Parameters to be told once the commands that wait are answered."""
        self._twins: dict[int, FakeDrive] = {}
        """Second drives under the id of a joint's."""
        self._heard_by_twins: list[_Heard] = []
        self._changes = -1
        """Of the board, when the wires were last looked at."""
        self._late: list[tuple[int, int, _Bus, can.Message]] = []
        self._order = itertools.count()

    def open(self) -> None:
        """Open every bus; raises `DriveError` naming the one that cannot be."""
        for bus in self._buses:
            bus.open()
        self._pollable = [bus.fileno for bus in self._buses if bus.fileno >= 0]

    def close(self) -> None:
        """Close every bus."""
        for bus in self._buses:
            bus.close()

    def describe(self) -> list[dict[str, Any]]:
        """Where the buses are, for the log and the hello."""
        return [msgspec.structs.asdict(bus.spec) for bus in self._buses]

    def totals(self) -> dict[str, dict[str, int]]:
        """Frames by bus and direction: taken in, answered, lost on purpose."""
        return {bus.name: bus.counts.copy() for bus in self._buses}

    def serve(self, until_ns: int) -> int:
        """Wait for frames until `until_ns`, answer those of one wake-up; returns how many."""
        now_ns = self._clock_ns()
        if self._board.changes != self._changes:
            self._rewire()
        self._drives.wake_rebooted()
        self._send_late(now_ns)
        if self._late:
            until_ns = min(until_ns, self._late[0][0])
        left_s = max(until_ns - now_ns, 0) * 1e-9
        if len(self._pollable) < len(self._buses):
            taken = self._take()
            if not taken:
                time.sleep(min(left_s, _POLL_S))
        else:
            ready, _, _ = select.select(self._pollable, (), (), left_s)
            taken = self._gather(until_ns) if ready else 0
        self._carry_out()
        return taken

    # --- frames in -----------------------------------------------------------------------------

    def _gather(self, until_ns: int) -> int:
        """Take frames until every drive was addressed, or no more come; returns how many."""
        taken = 0
        while True:
            if self._clock_ns() + _GATHER_NS < until_ns:
                time.sleep(_GATHER_NS * 1e-9)
            more = self._take()
            taken += more
            if not more or len(self._waiting) >= self._count or self._clock_ns() >= until_ns:
                return taken

    def _take(self) -> int:
        """Take what is waiting on the buses and do what it asks; commands wait for one another."""
        taken = 0
        for bus in self._buses:
            frames = bus.take(_BATCH)
            if not frames:
                continue
            taken += len(frames)
            if self._board.bus_off[bus.index]:
                bus.counts["lost"] += len(frames)
                continue
            now_ns = self._clock_ns()
            joints, parse = self._joints_on[bus.index], bus.codec.parse_request
            commands, mask = self._commands_on[bus.index], bus.codec.command_mask
            ready_ns = self._bank.ready_ns.tolist()
            for frame in frames:
                joint = commands.get(frame.arbitration_id & mask)
                if joint is not None and len(frame.data) == 8 and frame.is_extended:
                    if now_ns >= ready_ns[joint]:
                        bus.counts["in"] += 1
                        self._hear_command(_Heard(bus, joint, frame, None))
                    continue
                request = parse(frame)  # other drives' replies ask nothing
                joint = None if request is None else joints.get(request.can_id)
                if request is None or joint is None or now_ns < ready_ns[joint]:
                    continue
                bus.counts["in"] += 1
                if request.kind is Kind.COMMAND:
                    self._hear_command(_Heard(bus, joint, frame, None))
                else:
                    self._hear(bus, joint, frame, request, now_ns)
        return taken

    def _hear_command(self, heard: _Heard) -> None:
        """A command, which waits for those that come with it."""
        if heard.joint in self._twins:
            self._heard_by_twins.append(heard)
        if self._waiting and self._waiting[0].bus.codec is not heard.bus.codec:
            self._carry_out()  # a batch is of one make
        self._waiting.append(heard)

    def _hear(self, bus: _Bus, joint: int, frame: Frame, request: Request, now_ns: int) -> None:
        """Any other request."""
        heard = _Heard(bus, joint, frame, request)
        if joint in self._twins:
            self._heard_by_twins.append(heard)
        if request.kind is Kind.READ:  # it changes nothing
            self._asked.append(heard)
            return
        self._carry_out()  # what came first takes effect first
        self._drives.request(joint, request, now_ns)
        if request.kind is Kind.WRITE and not bus.codec.write_answers_with_feedback:
            self._send(bus, joint, self._drives.reply(bus.codec, joint, request), now_ns)
        else:
            self._feed_back([heard], now_ns)

    def _carry_out(self) -> None:
        """Carry out what waits: commands to drives of one make, then questions; answer each."""
        now_ns = self._clock_ns()
        commands, self._waiting = self._waiting, []
        if commands:
            crossed = self._board.crossed
            joints, frames = [crossed[c.joint] for c in commands], [c.frame for c in commands]
            self._drives.command(commands[0].bus.codec, joints, frames, now_ns)
            self._feed_back(commands, now_ns)
        asked, self._asked = self._asked, []
        for bus, joint, _, request in asked:
            assert request is not None, "a command is no question"
            self._send(bus, joint, self._drives.reply(bus.codec, joint, request), now_ns)
        heard, self._heard_by_twins = self._heard_by_twins, []
        for bus, joint, frame, _ in heard:
            twin = self._twins.get(joint)
            answer = None if twin is None else twin.handle(frame, now_ns * 1e-9)
            if answer is not None:
                self._send(bus, joint, answer, now_ns)

    def _rewire(self) -> None:
        """Bring wires, ids and second drives to what the faults in force make of them."""
        board = self._board
        self._changes = board.changes
        self._plug_twins()
        self._drives.rewire(board.reversed, board.swapped)
        self._joints_on = [
            {
                can_id: board.swapped[joint]
                for can_id, joint in self._buses[board.wired[bus.index]].joints.items()
            }
            for bus in self._buses
        ]
        self._list_commands()
        for bus in self._buses:
            bus.replug(board.replugged[bus.index])
        self._announce_bus_off()
        self._announce_noise()

    def _list_commands(self) -> None:
        self._commands_on = [
            {bus.codec.command_key(can_id): joint for can_id, joint in joints.items()}
            if bus.codec.command_mask
            else {}
            for bus, joints in zip(self._buses, self._joints_on, strict=True)
        ]

    def _plug_twins(self) -> None:
        """Plug in the second drives that there are to be now, pull out the others."""
        wanted = self._board.twins
        self._twins = {joint: twin for joint, twin in self._twins.items() if joint in wanted}
        for joint in wanted.keys() - self._twins.keys():
            bus = next(bus for bus in self._buses if joint in bus.joints.values())
            self._twins[joint] = self._drives.twin(joint, bus.codec, wanted[joint])

    # --- frames out ----------------------------------------------------------------------------

    def _feed_back(self, heard: Sequence[_Heard], now_ns: int) -> None:
        """Answer frames to drives of one make with feedbacks."""
        codec = heard[0].bus.codec
        ids, data = self._drives.feedbacks(codec, [each.joint for each in heard])
        all_ids, raw = ids.tolist(), data.tobytes()
        together: dict[_Bus, list[tuple[int, bytes]]] = {}
        singly: list[tuple[_Heard, Frame]] = []
        for row, each in enumerate(heard):
            payload = raw[8 * row : 8 * row + 8]
            if each.bus.takes_batches and not self._board.replies_suffer:
                together.setdefault(each.bus, []).append((all_ids[row], payload))
            else:
                singly.append((each, Frame(all_ids[row], payload, codec.is_extended)))
        for bus, frames in together.items():
            bus.send_frames(frames)
        self._send_singly(singly, now_ns)

    def _send_singly(self, answers: Sequence[tuple[_Heard, Frame]], now_ns: int) -> None:
        """Send replies in the order of what they answer."""
        buses = dict.fromkeys(heard.bus for heard, _ in answers)
        for bus in buses:
            bus.hold()
        for heard, frame in answers:
            self._send(heard.bus, heard.joint, frame, now_ns)
        for bus in buses:
            bus.release()

    def _send(self, bus: _Bus, joint: int, frame: Frame, now_ns: int) -> None:
        """Send a reply: at once, late or never, depending on the faults."""
        board = self._board
        if board.lost_share[joint] and self._random.random() < board.lost_share[joint]:
            bus.counts["lost"] += 1
            return
        message = message_of(frame)
        delay_ns, times = board.delay_ns[joint], 1
        noise = board.noise[joint]
        while noise and self._random.random() < noise:
            delay_ns += _REPEAT_NS
            # Damaged in its last bit, it was heard all the same, and comes twice.
            times += self._random.random() < 1.0 / _FRAME_BITS
        if not delay_ns:
            bus.send(message)
            return
        for number in range(times):
            due_ns = now_ns + delay_ns + number * _REPEAT_NS
            heapq.heappush(self._late, (due_ns, next(self._order), bus, message))

    def _send_late(self, now_ns: int) -> None:
        while self._late and self._late[0][0] <= now_ns:
            _, _, bus, message = heapq.heappop(self._late)
            if self._board.bus_off[bus.index]:
                bus.counts["lost"] += 1
            else:
                bus.send(message)

    def _announce_bus_off(self) -> None:
        """Tell the host what its own controller would: an error frame, once."""
        for bus, is_off in zip(self._buses, self._board.bus_off, strict=True):
            if is_off and not bus.was_off:
                kind = {"is_extended_id": False, "is_error_frame": True}
                bus.send(can.Message(arbitration_id=_ERROR_BUS_OFF, data=bytes(8), **kind))
            bus.was_off = is_off

    def _announce_noise(self) -> None:
        """Tell the host of a disturbed wire as its controller would: when that begins and ends."""
        for bus in self._buses:
            is_noisy = any(self._board.noise[joint] for joint in bus.joints.values())
            if is_noisy != bus.was_noisy:
                data = bytes((0, 0x10 if is_noisy else 0x40, 0, 0, 0, 0, 0, 0))
                kind = {"is_extended_id": False, "is_error_frame": True}
                bus.send(can.Message(arbitration_id=_ERROR_CONTROLLER, data=data, **kind))
            bus.was_noisy = is_noisy
