"""How a simulated run is getting on: the truth stream, for people and for the last figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self

from krabby_proto import TRUTH, LatestSubscriber, unpack

if TYPE_CHECKING:
    from krabby_proto import FloatArray

__all__ = ["Progress"]

_WALKING_M: Final = 0.05


class Progress:
    """Follows `truth`; one socket, read without waiting."""

    def __init__(self, endpoint: str) -> None:
        self._subscriber = LatestSubscriber(endpoint, TRUTH)
        self._fields: dict[str, FloatArray] = {}

    def poll(self) -> None:
        """Take the newest message. Ten times a second keeps the queue of a 100 Hz stream short."""
        messages = self._subscriber.drain()
        if messages:
            self._fields = unpack(TRUTH, messages[-1].payload)

    @property
    def is_known(self) -> bool:
        """Whether anything was heard yet."""
        return bool(self._fields)

    @property
    def has_walked(self) -> bool:
        """Whether the robot has left its place."""
        return self._value("distance") > _WALKING_M

    @property
    def latest(self) -> dict[str, float]:
        """The newest figures, under the names of the summary; empty before the first message."""
        if not self._fields:
            return {}
        return {
            "distance_m": round(self._value("distance"), 3),
            "falls": int(self._value("falls")),
            "waypoints_reached": int(self._value("waypoint_index")),
            "sim_time_s": round(self._value("sim_time"), 3),
        }

    @property
    def waypoint_count(self) -> int:
        """Waypoints of the course; 0 before the first message."""
        return int(self._value("waypoint_count"))

    @property
    def is_over(self) -> bool:
        """Whether the course is completed or the robot has fallen."""
        reached, count = self._value("waypoint_index"), self.waypoint_count
        return self._value("falls") > 0 or 0 < count <= reached

    def describe(self) -> str:
        """One line for people."""
        if not self._fields:
            return "no truth yet"
        return (
            f"{self._value('distance'):.2f} m, {int(self._value('falls'))} falls, waypoint "
            f"{int(self._value('waypoint_index'))}/{self.waypoint_count}"
        )

    def _value(self, name: str) -> float:
        field = self._fields.get(name)
        return float(field[0]) if field is not None else 0.0

    def close(self) -> None:
        """Close the socket."""
        self._subscriber.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
