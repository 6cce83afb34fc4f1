"""Checks of a Jetson: JetPack, driver, SDKs, power mode, clocks, heat."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Final

from krabby_cli.doctor.machine import Finding, Machine, fail, ok, warn

__all__ = ["check_jetson"]

_JETPACKS: Final = {(36, 4): "6.2", (36, 5): "6.2.2", (39, 2): "7.2"}
"""JetPack of each release of Jetson Linux that the images support on Orin (NVIDIA's archive)."""
_THOR_ONLY: Final = 38
_FULL_POWER: Final = ("MAXN", "MAXN_SUPER", "MAXN SUPER")
_HOT_C: Final = 90.0
"""From about 95 °C on the clock is lowered."""
_FANS: Final = ("rpm", "fan1_input")
"""Files in hwmon with revolutions per minute: NVIDIA's and Linux's name."""


def check_jetson(machine: Machine) -> Iterator[Finding]:
    """JetPack, versions, power mode, clocks, heat; one line elsewhere than on a Jetson."""
    if not machine.is_jetson:
        remedy = "run this on the robot's computer"
        yield machine.absent("Jetson", "no Jetson, its checks are left out", remedy)
        return
    yield _release(machine)
    yield _driver(machine)
    yield _cuda(machine)
    yield _tensorrt(machine)
    yield _zed_sdk(machine)
    yield _power_mode(machine)
    yield _clocks(machine)
    yield _heat(machine)


def _release(machine: Machine) -> Finding:
    text = machine.read("/etc/nv_tegra_release") or ""
    found = re.match(r"# R(\d+) \(release\), REVISION: (\d+)\.(\d+)", text)
    if found is None:
        remedy = "/etc/nv_tegra_release has no release: flash JetPack 7.2 with NVIDIA's SDK Manager"
        return warn("JetPack", f"{machine.model}, release unknown", remedy)
    major, minor, patch = (int(part) for part in found.groups())
    l4t = f"L4T {major}.{minor}.{patch}"
    package = machine.package("nvidia-jetpack")
    jetpack = package.partition("-")[0] if package else _JETPACKS.get((major, minor))
    if major == _THOR_ONLY:
        return fail("JetPack", l4t, "JetPack 7.0 and 7.1 are for Thor: flash 7.2 on an Orin")
    value = f"{jetpack or 'unknown'} ({l4t})"
    if (major, minor) not in _JETPACKS:
        remedy = (
            "the images are made for JetPack 7.2 (L4T 39.2) and 6.2 (36.4, 36.5): flash one of "
            "them, or try and read the logs of gameloop and camera about TensorRT and CUDA"
        )
        return warn("JetPack", value, remedy)
    if major < _THOR_ONLY:
        remedy = (
            "its TensorRT bindings are for Python 3.10, which this project does not support: "
            "set KRABBY_BASE=jetpack6 and policies run on ONNX Runtime; JetPack 7.2 has TensorRT"
        )
        return warn("JetPack", value, remedy)
    return ok("JetPack", value)


def _driver(machine: Machine) -> Finding:
    text = machine.read("/proc/driver/nvidia/version") or ""
    found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", text)
    if found:
        return ok("GPU driver", found[1])
    places = ("/sys/devices/*.gpu", "/sys/devices/platform/*.gpu", "/sys/devices/platform/*/*.gpu")
    if any(machine.glob(place) for place in places):
        return ok("GPU driver", "nvgpu, in the kernel")
    remedy = "install the packages of this JetPack: sudo apt-get install nvidia-jetpack; reboot"
    return fail("GPU driver", "not loaded", remedy)


def _cuda(machine: Machine) -> Finding:
    try:
        version = json.loads(machine.read("/usr/local/cuda/version.json") or "")["cuda"]["version"]
    except (ValueError, KeyError, TypeError):
        return ok("CUDA", "not on the host; the images bring their own")
    return ok("CUDA", str(version))


def _tensorrt(machine: Machine) -> Finding:
    for name in ("libnvinfer11", "libnvinfer10"):
        if version := machine.package(name):
            return ok("TensorRT", f"{version.partition('-')[0]} ({name})")
    return ok("TensorRT", "not on the host; the images bring their own")


def _zed_sdk(machine: Machine) -> Finding:
    text = machine.read("/usr/local/zed/zed-config-version.cmake") or ""
    if found := re.search(r'PACKAGE_VERSION "?([\d.]+)', text):
        return ok("ZED SDK", f"{found[1]} on the host")
    return ok("ZED SDK", "not on the host; the camera's image takes it from services/camera/sdk")


def _power_mode(machine: Machine) -> Finding:
    text = machine.run(["nvpmodel", "-q"]) or ""
    found = re.search(r"NV Power Mode: *(.+?) *$", text, re.MULTILINE)
    if found is None:
        return warn("power mode", "no mode from nvpmodel", "run this with sudo")
    if found[1] in _FULL_POWER:
        return ok("power mode", found[1])
    modes = machine.read("/etc/nvpmodel.conf") or ""
    numbers = re.findall(r"POWER_MODEL ID=(\d+) NAME=(\S+)", modes)
    names = {name: number for number, name in numbers}
    best = next((names[name] for name in reversed(_FULL_POWER) if name in names), "0")
    return warn("power mode", found[1], f"sudo nvpmodel -m {best}")


def _clocks(machine: Machine) -> Finding:
    """`jetson_clocks` holds each clock at its maximum: the lower limit becomes the upper one."""
    free = []
    policies = machine.glob("/sys/devices/system/cpu/cpufreq/policy*")
    for policy in policies:
        folder = policy.relative_to(machine.root)
        if machine.read(folder / "scaling_min_freq") != machine.read(folder / "scaling_max_freq"):
            free.append(policy.name)
    if not policies:
        return warn("clocks", "no cpufreq", "run this on the host, not in a container")
    if free:
        value = f"{len(free)} of {len(policies)} CPU clusters may slow down"
        remedy = "sudo jetson_clocks; at each boot: tools/robot/krabby-clocks.service"
        return warn("clocks", value, remedy)
    return ok("clocks", "held at their maximum")


def _heat(machine: Machine) -> Finding:
    """The hottest thermal zone, and how fast the fan turns."""
    zones: list[tuple[float, str]] = []
    for zone in machine.glob("/sys/class/thermal/thermal_zone*"):
        folder = zone.relative_to(machine.root)
        said = machine.read(folder / "temp") or ""  # nothing where that part is off
        if re.fullmatch(r"-?\d+", said):
            zones.append((int(said) * 1e-3, machine.read(folder / "type") or zone.name))
    if not zones:
        return warn("heat", "no thermal zone", "run this on the host")
    celsius, name = max(zones)
    value = f"{name} {celsius:.0f} °C"
    for fan in (path for file in _FANS for path in machine.glob(f"/sys/class/hwmon/hwmon*/{file}")):
        value += f", fan {machine.read(fan.relative_to(machine.root))} rpm"
    if celsius < _HOT_C:
        return ok("heat", value)
    remedy = "let air to it; FAN_DEFAULT_PROFILE cool in /etc/nvfancontrol.conf, then restart "
    return warn("heat", value, f"{remedy}nvfancontrol: sudo systemctl restart nvfancontrol")
