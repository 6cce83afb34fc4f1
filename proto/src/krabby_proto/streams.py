"""The streams table: every stream's name, id, port, rate and fields, in one place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

from krabby_proto.errors import EndpointError
from krabby_proto.folder import runtime_folder

__all__ = [
    "CAMERA",
    "COLOUR",
    "COMMAND",
    "CONTROL",
    "FEATURES",
    "NAV",
    "NUM_FEET",
    "NUM_JOINTS",
    "SAFETY",
    "STATE",
    "STREAMS",
    "TICKS",
    "TRACE",
    "TRUTH",
    "Field",
    "Stream",
    "beside",
    "default_endpoints",
]

NUM_JOINTS: Final = 18
NUM_FEET: Final = 6


class Field(NamedTuple):
    """A run of floats in a payload."""

    name: str
    size: int
    unit: str


class _Row(NamedTuple):
    """A row of the table. A tuple: to import dataclasses takes as long as all of this package."""

    name: str
    """Also the topic, in ASCII."""
    id: int
    pattern: Literal["pub", "req"]
    port: int
    """Default TCP port."""
    rate_hz: float
    """Nominal rate; 0 for on demand."""
    fields: tuple[Field, ...]
    """In payload order; empty when the payload is an image, a latent, records or JSON."""
    description: str
    largest: int = 0
    """Most elements of a payload without fields; 0 for JSON."""
    element: Literal["float32", "uint8"] = "float32"
    """What a payload's elements are; uint8: records, laid out by `exchanges` and `ticks`."""
    max_age_s: float = math.inf
    """Age at which a consumer must stop relying on a message [s]."""
    many_writers: bool = False
    """Whether several publishers may speak at once, told apart by instance id."""


class Stream(_Row):
    """One stream: name, direction, rate and payload."""

    @cached_property
    def topic(self) -> bytes:
        """First frame of every message."""
        return self.name.encode("ascii")

    @cached_property
    def size(self) -> int:
        """Elements in a payload; 0 when it varies (camera, features, records) or is JSON."""
        return sum(field.size for field in self.fields)

    @cached_property
    def max_elements(self) -> int:
        """Most elements a payload may have; 0 for JSON streams."""
        return self.size or self.largest

    @cached_property
    def min_elements(self) -> int:
        """Fewest elements a payload may have; above `max_elements` for JSON: no count fits."""
        return self.size or 1

    @cached_property
    def element_bytes(self) -> int:
        """Bytes of one element."""
        return 1 if self.element == "uint8" else 4

    @cached_property
    def max_bytes(self) -> int:
        """Most bytes a payload may have; 0 for JSON streams."""
        return self.element_bytes * self.max_elements

    @cached_property
    def slices(self) -> Mapping[str, slice]:
        """Where each field lies in the payload."""
        slices: dict[str, slice] = {}
        start = 0
        for field in self.fields:
            slices[field.name] = slice(start, start + field.size)
            start += field.size
        return MappingProxyType(slices)


CAMERA: Final = Stream(
    *("camera", 1, "pub", 6000, 30.0),
    (),
    "metric depth along the optical axis [m], H x W, row 0 on top, invalid pixels 0",
    largest=1 << 21,  # 8 MiB: a stereo camera's full 1280 x 720 fits
    max_age_s=0.15,
)
STATE: Final = Stream(
    *("state", 2, "pub", 6001, 100.0),
    (
        Field("base_quat_w", 4, "1"),
        Field("base_ang_vel_b", 3, "rad/s"),
        Field("base_lin_acc_b", 3, "m/s^2"),
        Field("joint_pos", NUM_JOINTS, "rad"),
        Field("joint_vel", NUM_JOINTS, "rad/s"),
        Field("joint_effort", NUM_JOINTS, "N m"),
        Field("foot_contact", NUM_FEET, "1"),
    ),
    "what the robot measures: quaternion xyzw base to world, gyro, accelerometer (specific force, "
    "+9.81 on z at rest), joints, foot contacts in [0, 1]",
    max_age_s=0.03,
)
COMMAND: Final = Stream(
    *("command", 3, "req", 6002, 100.0),
    (Field("joint_pos", NUM_JOINTS, "rad"),),
    "joint position targets",
    max_age_s=0.025,
)
FEATURES: Final = Stream(
    *("features", 4, "pub", 6003, 30.0),
    (),
    "policy depth image (58 x 87, normalised to [-0.5, 0.5]) or a depth encoder's latent (32)",
    largest=1 << 18,
    max_age_s=0.15,
)
NAV: Final = Stream(
    *("nav", 5, "pub", 6004, 20.0),
    (Field("vx", 1, "m/s"), Field("vy", 1, "m/s"), Field("yaw_rate", 1, "rad/s")),
    "where to walk, in the base frame",
    max_age_s=0.3,
    many_writers=True,
)
SAFETY: Final = Stream(
    "safety", 6, "req", 6005, 0.0, (), "arm, disarm, estop, reset, status; JSON both ways"
)
CONTROL: Final = Stream(
    "control", 7, "req", 6006, 0.0, (), "operator to gameloop: stand, sit, policy, status; JSON"
)
TRACE: Final = Stream(
    *("trace", 8, "pub", 6007, 100.0),
    (),
    "what the HAL was asked and what it answered: commands, operators' requests, changes of the "
    "gate; for recorders",
    largest=1 << 14,
    element="uint8",
)
TICKS: Final = Stream(
    *("ticks", 9, "pub", 6008, 100.0),
    (),
    "what each tick of the game loop took in and decided; for recorders",
    largest=1 << 17,
    element="uint8",
)
TRUTH: Final = Stream(
    *("truth", 10, "pub", 6010, 100.0),
    (
        Field("base_pos_w", 3, "m"),
        Field("base_quat_w", 4, "1"),
        Field("base_lin_vel_w", 3, "m/s"),
        Field("base_ang_vel_b", 3, "rad/s"),
        Field("waypoint_index", 1, "1"),
        Field("waypoint_count", 1, "1"),
        Field("distance", 1, "m"),
        Field("falls", 1, "1"),
        Field("feet_on_edge", 1, "1"),
        Field("sim_time", 1, "s"),
        Field("reset_count", 1, "1"),
    ),
    "simulation only, for evaluation; nothing that acts may read it",
)

COLOUR: Final = Stream(
    *("colour", 11, "pub", 6009, 5.0),
    (),
    "what the depth camera sees in colour, as JPEG: a whole multiple of the depth image's height "
    "and width, in the same view; for people and recordings",
    largest=1 << 19,  # JPEG of 1280 x 720 has half of it
    element="uint8",
)

_ALL: Final = (CAMERA, STATE, COMMAND, FEATURES, NAV, SAFETY, CONTROL, TRACE, TICKS, TRUTH, COLOUR)
STREAMS: Final[Mapping[str, Stream]] = MappingProxyType({each.name: each for each in _ALL})


def default_endpoints(base: str | None = None) -> dict[str, str]:
    """Every stream's endpoint below one base.

    Args:
        base: ``ipc:///some/folder``, ``curve://HOST`` or ``tcp://HOST`` (ports of the table), or
            ``inproc://prefix``; the private folder of this user's sockets when None.

    Returns:
        Stream name to endpoint, for example ``{"state": "ipc:///run/user/1000/krabby/state"}``.
    """
    base = base or f"ipc://{runtime_folder()}"
    scheme, _, rest = base.partition("://")
    rest = rest.rstrip("/")
    if not rest or scheme not in ("tcp", "curve", "ipc", "inproc"):
        raise EndpointError(
            f"{base!r} is not a base for endpoints; "
            "give ipc:///some/folder, curve://HOST, tcp://HOST or inproc://prefix"
        )
    if scheme in ("tcp", "curve"):
        return {name: f"{scheme}://{rest}:{stream.port}" for name, stream in STREAMS.items()}
    return {name: f"{scheme}://{rest}/{name}" for name in STREAMS}


def beside(endpoint: str, stream: Stream) -> str:
    """A stream's endpoint in the folder of another's; empty when that is no Unix socket.

    So processes that are told where their streams are need not be told where recorders listen.
    """
    folder, slash, name = endpoint.rpartition("/")
    is_stream = endpoint.startswith("ipc://") and name in STREAMS
    return f"{folder}{slash}{stream.name}" if is_stream else ""
