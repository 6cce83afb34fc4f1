"""Opens the CAN buses of `hardware.toml`, for the robot and for the emulated one."""

import ctypes
import errno
import itertools
import select
import socket
import struct
from collections.abc import Iterable
from operator import itemgetter
from typing import Annotated, Any, Final, NamedTuple

import can
import msgspec
from can.interfaces.udp_multicast import UdpMulticastBus
from can.interfaces.virtual import VirtualBus

from krabby.drivers.can.codec import Frame
from krabby.drivers.can.hardware import BusSpec
from krabby.drivers.errors import DriveError

__all__ = [
    "FrameBatch",
    "frame_of",
    "hold",
    "is_ahead",
    "message_of",
    "open_bus",
    "receive",
    "release",
    "send_frames",
    "source_of",
    "takes_batches",
]

_BUFFER: Final = 1 << 16
"""Longest that the kernel hands over at once."""
_MOST_HELD: Final = 32
"""Datagrams that go out in one call; the kernel takes 64."""
_STAMP: Final = struct.Struct("@ll")
_SIZE: Final = struct.Struct("@i")
_ANCILLARY: Final = socket.CMSG_SPACE(_STAMP.size) + socket.CMSG_SPACE(_SIZE.size)
_SOL_UDP: Final = 17
_UDP_SEGMENT: Final = 103
_UDP_GRO: Final = 104
"""Linux's names for several datagrams in one call, out and in, which Python's socket module does
not have."""
_ATTACH_FILTER: Final = 26
"""Linux's SO_ATTACH_FILTER, which Python's socket module does not name."""
_NETWORK_HEADER: Final = 0x100000000 - 0x100000
"""Linux's SKF_NET_OFF: from here a filter counts in the header before UDP's."""

_STANDARD_IDS: Final = 0x7FF


class _Datagram(msgspec.Struct):
    """What python-can's `pack_message` makes of a frame."""

    timestamp: float
    arbitration_id: Annotated[int, msgspec.Meta(ge=0, le=0x1FFFFFFF)]
    is_extended_id: bool
    is_remote_frame: bool
    is_error_frame: bool
    channel: object
    dlc: Annotated[int, msgspec.Meta(ge=0, le=8)]
    data: Annotated[bytes, msgspec.Meta(max_length=8)] | None
    is_fd: bool
    bitrate_switch: bool
    error_state_indicator: bool


_ENCODE: Final = msgspec.msgpack.Encoder().encode
_DECODE: Final = msgspec.msgpack.Decoder(_Datagram).decode


class FrameBatch(NamedTuple):
    """Data frames with 29-bit ids and 8 bytes that came at once, in the order of arrival."""

    frames: list[tuple[int, bytes]]
    """Arbitration id and data of each."""
    stamp_s: float
    """When the kernel had them, by the wall clock."""


class _Layout:
    """Where id and data are in the datagram of such a frame; all else is the same in each.

    Packing by it takes a tenth of the time, and so does unpacking.
    """

    def __init__(self) -> None:
        kinds = (True, False, False, None, 8)
        empty, full = (
            _ENCODE(_Datagram(stamp, i, *kinds, bytes([byte]) * 8, False, False, False))
            for stamp, i, byte in ((0.0, 0x10000000, 0), (1.0, 0x1FFFFFFF, 255))
        )
        # All bytes of data and id differ, and before them the first two of the time stamp.
        differs = [at for at, byte in enumerate(empty) if byte != full[at]]
        stamp_at, id_at, data_at = differs[0], differs[-12], differs[-8]
        self.size = len(empty)
        self._head, self._body = empty[:stamp_at], empty[stamp_at + 8 : id_at]
        self._before, self._middle = empty[:id_at], empty[id_at + 4 : data_at]
        self._tail = empty[data_at + 8 :]
        head, body, middle = len(self._head), len(self._body), len(self._middle)
        fields = f">{head}s8x{body}sI{middle}s8s{len(self._tail)}s"
        self._iter_unpack = struct.Struct(fields).iter_unpack

    def pack(self, frames: Iterable[tuple[int, bytes]]) -> bytes:
        """The datagrams of frames, one after the other."""
        before, middle, tail = self._before, self._middle, self._tail
        return b"".join(
            [before + i.to_bytes(4, "big") + middle + data + tail for i, data in frames]
        )

    def unpack(self, datagrams: memoryview) -> list[tuple[int, bytes]] | None:
        """The frames in datagrams of `size`; None if one of them is another kind of frame."""
        known = (self._head, self._body, self._middle, self._tail)
        frames = [
            (i, data)
            for head, body, i, middle, data, tail in self._iter_unpack(datagrams)
            if (head, body, middle, tail) == known and i <= _EXTENDED_IDS
        ]
        return frames if len(frames) * self.size == len(datagrams) else None


_EXTENDED_IDS: Final = 0x1FFFFFFF
_LAYOUT: Final = _Layout()


class _UdpBus(UdpMulticastBus):
    """python-can's, with fewer system calls: several frames go out and come in with one.

    The kernel drops what this end sends. Filters are not applied.
    """

    def __init__(self, channel: str, *, port: int, hops: int) -> None:
        # Classic frames only, so that nothing works here that the drives' buses refuse.
        super().__init__(channel, port=port, hop_limit=hops, fd=False)
        self._receiver: socket.socket = self._multicast._socket
        self._sender = socket.socket(self._receiver.family, socket.SOCK_DGRAM)
        if self._receiver.family == socket.AF_INET:
            self._sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, hops)
        else:
            self._sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, hops)
        self._sender.connect((channel, port))
        _drop_frames_of(self._sender, self._receiver)
        self._sends_several = _takes_several(self._sender, self._receiver)
        self._held: list[tuple[int, bytes]] | None = None
        """Size of each datagram, and some of that size."""
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._at = self._end = self._stride = 0
        """What is left of the buffer, and how long each datagram in it is."""
        self._stamp_s = 0.0
        self.source: object = None
        """Address of the socket that sent what was taken from the kernel last."""

    @property
    def is_ahead(self) -> bool:
        """Whether frames were taken from the kernel that `recv` has not given out."""
        return self._at < self._end

    def hold(self) -> None:
        """Collect what is sent from now on."""
        self._held = []

    def release(self) -> None:
        """Send what was collected."""
        held, self._held = self._held or (), None
        for size, some in itertools.groupby(held, itemgetter(0)):
            self._send(size, b"".join(datagrams for _, datagrams in some))

    def send(self, msg: can.Message, timeout: float | None = None) -> None:
        datagram = _packed(msg)
        self._put(len(datagram), datagram)

    def send_frames(self, frames: Iterable[tuple[int, bytes]]) -> None:
        """Send data frames with 29-bit ids and 8 bytes."""
        self._put(_LAYOUT.size, _LAYOUT.pack(frames))

    def receive(self, timeout_s: float) -> "can.Message | FrameBatch | None":
        """All frames that are in hand, as a batch, or else the next one; None when none came."""
        if (
            self._at >= self._end
            and not self._fill()
            and not (
                timeout_s > 0.0
                and select.select([self._receiver], (), (), timeout_s)[0]
                and self._fill()
            )
        ):
            return None
        left = self._end - self._at
        if self._stride == _LAYOUT.size and left % _LAYOUT.size == 0:
            frames = _LAYOUT.unpack(self._view[self._at : self._end])
            if frames is not None:
                self._at = self._end
                return FrameBatch(frames, self._stamp_s)
        return self._take()

    def shutdown(self) -> None:
        super().shutdown()
        self._sender.close()

    def recv(self, timeout: float | None = None) -> can.Message | None:
        message = self._take()
        if (
            message is None
            and timeout != 0.0
            and select.select([self._receiver], (), (), timeout)[0]
        ):
            message = self._take()
        return message

    def _put(self, size: int, datagrams: bytes) -> None:
        if self._held is None:
            self._send(size, datagrams)
        else:
            self._held.append((size, datagrams))

    def _send(self, size: int, datagrams: bytes) -> None:
        """Send datagrams of one size."""
        try:
            if len(datagrams) > size and self._send_at_once(size, datagrams):
                return
            for first in range(0, len(datagrams), size):
                self._sender.send(datagrams[first : first + size])
        except OSError as error:
            raise can.CanOperationError(f"frame not sent: {error}") from error

    def _send_at_once(self, size: int, datagrams: bytes) -> bool:
        """Send them with one call, or a few; False where that is not possible."""
        if not self._sends_several:
            return False
        segments = [(_SOL_UDP, _UDP_SEGMENT, struct.pack("@H", size))]
        most = _MOST_HELD * size
        try:
            for first in range(0, len(datagrams), most):
                self._sender.sendmsg([datagrams[first : first + most]], segments)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EINVAL):
                raise
            self._sends_several = False  # an interface on the way cannot
            return False
        return True

    def _take(self) -> can.Message | None:
        """A frame that is there."""
        if self._at >= self._end and not self._fill():
            return None
        start, self._at = self._at, self._at + self._stride
        return _unpacked(self._view[start : min(self._at, self._end)], self._stamp_s)

    def _fill(self) -> bool:
        """Take what the kernel hands over at once; says whether there was something."""
        try:
            count, ancillary, _, self.source = self._receiver.recvmsg_into(
                [self._buffer], _ANCILLARY, socket.MSG_DONTWAIT
            )
        except BlockingIOError:
            return False
        except OSError as error:
            raise can.CanOperationError(f"bus not read: {error}") from error
        self._at, self._end, self._stride = 0, count, max(count, 1)
        for level, _, data in ancillary:
            if level == _SOL_UDP:
                (self._stride,) = _SIZE.unpack(data)
            else:
                seconds, nanoseconds = _STAMP.unpack(data)
                self._stamp_s = seconds + nanoseconds * 1e-9
        return count > 0


def hold(bus: can.BusABC) -> None:
    """Have `bus` collect what is sent until `release`, if it has a way to send it for less."""
    if isinstance(bus, _UdpBus):
        bus.hold()


def release(bus: can.BusABC) -> None:
    """Send what was collected since `hold`; raises what `send` does."""
    if isinstance(bus, _UdpBus):
        bus.release()


def takes_batches(bus: can.BusABC | None) -> bool:
    """Whether `send_frames` may be used with `bus`."""
    return isinstance(bus, _UdpBus)


def send_frames(bus: can.BusABC, frames: Iterable[tuple[int, bytes]]) -> None:
    """Send data frames, 29-bit id and 8 bytes each, to a bus that `takes_batches`."""
    assert isinstance(bus, _UdpBus), "takes_batches comes first"
    bus.send_frames(frames)


def receive(bus: can.BusABC, timeout_s: float) -> can.Message | FrameBatch | None:
    """What `recv` returns, or several frames where the bus has them at once."""
    return bus.receive(timeout_s) if isinstance(bus, _UdpBus) else bus.recv(timeout_s)


def is_ahead(bus: can.BusABC) -> bool:
    """Whether `recv` has a frame in hand of which the bus's file descriptor does not tell."""
    return isinstance(bus, _UdpBus) and bus.is_ahead


def source_of(bus: can.BusABC) -> object:
    """Which socket sent the frame that `recv` returned last; None where a bus does not say."""
    return bus.source if isinstance(bus, _UdpBus) else None


def _takes_several(sender: socket.socket, receiver: socket.socket) -> bool:
    """Whether this kernel takes and gives several datagrams in one call; switches that on."""
    try:
        receiver.setsockopt(_SOL_UDP, _UDP_GRO, 1)
        sender.getsockopt(_SOL_UDP, _UDP_SEGMENT)
    except OSError:
        return False
    return True


def _packed(message: can.Message) -> bytes:
    m: Any = message
    kind = m.is_extended_id, m.is_remote_frame, m.is_error_frame
    data = _Datagram(0.0, m.arbitration_id, *kind, None, m.dlc, m.data, m.is_fd, False, False)
    return _ENCODE(data)


def _unpacked(datagram: bytes | memoryview, stamp_s: float) -> can.Message:
    """The frame in a datagram; raises `can.CanError` if there is none."""
    try:
        d = _DECODE(datagram)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise can.CanOperationError("not a frame of python-can") from error
    if d.is_fd or (d.arbitration_id > _STANDARD_IDS and not d.is_extended_id):
        raise can.CanOperationError("not a frame of classic CAN")
    kind = d.is_extended_id, d.is_remote_frame, d.is_error_frame
    return can.Message(stamp_s, d.arbitration_id, *kind, dlc=d.dlc, data=d.data)


class _FilterProgram(ctypes.Structure):
    """Linux's struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))


def _drop_frames_of(sender: socket.socket, receiver: socket.socket) -> None:
    """Multicast comes back to the host that sent it: have the kernel drop what `sender` sends."""
    address, port = sender.getsockname()[:2]
    tail = socket.inet_pton(sender.family, address)[-4:]
    source = _NETWORK_HEADER + (12 if sender.family == socket.AF_INET else 20)
    code = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (0x28, 0, 0, 0),  # the port it came from, first in UDP's header
            (0x15, 0, 3, port),  # another one: keep
            (0x20, 0, 0, source),  # the last four bytes of the address
            (0x15, 0, 1, int.from_bytes(tail, "big")),
            (0x06, 0, 0, 0),  # drop
            (0x06, 0, 0, 0xFFFFFFFF),  # keep
        )
    )
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _FilterProgram(len(code) // 8, ctypes.addressof(buffer))
    receiver.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, bytes(program))


def open_bus(spec: BusSpec) -> can.BusABC:
    """The bus, or a `DriveError` with what to do."""
    try:
        if spec.interface == "socketcan":
            # Imported here: it opens kernel interfaces that only Linux has.
            from can.interfaces.socketcan import SocketcanBus

            socket.if_nametoindex(spec.channel)  # python-can would leave a socket open
            return SocketcanBus(spec.channel)
        if spec.interface == "udp_multicast":
            return _UdpBus(spec.channel, port=spec.port, hops=spec.hops)
        return VirtualBus(spec.channel)
    except (OSError, can.CanError) as error:
        up = f"ip link set {spec.channel} up type can bitrate {spec.bitrate} restart-ms 100"
        remedy = (
            f"bring it up with: {up}"
            if spec.interface == "socketcan"
            else "check that the group is a multicast address and that the host has a route for it"
        )
        where = f"{spec.name} ({spec.interface} {spec.channel})"
        raise DriveError(f"cannot open bus {where}: {error}; {remedy}") from error


def message_of(frame: Frame) -> can.Message:
    """A frame as python-can sends it."""
    return can.Message(
        arbitration_id=frame.arbitration_id, data=frame.data, is_extended_id=frame.is_extended
    )


def frame_of(message: Any) -> Frame:
    """A received data frame."""
    return Frame(message.arbitration_id, bytes(message.data), message.is_extended_id)
