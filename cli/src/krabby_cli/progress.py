"""Progress of a simulated run, from the truth stream."""

from __future__ import annotations

from typing import Final

from krabby_proto import TRUTH, LatestSubscriber, unpack

__all__ = ["Progress"]

_WALKING_M: Final = 0.05


class Progress(LatestSubscriber):
    """Follows `truth` without waiting; every figure is 0 before the first message."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint, TRUTH)
        self._values = dict.fromkeys(TRUTH.slices, 0.0)
        self.is_known = False
        """Whether a message has come."""

    def poll(self) -> None:
        """Take the newest message. Ten times a second keeps the queue of a 100 Hz stream short."""
        messages = self.drain()
        if messages:
            fields = unpack(TRUTH, messages[-1].payload)
            self._values = {name: float(field[0]) for name, field in fields.items()}
            self.is_known = True

    @property
    def has_walked(self) -> bool:
        """Whether the robot has left its place."""
        return self._values["distance"] > _WALKING_M

    @property
    def figures(self) -> dict[str, float]:
        """The newest figures under the summary's names; empty before the first message."""
        if not self.is_known:
            return {}
        return {
            "distance_m": round(self._values["distance"], 3),
            "falls": int(self._values["falls"]),
            "waypoints_reached": int(self._values["waypoint_index"]),
            "sim_time_s": round(self._values["sim_time"], 3),
        }

    @property
    def is_over(self) -> bool:
        """Whether the course is completed or the robot has fallen."""
        reached, count = self._values["waypoint_index"], self._values["waypoint_count"]
        return self._values["falls"] > 0 or 0 < count <= reached

    def describe(self) -> str:
        if not self.is_known:
            return "the simulator has not answered yet"
        figures, count = self.figures, int(self._values["waypoint_count"])
        return (
            f"{self._values['distance']:.2f} m, {figures['falls']} falls, waypoint "
            f"{figures['waypoints_reached']}/{count}"
        )
