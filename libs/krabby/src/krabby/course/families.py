"""Courses beyond the published suite: stairs, rubble, beams, slopes, turns, and what stops a robot.

Sizes are metres and grow with the difficulty d; the largest that a benchmark asks for is at d = 1
unless a docstring says otherwise. Every course has eight waypoints and starts on level ground.
Layouts are mirrored by the seed where left and right differ.
"""

from __future__ import annotations

import math
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np

from krabby.course.boxes import Box
from krabby.course.lanes import (
    PIT_DEPTH_M,
    Lane,
    Recipe,
    lay_gap,
    lay_hurdle,
    lay_steps,
    level_box,
)
from krabby.robot import rotations

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

__all__ = ["BARRED_M", "FAMILIES", "LEG_M"]

LEG_M: Final = 1.30
"""Length of a stretched leg, the unit of the body-scaled courses [m]."""

BARRED_M: Final = 0.8
"""From the last waypoint that can be reached to what is impassable [m]."""

_RAIL_M: Final = 0.3
"""Half the thickness of slabs."""


def _riser(d: float) -> float:
    return round(0.10 + 0.14 * d, 3)


def _leg_riser(lane: Lane) -> None:
    """Two blocks d leg lengths high and U(2.6, 3.2) long."""
    half_width, height = lane.corridor(0.6, 1.0), max(0.02, LEG_M * lane.d)
    for _ in range(2):
        lane.x += lane.draw(0.6, 1.0)
        length = lane.draw(2.6, 3.2)
        lane.block("step", lane.x, length, height, half_width)
        lane.goal(lane.x + length / 3, 0.0)
        lane.goal(lane.x + 2 * length / 3, 0.0)
        lane.x += length + 1.4
        lane.goal(lane.x, 0.0)
    lane.goal(lane.x + 1.0, 0.0)


def _leg_gap(lane: Lane) -> None:
    """Three gaps d leg lengths wide, between landings U(2.2, 2.8) long."""
    half_width, width = lane.corridor(0.6, 1.2), max(0.02, LEG_M * lane.d)
    lane.x += lane.draw(0.5, 1.0)
    start = lane.x
    for _ in range(2):
        lane.x += width
        length, y = lane.draw(2.2, 2.8), lane.jitter()
        lane.block("landing", lane.x, length, 0.0, half_width, y)
        lane.goal(lane.x + 0.6, y)
        lane.goal(lane.x + length - 0.6, y)
        lane.x += length
    lane.x += width
    lane.pit(start, lane.x)
    for beyond in (0.8, 1.4, 2.0):
        lane.goal(lane.x + beyond, 0.0)


def _leg_hurdle(lane: Lane) -> None:
    """Three bars d leg lengths high and 0.2 thick, U(2.4, 3.0) of run-up before each."""
    half_width, height = lane.corridor(0.6, 1.0), max(0.02, LEG_M * lane.d)
    for _ in range(3):
        run_up = lane.draw(2.4, 3.0)
        lane.goal(lane.x + run_up - 1.2, 0.0)
        lane.x += run_up
        lane.block("hurdle", lane.x, 0.2, height, half_width)
        lane.x += 0.2
        lane.goal(lane.x + 0.8, 0.0)
    lane.goal(lane.x + 2.0, 0.0)


def _leg_stones(lane: Lane) -> None:
    """Six stones with a cross-slope of atan(d / 2) to either side in turn, 26.6 degrees at d = 1.

    They are U(1.0, 1.4) long, 3.2 wide, U(0, 0.1 + 0.2 d) apart, over a pit.
    """
    lane.x += lane.draw(0.3, 0.6)
    start, side = lane.x, lane.side()
    for index in range(6):
        lane.x += lane.draw(0.0, 0.1 + 0.2 * lane.d)
        length = lane.draw(1.0, 1.4)
        lane.stone(lane.x, length, 0.0, 0.0, side * (-1.0) ** index * 0.8 * min(lane.d, 1.5))
        lane.goal(lane.x + length / 2, 0.0)
        lane.x += length
    lane.x += lane.draw(0.0, 0.1 + 0.2 * lane.d)
    lane.pit(start, lane.x)
    lane.goal(lane.x + 1.2, 0.0)


def _stairs(lane: Lane) -> None:
    """Ten steps up, a landing of 2.2, ten down; risers 0.10 + 0.14 d, treads U(0.27, 0.33)."""
    half_width, tread = lane.corridor(0.5, 1.0), lane.draw(0.27, 0.33)
    treads = [tread] * 9 + [2.2 + tread] + [tread] * 9
    levels = [*range(1, 11), *range(9, 0, -1)]
    lane.x += lane.draw(0.3, 0.8)
    start = lane.x
    for level, length in zip(levels, treads, strict=True):
        lane.block("step", lane.x, length, level * _riser(lane.d), half_width)
        lane.x += length
    flight = 9 * tread
    top = start + flight + (2.2 + tread) / 2
    for x in (start + flight / 3, start + 2 * flight / 3, top):
        lane.goal(x, 0.0)
    for x in (lane.x - 2 * flight / 3, lane.x - flight / 3, lane.x + 0.8, lane.x + 1.8):
        lane.goal(x, 0.0)


def _spiral(lane: Lane) -> None:
    """Stairs round a column: ten steps up through 80 degrees, a landing of 32, ten steps down.

    Risers 0.08 + 0.10 d; the middle line has a radius of 3.0 and treads of 0.42, the stairs are
    3.0 wide, so treads are 0.21 at the inside.
    """
    lane.length, lane.half_width = 12.0, 6.0
    side, riser, radius, half = lane.side(), 0.08 + 0.10 * lane.d, 3.0, 1.5
    lane.lane_half_width = half
    centre_x, pitch = 5.5, 0.42 / radius
    depth = (radius + half) * math.tan(pitch) + 0.02

    def at(angle: float, r: float = radius) -> tuple[float, float]:
        return centre_x + r * math.sin(angle), side * -r * math.cos(angle)

    def step(angle: float, towards: float, top: float) -> None:
        """A block from the radial line at `angle` on, in the walking direction or against it."""
        x, y = at(angle)
        yaw = side * angle
        shift = towards * depth / 2
        lane.boxes.append(
            _upright(
                "step",
                (x + shift * math.cos(yaw), y + shift * math.sin(yaw)),
                (depth / 2, half),
                (0.0, top),
                yaw,
            )
        )

    for level in range(1, 11):
        step((level - 1) * pitch, 1.0, level * riser)
        step((25 - level) * pitch, -1.0, level * riser)
    for sector in range(10, 14):
        step(sector * pitch, 1.0, 10 * riser)
    lane.spawn = (1.0, -side * radius, 0.0)
    lane.goals = []
    lane.goal(2.5, -side * radius)
    for steps in (3.0, 7.0, 12.0, 17.0, 21.0):
        lane.goal(*at(steps * pitch))
    end = 24 * pitch
    x, y = at(end)
    for beyond in (0.7, 1.7):
        lane.goal(x + beyond * math.cos(end), y + beyond * side * math.sin(end))


def _rubble(lane: Lane) -> None:
    """Blocks of 0.3 to 0.7, tilted and turned, up to 0.05 + 0.20 d high, over 8.4 x 4.9."""
    lane.has_edges, height = False, 0.05 + 0.20 * lane.d
    lane.lane_half_width = 2.45
    lane.x += 0.5
    for row in range(12):
        for column in range(7):
            x = lane.x + 0.7 * (row + 0.5) + lane.draw(-0.1, 0.1)
            y = 0.7 * (column - 3) + lane.draw(-0.1, 0.1)
            half = (lane.draw(0.15, 0.35), lane.draw(0.15, 0.35))
            roll, pitch, yaw = (lane.draw(-0.15, 0.15), lane.draw(-0.15, 0.15), lane.draw(0, 1.57))
            top = lane.draw(0.3, 1.0) * height - (abs(roll) * half[1] + abs(pitch) * half[0])
            quat = rotations.from_euler(roll, pitch, yaw)
            lane.boxes.append(
                Box(
                    center=(round(x, 6), round(y, 6), round(top - _RAIL_M, 6)),
                    half_extents=(*half, _RAIL_M),
                    quat=_rounded(quat),
                    kind="rock",
                )
            )
    lane.x += 12 * 0.7
    lane.goals_to(lane.x, 5)
    lane.goals_to(lane.x + 2.0, 2)


def _stepping_stones(lane: Lane) -> None:
    """Eight rows of seven stones over a pit: size 0.60 - 0.30 d, gaps 0.15 + 0.15 d both ways."""
    size, gap = max(0.2, 0.60 - 0.30 * lane.d), 0.15 + 0.15 * lane.d
    lane.x += lane.draw(0.3, 0.8)
    start = lane.x
    lane.lane_half_width = 3.5 * size + 3 * gap
    for row in range(8):
        lane.x += gap
        shift = lane.draw(-0.15, 0.15)
        for column in range(7):
            y = (column - 3) * (size + gap) + shift
            lane.block("landing", lane.x, size, 0.0, size / 2, y)
        if row % 2:
            lane.goal(lane.x + size / 2, shift)
        lane.x += size
    lane.x += gap
    lane.pit(start, lane.x)
    for beyond in (0.6, 1.2, 2.0):
        lane.goal(lane.x + beyond, 0.0)


def _beam(lane: Lane) -> None:
    """Two beams U(3, 4) long and 2.4 - 1.8 d wide over a pit, a landing between them."""
    half_width = max(0.15, 1.2 - 0.9 * lane.d)
    lane.lane_half_width = half_width
    lane.x += lane.draw(0.3, 0.8)
    start = lane.x
    for beam in range(2):
        length, y = lane.draw(3.0, 4.0), lane.jitter()
        lane.block("landing", lane.x, length, 0.0, half_width, y)
        lane.goal(lane.x + length / 3, y)
        lane.goal(lane.x + 2 * length / 3, y)
        lane.x += length
        if beam == 0:
            lane.block("landing", lane.x, 1.6, 0.0, 1.7)
            lane.goal(lane.x + 0.8, 0.0)
            lane.x += 1.6
    lane.pit(start, lane.x)
    lane.goal(lane.x + 1.0, 0.0)
    lane.goal(lane.x + 2.0, 0.0)


def _rough(lane: Lane) -> None:
    """12 m of patches of U(0.5, 1.0), heights within +-0.1 d of their middle."""
    _patches(lane, lane.x, lane.x + 12.0)
    lane.x += 12.0
    lane.goals_to(lane.x + 1.0, 7)


def _field(lane: Lane) -> None:
    """56 x 28 m, rough as the course `rough`: level at d = 0, for commands without waypoints."""
    lane.length, lane.half_width = 56.0, 14.0
    lane.lane_half_width = lane.half_width
    lane.spawn = (17.0, 0.0, 0.0)
    lane.goals = [(17.0, 0.0)]
    _patches(lane, 0.5, 55.5)
    lane.boxes.append(level_box("ground", (15.5, 18.5), (-1.5, 1.5), (-PIT_DEPTH_M, 0.0)))
    lane.goals_to(53.0, 8)
    lane.goals.pop(0)


def _patches(lane: Lane, start: float, stop: float) -> None:
    """Two sets of crossing strips over lower ground; the higher of the two is the surface.

    So n + m boxes make n x m patches.
    """
    lane.has_edges, depth = False, round(0.2 * lane.d, 3)
    if depth == 0.0:
        return
    lane.pit(start, stop, depth)
    bottom = -PIT_DEPTH_M
    x = start
    while x < stop:
        end = min(stop, round(x + lane.draw(0.5, 1.0), 3))
        top = round(depth * lane.draw(-1.0, 0.0), 4)
        across = (-lane.half_width, lane.half_width)
        lane.boxes.append(level_box("rock", (x, end), across, (bottom, top)))
        x = end
    y = -lane.half_width
    while y < lane.half_width:
        end = min(lane.half_width, round(y + lane.draw(0.5, 1.0), 3))
        top = round(depth * lane.draw(-1.0, 0.0), 4)
        lane.boxes.append(level_box("rock", (start, stop), (y, end), (bottom, top)))
        y = end


def _slope(lane: Lane) -> None:
    """Up and down at 10 + 20 d degrees over 3.5 m of ground each, a plateau of 2.4 between."""
    angle = math.radians(min(10.0 + 20.0 * lane.d, 45.0))
    run, plateau = 3.5, 2.4
    top = run * math.tan(angle)
    half_width = lane.corridor(0.8, 1.2)
    lane.x += lane.draw(0.3, 0.8)
    foot = lane.x
    for middle, tilt in ((foot + run / 2, -angle), (foot + 1.5 * run + plateau, angle)):
        lane.boxes.append(
            Box(
                center=(
                    round(middle - _RAIL_M * math.sin(tilt), 6),
                    0.0,
                    round(top / 2 - _RAIL_M * math.cos(tilt), 6),
                ),
                half_extents=(round(run / 2 / math.cos(angle), 6), half_width, _RAIL_M),
                quat=_rounded(rotations.from_euler(0.0, tilt, 0.0)),
                kind="stone",
            )
        )
    lane.block("step", foot + run, plateau, round(top, 6), half_width)
    for x in (run / 3, 2 * run / 3, run + plateau / 2):
        lane.goal(foot + x, 0.0)
    lane.x = foot + 2 * run + plateau
    for x in (-2 * run / 3, -run / 3, 0.8, 1.8):
        lane.goal(lane.x + x, 0.0)


def _side_slope(lane: Lane) -> None:
    """A traverse of 5 m with a cross-slope of 10 + 20 d degrees, twisted in and out over 3 m."""
    tangent = math.tan(math.radians(min(10.0 + 20.0 * lane.d, 40.0)))
    half_width, side = 2.1, lane.side()
    lane.x += lane.draw(0.3, 0.6)
    start = lane.x
    shares = (0.2, 0.4, 0.6, 0.8)
    for share in (*shares, 1.0, *reversed(shares)):
        length = 5.0 if share == 1.0 else 0.75
        rise = side * half_width * tangent * share
        lane.stone(lane.x, length, 0.0, 0.0, rise, half_width)
        lane.x += length
    lane.pit(start, lane.x)
    lane.goals_to(lane.x - 1.0, 5)
    lane.goals_to(lane.x + 1.8, 2)


def _turned(lay: Callable[[Lane], None], degrees: float) -> Callable[[Lane], None]:
    """A course with its obstacles turned about the vertical; the way stays straight.

    Distances along the way grow so that those across the obstacles stay, and obstacles grow so that
    the corridor stays as wide. Landings are 5.2 wide, the tile is 8.0; slabs turned like the gaps
    lead into the pit and out of it.
    """
    angle = math.radians(degrees)
    first, reach = 2.5, 2.6

    def lay_turned(lane: Lane) -> None:
        lay(lane)
        yaw, cos = angle * lane.side(), math.cos(angle)
        if lane.pits:
            _lead_in_and_out(lane, angle, first, reach)
        boxes = [
            _upright(
                box.kind,
                (
                    first + (box.center[0] - first) / cos - box.center[1] * math.sin(yaw),
                    box.center[1] * cos,
                ),
                (box.half_extents[0], reach if lane.pits else box.half_extents[1] / cos),
                (box.center[2] - box.half_extents[2], box.center[2] + box.half_extents[2]),
                yaw,
            )
            for box in lane.boxes
        ]
        # What is turned reaches further back; the start platform stays as it is.
        lead = reach * math.sin(angle) if lane.pits else 0.0
        spare = lead or max(0.0, first - min(float(box.corners[:, 0].min()) for box in boxes))
        shift = round(spare, 4)
        lane.boxes = [_moved(box, shift) for box in boxes]
        widest = max(float(np.abs(box.corners[:, 1]).max()) for box in boxes)
        lane.half_width = max(lane.half_width, math.ceil(10.0 * widest - 1e-6) / 10.0)
        lane.goals = [
            (x if x < first else round(first + (x - first) / cos + shift, 4), y)
            for x, y in lane.goals
        ]

    return lay_turned


def _lead_in_and_out(lane: Lane, angle: float, first: float, reach: float) -> None:
    """Add slabs that, once turned, cover the straight ends of the pit over their whole width."""
    (start, stop, depth), pieces = lane.pits[0], 4
    sin, cos = math.sin(angle), math.cos(angle)
    length = (2.0 * reach * sin * cos + 0.1) / pieces
    lane.half_width = 4.0
    for i in range(pieces):
        lane.block("landing", start - (i + 1) * length, length, 0.0, reach)
        lane.block("landing", stop + i * length, length, 0.0, reach)
    start, stop = first + (start - first) / cos, first + (stop - first) / cos
    lane.pits = [(start, stop + 2.0 * reach * sin, depth)]


def _u_turn(lane: Lane) -> None:
    """Out on a walkway over a pit, round on a platform, back on the walkway beside it.

    Walkways are 3.2 - d wide, the platform is 4 - d deep.
    """
    width, deep, side = max(1.0, 3.2 - lane.d), max(2.0, 4.0 - lane.d), lane.side()
    y, end = side * (width / 2 + 0.2), lane.x + 4.0
    lane.length, lane.half_width = 12.0, 4.0
    lane.lane_half_width = width / 2
    lane.block("landing", lane.x, 4.0, 0.0, width / 2, -y)
    lane.block("landing", lane.x, 4.0, 0.0, width / 2, y)
    lane.block("landing", end, deep, 0.0, abs(y) + width / 2)
    lane.pit(lane.x, end + deep + 1.0)
    lane.spawn = (1.0, round(-y, 4), 0.0)
    middle = end + deep / 2
    lane.goals = []
    for goal in ((2.0, -y), (4.5, -y), (middle, -y), (middle, 0.0), (middle, y)):
        lane.goal(*goal)
    for x in (4.5, 2.2, 1.2):
        lane.goal(x, y)


def _figure_eight(lane: Lane) -> None:
    """Two circles on level ground, radius 2.6 - d, the second turning the other way."""
    radius, side = max(0.8, 2.6 - lane.d), lane.side()
    lane.length, lane.half_width = 10.0, 7.0
    x, r = 2.2 + radius, radius
    lane.goals = []
    for a, b in ((0, 0), (1, 1), (0, 2), (-1, 1), (1, -1), (0, -2), (-1, -1), (0, 0)):
        lane.goal(x + a * r, side * b * r)


def _barred(lay: Callable[[Lane], None]) -> Callable[[Lane], None]:
    """What `lay` puts at lane.x, a random way ahead; half of the waypoints lie beyond it."""

    def lay_barred(lane: Lane) -> None:
        lane.x += lane.draw(2.5, 3.5)
        front = lane.x
        lane.goals_to(front - BARRED_M, 3)
        lay(lane)
        lane.goals_to(front + 5.0, 4)

    return lay_barred


def _cliff(lane: Lane) -> None:
    """The ground ends: 2 + 3 d down, to the end of the tile."""
    lane.pit(lane.x, lane.length, 2.0 + 3.0 * lane.d)


def _pit(lane: Lane) -> None:
    """A pit 2.5 + 0.5 d long across the whole tile."""
    lane.pit(lane.x, lane.x + 2.5 + 0.5 * lane.d)


def _wall(lane: Lane) -> None:
    """A wall 1.6 + 0.4 d high across the whole tile."""
    lane.block("wall", lane.x, 0.3, 1.6 + 0.4 * lane.d, lane.half_width)


def _door(lane: Lane) -> None:
    """A wall of 2.0 with a door 0.55 - 0.05 d wide; the body alone is 0.61."""
    opening, outer = (0.55 - 0.05 * lane.d) / 2, lane.half_width
    for y in ((-outer, -opening), (opening, outer)):
        lane.boxes.append(level_box("wall", (lane.x, lane.x + 0.3), y, (0.0, 2.0)))


def _ceiling(lane: Lane) -> None:
    """A slab across the whole tile, its underside 0.30 - 0.05 d above the ground, 2 m long."""
    across = (-lane.half_width, lane.half_width)
    under = 0.30 - 0.05 * lane.d
    lane.boxes.append(level_box("wall", (lane.x, lane.x + 2.0), across, (under, 2.0)))


def _upright(
    kind: str,
    xy: tuple[float, float],
    half_xy: tuple[float, float],
    z: tuple[float, float],
    yaw: float,
) -> Box:
    """A box that is turned about the vertical only."""
    return Box(
        center=(round(xy[0], 6), round(xy[1], 6), round((z[0] + z[1]) / 2, 6)),
        half_extents=(round(half_xy[0], 6), round(half_xy[1], 6), round((z[1] - z[0]) / 2, 6)),
        quat=_rounded(rotations.from_yaw(yaw)),
        kind=kind,
    )


def _moved(box: Box, dx: float) -> Box:
    x, y, z = box.center
    return replace(box, center=(round(x + dx, 6), y, z))


def _rounded(quat: NDArray[np.float64]) -> tuple[float, float, float, float]:
    x, y, z, w = np.asarray(quat, float).round(9).tolist()
    return x, y, z, w


def _families() -> dict[str, Recipe]:
    def row(
        family: str,
        lay: Callable[[Lane], None],
        summary: str,
        trained_to: float | None = 2.5,
        passable: bool = True,
    ) -> Recipe:
        return Recipe(summary, lay, family, trained_to, passable)

    found = {
        "leg-riser": row("body-scaled", _leg_riser, "two blocks, d leg lengths (1.30 m) high"),
        "leg-gap": row("body-scaled", _leg_gap, "three gaps, d leg lengths (1.30 m) wide"),
        "leg-hurdle": row("body-scaled", _leg_hurdle, "three bars, d leg lengths (1.30 m) high"),
        "leg-stones": row("body-scaled", _leg_stones, "tilted stones, 26.6 degrees at d = 1"),
        "stairs": row("stairs", _stairs, "ten steps up and ten down, 24 cm each at d = 1"),
        "spiral": row("stairs", _spiral, "stairs round a column, up and down", None),
        "rubble": row("rubble", _rubble, "loose-looking blocks, 25 cm high at d = 1", 0.75),
        "stepping-stones": row(
            "stones", _stepping_stones, "60 cm stones 15 cm apart, 30 and 30 cm at d = 1", 0.75
        ),
        "beam": row("beam", _beam, "two beams over a pit, 0.6 m wide at d = 1", 0.75),
        "rough": row("rough", _rough, "patches of uneven ground, +-10 cm at d = 1"),
        "field": row("rough", _field, "a large field as rough as `rough`, level at d = 0"),
        "slope": row("slope", _slope, "up and down, 30 degrees at d = 1"),
        "side-slope": row("slope", _side_slope, "a cross-slope, 30 degrees at d = 1", 0.75),
        "u-turn": row("turns", _u_turn, "out and back on two walkways over a pit"),
        "figure-eight": row("turns", _figure_eight, "two circles on level ground"),
    }
    for name, lay in (("steps", lay_steps), ("gap", lay_gap), ("hurdle", lay_hurdle)):
        for degrees in (30, 45):
            held_out = name == "gap" and degrees == 45
            found[f"{name}-{degrees}"] = row(
                "turned",
                _turned(lay, degrees),
                f"`{name}` with its obstacles turned by {degrees} degrees",
                None if held_out else 2.5,
            )
    for lay in (_cliff, _pit, _wall, _door, _ceiling):
        summary = (lay.__doc__ or "").partition(":")[0].rstrip(".")
        found[lay.__name__[1:]] = row("impassable", _barred(lay), summary, passable=False)
    return found


FAMILIES: Final[Mapping[str, Recipe]] = MappingProxyType(_families())
"""By name; sizes as functions of the difficulty are in the functions above."""
