"""What can go wrong in the emulated robot, beside what goes wrong in its simulation.

SimulationError
└── EmulatorError
    ├── FaultRefused    what was to be broken does not exist, or not so
    └── EmulatorSilent  the running emulator did not answer, or said no
"""

from krabby.mujoco.errors import SimulationError

__all__ = ["EmulatorError", "EmulatorSilent", "FaultRefused"]


class EmulatorError(SimulationError):
    """Base of every error that the emulated robot raises on purpose."""


class FaultRefused(EmulatorError):  # noqa: N818 - the name says what happened
    """A fault that cannot be injected."""


class EmulatorSilent(EmulatorError):  # noqa: N818 - the name says what happened
    """A request that the running emulator did not grant."""
