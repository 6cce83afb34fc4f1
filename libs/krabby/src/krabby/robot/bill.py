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
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from krabby.robot.toml_reader import Table

__all__ = ["LINKS", "Inertial", "read_bill", "summed"]

LINKS: Final = ("base", "hip", "femur", "tibia", "foot")
"""The body, and the links of one leg from the body outwards."""

_AXES: Final = "xyz"
_SYMMETRY: Final = 1e-9
"""Products of inertia with y above this share of the moments make a link lopsided."""


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


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One line of the bill: equal pieces at several places."""

    mass: float
    own: tuple[float, float, float]
    """Moments of one piece about its centre [kg·m²]."""
    places: tuple[tuple[float, ...], ...]


def read_bill(table: Table, drives: dict[str, Table]) -> dict[str, Inertial]:
    """Mass properties by link. A part of a drive has that drive's mass and size."""
    links = {}
    for link in LINKS:
        parts = [_read_part(part, drives) for part in table.tables(link).values()]
        try:
            links[link] = summed(parts)
        except ValueError as error:
            raise table.error(link, str(error)) from error
    table.finish()
    return links


def summed(parts: list[_Part]) -> Inertial:
    """All parts of a link as one body; ValueError when they are lopsided or have no extent."""
    pieces = [(part.mass, part.own, np.array(at)) for part in parts for at in part.places]
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


def _read_part(table: Table, drives: dict[str, Table]) -> _Part:
    own, length, mass = (0.0, 0.0, 0.0), None, None
    if table.has("drive"):
        name = table.text("drive")
        if name not in drives:
            raise table.error("drive", f"is {name!r}; there are {', '.join(drives)}")
        drive = drives[name]
        mass = drive.positive("mass")
        own = _tube(*drive.vector("size", 2, above=0.0), axis=_axis(table))
    elif table.has("box"):
        x, y, z = (edge**2 for edge in table.vector("box", 3, above=0.0))
        own = ((y + z) / 12.0, (x + z) / 12.0, (x + y) / 12.0)
    elif table.has("cylinder"):
        radius, length = table.vector("cylinder", 2, above=0.0)
        own = _tube(radius, length, axis=_axis(table))
    elif table.has("tube"):
        radius, inner, length = table.vector("tube", 3, above=0.0)
        own = _tube(radius, length, inner=inner, axis=_axis(table))
    elif table.has("sphere"):
        own = (0.4 * table.positive("sphere") ** 2,) * 3
    if length is not None and table.has("per_metre"):
        mass = table.positive("per_metre") * length
    elif mass is None:
        mass = table.positive("mass")
    places = table.points("at") if table.has("at") else ((0.0, 0.0, 0.0),)
    table.text("source")
    table.finish()
    x, y, z = (mass * value for value in own)
    return _Part(mass=mass, own=(x, y, z), places=places)


def _axis(table: Table) -> int:
    axis = table.text("axis")
    if axis not in _AXES or len(axis) != 1:
        raise table.error("axis", f"is {axis!r}; expected 'x', 'y' or 'z'")
    return _AXES.index(axis)


def _tube(
    radius: float, length: float, *, inner: float = 0.0, axis: int
) -> tuple[float, float, float]:
    """Moments of a hollow cylinder of 1 kg."""
    squares = radius**2 + inner**2
    moments: list[Any] = [length**2 / 12.0 + squares / 4.0] * 3
    moments[axis] = squares / 2.0
    return moments[0], moments[1], moments[2]
