"""Recorded and replayed targets side by side: how far apart, where and when."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

    from krabby.control.replay import Replayed, Replayer
    from krabby_proto import Tick

__all__ = ["Comparison"]

_MOST_TICKS: Final = 2_000_000
"""Ticks whose targets are kept for a picture, over 5 hours; some 600 MB."""


class _Place(NamedTuple):
    tick: int
    time_s: float


class Comparison:
    """Collects ticks; `finish` ends it.

    Args:
        joint_names: (18,), in the order of the targets.
    """

    def __init__(self, joint_names: Sequence[str]) -> None:
        self.joint_names = tuple(joint_names)
        self.seen = self.replayed = 0
        """Ticks in the recording, and those decided again."""
        self.differing_bytes = self.differing_ticks = self.silent_ticks = 0
        """Silent: only one of run and replay gave targets."""
        self.first: _Place | None = None
        """Where they differ first."""
        self.policy_s: Counter[str] = Counter()
        """Seconds in which a policy walked in the replay, by name."""
        self.lost: list[str] = []
        """Ticks that were not decided again, and why."""
        self.gaps = False
        """Whether some of those lie behind the first tick that was."""
        self.differences: list[str] = []
        """How the replay's robot, policies and machine differ from the run's."""
        self.damage = ""
        self._first_ns: int | None = None
        self._last_ns = 0
        self._missed = 0
        self._times: list[float] = []
        self._targets: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
        self._largest = np.zeros(len(self.joint_names))
        self._largest_s = np.zeros(len(self.joint_names))

    def note(self, tick: Tick, replayed: Replayed | None) -> None:
        """Take the next tick of the recording."""
        self.seen += 1
        if replayed is None:
            self.gaps |= self.replayed > 0
            return
        if self._first_ns is None:
            self._first_ns = tick.now_ns
        period_s = (tick.now_ns - self._last_ns) * 1e-9 if self.replayed else 0.0
        self.replayed += 1
        self._last_ns = tick.now_ns
        time_s = (tick.now_ns - self._first_ns) * 1e-9
        if replayed.mode == "policy" and 0.0 <= period_s < 1.0:
            self.policy_s[replayed.policy] += period_s  # pyright: ignore[reportArgumentType]
        count = replayed.differing_bytes
        if count:
            self.differing_bytes += count
            self.differing_ticks += 1
            self.first = self.first or _Place(tick.tick, time_s)
        difference = replayed.difference
        if difference is None:
            self.silent_ticks += count > 0
            return
        size = np.abs(difference)
        larger = size > self._largest
        self._largest[larger], self._largest_s[larger] = size[larger], time_s
        if len(self._times) < _MOST_TICKS:
            assert tick.target is not None
            assert replayed.target is not None
            self._times.append(time_s)
            self._targets.append((tick.target, replayed.target))

    def finish(self, replayer: Replayer, damage: str) -> None:
        """Take over what the replayer noticed, and what of the file could not be read."""
        self.lost, self.differences = replayer.lost, replayer.differences
        self.gaps |= len(self.lost) > (1 if self._begins_late else 0)
        self.damage = damage

    @property
    def _begins_late(self) -> bool:
        """Whether the first ticks of the recording lie before its first snapshot."""
        return bool(self.lost) and self.lost[0].startswith("ticks ")

    @property
    def exact(self) -> bool:
        """Whether no byte differs, and there was something to compare."""
        return self.replayed > 0 and self.differing_bytes == 0

    @property
    def duration_s(self) -> float:
        """From the first to the last tick that was decided again [s]."""
        return 0.0 if self._first_ns is None else (self._last_ns - self._first_ns) * 1e-9

    @property
    def times_s(self) -> NDArray[np.float64]:
        """Of the ticks with targets on both sides, shape (n,)."""
        return np.array(self._times)

    @property
    def targets(self) -> NDArray[np.float64]:
        """Those of the run and of the replay [rad], shape (n, 2, 18)."""
        return np.array(self._targets).reshape(-1, 2, len(self.joint_names))

    def largest(self) -> list[tuple[str, float, float]]:
        """Joint, largest difference [rad] and its time [s]; largest first, zero left out."""
        order = np.argsort(-self._largest, kind="stable")
        return [
            (self.joint_names[i], float(self._largest[i]), float(self._largest_s[i]))
            for i in order
            if self._largest[i] > 0.0
        ]

    def facts(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "exact": self.exact and not self.gaps,
            "ticks": self.seen,
            "replayed_ticks": self.replayed,
            "duration_s": round(self.duration_s, 3),
            "differing_bytes": self.differing_bytes,
            "differing_ticks": self.differing_ticks,
            "silent_ticks": self.silent_ticks,
            "first": None if self.first is None else self.first._asdict(),
            "largest_rad": {
                joint: {"rad": rad, "time_s": round(time_s, 3)}
                for joint, rad, time_s in self.largest()
            },
            "policy_s": {name: round(value, 2) for name, value in self.policy_s.items()},
            "lost": self.lost,
            "not_as_in_the_run": self.differences,
            "damage": self.damage,
        }
