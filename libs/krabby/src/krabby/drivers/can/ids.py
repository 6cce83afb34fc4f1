"""Whether every CAN id is one drive's: answers to no request, by bus and id.

A single surplus frame proves nothing. CAN repeats a frame when its sender missed the
acknowledgement, a command that is repeated so is answered twice, and an answer may come after its
request was given up. A second drive differs by how often it happens:

    An id is in conflict when answers to no request came 3 times within 1 s; those within 2 ms are
    one time, and each request that was given up excuses one time in the second after it.

A second drive that answers every command at 200 Hz is certain after three exchanges, one that
answers every tenth after 0.15 s on average. Repeats of one frame follow within tenths of a
millisecond, so they count once. A repeat needs an error in the last of some 150 bits of a frame:
where every hundredth frame is damaged, one of a drive's 400 frames a second is repeated every 40 s.
"""

from collections import deque
from typing import Final

import numpy as np
from numpy.typing import NDArray

from krabby.drivers.can.hardware import HardwareDescription
from krabby.drivers.can.types import DriveFault, IdConflict

__all__ = ["APART_NS", "TIMES", "WINDOW_NS", "IdWatch"]

TIMES: Final = 3
WINDOW_NS: Final = 1_000_000_000
APART_NS: Final = 2_000_000
"""The rule above."""
_SHARED_ID: Final = np.uint32(DriveFault.SHARED_ID)
_UNKNOWN_ID: Final = np.uint32(DriveFault.UNKNOWN_ID)


class IdWatch:
    """Counts answers to no request; keeps conflicts until `reset`."""

    def __init__(self, hardware: HardwareDescription) -> None:
        """No id is in conflict."""
        self._drives = hardware.drives
        self._seen: dict[tuple[str, int], deque[int]] = {}
        """When such answers were counted last, by bus and id."""
        self._last_ns: dict[tuple[str, int], int] = {}
        """When one came last, excused or counted; what follows within `APART_NS` is part of it."""
        self._excused: dict[tuple[str, int], deque[int]] = {}
        """When requests were sent that were given up."""
        self.conflicts: tuple[IdConflict, ...] = ()
        """In the order in which they were found."""

    def reset(self) -> None:
        """Forget what was found and what was counted; late answers stay excused."""
        self._seen.clear()
        self._last_ns.clear()
        self.conflicts = ()

    def excuse(self, bus: str, can_id: int, sent_ns: int) -> None:
        """A request was given up; its answer may still come."""
        self._excused.setdefault((bus, can_id), deque(maxlen=64)).append(sent_ns)

    def note(self, bus: str, can_id: int, now_ns: int) -> None:
        """An answer came under this id that no request waits for."""
        key = (bus, can_id)
        if now_ns - self._last_ns.get(key, now_ns - APART_NS) < APART_NS:
            return
        self._last_ns[key] = now_ns
        excused = self._excused.get(key)
        while excused and now_ns - excused[0] > WINDOW_NS:
            excused.popleft()
        if excused:
            excused.popleft()
            return
        seen = self._seen.setdefault(key, deque(maxlen=TIMES))
        seen.append(now_ns)
        if len(seen) == TIMES and now_ns - seen[0] <= WINDOW_NS:
            conflict = self._conflict(bus, can_id)
            if conflict not in self.conflicts:
                self.conflicts += (conflict,)

    def suspects(self, now_ns: int) -> bool:
        """Whether something was counted within the last second that is not certain yet."""
        known = {(conflict.bus, conflict.can_id) for conflict in self.conflicts}
        return any(
            key not in known and now_ns - seen[-1] <= WINDOW_NS for key, seen in self._seen.items()
        )

    def mark(self, faults: NDArray[np.uint32]) -> None:
        """Set the bits of what is certain: on the joint with the id, or on all of the bus."""
        for conflict in self.conflicts:
            bit = _SHARED_ID if conflict.joint else _UNKNOWN_ID
            for i, drive in enumerate(self._drives):
                if drive.bus == conflict.bus and conflict.joint in ("", drive.joint):
                    faults[i] |= bit

    def _conflict(self, bus: str, can_id: int) -> IdConflict:
        owners = [drive for drive in self._drives if drive.can_id == can_id]
        here = next((drive.joint for drive in owners if drive.bus == bus), "")
        there = next((str(drive) for drive in owners if not here), "")
        return IdConflict(bus, can_id, here, there)
