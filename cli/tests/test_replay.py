"""A recorded run computed again, from the command line."""

import itertools
import json
import time

import pytest
from krabby.control.config import ControlCfg
from krabby.control.testing import RecordedLoop
from krabby.policy.testing import write_constant_policies
from krabby.robot.description import RobotDescription
from krabby_cli.__main__ import main
from krabby_proto import (
    STATE,
    TICKS,
    LatestSubscriber,
    Publisher,
    TickReader,
    decode,
    default_endpoints,
    encode,
)
from krabby_proto.recording import Recorder

GAIT = ControlCfg(policy="gait", blind_policy="gait")


@pytest.fixture(scope="module")
def walk():
    """5 s: standing up, then walking at 0.3 m/s."""
    loop = RecordedLoop(GAIT, RobotDescription.load())
    loop.command = (0.3, 0.0, 0.0)
    loop.run(500)
    return loop.messages


@pytest.fixture
def write(tmp_path, walk):
    """Writes a recording of the walk."""

    def make(name="run.mcap", messages=walk):
        path = tmp_path / name
        with Recorder(path) as recorder:
            for message in messages:
                recorder.write(message)
        return path

    return make


def test_a_run_is_the_same_again(write, capsys):
    assert main(["replay", str(path := write())]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{path}: 500 ticks, 5.0 s (gait ")
    assert said.endswith(": 0 differing bytes\n")


def test_missing_ticks_are_named_and_the_status_says_so(write, walk, capsys):
    records = [message for message in walk if message.stream is TICKS]
    path = write(messages=[*records[:210], *records[212:]])
    assert main(["replay", str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{path}: 2 ticks missing before tick 212"
    assert lines[1].startswith(f"{path}: ticks 212 to 299: no snapshot")
    assert lines[2].endswith("0 differing bytes")


def test_a_part_that_begins_within_a_run_is_exact_from_its_first_snapshot_on(write, walk, capsys):
    path = write(messages=walk[2 * 150 :])
    assert main(["replay", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{path}: ticks 150 to 199: no snapshot")
    assert lines[1].startswith(f"{path}: 300 ticks, 3.0 s")


@pytest.mark.timeout(600)
def test_another_policy_is_drawn_and_told_by_joint(write, tmp_path, capsys):
    write_constant_policies(tmp_path / "policies", RobotDescription.load())
    argv = ["replay", str(path := write()), "--policy", str(tmp_path / "policies" / "blind")]
    assert main(argv) == 0
    told = capsys.readouterr()
    assert "differing bytes in" in told.out
    assert " rad, at " in told.out
    assert (picture := path.with_suffix(".replay.png")).stat().st_size > 5000
    assert f"drawn to {picture}" in told.err

    assert main([*argv, "--json", "--plot", str(tmp_path / "other.svg")]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["exact"] is False
    assert facts["replayed_ticks"] == 500
    assert facts["differing_ticks"] > 100
    assert facts["largest_rad"]
    assert (tmp_path / "other.svg").read_text().startswith("<?xml")


def test_what_differs_in_one_target_is_told_with_joint_and_time(write, walk, capsys):
    """The tick's target is replaced by one with another left-front knee, 0.25 rad further."""
    messages = list(walk)
    index = next(i for i, each in enumerate(messages) if _tick(each) == 400)
    record = bytearray(messages[index].payload.tobytes())
    target = TickReader().read(messages[index]).target
    changed = target.copy()
    changed[2] += 0.25
    at = record.index(target.tobytes())
    record[at : at + changed.nbytes] = changed.tobytes()
    header = messages[index].header
    frames = encode(
        TICKS, bytes(record), instance_id=header.instance_id, sequence=header.sequence,
        capture_ns=header.capture_ns, publish_ns=header.publish_ns,
    )  # fmt: skip
    messages[index] = decode(frames, TICKS)
    name = RobotDescription.load().joint_names[2]

    assert main(["replay", str(write(messages=messages))]) == 1
    said = capsys.readouterr().out
    assert "differing bytes in 1 ticks, the first at 4.00 s (tick 400)" in said
    assert f"  {name:<16} up to 0.25 rad, at 4.00 s" in said


def _tick(message):
    return TickReader().read(message).tick if message.stream is TICKS else None


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        (["none.mcap"], 1, "no recording at none.mcap"),
        (["states.mcap"], 1, "has no stream 'ticks'"),
        (["run.mcap", "--plot", "x.bmp"], 2, "choose a name ending in .png"),
        (["run.mcap", "--policy", "moon"], 2, "no policy 'moon'"),
        (["run.mcap", "--robot", "crab_hex_rs"], 1, "the run is of robot 'crab_hex'"),
        (["run.mcap", "--publish", "--host", "10.0.0.9"], 2, "give no --host"),
    ],
)
def test_what_cannot_be_replayed_is_said(write, walk, monkeypatch, capsys, argv, status, said):
    monkeypatch.setenv("KRABBY_ROBOT", "crab_hex")  # choose_robot changes it
    path = write()
    write("states.mcap", [message for message in walk if message.stream is STATE])
    monkeypatch.chdir(path.parent)
    assert main(["replay", *argv]) == status
    assert said in capsys.readouterr().err


def test_it_is_published_with_its_timing_and_stamps_of_now(write, walk, tmp_path, capsys):
    """Half a second of it; what is between two stamps stays, all of them are moved together."""
    path = write(messages=walk[:100])
    folder = tmp_path / "sockets"
    folder.mkdir(mode=0o700)
    endpoints = default_endpoints(f"ipc://{folder}")
    argv = ["replay", str(path), "--publish"]
    argv += [f"--endpoint={name}={endpoint}" for name, endpoint in endpoints.items()]
    began_ns = time.monotonic_ns()
    with LatestSubscriber(endpoints["state"], STATE, queue=1000) as subscriber:
        assert main(argv) == 0
        came = subscriber.drain()
    ended_ns = time.monotonic_ns()

    assert f"{path}: published 50 state, 50 ticks" in capsys.readouterr().out
    stamps = [message.capture_ns for message in came]
    # A subscriber may join late, but what comes has the recorded 10 ms between two.
    assert {b - a for a, b in itertools.pairwise(stamps)} <= {10_000_000}
    assert all(began_ns < stamp < ended_ns for stamp in stamps)


def test_it_is_not_published_beside_a_hal(write, tmp_path, capsys):
    folder = tmp_path / "sockets"
    folder.mkdir(mode=0o700)
    endpoints = default_endpoints(f"ipc://{folder}")
    argv = ["replay", str(write()), "--publish"]
    argv += [f"--endpoint={name}={endpoint}" for name, endpoint in endpoints.items()]
    with Publisher(endpoints["state"], STATE):
        assert main(argv) == 2
    assert f"{endpoints['state']} (state) is already in use" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("policy", "seconds", "options"), [("gait", 600, ["--no-camera"]), ("parkour", 60, [])]
)
def test_a_long_run_of_the_real_processes_is_the_same_again(
    tmp_path, capsys, policy, seconds, options
):
    """In lock-step, lap after lap. A recorder that gets no processor for long may miss ticks."""
    path = tmp_path / "long.mcap"
    assert main(
        ["up", "--speed", "0", "--duration", str(seconds), "--course", "steps", "--difficulty", "0",
         "--policy", policy, "--base-port", "0", "--no-view", "--start-timeout", "600",
         "--record", str(path), "--runs-dir", str(tmp_path / "runs"),
         "--set", "sim-hal.mission.repeat=true", *options]
    ) == 0  # fmt: skip
    capsys.readouterr()
    main(["replay", "--json", str(path)])
    facts = json.loads(capsys.readouterr().out)
    assert facts["differing_bytes"] == 0
    assert facts["not_as_in_the_run"] == []
    assert facts["ticks"] > 50 * seconds
    assert facts["replayed_ticks"] > 0.5 * facts["ticks"]
    assert facts["policy_s"][policy] > 0.2 * seconds
