"""Frames of both makes: golden bytes, round trips, and no frame that breaks a decoder.

The only frame that the RobStride manual works out in full is its read example; the others are
worked by hand from the manuals' tables, the sum beside each.
"""

import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from krabby.drivers.can.codec import (
    Command,
    Feedback,
    Frame,
    Kind,
    Parameter,
    Reply,
    Request,
    Scale,
    to_word,
)
from krabby.drivers.can.damiao import DamiaoCodec
from krabby.drivers.can.makes import MODELS, drive_model
from krabby.drivers.can.robstride import RobStrideCodec
from krabby.drivers.can.types import DriveFault, DriveMode
from krabby.drivers.errors import DriveError, HardwareError

ROBSTRIDE, DAMIAO = RobStrideCodec(), DamiaoCodec()
CODECS = {"robstride": ROBSTRIDE, "damiao": DAMIAO}
RS04, J8009P = drive_model("robstride-rs04"), drive_model("damiao-j8009p")


def arrays(kind, *values):
    return kind(*(np.array([value], np.float64) for value in values))


def command(codec, model, can_id, *values):
    ids, data = codec.encode_commands(
        np.array([can_id], np.uint32), Scale.of([model]), arrays(Command, *values)
    )
    return int(ids[0]), data[0].tobytes()


def feedback(codec, model, can_id, position, velocity, torque, temperature, mode, faults):
    values = Feedback(
        *(np.array([v], np.float64) for v in (position, velocity, torque, temperature)),
        np.array([mode], np.uint8),
        np.array([faults], np.uint32),
    )
    ids, data = codec.encode_feedbacks(np.array([can_id], np.uint32), Scale.of([model]), values)
    return int(ids[0]), data[0].tobytes()


# --- golden frames -----------------------------------------------------------------------------


def test_the_read_example_of_the_robstride_manual():
    # Section 4.1.16: read loc_kp (0x701E) of drive 0x7F by host 0xFD; it is 30.0.
    asked = Frame(0x1100FD7F, bytes.fromhex("1e70000000000000"), True)
    answered = Frame(0x11007FFD, bytes.fromhex("1e7000000000f041"), True)
    assert ROBSTRIDE.request(Request(Kind.READ, 0x7F, index=0x701E)) == asked
    assert ROBSTRIDE.parse_request(asked) == Request(Kind.READ, 0x7F, Parameter.OTHER, 0, 0x701E)
    reply = ROBSTRIDE.parse_reply(answered)
    assert struct.unpack("<f", struct.pack("<I", int(reply.value))) == (30.0,)
    assert ROBSTRIDE.reply(reply) == answered


def test_robstride_command_worked_by_hand():
    # kp 250 / 5000 * 65535 = 3276.75 -> 3277 = 0x0CCD; kd 10 / 100 * 65535 = 6553.5 -> 0x199A;
    # zero lies between 0x7FFF and 0x8000 and is rounded up; type 1, torque 0x8000, drive 11.
    assert command(ROBSTRIDE, RS04, 11, 0.0, 0.0, 250.0, 10.0, 0.0) == (
        0x0180000B,
        bytes.fromhex("800080000ccd199a"),
    )
    ends = command(ROBSTRIDE, RS04, 0x7F, -4 * math.pi, 15.0, 5000.0, 0.0, 120.0)
    assert ends == (0x01FFFF7F, bytes.fromhex("0000ffffffff0000"))


def test_robstride_feedback_worked_by_hand():
    # Type 2; mode run = 2 in bits 23..22; undervoltage is bit 16, over-temperature bit 18.
    running = feedback(ROBSTRIDE, RS04, 11, 0.0, 0.0, 0.0, 25.0, DriveMode.RUN, 0)
    assert running == (0x02800BFD, bytes.fromhex("80008000800000fa"))
    faults = DriveFault.UNDERVOLTAGE | DriveFault.OVER_TEMPERATURE
    off = feedback(ROBSTRIDE, RS04, 11, 0.0, 0.0, 0.0, -1.0, DriveMode.OFF, faults)
    assert off == (0x02050BFD, bytes.fromhex("800080008000fff6"))


@pytest.mark.parametrize(
    ("request_", "arbitration_id", "data"),
    [
        (Request(Kind.ENABLE, 11), 0x0300FD0B, "0000000000000000"),
        (Request(Kind.DISABLE, 11), 0x0400FD0B, "0000000000000000"),
        (Request(Kind.CLEAR_FAULTS, 11), 0x0400FD0B, "0100000000000000"),
        (Request(Kind.SET_ZERO, 11), 0x0600FD0B, "0100000000000000"),
        (Request(Kind.SAVE, 11), 0x1600FD0B, "0102030405060708"),
        # 20000 counts are 1 s, so 0.1 s are 2000 = 0x07D0.
        (Request(Kind.WRITE, 11, Parameter.CAN_TIMEOUT, 0.1), 0x1200FD0B, "28700000d0070000"),
        # 60.0 as a little-endian float.
        (Request(Kind.WRITE, 11, Parameter.TORQUE_LIMIT, 60.0), 0x1200FD0B, "0b70000000007042"),
        (Request(Kind.READ, 11, Parameter.VOLTAGE), 0x1100FD0B, "1c70000000000000"),
    ],
)
def test_robstride_requests_worked_by_hand(request_, arbitration_id, data):
    frame = ROBSTRIDE.request(request_)
    assert frame == Frame(arbitration_id, bytes.fromhex(data), True)
    parsed = ROBSTRIDE.parse_request(frame)
    assert parsed._replace(index=0) == request_


def test_robstride_fault_frame_worked_by_hand():
    # Section 4.1.10: bit 3 overvoltage, bit 14 stall: 0x4008.
    frame = Frame(0x15000BFD, bytes.fromhex("0840000000000000"), True)
    reply = ROBSTRIDE.parse_reply(frame)
    assert reply.can_id == 11
    assert reply.faults == DriveFault.OVERVOLTAGE | DriveFault.OVERLOAD
    assert ROBSTRIDE.reply(reply) == frame


def test_damiao_command_worked_by_hand():
    # Every word at its middle: 32767.5 -> 0x8000, 2047.5 -> 0x800.
    middle = command(DAMIAO, J8009P, 1, 0.0, 0.0, 250.0, 2.5, 0.0)
    assert middle == (1, bytes.fromhex("8000800800800800"))
    ends = command(DAMIAO, J8009P, 1, 12.5, -45.0, 500.0, 0.0, -54.0)
    assert ends == (1, bytes.fromhex("ffff000fff000000"))


def test_damiao_feedback_worked_by_hand():
    # State 1 and id 1, the middle of every range, 40 degrees twice; feedback id 0x100 | 1.
    running = feedback(DAMIAO, J8009P, 1, 0.0, 0.0, 0.0, 40.0, DriveMode.RUN, 0)
    assert running == (0x101, bytes.fromhex("1180008008002828"))
    # State D: communication lost.
    lost = feedback(DAMIAO, J8009P, 1, 0.0, 0.0, 0.0, 40.0, DriveMode.OFF, DriveFault.CAN_TIMEOUT)
    assert lost == (0x101, bytes.fromhex("d180008008002828"))


@pytest.mark.parametrize(
    ("request_", "arbitration_id", "data"),
    [
        (Request(Kind.ENABLE, 1), 1, "fffffffffffffffc"),
        (Request(Kind.DISABLE, 1), 1, "fffffffffffffffd"),
        (Request(Kind.SET_ZERO, 1), 1, "fffffffffffffffe"),
        (Request(Kind.CLEAR_FAULTS, 1), 1, "fffffffffffffffb"),
        (Request(Kind.READ, 1, Parameter.CAN_TIMEOUT), 0x7FF, "0100330900000000"),
        # 20 counts are 1 ms, so 0.1 s are 2000 = 0x07D0.
        (Request(Kind.WRITE, 1, Parameter.CAN_TIMEOUT, 0.1), 0x7FF, "01005509d0070000"),
        (Request(Kind.SAVE, 1), 0x7FF, "0100aa0000000000"),
    ],
)
def test_damiao_requests_worked_by_hand(request_, arbitration_id, data):
    frame = DAMIAO.request(request_)
    assert frame == Frame(arbitration_id, bytes.fromhex(data), False)
    assert DAMIAO.parse_request(frame)._replace(index=0) == request_


def test_damiao_mit_mode_is_run_mode_zero():
    # CTRL_MODE (register 10) counts from 1, and 1 is MIT.
    frame = DAMIAO.request(Request(Kind.WRITE, 1, Parameter.RUN_MODE, 0.0))
    assert frame.data == bytes.fromhex("0100550a01000000")
    assert DAMIAO.parse_request(frame).value == 0.0


# --- round trips -------------------------------------------------------------------------------

shares = st.floats(-1.0, 1.0)
models = st.sampled_from(sorted(MODELS))
ids = st.integers(1, 0x7F)


@given(models, ids, shares, shares, st.floats(0.0, 1.0), st.floats(0.0, 1.0), shares)
def test_a_command_arrives_within_half_a_step(name, can_id, pos, vel, kp, kd, torque):
    model = MODELS[name]
    codec, scale = CODECS[model.make], Scale.of([model])
    sent = arrays(
        Command,
        pos * model.position_range,
        vel * model.velocity_range,
        kp * model.kp_range,
        kd * model.kd_range,
        torque * model.torque_range,
    )
    got = codec.decode_commands(
        scale, *codec.encode_commands(np.array([can_id], np.uint32), scale, sent)
    )
    narrow = 65535 if model.make == "robstride" else 4095
    steps = {"position": 65535, "velocity": narrow, "kp": narrow, "kd": narrow, "torque": narrow}
    for field, count in steps.items():
        signed = field not in ("kp", "kd")
        span = getattr(scale, field) * (2.0 if signed else 1.0)
        error = abs(getattr(got, field) - getattr(sent, field))
        assert error <= 0.5 * span / count * (1 + 1e-9)


@given(models, ids, shares, shares, shares, st.integers(0, 200), st.booleans())
def test_a_feedback_arrives_within_half_a_step(name, can_id, pos, vel, torque, temp, run):
    model = MODELS[name]
    codec, scale = CODECS[model.make], Scale.of([model])
    sent = Feedback(
        np.array([pos * model.position_range]),
        np.array([vel * model.velocity_range]),
        np.array([torque * model.torque_range]),
        np.array([float(temp)]),
        np.array([DriveMode.RUN if run else DriveMode.OFF], np.uint8),
        np.array([0], np.uint32),
    )
    wire_ids, data = codec.encode_feedbacks(np.array([can_id], np.uint32), scale, sent)
    assert int(wire_ids[0]) & codec.feedback_mask == codec.feedback_key(can_id)
    got = codec.decode_feedbacks(scale, wire_ids, data)
    narrow = 65535 if model.make == "robstride" else 4095
    for field, count in (("position", 65535), ("velocity", narrow), ("torque", narrow)):
        error = abs(getattr(got, field) - getattr(sent, field))
        assert error <= getattr(scale, field) / count * (1 + 1e-9)
    assert got.temperature_c == pytest.approx(sent.temperature_c)
    assert got.mode == sent.mode
    assert got.faults == 0


SAYABLE = {
    "robstride": DriveFault.UNDERVOLTAGE
    | DriveFault.OVERCURRENT
    | DriveFault.OVER_TEMPERATURE
    | DriveFault.ENCODER
    | DriveFault.OVERLOAD
    | DriveFault.UNCALIBRATED,
    "damiao": DriveFault.UNDERVOLTAGE
    | DriveFault.OVERVOLTAGE
    | DriveFault.OVERCURRENT
    | DriveFault.OVER_TEMPERATURE
    | DriveFault.OVERLOAD
    | DriveFault.CAN_TIMEOUT,
}


@pytest.mark.parametrize("make", sorted(CODECS))
def test_every_fault_a_make_can_report_arrives_as_itself(make):
    codec, model = CODECS[make], RS04 if make == "robstride" else J8009P
    scale = Scale.of([model])
    for fault in SAYABLE[make]:
        wire = feedback(codec, model, 3, 0.0, 0.0, 0.0, 20.0, DriveMode.OFF, fault)
        data = np.frombuffer(wire[1], np.uint8).reshape(1, 8)
        got = codec.decode_feedbacks(scale, np.array([wire[0]], np.uint32), data)
        assert DriveFault(int(got.faults[0])) == fault


@given(st.sampled_from(sorted(CODECS)), ids, st.floats(0.0, 100.0, width=32))
def test_a_parameter_reply_arrives(make, can_id, seconds):
    codec = CODECS[make]
    reply = codec.parse_reply(codec.reply(Reply(can_id, Parameter.CAN_TIMEOUT, seconds)))
    assert (reply.can_id, reply.parameter) == (can_id, Parameter.CAN_TIMEOUT)
    assert abs(reply.value - seconds) <= 0.5 / 20000.0 + 1e-12


def test_a_robstride_drive_says_when_it_has_no_such_parameter():
    frame = ROBSTRIDE.reply(Reply(5, Parameter.OTHER, math.nan, 0x7777))
    assert frame.arbitration_id == 0x110105FD
    reply = ROBSTRIDE.parse_reply(frame)
    assert (reply.can_id, reply.index) == (5, 0x7777)
    assert math.isnan(reply.value)


# --- what does not fit -------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_command_that_is_no_number_is_refused(codec, bad):
    with pytest.raises(DriveError, match="give finite numbers"):
        command(codec, RS04 if codec is ROBSTRIDE else J8009P, 1, bad, 0.0, 1.0, 1.0, 0.0)


def test_values_beyond_the_range_are_cut_to_it():
    assert to_word(np.array([9.0, -9.0]), -1.0, np.array([1.0, 1.0]), 4095).tolist() == [4095, 0]


def test_parameters_that_do_not_fit_are_refused_with_the_value():
    with pytest.raises(DriveError, match="CAN_TIMEOUT = 1000000000"):
        ROBSTRIDE.request(Request(Kind.WRITE, 1, Parameter.CAN_TIMEOUT, 1e9))
    with pytest.raises(DriveError, match="no register for TORQUE_LIMIT"):
        DAMIAO.request(Request(Kind.WRITE, 1, Parameter.TORQUE_LIMIT, 10.0))


def test_an_unknown_model_is_refused_with_those_there_are():
    with pytest.raises(HardwareError, match=r"'rs04'; there are robstride-rs04"):
        drive_model("rs04")


# --- any frame at all --------------------------------------------------------------------------


def fuzz(codec, count, seed):
    rng = np.random.default_rng(seed)
    bits = 29 if codec.is_extended else 11
    wire_ids = rng.integers(0, 1 << bits, count, dtype=np.uint32)
    # One in four has a plausible head, so that the inner branches are reached too.
    plausible = np.arange(count) % 4 == 0
    if codec.is_extended:
        wire_ids[plausible] = (
            rng.choice([2, 3, 4, 6, 17, 18, 21, 22], plausible.sum()).astype(np.uint32) << 24
        ) | 0x7FFD
    else:
        wire_ids[plausible] = rng.choice([0x7FF, 0x101, 1], plausible.sum())
    data = rng.integers(0, 256, (count, 8), dtype=np.uint8)
    scale = Scale.of([MODELS["robstride-rs04" if codec.is_extended else "damiao-j8009p"]])
    for decode in (codec.decode_commands, codec.decode_feedbacks):
        for values in decode(scale, wire_ids, data):
            assert np.isfinite(values).all()
    command_ = codec.decode_commands(scale, wire_ids, data)
    for field in Command._fields:
        assert (abs(getattr(command_, field)) <= getattr(scale, field) * (1 + 1e-12)).all()
    raw = data.tobytes()
    for at, arbitration_id in enumerate(wire_ids.tolist()):
        length = 8 if at % 16 else at // 16 % 9
        frame = Frame(arbitration_id, raw[8 * at : 8 * at + length], at % 32 != 1)
        frame = frame._replace(is_extended=frame.is_extended == codec.is_extended)
        codec.parse_request(frame)
        codec.parse_reply(frame)


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_no_frame_breaks_a_decoder(codec):
    fuzz(codec, 20_000, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_a_million_frames_break_no_decoder(codec):
    for seed in range(10):
        fuzz(codec, 100_000, seed=seed + 1)


# --- who sends a frame -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "arbitration_id", "is_extended", "sender"),
    [
        (ROBSTRIDE, 0x02800BFD, True, 11),  # feedback, running
        (ROBSTRIDE, 0x02000B01, True, 11),  # the same to another host
        (ROBSTRIDE, 0x15000BFD, True, 11),  # faults in detail
        (ROBSTRIDE, 0x11000BFD, True, 11),  # reply to a read
        (ROBSTRIDE, 0x1100010B, True, None),  # host 1 reads drive 11
        (ROBSTRIDE, 0x0180000B, True, None),  # a command
        (ROBSTRIDE, 0x10B, False, None),
        (DAMIAO, 0x10B, False, 11),
        (DAMIAO, 0x000, False, 0),  # MST_ID as delivered
        (DAMIAO, 0x7FF, False, None),  # a host's register frame
        (DAMIAO, 0x02800BFD, True, None),
    ],
)
def test_who_sends_a_frame(codec, arbitration_id, is_extended, sender):
    assert codec.sender(Frame(arbitration_id, bytes(8), is_extended)) == sender


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
@given(can_id=st.integers(1, 127))
def test_frames_of_a_drive_name_it(codec, can_id):
    reply = codec.reply(Reply(can_id, Parameter.CAN_TIMEOUT, 0.1))
    assert codec.sender(reply) == can_id
    model = RS04 if codec is ROBSTRIDE else J8009P
    ids, data = feedback(codec, model, can_id, 0.0, 0.0, 0.0, 30.0, DriveMode.RUN, 0)
    assert codec.sender(Frame(ids, data, codec.is_extended)) == can_id
