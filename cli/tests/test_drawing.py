"""What the field's readers make of a recording."""

from collections import Counter

import numpy as np
import pytest
from krabby.course.courses import make_course
from krabby.hal.jpeg import from_jpeg, to_jpeg
from krabby.robot.description import RobotDescription
from krabby.robot.kinematics import foot_positions
from krabby.robot.rotations import rotate
from krabby_cli.drawing import Drawing
from krabby_proto import (
    CAMERA,
    COLOUR,
    COMMAND,
    FLAG_HOLD,
    STATE,
    TRACE,
    TRUTH,
    CommandReply,
    Exchange,
    ExchangeKind,
    RawMessage,
    encode,
    pack,
    unpack,
)
from krabby_proto.recording import Recorder, Recording
from krabby_proto.testing import resting_state
from mcap.reader import make_reader
from mcap_protobuf.decoder import DecoderFactory

PERIOD_NS = 10_000_000
CAMERA_MODEL = {
    "width": 8,
    "height": 6,
    "hfov_rad": np.pi / 2,
    "mount_xyz": [0.3, 0.0, 0.1],
    "mount_pitch_rad": 0.5,
}


@pytest.fixture(scope="module")
def desc():
    return RobotDescription.load()


def raw(stream, payload, n):
    stamp = PERIOD_NS * n
    frames = encode(
        stream, payload, instance_id=5, sequence=n, capture_ns=stamp - 500, publish_ns=stamp
    )
    return RawMessage(stream, frames[1], frames[2])


def state_of(desc, n):
    fields = unpack(STATE, resting_state().copy())
    angles = desc.default_joint_pos + 0.1 * np.sin(np.arange(18) + 0.1 * n)
    return pack(STATE, **{**fields, "joint_pos": angles})


def exchange(n):
    """A command; from the 50th on a hold, with the measured pose."""
    hold = n >= 50
    frames = encode(
        COMMAND,
        np.full(18, 0.5 if hold else 0.25),
        instance_id=9,
        sequence=n,
        capture_ns=1,
        publish_ns=1,
        flags=FLAG_HOLD if hold else 0,
    )
    reply = CommandReply.pack(
        0,
        safety_state=2,
        fault_bits=0,
        position_clamp_mask=0,
        rate_clamp_mask=0,
        request_sequence=n,
        applied_sequence=n,
        applied_ns=1,
        server_ns=1,
    )
    return Exchange.of_frames(ExchangeKind.COMMAND, 1, frames, reply).pack()


def picture(n):
    """One that differs from all others."""
    return np.full((24, 32, 3), n, np.uint8)


@pytest.fixture(scope="module")
def path(desc, tmp_path_factory):
    """A second at 100 Hz, images at 30 Hz, an e-stop at the end."""
    path = tmp_path_factory.mktemp("drawn") / "run.mcap"
    course = make_course("steps", 0.4, 3)
    hello = {
        "service": "sim-hal",
        "robot": desc.identity,
        "camera": CAMERA_MODEL,
        "extra": {
            "course": {
                "name": "steps",
                "difficulty": 0.4,
                "seed": 3,
                "hash": course.content_hash,
            }
        },
    }
    with Recorder(path) as recorder:
        drawing = Drawing(recorder, desc)
        drawing.take_hello("hal", hello, PERIOD_NS)
        for n in range(1, 101):
            truth = np.zeros(TRUTH.size)
            truth[:3], truth[6] = (0.01 * n, 0.5, 0.3), 1.0
            messages = [raw(TRUTH, truth, n), raw(STATE, state_of(desc, n), n)]
            messages.append(raw(TRACE, exchange(n), n))
            if n % 3 == 0:
                depth = np.linspace(0.0, 4.0, 48)
                messages.append(raw(CAMERA, depth, n))
            if n % 20 == 0:
                messages.append(raw(COLOUR, to_jpeg(picture(n)), n))
            for message in messages:
                recorder.write_raw(message)
                drawing.take(message)
        stop = Exchange(
            ExchangeKind.SAFETY, 1, b'{"op": "estop", "by": "anna"}', b'{"ok": true}'
        ).pack()
        drawing.take(raw(TRACE, stop, 101))
        drawing.take(raw(TRACE, Exchange.of_gate(1, 5, 1 << 6).pack(), 102))
    return path


@pytest.fixture(scope="module")
def drawn(path):
    """Messages by topic, decoded by the schemas in the file alone."""
    found = {}
    with path.open("rb") as file:
        reader = make_reader(file, decoder_factories=[DecoderFactory()])
        topics = [
            channel.topic
            for channel in reader.get_summary().channels.values()
            if channel.message_encoding == "protobuf"
        ]
        for schema, channel, record, message in reader.iter_decoded_messages(topics=topics):
            assert schema.encoding == "protobuf"
            assert schema.name.startswith("foxglove.")
            found.setdefault(channel.topic, []).append((record.log_time, message))
    return found


def test_every_topic_is_there_at_its_rate(drawn):
    counts = {topic: len(messages) for topic, messages in drawn.items()}
    rates = {"/joint_states": 25, "/joint_targets": 25, "/tf": 25, "/camera/depth": 10}
    assert counts.pop("/camera/colour") == 5  # as they came
    for topic, rate in rates.items():
        assert counts.pop(topic) == pytest.approx(rate, abs=1), topic
    assert counts == {"/camera/calibration": 1, "/course": 1, "/log": 4}


def test_joints_are_those_of_the_state(drawn, desc):
    log_ns, states = drawn["/joint_states"][3]
    state = unpack(STATE, state_of(desc, log_ns // PERIOD_NS))
    assert [joint.name for joint in states.joints] == list(desc.joint_names)
    assert np.array_equal([j.position for j in states.joints], state["joint_pos"])
    assert np.array_equal([j.effort for j in states.joints], state["joint_effort"])
    assert states.timestamp.ToNanoseconds() == log_ns - 500
    for _, targets in drawn["/joint_targets"]:  # a hold keeps those of the last command
        assert [joint.position for joint in targets.joints] == [0.25] * 18


def test_frames_put_the_feet_where_the_kinematics_have_them(drawn, desc):
    log_ns, frames = drawn["/tf"][5]
    n = log_ns // PERIOD_NS
    place = {}
    for frame in frames.transforms:
        at, turn = frame.translation, frame.rotation
        place[frame.child_frame_id] = (
            frame.parent_frame_id,
            np.array([at.x, at.y, at.z]),
            np.array([turn.x, turn.y, turn.z, turn.w]),
        )
    assert place["base"][0] == "world"
    assert place["base"][1] == pytest.approx([0.01 * n, 0.5, 0.3], abs=1e-6)
    joint_pos = unpack(STATE, state_of(desc, n))["joint_pos"]
    expected = foot_positions(desc, joint_pos)
    for leg, foot in zip(desc.leg_names, expected, strict=True):
        point, frame = np.zeros(3), f"{leg}_foot"
        while frame != "base":
            parent, at, turn = place[frame]
            point, frame = at + rotate(turn, point), parent
        assert point == pytest.approx(foot, abs=1e-6)


def test_the_camera_looks_ahead_and_down(drawn):
    _, frames = drawn["/tf"][0]
    (camera,) = [f for f in frames.transforms if f.child_frame_id == "camera_optical"]
    turn = np.array([getattr(camera.rotation, axis) for axis in "xyzw"])
    ahead = rotate(turn, np.array([0.0, 0.0, 1.0]))
    assert ahead == pytest.approx([np.cos(0.5), 0.0, -np.sin(0.5)])
    assert rotate(turn, np.array([0.0, 1.0, 0.0]))[2] < 0  # rows go down
    (_, calibration) = drawn["/camera/calibration"][0]
    assert list(calibration.K) == pytest.approx([4, 0, 4, 0, 4, 3, 0, 0, 1])  # 90 degrees


def test_depth_is_in_millimetres(drawn):
    _, image = drawn["/camera/depth"][0]
    assert (image.width, image.height, image.encoding, image.step) == (8, 6, "16UC1", 16)
    expected = (np.linspace(0.0, 4.0, 48).astype(np.float32) * 1e3).astype("<u2")
    assert np.array_equal(np.frombuffer(image.data, "<u2"), expected)


def test_colour_is_the_jpeg_as_it_came(drawn):
    log_ns, image = drawn["/camera/colour"][1]
    assert (image.format, image.frame_id) == ("jpeg", "camera_optical")
    assert image.data == to_jpeg(picture(40))
    assert image.timestamp.ToNanoseconds() == log_ns - 500
    assert from_jpeg(image.data).shape == (24, 32, 3)


def test_the_course_is_its_boxes(drawn):
    (_, scene) = drawn["/course"][0]
    boxes = make_course("steps", 0.4, 3).boxes
    (entity,) = scene.entities
    sizes = [(c.size.x, c.size.y, c.size.z) for c in entity.cubes]
    assert sizes == [tuple(2.0 * half for half in box.half_extents) for box in boxes]


def test_what_happened_is_in_words(drawn):
    lines = [(message.name, message.message) for _, message in drawn["/log"]]
    assert lines == [
        ("krabby", "hal is sim-hal"),
        ("gate", "gate active"),
        ("safety", "estop by anna"),
        ("gate", "gate estop, estop"),
    ]


def test_raw_streams_stand_beside_it(path):
    counts = Counter(message.stream.name for message in Recording(path))
    assert counts == {"state": 100, "truth": 100, "trace": 100, "camera": 33, "colour": 5}


def test_a_course_of_another_version_is_not_drawn(tmp_path, desc):
    path = tmp_path / "a.mcap"
    course = {"name": "steps", "difficulty": 0.4, "seed": 3, "hash": "of another version"}
    with Recorder(path) as recorder:
        drawing = Drawing(recorder, desc)
        drawing.take_hello("hal", {"robot": {"hash": "?"}, "extra": {"course": course}}, 1)
    with path.open("rb") as file:
        reader = make_reader(file, decoder_factories=[DecoderFactory()])
        lines = [message.message for *_, message in reader.iter_decoded_messages()]
    assert lines[1].startswith("not the robot crab_hex")
    assert lines[2].startswith("the course is not drawn: this version makes another one")


def test_a_damaged_message_is_not_drawn(tmp_path, desc):
    with Recorder(tmp_path / "a.mcap") as recorder:
        drawing = Drawing(recorder, desc)
        whole = raw(STATE, resting_state(), 1)
        drawing.take(whole._replace(payload=whole.payload[:-4]))
        drawing.take(raw(TRACE, b"x", 2))
        assert recorder.messages == 0
