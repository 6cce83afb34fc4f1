"""What can go wrong in sim-hal.

Every message names the value and the remedy; the command line prints it as it is.

    SimHalError
    └── PhysicsDiverged   the simulation produced a state that is not a number
"""

__all__ = ["PhysicsDiverged", "SimHalError"]


class SimHalError(Exception):
    """Base of every error this service raises on purpose."""


class PhysicsDiverged(SimHalError):  # noqa: N818 - the name says what happened
    """The simulation produced a state that is not finite; continuing would publish nonsense."""
