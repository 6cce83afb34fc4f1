"""The control period: of the game loop, of policies, of training and of every evaluation."""

from typing import Final

__all__ = ["BUSY", "CONTROL_HZ", "CONTROL_S"]

CONTROL_HZ: Final = 100
"""Control periods per second."""
CONTROL_S: Final = 1.0 / CONTROL_HZ
"""Length of a control period [s]."""
BUSY: Final = 0.05
"""Share of late ticks above which a host is too busy for the game loop."""
