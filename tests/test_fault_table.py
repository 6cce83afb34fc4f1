"""The short form of `make faults`, on both robots; with every figure within its limit."""

import os
import subprocess
import sys
import time

import pytest
from krabby_faults.measure import measure_patiently
from krabby_faults.stack import ROBOTS, Stack
from krabby_faults.table import FAULTS
from krabby_faults.wall import WallClock

SHORT = [fault for fault in FAULTS if fault.short]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", params=ROBOTS)
def stack(request):
    stack = Stack(request.param, "gait")
    try:
        stack.start()
        yield stack
    finally:
        stack.close()


@pytest.mark.parametrize("fault", SHORT, ids=lambda fault: fault.name.replace(" ", "-"))
def test_a_fault_makes_it_safe_in_time_and_it_walks_again(stack, fault, figures):
    row = measure_patiently(stack, fault)
    figures[f"{row.robot}, {row.fault}"] = f"safe after {row.safe_ms} ms, limp {row.limp_ms} ms"
    assert row.problems() == []
    assert row.commands > 0


def test_every_fault_has_a_name_of_its_own_on_each_robot():
    names = [(robot, fault.name) for fault in FAULTS for robot in fault.robots]
    assert len(set(names)) == len(names)


def test_the_wall_clock_of_a_process_steps_and_its_monotonic_clock_does_not(tmp_path):
    clock = WallClock(tmp_path)
    if not clock.env:
        pytest.skip("needs a C compiler")
    clock.step(3600)
    told = subprocess.run(
        [sys.executable, "-c", "import time; print(time.time(), time.monotonic())"],
        env={**os.environ, **clock.env}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    wall_s, mono_s = map(float, told.stdout.split())
    assert wall_s - time.time() == pytest.approx(3600.0, abs=30.0)
    assert mono_s - time.monotonic() == pytest.approx(0.0, abs=30.0)
