"""Whether a recording is as it was written."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from krabby_proto.errors import RecordingError
from krabby_proto.recording._chain import LINK, SEAL, metadata_record, signed_text
from krabby_proto.recording._format import extra
from krabby_proto.recording._records import CHUNK, MAGIC, METADATA, RECORD, text_map, unpacked

__all__ = ["Verdict", "verify"]

_PIECE: Final = 1 << 20
_LARGEST: Final = 32 << 20
"""Largest metadata record or chunk that is looked into."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What `verify` found."""

    intact: bool
    """Whether every byte is as it was written."""
    text: str
    """In words: what was checked, or what is wrong and where."""
    verified: int
    """Bytes from the beginning that are as they were written."""
    size: int
    """Of the file [bytes]."""
    signer: str = ""
    """Public key of who signed all that was verified; empty for unsigned."""


class _Damage(Exception):  # noqa: N818 - what was found, not a failure
    pass


def verify(path: Path, signer: str = "") -> Verdict:
    """Check the hash chain, and the signatures where there are some.

    Args:
        path: the recording.
        signer: public key that must have signed it, 64 hexadecimal digits; empty for any or none.

    Raises:
        RecordingError: there is no such file.
    """
    try:
        with path.open("rb") as file:
            return _Check(file, signer.lower()).run()
    except OSError as error:
        raise RecordingError(f"cannot read {path}: {error.strerror}") from error


class _Check:
    """One pass over a file."""

    def __init__(self, file: BinaryIO, signer: str) -> None:
        self._file = file
        self._wanted = signer
        self._size = file.seek(0, 2)
        file.seek(0)
        self._hash = hashlib.sha256()
        self._at = 0
        self._verified = 0
        self._links = 0
        self._signers: set[str] = set()
        self._suspect = ""
        """First record since the last link that is damaged in itself."""

    def run(self) -> Verdict:
        try:
            sealed = self._walk()
        except _Damage as damage:
            return self._verdict(False, str(damage))
        if not self._links and not sealed:
            text = "it has no hash chain: `krabby record` of this version writes one"
            return self._verdict(False, text)
        if not sealed:
            left = self._size - self._verified
            return self._verdict(
                False,
                f"it has no seal, the recorder was ended: intact up to byte {self._verified}, the "
                f"last {left} bytes are not covered",
            )
        if self._wanted and self._signers != {self._wanted}:
            found = ", ".join(sorted(one or "nobody" for one in self._signers))
            return self._verdict(False, f"it is signed by {found}, not by {self._wanted}")
        return self._verdict(True, f"every one of {self._size} bytes is as it was written")

    def _verdict(self, intact: bool, text: str) -> Verdict:
        signer = next(iter(self._signers)) if intact and len(self._signers) == 1 else ""
        return Verdict(
            intact=intact, text=text, verified=self._verified, size=self._size, signer=signer
        )

    def _walk(self) -> bool:
        """Go through the records; whether there is a seal, which then fits."""
        if self._take(len(MAGIC)) != MAGIC:
            raise _Damage("bytes 0 to 8 are changed: it does not begin as an MCAP file does")
        while self._at < self._size:
            place = self._at
            head = self._file.read(RECORD.size)
            if len(head) < RECORD.size:
                return False
            opcode, length = RECORD.unpack(head)
            if place + RECORD.size + length > self._size:
                if self._links and place + RECORD.size + length > self._size + _LARGEST:
                    raise _Damage(self._changed(place, "the length of a record cannot be"))
                return False
            if opcode == METADATA and length < _LARGEST:
                if self._metadata(place, head, self._file.read(length)):
                    return True
                continue
            self._hash.update(head)
            self._at += len(head)
            if opcode == CHUNK and length < _LARGEST:
                self._look_into(place, self._take(length))
            else:
                self._skip(length)
        return False

    def _metadata(self, place: int, head: bytes, content: bytes) -> bool:
        """A metadata record at `place`; whether it is the seal, which then fits."""
        try:
            name, fields = text_map(content)
        except ValueError:
            raise _Damage(self._changed(place, "a metadata record is damaged")) from None
        record = head + content
        if name in (LINK, SEAL):
            self._check(place, name, fields, record)
        self._hash.update(record)
        self._at += len(record)
        if name == LINK:
            self._links += 1
            self._verified = place
        if name != SEAL:
            return False
        tail = hashlib.sha256()
        while piece := self._file.read(_PIECE):
            tail.update(piece)
        if tail.hexdigest() != fields["tail_sha256"]:
            self._verified = place
            raise _Damage(
                f"a byte from {self._at} to {self._size} is changed: in the index, or behind it"
            )
        self._verified = self._size
        return True

    def _check(self, place: int, name: str, fields: dict[str, str], record: bytes) -> None:
        names = ["sha256", "bytes", "signature", "public"]
        if name == SEAL:
            names.insert(2, "tail_sha256")
        if list(fields) != names or record != metadata_record(name, fields):
            raise _Damage(self._changed(place + len(record), f"the record {name} is damaged"))
        if fields["bytes"] != str(place) or fields["sha256"] != self._hash.hexdigest():
            # The record itself may be what was changed.
            raise _Damage(self._changed(place + len(record), self._suspect))
        if fields["public"] or fields["signature"]:
            self._check_signature(place, fields)
        self._signers.add(fields["public"])
        self._suspect = ""

    def _check_signature(self, place: int, fields: dict[str, str]) -> None:
        signing, errors = extra("nacl.signing"), extra("nacl.exceptions")
        try:
            if any(text != text.lower() for text in (fields["public"], fields["signature"])):
                raise ValueError("digits are written in lower case")
            key: Any = signing.VerifyKey(bytes.fromhex(fields["public"]))
            key.verify(signed_text(fields), bytes.fromhex(fields["signature"]))
        except (ValueError, TypeError, errors.CryptoError):
            raise _Damage(
                f"the signature at byte {place} does not fit: it was changed, or written by "
                "another than it says"
            ) from None

    def _changed(self, end: int, why: str) -> str:
        where = f"a byte from {self._verified} to {min(end, self._size)} is changed"
        return f"{where}: {why}" if why else where

    def _look_into(self, place: int, content: bytes) -> None:
        """Note a chunk that is damaged in itself: it tells the place more closely."""
        try:
            unpacked(content)
        except ValueError as error:
            end = place + RECORD.size + len(content)
            self._suspect = self._suspect or f"the chunk at bytes {place} to {end} ({error})"

    def _take(self, count: int) -> bytes:
        data = self._file.read(count)
        self._hash.update(data)
        self._at += len(data)
        return data

    def _skip(self, count: int) -> None:
        while count:
            count -= len(self._take(min(count, _PIECE)))
