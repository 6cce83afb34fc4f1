"""Metrics of the emulated robot beyond those of every service; see `krabby.runtime.metrics`."""

from krabby.runtime.metrics import Totals, children
from prometheus_client import Counter, Gauge

from krabby_emulator.can import CanSide
from krabby_emulator.faults import FAULTS
from krabby_emulator.robot import EmulatedRobot

__all__ = ["Exposition"]

_FRAMES = Counter("krabby_emulator_can_frames_total", "CAN frames", ["bus", "direction"])
_WINDING = Gauge("krabby_emulator_winding_celsius", "Winding of a drive", ["joint"])
_SUPPLY_V = Gauge("krabby_emulator_supply_volts", "Supply at the drives")
_SUPPLY_A = Gauge("krabby_emulator_supply_amperes", "Current of all drives")
_RUNNING = Gauge("krabby_emulator_drives_running", "Drives that are switched on")
_TRIPS = Counter("krabby_emulator_drive_trips_total", "Times a drive switched itself off")
_BROKEN = children(
    Gauge("krabby_emulator_fault_active", "1 while the fault is injected", ["kind"]),
    FAULTS,
)
_FALLS = Counter("krabby_emulator_falls_total", "Falls since the start")
_DISTANCE = Gauge("krabby_emulator_distance_meters", "Walked forward along the course")
_REAL_TIME_FACTOR = Gauge(
    "krabby_emulator_real_time_factor", "Simulated over real time, since the loop started"
)


class Exposition:
    """Hands what is counted elsewhere to the metrics, a few times a second."""

    def __init__(self, robot: EmulatedRobot, can: CanSide) -> None:
        self._robot = robot
        self._can = can
        self._winding = [_WINDING.labels(name) for name in robot.desc.joint_names]
        self._frames = {
            (bus, direction): _FRAMES.labels(bus, direction)
            for bus, directions in can.totals().items()
            for direction in directions
        }
        self._totals = Totals()

    def update(self, real_time_factor: float) -> None:
        """Bring every metric up to date."""
        robot, bank = self._robot, self._robot.bank
        for gauge, value in zip(self._winding, bank.winding_c.tolist(), strict=True):
            gauge.set(value)
        for bus, directions in self._can.totals().items():
            for direction, count in directions.items():
                self._totals.show(self._frames[bus, direction], count)
        active = {fault.kind for fault in robot.board.active}
        for kind, gauge in _BROKEN.items():
            gauge.set(kind in active)
        _SUPPLY_V.set(bank.supply_v)
        _SUPPLY_A.set(bank.supply_a)
        _RUNNING.set(bank.running)
        self._totals.show(_TRIPS, bank.trips)
        self._totals.show(_FALLS, robot.falls)
        _DISTANCE.set(robot.progress.distance_m)
        _REAL_TIME_FACTOR.set(real_time_factor)
