"""Parkour courses from oriented boxes: one description for training, simulation, files and metrics.

A course is a pure function of its name, a difficulty and a seed. Geometry follows the Extreme
Parkour suite in metres, widened for a robot whose feet stand 1.15 m to either side of its middle:
corridors reach 1.2 m further out, stones are 3.2 m wide, lateral jitter stays within 0.2 m, and
pits are deeper than a leg is long, so that a gap cannot be waded. Full difficulty is 1; the same
formulas continue beyond it.

Course frame: x along the lane from the start of the tile, y left of its middle, z up, ground at 0.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from krabby.course.boxes import BOX_FACES, Bounds, Box, BoxField, distance_to_segments
from krabby.course.families import FAMILIES
from krabby.course.lanes import (
    MAX_DIFFICULTY,
    PIT_DEPTH_M,
    PUBLISHED,
    Kind,
    Lane,
    Recipe,
    level_box,
)
from krabby.course.terrain_file import is_terrain_file, terrain_recipe
from krabby.course.usd import USD_SUFFIXES, write_usd
from krabby.robot.errors import CourseError, UnknownCourse

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import trimesh
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "COLOURS",
    "COURSES",
    "EDGE_DISTANCE_M",
    "EXPORT_SUFFIXES",
    "MAX_DIFFICULTY",
    "Course",
    "Kind",
    "Recipe",
    "check_training",
    "find_recipe",
    "is_held_out",
    "make_course",
]

EDGE_DISTANCE_M: Final = 0.05
"""A foot closer than this to an edge counts as standing on it [m]."""

EDGE_DROP_M: Final = 0.05
"""An edge is where the ground falls by more than this [m]."""

EXPORT_SUFFIXES: Final = (".glb", ".stl", ".obj", ".ply", *USD_SUFFIXES)

_RUN_OUT_M: Final = 2.0
"""Ground beyond the last waypoint [m]."""
_FLOOR_THICKNESS_M: Final = 0.2
_PIT_MARGIN_M: Final = 0.25
_FRICTION: Final = (1.0, 0.005, 0.0001)
"""MuJoCo's sliding, torsional and rolling friction of the ground."""

COLOURS: Final[Mapping[str, tuple[float, float, float]]] = MappingProxyType(
    {
        "border": (0.74, 0.77, 0.76),
        "ground": (0.62, 0.67, 0.66),
        "floor": (0.20, 0.23, 0.27),
        "hurdle": (0.89, 0.47, 0.27),
        "step": (0.36, 0.57, 0.72),
        "landing": (0.55, 0.66, 0.48),
        "stone": (0.84, 0.68, 0.38),
        "rock": (0.60, 0.52, 0.45),
        "wall": (0.67, 0.33, 0.30),
    }
)
"""sRGB of the boxes by kind, each part 0 to 1."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Course:
    """One lane of obstacles. All lengths in metres, course frame; arrays are read-only."""

    name: str
    difficulty: float
    seed: int
    boxes: tuple[Box, ...]
    waypoints: NDArray[np.float64]
    """Goals in the order to reach them, on the ground: shape (8, 3)."""
    spawn: tuple[float, float, float]
    """Where the robot starts: x, y [m], yaw [rad]."""
    length_m: float
    """Tile length along x; the border comes on top."""
    half_width_m: float
    """Half the tile's width; the border comes on top."""
    lane_half_width: float
    """Half the width of the narrowest obstacle: what a robot must keep its feet within."""
    bounds: Bounds
    """Tile and border: where there is any ground at all."""
    has_edges: bool = True
    """False where every step is on an edge: none of them counts."""

    @cached_property
    def edges(self) -> NDArray[np.float64]:
        """Where a foot can slip off: exact top-edge segments in x and y, shape (M, 2, 3)."""
        if not self.has_edges:
            return _frozen(np.empty((0, 2, 3)))
        return _frozen(self._field.exposed_edges(min_drop_m=EDGE_DROP_M, bounds=self.bounds))

    @cached_property
    def pit_entry_z(self) -> float:
        """Height below which a point over a pit has fallen in [m]: below the lowest foothold."""
        tops = [box.corners[:4, 2].min() for box in self.boxes if box.kind != "floor"]
        return float(min(0.0, *tops)) - _PIT_MARGIN_M

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of the geometry, to a micrometre; equal where the courses are."""
        content = [self.name, self.spawn, self.waypoints.tolist()]
        content += [[b.kind, b.center, b.half_extents, b.quat] for b in self.boxes]
        return hashlib.sha256(json.dumps(content, default=float).encode()).hexdigest()

    def height_at(self, x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
        """Height of the surface at the points [m], shape of x and y broadcast.

        Outside the bounds there is nothing to stand on: the depth of a pit. Where it is deeper
        than `PIT_DEPTH_M`, that depth is reported: no leg reaches further.
        """
        return self._field.height_at(x, y)

    def in_pit(self, x: ArrayLike, y: ArrayLike, z: ArrayLike) -> NDArray[np.bool_]:
        """Whether points of the robot, feet or base, have fallen into a pit or off the course."""
        below_ground = np.asarray(z) < self.pit_entry_z
        return below_ground & (self.height_at(x, y) < -PIT_DEPTH_M / 2)

    def distance_to_edge(self, points: ArrayLike) -> NDArray[np.float64]:
        """Distance [m] of contact points (..., 3) to the nearest edge; inf without edges.

        The point is where a foot touches the ground, not the middle of its sphere.
        """
        return distance_to_segments(np.asarray(points, dtype=float), self.edges)

    def feet_on_edge(self, points: ArrayLike) -> NDArray[np.bool_]:
        """Which contact points (..., 3) are within `EDGE_DISTANCE_M` of an edge, shape (...)."""
        points = np.asarray(points, dtype=float)
        if not points.size:
            return np.zeros(points.shape[:-1], bool)
        within = tuple(range(points.ndim - 1))
        low, high = points.min(axis=within), points.max(axis=within)
        near = (self._edge_low <= high + EDGE_DISTANCE_M) & (
            self._edge_high >= low - EDGE_DISTANCE_M
        )
        edges = self.edges[near.all(axis=1)]
        return distance_to_segments(points, edges) < EDGE_DISTANCE_M

    def to_trimesh(self) -> trimesh.Trimesh:
        """One mesh of all boxes, each closed in itself; z up, metres, coloured by kind."""
        import trimesh

        vertices = np.concatenate([box.corners for box in self.boxes])
        faces = np.concatenate([BOX_FACES + 8 * i for i in range(len(self.boxes))])
        colours = np.repeat([COLOURS[box.kind] for box in self.boxes], 8, axis=0)
        return trimesh.Trimesh(vertices, faces, vertex_colors=colours, process=False)

    def export(self, path: Path) -> None:
        """Write the mesh: .glb (turned y up, as glTF asks), or .stl, .obj, .ply (z up). Metres.

        .usd, .usda and .usdc hold the boxes themselves: `krabby.course.usd`.

        Raises:
            CourseError: for another suffix, or when the file cannot be written.
        """
        suffix = path.suffix.lower()
        if suffix not in EXPORT_SUFFIXES:
            raise CourseError(
                f"cannot export a course as {path.name!r}: "
                f"choose a name ending in {', '.join(EXPORT_SUFFIXES)}"
            )
        if suffix in USD_SUFFIXES:
            write_usd(self, path, colours=dict(COLOURS), friction=_FRICTION[0])
            return
        mesh = self.to_trimesh()
        if suffix == ".glb":
            y_up = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=float)
            mesh.apply_transform(y_up)
        try:
            mesh.export(path)
        except OSError as error:
            raise CourseError(
                f"cannot write {path}: {error.strerror}; choose a writable place"
            ) from error

    def add_to_mjspec(self, spec: Any) -> None:
        """Add every box as a geom of group 0 to the world body of a `mujoco.MjSpec`."""
        import mujoco

        for index, box in enumerate(self.boxes):
            x, y, z, w = box.quat
            spec.worldbody.add_geom(
                name=f"course_{index:02d}_{box.kind}",
                type=mujoco.mjtGeom.mjGEOM_BOX,  # pyright: ignore[reportAttributeAccessIssue]
                pos=box.center,
                quat=(w, x, y, z),
                size=box.half_extents,
                group=0,
                friction=_FRICTION,
                rgba=(*COLOURS[box.kind], 1.0),
            )

    def describe(self) -> str:
        """The course in a few lines, for people."""
        kinds = [box.kind for box in self.boxes if box.kind not in ("border", "ground", "floor")]
        counts = ", ".join(f"{kinds.count(k)} {k}" for k in dict.fromkeys(kinds)) or "no obstacle"
        edge_m = float(np.linalg.norm(self.edges[:, 1] - self.edges[:, 0], axis=-1).sum())
        floors = [box.corners[0, 2] for box in self.boxes if box.kind == "floor"]
        pit = f"pits {-min(floors):g} m deep" if floors else "no pit"
        return "\n".join(
            [
                f"{self.name}: {find_recipe(self.name).summary}",
                f"  difficulty {self.difficulty:g}, seed {self.seed}, "
                f"content {self.content_hash[:12]}",
                f"  tile {self.length_m:g} m x {2 * self.half_width_m:g} m, "
                f"narrowest obstacle {2 * self.lane_half_width:.2f} m wide",
                f"  {counts}; {pit}; highest foothold {self._highest:.2f} m",
                f"  {len(self.waypoints)} waypoints from x {self.waypoints[0, 0]:.2f} "
                f"to {self.waypoints[-1, 0]:.2f} m; {edge_m:.1f} m of edges; "
                f"{len(self.boxes)} boxes",
            ]
        )

    @cached_property
    def _edge_low(self) -> NDArray[np.float64]:
        return self.edges.min(axis=1)

    @cached_property
    def _edge_high(self) -> NDArray[np.float64]:
        return self.edges.max(axis=1)

    @cached_property
    def _field(self) -> BoxField:
        return BoxField(self.boxes, void_height=-PIT_DEPTH_M)

    @property
    def _highest(self) -> float:
        return max(float(box.corners[:4, 2].max()) for box in self.boxes)


COURSES: Final[Mapping[str, Recipe]] = MappingProxyType({**PUBLISHED, **FAMILIES})
"""What `make_course` can build, by name; `.summary` is a line for people."""


def is_held_out(name: str, difficulty: float) -> bool:
    """Whether training may not draw this course at this difficulty."""
    most = find_recipe(name).trained_to
    return most is None or difficulty > most


def check_training(name: str, difficulty: float) -> None:
    """Refuse a course that is held out of training, so that it can measure what was not practised.

    Raises:
        UnknownCourse: no such name.
        CourseError: training may not draw this course at this difficulty.
    """
    if is_held_out(name, difficulty):
        most = find_recipe(name).trained_to
        beyond = "" if most is None else f" beyond difficulty {most:g}, not {difficulty:g}"
        raise CourseError(
            f"course {name!r} is held out of training{beyond}; it is there for evaluation only"
        )


def find_recipe(name: str) -> Recipe:
    """The entry of `COURSES`, or the terrain of a file; other names are told the nearest."""
    if is_terrain_file(name):
        return terrain_recipe(name)
    if name not in COURSES:
        near = difflib.get_close_matches(str(name), COURSES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UnknownCourse(f"no course is called {name!r}; {hint}choose from {', '.join(COURSES)}")
    return COURSES[name]


def make_course(
    name: str, difficulty: float = 0.5, seed: int = 0, *, border_m: float = 2.0
) -> Course:
    """Build a course.

    Args:
        name: one of `COURSES`, or the path of a mesh or height field (`terrain_file`).
        difficulty: from 0 to `MAX_DIFFICULTY`; 1 is the hardest of the published suite.
        seed: layout; the same seed gives the same boxes on every machine, and the same draws at
            every difficulty.
        border_m: level ground round the tile [m]; 0 for tiles that are laid side by side.

    Raises:
        UnknownCourse: no such name.
        CourseError: difficulty or seed out of range.
    """
    find_recipe(name)
    if not 0.0 <= difficulty <= MAX_DIFFICULTY:
        raise CourseError(
            f"difficulty {difficulty!r} is outside 0 to {MAX_DIFFICULTY}; "
            "1 is the hardest of the published suite"
        )
    if not (0 <= seed < 2**63 and int(seed) == seed):
        raise CourseError(f"seed {seed!r} is not a whole number from 0 to 2^63 - 1")
    if not 0.0 <= border_m <= 100.0:
        raise CourseError(f"border_m {border_m!r} is outside 0 to 100 m")
    return _make(name, float(difficulty), int(seed), float(border_m))


@lru_cache(maxsize=64)
def _make(name: str, difficulty: float, seed: int, border_m: float) -> Course:
    lane = Lane(difficulty, np.random.Generator(np.random.PCG64(seed)))
    find_recipe(name).lay(lane)

    end = max(x for x, _ in lane.goals)
    length, half_width = max(lane.length, round(end + _RUN_OUT_M, 1)), lane.half_width
    bounds = Bounds(
        x_min=-border_m,
        x_max=length + border_m,
        y_min=-half_width - border_m,
        y_max=half_width + border_m,
    )
    ground = _ground(lane, length)
    boxes = (*_border(bounds, ground[0]), *ground, *lane.boxes)
    xy = np.array(lane.goals)
    z = BoxField(boxes, void_height=-PIT_DEPTH_M).height_at(xy[:, 0], xy[:, 1])
    return Course(
        name=name,
        difficulty=difficulty,
        seed=seed,
        boxes=boxes,
        waypoints=_frozen(np.column_stack([xy, z]).round(6)),
        spawn=lane.spawn,
        length_m=length,
        half_width_m=half_width,
        lane_half_width=lane.lane_half_width,
        bounds=bounds,
        has_edges=lane.has_edges,
    )


def _ground(lane: Lane, length: float) -> list[Box]:
    """Level ground, and what is lower between it, over the width of the tile."""
    across = (-lane.half_width, lane.half_width)
    bottom = -max(PIT_DEPTH_M, *(depth for *_, depth in lane.pits), 0.0) - _FLOOR_THICKNESS_M
    boxes: list[Box] = []
    start = 0.0
    for begin, end, depth in lane.pits:
        kind = "floor" if depth > PIT_DEPTH_M / 2 else "ground"
        boxes.append(level_box("ground", (start, begin), across, (bottom, 0.0)))
        boxes.append(level_box(kind, (begin, end), across, (bottom, -depth)))
        start = end
    if start < length:
        boxes.append(level_box("ground", (start, length), across, (bottom, 0.0)))
    return boxes


def _border(bounds: Bounds, ground: Box) -> list[Box]:
    """Four slabs round the tile, level with its ground and as thick."""
    if bounds.x_min == 0.0:
        return []
    z = (2.0 * ground.center[2], 0.0)
    whole, side = (bounds.y_min, bounds.y_max), ground.half_extents[1]
    length = bounds.x_max + bounds.x_min
    return [
        level_box("border", (bounds.x_min, 0.0), whole, z),
        level_box("border", (length, bounds.x_max), whole, z),
        level_box("border", (0.0, length), (bounds.y_min, -side), z),
        level_box("border", (0.0, length), (side, bounds.y_max), z),
    ]


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    array.setflags(write=False)
    return array
