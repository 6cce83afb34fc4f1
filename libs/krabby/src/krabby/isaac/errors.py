"""What can go wrong before Isaac Lab runs; every message names the remedy."""

from krabby.mujoco.errors import SimulationError

__all__ = ["IsaacUnavailable"]


class IsaacUnavailable(SimulationError):  # noqa: N818 - named for what happened
    """Python, Isaac Lab or the device that was asked for is missing."""
