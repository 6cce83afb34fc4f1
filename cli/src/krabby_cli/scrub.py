"""Secrets and personal names out of what leaves this machine: texts, and recordings.

Removed are: keys of the robot and its clients (40 characters of Z85), values behind words such as
token or password, credentials in URLs, PEM blocks, values of environment variables with such names,
and the names of this host, this user and the home folder.
"""

from __future__ import annotations

import getpass
import os
import re
import socket
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from krabby_proto import HEADER_SIZE
from krabby_proto.header import MAGIC

if TYPE_CHECKING:
    from typing import BinaryIO

__all__ = ["Scrubber"]

_SECRET_WORD: Final = (
    r"[\w.-]*(?:token|secret|passwd|password|passphrase|api[_-]?key|private[_-]?key|credential"
    r"|authori[sz]ation|cookie)[\w.-]*"
)
_VALUE: Final = re.compile(
    rf"(?i)(?P<name>[\"']?{_SECRET_WORD}[\"']?\s*[:=]\s*(?:(?:bearer|basic)\s+)?[\"']?)"
    r"(?P<value>[^\s\"',;}}\]]+)"
)
_BEARER: Final = re.compile(r"(?i)(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}")
_LOGIN: Final = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)[^/\s:@\"']+:[^/\s@\"']+@")
_PEM: Final = re.compile(r"-----BEGIN [A-Z ]+-----.*?(?:-----END [A-Z ]+-----|\Z)", re.DOTALL)
_Z85: Final = re.compile(r"(?<=[\"'=\s])[0-9A-Za-z.:+=^!/*?&<>()\[\]{}@%$#-]{40}(?=[\"'\s]|$)")
_ENV_NAME: Final = re.compile(r"(?i)token|secret|passw|passphrase|key|credential|cookie|auth")
_LEAST: Final = 4
"""Letters of a name that is looked for everywhere."""
_COMMON: Final = frozenset({"root", "user", "localhost", "krabby", "home", "jetson", "ubuntu"})
"""Names that tell nothing, and would be found in every text."""


class Scrubber:
    """Knows the secrets and names of this machine and user."""

    def __init__(self, names: Mapping[str, str] | None = None) -> None:
        """Look for them.

        Args:
            names: what to replace, with what, besides the usual; for tests.
        """
        found = {**_own_names(), **_environment(), **dict(names or {})}
        # The longest first: a home folder holds the user's name.
        self._literals = sorted(found.items(), key=lambda each: -len(each[0]))
        self.removed = 0
        """How often something was taken out."""

    def text(self, text: str) -> str:
        """The text without them; what was removed is named in angle brackets."""
        for secret, name in self._literals:
            self.removed += text.count(secret)
            text = text.replace(secret, f"<{name}>")
        for pattern, instead in (
            (_PEM, "<key>"),
            (_LOGIN, r"\g<scheme><login>@"),
            (_VALUE, r"\g<name><removed>"),
            (_BEARER, r"\1 <removed>"),
            (_Z85, "<key>"),
        ):
            text, count = pattern.subn(instead, text)
            self.removed += count
        return text

    def data(self, data: bytes) -> bytes:
        """Bytes with names and secrets replaced by as many `x`; a CRC of the wire is renewed."""
        out = data
        for secret, _ in self._literals:
            raw = secret.encode()
            if raw in out:
                self.removed += out.count(raw)
                out = out.replace(raw, b"x" * len(raw))
        if out is not data and out[:4] == MAGIC and len(out) >= HEADER_SIZE:
            payload = out[HEADER_SIZE:]
            out = out[: HEADER_SIZE - 4] + zlib.crc32(payload).to_bytes(4, "little") + payload
        return out

    def recording(self, source: BinaryIO, target: BinaryIO) -> None:
        """Copy an MCAP file without them; a hash chain or signature in it is lost.

        What is damaged is left out.
        """
        from mcap.exceptions import McapError
        from mcap.records import Channel, Message, Metadata, Schema
        from mcap.stream_reader import StreamReader
        from mcap.writer import Writer

        writer = Writer(target)
        writer.start(profile="krabby", library="krabby bundle")
        schemas: dict[int, int] = {0: 0}
        channels: dict[int, int] = {}
        try:
            for record in StreamReader(source).records:
                if isinstance(record, Schema):
                    schemas.setdefault(
                        record.id, writer.register_schema(record.name, record.encoding, record.data)
                    )
                elif isinstance(record, Channel) and record.id not in channels:
                    channels[record.id] = writer.register_channel(
                        record.topic,
                        record.message_encoding,
                        schemas.get(record.schema_id, 0),
                        {key: self.text(value) for key, value in record.metadata.items()},
                    )
                elif isinstance(record, Message) and record.channel_id in channels:
                    writer.add_message(
                        channel_id=channels[record.channel_id],
                        log_time=record.log_time,
                        data=self.data(record.data),
                        publish_time=record.publish_time,
                        sequence=record.sequence,
                    )
                elif isinstance(record, Metadata):
                    kept = {key: self.text(value) for key, value in record.metadata.items()}
                    writer.add_metadata(record.name, kept)
        except (McapError, ValueError, EOFError, OSError):
            pass  # a file that was cut ends here
        finally:
            writer.finish()


def _own_names() -> dict[str, str]:
    names: dict[str, str] = {}
    host = socket.gethostname()
    for name in {host, host.partition(".")[0], socket.getfqdn()}:
        names[name] = "host"
    home = os.path.expanduser("~")
    names[home] = "home"
    for name in (os.environ.get("USER", ""), os.environ.get("LOGNAME", ""), _user()):
        names[name] = "user"
    usable = {n: what for n, what in names.items() if len(n) >= _LEAST and n not in _COMMON}
    for path in _key_files():
        usable |= dict.fromkeys(_values(path), "key")
    return usable


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


def _environment() -> dict[str, str]:
    return {
        value: "secret"
        for name, value in os.environ.items()
        if _ENV_NAME.search(name) and len(value) >= 8 and not Path(value).exists()
    }


def _key_files() -> Iterable[Path]:
    from krabby_cli.key_files import default_folder

    folder = default_folder()
    named = os.environ.get("KRABBY_KEY", "")
    paths = [Path(named)] if named else []
    for place in (folder, folder.parent):
        if place.is_dir():
            paths += [path for path in place.iterdir() if path.is_file()]
    return paths


def _values(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [each for each in re.findall(r"[^\s\"']{40}", text) if each]
