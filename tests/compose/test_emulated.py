"""The robot's own containers on an emulated robot: compose.jetson.yaml, profile `emulated`.

HAL, camera and game loop are those of the real robot; drives answer on CAN as multicast between
containers, the IMU on a serial line over TCP. The tests run in the order they stand in.
"""

import json
import os
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
PROFILES = ("robot", "emulated", "teleop", "record", "drives", "emulated-teleop", "*")
HARDWARE = ("krabby_drive_", "krabby_bus_", "krabby_imu_", "krabby_foot_")
RIGHTLY_EMPTY = {"krabby_drive_fault_active == 1"}


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
    """The game loop is stopped, since it sends commands too."""
    emulated.compose("stop", GAMELOOP)
    settle(emulated, wait_until)
    told = operate(emulated, "check-hal", "--json", check=False).stdout
    emulated.compose("start", GAMELOOP)
    wait_until(lambda: emulated.turns(GAMELOOP), 10, "the game loop is back")
    emulated.go_first(GAMELOOP)
    results = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    figures["check-hal against jetson-hal"] = f"{len(results)} checks"
    assert [one for one in results if not one["passed"]] == []
    assert len(results) > 5


def test_an_operators_container_reaches_both(emulated):
    told = operate(emulated, "status").stdout
    assert "safety gate: " in told
    assert "game loop: " in told


@pytest.mark.usefixtures("priority")
@pytest.mark.parametrize("policy", ["gait", "parkour"])
def test_it_stands_up_walks_five_metres_and_sits_down(
    emulated, counters, wait_until, figures, policy
):
    """On its own hardware; timing is printed beside its target, and holds a machine that is busy
    with something else to no more than works.

    Two cores carry physics, drives, HAL, camera and game loop. Where something else takes them for
    longer than a silent drive is borne the robot is damped, rightly; it is armed again then.
    """
    ask_loop(emulated, "policy", policy=policy)  # gait first, as on a robot's first day
    falls, stops = fallen(emulated), []
    while True:
        ask_emulator(emulated, "put-back")
        arm(emulated, wait_until)
        ask_loop(emulated, "stand")
        wait_until(lambda: emulated.walks() or gate(emulated) == "damp", 15, "it walks")
        before, began_s, start_m = emulated.metrics(HAL), time.monotonic(), walked(emulated)
        while walked(emulated) - start_m < 5.0 and gate(emulated) == "active":
            assert time.monotonic() - began_s < 60, f"{walked(emulated) - start_m:.1f} m"
            time.sleep(1)  # to be asked costs the loop a part of its period
        after, elapsed_s = emulated.metrics(HAL), time.monotonic() - began_s
        if walked(emulated) - start_m >= 5.0:
            break
        stops.append(faults(emulated))
        assert len(stops) <= 2, stops
        assert SILENCE & set(stops[-1]), stops
    sat = sit(emulated, wait_until)

    period_s, age_s, exchange_s = (
        [counters.quantile(q, before, after, name, **labels) for q in (0.5, 0.99)]
        for name, labels in (
            ("krabby_bus_period_seconds", {}),
            ("krabby_observation_age_at_actuation_seconds", {"stream": "state"}),
            ("krabby_loop_work_seconds", {"stage": "exchange"}),
        )
    )
    slots, passed_s = (  # by its own clock: to read a page takes a busy machine half a second
        counters.increase(before, after, f"krabby_bus_period_seconds_{what}")
        for what in ("count", "sum")
    )
    rate_hz = slots / passed_s
    missed = counters.increase(before, after, "krabby_drive_replies_missed_total")
    loads = {one.labels["bus"]: one.value for one in after if one.name == "krabby_bus_load_ratio"}
    figures[f"{policy}: walked 5 m in"] = f"{elapsed_s:.1f} s, load {os.getloadavg()[0]:.1f}"
    figures[f"{policy}: sat down"] = "upright" if sat else "it tipped over"
    figures[f"{policy}: damped on the way"] = f"{len(stops)} times {stops or ''}".strip()
    figures[f"{policy}: state age at actuation"] = (
        f"p50 {1e3 * age_s[0]:.2f} ms, p99 {1e3 * age_s[1]:.2f} ms (at most 12)"
    )
    figures[f"{policy}: bus loop"] = (
        f"{rate_hz:.1f} Hz, period p99 {1e3 * period_s[1]:.2f} ms (5 within 1), "
        f"exchange p50 {1e3 * exchange_s[0]:.2f} ms, {missed:.0f} replies missed"
    )
    figures["bus load"] = ", ".join(f"{bus} {load:.1%}" for bus, load in loads.items())
    assert sat
    assert stops or fallen(emulated) == falls
    assert rate_hz == pytest.approx(200.0, rel=0.1)
    assert age_s[1] <= 0.03  # older ones are not walked by; 12 ms and 6 ms are printed, not asked
    assert period_s[1] <= 0.015
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
                    if not emulated.query(expr):
                        empty.append(emulated.unchosen(expr))
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
    emulated.go_first(HAL)
    wait_until(lambda: gate(emulated) in ("disarmed", "damp"), 5, "and not armed")


@pytest.mark.usefixtures("priority")
def test_everything_stops_gracefully(emulated, wait_until, figures):
    arm(emulated, wait_until)
    began_s = time.monotonic()
    emulated.compose("stop")
    figures["emulated robot stopped after"] = f"{time.monotonic() - began_s:.1f} s"
    for service in emulated.ports:
        assert emulated.inspect(service)["State"]["ExitCode"] == 0, service


SILENCE = {"bus", "drive", "imu", "state_stale", "state_gap", "command_timeout"}
"""What the gate calls it when a process did not get its turn."""


# --- helpers --------------------------------------------------------------------------------


def gate(robot):
    """As the HAL itself answers; its metrics are a fifth of a second behind."""
    return ask_hal(robot, "status")["state"]


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
    """Disarmed, without a fault that holds it."""

    def is_settled():
        state = gate(robot)
        if state == "damp":
            ask_hal(robot, "reset")
        return state == "disarmed"

    wait_until(is_settled, 30, "the gate is disarmed and no fault holds it")


def arm(robot, wait_until):
    """Armed; a robot that fell is put back on its feet before."""

    def is_armed():
        state = gate(robot)
        if state == "damp":
            ask_hal(robot, "reset")
        elif state == "disarmed":
            answer = ask_hal(robot, "arm")
            if not answer["ok"] and "TILT" in answer["reason"]:
                ask_emulator(robot, "put-back")
        return state == "active"

    wait_until(is_armed, 30, "the gate is active")


def sit(robot, wait_until):
    """Lowered and switched off; whether it stayed upright."""
    ask_loop(robot, "sit")
    wait_until(lambda: mode(robot) == "passive", 15, "it sits")
    upright = gate(robot) == "active"
    ask_hal(robot, "disarm")
    ask_hal(robot, "reset")
    settle(robot, wait_until)
    return upright


def ask_hal(robot, op):
    """An operator's request to the gate. Not from a new container, whose start takes both
    cores for longer than a silent drive is borne where no loop may have priority."""
    with HalClient({"safety": robot.through_relay("safety")}) as hal:
        return hal.safety(op, "test", timeout_s=5.0)


def ask_loop(robot, op, **words):
    """An operator's request to the game loop, likewise."""
    with ControlClient(robot.through_relay("control")) as loop:
        answer = loop.request(op, timeout_s=10.0, **words)
    assert answer["ok"], answer


def ask_emulator(robot, op):
    """Who breaks the emulated robot, and puts it back on its feet."""
    robot.compose("exec", "-T", "robot-emulator", "python", "-m", "krabby_emulator", op)


def operate(robot, *words, check=True):
    return robot.compose("run", "--rm", "-T", "emulated-teleop", *words, check=check)
