"""Heat, clock, disk and memory of the host as metrics; a container sees those of its host too."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import psutil
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

__all__ = ["HostMetrics"]


class HostMetrics(Collector):
    """Reads the host when it is asked. What a machine does not tell is left out.

    Args:
        folder: Its file system is the one whose free space is told.
    """

    def __init__(self, folder: str = "/") -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        """Five gauges and a temperature for each sensor."""
        heat = GaugeMetricFamily(
            "krabby_host_temperature_celsius", "Temperature of a sensor", labels=["sensor"]
        )
        for sensor, celsius in sorted(_temperatures().items()):
            heat.add_metric([sensor], celsius)
        yield heat
        if (ceiling := _clock_ceiling()) is not None:
            text = "Highest clock that is allowed now, over the highest there is"
            yield GaugeMetricFamily("krabby_host_clock_ceiling_ratio", text, value=ceiling)
        disk, memory = psutil.disk_usage(self._folder), psutil.virtual_memory()
        for name, text, value in (
            ("disk_free_bytes", "Free disk", disk.free),
            ("disk_bytes", "Size of the disk", disk.total),
            ("memory_available_bytes", "Memory that programs can get", memory.available),
            ("memory_bytes", "Memory", memory.total),
        ):
            yield GaugeMetricFamily(f"krabby_host_{name}", text, value=value)


def _temperatures() -> dict[str, float]:
    """By sensor [°C]; of sensors of the same name the hottest."""
    found: dict[str, float] = {}
    with contextlib.suppress(OSError):
        for chip, sensors in psutil.sensors_temperatures().items():
            for sensor in sensors:
                name = f"{chip} {sensor.label}".strip()
                found[name] = max(sensor.current, found.get(name, sensor.current))
    return found


def _clock_ceiling() -> float | None:
    """Of the core that is held lowest; None where the kernel does not scale the clock."""
    ratios: list[float] = []
    for core in range(psutil.cpu_count() or 0):
        folder = f"/sys/devices/system/cpu/cpu{core}/cpufreq"
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            ratios.append(
                _number(f"{folder}/scaling_max_freq") / _number(f"{folder}/cpuinfo_max_freq")
            )
    return min(ratios, default=None)


def _number(path: str) -> float:
    with open(path, encoding="ascii") as file:
        return float(file.read())
