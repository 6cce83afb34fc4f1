"""CAN adapters of this computer: where they are plugged in, and which bus of drives hangs on each.

The kernel numbers interfaces in the order in which it finds them, and does not rename one to a name
that another has. So adapters get names that the kernel does not give away, `can-front` and so on,
from udev's rules, which match an adapter by its serial number or by the port it is in.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec

from krabby.drivers.can.can_io import frame_of, message_of, open_bus
from krabby.drivers.can.codec import Kind, Request
from krabby.drivers.can.hardware import BusSpec, HardwareDescription
from krabby.drivers.errors import DriveError, HardwareError

__all__ = ["Adapter", "assign", "buses_heard", "find_adapters", "name_of", "rules"]

_ARPHRD_CAN: Final = "280"
_HEAD: Final = """\
# Written by krabby drives adapters: names of the drives' buses, which the kernel gives to no other
# interface. After a change: sudo udevadm control --reload, then unplug the adapters once.
"""
_LISTEN_S: Final = 0.1


class Adapter(NamedTuple):
    """A CAN interface."""

    name: str
    """As the kernel or udev calls it now."""
    port: str
    """Where it is plugged in, as udev's ID_PATH begins to tell it: `1-2.3:1.0` of a USB hub, or the
    address of a controller on the board."""
    serial: str
    """Of the USB device; empty where it has none."""
    channel: int
    """Which channel of an adapter with several, counted from 0."""


Ask = Callable[[HardwareDescription, BusSpec], tuple[str, ...]]
"""Which buses answer on an interface; `buses_heard`."""


def name_of(bus: str) -> str:
    """Name of the interface of a bus."""
    return f"can-{bus}"


def find_adapters(root: Path = Path("/")) -> list[Adapter]:
    """All CAN interfaces below `root`'s /sys; virtual ones have no port and are left out."""
    found = []
    for interface in sorted((root / "sys/class/net").glob("*")):
        if _text(interface / "type") != _ARPHRD_CAN or not (interface / "device").exists():
            continue
        device = (interface / "device").resolve()
        serial = next(
            (text for place in (device, *device.parents) if (text := _text(place / "serial"))), ""
        )
        channel = int(_text(interface / "dev_port") or _text(interface / "dev_id") or "0", 0)
        found.append(Adapter(interface.name, device.name, serial, channel))
    return found


def buses_heard(hardware: HardwareDescription, spec: BusSpec) -> tuple[str, ...]:
    """Buses of `hardware` whose drives answer on the interface of `spec`; each is told to be off.

    Raises:
        DriveError: The interface cannot be opened.
    """
    codecs = {bus.name: hardware.codec_of(bus.name) for bus in hardware.buses}
    asked = {
        (bus.name, hardware.drives[joint].can_id)
        for bus in hardware.buses
        for joint in hardware.drives_of(bus.name)
    }
    heard: set[tuple[str, int]] = set()
    with open_bus(spec) as wire:
        for bus, can_id in sorted(asked):
            wire.send(message_of(codecs[bus].request(Request(Kind.DISABLE, can_id))))
        deadline_s = time.monotonic() + _LISTEN_S
        while (left_s := deadline_s - time.monotonic()) > 0.0:
            message = wire.recv(left_s)
            if message is None or message.is_error_frame:
                continue
            for bus, codec in codecs.items():
                sender = codec.sender(frame_of(message))
                if (bus, sender) in asked:
                    heard.add((bus, int(sender or 0)))
    counts = Counter(bus for bus, _ in heard)
    return tuple(bus for bus, _ in counts.most_common())


def assign(
    hardware: HardwareDescription, adapters: Sequence[Adapter], *, ask: Ask | None = None
) -> dict[str, Adapter]:
    """Which adapter has which bus, by who answers on it.

    Raises:
        DriveError: An interface is down, no bus answers on it, or two of a bus do.
    """
    found: dict[str, Adapter] = {}
    for adapter in adapters:
        spec = msgspec.structs.replace(
            hardware.buses[0], interface="socketcan", channel=adapter.name, port=0
        )
        heard = (ask or buses_heard)(hardware, spec)
        if len(heard) > 1:
            raise DriveError(
                f"drives of {' and '.join(heard)} answer on {adapter.name}; two buses are joined, "
                "or hardware.toml does not have the drives as they are wired"
            )
        if heard and heard[0] in found:
            raise DriveError(
                f"the drives of {heard[0]} answer on {found[heard[0]].name} and on {adapter.name}; "
                "look for two adapters on one chain"
            )
        if heard:
            found[heard[0]] = adapter
    missing = [bus.name for bus in hardware.buses if bus.name not in found]
    if missing:
        raise DriveError(
            f"no drive of {', '.join(missing)} answers on any of "
            f"{', '.join(adapter.name for adapter in adapters) or 'no interface'}; switch the "
            "drives on, or say which adapter it is: BUS=INTERFACE"
        )
    return found


def rules(adapters: Mapping[str, Adapter], by: Literal["auto", "serial", "port"] = "auto") -> str:
    """Udev's rules that name the adapter of every bus.

    By serial number where every adapter has its own, else by the port it is plugged into.

    Raises:
        HardwareError: They cannot be told apart by serial numbers.
    """
    serials = {(adapter.serial, adapter.channel) for adapter in adapters.values()}
    distinct = len(serials) == len(adapters) and all(serial for serial, _ in serials)
    if by == "serial" and not distinct:
        raise HardwareError(
            "the adapters have no serial numbers of their own; use --by port, and leave each in "
            "its port"
        )
    by_serial = by == "serial" or (by == "auto" and distinct)
    return _HEAD + "".join(
        _rule(bus, adapter, by_serial=by_serial) for bus, adapter in adapters.items()
    )


def _rule(bus: str, adapter: Adapter, *, by_serial: bool) -> str:
    own = f'ATTRS{{serial}}=="{adapter.serial}"' if by_serial else f'KERNELS=="{adapter.port}"'
    return (
        f'SUBSYSTEM=="net", ACTION=="add", ATTR{{type}}=="{_ARPHRD_CAN}", {own}, '
        f'ATTR{{dev_port}}=="{adapter.channel}", NAME="{name_of(bus)}"\n'
    )


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
