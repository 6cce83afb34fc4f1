"""What both makes of drives have in common on the wire: frames, scaled words, requests.

A codec is a pure translation in both directions, so the host and the emulated drive use the same
one. Values here are those of the drive's own shaft: calibration comes above (`mounting`).

Commands and feedbacks are translated as arrays, all drives of a bus in one pass; everything that
happens once (switching on, parameters) goes frame by frame.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from krabby.drivers.errors import NotRepresentable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from krabby.drivers.can.models import DriveModel

__all__ = [
    "Codec",
    "Command",
    "Feedback",
    "FloatArray",
    "Frame",
    "Kind",
    "Parameter",
    "ParameterField",
    "Reply",
    "Request",
    "Scale",
    "Words",
    "pack_parameter",
    "to_value",
    "to_word",
    "unpack_parameter",
]

FloatArray = NDArray[np.floating[Any]]
Words = NDArray[np.integer[Any]]


class Frame(NamedTuple):
    """One classic CAN data frame."""

    arbitration_id: int
    data: bytes
    """At most 8 bytes."""
    is_extended: bool


class Scale(NamedTuple):
    """Largest value of every quantity that a drive's words can hold, shape (n,) each.

    Position, velocity and torque go from minus to plus it, the gains from 0 to it.
    """

    position: FloatArray
    velocity: FloatArray
    kp: FloatArray
    kd: FloatArray
    torque: FloatArray

    @classmethod
    def of(cls, models: Sequence[DriveModel]) -> Scale:
        """The scales of some drives, in their order."""
        return cls(
            np.array([model.position_range for model in models]),
            np.array([model.velocity_range for model in models]),
            np.array([model.kp_range for model in models]),
            np.array([model.kd_range for model in models]),
            np.array([model.torque_range for model in models]),
        )


class Command(NamedTuple):
    """MIT commands, shape (n,) each: torque = kp (pos* - pos) + kd (vel* - vel) + torque*."""

    position: FloatArray
    """[rad]"""
    velocity: FloatArray
    """[rad/s]"""
    kp: FloatArray
    """[N·m/rad]"""
    kd: FloatArray
    """[N·m·s/rad]"""
    torque: FloatArray
    """[N·m]"""


class Feedback(NamedTuple):
    """What drives report, shape (n,) each."""

    position: FloatArray
    """[rad]"""
    velocity: FloatArray
    """[rad/s]"""
    torque: FloatArray
    """[N·m]"""
    temperature_c: FloatArray
    """The hottest sensor."""
    mode: Words
    """`DriveMode`."""
    faults: Words
    """`DriveFault` bits."""


class Kind(IntEnum):
    """What a frame from the host asks of a drive."""

    COMMAND = 0
    ENABLE = 1
    DISABLE = 2
    CLEAR_FAULTS = 3
    """Switches off too."""
    SET_ZERO = 4
    """The present position becomes zero."""
    SAVE = 5
    """Keep parameters across power cycles."""
    READ = 6
    WRITE = 7


class Parameter(IntEnum):
    """Parameters this project uses, whatever their number at a make."""

    OTHER = 0
    """Any other; `Request.index` says which."""
    RUN_MODE = 1
    """0: MIT commands."""
    TORQUE_LIMIT = 2
    """[N·m], enforced by the drive."""
    VOLTAGE = 3
    """Supply at the drive [V]; read only."""
    CAN_TIMEOUT = 4
    """Silence after which the drive lets go by itself [s]; 0 switches that off."""
    ZERO_RANGE = 5
    """0: position after power-up in 0 to 2 pi; 1: in -pi to pi."""
    POSITION_RANGE = 6
    """`DriveModel.position_range` as the drive has it; read only here."""
    VELOCITY_RANGE = 7
    TORQUE_RANGE = 8


class Request(NamedTuple):
    """A frame from the host, understood."""

    kind: Kind
    can_id: int
    parameter: Parameter = Parameter.OTHER
    value: float = 0.0
    """Of WRITE, in the parameter's unit."""
    index: int = 0
    """The make's own number of the parameter."""


class Reply(NamedTuple):
    """A frame from a drive that is no feedback, understood."""

    can_id: int
    parameter: Parameter
    value: float
    """In the parameter's unit; NaN when the drive refused."""
    index: int = 0
    """The make's own number of the parameter."""
    faults: int = 0
    """`DriveFault` bits, of a frame sent because of them."""


class Codec(Protocol):
    """One make's frames. `can_id` is the drive's own id throughout."""

    name: str
    is_extended: bool
    """Whether its frames have 29-bit ids."""
    parameters: frozenset[Parameter]
    """What can be read or written at this make."""
    feedback_mask: int
    """`arbitration_id & feedback_mask` of a feedback is its `feedback_key`."""

    def feedback_key(self, can_id: int) -> int:
        """What a feedback of this drive is recognised by."""
        ...

    def encode_commands(
        self, can_ids: NDArray[np.uint32], scale: Scale, command: Command
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
        """Arbitration ids (n,) and data (n, 8); values beyond the scale are cut to it."""
        ...

    def decode_commands(self, scale: Scale, ids: Words, data: NDArray[np.uint8]) -> Command:
        """What `encode_commands` wrote, to the nearest step of each word."""
        ...

    def encode_feedbacks(
        self, can_ids: NDArray[np.uint32], scale: Scale, feedback: Feedback
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
        """Arbitration ids (n,) and data (n, 8) of feedbacks."""
        ...

    def decode_feedbacks(self, scale: Scale, ids: Words, data: NDArray[np.uint8]) -> Feedback:
        """What drives report."""
        ...

    def request(self, request: Request) -> Frame:
        """The frame of a request other than COMMAND."""
        ...

    def parse_request(self, frame: Frame) -> Request | None:
        """What the host asks; None for frames that are no request of this make."""
        ...

    def reply(self, reply: Reply) -> Frame:
        """The frame of an answer to READ, or to WRITE where that is no feedback."""
        ...

    def parse_reply(self, frame: Frame) -> Reply | None:
        """What a drive says besides feedbacks; None for everything else."""
        ...

    def sender(self, frame: Frame) -> int | None:
        """Id of the drive that a frame comes from; None if no drive sends such frames."""
        ...

    write_answers_with_feedback: bool
    """Whether WRITE is answered by a feedback instead of a reply."""


def to_word(
    values: FloatArray, low: FloatArray | float, high: FloatArray, bits: int
) -> NDArray[np.uint32]:
    """Values to unsigned words of `bits`, `low` to 0 and `high` to all ones, nearest step.

    Values beyond the range are cut to it. NaN and infinities are refused: cast to an integer they
    would become some number, and that would become torque.
    """
    if not np.isfinite(values).all():
        raise NotRepresentable(f"a command holds {values}; give finite numbers")
    steps = (1 << bits) - 1
    share = (np.clip(values, low, high) - low) / (high - low)
    return np.rint(share * steps).astype(np.uint32)


def to_value(words: Words, low: FloatArray | float, high: FloatArray, bits: int) -> FloatArray:
    """The inverse of `to_word`."""
    return low + words * ((high - low) / ((1 << bits) - 1))


@dataclass(frozen=True)
class ParameterField:
    """How a make stores a `Parameter`."""

    index: int
    code: str
    """`struct` code of the value, little-endian."""
    scale: float = 1.0
    """Stored = value times this."""


def pack_parameter(parameter: Parameter, field: ParameterField, value: float) -> bytes:
    """The four bytes in which a parameter travels."""
    try:
        stored = value * field.scale
        packed = struct.pack(f"<{field.code}", stored if field.code == "f" else round(stored))
    except (struct.error, OverflowError, ValueError) as error:
        raise NotRepresentable(
            f"{parameter.name} = {value!r} does not fit the drive's parameter: {error}; "
            "give another value"
        ) from error
    return packed.ljust(4, b"\x00")


def unpack_parameter(field: ParameterField, data: bytes) -> float:
    """The inverse of `pack_parameter`."""
    return struct.unpack_from(f"<{field.code}", data)[0] / field.scale
