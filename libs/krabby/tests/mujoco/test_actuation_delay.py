import pytest
from krabby.mujoco.actuation_delay import DriveLine

MS = 1_000_000


@pytest.fixture
def commands(limp, hold):
    return limp, hold(), hold(effort_limit=50.0)


def test_a_command_takes_effect_two_substeps_after_it_was_written(commands):
    idle, first, _ = commands
    line = DriveLine(0.005, idle)
    line.write(first, 100 * MS)
    substeps = [line.at(round((100 + 2.5 * k) * MS)) for k in range(4)]
    assert [drive is first for drive in substeps] == [False, False, True, True]


def test_a_command_written_between_substeps_waits_for_the_next_one(commands):
    idle, first, _ = commands
    line = DriveLine(0.005, idle)
    line.write(first, round(102.8 * MS))  # in force at 107.8, so from the substep at 110
    assert line.at(round(107.5 * MS)) is idle
    assert line.at(110 * MS) is first


def test_of_two_commands_that_have_arrived_the_newer_one_counts(commands):
    idle, first, second = commands
    line = DriveLine(0.005, idle)
    line.write(first, 0)
    line.write(second, 1 * MS)
    assert line.at(5 * MS) is first
    assert line.at(50 * MS) is second


def test_without_delay_the_next_substep_has_it(commands):
    idle, first, _ = commands
    line = DriveLine(0.0, idle)
    line.write(first, 10 * MS)
    assert line.at(10 * MS) is first
