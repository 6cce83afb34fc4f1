"""How the robot is wired: `hardware.toml`.

The same description serves the robot and the emulated one: `with_interface` exchanges the buses for
ones that need no hardware, and the emulated robot opens those.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import msgspec
import numpy as np
from msgspec import Meta
from msgspec.structs import asdict

from krabby.config import Config, Count, Port, Positive, Text, check, parse, read_toml
from krabby.drivers.can.codec import Codec, DriveModel
from krabby.drivers.can.makes import MAKES, drive_model
from krabby.drivers.errors import HardwareError
from krabby.robot.assets import robot_dir
from krabby.robot.description import RobotDescription

__all__ = ["BusSpec", "HardwareDescription", "JointDrive", "with_joints"]

_INTERFACES: Final = ("socketcan", "udp_multicast", "virtual")
_MULTICAST_GROUP: Final = "239.74.163.{number}"
"""Administratively scoped (RFC 2365): stays on the host and its bridges."""
_MULTICAST_PORT: Final = 43113
"""python-can's own; each bus has the next one, because Linux hands a group's datagrams to every
socket of the host that is bound to the port, also to those that joined another group."""
_MOST_HOPS: Final = 8
_LONGEST_TIMEOUT_S: Final = 0.15
"""A process that dies must leave the legs limp within this."""


class BusTable(Config, frozen=True, kw_only=True):
    """A CAN bus in `hardware.toml`."""

    interface: Literal["socketcan", "udp_multicast", "virtual"]
    channel: Text
    """Network interface, multicast group or any name, depending on `interface`."""
    bitrate: Count
    """[bit/s]"""
    port: Port = 0
    """UDP port; `udp_multicast` only."""

    def __post_init__(self) -> None:
        expected = "a port with interface udp_multicast, and none with others"
        check((self.interface == "udp_multicast") == (self.port > 0), "port", self.port, expected)


class BusSpec(BusTable, frozen=True, kw_only=True):
    """One CAN bus."""

    name: str
    hops: int = 0
    """Networks that frames may pass; `udp_multicast` only. 0: they stay on this host."""


class DriveTable(Config, frozen=True, kw_only=True):
    """The drive of a joint in `hardware.toml`."""

    bus: str
    can_id: Annotated[int, Meta(ge=1, le=127)] = msgspec.field(name="id")
    model_name: str = msgspec.field(name="model")
    direction: Literal[1, -1]
    """1: the joint turns with the drive, -1: against it."""
    gear: Positive
    """Turns of the drive's shaft for one of the joint."""
    offset: Annotated[float, Meta(ge=-2.0 * math.pi, le=2.0 * math.pi)]
    """Joint angle at which the drive says 0 [rad], until a calibration says better."""

    def __post_init__(self) -> None:
        try:
            drive_model(self.model_name)
        except HardwareError as error:
            check(False, "model", self.model_name, f"a known model: {error}")


class JointDrive(DriveTable, frozen=True, kw_only=True):
    """The drive of one joint."""

    joint: str

    @property
    def model(self) -> DriveModel:
        """Its model."""
        return drive_model(self.model_name)

    def __str__(self) -> str:
        """As errors name it."""
        return f"{self.joint} (bus {self.bus}, id {self.can_id})"


class Supply(Config, frozen=True, kw_only=True):
    """Voltage of the drives' supply [V]."""

    nominal: float
    derate_from: float
    """Below this the effort limits fall."""
    derate_to: Positive
    """At this only enough is left to sink."""
    high: float

    def __post_init__(self) -> None:
        for low, key in (
            ("derate_to", "derate_from"),
            ("derate_from", "nominal"),
            ("nominal", "high"),
        ):
            value, least = getattr(self, key), getattr(self, low)
            check(value > least, key, value, f"a number above {least:g}, {low}")


class ImuSpec(Config, frozen=True, kw_only=True):
    """Where the inertial sensor is."""

    port: Text
    """Device, pty or pyserial URL."""
    baud: Count
    mount_quat: tuple[float, float, float, float]
    """Sensor to base (x, y, z, w)."""

    def __post_init__(self) -> None:
        norm = float(np.linalg.norm(self.mount_quat))
        expected = f"a unit quaternion xyzw, it has norm {norm:g}"
        check(abs(norm - 1.0) <= 1e-6, "mount_quat", self.mount_quat, expected)


class _File(Config, frozen=True, kw_only=True):
    robot: Text
    rate_hz: Positive
    can_timeout: float
    buses: dict[str, BusTable]
    supply: Supply
    imu: ImuSpec

    def __post_init__(self) -> None:
        least_s = 2.0 / self.rate_hz
        expected = f"a number from {least_s:g} to {_LONGEST_TIMEOUT_S:g}"
        fits = least_s <= self.can_timeout <= _LONGEST_TIMEOUT_S
        check(fits, "can_timeout", self.can_timeout, expected)
        check(bool(self.buses), "buses", self.buses, "at least one table in it")


def with_joints(file: type[Config], names: tuple[str, ...], table: type[Config]) -> type[Any]:
    """The file's tables and `joints`, with exactly one `table` under each joint's name."""
    kind: dict[str, Any] = {"frozen": True, "kw_only": True}
    fields = [(name, table) for name in names]
    joints = msgspec.defstruct("Joints", fields, bases=(Config,), **kind)
    return msgspec.defstruct(file.__name__, [("joints", joints)], bases=(file,), **kind)


@dataclass(frozen=True, kw_only=True)
class HardwareDescription:
    """`hardware.toml`. Drives are in the joint order of `robot.toml`."""

    robot: str
    rate_hz: float
    """Cycles of the bus loop."""
    can_timeout_s: float
    """Silence after which a drive switches itself off."""
    buses: tuple[BusSpec, ...]
    drives: tuple[JointDrive, ...]
    supply: Supply
    imu: ImuSpec

    @classmethod
    def load(cls, path: Path | None, desc: RobotDescription) -> Self:
        """Read and check `path`, by default the `hardware.toml` of the assets folder."""
        source = robot_dir() / "hardware.toml" if path is None else path
        values, lines = read_toml(source, error=HardwareError)
        return cls.parse(values, desc, source=str(source), lines=lines)

    @classmethod
    def parse(
        cls,
        values: Mapping[str, Any],
        desc: RobotDescription,
        *,
        source: str = "hardware.toml",
        lines: Mapping[str, int] | None = None,
    ) -> Self:
        """Check the parsed tables; errors name `source` and the line of a key."""
        cfg = with_joints(_File, desc.joint_names, DriveTable)
        file = parse(cfg, values, source=source, lines=lines, error=HardwareError)
        if file.robot != desc.name:
            raise HardwareError(
                f"{source}: robot is {file.robot!r}; expected {desc.name!r}, as in robot.toml"
            )
        joint_drives = asdict(file.joints).items()
        drives = tuple(JointDrive(joint=name, **asdict(drive)) for name, drive in joint_drives)
        problem = _misplaced(drives, file.buses)
        if problem:
            raise HardwareError(f"{source}: joints{problem}")
        return cls(
            robot=file.robot,
            rate_hz=file.rate_hz,
            can_timeout_s=file.can_timeout,
            buses=tuple(BusSpec(name=name, **asdict(bus)) for name, bus in file.buses.items()),
            drives=drives,
            supply=file.supply,
            imu=file.imu,
        )

    def drives_of(self, bus: str) -> tuple[int, ...]:
        """Positions in joint order of the drives on `bus`."""
        return tuple(i for i, drive in enumerate(self.drives) if drive.bus == bus)

    def codec_of(self, bus: str) -> Codec:
        """The codec of a bus; all of its drives are of one make."""
        return MAKES[self.drives[self.drives_of(bus)[0]].model.make]

    def with_interface(
        self, interface: str, channels: Mapping[str, str] | None = None, *, hops: int = 0
    ) -> Self:
        """The same drives on other buses.

        Args:
            interface: Of every bus. `udp_multicast` gives each bus its own group and port,
                `virtual` (one process) a channel of its name.
            channels: Channel by bus name, where it is not the one above or, for `socketcan`, the
                one in the file. For `udp_multicast` a group, or group:port.
            hops: Networks that frames may pass, `udp_multicast` only.
        """
        if interface not in _INTERFACES:
            raise HardwareError(
                f"CAN interface is {interface!r}; choose one of {', '.join(_INTERFACES)}"
            )
        if not 0 <= hops <= _MOST_HOPS:
            raise HardwareError(f"hops is {hops}; give 0, this host alone, to {_MOST_HOPS}")
        names = [bus.name for bus in self.buses]
        unknown = [name for name in channels or {} if name not in names]
        if unknown:
            raise HardwareError(
                f"channels are given for {', '.join(unknown)}; the buses are {', '.join(names)}"
            )
        buses = []
        for number, bus in enumerate(self.buses):
            channel, port = bus.channel, 0
            if interface == "udp_multicast":
                channel = _MULTICAST_GROUP.format(number=number + 1)
                port = _MULTICAST_PORT + number
            elif interface == "virtual":
                channel = bus.name
            elif bus.interface != "socketcan" and bus.name not in (channels or {}):
                raise HardwareError(
                    f"bus {bus.name} has no socketcan channel; name one, for example can{number}"
                )
            channel = (channels or {}).get(bus.name, channel)
            if interface == "udp_multicast" and ":" in channel:
                channel, port = _group_and_port(bus.name, channel)
            change = {"interface": interface, "channel": channel, "port": port, "hops": hops}
            buses.append(msgspec.structs.replace(bus, **change))
        return dataclasses.replace(self, buses=tuple(buses))


def _group_and_port(bus: str, channel: str) -> tuple[str, int]:
    group, _, port = channel.rpartition(":")
    if not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise HardwareError(f"bus {bus} has channel {channel}; give group:port")
    return group, int(port)


def _misplaced(drives: tuple[JointDrive, ...], buses: Mapping[str, object]) -> str:
    """Which drive is not where it can be, and why; empty when all are."""
    taken: dict[tuple[str, int], JointDrive] = {}
    first: dict[str, JointDrive] = {}
    for drive in drives:
        if drive.bus not in buses:
            return f".{drive.joint}.bus is {drive.bus!r}; the buses are {', '.join(buses)}"
        other = taken.setdefault((drive.bus, drive.can_id), drive)
        if other is not drive:
            return (
                f".{drive.joint}.id is {drive.can_id}, which {other.joint} has on bus {drive.bus}; "
                "give every drive of a bus its own"
            )
        other = first.setdefault(drive.bus, drive)
        if other.model.make != drive.model.make:
            return (
                f".{drive.joint}.model is {drive.model.name} on bus {drive.bus}, where "
                f"{other.joint} has {other.model.name}; one bus carries one make"
            )
    unused = [bus for bus in buses if bus not in first]
    return f" has no drive on bus {unused[0]}; use the bus or leave it out" if unused else ""
