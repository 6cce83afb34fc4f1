"""Heat, clock, disk and memory of the host as metrics; a container sees those of its host too."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import psutil
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

__all__ = ["HostMetrics"]

_GPUS: Final = ("gpu", "ga10b")
"""What devfreq calls an Orin's, from JetPack 6 on and before."""


class HostMetrics(Collector):
    """Reads the host when it is asked. What a machine does not tell is left out.

    Args:
        folder: Its file system is the one whose free space is told.
        sys: Where the kernel tells of thermal zones and clocks.
    """

    def __init__(self, folder: str = "/", sys: Path = Path("/sys")) -> None:
        self._folder, self._sys = folder, sys

    def collect(self) -> Iterable[Metric]:
        """Five gauges and a temperature for each sensor."""
        heat = GaugeMetricFamily(
            "krabby_host_temperature_celsius", "Temperature of a sensor", labels=["sensor"]
        )
        for sensor, celsius in sorted(_temperatures(self._sys).items()):
            heat.add_metric([sensor], celsius)
        yield heat
        ceilings = (*_core_ceilings(self._sys), *_gpu_ceilings(self._sys))
        if ceilings:
            text = "Highest clock that is allowed now, over the highest there is; cores and GPU"
            yield GaugeMetricFamily("krabby_host_clock_ceiling_ratio", text, value=min(ceilings))
        disk, memory = psutil.disk_usage(self._folder), psutil.virtual_memory()
        for name, text, value in (
            ("disk_free_bytes", "Free disk", disk.free),
            ("disk_bytes", "Size of the disk", disk.total),
            ("memory_available_bytes", "Memory that programs can get", memory.available),
            ("memory_bytes", "Memory", memory.total),
        ):
            yield GaugeMetricFamily(f"krabby_host_{name}", text, value=value)


def _temperatures(sys: Path) -> dict[str, float]:
    """By sensor [°C]; of sensors of the same name the hottest.

    psutil reads thermal zones only where there is no other sensor, and an Orin's processor and GPU
    are zones: with a sensor in its NVMe disk they would be missing.
    """
    found: dict[str, float] = {}
    with contextlib.suppress(OSError):
        for chip, sensors in psutil.sensors_temperatures().items():
            for sensor in sensors:
                name = f"{chip} {sensor.label}".strip()
                found[name] = max(sensor.current, found.get(name, sensor.current))
    zones: dict[str, float] = {}
    for zone in sys.glob("class/thermal/thermal_zone*"):
        with contextlib.suppress(OSError, ValueError):  # one whose part is off has no temperature
            name, celsius = (zone / "type").read_text().strip(), _number(zone / "temp") * 1e-3
            zones[name] = max(celsius, zones.get(name, celsius))
    return found | zones


def _core_ceilings(sys: Path) -> Iterator[float]:
    """Of every core whose clock the kernel scales."""
    for folder in sys.glob("devices/system/cpu/cpu[0-9]*/cpufreq"):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            yield _number(folder / "scaling_max_freq") / _number(folder / "cpuinfo_max_freq")


def _gpu_ceilings(sys: Path) -> Iterator[float]:
    """Of every GPU whose clock the kernel scales, as an Orin's, which has no NVML."""
    named = (folder for name in _GPUS for folder in sys.glob(f"class/devfreq/*{name}*"))
    for folder in named:
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            clocks = (folder / "available_frequencies").read_text().split()
            yield _number(folder / "max_freq") / max(map(float, clocks))


def _number(path: Path) -> float:
    return float(path.read_text(encoding="ascii"))
