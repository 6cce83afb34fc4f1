"""Errors of the wire contract; each message has the values and a remedy."""

# Named for the fault, without the suffix "Error".
# ruff: noqa: N818

from __future__ import annotations

__all__ = [
    "AccessRefused",
    "BadMagic",
    "CorruptPayload",
    "EncodeError",
    "EndpointError",
    "EndpointInUse",
    "FrameError",
    "HelloMismatch",
    "KeyFileError",
    "ProtoError",
    "RecordingError",
    "RequestTimeout",
    "SchemaVersionMismatch",
    "ShortFrame",
    "WrongFrameCount",
    "WrongLength",
    "WrongStream",
]


class ProtoError(Exception):
    """Base of every error of this package."""


class FrameError(ProtoError):
    """A received message is not what the contract says; drop it, the socket is fine."""


class WrongFrameCount(FrameError):
    """A message does not have the frames topic, header, payload."""


class ShortFrame(FrameError):
    """A fixed-size frame has another size."""


class BadMagic(FrameError):
    """A frame does not start with the magic of its kind."""


class SchemaVersionMismatch(FrameError):
    """The sender speaks another version of the contract."""


class WrongStream(FrameError):
    """Topic, stream id and expected stream disagree."""


class WrongLength(FrameError):
    """Element count, payload bytes and the stream's fields disagree."""


class CorruptPayload(FrameError):
    """The payload's CRC-32 does not match the header."""


class EncodeError(ProtoError):
    """A value that does not fit the contract was to be sent."""


class EndpointError(ProtoError):
    """An endpoint cannot be bound or connected."""


class EndpointInUse(EndpointError):
    """Another process has bound the endpoint."""


class KeyFileError(EndpointError):
    """A key file is missing, unusable or readable by others."""


class RequestTimeout(ProtoError):
    """A peer did not answer in time."""


class AccessRefused(RequestTimeout):
    """A peer refused the connection, or is not the robot whose key this process has."""


class HelloMismatch(ProtoError):
    """Two peers disagree about the contract or about the robot."""


class RecordingError(ProtoError):
    """A recording cannot be written or read."""
