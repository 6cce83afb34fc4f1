"""The size that a JPEG file says it has; to decode one, use a library."""

from __future__ import annotations

import struct
from typing import Final

__all__ = ["jpeg_size"]

_SIZE: Final = struct.Struct(">HBHH")
"""Length of the segment, bits, height, width."""
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of segments that begin with the size."""


def jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Width and height [px]; None when it is no whole JPEG file."""
    if content[:2] != b"\xff\xd8" or content[-2:] != b"\xff\xd9":
        return None
    at = 2
    while at + 2 + _SIZE.size <= len(content) and content[at] == 0xFF:
        length, _, height, width = _SIZE.unpack_from(content, at + 2)
        if content[at + 1] in _FRAMES:
            return width, height
        at += 2 + length
    return None
