import os
import socket
import time

import numpy as np
import pytest
from krabby.drivers.errors import ImuError
from krabby.drivers.imu import ImuMount, ImuSample
from krabby.drivers.imu.server import ImuServer, Vn100Device
from krabby.drivers.imu.vectornav import (
    FRAME_SIZE,
    QUAT_WN,
    Measurement,
    decode_measurement,
    encode_ascii,
)
from krabby.robot import rotations

MOUNT = ImuMount((1, 0, 0, 0), QUAT_WN)


def measurement(time_ms):
    return Measurement(round(time_ms * 1e6), (0, 0, 0, 1), (0, 0, 0), (0, 0, -9.8125), 30.0)


def write(*fields):
    return encode_ascii("VNWRG", *fields)


def test_a_new_sensor_is_quiet_until_told_to_send_our_message():
    device = Vn100Device()
    assert device.rate_hz == 0
    assert device.output(measurement(0)) == b""
    command = write("75", "1", "4", "05", "0131", "0010")
    assert device.receive(command) == command
    assert device.rate_hz == 200
    assert decode_measurement(device.output(measurement(5))) == measurement(5)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (b"$VNRRG,75*00\r\n", "03"),  # its checksum is 71
        (encode_ascii("VNXYZ"), "04"),
        (encode_ascii("VNRRG", "99"), "08"),
        (encode_ascii("VNRRG"), "08"),
        (write("35", "1"), "05"),
        (write("75", "1"), "05"),
        (write("75", "1", "4", "01", "0001"), "07"),  # another message than ours
        (write("75", "1", "0", "05", "0131", "0010"), "07"),
        (write("05", "1234"), "07"),
        (write("01", "VN-300"), "09"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_sensor_s_own_code(command, code):
    assert Vn100Device().receive(command) == encode_ascii("VNERR", code)


@pytest.mark.parametrize("physics_hz", [200, 1000])
def test_it_sends_at_the_rate_it_was_told_however_often_it_measures(physics_hz):
    device = Vn100Device()
    device.receive(write("75", "1", "4", "05", "0131", "0010"))
    times_ms = 7 + np.arange(physics_hz) * 1000 / physics_hz  # one second
    sent = [bool(device.output(measurement(t))) for t in times_ms]
    assert sum(sent) in (200, 201)  # the first may stand off the grid


def test_output_can_be_held_back_for_a_while():
    device = Vn100Device()
    device.receive(write("75", "1", "4", "05", "0131", "0010"))
    device.receive(encode_ascii("VNASY", "0"))
    assert device.output(measurement(0)) == b""
    device.receive(encode_ascii("VNASY", "1"))
    assert device.output(measurement(0)) != b""


SAMPLE = ImuSample(
    rotations.from_euler(0.1, 0.2, 0.3), np.array([1.0, 2.0, 3.0]), np.array([0, 0, 9.8]), 10**9
)


@pytest.mark.parametrize("listen", ["tcp://127.0.0.1:0", "pty"])
def test_a_reader_gets_the_sample_in_the_sensor_s_frames(listen):
    server = ImuServer(listen, MOUNT)
    try:
        if listen == "pty":
            fd = os.open(server.address, os.O_RDWR | os.O_NOCTTY)
        else:
            host, _, port = server.address.removeprefix("socket://").rpartition(":")
            fd = socket.create_connection((host, int(port))).detach()
        command = write("75", "1", "4", "05", "0131", "0010")
        os.write(fd, command)
        received = b""
        while not received:  # the kernel hands it over when it likes
            server.poll()
            os.set_blocking(fd, False)
            try:
                received = os.read(fd, 100)
            except BlockingIOError:
                time.sleep(0.001)
        assert received == command
        server.publish(SAMPLE)
        os.set_blocking(fd, True)
        frame = os.read(fd, FRAME_SIZE)
        got = decode_measurement(frame)
        assert got is not None
        quat_wb, ang_vel_b, lin_acc_b = MOUNT.to_base(*got[1:4])
        assert quat_wb == pytest.approx(SAMPLE.quat_wb, abs=1e-6)
        assert ang_vel_b == pytest.approx(SAMPLE.ang_vel_b)
        assert lin_acc_b == pytest.approx(SAMPLE.lin_acc_b, abs=1e-6)
        os.close(fd)
    finally:
        server.close()


def test_a_reader_that_does_not_read_loses_measurements_and_blocks_no_other():
    server = ImuServer("pty", MOUNT)
    try:
        server.device.receive(write("75", "1", "4", "05", "0131", "0010"))
        for i in range(1000):
            server.publish(SAMPLE._replace(stamp_ns=10**9 + i * 5_000_000))
        assert server.dropped > 0
        assert server.sent + server.dropped == 1000
    finally:
        server.close()


def test_an_address_that_cannot_be_served_is_refused_with_a_remedy():
    with pytest.raises(ImuError, match="use tcp://address:port or pty"):
        ImuServer("udp://127.0.0.1:5", MOUNT)
    taken = ImuServer("tcp://127.0.0.1:0", MOUNT)
    try:
        with pytest.raises(ImuError, match="choose another address"):
            ImuServer(taken.address.replace("socket", "tcp"), MOUNT)
    finally:
        taken.close()
