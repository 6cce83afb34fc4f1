"""Keys of robots and clients: which roles a key has, and the file a client connects with.

A robot's key folder (mode 0700) holds::

    robot.toml              public and secret key of the robot
    robot-next.toml         the next ones, between the two steps of a rotation
    authorised/NAME.toml    public key and roles of one client

A client has one file with its own pair and the robot's public key. Keys are CURVE25519 in the Z85
text form of ZeroMQ, 40 characters.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import struct
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import zmq
from zmq.utils import z85

from krabby_proto.errors import KeyFileError
from krabby_proto.folder import private_folder

__all__ = [
    "ANY_ROLE",
    "ROLES",
    "ClientKey",
    "KeyFolder",
    "KeyPair",
    "Listed",
    "client_key",
    "client_key_path",
    "use_client_key",
]

ROLES: Final = ("see", "operate", "command", "stop")
"""see: streams and status. operate: arm, reset, stand, sit, policy, walking commands. command:
joint commands. stop: nothing but the e-stop, which every key of the robot has."""
ANY_ROLE: Final = frozenset(ROLES)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_MOST_KEYS: Final = 1000
_MOST_BYTES: Final = 4096


class KeyPair(NamedTuple):
    """A CURVE pair in Z85 text."""

    public: str
    secret: str

    @classmethod
    def make(cls) -> KeyPair:
        """A new random pair, whose public key no command line takes for an option."""
        while True:
            public, secret = zmq.curve_keypair()
            if not public.startswith(b"-"):
                return cls(public.decode(), secret.decode())


class ClientKey(NamedTuple):
    """What a client needs to connect to one robot."""

    pair: KeyPair
    robot: str
    """Public key of the robot."""

    @property
    def options(self) -> list[tuple[int, bytes]]:
        """Socket options of a connecting socket."""
        return [
            (zmq.CURVE_SERVERKEY, self.robot.encode()),
            (zmq.CURVE_PUBLICKEY, self.pair.public.encode()),
            (zmq.CURVE_SECRETKEY, self.pair.secret.encode()),
        ]

    @classmethod
    def read(cls, path: Path) -> ClientKey:
        """Read a client's file; raises `KeyFileError`."""
        table = _read(path, secret=True)
        return cls(_pair(table, path), _key(table, "robot", path))

    def write(self, path: Path) -> None:
        """Write a client's file, readable by this user alone; raises `KeyFileError`."""
        _write(path, {"robot": self.robot, **self.pair._asdict()}, replace=False)


class Listed(NamedTuple):
    """One authorised client."""

    name: str
    public: str
    roles: frozenset[str]


class KeyFolder:
    """A robot's key folder; made with a new key of the robot when it is empty.

    Raises:
        KeyFileError: the folder is not private, or a file in it is unusable.
        EndpointError: the folder cannot be made or is not private.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        private_folder(path)
        (path / "authorised").mkdir(mode=0o700, exist_ok=True)
        if not self._robot.exists():
            _write(self._robot, KeyPair.make()._asdict(), replace=False)

    @property
    def _robot(self) -> Path:
        return self.path / "robot.toml"

    @property
    def _next(self) -> Path:
        return self.path / "robot-next.toml"

    def robot(self) -> KeyPair:
        """The robot's pair."""
        return _pair(_read(self._robot, secret=True), self._robot)

    def next_robot(self) -> KeyPair | None:
        """The pair that a rotation of the robot's key changes to; None without one."""
        return _pair(_read(self._next, secret=True), self._next) if self._next.exists() else None

    def begin_rotation(self) -> KeyPair:
        """Make the robot's next pair; it is served beside the present one from now on."""
        if self._next.exists():
            raise KeyFileError("a rotation is under way; run krabby keys rotate --finish")
        _write(self._next, KeyPair.make()._asdict(), replace=False)
        return _pair(_read(self._next, secret=True), self._next)

    def finish_rotation(self) -> None:
        """Make the next pair the only one."""
        if not self._next.exists():
            raise KeyFileError("no rotation is under way; run krabby keys rotate")
        self._next.replace(self._robot)

    def authorised(self) -> list[Listed]:
        """The clients, by name."""
        found = sorted((self.path / "authorised").glob("*.toml"))
        if len(found) > _MOST_KEYS:
            raise KeyFileError(f"{self.path}/authorised has over {_MOST_KEYS} keys; revoke some")
        return [self._listed(path) for path in found]

    def authorise(self, name: str, public: str, roles: Iterable[str]) -> None:
        """Let a key in with these roles; replaces the roles of a key of that name."""
        roles = list(dict.fromkeys(roles))
        wrong = [role for role in roles if role not in ROLES]
        if wrong or not roles:
            raise KeyFileError(f"no role is called {wrong}; roles are {', '.join(ROLES)}")
        others = [one.name for one in self.authorised() if one.public == public]
        if others and others != [name]:
            raise KeyFileError(f"that key is authorised already, as {others[0]}; revoke it first")
        _check_key(public, "public", self._path(name))
        _write(self._path(name), {"public": public, "roles": roles}, replace=True)

    def revoke(self, name: str) -> None:
        """Shut a key out."""
        try:
            self._path(name).unlink()
        except FileNotFoundError:
            known = ", ".join(one.name for one in self.authorised()) or "none"
            raise KeyFileError(f"no key is called {name!r}; there is {known}") from None

    def stamp(self) -> object:
        """Changes whenever a key does; cheap."""
        clients = sorted((self.path / "authorised").glob("*.toml"))
        facts: list[tuple[int, ...]] = []
        for path in (self.path, self.path / "authorised", *clients, self._robot, self._next):
            with contextlib.suppress(OSError):
                found = path.stat()
                facts.append((found.st_ino, found.st_mtime_ns, found.st_mode, found.st_uid))
        return facts

    def check_name(self, name: str) -> None:
        """Refuse what cannot name a key."""
        if not _NAME.fullmatch(name):
            raise KeyFileError(
                f"{name!r} cannot name a key; use letters, digits, '.', '_' and '-', at most 64"
            )

    def _path(self, name: str) -> Path:
        self.check_name(name)
        return self.path / "authorised" / f"{name}.toml"

    def _listed(self, path: Path) -> Listed:
        table = _read(path, secret=False)
        given: object = table.get("roles")
        roles = cast("list[object]", given) if isinstance(given, list) else []
        known = frozenset(role for role in ROLES if role in roles)
        if not roles or len(known) != len(roles):
            raise KeyFileError(f"{path}: roles is {given!r}; give some of {', '.join(ROLES)}")
        return Listed(path.stem, _key(table, "public", path), known)


_chosen: Path | None = None


def use_client_key(path: Path) -> None:
    """Connect to ``curve://`` endpoints with this file from now on, in this process."""
    global _chosen
    _chosen = path


def client_key_path() -> Path:
    """The file that was chosen, else ``$KRABBY_KEY``, else ``~/.config/krabby/key.toml``."""
    if _chosen is not None:
        return _chosen
    named = os.environ.get("KRABBY_KEY")
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(named) if named else Path(config, "krabby", "key.toml")


def client_key() -> ClientKey:
    """The key this process connects with.

    Raises:
        KeyFileError: no file, or an unusable one.
    """
    return ClientKey.read(client_key_path())


def _read(path: Path, *, secret: bool) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise KeyFileError(
            f"key file {path} cannot be read: {error.strerror}; make one on the robot with "
            "krabby keys create NAME, and give it with --key FILE or KRABBY_KEY"
        ) from error
    if secret and stat.S_IMODE(mode) & 0o077:
        raise KeyFileError(
            f"key file {path} has mode {stat.S_IMODE(mode):04o}, so other users can read the "
            f"secret; run chmod 600 {path}, and rotate the key if it may have been read"
        )
    try:
        if len(content) > _MOST_BYTES:
            raise ValueError(f"over {_MOST_BYTES} bytes")
        return tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise KeyFileError(f"{path} is not a key file: {error}") from error


def _pair(table: dict[str, Any], path: Path) -> KeyPair:
    pair = KeyPair(_key(table, "public", path), _key(table, "secret", path))
    if zmq.curve_public(pair.secret.encode()).decode() != pair.public:
        raise KeyFileError(f"{path}: public does not belong to secret; make a new key")
    return pair


def _key(table: dict[str, Any], name: str, path: Path) -> str:
    value = table.get(name)
    return _check_key(value, name, path)


def _check_key(value: object, name: str, path: Path) -> str:
    try:
        if isinstance(value, str) and len(value) == 40 and len(z85.decode(value)) == 32:
            return value
    except (ValueError, KeyError, OverflowError, struct.error):
        pass
    raise KeyFileError(f"{path}: {name} is not a key of 40 Z85 characters")


def _write(path: Path, table: dict[str, Any], *, replace: bool) -> None:
    """Write whole or not at all, with mode 0600."""
    lines = [
        f"{name} = {[*value] if isinstance(value, list) else repr(value)}\n"
        for name, value in table.items()
    ]
    text = "".join(lines).replace("'", '"')  # neither names nor Z85 have quotes
    part = path.with_name(f".{path.name}.part")
    try:
        if not replace and path.exists():
            raise KeyFileError(f"{path} exists already; remove it or give another name")
        part.unlink(missing_ok=True)
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise KeyFileError(f"key file {path} cannot be written: {error.strerror}") from error
