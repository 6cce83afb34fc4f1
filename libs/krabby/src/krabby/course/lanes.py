"""A lane to lay obstacles along, and the obstacles of the Extreme Parkour suite.

Beyond difficulty 1 every formula continues, except where an obstacle would stop making sense:
stones never get shorter than 0.4 m, and the clear run-up between hurdles stops shrinking.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

from krabby.course.boxes import Box

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np

__all__ = [
    "MAX_DIFFICULTY",
    "PIT_DEPTH_M",
    "PUBLISHED",
    "TILE_HALF_WIDTH_M",
    "Kind",
    "Lane",
    "Recipe",
    "lay_gap",
    "lay_hurdle",
    "lay_steps",
    "level_box",
]

Kind = Literal["border", "ground", "floor", "hurdle", "step", "landing", "stone", "rock", "wall"]

MAX_DIFFICULTY: Final = 2.5
"""Difficulty 1 is the suite's hardest; at 2.5 gaps are 1.85 m wide and risers 0.975 m high."""
TILE_HALF_WIDTH_M: Final = 3.0
PIT_DEPTH_M: Final = 1.8

_TILE_LENGTH_M: Final = 18.0
_PLATFORM_M: Final = 2.5
_SPAWN_X_M: Final = 1.0
_FIRST_GOAL_X_M: Final = 2.0
_OBSTACLES: Final = 6
_WIDEN_M: Final = 1.2
"""What the suite's corridors gain on either side [m]: a foot at 1.15 m where theirs is at 0.15 m,
and a little to spare."""
_STONE_HALF_WIDTH_M: Final = 1.6
_STONE_HALF_THICKNESS_M: Final = 0.3
_JITTER_M: Final = 0.2


class Lane:
    """A course being laid, from the start platform onwards.

    Draws are kept to a millimetre, so that boxes are the same on every machine, however it rounds
    the last bit.
    """

    def __init__(self, difficulty: float, rng: np.random.Generator) -> None:
        self.d = difficulty
        self.rng = rng
        self.x = _PLATFORM_M
        self.boxes: list[Box] = []
        self.goals: list[tuple[float, float]] = [(_FIRST_GOAL_X_M, 0.0)]
        self.pits: list[tuple[float, float, float]] = []
        """Where the ground is lower, over the width of the tile: from x, to x, by how much [m]."""
        self.length = _TILE_LENGTH_M
        """Of the tile, at least."""
        self.half_width = TILE_HALF_WIDTH_M
        self.lane_half_width = TILE_HALF_WIDTH_M
        self.spawn = (_SPAWN_X_M, 0.0, 0.0)
        self.has_edges = True
        """False where every step is on an edge: rough ground."""

    def draw(self, low: float, high: float) -> float:
        """Uniform in [low, high), to a millimetre."""
        return round(float(self.rng.uniform(low, high)), 3)

    def jitter(self) -> float:
        """Lateral offset of an obstacle or a goal [m]."""
        return self.draw(-_JITTER_M, _JITTER_M)

    def corridor(self, low: float, high: float) -> float:
        """Half-width of the obstacles: the suite's range, widened for this robot."""
        half_width = self.draw(_WIDEN_M + low, _WIDEN_M + high)
        self.lane_half_width = min(self.lane_half_width, half_width)
        return half_width

    def side(self) -> float:
        """Left (1) or right (-1)."""
        return 1.0 if self.draw(-1.0, 1.0) < 0.0 else -1.0

    def goal(self, x: float, y: float) -> None:
        """Append a waypoint."""
        self.goals.append((round(x, 4), round(y, 4)))

    def goals_to(self, x: float, count: int) -> None:
        """Append waypoints on the middle line, evenly from the last one to `x`."""
        start = self.goals[-1][0]
        for i in range(1, count + 1):
            self.goal(start + (x - start) * i / count, 0.0)

    def pit(self, start: float, stop: float, depth: float = PIT_DEPTH_M) -> None:
        """Lower the ground from `start` to `stop`."""
        self.pits.append((start, stop, depth))

    def block(
        self, kind: Kind, x: float, length: float, top: float, half_width: float, y: float = 0.0
    ) -> None:
        """A level block from the ground, or from the pit floor for a landing, up to `top`."""
        bottom = -PIT_DEPTH_M if kind == "landing" else 0.0
        self.boxes.append(
            level_box(kind, (x, x + length), (y - half_width, y + half_width), (bottom, top))
        )

    def stone(
        self,
        x: float,
        length: float,
        y: float,
        middle: float,
        rise: float,
        half_width: float = _STONE_HALF_WIDTH_M,
    ) -> None:
        """A stone tilted about x: its top is `rise` higher at the left edge than in the middle."""
        angle = math.atan2(rise, half_width)
        sin, cos = math.sin(angle), math.cos(angle)
        thickness = _STONE_HALF_THICKNESS_M
        self.boxes.append(
            Box(
                center=(
                    round(x + length / 2, 6),
                    round(y + thickness * sin, 6),
                    round(middle - thickness * cos, 6),
                ),
                half_extents=(
                    round(length / 2, 6),
                    round(half_width / cos, 6),
                    thickness,
                ),
                quat=(round(math.sin(angle / 2), 9), 0.0, 0.0, round(math.cos(angle / 2), 9)),
                kind="stone",
            )
        )
        self.lane_half_width = min(self.lane_half_width, half_width)


def _flat(lane: Lane) -> None:
    for _ in range(_OBSTACLES):
        lane.x += lane.draw(1.5, 2.4)
        lane.goal(lane.x, lane.jitter())
    lane.goal(lane.x + lane.draw(1.5, 2.4), 0.0)


def lay_steps(lane: Lane) -> None:
    """Six treads in a corridor; risers 0.1 + 0.35 d, treads U(0.3, 1.5) and a riser long."""
    half_width = lane.corridor(0.5, 1.0)
    riser = _riser(lane.d)
    for level in (1, 2, 3, 3, 2, 1):
        length, y = lane.draw(0.3, 1.5) + riser, lane.jitter()
        lane.block("step", lane.x, length, level * riser, half_width, y)
        lane.goal(lane.x + length / 2, y)
        lane.x += length
    lane.goal(lane.x + 1.5, 0.0)


def lay_gap(lane: Lane) -> None:
    """Six gaps 0.1 + 0.7 d wide, landings U(0.8, 1.5) long between them."""
    half_width = lane.corridor(0.6, 1.2)
    width = _gap_width(lane.d)
    lane.x += lane.draw(0.8, 1.5)
    start = lane.x
    lane.goal((_PLATFORM_M + start) / 2, 0.0)
    for _ in range(_OBSTACLES - 1):
        lane.x += width
        length, y = lane.draw(0.8, 1.5), lane.jitter()
        lane.block("landing", lane.x, length, 0.0, half_width, y)
        lane.goal(lane.x + length / 2, y)
        lane.x += length
    lane.pit(start, lane.x + width)
    lane.goal(lane.x + width + 1.0, 0.0)


def lay_hurdle(lane: Lane) -> None:
    """Six bars U(0.1 + 0.1 d, 0.15 + 0.25 d) high and 0.1 + 0.3 d thick."""
    half_width = lane.corridor(0.4, 0.8)
    middle = lane.x
    for _ in range(_OBSTACLES):
        middle += _hurdle_spacing(lane)
        _add_hurdle(lane, middle, half_width)
    lane.goal(middle + lane.draw(1.2, 2.2), 0.0)


def _ramps(lane: Lane) -> None:
    start = lane.x
    for index in range(_OBSTACLES):
        last = index == _OBSTACLES - 1
        length = 1.6 if last else _stone_length(lane)
        _add_stone(lane, (-1.0) ** index, length, last=last)
        lane.goal(*_top_middle(lane.boxes[-1]))
    lane.x += _stone_gap(lane)
    lane.pit(start, lane.x)
    lane.goal(lane.x + 1.0, 0.0)


def _mixed(lane: Lane) -> None:
    half_width = lane.corridor(0.5, 0.8)
    adders = (_mixed_hurdle, _mixed_box, _mixed_gap, _mixed_ramps)
    # Shuffled by uniform draws alone: numpy keeps those the same from version to version.
    ranks = [lane.draw(0.0, 1.0) for _ in adders]
    order = sorted(range(4), key=ranks.__getitem__)
    order += [int(4 * lane.draw(0.0, 0.999)) for _ in range(_OBSTACLES - 4)]
    for kind in order:
        adders[kind](lane, half_width)
    lane.goal(lane.x + 1.5, 0.0)


def _mixed_hurdle(lane: Lane, half_width: float) -> None:
    _add_hurdle(lane, lane.x + _hurdle_spacing(lane), half_width)


def _mixed_box(lane: Lane, half_width: float) -> None:
    lane.x += lane.draw(1.2, 2.0)
    length, y = lane.draw(0.3, 1.5) + _riser(lane.d), lane.jitter()
    lane.block("step", lane.x, length, _riser(lane.d), half_width, y)
    lane.goal(lane.x + length / 2, y)
    lane.x += length


def _mixed_gap(lane: Lane, half_width: float) -> None:
    """As wide as the tile, not the corridor, so that it cannot be bypassed."""
    run_up = lane.draw(1.2, 2.0)
    lane.goal(lane.x + run_up / 2, lane.jitter())
    lane.x += run_up
    lane.pit(lane.x, lane.x + _gap_width(lane.d))
    lane.x += _gap_width(lane.d)


def _mixed_ramps(lane: Lane, half_width: float) -> None:
    """Two stones of their own width over a pit."""
    lane.x += lane.draw(1.2, 2.0)
    start = lane.x
    for side in (1.0, -1.0):
        _add_stone(lane, side, _stone_length(lane))
    lane.goal(*_top_middle(lane.boxes[-1]))
    lane.x += _stone_gap(lane)
    lane.pit(start, lane.x)


def _demo(lane: Lane) -> None:
    half_width = lane.corridor(0.5, 0.6)
    lane.goals.clear()

    length = lane.draw(0.35, 0.4)
    lane.block("hurdle", lane.x, length, lane.draw(0.3, 0.36), half_width)
    lane.goal(lane.x + length / 2, 0.0)
    lane.x += lane.draw(1.5, 2.5)

    top = lane.draw(0.35, 0.45)
    for low, high in ((0.45, 0.8), (0.45, 0.8), (0.25, 0.6), (0.25, 0.6)):
        length = lane.draw(low, high)
        lane.block("step", lane.x, length, top, half_width)
        lane.goal(lane.x + length / 2, 0.0)
        lane.x += length
        if len(lane.goals) == 3:
            width = lane.draw(0.5, 0.8)
            lane.pit(lane.x, lane.x + width)
            lane.x += width

    start, width = lane.x, lane.draw(0.1, 0.4)
    rise, length = lane.draw(0.15, 0.22), lane.draw(0.75, 0.85)
    middle = rise + lane.draw(0.0, 0.2)
    for side in (1.0, -1.0):
        lane.x += width
        lane.stone(lane.x, length, side * lane.draw(0.075, 0.15), middle, side * rise)
        lane.goal(*_top_middle(lane.boxes[-1]))
        lane.x += length
    lane.x += width
    lane.pit(start, lane.x)
    lane.goal(lane.x + 1.0, 0.0)


def _riser(d: float) -> float:
    return round(0.1 + 0.35 * d, 3)


def _gap_width(d: float) -> float:
    return round(0.1 + 0.7 * d, 3)


def _hurdle_spacing(lane: Lane) -> float:
    """Bar to bar; beyond difficulty 1 the clear run-up stops shrinking as bars grow thicker."""
    return lane.draw(1.2, 2.2) + max(0.0, _hurdle_thickness(lane.d) - _hurdle_thickness(1.0))


def _hurdle_thickness(d: float) -> float:
    return round(0.1 + 0.3 * d, 3)


def _add_hurdle(lane: Lane, middle: float, half_width: float) -> None:
    """A bar round x = `middle`, the goal half-way along the run-up to it."""
    thickness, y = _hurdle_thickness(lane.d), lane.jitter()
    height = lane.draw(0.1 + 0.1 * lane.d, 0.15 + 0.25 * lane.d)
    front = middle - thickness / 2
    lane.block("hurdle", front, thickness, height, half_width, y)
    lane.goal((lane.x + front) / 2, y)
    lane.x = front + thickness


def _stone_length(lane: Lane) -> float:
    """The suite's U(0.9 - 0.3 d, 1 - 0.2 d) in steps of 0.2 m; never too short for a foot."""
    drawn = lane.draw(0.9 - 0.3 * lane.d, 1.0 - 0.2 * lane.d)
    return max(0.4, round(0.2 * round(drawn / 0.2), 1))


def _stone_gap(lane: Lane) -> float:
    return lane.draw(-0.1, 0.1 + 0.3 * lane.d)


def _add_stone(lane: Lane, side: float, length: float, *, last: bool = False) -> None:
    """A gap, then a stone off the middle line.

    The suite gives heights at the edges of a stone 1 m wide; they are kept in metres, so that a
    wider stone is less steep and the feet meet the same differences in height.
    """
    rise = 0.1 + 0.15 * lane.d if last else 0.25 * lane.d
    # Half the suite's offset: two neighbours must leave a common lane wider than the stance.
    offset = lane.draw(0.1, 0.15 + 0.05 * min(lane.d, 1.0))
    lane.x += _stone_gap(lane)
    lane.stone(lane.x, length, side * offset, 0.0, side * rise)
    lane.x += length


def _top_middle(stone: Box) -> tuple[float, float]:
    x, y, _ = stone.corners[:4].mean(axis=0)
    return float(x), float(y)


@dataclass(frozen=True)
class Recipe:
    """How a course is laid, and what people and the trainer should know of it."""

    summary: str
    lay: Callable[[Lane], None]
    family: str = "published"
    trained_to: float | None = MAX_DIFFICULTY
    """Largest difficulty that training may draw; None keeps the course out of training."""
    passable: bool = True
    """False: nothing can get to the last waypoint; a robot should stand off or turn away."""


PUBLISHED: Final[Mapping[str, Recipe]] = MappingProxyType(
    {
        "flat": Recipe("level ground with waypoints to follow", _flat),
        "steps": Recipe("three treads up, one level, two down", lay_steps),
        "gap": Recipe("six gaps between landings, a pit on either side", lay_gap),
        "hurdle": Recipe("six bars to climb over", lay_hurdle),
        "ramps": Recipe("six stones tilted left and right over a pit", _ramps),
        "mixed": Recipe("hurdles, boxes, gaps and tilted stones in one lane, shuffled", _mixed),
        "demo": Recipe(
            "hurdle, boxes, gap, boxes, gap, two tilted stones; its difficulty is fixed", _demo
        ),
    }
)


def level_box(
    kind: Kind, x: tuple[float, float], y: tuple[float, float], z: tuple[float, float]
) -> Box:
    """A box that is not turned, from its ranges along x, y and z [m]."""
    ranges = (x, y, z)
    cx, cy, cz = (round((low + high) / 2, 6) for low, high in ranges)
    hx, hy, hz = (round((high - low) / 2, 6) for low, high in ranges)
    return Box(center=(cx, cy, cz), half_extents=(hx, hy, hz), kind=kind)
