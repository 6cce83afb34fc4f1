"""What is wired to what: `hardware.toml`, read once and strictly.

The same description serves the robot and the emulated one: `with_interface` exchanges the buses for
ones that need no hardware, and the emulated robot opens the very same.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self, cast, get_args

import numpy as np

from krabby.drivers.can.codec import Codec, DriveModel
from krabby.drivers.can.makes import MAKES, drive_model
from krabby.drivers.errors import HardwareError
from krabby.robot.assets import robot_dir
from krabby.robot.description import RobotDescription
from krabby.robot.toml_reader import Table, read_toml

__all__ = [
    "BusSpec",
    "HardwareDescription",
    "ImuSpec",
    "Interface",
    "JointDrive",
    "Supply",
]

Interface = Literal["socketcan", "udp_multicast", "virtual"]
INTERFACES: Final = get_args(Interface)

_MULTICAST_GROUP: Final = "239.74.163.{number}"
"""Administratively scoped (RFC 2365): stays on the host and its bridges."""
_MULTICAST_PORT: Final = 43113
"""python-can's own; each bus has the next one, because Linux hands a group's datagrams to every
socket of the host that is bound to the port, whatever group it joined."""
_MOST_HOPS: Final = 8

_LONGEST_TIMEOUT_S: Final = 0.15
"""A process that dies must leave the legs limp within this."""


@dataclass(frozen=True, kw_only=True)
class BusSpec:
    """One CAN bus."""

    name: str
    interface: Interface
    channel: str
    """Network interface, multicast group or any name, depending on `interface`."""
    bitrate: int
    """[bit/s]"""
    port: int = 0
    """UDP port; `udp_multicast` only."""
    hops: int = 0
    """Networks that frames may pass; `udp_multicast` only. 0: they stay on this host."""


@dataclass(frozen=True, kw_only=True)
class JointDrive:
    """The drive of one joint."""

    joint: str
    bus: str
    can_id: int
    model: DriveModel
    direction: int
    """1 or -1: the joint turns with the drive or against it."""
    gear: float
    """Turns of the drive's shaft for one of the joint."""
    offset: float
    """Joint angle at which the drive says 0 [rad], until a calibration says better."""

    def __str__(self) -> str:
        """How errors name it."""
        return f"{self.joint} (bus {self.bus}, id {self.can_id})"


@dataclass(frozen=True, kw_only=True)
class Supply:
    """Voltage of the drives' supply [V]."""

    nominal_v: float
    derate_from_v: float
    """Below this the effort limits fall."""
    derate_to_v: float
    """At this only enough is left to sink."""
    high_v: float


@dataclass(frozen=True, kw_only=True)
class ImuSpec:
    """Where the inertial sensor is."""

    port: str
    """Device, pty or pyserial URL."""
    baud: int
    mount_quat: tuple[float, float, float, float]
    """Sensor to base (x, y, z, w)."""


@dataclass(frozen=True, kw_only=True)
class HardwareDescription:
    """`hardware.toml`. Drives are in the joint order of `robot.toml`."""

    robot: str
    rate_hz: float
    """Cycles of the bus loop."""
    can_timeout_s: float
    """Silence after which a drive lets go by itself."""
    buses: tuple[BusSpec, ...]
    drives: tuple[JointDrive, ...]
    supply: Supply
    imu: ImuSpec

    @classmethod
    def load(cls, path: Path | None, desc: RobotDescription) -> Self:
        """Read and check `path`, by default the `hardware.toml` of the assets folder."""
        source = robot_dir() / "hardware.toml" if path is None else path
        values = read_toml(source, unreadable=HardwareError, malformed=HardwareError)
        return cls.parse(values, desc, source=str(source))

    @classmethod
    def parse(
        cls, values: dict[str, Any], desc: RobotDescription, *, source: str = "hardware.toml"
    ) -> Self:
        """Check the parsed tables; `source` is how errors name them."""
        top = Table(values, "", source, HardwareError)
        robot = top.text("robot")
        if robot != desc.name:
            raise top.error("robot", f"is {robot!r}; expected {desc.name!r}, as in robot.toml")
        rate_hz = top.positive("rate_hz")
        timeout_s = top.number("can_timeout", low=2.0 / rate_hz, high=_LONGEST_TIMEOUT_S)
        buses = tuple(_read_bus(name, table) for name, table in top.tables("buses").items())
        drives = _read_drives(top.table("joints"), desc.joint_names, buses)
        supply = _read_supply(top.table("supply"))
        imu = _read_imu(top.table("imu"))
        top.finish()
        return cls(
            robot=robot,
            rate_hz=rate_hz,
            can_timeout_s=timeout_s,
            buses=buses,
            drives=drives,
            supply=supply,
            imu=imu,
        )

    def bus(self, name: str) -> BusSpec:
        """The bus of that name."""
        return next(bus for bus in self.buses if bus.name == name)

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
            interface: Of every bus. `udp_multicast` gives each bus a group and a port of its own,
                `virtual` (one process) a channel of its name.
            channels: Channel by bus name, where it is not the one above or, for `socketcan`, the
                one in the file. For `udp_multicast` a group, or group:port.
            hops: Networks that frames may pass, `udp_multicast` only.
        """
        if interface not in INTERFACES:
            raise HardwareError(
                f"CAN interface {interface!r} is none of {', '.join(INTERFACES)}; choose one"
            )
        if not 0 <= hops <= _MOST_HOPS:
            raise HardwareError(f"hops is {hops}; give 0, this host alone, to {_MOST_HOPS}")
        chosen = dict(channels or {})
        buses = []
        for number, bus in enumerate(self.buses):
            channel, port = bus.channel, 0
            if interface == "udp_multicast":
                channel = _MULTICAST_GROUP.format(number=number + 1)
                port = _MULTICAST_PORT + number
            elif interface == "virtual":
                channel = bus.name
            elif bus.interface != "socketcan" and bus.name not in chosen:
                raise HardwareError(
                    f"bus {bus.name} has no socketcan channel; name one, for example can{number}"
                )
            channel = chosen.pop(bus.name, channel)
            if interface == "udp_multicast" and ":" in channel:
                channel, _, number_text = channel.rpartition(":")
                if not number_text.isdecimal() or not 0 < int(number_text) < 1 << 16:
                    raise HardwareError(
                        f"bus {bus.name} has channel {channel}:{number_text}; give group:port"
                    )
                port = int(number_text)
            buses.append(
                dataclasses.replace(
                    bus,
                    interface=cast("Interface", interface),
                    channel=channel,
                    port=port,
                    hops=hops,
                )
            )
        if chosen:
            raise HardwareError(
                f"channels are given for {', '.join(chosen)}; "
                f"the buses are {', '.join(bus.name for bus in self.buses)}"
            )
        return dataclasses.replace(self, buses=tuple(buses))


def _read_bus(name: str, table: Table) -> BusSpec:
    interface = table.text("interface")
    if interface not in INTERFACES:
        raise table.error("interface", f"is {interface!r}; expected {', '.join(INTERFACES)}")
    port = table.integer("port", low=1) if interface == "udp_multicast" else 0
    bus = BusSpec(
        name=name,
        interface=cast("Interface", interface),
        channel=table.text("channel"),
        bitrate=table.integer("bitrate", low=1),
        port=port,
    )
    table.finish()
    return bus


def _read_drives(
    joints: Table, names: tuple[str, ...], buses: tuple[BusSpec, ...]
) -> tuple[JointDrive, ...]:
    drives = tuple(_read_drive(name, joints.table(name), buses) for name in names)
    joints.finish()
    taken: dict[tuple[str, int], JointDrive] = {}
    makes: dict[str, JointDrive] = {}
    for drive in drives:
        first = taken.setdefault((drive.bus, drive.can_id), drive)
        if first is not drive:
            raise joints.error(
                f"{drive.joint}.id",
                f"is {drive.can_id}, which {first.joint} has on bus {drive.bus}; "
                "give every drive of a bus its own",
            )
        other = makes.setdefault(drive.bus, drive)
        if other.model.make != drive.model.make:
            raise joints.error(
                f"{drive.joint}.model",
                f"is {drive.model.name} on bus {drive.bus}, where {other.joint} has "
                f"{other.model.name}; one bus carries one make",
            )
    for bus in buses:
        if bus.name not in makes:
            raise joints.error("", f"has no drive on bus {bus.name}; use the bus or leave it out")
    return drives


def _read_drive(joint: str, table: Table, buses: tuple[BusSpec, ...]) -> JointDrive:
    bus = table.text("bus")
    if bus not in {spec.name for spec in buses}:
        known = ", ".join(spec.name for spec in buses)
        raise table.error("bus", f"is {bus!r}; the buses are {known}")
    can_id = table.integer("id", low=1)
    if can_id > 0x7F:
        raise table.error("id", f"is {can_id}; drives have ids from 1 to 127")
    name = table.text("model")
    try:
        model = drive_model(name)
    except HardwareError as error:
        raise table.error("model", f"is wrong: {error}") from None
    direction = table.integer("direction", low=-1)
    if direction not in (-1, 1):
        raise table.error("direction", f"is {direction}; expected 1 or -1")
    drive = JointDrive(
        joint=joint,
        bus=bus,
        can_id=can_id,
        model=model,
        direction=direction,
        gear=table.positive("gear"),
        offset=table.number("offset", low=-2.0 * math.pi, high=2.0 * math.pi),
    )
    table.finish()
    return drive


def _read_supply(table: Table) -> Supply:
    derate_to = table.positive("derate_to")
    derate_from = table.number("derate_from", above=derate_to)
    nominal = table.number("nominal", above=derate_from)
    supply = Supply(
        nominal_v=nominal,
        derate_from_v=derate_from,
        derate_to_v=derate_to,
        high_v=table.number("high", above=nominal),
    )
    table.finish()
    return supply


def _read_imu(table: Table) -> ImuSpec:
    x, y, z, w = table.vector("mount_quat", 4)
    norm = float(np.linalg.norm((x, y, z, w)))
    if abs(norm - 1.0) > 1e-6:
        raise table.error("mount_quat", f"has norm {norm:g}; expected a unit quaternion xyzw")
    imu = ImuSpec(
        port=table.text("port"), baud=table.integer("baud", low=1), mount_quat=(x, y, z, w)
    )
    table.finish()
    return imu
