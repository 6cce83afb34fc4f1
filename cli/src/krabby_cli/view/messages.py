"""What a page may send: JSON objects with `t` as their tag, checked before anything is done."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct, json

__all__ = [
    "MAX_BYTES",
    "Ask",
    "Back",
    "Estop",
    "Ping",
    "Play",
    "Policy",
    "Sticks",
    "Take",
    "Token",
    "parse",
]

MAX_BYTES: Final = 1024
"""Of a message; a larger one ends the connection."""

Stick = Annotated[float, Meta(ge=-1, le=1)]
Milliseconds = Annotated[float, Meta(ge=0, le=1e13)]


class _Message(Struct, tag_field="t", forbid_unknown_fields=True):
    pass


class Token(_Message, tag="token"):
    """The first message of a page."""

    token: Annotated[str, Meta(max_length=200)]


class Sticks(_Message, tag="sticks"):
    """What the person holds, 20 times a second while it is held, once more when let go."""

    s: tuple[Stick, Stick, Stick]
    """Forward, left, turn to the left."""
    n: Annotated[int, Meta(ge=0, lt=1 << 53)]
    """Input events of the person so far: keys with their repeats, moves of a stick."""
    at: Milliseconds
    """The page's clock."""


class Take(_Message, tag="take"):
    """Drive, in place of another page."""

    at: Milliseconds


class Back(_Message, tag="back"):
    """Hand the robot back: a mission may walk."""


class Ask(_Message, tag="ask"):
    """A request to gate or loop."""

    op: Literal["arm", "disarm", "reset", "stand", "sit"]
    at: Milliseconds


class Policy(_Message, tag="policy"):
    """Change the policy."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    at: Milliseconds


class Estop(_Message, tag="estop"):
    """Emergency stop."""


class Ping(_Message, tag="ping"):
    """Answered at once: for the delay that the page shows."""

    at: Milliseconds


class Play(_Message, tag="play"):
    """The time line of a recording; what is left out stays."""

    playing: bool | None = None
    speed: Annotated[float, Meta(ge=0.1, le=10)] | None = None
    at_s: Annotated[float, Meta(ge=0, le=1e6)] | None = None


Message = Token | Sticks | Take | Back | Ask | Policy | Estop | Ping | Play
_decoder: Final = json.Decoder(Message)


def parse(text: str) -> Message:
    """Read one message.

    Raises:
        msgspec.DecodeError: It is not one of those above.
    """
    return _decoder.decode(text)
