"""What an evaluation makes harder than the published protocol: the rows of a student's table."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from krabby.robot.description import RobotDescription

from krabby_trainer.errors import EvaluationError
from krabby_trainer.task.config import RandomisationCfg
from krabby_trainer.vision.config import described, flawless

if TYPE_CHECKING:
    from krabby_trainer.task.config import EnvCfg

__all__ = ["CONDITIONS", "Condition", "find_condition"]


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Changes an evaluation's environment."""

    name: str
    summary: str
    change: Callable[[EnvCfg], None]


def _nominal(cfg: EnvCfg) -> None:
    cfg.camera.errors = flawless(RobotDescription.load().camera)


def _deployable(cfg: EnvCfg) -> None:
    trained, r = RandomisationCfg(), cfg.randomisation
    for name in (
        *("joint_pos_bias", "gyro_bias"),
        *("joint_pos_noise", "joint_vel_noise", "gyro_noise", "gravity_noise"),
    ):
        setattr(r, name, getattr(trained, name))
    r.command_delay = [0.6, 1.0]
    errors = described(RobotDescription.load().camera)
    errors.bleed_px = [0.5, 0.5]
    errors.edge_hole_probability = [0.2, 0.2]
    errors.mount_angle_rad = 0.0175
    errors.mount_xyz_m = 0.01
    cfg.camera.errors = errors


def _with(change: Callable[[EnvCfg], None]) -> Callable[[EnvCfg], None]:
    def both(cfg: EnvCfg) -> None:
        _deployable(cfg)
        change(cfg)

    return both


def _drop(cfg: EnvCfg) -> None:
    cfg.camera.errors.drop_probability = [0.3, 0.3]


def _late(cfg: EnvCfg) -> None:
    cfg.camera.errors.latency_s = [0.12, 0.12]


def _noisy(cfg: EnvCfg) -> None:
    errors = cfg.camera.errors
    for name in ("noise_rel", "hole_probability", "bleed_px", "edge_hole_probability"):
        setattr(errors, name, [2.0 * value for value in getattr(errors, name)])


def _tilted(cfg: EnvCfg) -> None:
    cfg.camera.errors.mount_pitch_rad = 0.05236


def _weak(cfg: EnvCfg) -> None:
    cfg.randomisation.motor_strength = [0.8, 0.8]


def _loaded(cfg: EnvCfg) -> None:
    cfg.randomisation.added_mass_kg = [5.0, 5.0]


def _heavy(cfg: EnvCfg) -> None:
    cfg.randomisation.mass_factor = [1.56, 1.56]


def _slippery(cfg: EnvCfg) -> None:
    cfg.randomisation.friction = [0.4, 0.4]


CONDITIONS: Final[Mapping[str, Condition]] = MappingProxyType(
    {
        condition.name: condition
        for condition in (
            Condition(
                name="nominal",
                summary="the published protocol; true sensors, pictures on time",
                change=_nominal,
            ),
            Condition(
                name="deployable",
                summary="sensor noise and bias, the camera's own noise, latency, lost frames and "
                "mount errors of up to 1 degree and 1 cm",
                change=_deployable,
            ),
            Condition(
                name="drop30",
                summary="deployable, and 30 % of the frames never come",
                change=_with(_drop),
            ),
            Condition(
                name="latency120",
                summary="deployable, and pictures come after 120 ms",
                change=_with(_late),
            ),
            Condition(
                name="noise2",
                summary="deployable, and twice the depth noise, holes and bleeding edges",
                change=_with(_noisy),
            ),
            Condition(
                name="tilt3",
                summary="deployable, and the camera looks 3 degrees lower than it says",
                change=_with(_tilted),
            ),
            Condition(
                name="weak20",
                summary="deployable, and motors 20 % weaker",
                change=_with(_weak),
            ),
            Condition(
                name="payload5",
                summary="deployable, and 5 kg on the base",
                change=_with(_loaded),
            ),
            Condition(
                name="heavy",
                summary="deployable, and every part 1.56 times as heavy as described, 44.6 kg in "
                "all: about what a robot of drives that can be bought weighs",
                change=_with(_heavy),
            ),
            Condition(
                name="friction04",
                summary="deployable, and friction 0.4",
                change=_with(_slippery),
            ),
        )
    }
)


def find_condition(name: str) -> Condition:
    """The condition of that name."""
    if name not in CONDITIONS:
        near = difflib.get_close_matches(name, CONDITIONS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise EvaluationError(
            f"no condition is called {name!r}; {hint}choose from {', '.join(CONDITIONS)}"
        )
    return CONDITIONS[name]
