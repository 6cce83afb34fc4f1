"""Checks of any machine: kernel, limits, disk, time, Docker, ports, calibration."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from typing import Any, Final

from krabby_cli.doctor.machine import Finding, Machine, fail, ok, skip, warn

__all__ = ["check_host", "check_realtime"]

_GIB: Final = 2**30
_NEEDED_GIB: Final = 5
_COMFORTABLE_GIB: Final = 20
_COMPOSE: Final = (2, 20)
_VOLUMES: Final = "/var/lib/docker/volumes"
_CALIBRATION: Final = (
    "calibration/calibration.toml",
    f"{_VOLUMES.lstrip('/')}/krabby-robot_calibration/_data/calibration.toml",
)
_LISTEN: Final = "0A"
_CONTROLLERS: Final = {
    "MemoryLimit": "memory limits",
    "CPUShares": "shares of the processor",
    "CPUSet": "sets of cores",
}
"""What a rootless engine gives only where systemd delegates it; keys of `docker info`."""

_ENGINE_GROUPS: Final = {
    "/sys/fs/cgroup/cpu/docker/cpu.shares": (1024, 20480),
    "/sys/fs/cgroup/docker/cpu.weight": (100, 2000),
}
"""Weight of all containers together where the engine runs without systemd, under cgroup v1 and v2:
that of one process, which is the default, and one with which loops keep up beside other work."""


def check_realtime(machine: Machine) -> Iterator[Finding]:
    version = machine.read("/proc/version") or "unknown kernel"
    kernel = " ".join(version.split()[2:3]) or version
    if machine.read("/sys/kernel/realtime") == "1" or "PREEMPT_RT" in version:
        yield ok("kernel", f"{kernel}, PREEMPT_RT")
    elif machine.is_robot:
        remedy = (
            "the loops run with SCHED_FIFO on it, with rare late wake-ups of some milliseconds; "
            "NVIDIA's real-time kernel: packages nvidia-l4t-rt-kernel*"
        )
        yield warn("kernel", f"{kernel}, not PREEMPT_RT", remedy)
    else:
        yield ok("kernel", f"{kernel}, not PREEMPT_RT")
    grouped = machine.glob("/sys/fs/cgroup/cpu/cpu.rt_runtime_us")
    if grouped and machine.read("/proc/sys/kernel/sched_rt_runtime_us") != "-1":
        value = "control groups have separate real-time budgets: containers cannot use SCHED_FIFO"
        remedy = "sudo sysctl -w kernel.sched_rt_runtime_us=-1, and a line in /etc/sysctl.d"
        yield warn("real-time groups", value, remedy)
    yield _limit(machine, "Max realtime priority", "real-time priority", 1)
    yield _limit(machine, "Max locked memory", "locked memory", 256 * 2**20)
    isolated = machine.read("/sys/devices/system/cpu/isolated") or ""
    online = machine.read("/sys/devices/system/cpu/online") or "unknown"
    if isolated:
        yield ok("cores", f"{online}, of which {isolated} are isolated")
    elif machine.is_robot:
        remedy = (
            "isolcpus=4,5 nohz_full=4,5 rcu_nocbs=4,5 on the APPEND line of "
            "/boot/extlinux/extlinux.conf, then KRABBY_HAL_CPUS=4 KRABBY_LOOP_CPUS=5 in .env"
        )
        yield warn("cores", f"{online}, none isolated", remedy)
    else:
        yield ok("cores", online)


def _limit(machine: Machine, row: str, name: str, minimum: int) -> Finding:
    found = re.search(rf"^{row}\s+(\S+)", machine.read("/proc/self/limits") or "", re.MULTILINE)
    if found is None:
        return skip(name, "not in /proc/self/limits")
    if found[1] == "unlimited" or int(found[1]) >= minimum:
        return ok(name, found[1])
    return ok(name, f"{found[1]} in this shell; containers get theirs from KRABBY_RTPRIO, _MEMLOCK")


def check_host(machine: Machine) -> Iterator[Finding]:
    yield _disk(machine)
    yield _time(machine)
    yield from _docker(machine)
    yield from _ports(machine)
    yield _calibration(machine)


def _disk(machine: Machine) -> Finding:
    places = ("var/lib/docker", "var/lib")
    folder = next((path for path in places if (machine.root / path).is_dir()), ".")
    free_gib = machine.free_bytes(machine.root / folder) / _GIB
    value = f"{free_gib:.1f} GiB free"
    remedy = "docker system prune; recordings: docker volume ls; the robot's images need 15 GiB"
    if free_gib < _NEEDED_GIB:
        return fail("disk", value, remedy)
    if free_gib < _COMFORTABLE_GIB:
        return warn("disk", value, remedy)
    return ok("disk", value)


def _time(machine: Machine) -> Finding:
    """The wall clock, which dates logs and recordings; loops use the monotonic clock."""
    said = machine.run(["timedatectl", "show", "--property=NTPSynchronized", "--value"])
    if said is None:
        return skip("time", "no output of timedatectl")
    if said.strip() == "yes":
        return ok("time", "synchronised")
    return warn("time", "not synchronised", "sudo timedatectl set-ntp true; dates in logs are off")


def _docker(machine: Machine) -> Iterator[Finding]:
    info = _json(machine.run(["docker", "info", "--format", "{{json .}}"]))
    version = info.get("ServerVersion")
    podman = _podman(machine, info)
    if podman and not version:
        value = f"Podman {podman} in its place"
        remedy = (
            "compose files and commands are for Docker Engine, and are not tried on Podman: "
            "install docker-ce and docker-compose-plugin, https://docs.docker.com/engine/install"
        )
        yield fail("Docker", value, remedy)
        return
    if not version:
        remedy = "sudo systemctl start docker; sudo usermod -aG docker $USER and log in again"
        yield fail("Docker", "no engine answers", remedy)
        return
    yield ok("Docker", str(version))
    yield from _rootless(machine, info)
    yield from _weight(machine)
    compose = (machine.run(["docker", "compose", "version", "--short"]) or "").strip().lstrip("v")
    if tuple(int(part) for part in re.findall(r"\d+", compose)[:2]) < _COMPOSE:
        remedy = "install the plug-in docker-compose-plugin, 2.20 or later"
        yield fail("Compose", compose or "missing", remedy)
    else:
        yield ok("Compose", compose)
    if "nvidia" in info.get("Runtimes", {}):
        yield ok("NVIDIA runtime", "registered")
    else:
        remedy = (
            "sudo apt-get install nvidia-container-toolkit; "
            "sudo nvidia-ctk runtime configure --runtime=docker; sudo systemctl restart docker"
        )
        yield machine.absent("NVIDIA runtime", "not registered", remedy)


def _podman(machine: Machine, docker_info: dict[str, Any]) -> str:
    """Version of a Podman, under its name or under Docker's (package podman-docker); else empty."""
    info = docker_info if "host" in docker_info else {}
    if not info:
        info = _json(machine.run(["podman", "info", "--format", "json"]))
    version = info.get("version", {})
    return str(version.get("Version", "")) if isinstance(version, dict) else ""


def _rootless(machine: Machine, info: dict[str, Any]) -> Iterator[Finding]:
    """What a rootless engine cannot give the containers."""
    if "name=rootless" not in (info.get("SecurityOptions") or ()):
        return
    if machine.is_robot:
        value = "its containers see no CAN interface of the host, and no device of root"
        remedy = (
            "use the engine of the system: docker context use default; its socket: group docker"
        )
        yield fail("rootless engine", value, remedy)
        return
    missing = [
        f"{what} ({key}={info.get(key)})" for key, what in _CONTROLLERS.items() if not info.get(key)
    ]
    value = "no SCHED_FIFO, no locked memory" + "".join(f", no {each}" for each in missing)
    remedy = "KRABBY_RTPRIO=0 KRABBY_MEMLOCK=0 in .env"
    if missing:
        remedy += (
            "; for the limits, cgroup v2 with Delegate=cpu cpuset memory pids in "
            "/etc/systemd/system/user@.service.d/delegate.conf, then log in again"
        )
    yield warn("rootless engine", value, remedy)


def _weight(machine: Machine) -> Iterator[Finding]:
    """What the weights in the compose files are parts of."""
    for path, (usual, wanted) in _ENGINE_GROUPS.items():
        weight = machine.read(path) or ""
        if not weight.isdecimal():
            continue
        times = int(weight) / usual
        value = f"{times:g} times that of a process, all together"
        if times > 1.0:
            yield ok("weight of containers", value)
        else:
            remedy = (
                f"echo {wanted} | sudo tee {path}, at every boot: without SCHED_FIFO it decides"
            )
            yield warn("weight of containers", value, remedy)


def _json(text: str | None) -> dict[str, Any]:
    try:
        return json.loads(text or "{}")
    except ValueError:
        return {}


def _ports(machine: Machine) -> Iterator[Finding]:
    """Listening ports from /proc/net: local address in hexadecimal, port behind the colon."""
    taken = set()
    for table in ("tcp", "tcp6"):
        for line in (machine.read(f"/proc/net/{table}") or "").splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            if state == _LISTEN:
                taken.add(int(local.rpartition(":")[2], 16))
    busy = sorted(taken & machine.ports.keys())
    if not busy:
        yield ok("ports", f"{len(machine.ports)} are free")
        return
    ours = (machine.run(["docker", "ps", "--format", "{{.Names}}"]) or "").split()
    value = ", ".join(f"{port} ({machine.ports[port]})" for port in busy)
    if any(name.startswith("krabby") for name in ours):
        yield ok("ports", f"in use while the stack runs: {value}")
    else:
        yield warn("ports", f"taken: {value}", "sudo ss -ltnp names the process; stop it")


def _calibration(machine: Machine) -> Finding:
    usual = [machine.root / name for name in _CALIBRATION]
    for path in [machine.calibration] if machine.calibration else usual:
        try:
            content = tomllib.loads(path.read_text())
        except PermissionError:
            return warn("calibration", f"{path}: permission denied", "run this with sudo")
        except OSError:
            continue
        except tomllib.TOMLDecodeError as error:
            return fail("calibration", f"{path}: {error}", "calibrate again: docs/bring-up.md")
        measured = content.get("measured") or content.get("date") or "no date"
        return ok("calibration", f"{path.name}, measured {measured}")
    remedy = "docs/bring-up.md: calibration; or --calibration FILE"
    return machine.absent("calibration", "no file", remedy)
