"""One running stack for the module that asks for it: built images, own project name, own ports.

What is asserted comes from where a person would look: the services' /metrics, Prometheus' API,
`docker inspect`. Without a Docker engine or an image these tests skip and say what is missing.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest
from krabby.runtime.testing import free_port, may_go_first
from krabby_proto import STREAMS
from krabby_proto.access import use_client_key
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[2]
LOOPS = {"sim-hal": 9101, "camera": 9102, "gameloop": 9103}
"""Services with a loop, and the port of their metrics."""
EMULATED = {
    "robot-emulator": 9105,
    "emulated-jetson-hal": 9101,
    "emulated-camera": 9102,
    "emulated-gameloop": 9103,
}
"""The same of compose.jetson.yaml, profile `emulated`."""


LEVEL = {"KRABBY_COURSE": "flat"}
"""These tests break services; a robot that stops on a gap because of that would fall into it."""

VARIABLES = {"$__rate_interval": "5s", "$robot": ".*", "$instance": ".*"}
"""What Grafana fills in."""


@dataclass(frozen=True)
class Sample:
    """One value of a metric or of a query."""

    name: str
    labels: dict[str, str]
    value: float


@dataclass
class Stack:
    """A compose project under test."""

    project: str
    files: tuple[str, ...]
    settings: dict[str, str]
    prometheus_port: int = 0
    has_grafana: bool = False
    grafana_port: int = 0
    ports: dict[str, int] = field(default_factory=lambda: dict(LOOPS))
    """Service to the port of its metrics."""
    hal: str = "sim-hal"
    gameloop: str = "gameloop"
    relay: str = "relay"
    key: str = ""
    """Key file of the operator, once it was copied."""
    raises_limits: bool = True
    """Whether the engine lets a container ask for priority."""
    up_s: float = 0.0
    """Seconds from `docker compose up --wait` to its end."""
    addresses: dict[str, str] = field(default_factory=dict)

    def compose(
        self, *args: str, check: bool = True, timeout_s: float = 120, **settings: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `docker compose` on this project."""
        command = ["docker", "compose", "--ansi", "never", "--progress", "plain"]
        command += ["--project-name", self.project]
        command += [part for name in self.files for part in ("--file", name)]
        result = subprocess.run(
            [*command, *args],
            cwd=ROOT,
            env={**os.environ, **self.settings, **settings},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and result.returncode:
            raise AssertionError(f"docker compose {' '.join(args)}:\n{result.stderr[-4000:]}")
        return result

    def container(self, service: str) -> str:
        """Id of a service's container."""
        return self.compose("ps", "--all", "--quiet", service).stdout.strip()

    def inspect(self, service: str) -> dict:
        """What the engine knows about a service's container."""
        return json.loads(docker("inspect", self.container(service)))[0]

    def go_first(self, *services: str) -> None:
        """Where the engine grants no loop its priority, give it from outside, as root may."""
        if self.raises_limits or not may_go_first():
            return
        for service in services or self.ports:
            container = self.container(service)
            priority = _asked_priority(docker("logs", container))
            if priority is not None:
                give_priority(self.inspect(service)["State"]["Pid"], priority)

    def healthy(self, service: str) -> bool:
        """Whether its last health check passed."""
        return self.inspect(service)["State"].get("Health", {}).get("Status") == "healthy"

    def through_relay(self, stream: str) -> str:
        """Endpoint of a stream for this process, a client of the relay with the operator's key."""
        if not self.key:
            folder = tempfile.mkdtemp(prefix="krabby-key-")
            self.key = f"{folder}/operator.toml"
            self.compose("cp", f"{self.relay}:/var/lib/krabby-keys/operator.toml", self.key)
            os.chmod(self.key, 0o600)
        use_client_key(Path(self.key))
        networks = self.inspect(self.relay)["NetworkSettings"]["Networks"]
        address = networks[f"{self.project}_clients"]["IPAddress"]
        return f"curve://{address}:{STREAMS[stream].port}"

    def turns(self, service: str) -> bool:
        """Whether its loop says at this moment that it turned lately."""
        try:
            return self.page(service, "healthz") == "ok\n"
        except OSError:
            self.addresses.clear()  # a restarted container may have another address
            return False

    def page(self, service: str, name: str) -> str:
        """What a service answers to those who watch it, asked for directly."""
        if service not in self.addresses:
            networks = self.inspect(service)["NetworkSettings"]["Networks"]
            self.addresses[service] = networks[f"{self.project}_monitoring"]["IPAddress"]
        url = f"http://{self.addresses[service]}:{self.ports[service]}/{name}"
        with urllib.request.urlopen(url, timeout=2) as page:
            return page.read().decode()

    def metrics(self, service: str) -> list[Sample]:
        """What a service exposes at this moment."""
        text = self.page(service, "metrics")
        return [
            Sample(sample.name, dict(sample.labels), sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]

    def value(self, service: str, name: str, **labels: str) -> float:
        """One metric of a service."""
        for sample in self.metrics(service):
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
        raise AssertionError(f"{service} exposes no {name}{labels or ''}")

    def holding(self, service: str, name: str, label: str) -> str:
        """The label value for which a one-hot gauge is 1."""
        for sample in self.metrics(service):
            if sample.name == name and sample.value == 1.0:
                return sample.labels[label]
        return ""

    def walks(self) -> bool:
        """Whether the policy drives and the gate lets it."""
        try:
            return (
                self.holding(self.gameloop, "krabby_gameloop_mode", "mode") == "policy"
                and self.holding(self.hal, "krabby_safety_state", "state") == "active"
            )
        except OSError:
            self.addresses.clear()  # a restarted container may have another address
            return False

    def ask(self, path: str, **query: str) -> dict:
        """Prometheus' HTTP API."""
        url = f"http://127.0.0.1:{self.prometheus_port}/api/v1/{path}"
        try:
            with urllib.request.urlopen(
                f"{url}?{urllib.parse.urlencode(query)}", timeout=10
            ) as page:
                return json.load(page)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{query}: {json.load(error)['error']}") from error

    def query(self, expr: str) -> list[Sample]:
        """PromQL, now, with Grafana's variables; a series that is NaN counts as no data."""
        for name, value in VARIABLES.items():
            expr = expr.replace(name, value)
        found = [
            Sample(one["metric"].get("__name__", ""), one["metric"], float(one["value"][1]))
            for one in self.ask("query", query=expr)["result"]
        ]
        return [sample for sample in found if sample.value == sample.value]

    @staticmethod
    def unchosen(expr: str) -> str:
        """An expression of a dashboard without the selectors of its variables."""
        own = r'robot=~"\$robot"(?:, instance=~"\$instance")?'
        return re.sub(rf"{own}, ", "", re.sub(rf"\{{{own}\}}", "", expr))


def docker(*args: str) -> str:
    """Run `docker`; its output."""
    result = subprocess.run(["docker", *args], capture_output=True, text=True, check=False)
    if result.returncode:
        raise AssertionError(f"docker {' '.join(args)}: {result.stderr}")
    return result.stdout


def _asked_priority(log: str) -> int | None:
    """The SCHED_FIFO priority that a service was refused last."""
    lines = [line for line in log.splitlines() if "SCHED_FIFO priority" in line]
    found = re.search(r"SCHED_FIFO priority (\d+) refused", lines[-1]) if lines else None
    return None if found is None else int(found[1])


def give_priority(init: int, priority: int) -> None:
    """What the kernel would have done, had it granted what a service asked for.

    Args:
        init: process whose child the service is.
        priority: of SCHED_FIFO.
    """
    (process,) = Path(f"/proc/{init}/task/{init}/children").read_text().split()
    for thread in Path(f"/proc/{process}/task").iterdir():
        _go_first(int(thread.name), priority)


def _go_first(thread: int, priority: int) -> None:
    try:
        os.sched_setscheduler(thread, os.SCHED_FIFO, os.sched_param(priority))
    except PermissionError:
        # A kernel that groups real-time tasks, and this group has no share.
        Path("/sys/fs/cgroup/cpu/tasks").write_text(str(thread))
        os.sched_setscheduler(thread, os.SCHED_FIFO, os.sched_param(priority))


def eventually(what: Callable[[], bool], within_s: float, saying: str) -> float:
    """Wait until something holds, usually within a time; returns how long that took [s].

    A busy machine is waited for longer: what has to be in time is asserted by its stamps.
    """
    started, patience_s = time.monotonic(), max(within_s, 60.0)
    while not what():
        if time.monotonic() - started > patience_s:
            raise AssertionError(f"not within {patience_s:g} s: {saying}")
        time.sleep(0.02)
    return time.monotonic() - started


def has_image(name: str) -> bool:
    return not subprocess.run(
        ["docker", "image", "inspect", name], capture_output=True, check=False
    ).returncode


class Counters:
    """Arithmetic on two expositions of the same service."""

    def increase(
        self, before: list[Sample], after: list[Sample], name: str, **labels: str
    ) -> float:
        """How much a counter grew in between."""

        def total(samples: list[Sample]) -> float:
            return sum(
                s.value for s in samples if s.name == name and labels.items() <= s.labels.items()
            )

        return total(after) - total(before)

    def quantile(
        self, q: float, before: list[Sample], after: list[Sample], name: str, **labels: str
    ) -> float:
        """Between two expositions, interpolated inside a bucket as Prometheus does it."""
        edges = sorted({float(s.labels["le"]) for s in after if s.name == f"{name}_bucket"})
        counts = [
            self.increase(before, after, f"{name}_bucket", **labels, le=_bucket_label(edge))
            for edge in edges
        ]
        rank = q * counts[-1]
        assert rank > 0, f"no {name} in between"
        low, below = 0.0, 0.0
        for edge, count in zip(edges, counts, strict=True):
            if count >= rank:
                return (
                    low
                    if edge == float("inf")
                    else low + (edge - low) * (rank - below) / (count - below)
                )
            low, below = edge, count
        raise AssertionError


def _bucket_label(edge: float) -> str:
    return "+Inf" if edge == float("inf") else repr(edge)


@pytest.fixture(scope="session")
def counters() -> Counters:
    return Counters()


@pytest.fixture(scope="session")
def size_mb() -> Callable[[Stack, str], float]:
    """Size of a service's image."""

    def size(stack: Stack, service: str) -> float:
        config = json.loads(stack.compose("config", "--format", "json").stdout)
        image = config["services"][service]["image"]
        return json.loads(docker("image", "inspect", image))[0]["Size"] / 1e6

    return size


@pytest.fixture(scope="session")
def wait_until() -> Callable[[Callable[[], bool], float, str], float]:
    return eventually


@pytest.fixture(scope="session")
def project() -> Stack:
    """The simulation's project with its images built, not started."""
    stack = _prepared(
        Stack(
            project="krabby-test",
            files=("compose.yaml", "tests/compose/offline.yaml"),
            settings={"KRABBY_LISTEN": "127.0.0.61", **LEVEL},
        ),
        without_grafana="tests/compose/without-grafana.yaml",
    )
    # Not the trainer's image: 9 GB, and a GPU to run on.
    stack.compose("--profile", "teleop", "--profile", "record", "build", timeout_s=900)
    return stack


@pytest.fixture(scope="session")
def emulated_project() -> Stack:
    """The emulated robot's project with its images built, not started."""
    stack = _prepared(
        Stack(
            project="krabby-test-robot",
            files=("compose.jetson.yaml",),
            settings={
                "KRABBY_ROBOT_BUS": "10.83.163",
                "KRABBY_LISTEN": "127.0.0.63",
                "COMPOSE_PROFILES": "emulated",
                **LEVEL,
            },
            ports=EMULATED,
            hal="emulated-jetson-hal",
            gameloop="emulated-gameloop",
            relay="emulated-relay",
        ),
        without_grafana="tests/compose/without-grafana-emulated.yaml",
    )
    stack.compose("--profile", "emulated", "--profile", "emulated-teleop", "build", timeout_s=900)
    return stack


def _prepared(stack: Stack, without_grafana: str) -> Stack:
    """Fill in what this machine's engine can do and has; skips where it cannot run the project."""
    if (
        not shutil.which("docker")
        or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no Docker engine answers; on Debian: .ci/engine")
    names = stack.compose("config", "--images").stdout.split()
    (base,) = re.findall(r"(?m)^PYTHON_IMAGE=(.+)$", (ROOT / ".env").read_text())
    missing = [
        name
        for name in (*names, base)
        if not name.startswith(("krabby/", "grafana/")) and not has_image(name)
    ]
    if missing:
        pytest.skip(f"no image {', '.join(missing)}: pull it, or .ci/stand-in-images")
    stack.has_grafana = any(has_image(name) for name in names if name.startswith("grafana/"))
    if not stack.has_grafana:
        stack.files += (without_grafana,)
    stack.prometheus_port, stack.grafana_port = free_port(), free_port()
    stack.settings["KRABBY_PROMETHEUS_PORT"] = str(stack.prometheus_port)
    stack.settings["KRABBY_GRAFANA_PORT"] = str(stack.grafana_port)
    stack.settings["KRABBY_VIEW_PORT"] = str(free_port())
    stack.settings["KRABBY_VIEW_TOKEN"] = "cockpit-of-the-tests-of-containers"
    limits = subprocess.run(
        ["docker", "run", "--rm", "--ulimit", "rtprio=1", base, "true"],
        capture_output=True,
        check=False,
    )
    stack.raises_limits = not limits.returncode
    if not stack.raises_limits:
        # It refuses to start containers that want it.
        stack.settings |= {"KRABBY_RTPRIO": "0", "KRABBY_MEMLOCK": "0"}
    return stack


def _running(project: Stack, ready: Callable[[], bool], saying: str) -> Iterator[Stack]:
    """The project, up and healthy; taken down at the end."""
    down = ("--profile", "*", "down", "--volumes", "--timeout", "5")
    project.compose(*down)
    started = time.monotonic()
    try:
        project.compose("up", "--detach")
        with contextlib.suppress(OSError, ValueError):  # containers that are restarted below
            project.go_first()  # as early as an engine that grants it lets them
        project.compose("up", "--detach", "--wait", "--wait-timeout", "180")
        eventually(ready, 30, saying)
        project.up_s = time.monotonic() - started
        yield project
    except BaseException:
        sys_log = project.compose("logs", "--tail", "20", check=False).stdout
        (ROOT / "build").mkdir(exist_ok=True)
        (ROOT / "build" / "compose.log").write_text(sys_log)
        raise
    finally:
        project.compose(*down, check=False)


@pytest.fixture(scope="session")
def stack(project: Stack) -> Iterator[Stack]:
    """The simulation, walking; taken down at the end."""
    yield from _running(project, project.walks, "the gate is active and the policy drives")


@pytest.fixture(scope="module")
def emulated(emulated_project: Stack) -> Iterator[Stack]:
    """The emulated robot, lying and disarmed; taken down at the end."""
    for running in _running(emulated_project, partial(_turns, emulated_project), _EVERY_LOOP):
        running.go_first()
        yield running


@pytest.fixture(scope="module")
def without_priority(emulated_project: Stack) -> Iterator[Stack]:
    """The same where no loop has a priority, neither of the engine's nor of these tests'."""
    if emulated_project.raises_limits:
        pytest.skip("this engine grants priorities")
    robot = replace(emulated_project, raises_limits=True)  # so `go_first` gives none
    yield from _running(robot, partial(_turns, robot), _EVERY_LOOP)


_EVERY_LOOP = "every loop turns"


def _turns(robot: Stack) -> bool:
    return all(robot.turns(name) for name in robot.ports)


@pytest.fixture
def priority(emulated_project: Stack) -> None:
    """Where loops come first. Elsewhere physics, drives, HAL, camera and game loop on two cores
    stall for longer than a silent drive is borne, and the robot is damped, rightly."""
    if not emulated_project.raises_limits and not may_go_first():
        pytest.skip(
            "this engine lets no loop go first and neither may these tests, so the robot would be "
            "damped again and again; test_emulated_robot.py walks it without containers"
        )
