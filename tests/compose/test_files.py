"""What can be said about the compose files, images and monitoring without an engine."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from camera.config import CameraCfg
from gameloop.config import GameloopCfg
from krabby_service.config import load_config
from sim_hal.config import SimHalCfg

ROOT = Path(__file__).parents[2]
CONFIGS = {"sim-hal": SimHalCfg, "camera": CameraCfg, "gameloop": GameloopCfg}
LOCKED = {name: ROOT / "services" / name for name in CONFIGS} | {"cli": ROOT / "cli"}
TRAINER = ROOT / "services" / "trainer"


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((ROOT / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def alerts():
    rules = yaml.safe_load((ROOT / "monitoring/prometheus/rules/alerts.yml").read_text())
    return {rule["alert"]: rule for group in rules["groups"] for rule in group["rules"]}


@pytest.fixture(scope="module")
def dashboards():
    folder = ROOT / "monitoring/grafana/dashboards"
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


@pytest.mark.parametrize("name", CONFIGS)
def test_configuration_of_a_container_is_accepted_by_its_service(name):
    cfg = load_config(CONFIGS[name], ROOT / "services" / name / "compose.toml")
    assert cfg.metrics_address == "0.0.0.0"
    assert cfg.health_file == "/run/krabby/alive"


def test_every_connected_endpoint_is_bound_by_the_service_it_names():
    read = {
        name: tomllib.loads((ROOT / "services" / name / "compose.toml").read_text())["endpoints"]
        for name in CONFIGS
    }
    for name, endpoints in read.items():
        for stream, endpoint in endpoints.items():
            host, port = re.fullmatch(r"tcp://([a-z0-9.-]+):(\d+)", endpoint).groups()
            if host != "0.0.0.0":
                assert read[host][stream] == f"tcp://0.0.0.0:{port}", (name, stream)


def test_nothing_is_published_beyond_the_loopback_interface(compose):
    published = [
        port for service in compose["services"].values() for port in service.get("ports", ())
    ]
    assert len(published) == 2
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_every_service_is_confined(compose):
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "cap_add" not in service, name
        assert "privileged" not in service, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["init"] is True, name
        assert {"max-size", "max-file"} <= service["logging"]["options"].keys(), name
        assert "mem_limit" in service, name
        assert re.search(r":(v?\d|\$\{KRABBY_VERSION)", service["image"]), name


def test_only_the_loops_have_real_time_limits(compose):
    with_limits = {name for name, service in compose["services"].items() if "ulimits" in service}
    assert with_limits == set(CONFIGS)


def test_dockerfiles_differ_in_nothing_but_the_service():
    def neutral(name):
        return (ROOT / "services" / name / "Dockerfile").read_text().replace(name, "NAME")

    assert neutral("sim-hal") == neutral("camera") == neutral("gameloop")


def test_trainers_image_is_built_like_the_others():
    """It differs in Python, in what it needs of the repository and in where it writes."""
    trainer, other = (
        (ROOT / "services" / name / "Dockerfile").read_text().replace(name, "NAME")
        for name in ("trainer", "gameloop")
    )
    steps = [re.split(r"\n(?=[A-Z]+ )", text) for text in (trainer, other)]
    ours, theirs = (set(each) for each in steps)
    assert len(theirs - ours) <= 6, theirs - ours
    assert "USER krabby" in ours
    assert "python:3.12" in steps[0][1]


@pytest.mark.parametrize("name", [*LOCKED, "trainer", "build"])
def test_locks_pin_by_hash_and_name_no_host(name):
    folders = LOCKED | {"trainer": TRAINER}
    path = (
        folders[name] / "requirements.lock" if name in folders else ROOT / "requirements-build.lock"
    )
    text = path.read_text()
    assert "://" not in text
    for block in re.split(r"\n(?=[a-z])", text.strip()):
        assert re.match(r"[a-z0-9-]+==\S+", block), block[:60]
        assert "--hash=sha256:" in block, block[:60]


@pytest.mark.parametrize("name", [*LOCKED, "trainer"])
def test_images_hold_the_versions_that_the_tests_run_with(name):
    folder, constraints = (
        (TRAINER, "constraints-train.txt")
        if name == "trainer"
        else (LOCKED[name], "constraints.txt")
    )
    pin = r"(?m)^([a-z0-9-]+==[^ \n]+)"
    pins = set(re.findall(pin, (ROOT / constraints).read_text()))
    locked = set(re.findall(pin, (folder / "requirements.lock").read_text()))
    assert locked <= pins, f"run: make lock ({sorted(locked - pins)})"


def test_build_context_is_an_allow_list():
    lines = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert lines[0] == "*"


def test_every_alert_says_what_to_do(alerts):
    readme = (ROOT / "monitoring/README.md").read_text()
    for name, rule in alerts.items():
        assert rule["annotations"]["action"].endswith("."), name
        assert rule["annotations"]["summary"], name
        assert rule["labels"]["severity"] in ("critical", "warning"), name
        assert f"`{name}`" in readme, name


def test_every_alert_is_tested_firing_and_not_firing(alerts):
    cases = yaml.safe_load((ROOT / "monitoring/prometheus/tests/alerts.yml").read_text())["tests"]
    seen = {True: set(), False: set()}
    for case in cases:
        for check in case["promql_expr_test"]:
            (name,) = re.findall(r'alertname="(\w+)"', check["expr"])
            seen[bool(check["exp_samples"])].add(name)
    assert seen[True] == set(alerts)
    assert seen[False] == set(alerts)


def test_dashboards_ask_the_data_source_that_is_provisioned(dashboards):
    path = ROOT / "monitoring/grafana/provisioning/datasources/prometheus.yml"
    (source,) = yaml.safe_load(path.read_text())["datasources"]
    for name, board in dashboards.items():
        assert board["uid"] == f"krabby-{name}"
        for panel in board["panels"]:
            assert panel["datasource"] == {"type": source["type"], "uid": source["uid"]}
            for target in panel["targets"]:
                assert target["datasource"]["uid"] == source["uid"]


def test_grafana_finds_what_it_is_told_to_open(compose, dashboards):
    grafana = compose["services"]["grafana"]
    mounts = dict(volume.removesuffix(":ro").split(":") for volume in grafana["volumes"])
    folders = {inside: ROOT / outside for outside, inside in mounts.items()}
    path = ROOT / "monitoring/grafana/provisioning/dashboards/krabby.yml"
    (provider,) = yaml.safe_load(path.read_text())["providers"]
    assert any(folders[provider["options"]["path"]].glob("*.json"))
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (folders[str(home.parent)] / home.name).exists()
    titles = {panel["title"] for panel in dashboards[home.stem]["panels"]}
    assert any("Observation age" in title for title in titles)


def test_panels_of_a_dashboard_do_not_overlap(dashboards):
    for name, board in dashboards.items():
        taken = set()
        for panel in board["panels"]:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert max(x for x, _ in cells) < 24, (name, panel["title"])
            assert not cells & taken, (name, panel["title"])
            taken |= cells
