"""What all makes of drives share on CAN: frames, bit fields, requests, and the base class `Codec`.

A codec translates in both directions and keeps no state, so host and emulated drive use the same
one. Values are those of the drive's shaft; `calibration.Mounting` translates to the joint's side.
Commands and feedbacks of several drives are translated in one pass; requests frame by frame.
"""

import functools
import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from krabby.drivers.can.types import DriveFault
from krabby.drivers.errors import DriveError

FloatArray = NDArray[np.float64]
Words = NDArray[np.integer[Any]]

_UNSIGNED: Final = ("kp", "kd")


class Frame(NamedTuple):
    """One classic CAN data frame."""

    arbitration_id: int
    data: bytes
    """At most 8 bytes."""
    is_extended: bool


@dataclass(frozen=True, kw_only=True)
class DriveModel:
    """One model of drive; SI units at its output shaft.

    The ranges are those of the protocol, not ratings: a word of all ones means this much. Position,
    velocity and torque run from minus to plus it, gains from 0. A drive whose own configuration
    differs answers in other units, so ranges are read back where possible.
    """

    name: str
    """As in `hardware.toml`."""
    make: str
    position_range: float
    velocity_range: float
    torque_range: float
    kp_range: float
    kd_range: float
    derate_from_c: float
    """Temperature at which the effort limit starts to fall."""
    derate_to_c: float
    """Temperature at which only enough is left to sink; below the drive's own shut-down."""


class Scale(NamedTuple):
    """Largest value of every quantity that a drive's words can hold, shape (n,) each."""

    position: FloatArray
    velocity: FloatArray
    kp: FloatArray
    kd: FloatArray
    torque: FloatArray

    @classmethod
    def of(cls, models: Sequence[DriveModel]) -> Self:
        """The scales of some drives, in their order."""
        return cls(
            *(
                np.array([getattr(model, f"{name}_range") for model in models])
                for name in cls._fields
            )
        )


class Command(NamedTuple):
    """MIT commands, shape (n,) each: torque = kp (pos* - pos) + kd (vel* - vel) + torque*.

    In rad, rad/s, N·m/rad, N·m·s/rad and N·m.
    """

    position: FloatArray
    velocity: FloatArray
    kp: FloatArray
    kd: FloatArray
    torque: FloatArray


class Feedback(NamedTuple):
    """What drives report, shape (n,) each, in rad, rad/s and N·m."""

    position: FloatArray
    velocity: FloatArray
    torque: FloatArray
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
    """Parameters this project uses; every make has its own numbers for them."""

    OTHER = 0
    """Any other; `Request.index` is its number."""
    RUN_MODE = 1
    """0: MIT commands."""
    TORQUE_LIMIT = 2
    """[N·m], enforced by the drive."""
    VOLTAGE = 3
    """Supply at the drive [V]; read only."""
    CAN_TIMEOUT = 4
    """Silence after which the drive switches itself off [s]; 0 disables that."""
    ZERO_RANGE = 5
    """0: position after power-up in 0 to 2 pi; 1: in -pi to pi."""
    POSITION_RANGE = 6
    """`DriveModel.position_range` as the drive has it; read only here."""
    VELOCITY_RANGE = 7
    TORQUE_RANGE = 8
    IDENTITY = 9
    """What tells this very drive from all others: `Reply.identity`; read only."""


class Request(NamedTuple):
    """A frame from the host, decoded."""

    kind: Kind
    can_id: int
    parameter: Parameter = Parameter.OTHER
    value: float = 0.0
    """Of WRITE, in the parameter's unit."""
    index: int = 0
    """The make's own number of the parameter."""


class Reply(NamedTuple):
    """A frame from a drive that is not a feedback, decoded."""

    can_id: int
    parameter: Parameter
    value: float
    """In the parameter's unit; NaN when the drive refused."""
    index: int = 0
    """The make's own number of the parameter."""
    faults: int = 0
    """`DriveFault` bits, of a frame sent because of them."""
    identity: str = ""
    """Of `Parameter.IDENTITY`: hexadecimal; empty where the drive has none."""


class ParameterField(NamedTuple):
    """How a make stores a `Parameter`: stored = value * scale + offset."""

    index: int
    code: str
    """`struct` code of the stored value, little-endian."""
    scale: float = 1.0
    offset: int = 0


class Layout:
    """Where the words of a kind of frame are: bit fields of its id and of its data.

    Fields are bits by name, from the most significant bit down; those of `quantities` hold scaled
    values.
    """

    def __init__(
        self,
        quantities: Sequence[str],
        id_fields: Mapping[str, int],
        data_fields: Mapping[str, int],
        **constants: int,
    ) -> None:
        """`constants` are the values of fields that are the same in every frame."""
        self._quantities = quantities
        self._id, self._data = _places(id_fields), _places(data_fields)
        places = self._id | self._data
        told = {"can_id", *constants}
        self._id_words, self._data_words = (
            [(name, *place) for name, place in places.items() if name not in told]
            for places in (self._id, self._data)
        )
        self._steps = np.array([[places[name][1]] for name in quantities])
        self._sign = np.array([[name not in _UNSIGNED] for name in quantities], np.float64)
        self._constants = constants
        self._known: tuple[Scale, FloatArray, FloatArray] | None = None

    def encode(
        self, scale: Scale, values: Sequence[FloatArray], **words: Words
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
        """Ids (n,) and data (n, 8) of scaled values and further words."""
        scaled = to_word(np.array(values), *self._range(scale), self._steps)
        named = self._constants | words | dict(zip(self._quantities, scaled, strict=True))
        data = _pack(self._data, named).astype(">u8")
        return _pack(self._id, named).astype(np.uint32), data.view(np.uint8).reshape(-1, 8)

    def decode(
        self, scale: Scale, ids: Words, data: NDArray[np.uint8]
    ) -> tuple[FloatArray, dict[str, Words]]:
        """The scaled values, a row for each quantity, and the words by name."""
        packed = np.ascontiguousarray(data, np.uint8).view(">u8")[:, 0].astype(np.uint64)
        words: dict[str, Words] = {
            name: packed >> shift & mask for name, shift, mask in self._data_words
        }
        words |= {name: ids >> shift & mask for name, shift, mask in self._id_words}
        scaled = np.array([words[name] for name in self._quantities])
        return to_value(scaled, *self._range(scale), self._steps), words

    def _range(self, scale: Scale) -> tuple[FloatArray, FloatArray]:
        known = self._known
        if known is None or known[0] is not scale:  # a bus always asks for the same
            high = np.array([getattr(scale, name) for name in self._quantities])
            self._known = known = scale, -high * self._sign, high
        return known[1:]


class Codec(ABC):
    """One make's frames, and its models. `can_id` is the drive's own id throughout."""

    name: str
    """Of the make."""
    models: tuple[DriveModel, ...]
    parameters: Mapping[Parameter, ParameterField]
    """What can be read or written at this make."""
    is_extended: bool
    """Whether its frames have 29-bit ids."""
    feedback_mask: int
    """`arbitration_id & feedback_mask` of a feedback is its `feedback_key`."""
    command_mask: int = 0
    """`arbitration_id & command_mask` of a command is its `command_key`, and of no other frame; 0
    where the id alone does not tell."""
    answers_under_own_id: bool
    """Whether the id of its answers follows from its own; else the two are set one by one."""
    identity_digits: int
    """Hexadecimal digits of `Parameter.IDENTITY`."""
    write_answers_with_feedback: bool
    """Whether WRITE is answered by a feedback instead of a reply."""
    timeout_is_fault: bool
    """Whether a drive whose CAN_TIMEOUT ran out reports a fault; else it is just off."""
    command: Layout
    feedback: Layout
    """Has a word `status` besides position, velocity, torque and `temperatures`."""
    temperatures: Mapping[str, tuple[type[np.integer[Any]], float]]
    """Type and steps per °C of the feedback's words for temperatures; the hottest is taken."""
    modes: NDArray[np.uint8]
    faults: NDArray[np.uint32]
    """`DriveMode` and `DriveFault` bits by `status`."""
    reported_as: Mapping[DriveFault, DriveFault]
    """The nearest that it can report to what it cannot."""

    def encode_commands(
        self, can_ids: NDArray[np.uint32], scale: Scale, command: Command
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
        """Arbitration ids (n,) and data (n, 8); values beyond the scale are cut to it."""
        return self.command.encode(scale, command, can_id=can_ids)

    def decode_commands(self, scale: Scale, ids: Words, data: NDArray[np.uint8]) -> Command:
        """The inverse of `encode_commands`, to the nearest step of each word."""
        return Command(*self.command.decode(scale, ids, data)[0])

    def encode_feedbacks(
        self, can_ids: NDArray[np.uint32], scale: Scale, feedback: Feedback
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
        """Arbitration ids (n,) and data (n, 8) of feedbacks."""
        states = zip(feedback.mode.tolist(), feedback.faults.tolist(), strict=True)
        status = np.array([self.status(mode, faults) for mode, faults in states])
        heat = {}
        for name, (kind, per_c) in self.temperatures.items():
            lowest, highest = _limits(kind)
            steps = np.minimum(np.maximum(feedback.temperature_c * per_c, lowest), highest)
            heat[name] = np.rint(steps).astype(kind)
        return self.feedback.encode(scale, feedback[:3], can_id=can_ids, status=status, **heat)

    def decode_feedbacks(self, scale: Scale, ids: Words, data: NDArray[np.uint8]) -> Feedback:
        """What drives report."""
        (position, velocity, torque), words = self.feedback.decode(scale, ids, data)
        heat = [
            words[name].astype(kind) * np.float64(1.0 / per_c)
            for name, (kind, per_c) in self.temperatures.items()
        ]
        hottest, status = functools.reduce(np.maximum, heat), words["status"]
        mode, faults = self.modes[status], self.faults[status]
        return Feedback(position, velocity, torque, hottest, mode, faults)

    @abstractmethod
    def feedback_key(self, can_id: int) -> int:
        """What a feedback of this drive is recognised by."""

    def command_key(self, can_id: int) -> int:
        """What a command to this drive is recognised by, where there is a `command_mask`."""
        raise NotImplementedError

    @functools.cache  # noqa: B019 - codecs live as long as the process
    def status(self, mode: int, faults: int) -> int:
        """The status word; a fault that the make cannot report becomes the nearest that it can."""
        for fault, reported in self.reported_as.items():
            faults |= int(reported) if faults & fault else 0
        can_report = faults & int(np.bitwise_or.reduce(self.faults))
        exact = np.flatnonzero((self.modes == mode) & (self.faults == can_report))
        partly = np.flatnonzero(self.faults & np.uint32(can_report))
        return int(next(iter((*exact, *partly)), 0))

    @abstractmethod
    def request(self, request: Request) -> Frame:
        """The frame of a request other than COMMAND."""

    @abstractmethod
    def parse_request(self, frame: Frame) -> Request | None:
        """What the host asks; None for frames that are not requests of this make."""

    @abstractmethod
    def reply(self, reply: Reply) -> Frame:
        """The frame of an answer to READ, or to WRITE where that is not a feedback."""

    @abstractmethod
    def parse_reply(self, frame: Frame) -> Reply | None:
        """What a drive says besides feedbacks; None for everything else."""

    @abstractmethod
    def sender(self, frame: Frame) -> int | None:
        """Id of the drive that a frame comes from; None if drives do not send such frames."""

    def is_foreign(self, frame: Frame) -> bool:
        """Whether a frame has another length or kind of id than this make's."""
        return frame.is_extended != self.is_extended or len(frame.data) != 8

    def index(self, about: Request | Reply) -> int:
        """The make's number of a parameter."""
        if about.parameter == Parameter.OTHER:
            return about.index
        if about.parameter not in self.parameters:
            raise DriveError(
                f"a {self.name} drive has no register for {about.parameter.name}; leave it out"
            )
        return self.parameters[about.parameter].index

    def pack(self, parameter: Parameter, value: float) -> bytes:
        """The four bytes in which a parameter travels."""
        _, code, scale, offset = self.parameters.get(parameter, _OTHER)
        try:
            stored = value * scale + offset
            packed = struct.pack(f"<{code}", stored if code == "f" else round(stored))
        except (struct.error, OverflowError, ValueError) as error:
            raise DriveError(
                f"{parameter.name} = {value!r} does not fit the drive's parameter: {error}; "
                "give another value"
            ) from error
        return packed.ljust(4, b"\x00")

    def unpack(self, index: int, data: bytes) -> tuple[Parameter, float]:
        """The inverse of `index` and `pack`."""
        for parameter, (number, code, scale, offset) in self.parameters.items():
            if number == index:
                return parameter, (struct.unpack_from(f"<{code}", data)[0] - offset) / scale
        return Parameter.OTHER, float(struct.unpack_from("<I", data)[0])


_OTHER: Final = ParameterField(0, "I")


def to_word(
    values: FloatArray, low: FloatArray | float, high: FloatArray, steps: Words | int
) -> NDArray[np.uint64]:
    """Values to words, `low` to 0 and `high` to `steps`, nearest step.

    Values beyond the range are cut to it. NaN and infinities are refused: cast to an integer they
    would become some number, and that would become torque.
    """
    if not np.isfinite(values).all():
        raise DriveError(f"a command holds {values}; give finite numbers")
    share = (np.minimum(np.maximum(values, low), high) - low) / (high - low)
    return np.rint(share * steps).astype(np.uint64)


def to_value(
    words: Words, low: FloatArray | float, high: FloatArray, steps: Words | int
) -> FloatArray:
    """The inverse of `to_word`."""
    return low + words * ((high - low) / steps)


@functools.cache
def _limits(kind: type[np.integer[Any]]) -> tuple[int, int]:
    """Smallest and largest number of a type; NumPy takes longer to look them up."""
    limits = np.iinfo(kind)
    return int(limits.min), int(limits.max)


def _places(fields: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Shift and mask of every field."""
    places, shift = {}, 0
    for name, bits in reversed([*fields.items()]):
        places[name] = shift, (1 << bits) - 1
        shift += bits
    return places


def _pack(places: Mapping[str, tuple[int, int]], words: Mapping[str, Any]) -> Words:
    constant = 0
    packed: Words | None = None
    for name, (shift, mask) in places.items():
        word = words[name]
        if isinstance(word, int):
            constant |= (word & mask) << shift
            continue
        bits = np.asarray(word, np.uint64) & mask
        if shift:
            bits <<= np.uint64(shift)
        packed = bits if packed is None else packed | bits
    if packed is None:
        return np.asarray(constant, np.uint64)
    return np.bitwise_or(packed, np.uint64(constant))
