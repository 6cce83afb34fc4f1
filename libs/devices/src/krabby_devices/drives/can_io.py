"""Opening a CAN bus as `hardware.toml` names it, for the robot and for what emulates it alike."""

from __future__ import annotations

import ctypes
import select
import socket
import struct
import time
from typing import TYPE_CHECKING, Any, Final

import can
from can.interfaces.udp_multicast import UdpMulticastBus
from can.interfaces.udp_multicast.utils import pack_message, unpack_message
from can.interfaces.virtual import VirtualBus

from krabby_devices.drives.codec import Frame
from krabby_devices.errors import BusError

if TYPE_CHECKING:
    from krabby_devices.drives.hardware import BusSpec

__all__ = ["frame_of", "message_of", "open_bus"]

_GATHER_S: Final = 0.0005
"""After the first frame that was waited for the next are given this long: to be woken costs more
than to read what is there, and a 1 Mbit/s bus takes 0.13 ms for each."""
_DATAGRAM: Final = 4096
_STAMP: Final = struct.Struct("@ll")
_ATTACH_FILTER: Final = 26
"""Linux's SO_ATTACH_FILTER, which Python's socket module does not name."""
_NETWORK_HEADER: Final = 0x100000000 - 0x100000
"""Linux's SKF_NET_OFF: from here a filter counts in the header before UDP's."""


class _UdpBus(UdpMulticastBus):
    """python-can's, for less.

    The kernel drops what this end sends, and what is there is read without asking for it first.
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

    def send(self, msg: can.Message, timeout: float | None = None) -> None:
        try:
            self._sender.send(pack_message(msg))
        except OSError as error:
            raise can.CanOperationError(f"frame not sent: {error}") from error

    def shutdown(self) -> None:
        super().shutdown()
        self._sender.close()

    def _recv_internal(self, timeout: float | None) -> tuple[can.Message | None, bool]:
        message = self._take()
        if message is None and timeout != 0.0:
            ready, _, _ = select.select([self._receiver], (), (), timeout)
            if ready:
                time.sleep(_GATHER_S)
                message = self._take()
        return message, False

    def _take(self) -> can.Message | None:
        """A frame that is there."""
        try:
            data, stamps, _, _ = self._receiver.recvmsg(
                _DATAGRAM, socket.CMSG_SPACE(_STAMP.size), socket.MSG_DONTWAIT
            )
        except BlockingIOError:
            return None
        except OSError as error:
            raise can.CanOperationError(f"bus not read: {error}") from error
        seconds, nanoseconds = _STAMP.unpack(stamps[0][2])
        stamp = {"timestamp": seconds + nanoseconds * 1e-9}
        try:
            return unpack_message(data, replace=stamp, check=True)
        except Exception as error:  # whatever msgpack makes of bytes that are not ours
            raise can.CanOperationError("not a frame of python-can") from error


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
    """The bus, or a `BusError` with what to do."""
    try:
        if spec.interface == "socketcan":
            # Imported here: it opens kernel interfaces that only Linux has.
            from can.interfaces.socketcan import SocketcanBus

            return SocketcanBus(spec.channel)
        if spec.interface == "udp_multicast":
            return _UdpBus(spec.channel, port=spec.port, hops=spec.hops)
        return VirtualBus(spec.channel)
    except (OSError, can.CanError) as error:
        raise BusError(
            f"cannot open bus {spec.name} ({spec.interface} {spec.channel}): {error}; "
            f"{_remedy(spec)}"
        ) from error


def message_of(frame: Frame) -> can.Message:
    """A frame as python-can sends it."""
    return can.Message(
        arbitration_id=frame.arbitration_id, data=frame.data, is_extended_id=frame.is_extended
    )


def frame_of(message: Any) -> Frame:
    """A received data frame."""
    return Frame(message.arbitration_id, bytes(message.data), message.is_extended_id)


def _remedy(spec: BusSpec) -> str:
    if spec.interface == "socketcan":
        return (
            f"bring it up with: ip link set {spec.channel} up type can bitrate {spec.bitrate} "
            "restart-ms 100"
        )
    return "check that the group is a multicast address and that the host has a route for it"
