"""What lies between the gate's decision and torque on the joints: a bus delay and a motor.

The same `DriveCommand` that goes to real drives on the robot goes through here in simulation.
"""

from collections import deque
from typing import Generic, TypeVar

__all__ = ["DriveLine"]

Told = TypeVar("Told")
"""What drives are told: a `DriveCommand` of the gate, or what an emulated drive makes of frames."""


class DriveLine(Generic[Told]):
    """Delivers every drive command a fixed time after it was written.

    The simulation asks once per substep what is in force, so a command takes effect at the first
    substep that begins after its delivery.
    """

    def __init__(self, delay_s: float, idle: Told) -> None:
        self._delay_ns = round(delay_s * 1e9)
        self._pending: deque[tuple[int, Told]] = deque()
        self.current = idle
        """What was in force when somebody last asked."""

    def write(self, drive: Told, now_ns: int) -> None:
        """Hand over what the drives must do; `now_ns` does not run backwards."""
        self._pending.append((now_ns + self._delay_ns, drive))

    def at(self, time_ns: int) -> Told:
        """What is in force at `time_ns`; asking for a time forgets everything before it."""
        while self._pending and self._pending[0][0] <= time_ns:
            self.current = self._pending.popleft()[1]
        return self.current
