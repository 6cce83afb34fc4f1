"""What the relay tells of its host."""

from types import SimpleNamespace

import psutil
from krabby_cli import host_metrics
from krabby_cli.host_metrics import HostMetrics
from prometheus_client import CollectorRegistry


def sensor(label, current):
    return SimpleNamespace(label=label, current=current)


def values():
    registry = CollectorRegistry()
    registry.register(HostMetrics())
    return {
        (sample.name, *sample.labels.values()): sample.value
        for metric in registry.collect()
        for sample in metric.samples
    }


def test_disk_and_memory_are_those_of_this_machine():
    found = values()
    assert found["krabby_host_disk_bytes",] == psutil.disk_usage("/").total
    assert found["krabby_host_memory_bytes",] == psutil.virtual_memory().total
    assert 0 < found["krabby_host_memory_available_bytes",] <= found["krabby_host_memory_bytes",]
    assert 0 < found["krabby_host_disk_free_bytes",] <= found["krabby_host_disk_bytes",]


def test_of_sensors_with_one_name_the_hottest_counts(monkeypatch):
    sensors = {
        "coretemp": [sensor("Core 0", 60.0), sensor("Core 0", 71.5)],
        "nvme": [sensor("", 40.0)],
    }
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: sensors)
    found = values()
    assert found["krabby_host_temperature_celsius", "coretemp Core 0"] == 71.5
    assert found["krabby_host_temperature_celsius", "nvme"] == 40.0


def test_the_clock_is_that_of_the_core_that_is_held_lowest(monkeypatch):
    highest = {"cpu0": 2e6, "cpu1": 1e6}
    monkeypatch.setattr(psutil, "cpu_count", lambda: 2)
    monkeypatch.setattr(
        host_metrics,
        "_number",
        lambda path: highest[path.split("/")[5]] if "scaling" in path else 2e6,
    )
    assert values()["krabby_host_clock_ceiling_ratio",] == 0.5


def test_a_machine_without_sensors_and_clock_tells_neither(monkeypatch):
    monkeypatch.setattr(psutil, "sensors_temperatures", dict)
    monkeypatch.setattr(psutil, "cpu_count", lambda: None)
    names = {name for name, *_ in values()}
    assert "krabby_host_temperature_celsius" not in names
    assert "krabby_host_clock_ceiling_ratio" not in names
