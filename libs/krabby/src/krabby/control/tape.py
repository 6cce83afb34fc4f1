"""Where a controller notes what it takes in, for a replay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from krabby_proto import CommandReply, Message

__all__ = ["Tape"]


class Tape(Protocol):
    """Takes a controller's inputs in the order in which they come, as `krabby_proto.TickRecord`.

    What a tick is given besides, states, features and time, the caller knows.
    """

    def add_seen(self, state: Message) -> None:
        """`LocomotionController.handle_state` was called."""
        ...

    def add_nav(self, message: Message, now_ns: int) -> None:
        """The filter of walking commands was given a message."""
        ...

    def add_reply(self, reply: CommandReply, sent_ns: int) -> None:
        """The reply to the command of the tick at `sent_ns` was handled."""
        ...

    def add_request(self, op: str, permission: int) -> None:
        """A request to stand or to sit, made under that permission, was taken by this tick."""
        ...

    def add_policy(self, policy: Mapping[str, object]) -> None:
        """Another policy was chosen: `name`, `path`, `hashes`."""
        ...
