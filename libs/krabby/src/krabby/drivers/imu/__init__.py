"""Inertial sensors: what they say, and whether it can be believed.

`vectornav` is the wire of the VN-100, `serial_imu` its driver, `server` its other end.
"""

from krabby.drivers.imu.check import ImuCheck, ImuFault, ImuLimits
from krabby.drivers.imu.types import ImuCounters, ImuMount, ImuSample

__all__ = ["ImuCheck", "ImuCounters", "ImuFault", "ImuLimits", "ImuMount", "ImuSample"]
