"""All drives of the robot behind one object: `JointBus` over python-can.

One thread, several buses: every cycle sends all commands back to back and then gathers replies, bus
after bus. While one is read the kernel keeps what the others receive, with the time at which it
came; so the buses work in parallel, and a reply's stamp does not depend on when it was read.

Replies carry no number, so a late one looks like a new one. A drive answers every command once and
in order; therefore one that owes an answer gets no further command until the answer comes or is
older than `late_horizon_s`, when it counts as lost. What comes meanwhile is the answer that was
owed: it is counted in `late` and `missed`, its values are kept with the time of the command that it
answers, and it never passes for new. A lost reply thus costs its drive the commands of the horizon,
less than the age at which the gate calls a measurement stale.

Answers that nothing asked for are dropped and counted by id: `ids` says when they are a fault.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

import can
import numpy as np

from krabby.drivers.can.calibration import Mounting
from krabby.drivers.can.can_io import frame_of, hold, message_of, open_bus, release
from krabby.drivers.can.codec import Codec, Command, Kind, Parameter, Reply, Request, Scale
from krabby.drivers.can.effort import commanded_torque, fold
from krabby.drivers.can.faults import fault_names, remedy
from krabby.drivers.can.health import DriveHealth, HealthCfg
from krabby.drivers.can.ids import WINDOW_NS, IdWatch
from krabby.drivers.can.plan import AUX_EVERY, check_representable, codec_of, frame_bits, plan
from krabby.drivers.can.types import DriveFault, DriveMode, DriveReadings, DriveTargets
from krabby.drivers.errors import BusError, DriveRefused, NoReply
from krabby.robot.description import JOINTS_PER_LEG

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from numpy.typing import NDArray

    from krabby.drivers.can.calibration import Calibration
    from krabby.drivers.can.hardware import BusSpec, HardwareDescription
    from krabby.robot.description import RobotDescription

__all__ = ["BusCfg", "BusState", "CanJointBus"]

_BUS_OFF: Final = np.uint32(DriveFault.BUS_OFF)
_ERROR_BUS_OFF: Final = 0x40
_ERROR_CONTROLLER: Final = 0x04
_PASSIVE: Final = 0x30
_ERROR_RESTARTED: Final = 0x100
"""Classes of a SocketCAN error frame, linux/can/error.h; `_PASSIVE` is in its second byte."""

_MOST_FRAMES: Final = 256
"""Read from one bus in one cycle; a babbling node must not hold up the loop."""
_MOST_ERRORS: Final = 8
_LOAD_WINDOW_NS: Final = 1_000_000_000
_TORQUE_STEP: Final = 2.0
"""The drive's own torque limit follows in steps of this [N·m]."""
_TURN: Final = 2.0 * math.pi


@dataclass(frozen=True, kw_only=True)
class BusCfg:
    """Times of the exchange."""

    late_horizon_s: float = 0.018
    """Longest delay of a reply that is told from a new one; three cycles and a bit at 200 Hz."""
    answer_s: float = 0.02
    """How long a drive may take to answer a request while it is set up."""
    probe_s: float = 0.1
    """The same while nothing is switched on yet and a busy host may take its time."""
    tries: int = 3
    """Requests before a drive counts as missing."""
    id_rounds: int = 4
    """How often a probe asks those that answer once more, to hear whether one id answers twice."""
    id_rounds_more: int = 40
    """The same once an id did."""
    surplus_s: float = 0.002
    """How long it listens after the last answer of a round; a second drive answers at once."""
    sink_share: float = 0.25
    """Share of the rated torque that derating leaves: a hot robot sinks, and does not fall."""


@dataclass(slots=True)
class BusState:
    """What happened on one bus; running totals."""

    state: Literal["ok", "passive", "off"] = "ok"
    """As the controller or the kernel said last; `off` until a drive answers again."""
    received: int = 0
    """Frames of its drives."""
    unexpected: int = 0
    """Answers that nothing asked for, the late ones to requests that were given up included."""
    error_frames: int = 0
    send_errors: int = 0
    receive_errors: int = 0


@dataclass(slots=True)
class _Bus:
    spec: BusSpec
    codec: Codec
    joints: tuple[int, ...]
    index: dict[int, int]
    """Feedback key to joint."""
    by_id: dict[int, int]
    """CAN id to joint."""
    worst_bits: int
    state: BusState = field(default_factory=BusState)
    can: can.BusABC | None = None
    aux_cycle: int = 0
    voltage_turn: int = 0
    bits: int = 0
    """Sent and received in this window."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Drives of one make, translated in one pass."""

    codec: Codec
    joints: NDArray[np.intp]
    can_ids: NDArray[np.uint32]
    scale: Scale


class CanJointBus:
    """`JointBus` over SocketCAN, UDP multicast or python-can's virtual buses."""

    def __init__(
        self,
        hardware: HardwareDescription,
        calibration: Calibration,
        desc: RobotDescription,
        *,
        cfg: BusCfg | None = None,
        health: HealthCfg | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Checks that the plan fits and that the drives can represent what the robot needs."""
        self._hardware, self._desc = hardware, desc
        self._cfg = BusCfg() if cfg is None else cfg
        self._clock_ns = clock_ns
        self._mounting = Mounting(hardware, calibration)
        check_representable(hardware, self._mounting, desc)
        self._load = {row.bus: row.worst_load for row in plan(hardware)}
        count = len(hardware.drives)
        self._buses = [_make_bus(hardware, spec) for spec in hardware.buses]
        self._bus_of = {joint: bus for bus in self._buses for joint in bus.joints}
        self._order = _interleaved(self._buses)
        self._groups = _make_groups(hardware)
        self._readings = DriveReadings(count)
        self._health = DriveHealth(hardware, self._mounting, desc, health)
        models = [drive.model for drive in hardware.drives]
        self._most_torque = np.abs(
            self._mounting.joint_torque(np.array([model.torque_range for model in models]))
        )
        self._limits = np.minimum(desc.peak_torque, self._most_torque)
        self._sink = self._cfg.sink_share * desc.rated_torque
        self._effort_limits = self._limits.copy()
        self._torque_told = np.full(count, np.nan)
        """The limit written into each drive [N·m at the joint]; NaN before."""

        self._messages = [
            can.Message(is_extended_id=self._bus_of[joint].codec.is_extended, data=bytes(8))
            for joint in range(count)
        ]
        self._poll = [self._request(joint, Kind.DISABLE) for joint in range(count)]
        self._pending: list[deque[int]] = [deque() for _ in range(count)]
        """Times at which the commands were sent that are not answered yet."""
        self._asked: list[deque[int]] = [deque(maxlen=64) for _ in range(count)]
        """The same of requests that are answered by a `Reply`."""
        self._ids = IdWatch(hardware)
        self._fresh = [False] * count
        self._raw = bytearray(8 * count)
        self._raw_rows = np.frombuffer(self._raw, np.uint8).reshape(count, 8)
        self._raw_ids = [0] * count
        self._known = [False] * count
        self._drive_faults = np.zeros(count, np.uint32)
        self._reported = np.zeros(count, np.uint32)
        """From fault frames, until faults are cleared."""
        self._enabled = np.zeros(count, np.bool_)
        self._any_enabled = False
        self._cycle_ns = 0
        self._cycle = 0
        self._wall_ns = 0
        self._window_ns = 0
        self.late: NDArray[np.int64] = np.zeros(count, np.int64)
        """Replies that came after their cycle, running total, shape (n,)."""
        self.states: Mapping[str, BusState] = MappingProxyType(
            {bus.spec.name: bus.state for bus in self._buses}
        )
        """What happened on each bus, by its name."""

    # --- what others look at ---------------------------------------------------------------

    @property
    def readings(self) -> DriveReadings:
        """The object that every call writes to."""
        return self._readings

    @property
    def bus_load(self) -> Mapping[str, float]:
        """Share of the bit rate with every stuff bit there can be, over the last second."""
        return dict(self._load)

    @property
    def effort_limits(self) -> NDArray[np.float64]:
        """What is in force after derating [N·m], shape (n,)."""
        return self._effort_limits

    @property
    def mounting(self) -> Mounting:
        """Between joints and shafts, whole turns found by `probe` included."""
        return self._mounting

    def set_effort_limits(self, limits: NDArray[np.float64]) -> None:
        """See `JointBus`; no more than the drives can give."""
        np.minimum(limits, self._most_torque, out=self._limits)

    def set_carrying(self, joints: NDArray[np.bool_]) -> None:
        """See `JointBus`."""
        self._health.carrying[:] = joints

    # --- opening, closing ------------------------------------------------------------------

    def open(self) -> None:
        """See `JointBus`."""
        try:
            for bus in self._buses:
                bus.can = open_bus(bus.spec)
        except BusError:
            self.close()
            raise

    def close(self) -> None:
        """See `JointBus`."""
        for bus in self._buses:
            if bus.can is not None:
                with contextlib.suppress(can.CanError, OSError):
                    bus.can.shutdown()
                bus.can = None

    # --- setting up ------------------------------------------------------------------------

    def probe(self) -> DriveReadings:
        """See `JointBus`. Drives that count from another turn are set right here."""
        self._forget()
        self._ids.reset()
        missing = self._ask_state(range(len(self._messages)), self._cfg.probe_s)
        self._look_for_conflicts(missing)
        self._decode()
        problem = (
            f"no answer from {', '.join(str(self._hardware.drives[j]) for j in missing)}; "
            f"{remedy(DriveFault.NO_REPLY)}"
            if missing
            else ""
        )
        self._refuse_conflicts(problem)
        if problem:
            raise NoReply(problem)
        self._find_turns()
        return self._readings

    def enable(self, readings: DriveReadings) -> None:
        """See `JointBus`. Leg by leg; whatever fails, all drives are switched off again."""
        self._health.reset()
        self._ids.reset()
        self._reported[:] = 0
        count = len(self._messages)
        try:
            for first in range(0, count, JOINTS_PER_LEG):
                leg = range(first, min(first + JOINTS_PER_LEG, count))
                for joint in leg:
                    self._set_up(joint)
                for joint in leg:
                    self._ask(joint, Request(Kind.ENABLE, self._can_id(joint)))
                    self._enabled[joint] = self._any_enabled = True
                # The first commands: no stiffness, the measured pose as target. The legs before
                # this one get theirs too, which keeps their time-outs from running out.
                targets = DriveTargets.limp(count, self._desc.safety.damp_kd)._replace(
                    joint_pos=readings.joint_pos.copy()
                )
                for _ in range(self._cfg.tries):
                    self.exchange(targets, self._clock_ns() + round(self._cfg.answer_s * 1e9))
                    if all(readings.mode[joint] == DriveMode.RUN for joint in leg):
                        break
                self._check_running(leg)
            self._refuse_conflicts()
            # A drive may have said that it was off while it was being switched on.
            self._health.reset()
        except Exception:
            self.disable()
            raise

    def disable(self) -> None:
        """See `JointBus`."""
        self._enabled[:] = False
        self._any_enabled = False
        waiting = list(range(len(self._messages)))
        for _ in range(self._cfg.tries):
            unheard = set(self._ask_state(waiting, self._cfg.answer_s))
            self._decode()
            running = self._readings.mode == DriveMode.RUN
            waiting = [joint for joint in waiting if joint in unheard or running[joint]]
            if not waiting:
                break
        self._forget()

    # --- the cycle -------------------------------------------------------------------------

    def exchange(self, targets: DriveTargets, deadline_ns: int) -> DriveReadings:
        """See `JointBus`. Drives that are not enabled are only asked how they are."""
        readings = self._readings
        share = self._health.effort_share
        limits = np.maximum(self._limits * share, np.minimum(self._limits, self._sink))
        self._effort_limits = limits
        torque = self._encode(targets, limits)
        self._begin_cycle()
        self._send_all()
        self._gather(deadline_ns)
        self._decode()
        self._account()
        np.copyto(readings.faults, self._drive_faults)
        readings.faults |= self._reported
        for bus in self._buses:
            if bus.state.state == "off":
                readings.faults[list(bus.joints)] |= _BUS_OFF
        self._ids.mark(readings.faults)
        readings.conflicts = self._ids.conflicts
        self._health.update(readings, torque, self._enabled, targets.kp > 0.0, self._clock_ns())
        return readings

    def _encode(self, targets: DriveTargets, limits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Fill `_messages`; returns the torque they ask for at the newest reading."""
        readings, mounting = self._readings, self._mounting
        total = sum(targets)
        if not np.isfinite(total).all():
            targets = _without_nonsense(targets, np.isfinite(total))
        targets = fold(targets, readings.joint_pos, readings.joint_vel, limits)
        command = Command(
            mounting.drive_pos(targets.joint_pos),
            mounting.drive_vel(targets.joint_vel),
            targets.kp / mounting.stiffness_ratio,
            targets.kd / mounting.stiffness_ratio,
            mounting.drive_torque(targets.torque),
        )
        for group in self._groups:
            at = group.joints
            part = Command(*(values[at] for values in command))
            ids, data = group.codec.encode_commands(group.can_ids, group.scale, part)
            rows = data.tobytes()
            for row, (joint, arbitration_id) in enumerate(
                zip(at.tolist(), ids.tolist(), strict=True)
            ):
                message = self._messages[joint]
                message.arbitration_id = arbitration_id
                message.data = rows[8 * row : 8 * row + 8]  # type: ignore[assignment]
        torque = commanded_torque(targets, readings.joint_pos, readings.joint_vel)
        return np.nan_to_num(torque, copy=False)

    def _begin_cycle(self) -> None:
        self._cycle += 1
        self._cycle_ns = self._clock_ns()
        # Frames are stamped by the kernel's wall clock; this is how far it is ahead of ours.
        self._wall_ns = time.time_ns() - self._cycle_ns
        self._fresh = [False] * len(self._fresh)

    def _send_all(self) -> None:
        messages = self._messages if self._any_enabled else self._poll
        for bus in self._buses:
            # What came since the last cycle settles debts before they are looked at.
            if any(self._pending[joint] for joint in bus.joints):
                self._read(bus, lambda: True, self._cycle_ns)
        for bus in self._buses:
            if bus.can is not None:
                hold(bus.can)
        for bus, joint in self._order:
            if self._any_enabled and not self._enabled[joint]:
                continue
            if not self._owes(joint):
                self._send(bus, joint, messages[joint])
        if self._any_enabled and self._cycle % AUX_EVERY == 0:
            for bus in self._buses:
                self._send_aux(bus)
        for bus in self._buses:
            self._release(bus)

    def _owes(self, joint: int) -> bool:
        """Whether an answer to an earlier command may still come."""
        pending = self._pending[joint]
        oldest_ns = self._cycle_ns - round(self._cfg.late_horizon_s * 1e9)
        while pending and pending[0] < oldest_ns:
            self._excuse(joint, pending.popleft())
        return bool(pending)

    def _give_up(self, joint: int) -> None:
        """Wait no longer for what a drive owes."""
        for owed in (self._pending[joint], self._asked[joint]):
            while owed:
                self._excuse(joint, owed.popleft())

    def _excuse(self, joint: int, sent_ns: int) -> None:
        self._ids.excuse(self._bus_of[joint].spec.name, self._can_id(joint), sent_ns)

    def _send(self, bus: _Bus, joint: int, message: can.Message, *, answers: bool = True) -> None:
        state = bus.state
        if bus.can is None:
            return
        try:
            bus.can.send(message)
        except (can.CanError, OSError):
            state.send_errors += 1
            state.state = "off"
            return
        bus.bits += bus.worst_bits
        (self._pending if answers else self._asked)[joint].append(self._cycle_ns)

    def _release(self, bus: _Bus) -> None:
        """Let go what the bus held; what does not go out owes no answer, though one may come."""
        if bus.can is None:
            return
        try:
            release(bus.can)
        except (can.CanError, OSError):
            bus.state.send_errors += 1
            bus.state.state = "off"
            for joint in bus.joints:
                pending = self._pending[joint]
                while pending and pending[-1] == self._cycle_ns:
                    self._excuse(joint, pending.pop())

    def _send_aux(self, bus: _Bus) -> None:
        """Besides the commands, one request to one drive of this bus."""
        parameters = bus.codec.parameters
        bus.aux_cycle += 1
        # Every other time a torque limit may go first, so that voltages are read all the same.
        if bus.aux_cycle % 2 and Parameter.TORQUE_LIMIT in parameters:
            # Only to drives that owe nothing from before: the answer looks like any feedback.
            owing_nothing = [joint for joint in bus.joints if len(self._pending[joint]) == 1]
            wanting = max(owing_nothing, key=self._torque_to_tell, default=None)
            if wanting is not None and self._torque_to_tell(wanting) > _TORQUE_STEP:
                self._tell_torque(bus, wanting)
                return
        if Parameter.VOLTAGE in parameters:
            bus.voltage_turn = (bus.voltage_turn + 1) % len(bus.joints)
            joint = bus.joints[bus.voltage_turn]
            message = self._request(joint, Kind.READ, Parameter.VOLTAGE)
            self._send(bus, joint, message, answers=False)

    def _torque_to_tell(self, joint: int) -> float:
        return abs(float(self._effort_limits[joint] - self._torque_told[joint]))

    def _tell_torque(self, bus: _Bus, joint: int) -> None:
        limit = float(self._effort_limits[joint])
        at_drive = limit / abs(float(self._mounting.ratio[joint]))
        message = self._request(joint, Kind.WRITE, Parameter.TORQUE_LIMIT, at_drive)
        self._send(bus, joint, message, answers=bus.codec.write_answers_with_feedback)
        self._torque_told[joint] = limit

    # --- receiving -------------------------------------------------------------------------

    def _gather(self, deadline_ns: int) -> None:
        for bus in self._buses:
            self._read(bus, lambda bus=bus: self._waits(bus), deadline_ns)

    def _read(self, bus: _Bus, more: Callable[[], bool], deadline_ns: int) -> None:
        """Read frames while there is `more` to come, and after the deadline what is there."""
        errors = 0
        for _ in range(_MOST_FRAMES):
            if bus.can is None or errors == _MOST_ERRORS or not more():
                return
            left_ns = deadline_ns - self._clock_ns()
            try:
                message = bus.can.recv(max(left_ns, 0) * 1e-9)
            except (can.CanError, OSError):
                bus.state.receive_errors += 1
                errors += 1
                continue
            if message is None:
                return
            self._sort(bus, message)

    def _waits(self, bus: _Bus) -> bool:
        """Whether an answer to a command of this cycle is still to come."""
        for joint in bus.joints:
            pending = self._pending[joint]
            if pending and pending[-1] == self._cycle_ns:
                return True
        return False

    def _sort(self, bus: _Bus, message: can.Message) -> Reply | None:
        """Book a frame; returns it if it is neither feedback nor noise."""
        if message.is_error_frame:
            self._note_error(bus, message)
            return None
        codec = bus.codec
        if message.is_extended_id != codec.is_extended:
            return None
        joint = bus.index.get(message.arbitration_id & codec.feedback_mask)
        # A Damiao drive's register replies come under its feedback id.
        if joint is not None and codec.is_extended:
            self._take(bus, joint, message)
            return None
        frame = frame_of(message)
        reply = codec.parse_reply(frame)
        if reply is not None and reply.can_id in bus.by_id:
            return self._reply(bus, reply)
        if joint is not None:
            self._take(bus, joint, message)
            return None
        sender = codec.sender(frame)
        if sender is not None:
            self._note_surplus(bus, sender)
        return None

    def _take(self, bus: _Bus, joint: int, message: can.Message) -> None:
        if len(message.data) != 8:
            return
        cycle_ns, pending = self._cycle_ns, self._pending[joint]
        arrived_ns = int(message.timestamp * 1e9) - self._wall_ns
        if not pending or (arrived_ns < cycle_ns and pending[0] == cycle_ns):
            self._note_surplus(bus, self._can_id(joint))
            return
        sent_ns = pending.popleft()
        bus.state.received += 1
        bus.bits += bus.worst_bits
        if sent_ns == cycle_ns:
            self._fresh[joint] = True
            if bus.state.state == "off":
                bus.state.state = "ok"
            stamp_ns = min(arrived_ns, self._clock_ns())
        else:
            self.late[joint] += 1
            stamp_ns = sent_ns
        self._raw[8 * joint : 8 * joint + 8] = message.data
        self._raw_ids[joint] = message.arbitration_id
        self._known[joint] = True
        self._readings.stamp_ns[joint] = stamp_ns

    def _reply(self, bus: _Bus, reply: Reply) -> Reply | None:
        """Book what a drive of this bus says; returns it if it was asked for, or says a fault."""
        joint = bus.by_id[reply.can_id]
        bus.bits += bus.worst_bits
        if reply.faults:
            self._reported[joint] |= np.uint32(reply.faults)
        elif reply.parameter != Parameter.OTHER:  # what is none of ours may be a fault that ended
            asked = self._asked[joint]
            while asked and self._cycle_ns - asked[0] > WINDOW_NS:
                asked.popleft()
            if not asked:
                self._note_surplus(bus, reply.can_id)
                return None
            asked.popleft()
            if reply.parameter == Parameter.VOLTAGE:
                self._readings.voltage_v[joint] = reply.value
        return reply

    def _note_surplus(self, bus: _Bus, can_id: int) -> None:
        bus.state.unexpected += 1
        self._ids.note(bus.spec.name, can_id, self._cycle_ns)

    def _note_error(self, bus: _Bus, message: can.Message) -> None:
        state, kind = bus.state, message.arbitration_id
        state.error_frames += 1
        if kind & _ERROR_BUS_OFF:
            state.state = "off"
        elif kind & _ERROR_RESTARTED:
            state.state = "ok"
        elif kind & _ERROR_CONTROLLER and len(message.data) > 1 and state.state != "off":
            state.state = "passive" if message.data[1] & _PASSIVE else "ok"

    def _decode(self) -> None:
        readings, mounting = self._readings, self._mounting
        raw_ids = np.array(self._raw_ids, np.uint32)
        drive = (readings.joint_pos, readings.joint_vel, readings.joint_effort)
        for group in self._groups:
            at = group.joints
            values = group.codec.decode_feedbacks(group.scale, raw_ids[at], self._raw_rows[at])
            for into, out in zip(drive, values[:3], strict=True):
                into[at] = out
            readings.temperature_c[at] = values.temperature_c
            readings.mode[at] = values.mode
            self._drive_faults[at] = values.faults
        readings.joint_pos[:] = mounting.joint_pos(readings.joint_pos)
        readings.joint_vel[:] = mounting.joint_vel(readings.joint_vel)
        readings.joint_effort[:] = mounting.joint_torque(readings.joint_effort)
        if not all(self._known):
            unknown = ~np.array(self._known)
            for array in (*drive, readings.temperature_c):
                array[unknown] = np.nan
            readings.mode[unknown] = DriveMode.UNKNOWN
            self._drive_faults[unknown] = 0

    def _account(self) -> None:
        """Count what was asked in this cycle and not answered in it."""
        for joint, pending in enumerate(self._pending):
            if pending and pending[-1] == self._cycle_ns and not self._fresh[joint]:
                self._readings.missed[joint] += 1
        elapsed_ns = self._cycle_ns - self._window_ns
        if elapsed_ns >= _LOAD_WINDOW_NS:
            for bus in self._buses:
                if self._window_ns:
                    self._load[bus.spec.name] = bus.bits * 1e9 / elapsed_ns / bus.spec.bitrate
                bus.bits = 0
            self._window_ns = self._cycle_ns

    # --- one drive at a time ---------------------------------------------------------------

    def _set_up(self, joint: int) -> None:
        """Everything a drive needs to know before it is switched on."""
        codec, can_id = self._bus_of[joint].codec, self._can_id(joint)
        drive = self._hardware.drives[joint]
        self._ask(joint, Request(Kind.CLEAR_FAULTS, can_id))
        self._write(joint, Parameter.RUN_MODE, 0.0)
        self._write(joint, Parameter.CAN_TIMEOUT, self._hardware.can_timeout_s)
        if Parameter.TORQUE_LIMIT in codec.parameters:
            limit = float(min(self._desc.peak_torque[joint], self._most_torque[joint]))
            at_drive = limit / abs(float(self._mounting.ratio[joint]))
            self._write(joint, Parameter.TORQUE_LIMIT, at_drive)
            self._torque_told[joint] = limit
        # What a wrong setting would make unsafe is read back.
        self._expect(joint, Parameter.CAN_TIMEOUT, self._hardware.can_timeout_s)
        for parameter, wanted in (
            (Parameter.POSITION_RANGE, drive.model.position_range),
            (Parameter.VELOCITY_RANGE, drive.model.velocity_range),
            (Parameter.TORQUE_RANGE, drive.model.torque_range),
        ):
            if parameter in codec.parameters:
                self._expect(joint, parameter, wanted)

    def _write(self, joint: int, parameter: Parameter, value: float) -> None:
        self._ask(joint, Request(Kind.WRITE, self._can_id(joint), parameter, value))

    def _expect(self, joint: int, parameter: Parameter, wanted: float) -> None:
        reply = self._ask(joint, Request(Kind.READ, self._can_id(joint), parameter))
        found = math.nan if reply is None else reply.value
        if not math.isclose(found, wanted, rel_tol=1e-3):
            raise DriveRefused(
                f"{self._hardware.drives[joint]} has {parameter.name.lower()} {found:g}, "
                f"expected {wanted:g}; set it with the maker's tool or update its firmware"
            )

    def _ask(self, joint: int, request: Request) -> Reply | None:
        """Send until it is answered; a feedback is an answer unless a reply is to be expected."""
        bus = self._bus_of[joint]
        wants_reply = request.kind == Kind.READ or (
            request.kind == Kind.WRITE and not bus.codec.write_answers_with_feedback
        )
        message = message_of(bus.codec.request(request))
        for _ in range(self._cfg.tries):
            self._give_up(joint)
            self._begin_cycle()
            self._send(bus, joint, message, answers=not wants_reply)
            deadline_ns = self._cycle_ns + round(self._cfg.answer_s * 1e9)
            while bus.can is not None:
                left_ns = deadline_ns - self._clock_ns()
                try:
                    answer = bus.can.recv(max(left_ns, 0) * 1e-9)
                except (can.CanError, OSError):
                    bus.state.receive_errors += 1
                    break
                if answer is None:
                    break
                reply = self._sort(bus, answer)
                if wants_reply and reply is not None:
                    if (reply.can_id, reply.parameter) == (request.can_id, request.parameter):
                        return reply
                elif self._fresh[joint]:
                    return None
        raise NoReply(
            f"{self._hardware.drives[joint]} does not answer {request.kind.name.lower()}"
            f"{_of(request)}; {remedy(DriveFault.NO_REPLY)}"
        )

    def _ask_state(self, joints: Iterable[int], answer_s: float) -> list[int]:
        """Tell drives to be off, which they answer with how they are; returns the unheard."""
        unheard = list(joints)
        for _ in range(self._cfg.tries):
            self._begin_cycle()
            for joint in unheard:
                # Each try waits for as long as an answer may take: what is owed is lost.
                self._give_up(joint)
                self._send(self._bus_of[joint], joint, self._poll[joint])
            self._gather(self._cycle_ns + round(answer_s * 1e9))
            unheard = [joint for joint in unheard if not self._fresh[joint]]
            if not unheard:
                break
        return unheard

    def _look_for_conflicts(self, missing: list[int]) -> None:
        """Ask those that answer some times more, and often once an id answered twice."""
        joints = [joint for joint in range(len(self._messages)) if joint not in missing]
        for number in range(self._cfg.id_rounds_more):
            self._listen(self._cfg.surplus_s)
            if number >= self._cfg.id_rounds and not self._ids.suspects(self._clock_ns()):
                break
            self._ask_state(joints, self._cfg.answer_s)

    def _listen(self, duration_s: float) -> None:
        """Read what comes although nothing is waited for."""
        deadline_ns = self._clock_ns() + round(duration_s * 1e9)
        for bus in self._buses:
            self._read(bus, lambda: True, deadline_ns)

    def _refuse_conflicts(self, besides: str = "") -> None:
        """Raise for ids that are not one drive's; `besides` is what else is wrong."""
        self._readings.conflicts = self._ids.conflicts
        if self._ids.conflicts:
            texts = [f"{conflict}: {conflict.remedy}" for conflict in self._ids.conflicts]
            raise DriveRefused("; ".join([*texts, besides] if besides else texts))

    def _check_running(self, joints: Iterable[int]) -> None:
        for joint in joints:
            faults = int(self._drive_faults[joint] | self._reported[joint])
            drive = self._hardware.drives[joint]
            if faults:
                raise DriveRefused(f"{drive} reports {fault_names(faults)}; {remedy(faults)}")
            if self._readings.mode[joint] != DriveMode.RUN:
                mode = DriveMode(int(self._readings.mode[joint])).name.lower()
                raise DriveRefused(
                    f"{drive} was switched on and says {mode}; switch its power off and on"
                )

    def _find_turns(self) -> None:
        """A drive may wake up a whole turn away from where it was calibrated."""
        readings, desc = self._readings, self._desc
        per_turn = _TURN / np.abs(self._mounting.ratio)
        middle = 0.5 * (desc.joint_lower + desc.joint_upper)
        turns = np.rint((middle - readings.joint_pos) / per_turn)
        # With a gear, one turn of the shaft may still be within the joint's range: then the drive
        # must keep count itself, and nothing is guessed.
        certain = per_turn > desc.joint_upper - desc.joint_lower
        self._mounting.offset += np.where(certain, turns * per_turn, 0.0)
        self._decode()

    def _request(
        self, joint: int, kind: Kind, parameter: Parameter = Parameter.OTHER, value: float = 0.0
    ) -> can.Message:
        codec = self._bus_of[joint].codec
        return message_of(codec.request(Request(kind, self._can_id(joint), parameter, value)))

    def _can_id(self, joint: int) -> int:
        return self._hardware.drives[joint].can_id

    def _forget(self) -> None:
        """Drop what the buses still hold and what drives still owe."""
        for joint in range(len(self._pending)):
            self._give_up(joint)
        for bus in self._buses:
            with contextlib.suppress(can.CanError, OSError):
                for _ in range(_MOST_FRAMES):
                    if bus.can is None or bus.can.recv(0.0) is None:
                        break


def _make_bus(hardware: HardwareDescription, spec: BusSpec) -> _Bus:
    codec, joints = codec_of(hardware, spec.name), hardware.drives_of(spec.name)
    ids = {joint: hardware.drives[joint].can_id for joint in joints}
    return _Bus(
        spec=spec,
        codec=codec,
        joints=joints,
        index={codec.feedback_key(can_id): joint for joint, can_id in ids.items()},
        by_id={can_id: joint for joint, can_id in ids.items()},
        worst_bits=frame_bits(is_extended=codec.is_extended, stuffed=True),
    )


def _make_groups(hardware: HardwareDescription) -> list[_Group]:
    by_make: dict[str, list[int]] = {}
    for joint, drive in enumerate(hardware.drives):
        by_make.setdefault(drive.model.make, []).append(joint)
    return [
        _Group(
            codec=codec_of(hardware, hardware.drives[joints[0]].bus),
            joints=np.array(joints),
            can_ids=np.array([hardware.drives[j].can_id for j in joints], np.uint32),
            scale=Scale.of([hardware.drives[j].model for j in joints]),
        )
        for joints in by_make.values()
    ]


def _without_nonsense(targets: DriveTargets, good: NDArray[np.bool_]) -> DriveTargets:
    """Joints whose target is no number go limp: the gate never asks for that, a bug might."""
    return DriveTargets(*(np.where(good, values, 0.0) for values in targets))


def _interleaved(buses: list[_Bus]) -> list[tuple[_Bus, int]]:
    """The order of sending: one drive of each bus in turn, so that all buses are busy at once."""
    longest = max(len(bus.joints) for bus in buses)
    return [
        (bus, bus.joints[turn])
        for turn in range(longest)
        for bus in buses
        if turn < len(bus.joints)
    ]


def _of(request: Request) -> str:
    return "" if request.parameter == Parameter.OTHER else f" of {request.parameter.name.lower()}"
