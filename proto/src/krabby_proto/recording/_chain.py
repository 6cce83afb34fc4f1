"""A hash chain through a recording, so that a change of any bit shows, and where.

Metadata records named `krabby.link` stand in the file, one for every flush: `sha256` is that of all
bytes in front of the record, `bytes` their number, `signature` one of both. The last record of the
data section is `krabby.seal`; it has besides `tail_sha256`, of all bytes behind it: the index and
the end of the file. A file without a seal was cut short; it is intact up to its last link.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from krabby_proto.errors import RecordingError
from krabby_proto.recording._format import extra

__all__ = ["LINK", "SEAL", "ChainedFile", "SigningKey", "metadata_record", "signed_text"]

LINK: Final = "krabby.link"
SEAL: Final = "krabby.seal"
_METADATA: Final = 0x0C
_NO_HASH: Final = "0" * 64
_NO_SIGNATURE: Final = "0" * 128


class SigningKey:
    """An Ed25519 key in a file of mode 0600: 64 hexadecimal digits."""

    def __init__(self, path: Path) -> None:
        """Read the key, or make one where there is no file.

        Raises:
            RecordingError: the file cannot be used.
        """
        signing = extra("nacl.signing")
        try:
            if not path.exists():
                text = bytes(signing.SigningKey.generate()).hex()
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(handle, "w") as file:
                    file.write(f"{text}\n")
            if path.stat().st_mode & 0o077:
                raise RecordingError(f"{path} can be read by others; chmod 600 {path}")
            self._key: Any = signing.SigningKey(bytes.fromhex(path.read_text().strip()))
        except OSError as error:
            raise RecordingError(f"cannot use the key {path}: {error.strerror}") from error
        except ValueError as error:
            raise RecordingError(
                f"{path} is not a key of 64 hexadecimal digits; remove it to make a new one"
            ) from error

    @property
    def public(self) -> str:
        """Public key, 64 hexadecimal digits."""
        return bytes(self._key.verify_key).hex()

    def sign(self, text: bytes) -> str:
        """Signature, 128 hexadecimal digits."""
        signature: bytes = self._key.sign(text).signature
        return signature.hex()


def signed_text(fields: Mapping[str, str]) -> bytes:
    """What the signature of a link or a seal is of."""
    names = ("sha256", "bytes", "tail_sha256")
    return b"krabby " + " ".join(fields.get(name, "") for name in names).encode()


class ChainedFile:
    """A file that knows the hash of what was written to it; what an MCAP writer writes to."""

    def __init__(self, file: BinaryIO, key: SigningKey | None) -> None:
        self._file = file
        self._key = key
        self._hash = hashlib.sha256()
        self._written = 0
        self._held: io.BytesIO | None = None

    def write(self, data: bytes) -> int:
        """Append."""
        if self._held is not None:
            return self._held.write(data)
        self._hash.update(data)
        self._written += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        """Bytes written so far."""
        return self._written + (0 if self._held is None else self._held.tell())

    def flush(self) -> None:
        """Hand what was written to the kernel."""
        self._file.flush()

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._file.closed

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def link(self) -> dict[str, str]:
        """Fields of the record that is written next."""
        fields = {"sha256": self._hash.hexdigest(), "bytes": str(self._written)}
        return fields | self._signature(fields)

    def begin_seal(self) -> dict[str, str]:
        """Fields of the last record; from now on what is written is held until `end_seal`."""
        fields = {"sha256": self._hash.hexdigest(), "bytes": str(self._written)}
        self._held = io.BytesIO()
        signed = self._key is not None
        return fields | {
            "tail_sha256": _NO_HASH,
            "signature": _NO_SIGNATURE if signed else "",
            "public": "" if self._key is None else self._key.public,
        }

    def end_seal(self, fields: Mapping[str, str]) -> None:
        """Write what was held, with the hash of what stands behind the seal in the seal."""
        assert self._held is not None, "begin_seal comes first"
        held, self._held = self._held.getvalue(), None
        size = len(metadata_record(SEAL, fields))
        tail = held[size:]
        known = {**fields, "tail_sha256": hashlib.sha256(tail).hexdigest()}
        self.write(metadata_record(SEAL, known | self._signature(known)) + tail)

    def _signature(self, fields: Mapping[str, str]) -> dict[str, str]:
        if self._key is None:
            return {"signature": "", "public": ""}
        return {"signature": self._key.sign(signed_text(fields)), "public": self._key.public}


def metadata_record(name: str, fields: Mapping[str, str]) -> bytes:
    """A metadata record as the writer of MCAP has it."""
    pairs = b"".join(_text(key) + _text(value) for key, value in fields.items())
    content = _text(name) + struct.pack("<I", len(pairs)) + pairs
    return struct.pack("<BQ", _METADATA, len(content)) + content


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<I", len(data)) + data
