"""`krabby doctor` on machines made of a few files and what their programs print.

The Orin is put together from what NVIDIA's guide and iproute2 print, not recorded on one: no robot
was there. What `ip` says of a bus has the form of iproute2's own JSON.
"""

import json

import pytest
from krabby_cli import doctor
from krabby_cli.__main__ import main
from krabby_cli.doctor.machine import Machine

GIB = 2**30
IP = ("ip", "-details", "-statistics", "-json", "link", "show")
ORIN = {
    "etc/nv_tegra_release": "# R39 (release), REVISION: 2.0, GCID: 1, BOARD: generic",
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  "
    "595.58.03  Release Build\nGCC version: 13.3",
    "proc/version": "Linux version 6.8.12-rt-tegra (build@host) (gcc) #1 SMP PREEMPT_RT",
    "proc/self/limits": "Limit  Soft Limit  Hard Limit  Units\n"
    "Max realtime priority     99                   99\n"
    "Max locked memory         unlimited            unlimited            bytes\n",
    "proc/net/tcp": "  sl  local_address rem_address   st\n",
    "sys/devices/system/cpu/isolated": "4-5\n",
    "sys/devices/system/cpu/online": "0-11\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq": "2201600\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "2201600\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "48250\n",
    "sys/class/thermal/thermal_zone1/type": "tj-thermal\n",
    "sys/class/thermal/thermal_zone1/temp": "51437\n",
    "sys/class/thermal/thermal_zone2/type": "cv0-thermal\n",  # is off
    "sys/class/thermal/thermal_zone2/temp": "",
    "sys/class/hwmon/hwmon0/rpm": "1740\n",
    "sys/bus/usb/devices/2-1/idVendor": "2b03\n",
    "sys/bus/usb/devices/2-1/product": "ZED-M\n",
    "sys/bus/usb/devices/2-1/speed": "5000\n",
    "sys/bus/usb/devices/1-1/idVendor": "2b03\n",
    "sys/bus/usb/devices/1-1/product": "ZED-M Hid Device\n",
    "sys/bus/usb/devices/1-1/speed": "12\n",
    "sys/class/tty/ttyUSB0/dev": "188:0\n",
    "sys/bus/usb-serial/devices/ttyUSB0/latency_timer": "1\n",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=2 NAME=30W >\n",
    "var/lib/dpkg/status": "Package: nvidia-jetpack\nStatus: install ok installed\n"
    "Version: 7.2-b41\n\nPackage: libnvinfer10\nStatus: install ok installed\n"
    "Version: 10.16.2.10-1+cuda13.2\n",
    "usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "13.2.1"}}',
    "usr/local/zed/zed-config-version.cmake": 'set(PACKAGE_VERSION "5.4.0")\n',
    "calibration/calibration.toml": 'measured = "2026-11-20"\n',
}


def bus(name, **changes):
    """A healthy bus as `ip -details -statistics -json link show` writes it."""
    data = {
        "state": "ERROR-ACTIVE",
        "berr_counter": {"tx": 0, "rx": 0},
        "restart_ms": 100,
        "bittiming": {"bitrate": 1_000_000, "sample_point": "0.750", "sjw": 1},
        "clock": 50_000_000,
    }
    link = {
        "ifname": name,
        "flags": ["NOARP", "UP", "LOWER_UP", "ECHO"],
        "operstate": "UP",
        "txqlen": 128,
        "link_type": "can",
        "linkinfo": {
            "info_kind": "can",
            "info_data": data | changes.pop("data", {}),
            "info_xstats": {"restarts": 0, "bus_error": 0, "error_passive": 0, "bus_off": 0},
        },
        "stats64": {"rx": {"packets": 9, "dropped": 0}, "tx": {"packets": 9, "dropped": 0}},
    }
    return link | changes


PROGRAMS = {
    IP: json.dumps([bus("can0"), bus("can1"), bus("can2"), {"ifname": "lo"}]),
    ("nvpmodel", "-q"): "NV Power Mode: MAXN\n0\n",
    ("timedatectl", "show", "--property=NTPSynchronized", "--value"): "yes\n",
    ("docker", "info", "--format", "{{json .}}"): '{"ServerVersion": "27.5.1", "Runtimes": '
    '{"runc": {}, "nvidia": {}}}',
    ("docker", "compose", "version", "--short"): "v2.32.1\n",
    ("docker", "ps", "--format", "{{.Names}}"): "",
}


@pytest.fixture
def examine(tmp_path):
    """Examine the healthy Orin, some of its files and programs replaced; findings by name."""

    def run(files=(), programs=(), *, bare=False, free_gib=100, **settings):
        for path, text in ({} if bare else ORIN | dict(files)).items():
            if text is not None:
                (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / path).write_text(text)
        table = {} if bare else PROGRAMS | dict(programs)
        machine = Machine(
            root=tmp_path,
            run=lambda command: table.get(tuple(command)),
            free_bytes=lambda _: free_gib * GIB,
            buses=dict.fromkeys(("can0", "can1", "can2"), 1_000_000),
            ports=doctor.stack_ports(),
            **settings,
        )
        return {finding.name: finding for finding in doctor.examine(machine)}

    return run


def test_a_robot_that_is_fit_has_nothing_to_do(examine):
    found = examine()
    assert {finding.status for finding in found.values()} == {"ok"}
    assert not [finding for finding in found.values() if finding.remedy]
    assert found["JetPack"].value == "7.2 (L4T 39.2.0)"
    assert found["GPU driver"].value == "595.58.03"
    assert found["TensorRT"].value == "10.16.2.10 (libnvinfer10)"
    assert found["ZED SDK"].value == "5.4.0 on the host"
    assert found["camera"].value == "ZED-M, 5000 Mbit/s"
    assert found["CAN can1"].value == "ERROR-ACTIVE, 1000000 bit/s, queue 128"
    assert found["calibration"].value == "calibration.toml, measured 2026-11-20"


def test_a_bare_machine_is_told_what_is_missing_without_a_crash(examine):
    found = examine(bare=True)
    assert found["Jetson"].status == "skip"
    assert found["Docker"].status == "fail"


def test_judged_as_the_robot_it_lists_what_a_robot_lacks(examine):
    found = examine(bare=True, as_robot=True)
    assert {found[name].status for name in ("Jetson", "camera", "serial", "calibration")} == {
        "fail"
    }


@pytest.mark.parametrize(
    ("release", "status", "words"),
    [
        ("# R36 (release), REVISION: 4.4, GCID: 1", "warn", "jetpack6"),
        ("# R38 (release), REVISION: 4.0, GCID: 1", "fail", "Thor"),
        ("# R35 (release), REVISION: 6.1, GCID: 1", "warn", "made for JetPack 7.2"),
        ("nothing readable", "warn", "flash"),
    ],
)
def test_other_releases_say_what_does_not_work_there(examine, release, status, words):
    found = examine({"etc/nv_tegra_release": release, "var/lib/dpkg/status": None})
    assert found["JetPack"].status == status
    assert words in found["JetPack"].remedy


def test_a_saving_power_mode_names_the_command_for_the_full_one(examine):
    found = examine(programs={("nvpmodel", "-q"): "NV Power Mode: 30W\n2\n"})
    assert found["power mode"] == ("power mode", "warn", "30W", "sudo nvpmodel -m 0")


def test_the_hottest_zone_and_the_fan_are_told(examine):
    assert examine()["heat"].value == "tj-thermal 51 °C, fan 1740 rpm"
    found = examine({"sys/class/thermal/thermal_zone0/temp": "92000\n"})["heat"]
    assert (found.status, found.value) == ("warn", "cpu-thermal 92 °C, fan 1740 rpm")
    assert "nvfancontrol" in found.remedy


def test_clocks_that_may_drop_are_seen(examine):
    found = examine({"sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq": "115200\n"})
    assert found["clocks"].status == "warn"
    assert "jetson_clocks" in found["clocks"].remedy


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"flags": ["NOARP", "ECHO"]}, "fail", "up type can bitrate 1000000"),
        ({"data": {"bittiming": {"bitrate": 500_000}}}, "fail", "drives run at 1000000"),
        ({"data": {"state": "BUS-OFF"}}, "fail", "termination"),
        ({"data": {"state": "ERROR-PASSIVE"}}, "fail", "60 Ohm"),
        ({"txqlen": 10}, "warn", "txqueuelen 128"),
        ({"data": {"restart_ms": 0}}, "warn", "restart-ms 100"),
    ],
)
def test_each_way_a_bus_can_be_unfit_has_its_remedy(examine, changes, status, words):
    links = [bus("can0", **changes), bus("can1"), bus("can2")]
    found = examine(programs={IP: json.dumps(links)})
    assert found["CAN can0"].status == status
    assert words in found["CAN can0"].remedy
    assert found["CAN can1"].status == "ok"


def test_a_bus_that_is_not_there_is_named(examine):
    found = examine(programs={IP: json.dumps([bus("can0"), bus("can1")])})
    assert found["CAN can2"].status == "fail"


@pytest.mark.parametrize(("level", "status"), [(0, "ok"), (8, "warn"), (128, "fail")])
def test_error_counters_are_read_from_the_controller(examine, level, status):
    links = [
        bus("can0", data={"berr_counter": {"tx": level, "rx": 0}}),
        bus("can1"),
        bus("can2"),
    ]
    found = examine(programs={IP: json.dumps(links)})
    assert found["CAN can0 errors"].status == status
    assert found["CAN can0 errors"].value == f"level {level} of 128"


def test_a_camera_on_usb_2_fails(examine):
    found = examine({"sys/bus/usb/devices/2-1/speed": "480\n"})
    assert found["camera"].status == "fail"
    assert "480 Mbit/s" in found["camera"].value


def test_a_slow_latency_timer_is_told_with_the_command_that_sets_it(examine):
    found = examine({"sys/bus/usb-serial/devices/ttyUSB0/latency_timer": "16\n"})
    assert found["serial ttyUSB0"].status == "warn"
    assert found["serial ttyUSB0"].remedy.startswith("echo 1 | sudo tee /sys/bus/usb-serial")


@pytest.mark.parametrize(("free_gib", "status"), [(4, "fail"), (10, "warn"), (30, "ok")])
def test_a_disk_that_fills_up_is_told_in_time(examine, free_gib, status):
    assert examine(free_gib=free_gib)["disk"].status == status


def test_a_port_that_somebody_else_has_is_named(examine):
    # 127.0.0.1:6001 listening: 0x1771
    row = "   0: 0100007F:1771 00000000:0000 0A 00000000:00000000\n"
    found = examine({"proc/net/tcp": f"  sl  local_address rem_address   st\n{row}"})
    assert found["ports"].status == "warn"
    assert found["ports"].value == "taken: 6001 (state)"
    ours = {("docker", "ps", "--format", "{{.Names}}"): "krabby-robot-jetson-hal-1\n"}
    assert examine(programs=ours)["ports"].status == "ok"


def test_docker_without_the_gpu_runtime_fails_on_the_robot(examine):
    info = {("docker", "info", "--format", "{{json .}}"): '{"ServerVersion": "27.5.1"}'}
    found = examine(programs=info)
    assert found["NVIDIA runtime"].status == "fail"
    assert "nvidia-ctk" in found["NVIDIA runtime"].remedy


INFO = ("docker", "info", "--format", "{{json .}}")


def rootless(**settings):
    """What a rootless engine with every controller says of itself, but for `settings`."""
    info = {
        "ServerVersion": "27.5.1",
        "SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless", "name=cgroupns"],
        "Runtimes": {"runc": {}},
        "MemoryLimit": True,
        "CPUShares": True,
        "CPUSet": True,
    }
    return {INFO: json.dumps(info | settings)}


def test_a_rootless_engine_cannot_run_the_robot(examine):
    found = examine(programs=rootless())["rootless engine"]
    assert found.status == "fail"
    assert "no CAN interface" in found.value
    assert "docker context use default" in found.remedy


def test_a_rootless_engine_elsewhere_is_told_what_it_lacks(examine):
    found = examine(programs=rootless(), as_robot=False)["rootless engine"]
    assert found.status == "warn"
    assert found.value == "no SCHED_FIFO, no locked memory"
    assert found.remedy == "KRABBY_RTPRIO=0 KRABBY_MEMLOCK=0 in .env"
    found = examine(programs=rootless(MemoryLimit=False, CPUShares=False), as_robot=False)
    assert found["rootless engine"].value == (
        "no SCHED_FIFO, no locked memory, no memory limits (MemoryLimit=False), "
        "no shares of the processor (CPUShares=False)"
    )
    assert "Delegate=cpu" in found["rootless engine"].remedy


@pytest.mark.parametrize(
    ("path", "usual", "raised", "times"),
    [
        ("sys/fs/cgroup/cpu/docker/cpu.shares", "1024\n", "20480\n", "20"),
        ("sys/fs/cgroup/docker/cpu.weight", "100\n", "2000\n", "20"),
    ],
)
def test_containers_that_weigh_as_much_as_one_process_are_a_warning(
    examine, path, usual, raised, times
):
    assert "weight of containers" not in examine()
    found = examine({path: usual})["weight of containers"]
    assert (found.status, found.value) == ("warn", "1 times that of a process, all together")
    assert f"echo {raised.strip()} | sudo tee /{path}" in found.remedy
    found = examine({path: raised})["weight of containers"]
    assert (found.status, found.value) == ("ok", f"{times} times that of a process, all together")


@pytest.mark.parametrize("command", [INFO, ("podman", "info", "--format", "json")])
def test_podman_is_told_from_an_engine_that_does_not_run(examine, command):
    """It answers to `docker` too, with the package podman-docker."""
    podman = '{"host": {"security": {"rootless": true}}, "version": {"Version": "4.9.3"}}'
    found = examine(programs={INFO: None, command: podman})["Docker"]
    assert found.status == "fail"
    assert found.value == "Podman 4.9.3 in its place"
    assert "docker-ce" in found.remedy


def test_a_broken_calibration_file_is_told_from_a_missing_one(examine, tmp_path):
    broken = tmp_path / "broken.toml"
    broken.write_text("measured = \n")
    assert "calibrate again" in examine(calibration=broken)["calibration"].remedy
    assert examine(calibration=tmp_path / "none.toml")["calibration"].value == "no file"


def test_exit_status_and_json_are_for_programs(tmp_path, capsys):
    assert main(["doctor", "--json", "--robot", "--root", str(tmp_path)]) == 1
    findings = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(set(finding) == {"name", "status", "value", "remedy"} for finding in findings)
    assert all(finding["remedy"] for finding in findings if finding["status"] in ("warn", "fail"))


def test_which_buses_there_are_is_in_hardware_toml(tmp_path, capsys):
    wiring = tmp_path / "hardware.toml"
    wiring.write_text('[buses.a]\ninterface = "socketcan"\nchannel = "can7"\nbitrate = 500000\n')
    empty = tmp_path / "empty"
    empty.mkdir()
    argv = ["doctor", "--robot", "--json", "--root", str(empty)]
    main([*argv, "--hardware", str(wiring)])
    names = [json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()]
    assert "CAN can0" not in names
    assert "CAN can7" in names or "CAN" in names  # the latter where there is no iproute2
    assert main([*argv, "--hardware", str(tmp_path / "none.toml")]) == 2
    assert "--hardware" in capsys.readouterr().err
