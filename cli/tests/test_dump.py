import json

import numpy as np
import pytest
from krabby.runtime.testing import free_port
from krabby_cli.__main__ import main
from krabby_cli.dump import StreamReport, format_reports
from krabby_cli.errors import UsageError
from krabby_cli.listen import AUDIBLE, audible
from krabby_proto import FLAG_LOCKSTEP
from krabby_proto.testing import FakeHal


@pytest.fixture
def hal():
    with FakeHal(rate_hz=100.0) as fake:
        yield fake


def places(hal):
    return [f"--endpoint={name}={endpoint}" for name, endpoint in hal.endpoints.items()]


def test_dump_counts_a_stream_and_its_age(hal, capsys):
    assert main(["dump", "state", "--once", "--json", "--period", "0.5", *places(hal)]) == 0

    (report,) = json.loads(capsys.readouterr().out)["streams"]
    assert report["stream"] == "state"
    assert 5 <= report["messages"] <= hal.server._publishers["state"].sequence
    assert 0 <= report["age_p50_ms"] <= report["age_p99_ms"] < 500
    assert report["bytes"] == 48 + 4 * 70
    assert (report["gaps"], report["invalid"], report["lockstep"]) == (0, 0, False)


def test_silent_streams_are_shown_and_fail_only_when_asked_for(hal, capsys):
    assert main(["dump", "--once", "--period", "0.2", *places(hal)]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[:3] == ["stream", "rate", "Hz"]
    assert [line.split()[0] for line in table[1:]] == [*AUDIBLE]
    assert table[2].endswith("silent")

    assert main(["dump", "truth", "--once", "--period", "0.2", *places(hal)]) == 1
    said = capsys.readouterr().err
    assert "krabby dump: truth silent" in said
    assert hal.endpoints["truth"] in said
    assert "krabby up" in said


def test_no_age_is_given_when_the_clock_is_simulated(hal, capsys):
    hal.state_flags = FLAG_LOCKSTEP
    assert main(["dump", "state", "--once", "--json", "--period", "1", *places(hal)]) == 0
    (report,) = json.loads(capsys.readouterr().out)["streams"]
    assert report["lockstep"] is True
    assert report["age_p50_ms"] is None


def test_watch_shows_the_fields_by_name(hal, capsys):
    assert (
        main(["dump", "--watch", "state", "--once", "--json", "--period", "1", *places(hal)]) == 0
    )
    facts = json.loads(capsys.readouterr().out)
    assert facts["base_lin_acc_b"] == [0.0, 0.0, 9.81]
    assert facts["foot_contact"] == [1.0] * 6
    assert len(facts["joint_pos"]) == 18


def test_watch_gives_an_image_as_statistics(hal, capsys):
    image = np.full((60, 106), 2.0)
    image[0] = 0.0
    for index in range(40):
        hal.submit(lambda server, at=index: server.publish_camera(image, capture_ns=at + 1))
    # Images are published one a job, while the client subscribes and listens.
    hal.submit(lambda server: None)
    status = main(["dump", "--watch", "camera", "--once", "--period", "0.5", *places(hal)])
    out = capsys.readouterr()
    if status == 0:
        assert "zeros" in out.out
        assert "106" in out.out
    else:
        assert "nothing heard from camera" in out.err


def test_watching_silence_says_where_it_listened(capsys):
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    argv = ["dump", "--watch", "state", "--once", "--period", "0.1", f"--endpoint=state={endpoint}"]
    assert main(argv) == 1
    assert endpoint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "said"),
    [("nav", "only the game loop hears it"), ("command", "a request to the HAL"),
     ("stat", "no stream is called 'stat'")],
)  # fmt: skip
def test_streams_that_cannot_be_listened_to_are_explained(name, said):
    with pytest.raises(UsageError, match=said):
        audible([name])


def test_no_name_means_all_and_a_repeated_one_counts_once():
    assert audible([]) == AUDIBLE == ("state", "camera", "features", "truth", "colour")
    assert audible(["truth", "truth"]) == ("truth",)


@pytest.mark.parametrize("argv", [["--period", "0"], ["state", "--watch", "state"]])
def test_contradictory_arguments_are_refused(argv, capsys):
    assert main(["dump", *argv]) == 2
    assert capsys.readouterr().err.startswith("krabby dump: --")


def test_the_table_lines_up_and_says_what_is_wrong():
    report = StreamReport(
        stream="state", messages=98, rate_hz=98.0, age_p50_ms=1.234, age_p99_ms=20.5, bytes=328,
        gaps=2, invalid=1, restarts=1, lockstep=False, last_error="CRC is wrong",
    )  # fmt: skip
    head, line = format_reports([report]).splitlines()
    assert line.split()[:7] == ["state", "98.0", "1.23", "20.50", "328", "2", "1"]
    assert line.endswith("1 restarts, CRC is wrong")
    assert head.index("gaps") < line.index("1 restarts")
