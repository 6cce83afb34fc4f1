"""The clock of a peer, which may run on another host: bounds on it from requests and replies.

Hosts do not share CLOCK_MONOTONIC. An answer that carries the peer's clock brackets it: the peer
read it after the request was sent and before the answer was received. The offset therefore lies
within half a round trip of its estimate, however unequal the two ways are. Later answers narrow the
bounds; between them the bounds widen by the drift that two clocks may have.

Stamps are translated by the sender, with the bound that makes them older, and ages are judged with
the bound that makes them greater: an error in the offset shortens what is accepted, it never makes
a message fresher than it is.
"""

from __future__ import annotations

from typing import Final

__all__ = ["PeerClock", "clocks_differ"]

_DRIFT: Final = 500e-6
"""Most by which a kernel lets CLOCK_MONOTONIC run fast or slow."""
_FOREIGN_S: Final = 10.0
"""A stamp older or newer than this is of another clock, not late."""


def clocks_differ(age_s: float) -> str:
    """Name a cause of an absurd age; empty when it is one that a late message may have.

    Args:
        age_s: now minus stamp [s].
    """
    if abs(age_s) < _FOREIGN_S:
        return ""
    return (
        f"clocks differ by {abs(age_s):.0f} s: the sender is on another host or in another time "
        "namespace and does not translate its stamps; install the same krabby-proto there"
    )


class PeerClock:
    """A peer's CLOCK_MONOTONIC, as bounds that contain it; times in ns.

    Two clocks whose offset may be zero count as one clock, which is that of processes on one host:
    nothing is translated then, and nothing before the first answer.

    Args:
        remote: the peer may be on another host. Then an offset that may be zero is not taken for
            zero: hosts that booted together have one of less than a round trip.
    """

    def __init__(self, *, remote: bool = False) -> None:
        self._remote = remote
        self.steps = 0
        """Answers that contradicted the bounds: the peer is another one, or was suspended."""
        self._bracket: tuple[int, int, int] | None = None
        """Bounds on the offset, and when they held; one value, since threads may read it."""

    def note(self, sent_ns: int, peer_ns: int, received_ns: int) -> None:
        """Take the answer to a request.

        Args:
            sent_ns: this host's clock before the request was sent.
            peer_ns: the peer's clock when it answered.
            received_ns: this host's clock after the answer arrived.
        """
        drifted = _drift(received_ns - sent_ns)
        low, high = peer_ns - received_ns - drifted, peer_ns - sent_ns + drifted
        if self._bracket is not None:
            known_low, known_high, noted_ns = self._bracket
            since = _drift(received_ns - noted_ns)
            known_low, known_high = known_low - since, known_high + since
            if known_low <= high and low <= known_high:
                low, high = max(low, known_low), min(high, known_high)
            else:
                self.steps += 1
        self._bracket = low, high, received_ns

    @property
    def known(self) -> bool:
        """Whether an answer has come."""
        return self._bracket is not None

    @property
    def shared(self) -> bool:
        """Whether this may be the same clock."""
        low, high, _ = self._bracket or (0, 0, 0)
        return low <= 0 <= high

    @property
    def offset_s(self) -> float:
        """Peer's clock minus this host's, the middle of the bounds; 0 for one clock [s]."""
        low, high = self._bounds()
        return (low + high) * 0.5e-9

    @property
    def error_s(self) -> float:
        """Largest error of `offset_s` when the last answer came; 0 for one clock [s]."""
        low, high = self._bounds()
        return (high - low) * 0.5e-9

    def is_vague(self, local_ns: int, error_s: float) -> bool:
        """Whether no answer has come, or the error has grown beyond `error_s` since the last."""
        low, high = self._bounds(local_ns)
        return not self.known or high - low > 2e9 * error_s

    def earliest(self, local_ns: int) -> int:
        """What the peer's clock reads at least at `local_ns`: for stamps of what is sent to it."""
        return local_ns + self._bounds(local_ns)[0]

    def latest(self, local_ns: int) -> int:
        """What it reads at most: for the age of what the peer stamped."""
        return local_ns + self._bounds(local_ns)[1]

    def _bounds(self, local_ns: int | None = None) -> tuple[int, int]:
        """Bounds at a time of this host, when the last answer came if None; zero for one clock."""
        bracket = self._bracket
        if bracket is None or (bracket[0] <= 0 <= bracket[1] and not self._remote):
            return 0, 0
        low, high, noted_ns = bracket
        drifted = 0 if local_ns is None else _drift(local_ns - noted_ns)
        return low - drifted, high + drifted


def _drift(elapsed_ns: int) -> int:
    """By how much two clocks may have drifted apart, rounded up [ns]."""
    return 1 + round(abs(elapsed_ns) * 2 * _DRIFT)
