"""What can be said about the compose files, images and monitoring without an engine."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from krabby.config import load, to_dict
from krabby_camera.config import CameraCfg
from krabby_emulator.config import EmulatorCfg
from krabby_gameloop.config import GameloopCfg
from krabby_jetson_hal.config import JetsonHalCfg
from krabby_sim_hal.config import SimHalCfg

ROOT = Path(__file__).parents[2]
CONFIGS = {"sim-hal": SimHalCfg, "camera": CameraCfg, "gameloop": GameloopCfg}
ROBOT = {"jetson-hal": JetsonHalCfg, "camera": CameraCfg, "gameloop": GameloopCfg}
LOOPBACK = ("127.0.0.1:", "${KRABBY_LISTEN:-127.0.0.1}:")
PLACES = {
    "compose": CONFIGS,
    "emulated": {**ROBOT, "emulator": EmulatorCfg},
    "jetson": ROBOT,
}
"""Which services share one volume of sockets, by the name of their files."""


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((ROOT / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def jetson():
    return yaml.safe_load((ROOT / "compose.jetson.yaml").read_text())


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
    cfg = load(CONFIGS[name], ROOT / "services" / name / "compose.toml")
    assert cfg.metrics_address == "0.0.0.0"
    assert cfg.health_file == "/run/krabby/alive"


@pytest.mark.parametrize("name", ROBOT)
def test_configuration_of_a_container_of_the_robot_is_accepted_by_its_service(name):
    emulated = load(ROBOT[name], ROOT / "services" / name / "emulated.toml")
    assert (emulated.metrics_address, emulated.health_file) == ("0.0.0.0", "/run/krabby/alive")
    robot = load(ROBOT[name], ROOT / "services" / name / "jetson.toml")
    assert (robot.metrics_address, robot.health_file) == ("127.0.0.1", "/run/krabby/alive")


def test_configuration_of_the_emulator_is_accepted_by_it():
    cfg = load(EmulatorCfg, ROOT / "services/emulator/emulated.toml")
    assert (cfg.metrics_address, cfg.can.interface) == ("0.0.0.0", "udp_multicast")


@pytest.mark.parametrize("place", PLACES)
def test_every_stream_is_a_unix_socket_in_the_volume_that_the_services_share(place):
    for name, cfg_class in PLACES[place].items():
        path = ROOT / "services" / name / f"{place}.toml"
        written = tomllib.loads(path.read_text()).get("endpoints", {}).values()
        assert all(endpoint.startswith("ipc:///run/bus/krabby/") for endpoint in written)
        for stream, endpoint in to_dict(load(cfg_class, path).endpoints).items():
            assert not endpoint or endpoint.startswith("ipc://"), (name, stream)


@pytest.mark.parametrize("file", ["compose", "jetson"])
def test_loops_and_operators_share_the_volume_of_sockets_and_operators_have_no_network(
    file, request
):
    services = request.getfixturevalue(file)["services"]
    watchers = {
        "trainer",
        "tensorboard",
        "prometheus",
        "alertmanager",
        "grafana",
        "emulated-prometheus",
        "emulated-grafana",
    }
    for name in services.keys() - watchers - {"drives"}:
        assert "bus:/run/bus/krabby" in services[name]["volumes"], name
    operators = [name for name in services if "teleop" in name]
    assert operators
    assert all(services[name]["network_mode"] == "none" for name in operators)
    image = (ROOT / "Dockerfile").read_text()
    assert "install -d -o krabby -g krabby -m 0700 /run/bus/krabby" in image
    assert "XDG_RUNTIME_DIR=/run/bus" in image


def test_nothing_is_published_beyond_the_loopback_interface(compose):
    published = [
        port for service in compose["services"].values() for port in service.get("ports", ())
    ]
    assert len(published) == 7
    assert all(port.startswith(LOOPBACK) for port in published)


def test_the_emulated_robot_publishes_nothing_but_its_watchers_on_loopback(jetson):
    published = {
        name: port
        for name, service in jetson["services"].items()
        for port in service.get("ports", ())
    }
    assert set(published) == {
        *("emulated-prometheus", "emulated-grafana", "emulated-relay", "emulated-cockpit")
    }
    assert all(port.startswith(LOOPBACK) for port in published.values())


def test_on_the_robot_the_watchers_listen_on_loopback_only(jetson):
    assert jetson["services"]["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    (listen,) = [
        word for word in jetson["services"]["prometheus"]["command"] if "listen-address" in word
    ]
    assert listen.startswith("--web.listen-address=127.0.0.1:")


@pytest.mark.parametrize("file", ["compose", "jetson"])
def test_every_service_is_confined(file, request):
    for name, service in request.getfixturevalue(file)["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "cap_add" not in service, name
        assert "privileged" not in service, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["init"] is True, name
        assert {"max-size", "max-file"} <= service["logging"]["options"].keys(), name
        # Without swap: at its limit a process ends and is restarted, and does not crawl.
        assert service["mem_limit"] == service["memswap_limit"], name
        assert re.search(r":(v?\d|\$\{KRABBY_VERSION)", service["image"]), name


def test_only_jetson_hal_and_camera_get_devices_and_only_the_gpus_users_the_runtime(jetson):
    services = jetson["services"]
    assert not any("devices" in one for one in services.values()), "they would have to be there"
    with_rules = {name for name, one in services.items() if "device_cgroup_rules" in one}
    assert with_rules == {"camera", "jetson-hal"}
    with_gpu = {name for name, one in services.items() if one.get("runtime") == "nvidia"}
    assert with_gpu == {"camera", "gameloop"}


def test_the_emulated_robot_needs_neither_devices_nor_a_gpu_nor_the_hosts_network(jetson):
    emulated = {
        name: one for name, one in jetson["services"].items() if one["profiles"] == ["emulated"]
    }
    assert len(emulated) == 9
    for name, one in emulated.items():
        assert not one.keys() & {"runtime", "devices", "network_mode", "device_cgroup_rules"}, name


def test_what_runs_when_no_profile_is_named_is_the_robot(jetson):
    (chosen,) = re.findall(r"(?m)^COMPOSE_PROFILES=(.+)$", (ROOT / ".env").read_text())
    robot = {name for name, one in jetson["services"].items() if chosen in one["profiles"]}
    assert robot == {*ROBOT, "relay", "cockpit", "blackbox", "prometheus", "grafana"}
    assert all(one["profiles"] for one in jetson["services"].values())


def test_every_setting_of_a_compose_file_is_listed_in_env():
    listed = set(re.findall(r"(?m)^([A-Z_]+)=", (ROOT / ".env").read_text()))
    for name in ("compose.yaml", "compose.jetson.yaml"):
        used = set(re.findall(r"\$\{([A-Z_]+)", (ROOT / name).read_text()))
        assert used - {"KRABBY_LOG_LEVEL"} <= listed, name


@pytest.mark.parametrize("name", ["prometheus.yml", "robot.yml"])
def test_prometheus_asks_every_service_where_it_answers(name):
    read = yaml.safe_load((ROOT / "monitoring/prometheus" / name).read_text())
    asked = {
        job["job_name"]: int(job["static_configs"][0]["targets"][0].partition(":")[2])
        for job in read["scrape_configs"]
        if "static_configs" in job
    }
    classes = CONFIGS if name == "prometheus.yml" else ROBOT
    for service, cfg in classes.items():
        assert asked[service] == cfg().metrics_port, service


def test_only_the_loops_have_real_time_limits(compose):
    with_limits = {name for name, service in compose["services"].items() if "ulimits" in service}
    assert with_limits == {*CONFIGS, "isaac"}  # which is sim-hal from the trainer's image


@pytest.mark.parametrize("file", ["compose", "jetson"])
def test_loops_have_the_largest_share_of_the_processor(file, request):
    """For engines that grant no real-time priority; 1024 is that of a container without one."""
    services = request.getfixturevalue(file)["services"].values()
    loops = {one["cpu_shares"] for one in services if "ulimits" in one}
    others = {one.get("cpu_shares", 1024) for one in services if "ulimits" not in one}
    assert loops == {20 * 1024}
    assert max(others) <= 1024


@pytest.mark.parametrize("file", ["compose", "jetson"])
def test_every_image_is_built_of_a_package_that_can_be_started(file, request):
    """The Dockerfile starts the one module of that folder that has a `__main__`."""
    services = request.getfixturevalue(file)["services"]
    built = {name: one["build"]["args"] for name, one in services.items() if "build" in one}
    assert len(built) >= 6
    for name, args in built.items():
        folder = ROOT / args["SERVICE"]
        assert len(list(folder.glob("src/*/__main__.py"))) == 1, name
        manifest = tomllib.loads((folder / "pyproject.toml").read_text())
        assert manifest["project"]["name"] == f"krabby-{folder.name}", name
        if args.get("BASE"):
            assert "jetpack" in manifest["project"]["optional-dependencies"], name


def test_services_that_trace_are_built_with_what_they_import_and_told_where_to_send(compose):
    added = yaml.safe_load((ROOT / "compose.tracing.yaml").read_text())["services"]
    receiver = added.pop("jaeger")
    assert set(added) == {"sim-hal", "gameloop"}
    assert receiver["networks"] == ["monitoring"]
    assert all(port.startswith("127.0.0.1:") for port in receiver["ports"])
    assert {"read_only", "cap_drop", "mem_limit"} <= set(receiver)
    shared = tomllib.loads((ROOT / "libs/krabby/pyproject.toml").read_text())["project"]
    for name, one in added.items():
        assert "monitoring" in compose["services"][name]["networks"]
        assert one["build"]["args"]["EXTRAS"] in shared["optional-dependencies"]
        (variable, place) = next(iter(one["environment"].items()))
        assert variable == "OTEL_EXPORTER_OTLP_ENDPOINT"
        assert place == "http://jaeger:4318"
    image = (ROOT / "Dockerfile").read_text()
    assert image.index("ARG EXTRAS=") < image.index('[ -n "$EXTRAS" ]')


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
        service = rule["annotations"]["service"]
        assert service in ("host", "HAL") or "$labels.job" in service, name
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


def test_every_dashboard_is_of_the_chosen_robot_and_marks_what_happened_to_it(dashboards):
    for board in dashboards.values():
        assert [one["name"] for one in board["templating"]["list"]] == ["robot", "instance"]
        exprs = [t["expr"] for panel in board["panels"] for t in panel["targets"]]
        assert all('robot=~"$robot"' in expr for expr in exprs)
        marks = {one["name"]: one for one in board["annotations"]["list"]}
        assert set(marks) == {"Falls", "Faults", "E-stops", "Black box"}
        assert all("{{path}}" in mark["textFormat"] for mark in marks.values())
        incident = marks.pop("Black box")
        assert "krabby_recorder_incident_timestamp_seconds" in incident["expr"]
        assert incident["useValueForTime"]  # the value is the time, in milliseconds
        assert incident["expr"].endswith(" * 1000")
        assert all("krabby_recorder_file_info" in mark["expr"] for mark in marks.values())


@pytest.mark.parametrize("name", ["prometheus.yml", "robot.yml"])
def test_every_scraped_process_has_the_name_of_its_robot(name):
    read = yaml.safe_load((ROOT / "monitoring/prometheus" / name).read_text())
    for job in read["scrape_configs"]:
        (label,) = job["relabel_configs"]
        assert label["target_label"] == "robot"
        assert label["replacement"]


def test_alerts_reach_the_alertmanager_of_the_profile_and_its_receiver_exists(compose):
    assert compose["services"]["alertmanager"]["profiles"] == ["alerts"]
    read = yaml.safe_load((ROOT / "monitoring/prometheus/prometheus.yml").read_text())
    (one,) = read["alerting"]["alertmanagers"]
    assert one["dns_sd_configs"][0]["names"] == ["alertmanager"]
    config = yaml.safe_load((ROOT / "monitoring/alertmanager.yml").read_text())
    receivers = {one["name"] for one in config["receivers"]}
    routes = [config["route"], *config["route"]["routes"]]
    assert {route["receiver"] for route in routes} == receivers == {"example"}


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
