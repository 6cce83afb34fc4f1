"""Configuration of the scene: the solver of training and simulation, and what a simulation adds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from krabby.config import Config, Count, Positive, check

__all__ = ["IsaacCfg", "Physics", "SolverCfg"]

Physics = Literal["newton", "physx", "isaacsim"]


@dataclass
class SolverCfg:
    """Newton with the MuJoCo-Warp solver, as the policies were trained with it."""

    step_s: Positive = 0.005
    iterations: Count = 5
    """Most robots need two; the step takes as long as the slowest."""
    ls_iterations: Count = 20
    max_constraints: Count = 400
    """Per robot."""
    max_contacts: Count = 100
    """Per robot."""
    warn: bool = False
    """Let the solver print when iterations or contacts exceed their limits: slow."""


class IsaacCfg(Config, frozen=True, kw_only=True):
    """Only with backend=isaaclab."""

    physics: Physics = "newton"
    """newton, as in training; physx: PhysX as the library ovphysx; isaacsim: PhysX inside Isaac
    Sim, which was never run."""
    device: str = "cpu"
    """Where physics runs: cpu, or cuda:0 for an NVIDIA GPU."""
    robots: Annotated[int, Meta(ge=1, le=4096)] = 1
    """Robots in the scene, each alone on its copy of the course; all get the same commands."""
    published: Annotated[int, Meta(ge=0)] = 0
    """Which of them is the HAL's."""

    def __post_init__(self) -> None:
        check(
            self.published < self.robots,
            "published",
            self.published,
            f"below robots, which is {self.robots}",
        )
