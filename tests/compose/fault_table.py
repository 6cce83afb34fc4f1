"""Rows of docs/faults.md from containers, and five walks of five: outside of CI.

make faults-containers
"""

import os
import time

import pytest
from krabby_faults.containers import EMULATED, SIMULATED, Robot, measure
from krabby_faults.report import line, write_rows

pytestmark = [pytest.mark.slow, pytest.mark.compose, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def simulated_robot(stack):
    robot = Robot(stack)
    yield robot
    robot.close()


@pytest.fixture(scope="module")
def emulated_robot(emulated):
    robot = Robot(emulated)
    yield robot
    robot.close()


def named(fault):
    return f"{fault.service} {fault.text}".replace(" ", "-")


def judge(robot, fault, figures, pytestconfig):
    lost = robot.watch.lost
    row = measure(robot, fault)
    lost = robot.watch.lost - lost  # at a thaw a few may be missing
    figures[f"{row.robot}, {row.fault}"] = f"{line(row)} {lost} records not seen"
    if pytestconfig.getoption("--write-faults"):
        write_rows([row])
    assert row.commands > 0
    assert row.problems() == []
    assert lost <= row.commands / 50


@pytest.mark.parametrize("fault", SIMULATED, ids=named)
def test_a_fault_in_a_container_of_the_simulation(simulated_robot, fault, figures, pytestconfig):
    judge(simulated_robot, fault, figures, pytestconfig)


@pytest.mark.usefixtures("priority")
@pytest.mark.parametrize("fault", EMULATED, ids=named)
def test_a_fault_in_a_container_of_the_emulated_robot(emulated_robot, fault, figures, pytestconfig):
    judge(emulated_robot, fault, figures, pytestconfig)


@pytest.fixture(scope="module")
def ordinary_robot(without_priority):
    robot = Robot(without_priority)
    yield robot
    robot.close()


def walked(stack):
    return stack.value("robot-emulator", "krabby_emulator_distance_meters")


@pytest.mark.parametrize("round_", range(5))
def test_without_priority_it_stands_up_walks_five_metres_and_sits_down(
    ordinary_robot, wait_until, figures, round_
):
    """With the default policy; in every other round containers start while it walks."""
    robot, stack = ordinary_robot, ordinary_robot.stack
    robot.put_back()
    assert robot.make_walk()
    began_s, start_m, started = time.monotonic(), walked(stack), 0
    while walked(stack) - start_m < 5.0:
        mode, state = robot.status()
        assert state == "active", f"{state} after {walked(stack) - start_m:.1f} m"
        assert time.monotonic() - began_s < 60, f"{walked(stack) - start_m:.1f} m, {mode}"
        if round_ % 2:
            stack.compose("run", "--rm", "-T", "emulated-teleop", "status")
            started += 1
        else:
            time.sleep(0.5)
    elapsed_s = time.monotonic() - began_s
    assert robot.loop.request("sit", timeout_s=10.0)["ok"]
    wait_until(lambda: robot.status()[0] == "passive", 15, "it sits")
    assert robot.status()[1] == "active"
    assert robot.hal.safety("disarm", "test", timeout_s=5.0)["ok"]
    figures[f"without priority, walk {round_ + 1}"] = (
        f"5 m in {elapsed_s:.1f} s, {started} containers started meanwhile, "
        f"load {os.getloadavg()[0]:.1f}"
    )
