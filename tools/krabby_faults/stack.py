"""The services of a robot as processes, simulated or emulated, configured as on the robot.

Nothing arms or stands up by itself. Sockets are in a private folder, each log in a file.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from krabby.robot.assets import robot_dir
from krabby.robot.description import RobotDescription
from krabby.runtime.testing import free_port, free_ports, log_events, until
from krabby_proto import (
    STATE,
    STREAMS,
    ControlClient,
    HalClient,
    LatestSubscriber,
    ProtoError,
    default_endpoints,
    unpack,
)
from krabby_proto.access import ClientKey, KeyFolder, KeyPair

from krabby_faults.probe import Probe
from krabby_faults.tun import ADDRESSES, Link, tool_environment
from krabby_faults.wall import WallClock

__all__ = ["ROBOTS", "Robot", "Stack", "own_buses"]

Robot = Literal["simulated", "emulated"]
ROBOTS: Final[tuple[Robot, ...]] = ("simulated", "emulated")
BASE_PORT: Final = 6000
_PRIORITIES: Final = {
    "robot-emulator": 50, "jetson-hal": 60, "sim-hal": 60, "camera": 40, "gameloop": 55,
}  # fmt: skip
"""As on the robot."""
_UNARMED: Final = ("disarmed", "damp")
_LOOP: Final = ("state", "command", "features", "nav", "control")


class _Joints(threading.Thread):
    """Watches measured joints: how far beyond their range they were."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(daemon=True)
        self._endpoint = endpoint
        self._stopped = threading.Event()
        desc = RobotDescription.load()
        self._lower, self._upper = desc.joint_lower, desc.joint_upper
        self.beyond_rad = -np.inf
        """Worst since it was set; negative within the range."""
        self.start()

    def run(self) -> None:
        with LatestSubscriber(self._endpoint, STATE) as states:
            while not self._stopped.is_set():
                states.wait(0.1)
                for message in states.drain() or [states.latest()]:
                    if message is None:
                        continue
                    pos = unpack(STATE, message.payload)["joint_pos"]
                    beyond = float(np.maximum(self._lower - pos, pos - self._upper).max())
                    self.beyond_rad = max(self.beyond_rad, beyond)

    def stop(self) -> None:
        """End the watch."""
        self._stopped.set()
        self.join(2.0)


class Stack:
    """One robot's processes; `hal` and `loop` are its clients."""

    def __init__(
        self, robot: Robot, policy: str, *, camera: bool = False, link: Link | None = None
    ) -> None:
        """Nothing is started yet.

        Args:
            robot: Which one.
            policy: Name or folder of the bundle.
            camera: Whether there is a camera.
            link: Runs the game loop on the other host; state and command go through a relay and
                the link, with a key.
        """
        self.robot: Robot = robot
        self.link = link
        self._folder = tempfile.TemporaryDirectory(prefix="kf-")
        self.folder = Path(self._folder.name)
        self.endpoints = default_endpoints(f"ipc://{self.folder}/s")
        self.endpoints |= {name: f"ipc://{self.folder}/s/{name}" for name in ("fault", "raw")}
        (self.folder / "s").mkdir(mode=0o700)
        self.logs = self.folder / "logs"
        """A separate disk for root, which may be filled."""
        self.logs.mkdir()
        self._mounted = (
            os.geteuid() == 0
            and not subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "size=32m", "krabby-faults", str(self.logs)],
                check=False,
            ).returncode
        )
        self.wall = WallClock(self.folder)
        self.probe = Probe(self.folder / "probe")
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._argv: dict[str, list[str]] = {}
        self._policy = policy
        self._simulated() if robot == "simulated" else self._emulated(camera)
        if camera:
            source = {"camera": self.endpoints["raw" if robot == "emulated" else "camera"]}
            self._service("camera", "krabby_camera", ("state", "features"), source, bundle=policy)
        self._service("gameloop", "krabby_gameloop", _LOOP, policy=policy, auto_stand="false")
        if link is not None:
            self._move_loop(link)
        self.services = tuple(self._argv)
        self.hal = HalClient({name: self.endpoints[name] for name in ("command", "safety")})
        self.loop = ControlClient(self.endpoints["control"])
        self.simulator = ControlClient(self.endpoints["fault"])
        self.joints = _Joints(self.endpoints["state"])

    @property
    def hal_name(self) -> str:
        """The service with the safety gate."""
        return "sim-hal" if self.robot == "simulated" else "jetson-hal"

    # --- processes ---------------------------------------------------------------------------

    def _simulated(self) -> None:
        streams = ("state", "camera", "command", "safety", "truth", "nav", "fault")
        options = {"auto_arm": "false", "mission.repeat": "true", "course.name": "flat"}
        self._service("sim-hal", "krabby_sim_hal", streams, None, **options)

    def _emulated(self, camera: bool) -> None:
        hardware = self.folder / "hardware.toml"
        hardware.write_text(own_buses((robot_dir() / "hardware.toml").read_text()))
        port = free_port()
        options: dict[str, object] = {
            "can.hardware": hardware,
            "imu.listen": f"tcp://127.0.0.1:{port}",
        }
        options |= {"camera.enabled": str(camera).lower(), "course.name": "flat"}
        streams = ("raw", "truth", "fault", "nav")
        self._service("robot-emulator", "krabby_emulator", streams, None, **options)
        options = {"can.hardware": hardware, "imu.port": f"socket://127.0.0.1:{port}"}
        streams = ("state", "camera", "command", "safety", "raw")
        self._service("jetson-hal", "krabby_jetson_hal", streams, None, **options)

    def _move_loop(self, link: Link) -> None:
        """Put the loop on the other host, and a relay on this one."""
        address, keys = ADDRESSES[0], KeyFolder(self.folder / "keys")
        pair = KeyPair.make()
        keys.authorise("loop", pair.public, ("see", "command"))
        key = self.folder / "loop.toml"
        ClientKey(pair, keys.robot().public).write(key)
        served = [f"--endpoint={name}={self.endpoints[name]}" for name in STREAMS]
        self._argv["relay"] = [
            *(sys.executable, "-m", "krabby_cli", "relay", "--address", address, *served),
            *("--keys", str(keys.path), "--base-port", str(BASE_PORT)),
        ]
        loop = self._argv.pop("gameloop")
        for name in ("state", "command"):
            far = f"curve://{address}:{STREAMS[name].port}"
            loop[loop.index(f"endpoints.{name}={self.endpoints[name]}")] = f"endpoints.{name}={far}"
        self._argv["gameloop"] = link.on_host(["env", f"KRABBY_KEY={key}", *loop])

    def _service(
        self,
        name: str,
        module: str,
        streams: tuple[str, ...],
        others: Mapping[str, str] | None = None,
        **options: object,
    ) -> None:
        probe = self.probe.path if name.endswith("-hal") else os.devnull
        endpoints = {stream: self.endpoints[stream] for stream in streams} | dict(others or {})
        self._argv[name] = [
            *(sys.executable, "-m", "krabby_faults.probe", str(probe), module, "metrics_port=0"),
            f"realtime.fifo_priority={_PRIORITIES[name]}",  # where it is refused, a warning
            *(f"endpoints.{stream}={endpoint}" for stream, endpoint in endpoints.items()),
            *(f"{key}={value}" for key, value in options.items()),
        ]

    def start(self, *names: str) -> None:
        """Start services, all when none is named."""
        for name in names or self.services:
            with (self.logs / f"{name}.log").open("ab") as log:
                self.processes[name] = subprocess.Popen(
                    self._argv[name],
                    stdout=log,
                    stderr=log,
                    env={**tool_environment(), **self.wall.env},
                )
            if name == "robot-emulator":
                self.simulator.request("status", timeout_s=60.0)

    def revive(self) -> None:
        """Start again what has ended."""
        ended = [name for name, process in self.processes.items() if process.poll() is not None]
        if ended:  # no name means all
            self.start(*ended)

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a service."""
        self.processes[name].send_signal(number)

    def kill(self, name: str) -> None:
        """Kill a service and wait for its end."""
        self.processes[name].kill()
        self.processes[name].wait()

    def close(self) -> None:
        """End everything."""
        self.joints.stop()
        for process in self.processes.values():
            process.kill()
            process.wait()
        for client in (self.hal, self.loop, self.simulator):
            client.close()
        if self._mounted:
            subprocess.run(["umount", "--lazy", str(self.logs)], check=False)
        self._folder.cleanup()

    def fill_logs(self, *, full: bool) -> None:
        """Leave no room on the disk with the logs, or make room again."""
        assert self._mounted, "the logs are not on a disk of their own; that needs root"
        rest = self.logs / "rest"
        rest.unlink(missing_ok=True)
        if full:
            with contextlib.suppress(OSError), rest.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))

    def memory_mb(self, name: str) -> float:
        """Anonymous resident memory of a service [MB]: without files, among them the probe's."""
        status = Path(f"/proc/{self.processes[name].pid}/status").read_text()
        return int(status.partition("RssAnon:")[2].split()[0]) * 1024 / 1e6

    # --- what they say -----------------------------------------------------------------------

    def safety(self, op: str = "status") -> dict[str, Any]:
        """Ask the safety gate."""
        return self.hal.safety(op, "faults", timeout_s=2.0)

    def status(self) -> dict[str, Any]:
        """What the game loop answers."""
        return self.loop.request("status", timeout_s=1.0)

    @property
    def is_walking(self) -> bool:
        """Whether the policy moves it and the gate lets it."""
        with contextlib.suppress(ProtoError):
            return self.status()["mode"] == "policy" and self.safety()["state"] == "active"
        return False

    def drives_running(self) -> tuple[int, int]:
        """Drives of the emulated robot that hold a position, and when [ns]."""
        answer = self.simulator.request("status", timeout_s=2.0)
        return answer["drives_running"], answer["now_ns"]

    def events(self, name: str, since_ns: int) -> list[dict[str, Any]]:
        """Log lines of a service from a time on."""
        found = log_events(self.logs / f"{name}.log")
        return [each for each in found if each.get("mono_ns", 0) >= since_ns]

    # --- what an operator does -----------------------------------------------------------------

    def make_walk(self, timeout_s: float = 60.0) -> bool:
        """Reset, arm, stand, as an operator does, until it walks; whether it had to be armed."""
        armed = False

        def walks() -> bool:
            nonlocal armed
            with contextlib.suppress(ProtoError):
                mode, state = self.status()["mode"], self.safety()["state"]
                if state == "estop" or (state in _UNARMED and mode == "passive"):
                    armed = True
                    self.safety("reset")
                    answer = self.safety("arm")
                    if self.robot == "emulated" and "measurement shows" in answer["reason"]:
                        self.simulator.request("put-back", timeout_s=5.0)
                elif mode == "passive":
                    self.loop.request("stand", timeout_s=2.0)
                return mode == "policy" and state == "active"
            return False

        until(walks, timeout_s=timeout_s)
        return armed


def own_buses(hardware: str) -> str:
    """`hardware.toml` with multicast buses that no other run uses."""
    ports, numbers = iter(free_ports(3)), itertools.count(1)

    def bus(match: re.Match[str]) -> str:
        channel = f'channel = "239.74.163.{next(numbers)}"'
        return f'interface = "udp_multicast"\n{channel}\nport = {next(ports)}\n'

    text, count = re.subn(r'interface = "socketcan"\nchannel = "[\w-]+"\n', bus, hardware)
    assert count == 3, "hardware.toml has other buses than three on socketcan"
    return text
