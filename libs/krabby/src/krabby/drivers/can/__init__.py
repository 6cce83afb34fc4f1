"""Joint drives: what is exchanged with them, whatever their make and whatever carries the frames.

The types are re-exported here; import codecs, buses and plans from their modules.
"""

from krabby.drivers.can.types import (
    DriveFault,
    DriveMode,
    DriveReadings,
    DriveTargets,
    IdConflict,
    JointBus,
)

__all__ = ["DriveFault", "DriveMode", "DriveReadings", "DriveTargets", "IdConflict", "JointBus"]
