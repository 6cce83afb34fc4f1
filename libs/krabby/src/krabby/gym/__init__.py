"""The robot on a course in MuJoCo as a Gymnasium environment, `Krabby-Parkour-v0`.

Importing this package registers the id. Needs the extra `gym`.

    import gymnasium
    import krabby.gym

    env = gymnasium.make("Krabby-Parkour-v0", course="steps", difficulty=0.2)

`gymnasium.make("krabby.gym:Krabby-Parkour-v0")` imports it by itself.
"""

from typing import Final

import gymnasium

__all__ = ["ENV_ID", "MAX_EPISODE_STEPS", "register"]

ENV_ID: Final = "Krabby-Parkour-v0"
MAX_EPISODE_STEPS: Final = 2000
"""Control steps after which an episode is truncated: 20 s."""


def register() -> None:
    """Add the id to Gymnasium's registry, once."""
    if ENV_ID not in gymnasium.registry:
        gymnasium.register(
            id=ENV_ID,
            entry_point="krabby.gym.env:ParkourEnv",
            max_episode_steps=MAX_EPISODE_STEPS,
        )


register()
