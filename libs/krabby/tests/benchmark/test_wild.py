import pickle

import numpy as np
import pytest
from krabby.benchmark.figures import needed_s
from krabby.benchmark.outcome import Judge, Outcome
from krabby.benchmark.scenario import ScenarioError
from krabby.benchmark.suites import SUITES, cell_table, find_suite
from krabby.benchmark.wild import WILD
from krabby.course.courses import COURSES, check_training
from krabby.robot.errors import CourseError

BY_NAME = {cell.name: cell for cell in WILD}


def test_every_course_of_the_generator_but_mixed_ones_is_in_the_suite():
    used = {name for cell in WILD for name in cell.facts["course"].split("/")}
    assert set(COURSES) - used == {"mixed", "demo"}


def test_what_is_held_out_is_marked_and_nothing_else():
    held_out = {cell.name for cell in WILD if cell.held_out}
    assert held_out == {
        "stepping-stones-1",
        "beam-1",
        "rubble-1",
        "side-slope-1",
        "gap-45-0.5",
        "spiral-0.5",
        "spiral-1",
        "person",
    }
    for name in held_out - {"person"}:
        facts = BY_NAME[name].facts
        with pytest.raises(CourseError, match="held out of training"):
            check_training(facts["course"], facts["difficulty"])


def test_there_are_256_trials_where_the_target_is_0_97_or_2_percent_and_64_elsewhere():
    for cell in WILD:
        target = cell.target
        strict = target is not None and (
            (target.at_least or 0.0) >= 0.97 or (target.at_most or 1.0) <= 0.02
        )
        assert cell.trials == (256 if strict else 64), cell.name
    assert BY_NAME["steps-1"].trials == BY_NAME["release"].trials == 256
    assert BY_NAME["outage-1"].trials == BY_NAME["beam-1"].trials == 64


@pytest.mark.parametrize("cell", WILD, ids=lambda cell: cell.name)
def test_a_seed_gives_the_same_scenario_in_every_process(cell):
    one, again = cell.make(3), pickle.loads(pickle.dumps(cell.make))(3)
    other = cell.make(7)  # the same type of course where a cell has four

    assert one.course.content_hash == again.course.content_hash
    for field in ("duration_s", "speed", "commands", "spawn", "events", "robot", "pictures"):
        assert getattr(one, field) == getattr(again, field)
    assert one.course.seed != other.course.seed


@pytest.mark.parametrize("cell", WILD, ids=lambda cell: cell.name)
def test_trials_last_30_s_or_1_5_times_what_the_commanded_speed_needs(cell):
    for seed in range(4):
        scenario = cell.make(seed)
        if scenario.commands:
            assert scenario.duration_s == (60.0 if cell.goal == "stand" else 30.0)
        elif cell.facts["group"] != "published":
            assert scenario.duration_s >= max(30.0, 1.5 * needed_s(scenario))
            assert scenario.speed == 0.5


def test_quick_cells_have_their_baseline_and_stops_count_what_was_disturbed():
    quick = {cell.name for cell in WILD if cell.quick}
    assert {c.facts.get("baseline", c.name) for c in WILD if c.quick} <= quick
    for cell in WILD:
        if cell.target is not None and cell.target.figure.startswith("fell"):
            assert cell.target.figure == "fell_disturbed"
            assert cell.make(0).events


@pytest.mark.parametrize("name", ["cliff-1", "pit-1", "wall-1", "door-1", "ceiling-1"])
def test_a_robot_2_m_before_an_obstacle_has_come_to_it(make_facts, make_tick, name):
    cell = BY_NAME[name]
    facts = make_facts("stand_off", cell=cell, scenario=cell.make(0), waypoints=8)
    front = min(
        box.center[0] - box.half_extents[0]
        for box in facts.scenario.course.boxes
        if box.kind in ("wall", "floor")
    )
    for before_m, outcome in ((1.95, Outcome.REFUSED), (2.05, Outcome.MISSED)):
        judge = Judge(facts)
        judge.tick(make_tick(progress_m=front - before_m - facts.scenario.course.spawn[0]))
        assert judge.at_end() == outcome


def test_events_happen_at_random_places_of_the_course():
    for name, count in (("release", 1), ("stop-and-go", 4), ("swap", 1), ("outage-0.5", 1)):
        places = []
        for seed in range(40):
            scenario = BY_NAME[name].make(seed)
            points = np.vstack([scenario.course.spawn[:2], scenario.course.waypoints[:, :2]])
            length = np.linalg.norm(np.diff(points, axis=0), axis=1).sum()
            assert len(scenario.events) == count
            places += [event.at_m / length for event in scenario.events]
        assert 0.0 < min(places) < 0.15
        assert 0.8 < max(places) < 0.95


def test_courses_of_a_mixed_cell_take_turns():
    names = [BY_NAME["release"].make(seed).course.name for seed in range(5)]
    assert names == ["steps", "gap", "hurdle", "ramps", "steps"]


def test_a_robot_that_obeys_stays_on_the_field():
    for cell in WILD:
        if cell.facts["group"] != "commands":
            continue
        scenario = cell.make(1)
        course, (x, y, _) = scenario.course, scenario.spawn
        command = scenario.commands[0]
        end = (x + 30 * command.vx, y + 30 * command.vy) if not command.yaw_rate else (x, y)
        for place in ((x, y), end):
            assert 3.0 < place[0] < course.length_m - 3.0
            assert abs(place[1]) < course.half_width_m - 3.0


def test_a_limp_joint_or_leg_is_a_random_one_of_the_robot():
    joints = {BY_NAME["limp-joint"].make(seed).events[0].name for seed in range(64)}
    legs = {BY_NAME["limp-leg"].make(seed).events[0].name for seed in range(64)}
    assert len(joints) > 12
    assert all(name[2:] in ("_hip_yaw", "_hip_pitch", "_knee") for name in joints)
    assert legs == {"lf", "lm", "lr", "rf", "rm", "rr"}


def test_the_table_for_readers_names_targets_and_what_is_held_out():
    table = cell_table(WILD).splitlines()
    assert len(table) == len(WILD) + 2
    assert "| beam-1 | beam | 64 | success >= 0.9 | held out | beams 0.6 m wide |" in table
    assert any(
        line.startswith("| outage-2 | pictures | 64 | fell_disturbed <= 0.06 |") for line in table
    )


def test_a_suite_is_found_by_its_name_or_the_nearest_is_named():
    assert find_suite("wild") is WILD
    assert set(SUITES) == {"published", "wild"}
    with pytest.raises(ScenarioError, match="did you mean 'wild'"):
        find_suite("wide")
