"""A fault of a robot becomes a mark on the dashboards, with the file of its last minute."""

import json
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from krabby.runtime.ports import free_port
from krabby.runtime.testing import until
from krabby_faults.stack import Stack
from krabby_proto import STREAMS, RequestTimeout
from krabby_proto.recording import Recording, verify
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[1]
MONITORING = ROOT / "monitoring"


@pytest.fixture
def robot():
    """An emulated robot and its HAL, which measures and is not armed."""
    stack = Stack("emulated", "gait")
    try:
        stack.start("robot-emulator", "jetson-hal")
        until(lambda: imu_is_silent(stack) is False)
        yield stack
    finally:
        stack.close()


@pytest.fixture
def black_box(robot, tmp_path):
    """The recorder of incidents, their folder, and the address of its metrics."""
    folder, port = tmp_path / "incidents", free_port()
    argv = [sys.executable, "-m", "krabby_cli", "record", f"--ring={folder}"]
    argv += [f"--endpoint={name}={robot.endpoints[name]}" for name in STREAMS]
    with subprocess.Popen([*argv, f"--metrics-port={port}"], stderr=subprocess.DEVNULL) as process:
        try:
            yield process, folder, f"http://127.0.0.1:{port}/metrics"
        finally:
            process.kill()


def imu_is_silent(robot):
    """What the safety gate found; None while it does not answer."""
    try:
        return "imu" in robot.safety()["faults"]
    except RequestTimeout:
        return None


def samples(address, name):
    """Samples of a metric; none while nothing answers there."""
    try:
        with urllib.request.urlopen(address, timeout=30) as answer:
            page = answer.read().decode()
    except OSError:
        return []
    families = text_string_to_metric_families(page)
    return [one for family in families for one in family.samples if one.name == name]


def marks(board, address, since_s):
    """Time, title and text of the marks that Grafana draws for the black box on one dashboard.

    The expression of the annotation has to be one series times 1000: the time [ms].
    """
    (mark,) = (one for one in board["annotations"]["list"] if one["name"] == "Black box")
    found = re.fullmatch(r'(\w+)\{robot=~"\$robot", instance=~"\$instance"\} \* 1000', mark["expr"])
    assert mark["useValueForTime"]

    def filled(key, labels):
        return re.sub(r"\{\{(\w+)\}\}", lambda label: labels[label[1]], mark[key])

    return [
        (one.value, filled("titleFormat", one.labels), filled("textFormat", one.labels))
        for one in samples(address, found[1])
        if one.value >= since_s
    ]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_fault_of_an_emulated_robot_is_a_mark_with_its_file(robot, black_box):
    process, folder, address = black_box
    boards = [json.loads(path.read_text()) for path in (MONITORING / "grafana").rglob("*.json")]
    assert len(boards) == 4

    def hears_the_gate():
        imu_is_silent(robot)  # the answer is a message of the stream `trace`
        counted = samples(address, "krabby_recorder_messages_total")
        return any(one.labels["stream"] == "trace" and one.value > 0 for one in counted)

    until(hears_the_gate)
    began_s = time.time()
    robot.simulator.request("fault", timeout_s=60.0, kind="imu-silence")
    until(lambda: imu_is_silent(robot))
    until(lambda: marks(boards[0], address, began_s))
    found = [marks(board, address, began_s) for board in boards]
    ended_s = time.time()
    process.terminate()
    assert process.wait(60) == 0
    for at_s, title, text in (one for each in found for one in each):
        assert began_s <= at_s <= ended_s
        assert title == "Last minute before: fault"
        path = Path(text.removeprefix("black box: "))
        assert path.parent == folder
        assert verify(path).intact
        gates = [each.gate for each in Recording(path).exchanges() if each.gate is not None]
        assert any("imu" in gate.faults for gate in gates)


@pytest.mark.parametrize("name", ["compose.yaml", "compose.jetson.yaml"])
def test_prometheus_asks_every_black_box_where_it_answers(name):
    compose = yaml.safe_load((ROOT / name).read_text())
    scraped = {"compose.yaml": "prometheus.yml", "compose.jetson.yaml": "robot.yml"}[name]
    config = yaml.safe_load((MONITORING / "prometheus" / scraped).read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    (target,) = jobs["blackbox"]["static_configs"][0]["targets"]
    host, _, port = target.partition(":")
    boxes = [
        (service, one)
        for service, one in compose["services"].items()
        if any(str(word).startswith("--ring") for word in one.get("command", ()))
    ]
    assert len(boxes) == (2 if "jetson" in name else 1)
    for service, one in boxes:
        assert f"--metrics-port={port}" in one["command"], service
        if one.get("network_mode") == "host":
            prometheus = compose["services"]["prometheus"]
            assert f"{host}:127.0.0.1" in prometheus["extra_hosts"]
        else:
            assert "--metrics-address=0.0.0.0" in one["command"], service
            networks = one["networks"]
            names = {
                service,
                *(dict(networks)["monitoring"]["aliases"] if isinstance(networks, dict) else ()),
            }
            assert host in names
            assert "monitoring" in networks
