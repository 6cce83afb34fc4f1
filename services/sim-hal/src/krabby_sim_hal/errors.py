"""What can go wrong in sim-hal, beside what goes wrong in its simulation.

Every message names the value and the remedy; the command line prints it as it is.

    SimulationError
    └── LoopSilent        lock-step: the game loop did not answer a state in time
"""

from krabby.mujoco.errors import SimulationError

__all__ = ["LoopSilent"]


class LoopSilent(SimulationError):  # noqa: N818 - the name says what happened
    """Lock-step waits for one command per control period, and none came."""
