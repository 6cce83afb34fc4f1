"""What sim-hal measures beyond what every HAL and every service does.

See `krabby.hal.metrics` and `krabby.runtime.metrics`.
"""

from __future__ import annotations

from krabby.runtime.metrics import CAMERA_FRAMES_DROPPED, Totals
from prometheus_client import Counter, Gauge

from krabby_sim_hal.backend import Simulator

__all__ = ["Exposition"]

_FALLS = Counter("krabby_falls_total", "Falls since the start")
_DISTANCE = Gauge("krabby_course_distance_meters", "Walked forward along the course")
_CAMERA_DROPPED = CAMERA_FRAMES_DROPPED.labels("sensor")
_REAL_TIME_FACTOR = Gauge(
    "krabby_real_time_factor", "Simulated over real time, since the loop started"
)


class Exposition:
    """Hands what is counted elsewhere to the metrics, a few times a second."""

    def __init__(self, sim: Simulator) -> None:
        self._sim = sim
        self._totals = Totals()

    def update(self) -> None:
        """Bring every metric up to date."""
        sim = self._sim
        _DISTANCE.set(sim.progress.distance_m)
        _REAL_TIME_FACTOR.set(sim.real_time_factor)
        self._totals.show(_FALLS, sim.falls)
        if sim.camera is not None:
            self._totals.show(_CAMERA_DROPPED, sim.camera.dropped)
