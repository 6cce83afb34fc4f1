"""What can go wrong in a simulation.

Every message names the value and the remedy; the command line prints it as it is.

    SimulationError
    └── PhysicsDiverged   the simulation produced a state that is not a number
"""

__all__ = ["PhysicsDiverged", "SimulationError"]


class SimulationError(Exception):
    """Base of every error that a simulation raises on purpose."""


class PhysicsDiverged(SimulationError):  # noqa: N818 - the name says what happened
    """The simulation produced a state that is not finite; continuing would publish nonsense."""
