"""Connections of the robot's computer: CAN buses, the camera's USB, the IMU's serial line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from krabby_cli.doctor.machine import Finding, Machine, fail, ok, skip, warn

__all__ = ["check_wires"]

_TX_QUEUE: Final = 64
"""Frames. The kernel's default of ten holds the six commands of one cycle: a bus that is disturbed
for 10 ms refuses the next ones."""
_ERROR_PASSIVE: Final = 128
"""CAN's own limit; a healthy bus stands at 0."""
_CAMERAS: Final = {"2b03": "Stereolabs", "8086": "RealSense"}
"""USB vendors; Intel's other devices are told apart by their product string."""
_SUPER_SPEED_MBPS: Final = 5000.0


def check_wires(machine: Machine) -> Iterator[Finding]:
    yield from _can(machine)
    yield from _usb(machine)
    yield from _serial(machine)


def _can(machine: Machine) -> Iterator[Finding]:
    text = machine.run(["ip", "-details", "-statistics", "-json", "link", "show"])
    try:
        links = {link["ifname"]: link for link in json.loads(text or "")}
    except (ValueError, KeyError, TypeError):
        yield warn("CAN", "no output of ip", "install iproute2; run this on the host")
        return
    found = {name for name, link in links.items() if link.get("link_type") == "can"}
    wanted = machine.buses.keys() if machine.is_robot else set()
    for name in sorted(found | wanted):
        if name in found:
            yield from _bus(machine, name, links[name])
        else:
            remedy = "plug its adapter in, load its driver (sudo modprobe mttcan, gs_usb); "
            yield fail(f"CAN {name}", "no such interface", f"{remedy}docs/bring-up.md: CAN")
    if not found | wanted:
        yield skip("CAN", "no interface")


def _bus(machine: Machine, name: str, link: dict[str, Any]) -> Iterator[Finding]:
    title = f"CAN {name}"
    info = link.get("linkinfo", {})
    if info.get("info_kind") == "vcan":
        yield skip(title, "virtual")
        return
    data = info.get("info_data", {})
    bitrate = int(data.get("bittiming", {}).get("bitrate", 0))
    wanted = machine.buses.get(name, bitrate)
    up = f"sudo ip link set {name} up type can bitrate {wanted or 1_000_000} restart-ms 100"
    if "UP" not in link.get("flags", ()):
        yield fail(title, "down", up)
        return
    state = data.get("state", "unknown")
    value = f"{state}, {bitrate} bit/s, queue {link.get('txqlen', 0)}"
    cycle = f"sudo ip link set {name} down; {up}"
    if bitrate != wanted:
        yield fail(title, value, f"the drives run at {wanted} bit/s: {cycle}")
    elif state == "BUS-OFF":
        remedy = f"wires: short, swapped CAN_H and CAN_L, termination; then {cycle}"
        yield fail(title, value, remedy)
    elif state != "ERROR-ACTIVE":
        remedy = (
            "no acknowledgement, or disturbance on the wire: drives powered? 60 Ohm between CAN_H "
            "and CAN_L with the power off? one common ground?"
        )
        yield fail(title, value, remedy)
    elif int(link.get("txqlen", 0)) < _TX_QUEUE:
        yield warn(title, value, f"sudo ip link set {name} txqueuelen 128")
    elif not int(data.get("restart_ms", 0)):
        yield warn(title, f"{value}, no restart after bus-off", cycle)
    else:
        yield ok(title, value)
    yield _errors(f"{title} errors", link, data, info.get("info_xstats", {}))


def _errors(
    title: str, link: dict[str, Any], data: dict[str, Any], events: dict[str, Any]
) -> Finding:
    counters = data.get("berr_counter", {})
    level = max(int(counters.get("tx", 0)), int(counters.get("rx", 0)))
    stats = link.get("stats64", {})
    told = {
        "bus off": int(events.get("bus_off", 0)),
        "error passive": int(events.get("error_passive", 0)),
        "bus errors": int(events.get("bus_error", 0)),
        "lost on receive": int(stats.get("rx", {}).get("dropped", 0)),
        "lost on send": int(stats.get("tx", {}).get("dropped", 0)),
    }
    seen = ", ".join(f"{count} {what}" for what, count in told.items() if count)
    value = f"level {level} of {_ERROR_PASSIVE}" + (f"; since up: {seen}" if seen else "")
    if level == 0 and not seen:
        return ok(title, value)
    remedy = "check plugs, termination at both ends, ground, shielding beside motor cables"
    return (fail if level >= _ERROR_PASSIVE else warn)(title, value, remedy)


def _usb(machine: Machine) -> Iterator[Finding]:
    best: dict[str, tuple[float, str]] = {}
    for vendor_file in machine.glob("/sys/bus/usb/devices/*/idVendor"):
        device = vendor_file.parent.relative_to(machine.root)
        maker = _CAMERAS.get(machine.read(device / "idVendor") or "")
        product = machine.read(device / "product") or "camera"
        if maker is None or (maker == "RealSense" and maker.lower() not in product.lower()):
            continue
        speed = float(machine.read(device / "speed") or 0)
        best[maker] = max(best.get(maker, (0.0, "")), (speed, product))
    # A ZED's sensors are a second device of the same make, always slow: the fastest is the camera.
    for maker, (speed, product) in best.items():
        value = f"{product}, {speed:g} Mbit/s"
        remedy = (
            f"plug the {maker} camera straight into a USB 3 port, with its own cable; turn the "
            "USB-C plug over"
        )
        usb3 = speed >= _SUPER_SPEED_MBPS
        yield ok("camera", value) if usb3 else fail("camera", f"{value}: not USB 3", remedy)
    if not best:
        remedy = "plug it in; lsusb must show 2b03 (ZED) or RealSense"
        yield machine.absent("camera", "none on USB", remedy)


def _serial(machine: Machine) -> Iterator[Finding]:
    ports = sorted({found.name for found in machine.glob("/sys/class/tty/tty[UA][SC][BM]*")})
    for port in ports:
        file = f"/sys/bus/usb-serial/devices/{port}/latency_timer"
        latency, name = machine.read(file), f"serial {port}"
        if latency is None:
            yield ok(name, "no latency timer")
        elif int(latency) > 1:
            remedy = f"echo 1 | sudo tee {file}; permanently: tools/robot/99-krabby.rules"
            yield warn(name, f"latency timer {latency} ms", remedy)
        else:
            yield ok(name, f"latency timer {latency} ms")
    if not ports:
        remedy = "plug the IMU in; ls /dev/serial/by-id names it"
        yield machine.absent("serial", "no USB serial line", remedy)
