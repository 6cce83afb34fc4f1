"""The robot's own containers on an emulated robot: compose.jetson.yaml, profile `emulated`.

HAL, camera and game loop are those of the real robot; drives answer on CAN as multicast between
containers, the IMU on a serial line over TCP. The tests run in the order they stand in.
"""

import json
import re
import time
from pathlib import Path

import pytest
from krabby_proto import ControlClient, HalClient

pytestmark = [pytest.mark.slow, pytest.mark.compose, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]
HAL, GAMELOOP, CAMERA, EMULATOR = (
    "emulated-jetson-hal", "emulated-gameloop", "emulated-camera", "robot-emulator",
)  # fmt: skip
HAL_PORTS = (("state", 6001), ("command", 6002), ("safety", 6005))
PROFILES = ("robot", "emulated", "teleop", "record", "drives", "emulated-teleop", "*")
HARDWARE = ("krabby_drive_", "krabby_bus_", "krabby_imu_", "krabby_foot_")
RIGHTLY_EMPTY = {"krabby_drive_fault_active == 1"}


@pytest.fixture
def priority(emulated_project):
    """Where loops come first. Elsewhere physics, drives, HAL, camera and game loop on two cores
    stall for longer than a silent drive is borne, and the robot is damped, rightly."""
    if emulated_project.settings.get("KRABBY_RTPRIO") == "0":
        pytest.skip(
            "this engine lets no loop go first, so the robot would be damped again and again; "
            "test_emulated_robot.py walks the same programs without containers"
        )


# --- files, nothing started -----------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_is_a_valid_project(emulated_project, profile):
    result = emulated_project.compose("--profile", profile, "config", "--quiet")
    assert (result.stdout, result.stderr) == ("", "")


def test_without_a_profile_the_robot_is_what_runs(emulated_project):
    shown = emulated_project.compose("config", "--services", COMPOSE_PROFILES="robot").stdout
    assert {"jetson-hal", "camera", "gameloop"} <= set(shown.split())
    assert "emulated" not in shown


@pytest.mark.parametrize(("service", "limit_mb"), [(HAL, 350), (EMULATOR, 600)])
def test_images_stay_small(emulated_project, figures, size_mb, service, limit_mb):
    size = size_mb(emulated_project, service)
    figures[f"image of {service}"] = f"{size:.0f} MB"
    assert size < limit_mb


# --- up -------------------------------------------------------------------------------------


def test_nothing_arms_the_robot_by_itself(emulated, figures):
    figures["emulated robot up"] = f"{emulated.up_s:.1f} s"
    seen = {gate(emulated) for _ in range(20) if not time.sleep(0.1)}
    assert seen <= {"disarmed", "damp"}
    assert emulated.value(EMULATOR, "krabby_emulator_falls_total") == 0


@pytest.mark.usefixtures("priority")
def test_it_keeps_the_contract_of_every_hal(emulated, wait_until, figures):
    """The game loop sends commands of its own, so it stands aside."""
    emulated.compose("stop", GAMELOOP)
    settle(emulated, wait_until)
    told = operate(emulated, "check-hal", "--json", "--host", "jetson-hal", check=False).stdout
    emulated.compose("start", GAMELOOP)
    results = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    figures["check-hal against jetson-hal"] = f"{len(results)} checks"
    assert [one for one in results if not one["passed"]] == []
    assert len(results) > 5
    wait_until(lambda: emulated.turns(GAMELOOP), 10, "the game loop is back")


@pytest.mark.usefixtures("priority")
def test_an_operator_arms_it_and_it_stands_up(emulated, wait_until):
    ask_loop(emulated, "policy", policy="gait")  # as on a robot's first day
    arm(emulated, wait_until)
    ask_loop(emulated, "stand")
    make_walk(emulated, wait_until)


def test_an_operators_container_reaches_both(emulated):
    told = operate(
        emulated, "status", "--host", "jetson-hal", "--endpoint", "control=tcp://gameloop:6006"
    ).stdout
    assert "safety gate: " in told
    assert "game loop: " in told


@pytest.mark.usefixtures("priority")
@pytest.mark.parametrize("policy", ["gait", "parkour"])
def test_it_walks_five_metres_on_its_own_hardware(emulated, counters, wait_until, figures, policy):
    """Timing is printed beside its target; only a loop that does not work fails here.

    Two cores carry physics, drives, HAL, camera and game loop, and not every engine lets a loop go
    first. Where something else takes them for longer than a silent drive is borne the robot is
    damped, rightly, and falls if it was fast; it is put back then and tries again.
    """
    ask_loop(emulated, "policy", policy=policy)
    stops = []
    while len(stops) < 8:
        make_walk(emulated, wait_until)
        began_s, start_m, falls = time.monotonic(), walked(emulated), fallen(emulated)
        before = emulated.metrics(HAL)
        while walked(emulated) - start_m < 5.0 and gate(emulated) == "active":
            assert time.monotonic() - began_s < 60, f"{walked(emulated) - start_m:.1f} m"
            time.sleep(1)  # to be asked costs the loop a part of its period
        if walked(emulated) - start_m >= 5.0:
            break
        stops.append(faults(emulated))
    elapsed_s = time.monotonic() - began_s
    after = emulated.metrics(HAL)
    figures[f"{policy}: damped on the way"] = f"{len(stops)} times {stops or ''}".strip()
    assert len(stops) < 8, stops
    assert all(SILENCE & set(stop) for stop in stops), stops

    period_s = counters.quantile(0.99, before, after, "krabby_bus_period_seconds")
    age_s = counters.quantile(
        0.99, before, after, "krabby_observation_age_at_actuation_seconds", stream="state"
    )
    rate_hz = counters.increase(before, after, "krabby_bus_period_seconds_count") / elapsed_s
    missed = counters.increase(before, after, "krabby_drive_replies_missed_total")
    loads = {one.labels["bus"]: one.value for one in after if one.name == "krabby_bus_load_ratio"}
    figures[f"{policy}: walked 5 m in"] = f"{elapsed_s:.1f} s"
    figures[f"{policy}: state age at actuation, p99"] = f"{1e3 * age_s:.2f} ms (at most 12)"
    figures[f"{policy}: bus loop"] = (
        f"{rate_hz:.1f} Hz, period p99 {1e3 * period_s:.2f} ms (5 within 1), "
        f"{missed:.0f} replies missed"
    )
    figures["bus load"] = ", ".join(f"{bus} {load:.1%}" for bus, load in loads.items())
    assert fallen(emulated) == falls
    assert rate_hz > 100.0
    assert age_s <= 0.1
    assert len(loads) == 3
    assert all(0.2 < load <= 0.7 for load in loads.values())


def test_every_expression_about_hardware_returns_data(emulated):
    """Those that test_stack.py leaves out, in dashboards and in rules."""
    asked, empty = 0, []
    for path in sorted((ROOT / "monitoring/grafana/dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                expr = target["expr"]
                if any(name in expr for name in HARDWARE):
                    asked += 1
                    if not emulated.query(expr.replace("$__rate_interval", "5s")):
                        empty.append(expr)
    assert asked >= 8
    assert set(empty) <= RIGHTLY_EMPTY
    rules = (ROOT / "monitoring/prometheus/rules").glob("*.yml")
    selectors = {
        selector
        for path in rules
        for selector in re.findall(
            r"\b((?:krabby_(?:drive|bus|imu|foot)|krabby:bus)_[a-z0-9_:]+)", path.read_text()
        )
    }
    assert len(selectors) > 6
    assert [selector for selector in sorted(selectors) if not emulated.query(selector)] == []


def test_prometheus_scrapes_the_robot_each_second(emulated):
    targets = {
        target["labels"]["job"]: target for target in emulated.ask("targets")["activeTargets"]
    }
    for name in ("jetson-hal", "camera", "gameloop", "robot-emulator"):
        assert targets[name]["health"] == "up", targets[name]["lastError"]


@pytest.mark.parametrize("service", [HAL, GAMELOOP, CAMERA, EMULATOR])
def test_a_container_is_not_root_and_may_nothing(emulated, service):
    shell = "id -u; grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/1/status; touch /x || true"
    uid, *status = emulated.compose("exec", "-T", service, "sh", "-c", shell).stdout.split("\n")
    assert int(uid) != 0
    seen = dict(line.split(":\t") for line in status if line)
    assert {int(seen[name], 16) for name in ("CapEff", "CapBnd")} == {0}
    assert seen["NoNewPrivs"] == "1"
    assert emulated.inspect(service)["HostConfig"]["ReadonlyRootfs"]
    assert not any(emulated.inspect(service)["NetworkSettings"]["Ports"].values())


@pytest.mark.usefixtures("priority")
def test_it_sits_down_and_is_disarmed(emulated, wait_until):
    make_walk(emulated, wait_until)
    falls = fallen(emulated)
    ask_loop(emulated, "sit")
    wait_until(lambda: mode(emulated) == "passive", 15, "it sits")
    ask_hal(emulated, "disarm")
    settle(emulated, wait_until)
    assert fallen(emulated) == falls


@pytest.mark.usefixtures("priority")
def test_drives_let_go_by_themselves_when_the_hal_is_killed(emulated, wait_until, figures):
    arm(emulated, wait_until)
    assert emulated.value(EMULATOR, "krabby_emulator_drives_running") == 18
    emulated.compose("kill", "--signal", "KILL", HAL)
    killed_s = time.monotonic()
    off_s = wait_until(
        lambda: emulated.value(EMULATOR, "krabby_emulator_drives_running") == 0,
        2,
        "all drives let go",
    )
    figures["drives seen off after a killed HAL"] = f"{1e3 * off_s:.0f} ms, as its metrics show it"
    assert time.monotonic() - killed_s < 2
    emulated.compose("up", "--detach")
    wait_until(lambda: emulated.turns(HAL), 20, "the HAL is back")
    wait_until(lambda: gate(emulated) in ("disarmed", "damp"), 5, "and not armed")


def test_everything_stops_gracefully(emulated, figures):
    began_s = time.monotonic()
    emulated.compose("stop")
    figures["emulated robot stopped after"] = f"{time.monotonic() - began_s:.1f} s"
    for service in emulated.ports:
        assert emulated.inspect(service)["State"]["ExitCode"] == 0, service


SILENCE = {"bus", "drive", "imu", "state_stale", "command_timeout"}
"""What the gate calls it when a process did not get its turn."""


# --- helpers --------------------------------------------------------------------------------


def gate(robot):
    return robot.holding(HAL, "krabby_safety_state", "state")


def faults(robot):
    """What the gate holds against it."""
    found = robot.metrics(HAL)
    return [s.labels["fault"] for s in found if s.name == "krabby_fault_active" and s.value == 1.0]


def mode(robot):
    return robot.holding(GAMELOOP, "krabby_gameloop_mode", "mode")


def walked(robot):
    return robot.value(EMULATOR, "krabby_emulator_distance_meters")


def fallen(robot):
    return robot.value(EMULATOR, "krabby_emulator_falls_total")


def settle(robot, wait_until):
    """Disarmed without a fault. Without SCHED_FIFO, which not every engine grants, a machine that
    does something else besides stalls the loops for longer than a silent drive is borne."""

    def is_settled():
        if gate(robot) == "damp":
            ask_hal(robot, "reset")
        return gate(robot) == "disarmed"

    wait_until(is_settled, 60, "the gate is disarmed and no fault holds it")


def arm(robot, wait_until):
    settle(robot, wait_until)

    def is_armed():
        if gate(robot) in ("damp", "disarmed"):
            settle(robot, wait_until)
            answer = ask_hal(robot, "arm")
            if not answer["ok"] and "TILT" in answer["reason"]:  # it fell before
                ask_emulator(robot, "put-back")
        return gate(robot) == "active"

    wait_until(is_armed, 60, "the gate is active")


def make_walk(robot, wait_until):
    """Walking, armed again where what this machine does besides has it damped."""

    def walks():
        if gate(robot) == "damp":
            arm(robot, wait_until)
            ask_loop(robot, "stand")
        return robot.walks()

    wait_until(walks, 60, "it walks")


def ask_hal(robot, op):
    """An operator's request to the gate. Not from a container of its own, whose start takes both
    cores for longer than a silent drive is borne where no loop may have priority."""
    where = {
        name: f"tcp://{robot.settings['KRABBY_ROBOT_BUS']}.3:{port}" for name, port in HAL_PORTS
    }
    with HalClient(where) as hal:
        return hal.safety(op, "test", timeout_s=5.0)


def ask_loop(robot, op, **words):
    """An operator's request to the game loop, likewise."""
    with ControlClient(f"tcp://{robot.settings['KRABBY_ROBOT_BUS']}.5:6006") as loop:
        answer = loop.request(op, timeout_s=10.0, **words)
    assert answer["ok"], answer


def ask_emulator(robot, op):
    """Who breaks the emulated robot, and puts it back on its feet."""
    with ControlClient(f"tcp://{robot.settings['KRABBY_ROBOT_BUS']}.2:6021") as emulator:
        answer = emulator.request(op, timeout_s=10.0)
    assert answer["ok"], answer


def operate(robot, *words, check=True):
    return robot.compose("run", "--rm", "-T", "emulated-teleop", *words, check=check)
