import json

from krabby_cli.logs import LogFollower, LogLine


def test_a_line_that_is_being_written_waits_until_it_is_whole(tmp_path):
    path = tmp_path / "service.log"
    follower = LogFollower(path)
    assert follower.read() == []

    with path.open("w") as log:
        log.write('{"event":"one"}\n{"eve')
        log.flush()
        assert [line.event for line in follower.read()] == ["one"]
        log.write('nt":"two"}\n')
        log.flush()
        assert [line.event for line in follower.read()] == ["two"]
        log.write("cut off")
        log.flush()
    assert follower.read() == []
    assert [line.text for line in follower.rest()] == ["cut off"]
    assert follower.rest() == []


def test_bytes_that_are_no_text_do_not_stop_the_follower(tmp_path):
    path = tmp_path / "service.log"
    path.write_bytes(b"\xff\xfe\n[1, 2]\n")
    lines = LogFollower(path).read()
    assert [line.facts for line in lines] == [{}, {}]


def test_warnings_errors_and_an_interpreters_own_words_are_loud():
    loud = [
        '{"level":"warning","event":"late"}',
        '{"level":"error","event":"x"}',
        "Traceback (most",
    ]
    quiet = ['{"level":"info","event":"running"}', "", "   "]
    assert [LogLine.parse(text).is_loud for text in loud + quiet] == [True] * 3 + [False] * 3


def test_a_line_for_people_has_level_event_and_facts_without_the_routine():
    line = LogLine.parse(
        '{"time":"2026-11-22T15:00:00Z","level":"warning","service":"sim-hal","event":"behind",'
        '"run_id":"ab","mono_ns":1,"slots":3,"joints":["lf_knee"],"exception":"Traceback: x"}'
    )
    assert line.readable() == 'warning: behind slots=3 joints=["lf_knee"]\nTraceback: x'


def test_a_long_fact_is_cut():
    line = LogLine.parse('{"level":"info","event":"starting","config":"' + "x" * 500 + '"}')
    assert len(line.readable()) < 250
    assert line.readable().endswith("...")


EVIL = "/x\x1b]0;pwned\x07\x1b[31mFORGED\nkrabby up: all is well\u202e"


def test_what_a_peer_put_into_a_line_is_shown_and_not_obeyed():
    line = LogLine.parse(json.dumps({"level": "warning", "event": "refused", "policy": EVIL}))
    said = line.readable()
    assert said == (
        "warning: refused policy=/x\\x1b]0;pwned\\x07\\x1b[31mFORGED\\n"
        "krabby up: all is well\\u202e"
    )
    assert LogLine.parse("\x1b[31mplain\ttext").readable() == "\\x1b[31mplain\ttext"


def test_a_line_that_is_nested_too_deeply_is_plain_text():
    assert LogLine.parse("[" * 100_000).facts == {}
    assert LogLine.parse('{"a":' * 100_000).facts == {}


def test_a_traceback_keeps_its_lines():
    facts = {"level": "error", "event": "crashed", "exception": "Traceback:\n  File\n\x1bError"}
    assert LogLine.parse(json.dumps(facts)).readable() == (
        "error: crashed\nTraceback:\n  File\n\\x1bError"
    )
