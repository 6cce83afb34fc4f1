"""The frames of all drives on several CAN buses, and the answers that every drive still owes.

While one bus is read the kernel keeps what the others receive, with its time of arrival; so the
buses work in parallel, and the stamp of a reply does not depend on when it was read.

Replies carry no number, so a late one looks like a new one. A drive answers every command once and
in order; therefore one that owes an answer gets no further command until the answer comes or is
older than `late_horizon_s`, when it counts as lost. What comes meanwhile is the answer that was
owed: it is counted in `late` and `missed`, its values are kept with the time of the command that it
answers, and it never passes for new. A lost reply thus costs its drive the commands of the horizon,
less than the age at which the gate calls a measurement stale.

Answers to no request are dropped and counted by id: `ids` decides when they are a fault.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import can
import numpy as np
from can import BusABC
from numpy.typing import NDArray

from krabby.drivers.can.can_io import (
    FrameBatch,
    frame_of,
    hold,
    message_of,
    open_bus,
    receive,
    release,
    send_frames,
    takes_batches,
)
from krabby.drivers.can.codec import Codec, Frame, Kind, Parameter, Reply, Request
from krabby.drivers.can.hardware import BusSpec, HardwareDescription
from krabby.drivers.can.ids import WINDOW_NS, IdWatch
from krabby.drivers.can.plan import frame_bits, plan
from krabby.drivers.can.types import DriveReadings
from krabby.drivers.errors import DriveError

__all__ = ["Bus", "BusCfg", "Wire"]

# Classes of a SocketCAN error frame, linux/can/error.h; `_PASSIVE` is in its second byte.
_ERROR_BUS_OFF: Final = 0x40
_ERROR_CONTROLLER: Final = 0x04
_ERROR_RESTARTED: Final = 0x100
_PASSIVE: Final = 0x30
_MOST_FRAMES: Final = 256
"""Read from one bus in one cycle; a babbling node must not hold up the loop."""
_MOST_ERRORS: Final = 8
_CLOCK_PAIRS: Final = 3
_CLOCKS_CLOSE_NS: Final = 20_000
_CLOCKS_APART_NS: Final = 100_000
"""Two clocks that were read farther apart are not compared; the last comparison stays."""
_LOAD_WINDOW_NS: Final = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class BusCfg:
    """Times of the exchange."""

    late_horizon_s: float = 0.018
    """Longest delay of a reply that is told from a new one; 3.6 cycles at 200 Hz."""
    answer_s: float = 0.02
    """How long a drive may take to answer a request while it is set up."""
    probe_s: float = 0.1
    """The same while all drives are off and a busy host may take its time."""
    tries: int = 3
    """Requests before a drive counts as missing."""
    id_rounds: int = 4
    """How often a probe asks again those that answer, to notice an id that answers twice."""
    id_rounds_more: int = 40
    """The same once an id did."""
    identity_tries: int = 2
    """How often a drive is asked for its unique number; one that does not say is used all the
    same."""
    surplus_s: float = 0.002
    """How long it listens after the last answer of a round; a second drive answers at once."""
    sink_share: float = 0.25
    """Share of the rated torque that derating leaves: a hot robot sinks, and does not fall."""


@dataclass(slots=True)
class Bus:
    """One CAN bus with running totals."""

    spec: BusSpec
    codec: Codec
    joints: tuple[int, ...]
    by_id: dict[int, int]
    """Joint by CAN id."""
    by_feedback: dict[int, int]
    """Joint by feedback key."""
    worst_bits: int
    """Of one frame."""
    load: float
    """Share of the bit rate with every possible stuff bit, over the last second."""
    state: Literal["ok", "passive", "off"] = "ok"
    """As the controller or the kernel reported last; `off` until a drive answers again."""
    unexpected: int = 0
    """Answers to no request, among them late ones to requests that were given up."""
    error_frames: int = 0
    send_errors: int = 0
    receive_errors: int = 0
    can: BusABC | None = None
    bits: int = 0
    """Sent and received in this window."""
    aux_cycle: int = 0
    voltage_turn: int = 0


class Wire:
    """Sends frames, sorts what comes, and keeps the newest feedback of every drive."""

    def __init__(
        self,
        hardware: HardwareDescription,
        readings: DriveReadings,
        cfg: BusCfg,
        clock_ns: Callable[[], int],
    ) -> None:
        """Nothing is opened. Of `readings` it writes `stamp_ns`, `voltage_v` and `missed`."""
        count = readings.count
        self._readings, self._clock_ns, self._drives = readings, clock_ns, hardware.drives
        self._horizon_ns = round(cfg.late_horizon_s * 1e9)
        loads = {row.bus: row.worst_load for row in plan(hardware)}
        self.buses = {
            spec.name: _make_bus(hardware, spec, loads[spec.name]) for spec in hardware.buses
        }
        self.bus_of = [self.buses[drive.bus] for drive in hardware.drives]
        """By joint."""
        self._commands = [
            can.Message(is_extended_id=bus.codec.is_extended, data=bytes(8)) for bus in self.bus_of
        ]
        self.pending: list[deque[int]] = [deque() for _ in range(count)]
        """Send times of the commands that are not answered yet, by joint."""
        self._asked: list[deque[int]] = [deque(maxlen=64) for _ in range(count)]
        """The same of requests that are answered by a `Reply`."""
        self.ids = IdWatch(hardware)
        self.fresh = [False] * count
        """Whether a drive has answered a command of this cycle."""
        self.known = [False] * count
        """Whether it ever answered."""
        self._raw = bytearray(8 * count)
        self.raw_rows = np.frombuffer(self._raw, np.uint8).reshape(count, 8)
        self.raw_ids = [0] * count
        """Data and id of the newest feedback of every drive."""
        self.answers: dict[tuple[int, Parameter], float] = {}
        """Values that were asked for and came in this cycle, by joint."""
        self.identities = [""] * count
        """What tells each drive from all others, hexadecimal; empty while unknown, by joint."""
        self.surplus: list[tuple[str, int]] = []
        """Bus and id of answers to no request, in this cycle."""
        self.reported = np.zeros(count, np.uint32)
        """Faults from fault frames, until faults are cleared."""
        self.late = np.zeros(count, np.int64)
        """Replies that came after their cycle, running total, shape (n,)."""
        self.cycle_ns = self._wall_ns = self._window_ns = 0

    def open(self) -> None:
        """Open every bus, or none and raise a `DriveError` with the one that failed."""
        try:
            for bus in self.buses.values():
                bus.can = open_bus(bus.spec)
        except DriveError:
            self.close()
            raise

    def reopen(self) -> None:
        """Open every bus anew: an adapter that was plugged in again is another device.

        Raises:
            DriveError: Some cannot be opened; the others are.
        """
        self.close()
        problems = []
        for bus in self.buses.values():
            try:
                bus.can, bus.state = open_bus(bus.spec), "ok"
            except DriveError as error:
                bus.state = "off"
                problems.append(str(error))
        if problems:
            raise DriveError("; ".join(problems))

    def close(self) -> None:
        """Close every bus."""
        for bus in self.buses.values():
            if bus.can is not None:
                with contextlib.suppress(can.CanError, OSError):
                    bus.can.shutdown()
                bus.can = None

    def request(
        self, joint: int, kind: Kind, parameter: Parameter = Parameter.OTHER, value: float = 0.0
    ) -> can.Message:
        """The frame of a request to a drive."""
        request = Request(kind, self._drives[joint].can_id, parameter, value)
        return message_of(self.bus_of[joint].codec.request(request))

    def begin_cycle(self) -> None:
        """From now on replies to earlier commands are late."""
        self.cycle_ns = self._clock_ns()
        self._wall_ns = self._ahead_ns()
        self.fresh = [False] * len(self.fresh)
        self.answers.clear()
        self.surplus.clear()

    def _ahead_ns(self) -> int:
        """How far the wall clock, by which the kernel stamps frames, is ahead of ours [ns]."""
        if self._clock_ns is not time.monotonic_ns:
            return time.time_ns() - self.cycle_ns
        # The process may be made to wait between two clocks: the closest of a few pairs counts.
        closest, ahead_ns = _CLOCKS_APART_NS, self._wall_ns
        for _ in range(_CLOCK_PAIRS):
            before_ns = time.monotonic_ns()
            wall_ns = time.time_ns()
            took_ns = time.monotonic_ns() - before_ns
            if took_ns <= closest or not ahead_ns:
                closest, ahead_ns = took_ns, wall_ns - before_ns - took_ns // 2
            if took_ns < _CLOCKS_CLOSE_NS:
                break
        return ahead_ns

    def hold(self) -> None:
        """Settle debts with what came since the last cycle, then collect frames to send."""
        for bus in self.buses.values():
            if any(self.pending[joint] for joint in bus.joints):
                self.read(bus, lambda: True, self.cycle_ns)
        for bus in self.buses.values():
            if bus.can is not None:
                hold(bus.can)

    def release(self) -> None:
        """Send what was collected; what does not go out owes no answer, though one may come."""
        for bus in self.buses.values():
            try:
                if bus.can is not None:
                    release(bus.can)
            except (can.CanError, OSError):
                bus.send_errors += 1
                bus.state = "off"
                for joint in bus.joints:
                    pending = self.pending[joint]
                    while pending and pending[-1] == self.cycle_ns:
                        self._excuse(joint, pending.pop())

    def owes(self, joint: int) -> bool:
        """Whether an answer to an earlier command may still come."""
        pending = self.pending[joint]
        while pending and pending[0] < self.cycle_ns - self._horizon_ns:
            self._excuse(joint, pending.popleft())
        return bool(pending)

    def give_up(self, joint: int) -> None:
        """Wait no longer for what a drive owes."""
        for owed in (self.pending[joint], self._asked[joint]):
            while owed:
                self._excuse(joint, owed.popleft())

    def send(self, joint: int, message: can.Message, *, answers: bool = True) -> None:
        """Send to a drive; `answers`: the answer is a feedback, else a `Reply`."""
        bus = self.bus_of[joint]
        if bus.can is None:
            return
        try:
            bus.can.send(message)
        except (can.CanError, OSError):
            bus.send_errors += 1
            bus.state = "off"
            return
        bus.bits += bus.worst_bits
        (self.pending if answers else self._asked)[joint].append(self.cycle_ns)

    def send_commands(
        self, joints: Sequence[int], ids: NDArray[np.uint32], data: NDArray[np.uint8]
    ) -> None:
        """Send command frames to these joints' drives, in this order where a bus takes single ones.

        Args:
            joints: Whose drives are sent to.
            ids: Arbitration ids of all joints, shape (n,).
            data: Data of all joints, shape (n, 8).
        """
        all_ids, rows = ids.tolist(), data.tobytes()
        together = {
            name: []
            for name, bus in self.buses.items()
            if bus.codec.is_extended and takes_batches(bus.can)
        }
        for joint in joints:
            some = together.get(self._drives[joint].bus)
            if some is not None:
                some.append(joint)
                continue
            message = self._commands[joint]
            message.arbitration_id = all_ids[joint]
            message.data = rows[8 * joint : 8 * joint + 8]  # type: ignore[assignment]
            self.send(joint, message)
        for name, some in together.items():
            frames = [(all_ids[joint], rows[8 * joint : 8 * joint + 8]) for joint in some]
            self._send_frames(self.buses[name], some, frames)

    def _send_frames(
        self, bus: Bus, joints: Sequence[int], frames: Sequence[tuple[int, bytes]]
    ) -> None:
        """Send the command frames of some joints to their bus at once."""
        if bus.can is None or not frames:
            return
        try:
            send_frames(bus.can, frames)
        except (can.CanError, OSError):
            bus.send_errors += 1
            bus.state = "off"
            return
        bus.bits += bus.worst_bits * len(joints)
        for joint in joints:
            self.pending[joint].append(self.cycle_ns)

    def _excuse(self, joint: int, sent_ns: int) -> None:
        self.ids.excuse(self._drives[joint].bus, self._drives[joint].can_id, sent_ns)

    def gather(self, deadline_ns: int) -> None:
        """Read until all commands of this cycle are answered, or until `deadline_ns`.

        The bus that was sent to last answers last: when it has, the others need no waiting.
        """
        for bus in self.buses.values():
            self.read(bus, lambda bus=bus: self._waits(bus), deadline_ns)

    def listen(self, duration_s: float) -> None:
        """Read what comes without a request."""
        deadline_ns = self._clock_ns() + round(duration_s * 1e9)
        for bus in self.buses.values():
            self.read(bus, lambda: True, deadline_ns)

    def who_answers(self, bus: Bus, can_ids: Iterable[int], duration_s: float) -> set[int]:
        """Ids on `bus`, of these, that a drive answers to; each is told to be off."""
        self.begin_cycle()
        for can_id in can_ids:
            message = message_of(bus.codec.request(Request(Kind.DISABLE, can_id)))
            with contextlib.suppress(can.CanError, OSError):
                if bus.can is not None:
                    bus.can.send(message)
        self.read(bus, lambda: True, self.cycle_ns + round(duration_s * 1e9))
        return {can_id for _, can_id in self.surplus}

    def forget(self) -> None:
        """Drop what the buses still hold and what drives still owe."""
        for joint in range(len(self.pending)):
            self.give_up(joint)
        for bus in self.buses.values():
            with contextlib.suppress(can.CanError, OSError):
                for _ in range(_MOST_FRAMES):
                    if bus.can is None or bus.can.recv(0.0) is None:
                        break

    def read(self, bus: Bus, more: Callable[[], bool], deadline_ns: int) -> None:
        """Read frames while there is `more` to come, and after the deadline what is there."""
        errors = 0
        for _ in range(_MOST_FRAMES):
            if bus.can is None or errors == _MOST_ERRORS or not more():
                return
            left_ns = deadline_ns - self._clock_ns()
            try:
                received = receive(bus.can, max(left_ns, 0) * 1e-9)
            except (can.CanError, OSError):
                bus.receive_errors += 1
                errors += 1
                continue
            if received is None:
                return
            if isinstance(received, FrameBatch):
                self._sort_batch(bus, received)
            else:
                self._sort(bus, received)

    def _sort_batch(self, bus: Bus, batch: FrameBatch) -> None:
        codec = bus.codec
        if not codec.is_extended:
            return
        arrived_ns = int(batch.stamp_s * 1e9) - self._wall_ns
        joints, mask = bus.by_feedback, codec.feedback_mask
        for arbitration_id, data in batch.frames:
            joint = joints.get(arbitration_id & mask)
            if joint is None:
                self._note_other(bus, Frame(arbitration_id, data, True))
            else:
                self._take(bus, joint, arbitration_id, data, arrived_ns)

    def _sort(self, bus: Bus, message: can.Message) -> None:
        if message.is_error_frame:
            _note_error(bus, message)
            return
        codec = bus.codec
        if message.is_extended_id != codec.is_extended:
            return
        joint = bus.by_feedback.get(message.arbitration_id & codec.feedback_mask)
        # A Damiao drive's register replies come under its feedback id.
        if joint is None or not codec.is_extended:
            frame = frame_of(message)
            reply = codec.parse_reply(frame)
            if joint is None or (reply is not None and reply.can_id in bus.by_id):
                self._note_other(bus, frame)
                return
        arrived_ns = int(message.timestamp * 1e9) - self._wall_ns
        self._take(bus, joint, message.arbitration_id, bytes(message.data), arrived_ns)

    def _note_other(self, bus: Bus, frame: Frame) -> None:
        """Take in a frame that is no feedback of a known drive."""
        reply = bus.codec.parse_reply(frame)
        if reply is not None and reply.can_id in bus.by_id:
            self._note_reply(bus, reply)
            return
        sender = bus.codec.sender(frame)
        if sender is not None:
            self._note_surplus(bus, sender)

    def account(self) -> None:
        """Count what was asked in this cycle and not answered in it; bring loads up to date."""
        for joint, pending in enumerate(self.pending):
            if pending and pending[-1] == self.cycle_ns and not self.fresh[joint]:
                self._readings.missed[joint] += 1
        elapsed_ns = self.cycle_ns - self._window_ns
        if elapsed_ns >= _LOAD_WINDOW_NS:
            for bus in self.buses.values():
                if self._window_ns:
                    bus.load = bus.bits * 1e9 / elapsed_ns / bus.spec.bitrate
                bus.bits = 0
            self._window_ns = self.cycle_ns

    def _waits(self, bus: Bus) -> bool:
        """Whether an answer to a command of this cycle is still to come."""
        for joint in bus.joints:
            pending = self.pending[joint]
            if pending and pending[-1] == self.cycle_ns:
                return True
        return False

    def _take(
        self, bus: Bus, joint: int, arbitration_id: int, data: bytes, arrived_ns: int
    ) -> None:
        """Take in a feedback that arrived then."""
        if len(data) != 8:
            return
        cycle_ns, pending = self.cycle_ns, self.pending[joint]
        if not pending or (arrived_ns < cycle_ns and pending[0] == cycle_ns):
            self._note_surplus(bus, self._drives[joint].can_id)
            return
        stamp_ns = pending.popleft()
        bus.bits += bus.worst_bits
        if stamp_ns == cycle_ns:
            self.fresh[joint] = True
            if bus.state == "off":
                bus.state = "ok"
            stamp_ns = min(arrived_ns, self._clock_ns())
        else:
            self.late[joint] += 1
        self._raw[8 * joint : 8 * joint + 8] = data
        self.raw_ids[joint] = arbitration_id
        self.known[joint] = True
        self._readings.stamp_ns[joint] = stamp_ns

    def _note_reply(self, bus: Bus, reply: Reply) -> None:
        joint = bus.by_id[reply.can_id]
        bus.bits += bus.worst_bits
        if reply.faults:
            self.reported[joint] |= np.uint32(reply.faults)
        elif reply.parameter != Parameter.OTHER:  # any other may be a fault that ended
            asked = self._asked[joint]
            while asked and self.cycle_ns - asked[0] > WINDOW_NS:
                asked.popleft()
            if not asked:
                self._note_surplus(bus, reply.can_id)
                return
            asked.popleft()
            if reply.parameter == Parameter.IDENTITY:
                self.identities[joint] = reply.identity
            self.answers[joint, reply.parameter] = reply.value
            if reply.parameter == Parameter.VOLTAGE:
                self._readings.voltage_v[joint] = reply.value

    def _note_surplus(self, bus: Bus, can_id: int) -> None:
        bus.unexpected += 1
        self.surplus.append((bus.spec.name, can_id))
        self.ids.note(bus.spec.name, can_id, self.cycle_ns)


def _note_error(bus: Bus, message: can.Message) -> None:
    bus.error_frames += 1
    kind = message.arbitration_id
    if kind & _ERROR_BUS_OFF:
        bus.state = "off"
    elif kind & _ERROR_RESTARTED:
        bus.state = "ok"
    elif kind & _ERROR_CONTROLLER and len(message.data) > 1 and bus.state != "off":
        bus.state = "passive" if message.data[1] & _PASSIVE else "ok"


def _make_bus(hardware: HardwareDescription, spec: BusSpec, load: float) -> Bus:
    codec, joints = hardware.codec_of(spec.name), hardware.drives_of(spec.name)
    ids = {hardware.drives[joint].can_id: joint for joint in joints}
    return Bus(
        spec=spec,
        codec=codec,
        joints=joints,
        by_id=ids,
        by_feedback={codec.feedback_key(can_id): joint for can_id, joint in ids.items()},
        worst_bits=frame_bits(is_extended=codec.is_extended, stuffed=True),
        load=load,
    )
