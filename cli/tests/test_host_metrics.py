"""What the relay tells of its host."""

from types import SimpleNamespace

import psutil
import pytest
from krabby_cli.host_metrics import HostMetrics
from prometheus_client import CollectorRegistry


def sensor(label, current):
    return SimpleNamespace(label=label, current=current)


def values(sys=None):
    registry = CollectorRegistry()
    registry.register(HostMetrics() if sys is None else HostMetrics(sys=sys))
    return {
        (sample.name, *sample.labels.values()): sample.value
        for metric in registry.collect()
        for sample in metric.samples
    }


@pytest.fixture
def tree(tmp_path):
    """Make a tree such as /sys of files and their text."""

    def make(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return make


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


ORIN = {
    "class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "class/thermal/thermal_zone0/temp": "61250\n",
    "class/thermal/thermal_zone1/type": "gpu-thermal\n",
    "class/thermal/thermal_zone1/temp": "58500\n",
    "class/thermal/thermal_zone2/type": "cv0-thermal\n",  # is off
    "class/thermal/thermal_zone2/temp": "",
    "devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "2201600\n",
    "devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "2201600\n",
    "devices/system/cpu/cpu11/cpufreq/scaling_max_freq": "1651200\n",
    "devices/system/cpu/cpu11/cpufreq/cpuinfo_max_freq": "2201600\n",
    "devices/system/cpu/cpufreq/policy0/scaling_max_freq": "1\n",
    "class/devfreq/17000000.gpu/max_freq": "1300500000\n",
    "class/devfreq/17000000.gpu/available_frequencies": "306000000 612000000 1300500000\n",
}
"""A Jetson AGX Orin, as far as it tells of heat and clocks; core 11 is held at three quarters."""


def test_an_orin_with_a_sensor_in_its_disk_tells_of_processor_and_gpu_too(tree, monkeypatch):
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: {"nvme": [sensor("", 40.0)]})
    found = values(tree(ORIN))
    heat = {name[1]: value for name, value in found.items() if "temperature" in name[0]}
    assert heat == {"cpu-thermal": 61.25, "gpu-thermal": 58.5, "nvme": 40.0}


def test_the_clock_is_that_of_the_core_that_is_held_lowest(tree):
    assert values(tree(ORIN))["krabby_host_clock_ceiling_ratio",] == 0.75


def test_a_gpu_that_is_held_lower_than_every_core_counts(tree):
    held = {"class/devfreq/17000000.gpu/max_freq": "650250000\n"}
    assert values(tree(ORIN | held))["krabby_host_clock_ceiling_ratio",] == 0.5


def test_a_machine_without_sensors_and_clock_tells_neither(tree, monkeypatch):
    monkeypatch.setattr(psutil, "sensors_temperatures", dict)
    names = {name for name, *_ in values(tree({}))}
    assert "krabby_host_temperature_celsius" not in names
    assert "krabby_host_clock_ceiling_ratio" not in names
