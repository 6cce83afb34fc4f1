"""What the emulated drives do with frames: commands and requests in, feedbacks and replies out.

Frames and their meaning are those of `krabby.drivers.can`, which jetson-hal uses too. A batch of
commands goes to the `DriveBank` in one pass, and so do the feedbacks that answer it.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from krabby.drivers.can.calibration import Calibration, Mounting
from krabby.drivers.can.codec import (
    Codec,
    Command,
    Feedback,
    Frame,
    Kind,
    Parameter,
    Reply,
    Request,
    Scale,
)
from krabby.drivers.can.hardware import HardwareDescription
from krabby.drivers.can.identity import emulated_identity
from krabby.drivers.can.testing import FakeDrive
from numpy.typing import NDArray

from krabby_emulator.motor import DriveBank

__all__ = ["EmulatedDrives"]

_TURN = 2.0 * math.pi


class _Group(NamedTuple):
    """Some drives of one make, as the codec wants them."""

    joints: NDArray[np.intp]
    can_ids: NDArray[np.uint32]
    scale: Scale
    mounting: Mounting


class EmulatedDrives:
    """Between frames, at the shaft, and the `DriveBank`, at the joint."""

    def __init__(
        self, hardware: HardwareDescription, calibration: Calibration, bank: DriveBank
    ) -> None:
        """`calibration` is how the drives really sit."""
        self._bank = bank
        self._drives = hardware.drives
        self._mounting = Mounting(hardware, calibration)
        self._zero = self._mounting.offset.copy()
        """Joint angle at which the encoder's own zero is; drives count from there or a turn off."""
        self._own_ids = np.array([drive.can_id for drive in hardware.drives], np.uint32)
        self._can_ids = self._own_ids
        self._scale = Scale.of([drive.model for drive in hardware.drives])
        self._ratio = self._mounting.ratio.copy()
        self._zero_range = [0] * len(hardware.drives)
        self._groups: dict[tuple[int, ...], _Group] = {}

    def rewire(self, reversed_: NDArray[np.bool_], swapped: Sequence[int]) -> None:
        """Which drives turn against their calibration, and whose id each drive has, by joint."""
        self._mounting.ratio[:] = np.where(reversed_, -1.0, 1.0) * self._ratio
        self._can_ids = self._own_ids[list(swapped)]
        self._groups.clear()

    def command(self, codec: Codec, joints: list[int], frames: list[Frame], now_ns: int) -> None:
        """Carry out commands to drives of one make."""
        group = self._group(joints)
        ids = np.array([frame.arbitration_id for frame in frames], np.uint32)
        data = np.frombuffer(b"".join(frame.data for frame in frames), np.uint8)
        command = Command(*codec.decode_commands(group.scale, ids, data.reshape(-1, 8)))
        self._bank.command(group.joints, *group.mounting.targets(command), now_ns)

    def feedbacks(
        self, codec: Codec, joints: list[int]
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
        """What drives of one make report: arbitration ids (n,) and data (n, 8)."""
        bank, group = self._bank, self._group(joints)
        at = group.joints
        pos, vel, effort = bank.reported
        feedback = Feedback(
            *group.mounting.drive_side(pos[at], vel[at], effort[at]),
            bank.winding_c[at],
            bank.mode[at],
            bank.faults[at],
        )
        return codec.encode_feedbacks(group.can_ids, group.scale, feedback)

    def request(self, joint: int, request: Request, now_ns: int) -> None:
        """Carry out a request; SAVE changes nothing, since power is never lost here."""
        bank = self._bank
        match request.kind:
            case Kind.ENABLE:
                bank.enable(joint, now_ns)
            case Kind.DISABLE | Kind.CLEAR_FAULTS:
                bank.disable(joint, clear=request.kind is Kind.CLEAR_FAULTS)
            case Kind.SET_ZERO:
                self._zero[joint] = bank.reported.pos[joint]
                self._count_from(joint, self._zero[joint])
            case Kind.WRITE:
                self._write(joint, request.parameter, request.value)

    def reply(self, codec: Codec, joint: int, request: Request) -> Frame:
        """The answer to a request that reads or writes a parameter."""
        if request.parameter == Parameter.IDENTITY:
            identity = emulated_identity(joint, codec.identity_digits)
            return codec.reply(Reply(request.can_id, request.parameter, 1.0, identity=identity))
        value = self._read(joint, request.parameter)
        return codec.reply(Reply(request.can_id, request.parameter, value, request.index))

    def wake_rebooted(self) -> None:
        """A drive that wakes up knows its angle within a turn, and counts from there."""
        bank, ratio = self._bank, self._mounting.ratio
        while bank.rebooted:
            joint = bank.rebooted.pop()
            lowest = -math.pi if self._zero_range[joint] else 0.0
            shaft = (bank.reported.pos[joint] - self._zero[joint]) * ratio[joint]
            turns = math.floor((shaft - lowest) / _TURN)
            self._count_from(joint, self._zero[joint] + turns * _TURN / ratio[joint])
        while bank.wrapped:
            joint, turns = bank.wrapped.popitem()
            offset = self._mounting.offset[joint]
            self._count_from(joint, offset - turns * _TURN / ratio[joint])

    def twin(self, joint: int, codec: Codec, turned_rad: float) -> FakeDrive:
        """A second drive with the id of a joint's; it turns a shaft without a load."""
        here = self._mounting.drive_pos(self._bank.reported.pos)[joint]
        return FakeDrive(self._drives[joint], codec, position=float(here) + turned_rad)

    def _write(self, joint: int, parameter: Parameter, value: float) -> None:
        """The run mode stays MIT; other parameters there are not."""
        match parameter:
            case Parameter.CAN_TIMEOUT:
                self._bank.timeout_ns[joint] = round(value * 1e9)
            case Parameter.TORQUE_LIMIT:
                self._bank.limit_torque(joint, abs(value * self._mounting.ratio[joint]))
            case Parameter.ZERO_RANGE:
                self._zero_range[joint] = round(value)

    def _read(self, joint: int, parameter: Parameter) -> float:
        bank, scale = self._bank, self._scale
        values = {
            Parameter.CAN_TIMEOUT: bank.timeout_ns[joint] * 1e-9,
            Parameter.TORQUE_LIMIT: bank.torque_limit[joint] / abs(self._mounting.ratio[joint]),
            Parameter.VOLTAGE: bank.supply_v,
            Parameter.ZERO_RANGE: self._zero_range[joint],
            Parameter.RUN_MODE: 0.0,
            Parameter.POSITION_RANGE: scale.position[joint],
            Parameter.VELOCITY_RANGE: scale.velocity[joint],
            Parameter.TORQUE_RANGE: scale.torque[joint],
        }
        return float(values.get(parameter, math.nan))

    def _count_from(self, joint: int, joint_pos: float) -> None:
        self._mounting.offset[joint] = joint_pos
        self._groups.clear()  # they hold copies

    def _group(self, joints: list[int]) -> _Group:
        group = self._groups.get(tuple(joints))
        if group is None:
            scale = Scale(*(values[joints] for values in self._scale))
            part = self._mounting.part(joints)
            group = _Group(np.array(joints), self._can_ids[joints], scale, part)
            self._groups[tuple(joints)] = group
        return group
