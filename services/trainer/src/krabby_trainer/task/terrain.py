"""Terrain for training: many courses side by side.

Tiles come from `krabby.course.courses`, the generator that the runtime's simulation uses. Rows are
difficulties, columns are layouts of one obstacle type, as wide as it needs. The mesh goes to the
physics; heights are looked up in a raster made from the same boxes, edges and waypoints are exact.

World frame: level 0 starts at x = 0, column 0 at y = 0; z up, ground at 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from krabby.course.boxes import BoxField
from krabby.course.courses import (
    COURSES,
    EDGE_DISTANCE_M,
    MAX_DIFFICULTY,
    Course,
    check_training,
    find_recipe,
    make_course,
)
from krabby.course.families import BARRED_M
from krabby.course.lanes import PIT_DEPTH_M
from krabby.course.terrain_file import is_terrain_file
from krabby.robot.errors import CourseError
from numpy.typing import NDArray

from krabby_trainer.errors import ConfigError
from krabby_trainer.task.config import TerrainCfg

if TYPE_CHECKING:
    import trimesh

__all__ = [
    "BORDER_M",
    "CELL_M",
    "Terrain",
    "TerrainTensors",
    "barrier_x",
    "check_terrain",
    "column_types",
    "reachable_goals",
]

CELL_M: Final = 0.05
"""Cell of the height raster."""
BORDER_M: Final = 6.0
"""Level ground round all tiles."""
_SLAB_M: Final = 1.0
_EDGE_CELL_M: Final = 0.5
"""Edges are looked up by stretches of the tile this long."""


class Terrain:
    """The courses of a `TerrainCfg`, laid out."""

    def __init__(self, cfg: TerrainCfg) -> None:
        check_terrain(cfg)
        self.types = tuple(cfg.types)
        self.levels, self.columns = cfg.levels, cfg.columns
        self.type_id = _columns_of(cfg)
        """Index into `types` of every column, (columns,)."""
        self.difficulty = _difficulties(cfg)
        """(levels, columns)."""
        self.seeds = cfg.seed + np.arange(cfg.columns)[None] + 1000 * np.arange(cfg.levels)[:, None]
        """Seed of every course, (levels, columns)."""
        courses = [
            [
                make_course(
                    self.types[self.type_id[column]],
                    float(self.difficulty[level, column]),
                    int(self.seeds[level, column]),
                    border_m=0.0,
                )
                for column in range(cfg.columns)
            ]
            for level in range(cfg.levels)
        ]
        self.courses = courses
        longest = max(course.length_m for row in courses for course in row)
        self.tile_length_m = CELL_M * float(np.ceil(longest / CELL_M))
        widths = [2.0 * max(row[i].half_width_m for row in courses) for i in range(cfg.columns)]
        self.column_y = np.concatenate([[0.0], np.cumsum(widths)]).round(3)
        """Borders between the columns, (columns + 1,) [m]."""
        self.placed = [
            (course, self.corner(level, column))
            for level, row in enumerate(courses)
            for column, course in enumerate(row)
        ]
        """Course and its origin in the world, of every tile: tile = level * columns + column."""

    @property
    def tiles(self) -> int:
        return self.levels * self.columns

    def corner(self, level: int, column: int) -> NDArray[np.float64]:
        """Where a course's own origin lies in the world, (3,) [m]."""
        middle = self.column_y[column : column + 2].mean()
        return np.array([level * self.tile_length_m, middle, 0.0])

    @cached_property
    def origins(self) -> NDArray[np.float64]:
        """Where robots start, on the ground, (levels, columns, 3) [m]."""
        starts = np.stack([corner for _, corner in self.placed])
        starts[:, :2] += np.stack([course.spawn[:2] for course, _ in self.placed])
        return starts.reshape(self.levels, self.columns, 3)

    @cached_property
    def mesh(self) -> trimesh.Trimesh:
        """All boxes, the level ground that fills the tiles to one length, and the border."""
        import trimesh

        parts = [course.to_trimesh().apply_translation(corner) for course, corner in self.placed]
        parts += [_slab(*rectangle) for rectangle in self._filling()]
        mesh: Any = trimesh.util.concatenate(parts)
        mesh.visual = trimesh.visual.ColorVisuals(mesh)
        return mesh

    @cached_property
    def raster(self) -> NDArray[np.float32]:
        """Height of the ground at cell centres [m], tiles only."""
        rows = round(self.tile_length_m / CELL_M)
        across = (self.column_y / CELL_M).round().astype(int)
        raster = np.zeros((self.levels * rows, across[-1]), np.float32)
        for tile, (course, _) in enumerate(self.placed):
            level, column = divmod(tile, self.columns)
            x, y = level * rows, slice(*across[column : column + 2])
            _rasterise(course, raster[x : x + rows, y])
        return raster

    def to(self, device: str | torch.device) -> TerrainTensors:
        """Tensors for rewards, observations and metrics, on `device`."""
        placed = self.placed

        def tensor(array: NDArray[np.float64] | list[float]) -> torch.Tensor:
            return torch.as_tensor(np.asarray(array), dtype=torch.float32, device=device)

        return TerrainTensors(
            raster=torch.as_tensor(self.raster, device=device),
            waypoints=tensor(np.stack([course.waypoints + corner for course, corner in placed])),
            spawn=tensor(np.stack([corner[:2] + course.spawn[:2] for course, corner in placed])),
            start_x=tensor([float(corner[0]) for _, corner in placed]),
            lane_y=tensor([float(corner[1]) for _, corner in placed]),
            half_width=tensor([course.half_width_m for course, _ in placed]),
            edges=tensor(self._edges()),
            pit_entry_z=tensor([course.pit_entry_z for course, _ in placed]),
            type_id=torch.as_tensor(np.tile(self.type_id, self.levels), device=device),
            difficulty=tensor(self.difficulty.ravel()),
            seed=torch.as_tensor(self.seeds.ravel(), device=device),
            barrier_x=tensor([float(corner[0]) + barrier_x(c) for c, corner in placed]),
            goals=torch.as_tensor([reachable_goals(c) for c, _ in placed], device=device),
        )

    def _edges(self) -> NDArray[np.float64]:
        """Edges that pass through each stretch of each tile, (T, C, M, 2, 3), padded far away."""
        stretches = int(np.ceil(self.tile_length_m / _EDGE_CELL_M))
        starts = _EDGE_CELL_M * np.arange(stretches)[:, None] - EDGE_DISTANCE_M - 1e-3
        stops = starts + _EDGE_CELL_M + 2.0 * (EDGE_DISTANCE_M + 1e-3)
        found = []
        for course, corner in self.placed:
            x = course.edges[:, :, 0]
            passes = (x.min(axis=1) <= stops) & (x.max(axis=1) >= starts)
            found += [course.edges[some] + corner for some in passes]
        padded = np.full((len(found), max(1, *map(len, found)), 2, 3), 1e6)
        for segments, some in zip(padded, found, strict=True):
            segments[: len(some)] = some
        return padded.reshape(self.tiles, stretches, -1, 2, 3)

    def _filling(self) -> list[tuple[float, float, float, float]]:
        """Rectangles (x0, x1, y0, y1) of level ground: round everything and round small courses."""
        width, length = float(self.column_y[-1]), self.levels * self.tile_length_m
        b = BORDER_M
        rectangles = [
            (-b, 0.0, -b, width + b),
            (length, length + b, -b, width + b),
            (0.0, length, -b, 0.0),
            (0.0, length, width, width + b),
        ]
        for tile, (course, (x, y, _)) in enumerate(self.placed):
            column = tile % self.columns
            right, left = self.column_y[column : column + 2].tolist()
            end, half = x + course.length_m, course.half_width_m
            rectangles += [
                (end, x + self.tile_length_m, right, left),
                (x, end, right, y - half),
                (x, end, y + half, left),
            ]
        return [r for r in rectangles if r[1] - r[0] > 1e-6 and r[3] - r[2] > 1e-6]


@dataclass(frozen=True)
class TerrainTensors:
    """The terrain on one device. T tiles; tile = level * columns + column."""

    raster: torch.Tensor
    """Heights at cell centres [m]."""
    waypoints: torch.Tensor
    """(T, 8, 3) [m], world frame."""
    spawn: torch.Tensor
    """(T, 2) [m], world frame."""
    start_x: torch.Tensor
    """Where the tile begins, (T,) [m]."""
    lane_y: torch.Tensor
    """Middle of the lane, (T,) [m]."""
    half_width: torch.Tensor
    """Half the width of the course, (T,) [m]."""
    edges: torch.Tensor
    """(T, C, M, 2, 3) [m]: of each stretch of 0.5 m, padded with segments that are far away."""
    pit_entry_z: torch.Tensor
    """(T,) [m]."""
    type_id: torch.Tensor
    """(T,)."""
    difficulty: torch.Tensor
    """(T,)."""
    seed: torch.Tensor
    """(T,)."""
    barrier_x: torch.Tensor
    """Where something impassable begins, (T,) [m]; infinite where nothing bars the way."""
    goals: torch.Tensor
    """Waypoints that can be reached, (T,): on impassable courses those before the obstacle."""

    def height_at(self, xy: torch.Tensor) -> torch.Tensor:
        """Ground height [m] of points (..., 2) [m]; 0 beyond the tiles."""
        cell = torch.floor(xy / CELL_M)
        # The raster has a border of zeros, one cell wide: what is farther out looks there.
        rows, columns = self._bordered.shape
        ix = cell[..., 0].clamp(-1, rows - 2).int()
        iy = cell[..., 1].clamp(-1, columns - 2).int()
        return self._bordered.view(-1)[(ix + 1) * columns + (iy + 1)]

    @cached_property
    def _bordered(self) -> torch.Tensor:
        return torch.nn.functional.pad(self.raster, (1, 1, 1, 1))

    def feet_on_edge(self, tile: torch.Tensor, soles_w: torch.Tensor) -> torch.Tensor:
        """Which soles (N, F, 3) lie within `EDGE_DISTANCE_M` of an edge of their tile, (N, F)."""
        stretch = ((soles_w[..., 0] - self.start_x[tile][:, None]) / _EDGE_CELL_M).long()
        segments = self.edges[tile[:, None], stretch.clamp(0, self.edges.shape[1] - 1)]
        start, along = segments[..., 0, :], segments[..., 1, :] - segments[..., 0, :]
        offset = soles_w[:, :, None] - start
        length_sq = along.square().sum(-1).clamp(min=1e-12)
        t = ((offset * along).sum(-1) / length_sq).clamp(0.0, 1.0)
        off = offset - t[..., None] * along
        return (off.square().sum(-1) < EDGE_DISTANCE_M**2).any(-1)

    def in_pit(self, tile: torch.Tensor, points_w: torch.Tensor) -> torch.Tensor:
        """Which points (N, P, 3) have sunk into a pit of their tile, (N, P)."""
        sunk = points_w[..., 2] < self.pit_entry_z[tile][:, None]
        return sunk & (self.height_at(points_w[..., :2]) < -0.5 * PIT_DEPTH_M)


def reachable_goals(course: Course) -> int:
    """Waypoints that a robot can reach: half of those of an impassable course lie beyond it."""
    return len(course.waypoints) // (1 if find_recipe(course.name).passable else 2)


def barrier_x(course: Course) -> float:
    """Where an impassable course's obstacle begins [m]; infinite for others."""
    goals = reachable_goals(course)
    if goals == len(course.waypoints):
        return float("inf")
    return float(course.waypoints[goals - 1, 0]) + BARRED_M


def check_terrain(cfg: TerrainCfg) -> None:
    """Refuse courses that cannot be laid out or that no training may have.

    Raises:
        ConfigError: Names the key.
    """
    unknown = [name for name in cfg.types if name not in COURSES and not is_terrain_file(name)]
    if unknown or not cfg.types:
        raise ConfigError(
            f"env.terrain.types names {unknown or 'nothing'}; choose from {', '.join(COURSES)}"
        )
    if len(cfg.shares) != len(cfg.types) or min(cfg.shares) <= 0.0:
        raise ConfigError(
            f"env.terrain.shares = {list(cfg.shares)}; give one positive number for each of "
            f"{list(cfg.types)}"
        )
    if cfg.levels < 1 or cfg.columns < len(cfg.types):
        raise ConfigError(
            f"env.terrain has {cfg.levels} levels and {cfg.columns} columns; give at least 1 level "
            f"and a column for each of the {len(cfg.types)} types"
        )
    strange = [name for name in cfg.ranges if name not in cfg.types]
    if strange:
        raise ConfigError(
            f"env.terrain.ranges names {strange}, which env.terrain.types has not; "
            f"choose from {', '.join(cfg.types)}"
        )
    for name in cfg.types:
        low, high = _range(cfg, name)
        if not 0.0 <= low <= high <= MAX_DIFFICULTY:
            raise ConfigError(
                f"env.terrain difficulty of {name} from {low} to {high}; "
                f"give a range within 0 to {MAX_DIFFICULTY}"
            )
        try:
            check_training(name, high)
        except CourseError as error:
            raise ConfigError(f"env.terrain: {error}") from error


def _range(cfg: TerrainCfg, name: str) -> tuple[float, float]:
    """Difficulties of a type."""
    low, high = cfg.ranges.get(name, (cfg.difficulty_low, cfg.difficulty_high))
    return low, high


def column_types(cfg: TerrainCfg) -> list[str]:
    """Obstacle type of every column."""
    return [cfg.types[i] for i in _columns_of(cfg)]


def _columns_of(cfg: TerrainCfg) -> NDArray[np.int64]:
    """Type of every column: each type once, then by the largest share still missing."""
    shares = np.array(cfg.shares) / sum(cfg.shares)
    counts = np.ones(len(shares), np.int64)
    while counts.sum() < cfg.columns:
        counts[np.argmax(shares * cfg.columns - counts)] += 1
    return np.repeat(np.arange(len(shares)), counts)


def _difficulties(cfg: TerrainCfg) -> NDArray[np.float64]:
    low, high = np.array([_range(cfg, cfg.types[i]) for i in _columns_of(cfg)]).T
    if cfg.random_difficulty:
        rng = np.random.Generator(np.random.PCG64(cfg.seed))
        return rng.uniform(low, high, (cfg.levels, cfg.columns)).round(3)
    if cfg.levels == 1:
        return high[None].copy()
    return np.linspace(low, high, cfg.levels).round(6)


def _rasterise(course: Course, tile: NDArray[np.float32]) -> None:
    """Write the course's heights into `tile`, which starts at x = 0 and has its middle at y = 0."""
    solid, half = round(course.length_m / CELL_M), 0.5 * CELL_M * tile.shape[1]
    beside = round((half - course.half_width_m) / CELL_M)
    tile[:] = 0.0
    tile[:solid, beside : tile.shape[1] - beside] = -PIT_DEPTH_M
    for box in course.boxes:
        low, high = box.corners[:, :2].min(axis=0), box.corners[:, :2].max(axis=0)
        low[1] += half
        high[1] += half
        first = np.clip(np.ceil(low / CELL_M - 0.5 - 1e-6).astype(int), 0, tile.shape)
        last = np.clip(np.floor(high / CELL_M - 0.5 + 1e-6).astype(int) + 1, 0, tile.shape)
        x = (np.arange(first[0], last[0]) + 0.5) * CELL_M
        y = (np.arange(first[1], last[1]) + 0.5) * CELL_M - half
        top = BoxField([box], void_height=-PIT_DEPTH_M).height_at(x[:, None], y[None])
        part = tile[first[0] : last[0], first[1] : last[1]]
        np.maximum(part, top, out=part, casting="same_kind")


def _slab(x0: float, x1: float, y0: float, y1: float) -> trimesh.Trimesh:
    import trimesh

    slab = trimesh.creation.box(extents=(x1 - x0, y1 - y0, _SLAB_M))
    return slab.apply_translation(((x0 + x1) / 2, (y0 + y1) / 2, -_SLAB_M / 2))
