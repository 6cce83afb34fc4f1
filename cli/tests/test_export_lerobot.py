"""Episodes and features that LeRobot's library is given; it is not installed here."""

import importlib.util
import json

import numpy as np
import pytest
from krabby_cli.__main__ import main
from krabby_cli.export_lerobot import episodes_of, features_of
from krabby_proto import (
    CAMERA,
    COMMAND,
    FLAG_HOLD,
    STATE,
    TRACE,
    CommandReply,
    CommandStatus,
    decode,
    encode,
)
from krabby_proto.exchanges import Exchange, ExchangeKind
from krabby_proto.recording import HELLO, Recorder, Recording

MS = 1_000_000


def frames_of(stream, payload, at_ms, flags=0):
    return encode(
        stream, payload, instance_id=1, sequence=at_ms, capture_ns=at_ms * MS,
        publish_ns=at_ms * MS, flags=flags,
    )  # fmt: skip


def exchange(at_ms, status):
    """A command whose targets are all `at_ms`, answered 3 ms after the state of that time; at
    1.39 and 1.4 s a hold."""
    reply = CommandReply.pack(
        status, safety_state=2, fault_bits=0, position_clamp_mask=0, rate_clamp_mask=0,
        request_sequence=at_ms, applied_sequence=at_ms, applied_ns=0, server_ns=at_ms * MS,
    )  # fmt: skip
    flags = FLAG_HOLD if at_ms in (1390, 1400) else 0
    command = frames_of(COMMAND, np.full(18, at_ms), at_ms, flags)
    return Exchange.of_frames(ExchangeKind.COMMAND, (at_ms + 3) * MS, command, reply).pack()


@pytest.fixture
def path(tmp_path):
    """Two seconds at 100 Hz; commands are refused from 1.6 to 1.7 s, images come at 10 Hz."""
    path = tmp_path / "run.mcap"
    with Recorder(path) as recorder:
        hello = {"camera": {"height": 2, "width": 3}, "robot": {"name": "crab"}}
        recorder.add_metadata(f"{HELLO}hal", {"hello": json.dumps(hello)})
        for at_ms in range(1000, 2001, 10):
            payload = np.full(STATE.size, at_ms)
            recorder.write(decode(frames_of(STATE, payload, at_ms), STATE))
            refused = 1600 <= at_ms < 1700
            status = CommandStatus.NOT_ARMED if refused else CommandStatus.APPLIED
            recorder.write(decode(frames_of(TRACE, exchange(at_ms, status), at_ms), TRACE))
            if at_ms % 100 == 0:
                depth = np.array([1.0, 0.5, np.nan, np.inf, -1.0, 100.0])
                recorder.write(decode(frames_of(CAMERA, depth, at_ms), CAMERA))
    return path


def test_frames_have_the_state_and_the_command_that_answered_it(path):
    (episode,) = episodes_of(Recording(path), 10)
    # 1.0 to 1.5 s are six frames; 1.7 to 2.0 s are less than half a second
    assert [frame.state[0] for frame in episode] == [1000, 1100, 1200, 1300, 1400, 1500]
    assert [frame.action[0] for frame in episode] == [1000, 1100, 1200, 1300, 1380, 1500]
    assert episode[0].command.tolist() == [0.0, 0.0, 0.0]  # there are no ticks


def test_depth_is_in_millimetres_and_zero_where_there_is_none(path):
    frame = next(episodes_of(Recording(path), 10))[0]
    assert frame.depth_mm.dtype == np.uint16
    assert frame.depth_mm.shape == (2, 3, 1)
    assert frame.depth_mm.ravel().tolist() == [1000, 500, 0, 0, 0, 65535]


def test_features_name_every_number(path):
    frame = next(episodes_of(Recording(path), 10))[0]
    features = features_of(frame, tuple(f"j{i}" for i in range(18)))
    assert set(features) == set(frame.values())
    for name, value in frame.values().items():
        assert features[name]["shape"] == value.shape
    names = features["observation.state"]["names"]
    assert len(set(names)) == STATE.size
    assert names[STATE.slices["joint_vel"].start + 2] == "joint_vel_j2"
    assert features["observation.images.depth"]["info"]["depth_unit"] == "mm"


def test_without_lerobot_the_way_to_it_is_named(path, tmp_path, capsys):
    assert importlib.util.find_spec("lerobot") is None
    assert main(["export-lerobot", str(path), str(tmp_path / "set")]) == 2
    assert "krabby export-lerobot --help" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("options", "said"), [(["--fps", "0"], "--fps 0: give 1 to 100"), ([], "exists already")]
)
def test_what_cannot_be_exported_is_refused(path, tmp_path, capsys, options, said):
    assert main(["export-lerobot", str(path), str(tmp_path), *options]) == 2
    assert said in capsys.readouterr().err
