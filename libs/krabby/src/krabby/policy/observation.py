"""What a policy sees: terms in the order of its manifest, scaled, with history.

The trainer builds the same vector for thousands of robots at once; a parity test holds its batched
version to the functions here, so each term is a pure function that takes any leading batch shape.

A term of size s with history h occupies h * s neighbouring numbers: its last h frames, oldest
first. After a reset every frame of the history is the first one seen.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from krabby.config import Config, to_dict
from krabby.robot import rotations
from krabby.robot.description import RobotDescription
from krabby.robot.errors import ObservationError

__all__ = [
    "HEIGHT_SCAN_SHAPE",
    "TERMS",
    "ObservationBuilder",
    "ObservationError",
    "ObservationInputs",
    "ObservationLayout",
    "ObservationTerm",
    "standard_term",
]


HEIGHT_SCAN_SHAPE: Final = (25, 13)
"""Points of the height scan ahead (-0.8 to 1.6 m) and to the left (-1.2 to 1.2 m) of the base."""


@dataclass(kw_only=True, slots=True)
class ObservationInputs:
    """What terms are computed from, with any leading batch shape (...)."""

    base_quat_w: NDArray[np.floating]
    """Base to world, xyzw, shape (..., 4)."""
    base_ang_vel_b: NDArray[np.floating]
    """[rad/s], shape (..., 3)."""
    base_lin_acc_b: NDArray[np.floating]
    """Specific force as the accelerometer reads it [m/s²], +9.81 on z at rest, shape (..., 3)."""
    joint_pos: NDArray[np.floating]
    """[rad], shape (..., 18)."""
    joint_vel: NDArray[np.floating]
    """[rad/s], shape (..., 18)."""
    foot_contact: NDArray[np.floating]
    """1 where a foot carries load, else 0, shape (..., 6)."""
    nav_command: NDArray[np.floating]
    """vx, vy [m/s] in the base frame and yaw rate [rad/s], shape (..., 3)."""
    last_action: NDArray[np.floating]
    """Network output of the previous step, before clip, scale and offset, shape (..., 18)."""
    features: NDArray[np.floating] | None = None
    """Depth latent or flattened depth image, newest, shape (..., k); None for blind policies."""
    features_age: NDArray[np.floating] | None = None
    """Time since what the features show was captured [s], shape (..., 1); None without any."""
    height_scan: NDArray[np.floating] | None = None
    """How far the ground lies below its place under a standing robot [m], around the base and
    turned with its yaw, shape (..., 325), the points to the left of each point ahead; only a
    simulator knows it, None on a robot."""


TermFunction = Callable[[ObservationInputs, "RobotDescription"], "NDArray[np.floating]"]


@dataclass(frozen=True)
class TermSpec:
    """A term that manifests may name."""

    size: int | None
    """Numbers per frame; None when the manifest decides."""
    scale: float
    """The usual scale; a manifest states its own."""
    compute: TermFunction
    """The term before scaling, shape (..., size)."""
    measurable: bool = True
    """Whether a robot can know it, or only a simulator."""


def _given(name: str, remedy: str) -> TermFunction:
    """The input `name`, which may be missing."""

    def compute(inputs: ObservationInputs, _: RobotDescription) -> NDArray[np.floating]:
        value = getattr(inputs, name)
        if value is None:
            raise ObservationError(f"the policy reads {name!r} but none were given; {remedy}")
        return value

    return compute


_CAMERA: Final = "start the camera service or load a blind policy"
_SIMULATOR: Final = (
    "only a simulator knows it, so evaluate a teacher with `python -m krabby_trainer eval`"
)

TERMS: Final[Mapping[str, TermSpec]] = {
    "base_ang_vel": TermSpec(3, 0.25, lambda x, _: x.base_ang_vel_b),
    "base_lin_acc": TermSpec(3, 0.1, lambda x, _: x.base_lin_acc_b),
    "projected_gravity": TermSpec(3, 1.0, lambda x, _: rotations.projected_gravity(x.base_quat_w)),
    "nav_command": TermSpec(3, 1.0, lambda x, _: x.nav_command),
    "joint_pos_rel": TermSpec(18, 1.0, lambda x, desc: x.joint_pos - desc.default_joint_pos),
    "joint_vel": TermSpec(18, 0.05, lambda x, _: x.joint_vel),
    "last_action": TermSpec(18, 1.0, lambda x, _: x.last_action),
    "foot_contact": TermSpec(6, 1.0, lambda x, _: x.foot_contact - 0.5),
    "features": TermSpec(None, 1.0, _given("features", _CAMERA)),
    "features_age": TermSpec(1, 10.0, _given("features_age", _CAMERA)),
    "height_scan": TermSpec(
        math.prod(HEIGHT_SCAN_SHAPE), 1.0, _given("height_scan", _SIMULATOR), measurable=False
    ),
}
"""Every term there is, by name."""


class ObservationTerm(Config, frozen=True, kw_only=True):
    """One term of a layout, as it stands in a manifest."""

    name: str
    """A key of `TERMS`."""
    size: int
    """Numbers per frame."""
    scale: float | tuple[float, ...] = 1.0
    """Factor on the term, for all its numbers or one each."""
    history: int = 1
    """Frames, the current one included."""

    def __post_init__(self) -> None:
        """Refuses what cannot be built."""
        spec = TERMS.get(self.name)
        if spec is None:
            nearest = difflib.get_close_matches(self.name, TERMS, n=1, cutoff=0.0)[0]
            raise ObservationError(
                f"unknown observation term {self.name!r}; did you mean {nearest!r}?"
            )
        if self.size < 1 or self.size != (spec.size or self.size):
            raise ObservationError(
                f"observation term {self.name!r} has size {self.size}; expected "
                f"{spec.size or 'at least 1'}"
            )
        if self.history < 1:
            raise ObservationError(
                f"observation term {self.name!r} has history {self.history}; expected at least 1, "
                "the current frame"
            )
        scales = self.scale if isinstance(self.scale, tuple) else (self.scale,) * self.size
        if len(scales) != self.size or not all(math.isfinite(scale) for scale in scales):
            raise ObservationError(
                f"observation term {self.name!r} has scale {self.scale}; expected a finite number "
                f"or {self.size} of them"
            )

    @property
    def width(self) -> int:
        """Numbers in the observation, history included."""
        return self.size * self.history

    @property
    def measurable(self) -> bool:
        """Whether a robot can know it, or only a simulator."""
        return TERMS[self.name].measurable


def standard_term(name: str, *, size: int | None = None, history: int = 1) -> ObservationTerm:
    """Term `name` with its usual scale; `size` is needed for "features" alone."""
    spec = TERMS.get(name)
    known = spec.size if spec is not None else None
    scale = spec.scale if spec is not None else 1.0
    return ObservationTerm(name=name, size=known or size or 0, scale=scale, history=history)


@dataclass(frozen=True)
class ObservationLayout:
    """Terms in the order in which they fill the observation."""

    terms: tuple[ObservationTerm, ...]

    def __post_init__(self) -> None:
        """Refuses empty layouts and repeated terms."""
        names = [term.name for term in self.terms]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ObservationError(f"observation term {repeated[0]!r} occurs twice; drop one")
        if not names:
            raise ObservationError("the observation has no terms; name at least one")

    @cached_property
    def size(self) -> int:
        """Numbers in the observation."""
        return sum(term.width for term in self.terms)

    @cached_property
    def slices(self) -> Mapping[str, slice]:
        """Where each term lies in the observation."""
        ends = np.cumsum([term.width for term in self.terms]).tolist()
        return {
            term.name: slice(end - term.width, end)
            for term, end in zip(self.terms, ends, strict=True)
        }

    def term(self, name: str) -> ObservationTerm | None:
        """Term `name`, or None when the layout has none."""
        return next((term for term in self.terms if term.name == name), None)

    def to_manifest(self) -> list[dict[str, Any]]:
        """As it stands in a manifest."""
        return [to_dict(term) for term in self.terms]


class ObservationBuilder:
    """Keeps one robot's history and writes its observation into one buffer.

    Args:
        layout: The policy's terms.
        desc: The robot, for its default pose.
    """

    def __init__(self, layout: ObservationLayout, desc: RobotDescription) -> None:
        self.layout = layout
        self._desc = desc
        self._buffer = np.zeros((1, layout.size), dtype=np.float32)
        self._readable = self._buffer.view()
        self._readable.setflags(write=False)
        # The buffer is the history too: each term's frames are shifted where they lie.
        self._terms = [
            (
                term,
                TERMS[term.name].compute,
                np.asarray(term.scale, dtype=np.float64),
                self._buffer[0, layout.slices[term.name]].reshape(term.history, term.size),
            )
            for term in layout.terms
        ]
        self._empty = True

    def reset(self) -> None:
        """Forgets the history; the next frame stands for all past ones."""
        self._empty = True

    @property
    def history(self) -> NDArray[np.float32] | None:
        """The last observation, a copy, shape (1, layout.size); None behind a reset."""
        return None if self._empty else self._buffer.copy()

    @history.setter
    def history(self, observation: NDArray[np.float32]) -> None:
        if observation.shape != self._buffer.shape:
            raise ObservationError(
                f"an observation of shape {observation.shape} is not one of this policy, whose "
                f"have {self._buffer.shape}; take it from the same policy"
            )
        np.copyto(self._buffer, observation)
        self._empty = False

    def build(self, inputs: ObservationInputs) -> NDArray[np.float32]:
        """Adds a frame and returns the observation, shape (1, layout.size), float32.

        The array is read-only and the builder's own: the next call overwrites it.
        """
        values = [self._evaluate(term, compute, inputs) for term, compute, _, _ in self._terms]
        for value, (_, _, scale, history) in zip(values, self._terms, strict=True):
            if self._empty:
                history[:] = value * scale
            else:
                history[:-1] = history[1:]
                history[-1] = value * scale
        self._empty = False
        return self._readable

    def _evaluate(
        self, term: ObservationTerm, compute: TermFunction, inputs: ObservationInputs
    ) -> NDArray[np.floating]:
        value = compute(inputs, self._desc)
        if value.shape != (term.size,):
            raise ObservationError(
                f"observation term {term.name!r} got values of shape {value.shape}; the policy "
                f"expects ({term.size},)"
            )
        return value
