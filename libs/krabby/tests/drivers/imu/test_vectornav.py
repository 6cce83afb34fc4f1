import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from krabby.drivers.imu import ImuMount, ImuSample
from krabby.drivers.imu.vectornav import (
    FRAME_SIZE,
    HEADER,
    QUAT_WN,
    Measurement,
    Reply,
    StreamParser,
    checksum8,
    crc16,
    decode_measurement,
    decode_reply,
    encode_ascii,
    encode_measurement,
)
from krabby.robot import rotations

LEVEL = Measurement(1_000_000_000, (0.0, 0.0, 0.0, 1.0), (0.0, 0.0, 0.0), (0.0, 0.0, -9.8125), 25.0)

HALF = math.sqrt(0.5)


def test_crc_of_the_manual_s_binary_example_is_zero():
    # yaw, pitch, roll message of the interface control document, section 1.4
    example = bytes.fromhex("FA01080093502E42833EF13F48B504BB9288")
    assert crc16(example[1:]) == 0
    assert crc16(example[1:-2]) == 0x9288
    yaw_pitch_roll = struct.unpack("<3f", example[4:16])
    assert yaw_pitch_roll == pytest.approx((43.578686, 1.884720, -0.002025), abs=1e-6)


@pytest.mark.parametrize(
    ("body", "digits"),
    [
        # examples of VectorNav's development kit
        ("VNRRG,06,1,1", "0865"),
        ("VNRRG,07,1,1", "A234"),
        ("VNRRG,75,3,400,01,0321", "3B31"),
        # published logs of sensors
        ("VNRRG,75", "71"),
        ("VNRRG,35,1,1,1,1", "75"),
        ("VNWRG,35,1,0,1,1", "71"),
        ("VNWRG,05,921600", "53"),
        ("VNRRG,01,VN-200T-CR", "31"),
        ("VNERR,12", "72"),
        (
            "VNYMR,+100.949,-007.330,+000.715,-00.0049,-00.2449,+00.5397,-01.258,-00.100,-09.701,"
            "-00.000018,+00.001122,-00.000551",
            "69",
        ),
    ],
)
def test_checksums_agree_with_published_messages(body, digits):
    compute = checksum8 if len(digits) == 2 else crc16
    assert compute(body.encode()) == int(digits, 16)
    kind, *fields = body.split(",")
    assert decode_reply(f"${body}*{digits}".encode()) == Reply(kind, tuple(fields))
    assert decode_reply(f"${body}0*{digits}".encode()) is None


def test_a_command_is_a_dollar_a_body_and_its_checksum():
    assert encode_ascii("VNRRG", "75") == b"$VNRRG,75*71\r\n"
    assert encode_ascii("VNWRG", "05", "921600") == b"$VNWRG,05,921600*53\r\n"


def test_errors_are_said_in_words():
    assert Reply("VNERR", ("0C",)).error == "insufficient baud rate (VNERR 0C)"
    assert Reply("VNERR", ("77",)).error == "unknown error (VNERR 77)"
    assert Reply("VNRRG", ("75",)).error is None


def test_our_message_byte_by_byte():
    measurement = Measurement(
        0x0102030405060708, (0.5, -0.5, 0.5, 0.5), (1.0, 2.0, -2.0), (0.0, 0.0, -9.5), 32.0
    )
    frame = encode_measurement(measurement)
    assert frame[:-2] == bytes.fromhex(
        "FA 05 3101 1000"  # sync, groups 1 and 3, time + quaternion + rates + accel, temperature
        "0807060504030201"
        "0000003F 000000BF 0000003F 0000003F"
        "0000803F 00000040 000000C0"
        "00000000 00000000 000018C1"
        "00000042"
    )
    assert crc16(frame[1:]) == 0
    assert len(frame) == FRAME_SIZE == 60
    assert decode_measurement(frame) == measurement


MOUNTED_AS_PRINTED = ImuMount((1.0, 0.0, 0.0, 0.0), QUAT_WN)
"""x forward, y right, z down on the robot: half a turn about x."""


def test_level_facing_north_is_upright_with_gravity_s_reaction_upwards():
    quat_wb, ang_vel_b, lin_acc_b = MOUNTED_AS_PRINTED.to_base(*LEVEL[1:4])
    assert np.abs(quat_wb) == pytest.approx([0, 0, 0, 1])
    assert ang_vel_b == pytest.approx([0, 0, 0])
    assert lin_acc_b == pytest.approx([0, 0, 9.8125])


def test_facing_east_is_a_quarter_turn_clockwise():
    # VectorNav's yaw grows clockwise seen from above: east is +90 deg about its z (down)
    quat_wb, *_ = MOUNTED_AS_PRINTED.to_base((0, 0, HALF, HALF), (0, 0, 0), (0, 0, -9.81))
    assert rotations.yaw(quat_wb) == pytest.approx(-math.pi / 2)
    # the robot's nose (1, 0, 0) points east, which is minus y where y is west
    assert rotations.rotate(quat_wb, (1, 0, 0)) == pytest.approx([0, -1, 0])


def test_nose_up_pitch_and_its_rates():
    # VectorNav's pitch is nose up: 30 deg about y (right). Ours is about y (left): -30 deg.
    angle = math.radians(30)
    quat_ns = (0, math.sin(angle / 2), 0, math.cos(angle / 2))
    # specific force points up: in the sensor's x-z plane (sin 30, 0, -cos 30) * 9.81
    quat_wb, ang_vel_b, lin_acc_b = MOUNTED_AS_PRINTED.to_base(
        quat_ns, (0.1, 0.2, 0.3), (4.905, 0, -8.4957)
    )
    assert rotations.rotate(quat_wb, (1, 0, 0)) == pytest.approx([math.cos(angle), 0, 0.5])
    assert ang_vel_b == pytest.approx([0.1, -0.2, -0.3])
    assert lin_acc_b == pytest.approx([4.905, 0, 8.4957])
    assert rotations.rotate(quat_wb, lin_acc_b) == pytest.approx([0, 0, 9.81], abs=1e-3)


def test_a_sensor_turned_on_its_mount_tells_of_the_same_robot():
    # mounted with its x to the robot's left, y forward, z down
    mount = ImuMount(
        rotations.from_matrix(np.array([[0, 1, 0], [1, 0, 0], [0, 0, -1]], float)), QUAT_WN
    )
    # robot upright, facing north: the sensor's x points west, so its yaw is -90 deg
    quat_wb, ang_vel_b, lin_acc_b = mount.to_base((0, 0, -HALF, HALF), (0.1, 0.2, 0.3), (1, 2, -9))
    assert np.abs(quat_wb) == pytest.approx([0, 0, 0, 1])
    assert ang_vel_b == pytest.approx([0.2, 0.1, -0.3])
    assert lin_acc_b == pytest.approx([2, 1, 9])


def test_what_the_emulator_sends_is_what_the_driver_gives():
    rng = np.random.default_rng(1)
    mount = ImuMount(rotations.normalize(rng.normal(size=4)), QUAT_WN)
    sample = ImuSample(rotations.normalize(rng.normal(size=4)), rng.normal(size=3), np.ones(3), 7)
    for got, put in zip(mount.to_base(*mount.to_sensor(sample)), sample[:3], strict=True):
        assert got == pytest.approx(put)


def feed_all(parser, data, sizes):
    messages, position = [], 0
    for size in sizes:
        messages += parser.feed(data[position : position + size])
        position += size
    return messages + list(parser.feed(data[position:]))


def test_messages_are_found_among_one_another_and_know_how_old_they_are():
    data = encode_measurement(LEVEL) + encode_ascii("VNRRG", "06", "0") + encode_measurement(LEVEL)
    parser = StreamParser()
    first, reply, second = parser.feed(data)
    assert [first.message, reply.message, second.message] == [
        LEVEL,
        Reply("VNRRG", ("06", "0")),
        LEVEL,
    ]
    assert first.from_end == len(data)
    assert second.from_end == FRAME_SIZE
    assert parser.skipped_bytes == parser.bad_checksums == 0


def test_after_garbage_the_next_whole_message_is_found():
    frame = encode_measurement(LEVEL)
    # a message cut in the middle, one with a flipped bit, half a header, a stray dollar
    damaged = bytearray(frame)
    damaged[30] ^= 0x10
    data = frame[20:] + frame[:35] + bytes(damaged) + HEADER[:4] + b"$12\xfa$" + frame
    parser = StreamParser()
    assert [received.message for received in parser.feed(data)] == [LEVEL]
    assert parser.bad_checksums >= 1
    assert parser.skipped_bytes == len(data) - FRAME_SIZE


@settings(max_examples=300, deadline=None)
@given(
    garbage=st.lists(
        st.one_of(
            st.binary(max_size=80),
            st.sampled_from(
                [HEADER, HEADER[:3], b"$", b"$VN", b"$VNRRG,75*", b"\r\n", b"\xfa" * 9]
            ),
        ),
        max_size=6,
    ),
    sizes=st.lists(st.integers(0, 40), max_size=12),
)
def test_no_bytes_break_the_parser_and_whatever_came_a_good_message_gets_through(garbage, sizes):
    parser = StreamParser()
    frame = encode_measurement(LEVEL)
    # a line that never ends or a header without payload can hide what follows it, for 256 bytes
    data = b"".join(garbage) + frame * 6
    messages = [received.message for received in feed_all(parser, data, sizes)]
    assert LEVEL in messages
    assert len(parser._buffer) <= 256


@pytest.mark.slow
def test_a_million_random_messages_do_not_crash():
    rng = np.random.default_rng(0)
    parser = StreamParser()
    for _ in range(1000):
        block = rng.integers(0, 256, 60_000, np.uint8)
        starts = rng.integers(0, 59_000, 1000)
        for offset, byte in enumerate(HEADER):  # right headers, random payloads
            block[starts + offset] = byte
        for received in parser.feed(block.tobytes()):
            assert isinstance(received.message, Measurement | Reply)
    assert parser.bad_checksums > 500_000
