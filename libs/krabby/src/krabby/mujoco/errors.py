"""What can go wrong in sim-hal.

Every message names the value and the remedy; the command line prints it as it is.

    SimHalError
    ├── PhysicsDiverged   the simulation produced a state that is not a number
    └── LoopSilent        lock-step: the game loop did not answer a state in time
"""

__all__ = ["LoopSilent", "PhysicsDiverged", "SimHalError"]


class SimHalError(Exception):
    """Base of every error this service raises on purpose."""


class PhysicsDiverged(SimHalError):  # noqa: N818 - the name says what happened
    """The simulation produced a state that is not finite; continuing would publish nonsense."""


class LoopSilent(SimHalError):  # noqa: N818 - the name says what happened
    """Lock-step waits for one command per control period, and none came."""
