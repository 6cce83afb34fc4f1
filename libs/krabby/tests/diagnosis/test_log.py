"""Recorded messages as arrays, and findings of hand-made logs."""

import math

import numpy as np
import pytest
from krabby.diagnosis.diagnose import diagnose
from krabby.diagnosis.findings import REMEDIES, Finding
from krabby.diagnosis.log import Commands, LogError, RunLog
from krabby.robot import rotations
from krabby.robot.description import RobotDescription
from krabby_proto import (
    CAMERA,
    COMMAND,
    FLAG_HOLD,
    FLAG_RESET,
    STATE,
    TRACE,
    CommandReply,
    SafetyState,
)
from krabby_proto.codec import decode, encode
from krabby_proto.exchanges import Exchange, ExchangeKind
from krabby_proto.states import CommandStatus

DESC = RobotDescription.load()


def state(number, *, period_ms=10, flags=0, **fields):
    payload = np.zeros(STATE.size)
    payload[STATE.slices["base_quat_w"]] = rotations.IDENTITY
    payload[STATE.slices["base_lin_acc_b"]] = (0.0, 0.0, 9.81)
    payload[STATE.slices["joint_pos"]] = DESC.default_joint_pos
    for name, value in fields.items():
        payload[STATE.slices[name]] = value
    stamp_ns = 5_000_000_000 + number * period_ms * 1_000_000
    frames = encode(
        STATE, payload, instance_id=7, sequence=number + 1, capture_ns=stamp_ns,
        publish_ns=stamp_ns, flags=flags,
    )  # fmt: skip
    return decode(frames)


def turning(degrees=False):
    """Two seconds of a base that sways about x by 0.3 sin(6 t) rad."""
    for i in range(200):
        t = 0.01 * i
        rate = 1.8 * math.cos(6.0 * t) * (180.0 / math.pi if degrees else 1.0)
        quat = rotations.from_euler(0.3 * math.sin(6.0 * t), 0.0, 0.0)
        acc = 9.81 * rotations.rotate_inverse(quat, (0.0, 0.0, 1.0))
        yield state(i, base_quat_w=quat, base_ang_vel_b=(rate, 0.0, 0.0), base_lin_acc_b=acc)


def test_times_begin_at_the_first_state_and_200_hz_are_thinned_to_100():
    log = RunLog.read([state(i, period_ms=5) for i in range(101)])
    assert log.time_s[:3] == pytest.approx([0.0, 0.01, 0.02])
    assert (len(log.time_s), log.states, log.missed) == (51, 101, 0)


def test_a_hal_at_200_hz_whose_states_come_early_and_late_is_fast_enough():
    times_ms = [5 * i + (0, 1, 0, -1)[i % 4] for i in range(400)]
    log = RunLog.read([state(t, period_ms=1) for t in times_ms])
    assert not [each for each in diagnose(log, DESC).findings if each.kind == "rate"]
    assert len(log.time_s) == 200


def test_a_hal_at_50_hz_is_too_slow():
    log = RunLog.read([state(i, period_ms=20) for i in range(100)])
    assert [each.kind for each in diagnose(log, DESC).findings] == ["rate"]


def picture(sequence, stamp_ms):
    stamp_ns = 5_000_000_000 + stamp_ms * 1_000_000
    depth = np.zeros(DESC.camera.width * DESC.camera.height)
    return decode(encode(
        CAMERA, depth, instance_id=8, sequence=sequence, capture_ns=stamp_ns,
        publish_ns=stamp_ns,
    ))  # fmt: skip


@pytest.mark.parametrize(
    ("every", "found"),
    [(1, ["camera-rate"]), (3, [])],  # a slow camera; a black box keeps every third picture
)
def test_ten_pictures_a_second_are_too_few_where_the_camera_gave_no_more(every, found):
    pictures = [picture(1 + every * i, 100 * i) for i in range(40)]
    log = RunLog.read([*(state(i) for i in range(400)), *pictures])
    # 40 pictures in 3.9 s, 30 a second are described
    assert (len(log.frames.time_s), log.frames.published) == (40, 1 + 39 * every)
    assert [each.kind for each in diagnose(log, DESC).findings] == found


def test_missing_states_are_counted_and_not_differentiated_across():
    numbers = [*range(20), *range(30, 50)]
    log = RunLog.read([state(i) for i in numbers])
    assert log.missed == 10
    assert not log.joined[20]
    assert np.isnan(log.rate_of(log.joint_pos)[20]).all()
    assert (log.rate_of(log.joint_pos)[21] == 0.0).all()


def test_a_respawned_robot_is_not_differentiated_across():
    log = RunLog.read([state(i, flags=FLAG_RESET if i == 10 else 0) for i in range(40)])
    assert np.flatnonzero(~log.joined).tolist() == [0, 10]


def test_a_recording_without_states_is_refused_with_what_to_record():
    with pytest.raises(LogError, match="has 3 states"):
        RunLog.read([state(i) for i in range(3)])


def test_the_rate_limit_of_the_gate_is_applied_to_targets():
    log = RunLog.read([state(i) for i in range(40)])
    far = DESC.default_joint_pos + 0.5
    commands = Commands(
        handled_s=np.array([0.0, 0.01, 0.02]),
        target=np.stack([far] * 3),
        applied=np.ones(3, bool),
        hold=np.zeros(3, bool),
    )
    moved = commands.let_through(log, DESC) - DESC.default_joint_pos
    # 12 rad/s: nothing at first, then 0.12 rad in each 10 ms
    assert moved[:, 0] == pytest.approx([0.0, 0.12, 0.24])


def answered(number, status, gate, target, flags=0):
    """A command at every 10 ms, its answer as the HAL records it."""
    stamp_ns = 5_000_000_000 + number * 10_000_000
    frames = encode(
        COMMAND, target, instance_id=9, sequence=number + 1, capture_ns=stamp_ns,
        publish_ns=stamp_ns, flags=flags,
    )  # fmt: skip
    reply = CommandReply.pack(
        status, safety_state=gate, fault_bits=0, position_clamp_mask=0, rate_clamp_mask=0,
        request_sequence=number + 1, applied_sequence=0, applied_ns=0, server_ns=stamp_ns,
    )  # fmt: skip
    record = Exchange.of_frames(ExchangeKind.COMMAND, stamp_ns, frames, reply).pack()
    return decode(encode(
        TRACE, record, instance_id=1, sequence=number + 1, capture_ns=stamp_ns,
        publish_ns=stamp_ns,
    ))  # fmt: skip


def test_a_hold_keeps_the_gate_s_target_and_not_what_the_command_carries():
    there, pose = DESC.default_joint_pos + 0.1, DESC.default_joint_pos
    active, damp = SafetyState.ACTIVE, SafetyState.DAMP
    status = CommandStatus
    # States were lost: the gate holds, and the loop sends the pose that it measures again.
    trace = [
        answered(0, status.APPLIED, active, pose),
        answered(1, status.APPLIED, active, there),
        answered(2, status.HELD, SafetyState.HOLD, pose),
        answered(3, status.APPLIED, active, pose, FLAG_HOLD),
        answered(4, status.APPLIED, active, there),
        answered(5, status.REJECTED_SAFETY, damp, pose),
        answered(6, status.APPLIED, active, pose, FLAG_HOLD),
    ]
    log = RunLog.read([*(state(i) for i in range(40)), *trace])
    moved = (log.commands.let_through(log, DESC) - pose)[:, 0]
    # 12 rad/s let 0.1 rad through in 10 ms; after the damping it begins from the measured pose
    assert moved == pytest.approx([0.0, 0.1, np.nan, 0.1, 0.1, np.nan, 0.0], nan_ok=True, abs=1e-6)


def test_a_sound_gyro_gives_no_finding():
    assert diagnose(RunLog.read(turning()), DESC).findings == ()


def test_a_gyro_in_degrees_is_found_first():
    first = diagnose(RunLog.read(turning(degrees=True)), DESC).findings[0]
    assert (first.kind, first.term) == ("degrees", "base_ang_vel_b")
    assert "57.3" in first.evidence


def test_an_accelerometer_that_reads_gravity_is_found():
    log = RunLog.read(state(i, base_lin_acc_b=(0.0, 0.0, -9.81)) for i in range(60))
    first = diagnose(log, DESC).findings[0]
    assert (first.kind, first.term) == ("gravity-flipped", "base_lin_acc_b")


def test_a_robot_that_shook_and_fell_has_two_ups_and_one_attitude():
    side = rotations.from_euler(2.2, 0.0, 0.0)
    # 37 degrees to either side while it stands, in turns: none in the median
    shaken = [state(i, base_lin_acc_b=(0.0, 5.886 * (-1) ** i, 7.848)) for i in range(102)]
    lying = 9.81 * rotations.rotate_inverse(side, (0.0, 0.0, 1.0))
    fallen = [state(i, base_quat_w=side, base_lin_acc_b=lying) for i in range(102, 200)]
    findings = diagnose(RunLog.read([*shaken, *fallen]), DESC).findings
    assert "attitude-frame" not in [each.kind for each in findings]


def test_a_knee_measured_on_the_wrong_side_is_found_in_a_robot_that_lies():
    from krabby.safety.trajectories import rest_joint_pos

    pos = rest_joint_pos(DESC)
    knee = DESC.joint_names.index("rr_knee")
    pos[knee] *= -1.0
    diagnosis = diagnose(RunLog.read(state(i, joint_pos=pos) for i in range(60)), DESC)
    assert (diagnosis.findings[0].kind, diagnosis.findings[0].where) == ("joint-sign", ("rr_knee",))
    assert any("never followed" in note for note in diagnosis.notes)


def test_what_could_not_be_checked_is_said():
    notes = " ".join(diagnose(RunLog.read(turning()), DESC).notes)
    assert "no commands" in notes
    assert "no depth pictures" in notes


@pytest.mark.parametrize("kind", REMEDIES)
def test_a_finding_has_a_remedy(kind):
    finding = Finding(kind=kind, score=math.inf, evidence="e")
    assert len(finding.remedy) > 20
    assert finding.to_dict()["score"] == 1e6
