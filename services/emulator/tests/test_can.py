"""Frames in, frames out: the drives' side of the buses, over virtual ones."""

import numpy as np
import pytest
from krabby.drivers.can import DriveFault, DriveMode
from krabby.drivers.can.can_io import frame_of
from krabby.drivers.can.codec import Command, Frame, Kind, Parameter, Request, Scale
from krabby.drivers.can.makes import drive_model
from krabby.drivers.can.robstride import RobStrideCodec

CODEC = RobStrideCodec()
RS04 = drive_model("robstride-rs04")
STEP = 8.0 * np.pi / 65535  # of the angle word


def commands(*ids, pos=0.0, vel=0.0, kp=0.0, kd=0.0, torque=0.0):
    every = np.ones(len(ids))
    command = Command(pos * every, vel * every, kp * every, kd * every, torque * every)
    numbers, data = CODEC.encode_commands(
        np.array(ids, np.uint32), Scale.of([RS04] * len(ids)), command
    )
    return [Frame(int(n), d.tobytes(), True) for n, d in zip(numbers, data, strict=True)]


def feedback(messages):
    """What some feedbacks say, in their order."""
    frames = [frame_of(message) for message in messages]
    ids = np.array([frame.arbitration_id for frame in frames], np.uint32)
    data = np.array([list(frame.data) for frame in frames], np.uint8)
    return CODEC.decode_feedbacks(Scale.of([RS04] * len(frames)), ids, data)


def enabled(rig, *ids, bus="front"):
    rig.send(bus, *(CODEC.request(Request(Kind.ENABLE, can_id)) for can_id in ids))
    rig.answers(bus)
    return rig


def test_each_command_is_answered_by_its_drive_with_the_newest_state(rig):
    enabled(rig, 11, 12)
    rig.bank.reported.pos[:2] = 0.25, -0.5
    rig.bank.reported.vel[:2] = 1.0, 2.0
    rig.bank.reported.effort[:2] = 30.0, -40.0
    rig.send("front", *commands(11, 12))
    messages = rig.answers()
    assert [m.arbitration_id >> 8 & 0xFF for m in messages] == [11, 12]
    said = feedback(messages)
    assert said.position == pytest.approx([0.25, -0.5], abs=STEP)
    assert said.velocity == pytest.approx([1.0, 2.0], abs=1e-3)
    assert said.torque == pytest.approx([30.0, -40.0], abs=4e-3)
    assert said.temperature_c == pytest.approx([25.0, 25.0])
    assert said.mode.tolist() == [DriveMode.RUN, DriveMode.RUN]
    assert said.faults.tolist() == [0, 0]


def test_the_words_of_a_command_become_the_law(rig):
    enabled(rig, 12)
    rig.send("front", *commands(12, pos=0.5, vel=1.0, kp=250.0, kd=10.0, torque=-7.0))
    rig.answers()
    law = rig.bank.law(np.zeros(18), np.zeros(18, bool))
    assert law.kp[1] == pytest.approx(250.0, abs=0.04)
    assert law.kd[1] == pytest.approx(10.0, abs=1e-3)
    assert law.target[1] == pytest.approx(0.5, abs=STEP)
    # kd · vel* + torque* = 10 - 7
    assert law.offset[1] == pytest.approx(3.0, abs=0.02)


def test_mounting_is_undone_on_the_way_in_and_on_the_way_out(mirrored):
    rig = enabled(mirrored, 11)
    # shaft = (joint - 0.3) · -2: 0.4 rad at the shaft are 0.1 rad at the joint; torque doubles and
    # turns its sign, gains are times four
    rig.send("front", *commands(11, pos=0.4, vel=1.0, kp=10.0, kd=2.0, torque=5.0))
    rig.answers()
    law = rig.bank.law(np.zeros(18), np.zeros(18, bool))
    assert law.target[0] == pytest.approx(0.1, abs=STEP)
    assert law.kp[0] == pytest.approx(40.0, abs=0.2)
    assert law.kd[0] == pytest.approx(8.0, abs=0.01)
    # 8 · -0.5 + 5 · -2
    assert law.offset[0] == pytest.approx(-14.0, abs=0.02)
    rig.bank.reported.pos[0] = 0.1
    rig.bank.reported.vel[0] = -0.5
    rig.bank.reported.effort[0] = -10.0
    rig.send("front", *commands(11))
    said = feedback(rig.answers())
    assert said.position == pytest.approx([0.4], abs=STEP)
    assert said.velocity == pytest.approx([1.0], abs=1e-3)
    assert said.torque == pytest.approx([5.0], abs=4e-3)


def test_a_drive_that_is_off_says_so_and_does_nothing(rig):
    rig.send("front", *commands(11, pos=0.5, kp=250.0))
    said = feedback(rig.answers())
    assert said.mode.tolist() == [DriveMode.OFF]
    assert rig.bank.law(np.zeros(18), np.zeros(18, bool)).kp[0] == 0.0


def test_switching_off_and_on_takes_effect_in_the_order_of_the_frames(rig):
    enabled(rig, 11)
    off = CODEC.request(Request(Kind.DISABLE, 11))
    rig.send("front", *commands(11, pos=0.5), off, *commands(11, pos=0.7))
    assert feedback(rig.answers()).mode.tolist() == [DriveMode.RUN, DriveMode.OFF, DriveMode.OFF]


def test_a_question_does_not_split_a_batch_and_is_answered_after_it(rig, monkeypatch):
    enabled(rig, 11, 12)
    passes = []
    command = rig.bank.command
    monkeypatch.setattr(
        rig.bank,
        "command",
        lambda joints, *rest: (passes.append(list(joints)), command(joints, *rest)),
    )
    asks = CODEC.request(Request(Kind.READ, 11, Parameter.VOLTAGE))
    rig.send("front", *commands(11), asks, *commands(12))
    *feedbacks, answer = rig.answers()
    assert passes == [[0, 1]]
    assert [m.arbitration_id >> 8 & 0xFF for m in feedbacks] == [11, 12]
    reply = CODEC.parse_reply(frame_of(answer))
    assert (reply.can_id, reply.parameter) == (11, Parameter.VOLTAGE)
    assert reply.value == pytest.approx(48.0)


def test_a_bus_carries_only_its_own_drives(rig):
    rig.send("middle", *commands(11, 21))
    assert [m.arbitration_id >> 8 & 0xFF for m in rig.answers("middle")] == [21]
    assert rig.heard("front") == []


def test_what_is_no_request_is_no_error(rig):
    rig.send(
        "front",
        Frame(0x7FF, b"\x00" * 8, False),
        Frame(0x1FFFFFFF, b"", True),
        *commands(99),
        *commands(12),
    )
    assert len(rig.answers()) == 1


@pytest.mark.parametrize(
    ("parameter", "value"), [(Parameter.CAN_TIMEOUT, 0.1), (Parameter.TORQUE_LIMIT, 35.0)]
)
def test_parameters_are_written_and_read_back(rig, parameter, value):
    rig.send("front", CODEC.request(Request(Kind.WRITE, 11, parameter, value)))
    feedback(rig.answers())
    rig.send("front", CODEC.request(Request(Kind.READ, 11, parameter)))
    (answer,) = rig.answers()
    reply = CODEC.parse_reply(frame_of(answer))
    assert reply.can_id == 11
    assert reply.value == pytest.approx(value)


def test_the_supply_can_be_read_and_what_there_is_not_is_refused(rig):
    rig.bank.supply_v = 44.5
    rig.send(
        "front",
        CODEC.request(Request(Kind.READ, 11, Parameter.VOLTAGE)),
        CODEC.request(Request(Kind.READ, 11, Parameter.OTHER, index=0x7099)),
    )
    voltage, other = (CODEC.parse_reply(frame_of(m)) for m in rig.answers())
    assert voltage.value == pytest.approx(44.5)
    assert np.isnan(other.value)


def test_a_geared_drive_limits_its_own_torque(mirrored):
    mirrored.send("front", CODEC.request(Request(Kind.WRITE, 11, Parameter.TORQUE_LIMIT, 20.0)))
    mirrored.answers()
    assert mirrored.bank.torque_limit[0] == pytest.approx(40.0)


def test_setting_zero_moves_what_is_said_not_what_is(rig):
    rig.bank.reported.pos[0] = 0.4
    rig.send("front", CODEC.request(Request(Kind.SET_ZERO, 11)), *commands(11))
    assert feedback(rig.answers()).position == pytest.approx([0.0, 0.0], abs=STEP)
    assert rig.bank.reported.pos[0] == 0.4


def test_silence_ends_in_damping_and_the_next_reply_says_off(rig, clock):
    enabled(rig, 11)
    rig.send("front", CODEC.request(Request(Kind.WRITE, 11, Parameter.CAN_TIMEOUT, 0.1)))
    rig.send("front", *commands(11, pos=0.5, kp=250.0, kd=10.0))
    rig.answers()
    clock.advance(0.1)
    rig.bank.protect(clock.now_ns)
    assert rig.bank.mode[0] == DriveMode.RUN
    clock.advance(0.001)
    rig.bank.protect(clock.now_ns)
    law = rig.bank.law(np.zeros(18), np.zeros(18, bool))
    assert (law.kp[0], law.kd[0]) == (0.0, 10.0)
    rig.send("front", *commands(11))
    assert feedback(rig.answers()).mode.tolist() == [DriveMode.OFF]


def test_a_hot_drive_reports_it_and_comes_back_when_it_is_cleared(rig):
    enabled(rig, 11)
    rig.bank.winding_c[0] = 140.0
    rig.bank.protect(0)
    rig.send("front", *commands(11))
    said = feedback(rig.answers())
    assert said.mode.tolist() == [DriveMode.OFF]
    assert said.faults.tolist() == [DriveFault.OVER_TEMPERATURE]
    assert said.temperature_c == pytest.approx([140.0])
    enabled(rig, 11)
    assert rig.bank.mode[0] == DriveMode.OFF
    rig.bank.winding_c[0] = 50.0
    rig.send("front", CODEC.request(Request(Kind.CLEAR_FAULTS, 11)))
    rig.answers()
    enabled(rig, 11)
    assert rig.bank.mode[0] == DriveMode.RUN


def test_a_drive_wakes_up_knowing_its_angle_within_a_turn(rig):
    rig.bank.reported.pos[0] = -0.5
    rig.bank.reboot(0, 0)
    rig.bank.ready_ns[0] = 0
    rig.send("front", *commands(11, pos=0.0))
    # 2 pi - 0.5; and what it is told means the same turn
    assert feedback(rig.answers()).position == pytest.approx([2 * np.pi - 0.5], abs=STEP)
    assert rig.bank.target_pos[0] == pytest.approx(-2 * np.pi, abs=STEP)
    rig.send("front", CODEC.request(Request(Kind.WRITE, 11, Parameter.ZERO_RANGE, 1.0)))
    rig.answers()
    rig.bank.reboot(0, 0)
    rig.bank.ready_ns[0] = 0
    rig.send("front", *commands(11))
    assert feedback(rig.answers()).position == pytest.approx([-0.5], abs=STEP)


# --- faults ------------------------------------------------------------------------------------


def test_lost_replies_are_lost_but_the_drive_heard(rig):
    enabled(rig, 11, 12)
    rig.board.inject("lost-replies", 0, joint="lf_hip_yaw")
    rig.send("front", *commands(11, 12, pos=0.5, kp=250.0))
    assert [m.arbitration_id >> 8 & 0xFF for m in rig.answers()] == [12]
    assert rig.bank.target_pos[0] == pytest.approx(0.5, abs=STEP)


def test_a_third_of_the_replies_is_lost_when_a_third_is_asked_for(rig):
    rig.board.inject("lost-replies", 0, joint="lf_hip_yaw", value=1 / 3)
    for _ in range(30):
        rig.send("front", *commands(*[11] * 20))
        rig.answers()
    assert rig.side.totals()["front"]["lost"] == pytest.approx(200, abs=35)


def test_late_replies_leave_when_their_time_has_come(rig, clock):
    rig.board.inject("late-replies", clock.now_ns, joint="lf_hip_yaw", value=0.02)
    rig.send("front", *commands(11, 12))
    assert [m.arbitration_id >> 8 & 0xFF for m in rig.answers()] == [12]
    clock.advance(0.0199)
    assert rig.answers() == []
    clock.advance(0.0001)
    assert [m.arbitration_id >> 8 & 0xFF for m in rig.answers()] == [11]


def test_bus_off_is_told_once_and_then_nothing_passes(rig, clock):
    enabled(rig, 11)
    rig.board.inject("bus-off", clock.now_ns, bus="front", for_s=0.1)
    (told,) = rig.answers()
    assert told.is_error_frame
    assert told.arbitration_id == 0x40
    rig.send("front", *commands(11, pos=0.5, kp=250.0))
    rig.send("rear", *commands(31))
    assert len(rig.answers("rear")) == 1
    assert rig.heard("front") == []
    assert rig.bank.kp[0] == 0.0
    clock.advance(0.1)
    rig.board.refresh(clock.now_ns)
    rig.send("front", *commands(11))
    assert len(rig.answers()) == 1


def test_a_drive_that_reboots_is_deaf_and_mute_for_a_quarter_of_a_second(rig, clock):
    enabled(rig, 11)
    rig.bank.reboot(0, clock.now_ns)
    clock.advance(0.2499)
    rig.send("front", *commands(11))
    assert rig.answers() == []
    clock.advance(0.0001)
    rig.send("front", *commands(11))
    assert feedback(rig.answers()).mode.tolist() == [DriveMode.OFF]


def test_a_twin_hears_and_answers_what_its_joints_drive_does(rig):
    enabled(rig, 11, 12)
    rig.bank.reported.pos[:2] = 0.25, -0.5
    rig.board.inject("twin", 0, joint="lf_hip_pitch", value=0.4)
    rig.send("front", *commands(11, 12))
    messages = rig.answers()
    assert [m.arbitration_id >> 8 & 0xFF for m in messages] == [11, 12, 12]
    said = feedback(messages)
    assert said.position == pytest.approx([0.25, -0.5, -0.1], abs=STEP)
    assert said.mode.tolist() == [DriveMode.RUN, DriveMode.RUN, DriveMode.OFF]
    # Switched on it follows: 0.05 rad with every command, and reads are answered twice too.
    enabled(rig, 12)
    asks = CODEC.request(Request(Kind.READ, 12, Parameter.VOLTAGE))
    rig.send("front", *commands(12, pos=0.3, kp=250.0), asks)
    first, voltage, second, again = rig.answers()
    assert feedback([first, second]).position == pytest.approx([-0.5, -0.05], abs=STEP)
    assert CODEC.parse_reply(frame_of(voltage)) == CODEC.parse_reply(frame_of(again))
    rig.board.clear("twin")
    rig.send("front", *commands(12))
    assert len(rig.answers()) == 1
