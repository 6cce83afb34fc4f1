"""A recording in the cockpit: frames, time line, what is said of a damaged file."""

import struct

import numpy as np
import pytest
from krabby.course.courses import make_course
from krabby.robot.description import RobotDescription
from krabby.robot.kinematics import foot_positions, leg_ik, standing_height
from krabby_cli.errors import CliError
from krabby_cli.status import FAULT_WORDS, fault_words
from krabby_cli.view.frames import (
    COLOUR_FRAME,
    DEPTH_FRAME,
    FLAG_TRUTH,
    STATE_FIELDS,
    STATE_FRAME,
    Poser,
)
from krabby_cli.view.replay import Player, ReplaySource
from krabby_cli.view.scene import load_robot
from krabby_proto import CAMERA, COLOUR, FAULT_BITS, STATE, TRUTH, decode, encode, pack
from krabby_proto.recording import Recorder

DESC = RobotDescription.load()
SECOND_NS = 1_000_000_000
OFFSETS = {}
for _name, _size in STATE_FIELDS:
    OFFSETS[_name] = (sum(size for _, size in OFFSETS.values()), _size)


def message(stream, payload, capture_ns):
    """Published 2 ms after its capture."""
    stamps = {"capture_ns": capture_ns, "publish_ns": capture_ns + 2_000_000}
    return decode(encode(stream, payload, instance_id=7, sequence=1, **stamps))


def state_at(capture_ns, joint_pos=None, contact=1.0):
    joints = DESC.default_joint_pos if joint_pos is None else joint_pos
    payload = pack(
        STATE, base_quat_w=[0, 0, 0, 1], base_ang_vel_b=[0, 0, 0], base_lin_acc_b=[0, 0, 9.81],
        joint_pos=joints, joint_vel=np.zeros(18), joint_effort=np.arange(18),
        foot_contact=[contact] * 6,
    )  # fmt: skip
    return message(STATE, payload, capture_ns)


def truth_at(capture_ns, x, falls=0):
    payload = pack(
        TRUTH, base_pos_w=[x, 0, 0.3], base_quat_w=[0, 0, 0.70710678, 0.70710678],
        base_lin_vel_w=[0.0, 0.4, 0.0], base_ang_vel_b=[0, 0, 0.25], waypoint_index=[2],
        waypoint_count=[8], distance=[x], falls=[falls], feet_on_edge=[0],
        sim_time=[0], reset_count=[0],
    )  # fmt: skip
    return message(TRUTH, payload, capture_ns)


def fields_of(frame):
    values = struct.unpack(f"<{(len(frame) - 16) // 4}f", frame[16:])
    return {name: values[at : at + size] for name, (at, size) in OFFSETS.items()}


@pytest.fixture
def recording(tmp_path):
    """Four seconds at 100 Hz, 0.1 m/s along x, depth at 30 Hz, colour at 5 Hz, a fall at 3 s."""
    path = tmp_path / "run.mcap"
    with Recorder(path) as recorder:
        for i in range(401):
            now_ns = SECOND_NS + i * SECOND_NS // 100
            recorder.write(truth_at(now_ns, 0.001 * i, falls=int(i >= 300)))
            if i % 3 == 0:
                recorder.write(message(CAMERA, np.full(106 * 60, 2.0), now_ns))
            if i % 20 == 0:
                recorder.write(message(COLOUR, b"image %d" % i, now_ns))
            recorder.write(state_at(now_ns))
    return path


def test_a_recording_becomes_frames_at_the_rates_of_the_page(recording):
    source = ReplaySource(recording, make_course("steps", 0.3, 5), DESC)
    assert source.length_s == pytest.approx(4.0, abs=0.05)
    assert 100 <= len(source.states) <= 135  # of 401: 33 a second at most
    assert 32 <= len(source.depths) <= 43  # of 134: 10 a second at most
    robot, course, line = source.scene
    assert (robot["name"], course["name"]) == ("crab_hex", "steps")
    assert line["length_s"] == pytest.approx(source.length_s, abs=1e-3)
    (mark,) = source.marks
    assert mark == (pytest.approx(3.0, abs=0.05), "fell")
    assert source.problem == ""


def test_a_recorded_state_has_truths_pose_and_the_speed_in_the_robots_heading(recording):
    """The robot looks along y of the world (90 degrees) and moves 0.4 m/s along y: forward."""
    source = ReplaySource(recording, None, DESC)
    frame = source.states[-1]
    assert (frame[0], frame[1] & FLAG_TRUTH) == (STATE_FRAME, FLAG_TRUTH)
    fields = fields_of(frame)
    assert fields["base_pos"] == pytest.approx((source.state_times[-1] * 0.1, 0.0, 0.3), abs=2e-3)
    assert fields["walked"] == pytest.approx((0.4, 0.0, 0.25), abs=1e-5)
    assert fields["joint_effort"] == tuple(range(18))
    assert fields["ages_ms"][0] == pytest.approx(2.0, abs=1e-3)  # published 2 ms after capture
    assert fields["course"][1:3] == (2.0, 1.0)
    assert source.depths[0][0] == DEPTH_FRAME
    assert source.colours[1][0] == COLOUR_FRAME
    assert source.colours[1][16:] == b"image 40"  # what came before the first state is left out
    assert source.colour_times == pytest.approx([0.2 * n for n in range(1, 21)], abs=1e-6)


def test_colour_images_are_kept_up_to_a_limit(recording, monkeypatch):
    monkeypatch.setattr("krabby_cli.view.replay._COLOUR_BYTES", 30)  # 8 bytes each
    source = ReplaySource(recording, None, DESC)
    assert len(source.colours) == len(source.colour_times) == 3
    assert "colour images after 0.6 s" in source.problem


def test_play_pause_seek_and_speed(recording):
    source = ReplaySource(recording, None, DESC)
    player = Player(source)
    assert player.advance(0.0)  # what is there at 0 s
    for _ in range(30):
        player.advance(1 / 30)
    assert player.at_s == pytest.approx(1.0)
    player.control(None, 2.0, None)
    player.advance(0.5)
    assert player.at_s == pytest.approx(2.0)
    player.control(False, None, None)
    assert player.advance(1.0) == []
    player.control(None, None, 0.5)
    shown = player.advance(0.0)
    assert struct.unpack_from("<d", shown[0], 8)[0] == pytest.approx(0.5, abs=0.04)


def test_the_end_pauses_and_play_begins_again(recording):
    player = Player(ReplaySource(recording, None, DESC))
    player.advance(100.0)
    assert (player.playing, player.at_s) == (False, player.source.length_s)
    player.control(True, None, None)
    assert (player.playing, player.at_s) == (True, 0.0)


def test_a_time_beyond_the_file_is_its_end(recording):
    player = Player(ReplaySource(recording, None, DESC))
    player.control(None, None, 99.0)
    assert player.at_s == player.source.length_s


def test_a_recording_that_was_cut_off_shows_what_is_there_and_says_so(recording, capsys):
    content = recording.read_bytes()
    recording.write_bytes(content[: len(content) * 2 // 3])
    source = ReplaySource(recording, None, DESC)
    assert 0 < source.length_s < 4
    assert "not complete" in source.problem
    assert "not complete" in capsys.readouterr().err


def test_a_recording_without_states_is_refused(tmp_path):
    path = tmp_path / "run.mcap"
    with Recorder(path) as recorder:
        recorder.write(truth_at(SECOND_NS, 0.0))
    with pytest.raises(CliError, match="no stream 'state'"):
        ReplaySource(path, None, DESC)


def test_without_truth_the_legs_tell_height_and_speed():
    """Feet that stand move backward by 3 mm in 30 ms: the base moves forward at 0.1 m/s."""
    poser = Poser(DESC)
    joints = np.array(DESC.default_joint_pos)
    first = fields_of(poser.frame(0.0, state_at(0), None, (np.nan,) * 3, False))
    assert first["base_pos"] == pytest.approx((0.0, 0.0, standing_height(DESC)), abs=1e-4)
    feet = foot_positions(DESC, joints)
    for i in range(1, 41):
        moved = leg_ik(DESC, feet - np.array([0.003 * i, 0.0, 0.0]))
        frame = poser.frame(0.03 * i, state_at(i * 30_000_000, moved), None, (np.nan,) * 3, False)
    fields = fields_of(frame)
    assert fields["base_pos"][0] == pytest.approx(0.12, abs=2e-3)
    assert fields["walked"][:2] == pytest.approx((0.1, 0.0), abs=2e-3)
    assert np.isnan(fields["course"]).all()


def test_every_fault_has_words():
    assert set(FAULT_WORDS) == set(FAULT_BITS)
    assert fault_words(["tilt", "bit_14"]) == [FAULT_WORDS["tilt"], "bit_14"]


@pytest.mark.parametrize("name", ["crab_hex", "crab_hex_rs"])
def test_both_robots_can_be_drawn(name):
    assert load_robot(name).name == name
