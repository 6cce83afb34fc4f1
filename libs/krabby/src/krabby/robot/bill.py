"""What the robot weighs: a bill of parts, summed to mass, centre of mass and inertia of each link.

`[bill.LINK.PART]` in `robot.toml` gives a part its mass, its shape, its places in the link's frame
and the source of the figures. Axes of the shapes are parallel to the link's. Formulas, with m the
mass of one piece:

    box x, y, z               m (y² + z²) / 12 about x, and so on
    tube, radii R > r, long L along its axis m (R² + r²) / 2, across m (3 (R² + r²) + L²) / 12
    cylinder                  a tube with r = 0
    sphere of radius R        0.4 m R²
    no shape                  a point
    parallel axes             I = sum of own + m (d·d 1 - d d'), d from the common centre of mass
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from krabby.config import Config, NonNegative, Positive, Text, check

__all__ = ["LINKS", "Bill", "Drive", "Inertial", "Part", "Vector", "inertials"]

Vector = tuple[float, float, float]

LINKS: Final = ("base", "hip", "femur", "tibia", "foot")
"""The body, and the links of one leg from the body outwards."""

_SYMMETRY: Final = 1e-9
"""Products of inertia with y above this share of the moments make a link lopsided."""


class Drive(Config, frozen=True, kw_only=True):
    """A model of drive, at its output."""

    rated_torque: Positive
    peak_torque: Positive
    no_load_speed: Positive
    armature: NonNegative
    mass: Positive | None = None
    size: tuple[Positive, Positive] | None = None
    """Radius and width of the housing [m]."""
    source: Text

    def __post_init__(self) -> None:
        expected = f"at most peak_torque, {self.peak_torque:g}"
        check(self.rated_torque <= self.peak_torque, "rated_torque", self.rated_torque, expected)


class Part(Config, frozen=True, kw_only=True):
    """One line of the bill: equal pieces at several places."""

    mass: Positive | None = None
    """Of one piece [kg]."""
    per_metre: Positive | None = None
    """Mass over the length of a cylinder or tube [kg/m], in place of `mass`."""
    drive: Text | None = None
    """A drive of this model: mass and size are its own."""
    box: tuple[Positive, Positive, Positive] | None = None
    """Edges along x, y, z [m]."""
    cylinder: tuple[Positive, Positive] | None = None
    """Radius, length [m]."""
    tube: tuple[Positive, Positive, Positive] | None = None
    """Outer radius, inner radius, length [m]."""
    sphere: Positive | None = None
    """Radius [m]."""
    axis: Literal["x", "y", "z"] = "x"
    """Of a drive, cylinder or tube."""
    at: tuple[Vector, ...] = ((0.0, 0.0, 0.0),)
    """Centre of each piece in the link's frame [m]."""
    source: Text

    def __post_init__(self) -> None:
        weights, shapes = (
            ("mass", "per_metre", "drive"),
            ("drive", "box", "cylinder", "tube", "sphere"),
        )
        for keys, least in ((weights, 1), (shapes, 0)):
            given = [key for key in keys if getattr(self, key) is not None]
            expected = f"{'one' if least else 'at most one'} of {', '.join(keys)}"
            check(least <= len(given) <= 1, given[-1] if given else keys[0], given, expected)
        long = self.cylinder is not None or self.tube is not None
        check(
            self.per_metre is None or long,
            "per_metre",
            self.per_metre,
            "a cylinder or a tube with it",
        )
        if self.tube is not None:
            outer, inner, _ = self.tube
            check(inner < outer, "tube", list(self.tube), "an outer radius above the inner one")
        check(len(self.at) > 0, "at", self.at, "at least one place")


class Bill(Config, frozen=True, kw_only=True):
    """Parts by name, for each link; legs are alike."""

    base: dict[str, Part]
    hip: dict[str, Part]
    femur: dict[str, Part]
    tibia: dict[str, Part]
    foot: dict[str, Part]

    def __post_init__(self) -> None:
        for link in LINKS:
            check(bool(getattr(self, link)), link, {}, "at least one part")


@dataclass(frozen=True, kw_only=True, eq=False)
class Inertial:
    """Mass properties of one link; every link is symmetric from left to right."""

    mass: float
    """[kg]"""
    com: NDArray[np.float64]
    """Centre of mass in the link's frame [m], shape (3,)."""
    moments: NDArray[np.float64]
    """Principal moments about the centre of mass [kg·m²], shape (3,)."""
    tilt: float = 0.0
    """Turn about y that takes the link's axes to the principal ones [rad]."""

    @property
    def spread_x(self) -> float:
        """Second moment of the mass along x about the link's origin [kg·m²]; 0 tilt only."""
        about_com = 0.5 * (self.moments[1] + self.moments[2] - self.moments[0])
        return float(about_com + self.mass * self.com[0] ** 2)


def inertials(bill: Bill, drives: Mapping[str, Drive]) -> dict[str, Inertial]:
    """Mass properties by link; ValueError names a link whose parts do not make a body."""
    links = {}
    for link in LINKS:
        pieces: list[_Piece] = []
        for name, part in getattr(bill, link).items():
            try:
                mass, own = _piece(part, drives)
            except ValueError as error:
                raise ValueError(f"bill.{link}.{name}.{error}") from error
            pieces += [(mass, own, np.array(at)) for at in part.at]
        try:
            links[link] = _summed(pieces)
        except ValueError as error:
            raise ValueError(f"bill.{link} {error}") from error
    return links


_Piece = tuple[float, Vector, NDArray[np.float64]]
"""Mass, moments about its centre, place."""


def _summed(pieces: list[_Piece]) -> Inertial:
    """All pieces of a link as one body."""
    mass = sum(m for m, _, _ in pieces)
    com = sum((m * at for m, _, at in pieces), np.zeros(3)) / mass
    inertia = np.zeros((3, 3))
    for m, own, at in pieces:
        d = at - com
        inertia += np.diag(own) + m * (d @ d * np.eye(3) - np.outer(d, d))
    if max(abs(inertia[0, 1]), abs(inertia[1, 2])) > _SYMMETRY * np.trace(inertia):
        raise ValueError(
            f"is lopsided, with products of inertia {inertia[0, 1]:g} (xy) and {inertia[1, 2]:g} "
            "(yz); place its parts symmetrically about y = 0"
        )
    moments, tilt = _principal(inertia)
    if not np.isfinite([mass, *moments]).all():
        raise ValueError(f"weighs {mass:g} kg, with moments {moments}; correct its masses")
    if not (moments > 0.0).all():
        raise ValueError(f"has moments of inertia {moments}; give at least one part a shape")
    for array in (com, moments):
        array.setflags(write=False)
    return Inertial(mass=float(mass), com=com, moments=moments, tilt=tilt)


def _principal(inertia: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Moments of a tensor whose only product is xz, and the turn about y to their axes."""
    xx, yy, zz = np.diag(inertia)
    xz = inertia[0, 2]
    if abs(xz) <= _SYMMETRY * (xx + zz):
        return np.array([xx, yy, zz]), 0.0
    # The smaller of the two turns, so that x stays the axis nearest to x.
    tilt = 0.5 * math.atan2(2.0 * xz, zz - xx) if zz >= xx else 0.5 * math.atan2(-2.0 * xz, xx - zz)
    c, s = math.cos(tilt), math.sin(tilt)
    first = c * c * xx - 2.0 * s * c * xz + s * s * zz
    return np.array([first, yy, xx + zz - first]), tilt


def _piece(part: Part, drives: Mapping[str, Drive]) -> tuple[float, Vector]:
    """Mass of one piece, and its moments about its own centre."""
    axis, length, mass, own = "xyz".index(part.axis), 0.0, part.mass, (0.0, 0.0, 0.0)
    if part.drive is not None:
        drive = drives.get(part.drive)
        if drive is None or drive.mass is None or drive.size is None:
            weighed = ", ".join(name for name, each in drives.items() if each.mass and each.size)
            raise ValueError(
                f"drive is {part.drive!r}; drives with mass and size are {weighed or 'none'}"
            )
        mass, own = drive.mass, _tube(drive.size[0], 0.0, drive.size[1], axis)
    elif part.box is not None:
        x, y, z = (edge**2 for edge in part.box)
        own = ((y + z) / 12.0, (x + z) / 12.0, (x + y) / 12.0)
    elif part.sphere is not None:
        own = (0.4 * part.sphere**2,) * 3
    elif part.cylinder is not None:
        length = part.cylinder[1]
        own = _tube(part.cylinder[0], 0.0, length, axis)
    elif part.tube is not None:
        length = part.tube[2]
        own = _tube(*part.tube, axis)
    mass = part.per_metre * length if part.per_metre is not None else mass
    assert mass is not None  # `Part` has seen to it
    return mass, (mass * own[0], mass * own[1], mass * own[2])


def _tube(radius: float, inner: float, length: float, axis: int) -> Vector:
    """Moments of a hollow cylinder of 1 kg."""
    squares = radius**2 + inner**2
    moments: list[Any] = [length**2 / 12.0 + squares / 4.0] * 3
    moments[axis] = squares / 2.0
    return moments[0], moments[1], moments[2]
