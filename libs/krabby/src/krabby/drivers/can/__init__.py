"""Joint drives on CAN. The types are re-exported here; import everything else from its module."""

from krabby.drivers.can.types import DriveFault, DriveMode, DriveReadings, DriveTargets, IdConflict

__all__ = ["DriveFault", "DriveMode", "DriveReadings", "DriveTargets", "IdConflict"]
