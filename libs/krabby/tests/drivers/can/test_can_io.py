"""Frames as multicast: the same to python-can, several with one call, and nothing lost by it."""

import errno
import socket

import can
import pytest
from can.interfaces.udp_multicast import UdpMulticastBus
from can.interfaces.udp_multicast.utils import pack_message, unpack_message
from krabby.drivers.can import can_io
from krabby.drivers.can.can_io import hold, is_ahead, open_bus, release
from krabby.drivers.can.hardware import HardwareDescription
from krabby.drivers.can.testing import free_multicast_channels
from krabby.robot.description import RobotDescription

WIRED = HardwareDescription.load(None, RobotDescription.load())


def message(number, data=bytes(range(8)), **words):
    return can.Message(arbitration_id=number, data=data, **words)


MESSAGES = (
    message(0x02800BFD),
    message(0x1FFFFFFF),
    message(0),
    message(0x7FF, is_extended_id=False),
    message(0x11, is_extended_id=False),
    message(0x02800BFD, data=b"abc"),
    message(0x02800BFD, data=b""),
    message(0x40, is_error_frame=True),
    message(0x40, data=None, is_remote_frame=True),
)


@pytest.fixture
def spec():
    return WIRED.with_interface("udp_multicast", free_multicast_channels(WIRED)).buses[0]


@pytest.fixture
def pair(spec):
    """Two ends of a bus."""
    here, there = open_bus(spec), open_bus(spec)
    yield here, there
    here.shutdown()
    there.shutdown()


@pytest.fixture
def stranger(spec):
    """A socket that sends arbitrary bytes to the bus."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.connect((spec.channel, spec.port))
        yield stranger


def same(one, other):
    return one.equals(other, timestamp_delta=None)


def numbers(bus, count):
    return [bus.recv(1.0).arbitration_id for _ in range(count)]


@pytest.mark.parametrize("sent", MESSAGES, ids=str)
def test_python_can_reads_what_is_packed_here_and_the_other_way_round(sent):
    assert same(unpack_message(can_io._packed(sent), check=True), sent)
    assert same(can_io._unpacked(pack_message(sent), 1.5), sent)
    read = can_io._unpacked(can_io._packed(sent), 1.5)
    assert same(read, sent)
    assert read.timestamp == 1.5


@pytest.mark.parametrize(
    ("number", "is_extended"), [(0x800, False), (0x20000000, True)], ids=["11 bits", "29 bits"]
)
def test_an_id_of_too_many_bits_is_refused(number, is_extended):
    packed = pack_message(message(number, is_extended_id=is_extended))
    with pytest.raises(can.CanError, match="not a frame"):
        can_io._unpacked(packed, 0.0)


@pytest.mark.parametrize("count", [7, 100], ids=["one call", "more than one call takes"])
def test_frames_that_are_held_go_out_together_and_in_order(pair, count):
    here, there = pair
    hold(here)
    for number in range(count):
        here.send(message(number))
    assert there.recv(0.0) is None
    release(here)
    assert numbers(there, count) == list(range(count))
    assert there.recv(0.0) is None
    here.send(message(8))  # no longer held
    assert numbers(there, 1) == [8]


def test_frames_of_different_lengths_go_together_too(pair):
    here, there = pair
    hold(here)
    for sent in MESSAGES:
        here.send(sent)
    release(here)
    assert all(same(there.recv(1.0), sent) for sent in MESSAGES)


def test_what_is_held_is_not_heard_by_who_sent_it(pair):
    here, _ = pair
    hold(here)
    here.send(message(1))
    here.send(message(2))
    release(here)
    assert here.recv(0.0) is None


def test_a_frame_in_hand_is_told_of(pair):
    here, there = pair
    hold(here)
    here.send(message(1))
    here.send(message(2))
    release(here)
    assert numbers(there, 1) == [1]
    # A kernel that hands over one at a time has the other, and its file descriptor tells.
    assert is_ahead(there) == there._sends_several
    assert numbers(there, 1) == [2]
    assert not is_ahead(there)


def test_python_can_s_own_bus_hears_every_single_frame(pair, spec):
    here, _ = pair
    theirs = UdpMulticastBus(spec.channel, port=spec.port, hop_limit=1, fd=False)
    try:
        hold(here)
        for number in range(5):
            here.send(message(number))
        release(here)
        assert numbers(theirs, 5) == list(range(5))
        theirs.send(message(9))
        assert numbers(here, 1) == [9]
    finally:
        theirs.shutdown()


def test_a_kernel_that_takes_one_at_a_time_gets_one_at_a_time(spec, monkeypatch):
    monkeypatch.setattr(can_io, "_takes_several", lambda *_: False)
    here, there = open_bus(spec), open_bus(spec)
    try:
        hold(here)
        for number in range(5):
            here.send(message(number))
        release(here)
        assert numbers(there, 5) == list(range(5))
    finally:
        here.shutdown()
        there.shutdown()


class Sender:
    """A socket whose interface cannot cut what it is given into datagrams."""

    def __init__(self, behind, number):
        self._behind, self._number = behind, number
        self.asked = 0

    def sendmsg(self, *_):
        self.asked += 1
        raise OSError(self._number, "no")

    def send(self, data):
        return self._behind.send(data)

    def close(self):
        self._behind.close()


def test_an_interface_that_cannot_is_asked_once(pair):
    here, there = pair
    here._sender = Sender(here._sender, errno.EIO)
    here._sends_several = True
    for _ in range(2):
        hold(here)
        here.send(message(1))
        here.send(message(2))
        release(here)
        assert numbers(there, 2) == [1, 2]
    assert here._sender.asked == 1


def test_held_frames_that_do_not_go_out_are_an_error(pair):
    here, _ = pair
    here._sender = Sender(here._sender, errno.ENETDOWN)
    here._sends_several = True
    hold(here)
    here.send(message(1))
    here.send(message(2))
    with pytest.raises(can.CanOperationError, match="frame not sent"):
        release(here)
    release(here)  # and they are forgotten


def test_bytes_that_are_no_frame_cost_only_themselves(pair, stranger):
    here, there = pair
    for data in (b"\xff" * 164, b"", can_io._packed(message(3))[:-1]):
        stranger.send(data)
    here.send(message(4))
    heard, errors = [], 0
    while not heard:
        try:
            found = there.recv(1.0)
        except can.CanError:
            errors += 1
            continue
        assert found is not None or errors == 2  # an empty one counts as none
        heard += [] if found is None else [found.arbitration_id]
    assert heard == [4]
    assert errors == 2


def test_a_bus_without_a_way_to_send_for_less_sends_at_once():
    spec = WIRED.with_interface(
        "virtual", {bus.name: f"held-{bus.name}" for bus in WIRED.buses}
    ).buses[0]
    here, there = open_bus(spec), open_bus(spec)
    try:
        hold(here)
        here.send(message(1))
        assert numbers(there, 1) == [1]
        release(here)
        assert not is_ahead(there)
    finally:
        here.shutdown()
        there.shutdown()
