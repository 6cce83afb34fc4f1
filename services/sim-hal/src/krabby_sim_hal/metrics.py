"""What sim-hal measures beyond what every HAL and every service does.

See `krabby.hal.metrics` and `krabby.runtime.metrics`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from krabby.hal.metrics import GateMetrics
from krabby.runtime.metrics import CAMERA_FRAMES_DROPPED, LOOP_WORK, Totals, children
from prometheus_client import Counter, Gauge

if TYPE_CHECKING:
    from collections.abc import Mapping

    from krabby_sim_hal.backend import Simulator

__all__ = ["WORK", "Exposition"]

WORK = children(LOOP_WORK, ("physics", "publish", "render"))
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
        self._gate = GateMetrics(sim.handler, sim.desc.joint_names)
        self.note_state = self._gate.note_state
        self._totals = Totals()

    def update(self, commands: Mapping[str, int], real_time_factor: float) -> None:
        """Bring every metric up to date; `commands` are totals by status."""
        sim = self._sim
        self._gate.update(sim.measured, sim.drive, commands)
        _DISTANCE.set(sim.progress.distance_m)
        _REAL_TIME_FACTOR.set(real_time_factor)
        self._totals.show(_FALLS, sim.falls)
        if sim.camera is not None:
            self._totals.show(_CAMERA_DROPPED, sim.camera.dropped)
