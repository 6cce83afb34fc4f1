import json

import pytest
from krabby.runtime.testing import FakeClock, free_ports
from krabby_cli import display
from krabby_cli.display import Echo, LiveDisplay, PlainDisplay, RunView
from krabby_cli.logs import LogLine
from krabby_cli.progress import Progress
from krabby_proto import TRUTH, ControlServer, Publisher, make_hello, pack, wait_any
from krabby_proto.testing import FakeHal

VIEW = RunView(
    title="gait on flat",
    elapsed_s=12.4,
    duration_s=30.0,
    progress="3.00 m, 0 falls, waypoint 1/8",
    states={"sim-hal": "ready", "gameloop": "ready"},
    cores={"sim-hal": 0.4, "gameloop": 0.3},
)


def warning(event, **facts):
    return LogLine.parse(json.dumps({"level": "warning", "event": event, **facts}))


def test_a_repeated_warning_is_said_once_in_ten_seconds_with_the_number_left_out():
    clock, said = FakeClock(), []
    echo = Echo(said.append, clock=lambda: clock() * 1e-9)
    for _ in range(3):
        echo("gameloop", warning("late", slots=1))
        clock.advance(3.0)
    echo("camera", warning("late"))
    clock.advance(2.0)
    echo("gameloop", warning("late", slots=2))

    assert said == [
        "gameloop: warning: late slots=1",
        "camera: warning: late",
        "gameloop: warning: late slots=2 (2 more of these)",
    ]


def test_an_interpreters_own_words_are_all_passed_on():
    said = []
    echo = Echo(said.append)
    for _ in range(2):
        echo("camera", LogLine("    raise"))
    assert said == ["camera:     raise"] * 2


def test_a_plain_run_says_where_it_is_now_and_then(capsys, monkeypatch):
    clock = FakeClock()
    monkeypatch.setattr(display.time, "monotonic", lambda: clock() * 1e-9)
    plain = PlainDisplay()
    for _ in range(100):
        plain.update(VIEW)
        clock.advance(0.1)
    plain.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["12 s of 30 s: 3.00 m, 0 falls, waypoint 1/8, 0.70 cores"] * 2


def test_the_live_table_shows_what_it_is_told_and_survives_silence(capsys):
    safety, control, metrics = free_ports(3)
    endpoints = {"safety": f"tcp://127.0.0.1:{safety}", "control": f"tcp://127.0.0.1:{control}"}
    table = LiveDisplay(endpoints, {"sim-hal": metrics})
    table.update(VIEW)
    table.say("camera: warning: late")
    table.close()
    out = capsys.readouterr().out
    assert "camera: warning: late" in out


def test_the_live_table_asks_gate_and_loop(monkeypatch):
    with FakeHal(armed=True) as hal, ControlServer(
        f"tcp://127.0.0.1:{free_ports(1)[0]}", hello=make_hello(service="gameloop")
    ) as loop:  # fmt: skip
        endpoints = {"safety": hal.endpoints["safety"], "control": loop.endpoint}
        table = LiveDisplay(endpoints, {})
        try:
            states = {table._safety_state() for _ in range(40)}
            assert "active" in states
            assert table._loop_state() == "no answer"
        finally:
            table.close()


def test_progress_is_what_the_truth_stream_said_last():
    with Publisher("tcp://127.0.0.1:*", TRUTH) as truth, Progress(truth.endpoint) as progress:
        assert progress.figures == {}
        assert not progress.has_walked
        fields = {field.name: [0.0] * field.size for field in TRUTH.fields}
        fields |= {"distance": [2.5], "falls": [1.0], "waypoint_index": [3.0]}
        fields |= {"waypoint_count": [8.0], "sim_time": [9.25]}
        for _ in range(200):
            truth.publish(pack(TRUTH, **fields), capture_ns=1)
            wait_any([progress], 0.02)
            progress.poll()
            if progress.is_known:
                break

        assert progress.figures == {
            "distance_m": 2.5, "falls": 1, "waypoints_reached": 3, "sim_time_s": 9.25
        }  # fmt: skip
        assert progress.has_walked
        assert progress.describe() == "2.50 m, 1 falls, waypoint 3/8"


@pytest.mark.parametrize(
    ("elapsed", "duration", "text"),
    [(None, 30.0, "starting"), (4.6, 0.0, "5 s"), (4.6, 30.0, "5 s of 30 s")],
)
def test_the_clock_of_a_run(elapsed, duration, text):
    view = RunView(title="", elapsed_s=elapsed, duration_s=duration, progress="", states={})
    assert view.clock == text
