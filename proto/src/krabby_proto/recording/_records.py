"""Reading an MCAP file record by record, trusting nothing in it."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from krabby_proto.recording._format import extra

__all__ = ["CHUNK", "MAGIC", "MESSAGE", "METADATA", "RECORD", "records_of", "text_map", "unpacked"]

MAGIC: Final = b"\x89MCAP0\r\n"
RECORD: Final = struct.Struct("<BQ")
FOOTER, MESSAGE, CHUNK, METADATA, DATA_END = 0x02, 0x05, 0x06, 0x0C, 0x0F
_CHUNK_HEAD: Final = struct.Struct("<QQQII")
_LARGEST: Final = 32 << 20
"""Largest record and largest chunk that are read."""
_U32: Final = struct.Struct("<I")


def records_of(
    path: Path, note: Callable[[str], None], *, wanted: frozenset[int]
) -> Iterator[tuple[int, int, bytes]]:
    """Place, opcode and content of each record of the data section; others are skipped.

    Args:
        path: the file.
        note: called with what is damaged.
        wanted: opcodes to read.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                note("it does not begin as an MCAP file does")
                return
            yield from _records(file, note, wanted)
    except OSError as error:
        note(f"{error.strerror} while reading")


def _records(
    file: BinaryIO, note: Callable[[str], None], wanted: frozenset[int]
) -> Iterator[tuple[int, int, bytes]]:
    size = file.seek(0, 2)
    place = file.seek(len(MAGIC))
    while True:
        head = file.read(RECORD.size)
        if len(head) == RECORD.size:
            opcode, length = RECORD.unpack(head)
            if opcode in (DATA_END, FOOTER):
                return
            if length > _LARGEST:
                note(f"a record claims {length} bytes, at most {_LARGEST} are read")
                return
            end = place + RECORD.size + length
            if end <= size:
                if opcode in wanted:
                    yield place, opcode, file.read(length)
                file.seek(end)
                place = end
                continue
        note("it ends in the middle; was the recorder stopped cleanly?")
        return


def unpacked(content: bytes) -> tuple[int, bytes]:
    """Time of the first message [ns] and the records of a chunk.

    Raises:
        ValueError: it is damaged, or holds more than is read.
    """
    try:
        start_ns, _, size, crc, count = _CHUNK_HEAD.unpack_from(content)
    except struct.error as error:
        raise ValueError(str(error)) from error
    compression = content[_CHUNK_HEAD.size :][:count]
    packed = content[_CHUNK_HEAD.size + count + 8 :]  # behind its own length
    return start_ns, _decompressed(compression, packed, size, crc)


def _decompressed(compression: bytes, packed: bytes, size: int, crc: int) -> bytes:
    if size > _LARGEST:
        raise ValueError(f"it claims {size} bytes, at most {_LARGEST} are read")
    if compression == b"zstd":
        zstandard = extra("zstandard")
        opener = zstandard.ZstdDecompressor(max_window_size=_LARGEST)
        try:
            with opener.stream_reader(packed) as reader:
                data: bytes = reader.read(size + 1)
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error
    elif compression == b"":
        data = packed
    else:
        raise ValueError(f"its compression {compression[:8]!r} is not supported")
    if len(data) != size:
        has = f"more than {size}" if len(data) > size else f"{len(data)}"
        raise ValueError(f"it claims {size} bytes and has {has}")
    if crc not in (0, zlib.crc32(data)):
        raise ValueError("its CRC-32 is another one")
    return data


def text_map(content: bytes) -> tuple[str, dict[str, str]]:
    """Name and fields of a metadata record; raises `ValueError` when it is damaged."""
    name, at = _text(content, 0)
    fields: dict[str, str] = {}
    if at + 4 > len(content):
        raise ValueError("a metadata record ends in the middle")
    end = at + 4 + _U32.unpack_from(content, at)[0]
    at += 4
    while at < min(end, len(content)):
        key, at = _text(content, at)
        fields[key], at = _text(content, at)
    if at != end:
        raise ValueError("a metadata record ends in the middle")
    return name, fields


def _text(content: bytes, at: int) -> tuple[str, int]:
    if at + 4 > len(content):
        raise ValueError("a metadata record ends in the middle")
    end = at + 4 + _U32.unpack_from(content, at)[0]
    if end > len(content):
        raise ValueError("a metadata record ends in the middle")
    return content[at + 4 : end].decode("utf-8", "replace"), end
