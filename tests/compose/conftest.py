"""One running stack for the module that asks for it: built images, own project name, own ports.

What is asserted comes from where a person would look: the services' /metrics, Prometheus' API,
`docker inspect`. Without a Docker engine or an image these tests skip and say what is missing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from krabby_service.testing import free_port
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[2]
LOOPS = {"sim-hal": 9101, "camera": 9102, "gameloop": 9103}
"""Services with a loop, and the port of their metrics."""


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
    prometheus_port: int
    has_grafana: bool
    grafana_port: int
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

    def healthy(self, service: str) -> bool:
        """Whether its last health check passed."""
        return self.inspect(service)["State"].get("Health", {}).get("Status") == "healthy"

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
        url = f"http://{self.addresses[service]}:{LOOPS[service]}/{name}"
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
                self.holding("gameloop", "krabby_gameloop_mode", "mode") == "policy"
                and self.holding("sim-hal", "krabby_safety_state", "state") == "active"
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
        """PromQL, now; a series that is NaN counts as no data."""
        found = [
            Sample(one["metric"].get("__name__", ""), one["metric"], float(one["value"][1]))
            for one in self.ask("query", query=expr)["result"]
        ]
        return [sample for sample in found if sample.value == sample.value]


def docker(*args: str) -> str:
    """Run `docker`; its output."""
    result = subprocess.run(["docker", *args], capture_output=True, text=True, check=False)
    if result.returncode:
        raise AssertionError(f"docker {' '.join(args)}: {result.stderr}")
    return result.stdout


def eventually(what: Callable[[], bool], within_s: float, saying: str) -> float:
    """Wait until something holds; returns how long that took [s]."""
    started = time.monotonic()
    while not what():
        if time.monotonic() - started > within_s:
            raise AssertionError(f"not within {within_s:g} s: {saying}")
        time.sleep(0.02)
    return time.monotonic() - started


def has_image(name: str) -> bool:
    return not subprocess.run(
        ["docker", "image", "inspect", name], capture_output=True, check=False
    ).returncode


_FIGURES: dict[str, str] = {}


@pytest.fixture(scope="session")
def figures() -> dict[str, str]:
    """What was measured, for the end of the report."""
    return _FIGURES


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _FIGURES:
        terminalreporter.section("measured")
        for name, figure in _FIGURES.items():
            terminalreporter.write_line(f"{name}: {figure}")


@pytest.fixture(scope="session")
def wait_until() -> Callable[[Callable[[], bool], float, str], float]:
    return eventually


@pytest.fixture(scope="session")
def project() -> Stack:
    """The project with its images built, not started."""
    if (
        not shutil.which("docker")
        or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no Docker engine answers; on Debian: .ci/engine")
    names = docker("compose", "--project-directory", str(ROOT), "config", "--images").split()
    (base,) = re.findall(r"(?m)^PYTHON_IMAGE=(.+)$", (ROOT / ".env").read_text())
    missing = [
        name
        for name in (*names, base)
        if not name.startswith(("krabby/", "grafana/")) and not has_image(name)
    ]
    if missing:
        pytest.skip(f"no image {', '.join(missing)}: pull it, or .ci/stand-in-images")
    has_grafana = any(has_image(name) for name in names if name.startswith("grafana/"))
    ports = free_port(), free_port()
    limits = subprocess.run(
        ["docker", "run", "--rm", "--ulimit", "rtprio=1", base, "true"],
        capture_output=True,
        check=False,
    )
    stack = Stack(
        project="krabby-test",
        files=("compose.yaml", "tests/compose/offline.yaml")
        + (() if has_grafana else ("tests/compose/without-grafana.yaml",)),
        settings={
            "KRABBY_PROMETHEUS_PORT": str(ports[0]),
            "KRABBY_GRAFANA_PORT": str(ports[1]),
            "KRABBY_BUS": "10.83.161",
            # An engine that may not raise limits refuses to start containers that want it.
            **({"KRABBY_RTPRIO": "0", "KRABBY_MEMLOCK": "0"} if limits.returncode else {}),
        },
        prometheus_port=ports[0],
        has_grafana=has_grafana,
        grafana_port=ports[1],
    )
    # Not the trainer's image: 9 GB, and a GPU to run on.
    stack.compose("--profile", "teleop", "--profile", "record", "build", timeout_s=900)
    return stack


@pytest.fixture(scope="session")
def stack(project: Stack) -> Iterator[Stack]:
    """The project, up and healthy; taken down at the end."""
    down = ("--profile", "*", "down", "--volumes", "--timeout", "5")
    project.compose(*down)
    started = time.monotonic()
    try:
        project.compose("up", "--detach", "--wait", "--wait-timeout", "60")
        eventually(project.walks, 30, "the gate is active and the policy drives")
        project.up_s = time.monotonic() - started
        yield project
    except BaseException:
        sys_log = project.compose("logs", "--tail", "20", check=False).stdout
        (ROOT / "build").mkdir(exist_ok=True)
        (ROOT / "build" / "compose.log").write_text(sys_log)
        raise
    finally:
        project.compose(*down, check=False)
