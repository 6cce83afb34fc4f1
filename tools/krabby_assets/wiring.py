"""Draws the wiring of a robot from its `hardware.toml`, as SVG of a few kilobytes.

Buses as chains, power and emergency stop, the other lines of the computer. Numbers and names are
those of the file; only the two contacts of the emergency stop are not in it.
"""

from html import escape

from krabby.drivers.can.hardware import HardwareDescription
from krabby.robot.description import RobotDescription

__all__ = ["to_svg"]

_WIDTH = 1000
_CHAIN_Y, _CHAIN_STEP = 120, 90
_BOX, _GAP, _FIRST = (104, 46), 12, 216
_LEGEND = (
    "blue: CAN_H, CAN_L and ground, twisted, and the computer's other lines; red: supply of the "
    "drives; mirror: the drive turns against its joint (direction = -1)"
)
_STYLE = (
    "text{font:12px sans-serif;fill:#222}.t{font-weight:bold}.s{font-size:10px;fill:#555}"
    ".b{fill:#fff;stroke:#222}.l{stroke:#1f6fb4;stroke-width:2;fill:none}"
    ".p{stroke:#c0392b;stroke-width:2;fill:none}.m{fill:#fdf1dc;stroke:#222}"
)


def to_svg(hardware: HardwareDescription, desc: RobotDescription) -> str:
    """The picture; the same byte for byte on every machine."""
    bottom = _CHAIN_Y + _CHAIN_STEP * len(hardware.buses)
    parts = [
        _text(16, 24, f"{desc.name}: wiring, drawn from hardware.toml", "t"),
        _text(16, 42, _LEGEND, "s"),
        _box(16, 64, 150, bottom - 64, "computer", "its supply is another"),
    ]
    for number, bus in enumerate(hardware.buses):
        parts += _chain(hardware, number, _CHAIN_Y + number * _CHAIN_STEP, bus.name)
    parts += _power(hardware, bottom)
    height = bottom + 170
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" role="img">\n<style>{_STYLE}</style>\n'
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _chain(hardware: HardwareDescription, number: int, y: int, name: str) -> list[str]:
    """One bus: adapter, drives in the order of the file, terminators at both ends."""
    bus, drives = hardware.buses[number], [hardware.drives[i] for i in hardware.drives_of(name)]
    middle, width = y + _BOX[1] // 2, _BOX[0] + _GAP
    end = _FIRST + width * len(drives)
    parts = [
        f'<path class="l" d="M150 {middle}H{end}"/>',
        _box(60, y, 92, _BOX[1], bus.channel, f"{bus.bitrate // 1000} kbit/s"),
        _text(156, middle - 6, "120 \u03a9", "s"),
        _text(end - 8, middle - 6, "120 \u03a9", "s"),
    ]
    for place, drive in enumerate(drives):
        label = f"id {drive.can_id}"
        parts.append(_box(_FIRST + width * place, y, *_BOX, drive.joint, label, kind="m"))
        if drive.direction < 0:
            parts.append(_text(_FIRST + width * place + 70, y + 34, "mirror", "s"))
    return parts


def _power(hardware: HardwareDescription, y: int) -> list[str]:
    """Battery, contactor and button; IMU, camera and the line of the emergency stop."""
    models = ", ".join(sorted({drive.model.name for drive in hardware.drives}))
    supply = hardware.supply
    top = y + 40
    return [
        f'<path class="p" d="M336 {top + 23}H900V{y - 20}"/>',
        f'<path class="l" d="M91 {y}V{top + 122}H651V{top + 106}M471 {top + 122}V{top + 106}'
        f'M280 {top + 122}V{top + 106}"/>',
        _box(216, top, 120, 46, "battery", f"{supply.nominal:g} V, fuse"),
        _box(396, top, 120, 46, "pre-charge", "resistor"),
        _box(576, top, 150, 46, "contactor", "coil: contact 1 of the button"),
        _text(740, top + 16, f"to {len(hardware.drives)} drives,", "s"),
        _text(740, top + 38, models, "s"),
        _box(216, top + 60, 150, 46, "button", "contact 2: GPIO, ground"),
        _box(396, top + 60, 150, 46, "IMU", f"{hardware.imu.port}, {hardware.imu.baud} bit/s"),
        _box(576, top + 60, 150, 46, "camera", "USB 3, its own cable"),
    ]


def _box(x: int, y: int, width: int, height: int, name: str, more: str, kind: str = "b") -> str:
    return (
        f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="4"/>'
        + _text(x + 6, y + 18, name, "t")
        + _text(x + 6, y + 34, more, "s")
    )


def _text(x: int, y: int, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x}" y="{y}">{escape(text)}</text>'
