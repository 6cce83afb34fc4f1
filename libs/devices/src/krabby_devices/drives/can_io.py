"""Opening a CAN bus as `hardware.toml` names it, for the robot and for what emulates it alike."""

from __future__ import annotations

import time
from collections import deque
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

_MOST_SENT: Final = 64
"""Frames a bus remembers as its own; they come back in order, and soon."""


class _UdpBus(UdpMulticastBus):
    """python-can's, which hears itself: drops what this end sent before it costs unpacking."""

    def __init__(self, channel: str, **options: Any) -> None:
        super().__init__(channel, **options)
        self._sent: deque[bytes] = deque(maxlen=_MOST_SENT)

    def send(self, msg: can.Message, timeout: float | None = None) -> None:
        data = pack_message(msg)
        self._sent.append(data)
        self._multicast.send(data, timeout)

    def _recv_internal(self, timeout: float | None) -> tuple[can.Message | None, bool]:
        until = None if timeout is None else time.monotonic() + timeout
        while received := self._multicast.recv(timeout):
            data, _, timestamp = received
            if data not in self._sent:
                try:
                    message = unpack_message(data, replace={"timestamp": timestamp}, check=True)
                except Exception as error:  # whatever msgpack makes of bytes that are not ours
                    raise can.CanOperationError("not a frame of python-can") from error
                return message, False
            self._sent.remove(data)
            if until is not None:
                timeout = max(until - time.monotonic(), 0.0)
        return None, False


def open_bus(spec: BusSpec) -> can.BusABC:
    """The bus, or a `BusError` with what to do."""
    try:
        if spec.interface == "socketcan":
            # Imported here: it opens kernel interfaces that only Linux has.
            from can.interfaces.socketcan import SocketcanBus

            return SocketcanBus(spec.channel)
        if spec.interface == "udp_multicast":
            # Classic frames only, so that nothing works here that the drives' buses refuse.
            return _UdpBus(spec.channel, port=spec.port, fd=False)
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
