"""Falls, faults and stops of a recording as cases, and the cases simulated."""

import json

import numpy as np
import pytest
from krabby.benchmark.incidents import Case, find_incidents, read_case
from krabby.course.courses import make_course
from krabby_cli.__main__ import main
from krabby_proto import (
    SAFETY_STATES,
    TICKS,
    TRACE,
    TRUTH,
    Exchange,
    Fault,
    TickRecord,
    decode,
    encode,
    pack,
)
from krabby_proto.recording import HELLO, Recorder, Recording

MS = 1_000_000
ACTIVE, DAMP, ESTOP = (SAFETY_STATES.index(name) for name in ("active", "damp", "estop"))


def message(stream, content, at_ms):
    frames = encode(
        stream, content, instance_id=stream.id, sequence=at_ms, capture_ns=at_ms * MS,
        publish_ns=at_ms * MS,
    )  # fmt: skip
    return decode(frames, stream)


def truth(at_ms, x, falls, waypoint):
    sizes = {field.name: np.zeros(field.size) for field in TRUTH.fields}
    half = 0.1  # of the heading, 0.2 rad
    sizes |= {
        "base_pos_w": (x, 0.1, 0.4),
        "base_quat_w": (0.0, 0.0, np.sin(half), np.cos(half)),
        "falls": falls,
        "waypoint_index": waypoint,
    }
    return message(TRUTH, pack(TRUTH, **sizes), at_ms)


def gate(at_ms, state, faults=0):
    return message(TRACE, Exchange.of_gate(at_ms * MS, state, faults).pack(), at_ms)


def tick(at_ms, source, asked):
    record = TickRecord()
    record.add_decision(np.zeros(18), asked, asked)
    record.add_status({"policy": "gait", "walking": "gait", "nav_source": source})
    content = record.finish(
        tick=at_ms // 10, now_ns=at_ms * MS, mode="policy", safety_state=ACTIVE, sent=True,
        hal_checked=True, leaving=False, command_sequence=1, host_ns=(),
    )  # fmt: skip
    return message(TICKS, content, at_ms)


@pytest.fixture
def run(tmp_path):
    """30 s at 0.5 m/s: a fall at 12 s, damped 0.2 s later, a stop at 20 s, a fault at 28 s.

    A mission drives for 15 s, then a person, who turns from 18 s on.
    """
    path = tmp_path / "run 1.mcap"
    course = make_course("flat", 0.3, 5)
    named = {
        "name": course.name, "difficulty": course.difficulty, "seed": course.seed,
        "hash": course.content_hash,
    }  # fmt: skip
    config = {"mission": {"speed": 0.4}, "degrade": {"payload_kg": 2.0, "friction": None}}
    hello = {"robot": {"name": "crab_hex"}, "extra": {"course": named, "config": config}}
    with Recorder(path, {"run_id": "r1"}) as recorder:
        recorder.add_metadata(f"{HELLO}hal", {"hello": json.dumps(hello)})
        recorder.write(gate(1000, ACTIVE))
        for at_ms in range(1000, 31001, 20):
            since_s = 1e-3 * (at_ms - 1000)
            falls = since_s >= 12.0
            recorder.write(truth(at_ms, 1.0 + 0.5 * since_s, falls, 1 + int(since_s >= 10.0)))
            if since_s < 15.0:
                recorder.write(tick(at_ms, "mission", (0.4, 0.0, 0.0)))
            else:
                turn = 0.5 if since_s >= 18.0 else 0.0
                recorder.write(tick(at_ms, "operator", (0.3, 0.1, turn)))
            if at_ms == 13200:
                recorder.write(gate(at_ms, DAMP, int(Fault.TILT)))
            if at_ms == 15000:
                recorder.write(gate(at_ms, ACTIVE))
            if at_ms == 21000:
                recorder.write(gate(at_ms, ESTOP))
            if at_ms == 29000:
                recorder.write(gate(at_ms, ESTOP, int(Fault.STATE_STALE)))
    return path


def test_each_incident_is_found_once_with_its_place_and_what_led_to_it(run):
    (_, fall), (_, stop), (_, fault) = find_incidents(Recording(run))

    assert (fall.name, fall.kind, fall.time_s, fall.faults) == (
        "run_1-fall-1", "fall", 12.0, ("tilt",),
    )  # fmt: skip
    assert (fall.course, fall.difficulty, fall.seed, fall.policy) == ("flat", 0.3, 5, "gait")
    # 4 s before, 8 s after the start: 1 + 8 * 0.5 m; one waypoint was reached by then.
    assert fall.place == pytest.approx((7.0, 0.1), abs=1e-3)
    assert fall.spawn == pytest.approx((5.0, 0.1, 0.2), abs=1e-3)
    assert (fall.waypoint, fall.speed, fall.commands) == (1, 0.4, ())
    assert (fall.duration_s, fall.degrade["payload_kg"]) == (8.0, 2.0)

    assert (stop.name, stop.kind, stop.time_s) == ("run_1-estop-1", "estop", 20.0)
    # From 16 s on; the turn began 2 s later.
    assert stop.commands == ((0.0, 0.3, 0.1, 0.0), (2.0, 0.3, 0.1, 0.5))
    assert (fault.name, fault.faults) == ("run_1-fault-1", ("state_stale",))


def test_they_are_listed_and_saved(run, tmp_path, capsys):
    assert main(["incidents", str(tmp_path), "--save", str(tmp_path / "cases")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "12.00 s  fall (tilt)  gait on flat 0.3 seed 5 at 7.00, 0.10 m  run_1-fall-1" in lines[0]
    assert "20.00 s  estop  gait on flat" in lines[1]

    saved = sorted(path.name for path in (tmp_path / "cases").iterdir())
    assert saved == ["run_1-estop-1.json", "run_1-fall-1.json", "run_1-fault-1.json"]
    (_, fall), *_ = find_incidents(Recording(run))
    assert read_case(tmp_path / "cases" / "run_1-fall-1.json") == fall


def test_a_case_is_a_cell_that_begins_where_the_robot_was(run):
    (_, fall), (_, stop), _ = find_incidents(Recording(run))
    scenario = fall.cell.make(0)
    course = make_course("flat", 0.3, 5)
    assert scenario.course.boxes == course.boxes
    assert len(scenario.course.waypoints) == len(course.waypoints) - 1
    assert scenario.spawn == fall.spawn
    assert scenario.robot.payload_kg == 2.0
    # The first trial begins exactly there, the others nearby.
    assert (scenario.robot.start_xy_m, fall.cell.make(1).robot.start_xy_m) == (0.0, 0.02)
    assert [segment.start_s for segment in stop.cell.make(0).commands] == [0.0, 2.0]


def test_a_robot_without_truth_has_incidents_and_no_cases(tmp_path, capsys):
    path = tmp_path / "robot.mcap"
    with Recorder(path) as recorder:
        recorder.write(gate(1000, ACTIVE))
        recorder.write(gate(5000, DAMP, int(Fault.TILT)))
    assert main(["incidents", str(path)]) == 0
    said = capsys.readouterr().out
    assert "4.00 s  fault (tilt)  no case: not a run in simulation" in said
    assert main(["incidents", "rerun", str(path)]) == 1
    assert "no incident that can be run again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["rerun"], "rerun what?"),
        (["rerun", "empty"], "no cases in empty"),
        (["empty"], "no recordings in empty"),
        (["rerun", "bad.json"], "bad.json is not a case"),
        (["rerun", "unknown.json"], "unknown.json is not a case"),
        (["rerun", "bad.json", "--at-least", "2"], "--at-least 2"),
    ],
)
def test_what_cannot_be_run_is_said(tmp_path, monkeypatch, capsys, argv, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "unknown.json").write_text(json.dumps({"name": "x", "colour": "red"}))
    assert main(["incidents", *argv]) == 2
    assert said in capsys.readouterr().err


def case(**changes):
    facts = {
        "name": "run-fall-1", "recording": "run.mcap", "run_id": "", "kind": "fall", "time_s": 12.0,
        "faults": (), "robot": "crab_hex", "policy": "gait", "course": "flat", "difficulty": 0.0,
        "seed": 0, "place": (2.0, 0.0), "spawn": (1.0, 0.0, 0.0), "duration_s": 2.0,
    }  # fmt: skip
    return Case(**facts | changes)


@pytest.mark.slow
def test_a_folder_of_cases_is_a_regression_suite_by_its_status(tmp_path, monkeypatch, capsys):
    """On level ground the gait stays on its feet; with 3 % of its torque it does not."""
    monkeypatch.setenv("KRABBY_ROBOT", "crab_hex")  # choose_robot changes it
    (tmp_path / "sound.json").write_bytes(case().pack())
    argv = ["incidents", "rerun", str(tmp_path), "--trials", "2", "--jobs", "1"]
    assert main(argv) == 0
    assert "run-fall-1  gait: success 1.00 [0.34, 1.00] (n 2)" in capsys.readouterr().out

    weak = case(name="weak-fall-1", degrade={"motor_strength": 0.03})
    (tmp_path / "weak.json").write_bytes(weak.pack())
    assert main([*argv, "--policy", "gait", "--json"]) == 1
    found = {
        (each := json.loads(line))["case"]: each for line in capsys.readouterr().out.splitlines()
    }
    assert found["run-fall-1"]["success"]["value"] == 1.0
    assert found["weak-fall-1"]["success"]["value"] == 0.0
    assert found["weak-fall-1"]["trials"] == 2


@pytest.mark.slow
def test_two_policies_are_compared_on_the_same_trials(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KRABBY_ROBOT", "crab_hex")
    (path := tmp_path / "case.json").write_bytes(case().pack())
    argv = ["incidents", "rerun", str(path), "--policy", "parkour", "--trials", "2", "--jobs", "2"]
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("run-fall-1  gait: success")
    assert lines[1].startswith("run-fall-1  parkour: success")
    assert lines[2].startswith("run-fall-1  parkour minus gait: ")
