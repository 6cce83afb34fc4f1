"""Who may look, who may drive, and from which pages.

Two secrets belong to one start of `krabby view`: with the operator's one drives, with the viewer's,
which is derived from it, one sees. Both may stop the robot. A page sends its secret as its first
message; it stands behind `#` in the URL, which browsers do not send to servers.

Host and Origin of every request are checked: otherwise any page of the internet could let its
visitor's browser talk to a server on that visitor's loopback interface.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import secrets
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlsplit

from krabby_cli.errors import UsageError

__all__ = ["TOKEN_ENV", "Role", "Tokens", "host_allowed", "origin_allowed", "url"]

Role = Literal["see", "operate"]
"""As the roles of keys: `see` looks and may stop, `operate` drives too."""
TOKEN_ENV: Final = "KRABBY_VIEW_TOKEN"
"""Environment variable with the operator's secret, where another process has to know it."""
_LEAST_CHARACTERS: Final = 22
"""128 bits in base 64."""


@dataclass(frozen=True)
class Tokens:
    """The secrets of one start."""

    operate: str

    @classmethod
    def make(cls) -> Tokens:
        """What the environment says, else a random secret.

        Raises:
            UsageError: The secret in the environment is too short.
        """
        given = os.environ.get(TOKEN_ENV, "")
        if given and len(given) < _LEAST_CHARACTERS:
            raise UsageError(
                f"{TOKEN_ENV} has {len(given)} characters, too few for a secret; give "
                f"{_LEAST_CHARACTERS} random ones or more, or unset it"
            )
        return cls(given or secrets.token_urlsafe(16))

    @property
    def see(self) -> str:
        """The viewer's; the operator's cannot be computed from it."""
        return hashlib.sha256(b"see " + self.operate.encode()).hexdigest()[:24]

    def role(self, token: object) -> Role | None:
        """What a secret allows; None for a wrong one."""
        if not isinstance(token, str):
            return None
        given = token.encode()
        operates = hmac.compare_digest(given, self.operate.encode())
        sees = hmac.compare_digest(given, self.see.encode())
        return "operate" if operates else "see" if sees else None


def url(address: str, port: int, token: str) -> str:
    """Where a person opens the page."""
    shown = "127.0.0.1" if address in ("0.0.0.0", "::") else address
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/#{token}"


def host_allowed(host: str | None, *, loopback: bool, names: frozenset[str]) -> bool:
    """Whether a request's Host names this server.

    An address cannot be rebound to another machine, a name can: so names have to be listed.

    Args:
        host: The header.
        loopback: Whether the server listens on the loopback interface only.
        names: Names besides localhost.
    """
    try:
        name = urlsplit(f"//{host}").hostname if host else None
    except ValueError:
        return False
    if name is None:
        return False
    if name == "localhost" or name in names:
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or not loopback


def origin_allowed(origin: str | None, host: str | None) -> bool:
    """Whether a WebSocket comes from this server's own page, or from no page at all.

    Browsers send the header always; other programs need none, the secret protects from them.
    """
    if origin is None:
        return True
    parts = urlsplit(origin)
    return parts.scheme in ("http", "https") and bool(host) and parts.netloc == host
