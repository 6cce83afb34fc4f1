"""A user's mesh or height field as a course, for simulation, training and evaluation.

The surface is sampled on a grid, its heights are rounded to steps and cells of one height merged to
boxes, because every part (physics, depth camera, raster of the trainer) knows courses as boxes. The
finest steps that need at most `MAX_BOXES` boxes are taken.

The file's z = 0 is the level ground of the start platform, which lies before the smallest x; x
leads along the way and y is centred. Where the surface has holes there is a pit.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from krabby.course.lanes import MAX_DIFFICULTY, PIT_DEPTH_M, Lane, Recipe, level_box
from krabby.robot.errors import CourseError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MAX_BOXES", "TERRAIN_SUFFIXES", "is_terrain_file", "terrain_recipe"]

TERRAIN_SUFFIXES: Final = (".stl", ".obj", ".ply", ".glb", ".npz")
"""Meshes (z up; .glb y up, as glTF says), and `heights` (nx, ny) [m] with `cell_m` in a .npz."""
MAX_BOXES: Final = 500
"""More cost the camera its rate: 0.1 ms each."""
_CELL_M: Final = 0.05
_STEPS_M: Final = (0.01, 0.02, 0.03, 0.05, 0.08)
_LONGEST_M: Final = 60.0
_WIDEST_M: Final = 20.0
_NARROWEST_M: Final = 1.0
_BEYOND_M: Final = 1.0
"""From the end of the terrain to the last waypoint."""
_WAYPOINTS: Final = 7
"""Behind the first one, on the start platform."""
_FOUNDATION_M: Final = 0.1


def is_terrain_file(name: str) -> bool:
    """Whether a course's name is that of a file."""
    return Path(name).suffix.lower() in TERRAIN_SUFFIXES


@lru_cache(maxsize=8)
def terrain_recipe(name: str) -> Recipe:
    """The course that the file `name` holds; difficulty and seed change nothing.

    Raises:
        CourseError: it cannot be read, is too large or too small, or too rough for `MAX_BOXES`.
    """
    path = Path(name)
    heights, cell_m = _height_field(path) if path.suffix == ".npz" else _from_mesh(path)
    length, width = (count * cell_m for count in heights.shape)
    if not (_NARROWEST_M <= length <= _LONGEST_M and _NARROWEST_M <= width <= _WIDEST_M):
        raise CourseError(
            f"{path} is {length:.2f} m long (x) and {width:.2f} m wide (y); give {_NARROWEST_M:g} "
            f"to {_LONGEST_M:g} m by {_NARROWEST_M:g} to {_WIDEST_M:g} m, in metres"
        )
    most = float(np.nanmax(np.abs(heights))) if np.isfinite(heights).any() else math.inf
    if most > PIT_DEPTH_M:
        raise CourseError(
            f"{path} has heights up to {most:.2f} m; give a surface within {PIT_DEPTH_M:g} m of 0, "
            "the level of the start"
        )
    step_m, parts = _merged(heights, path)

    def lay(lane: Lane) -> None:
        start, stop = lane.x, lane.x + length
        lowest = -PIT_DEPTH_M if np.isnan(heights).any() else min(0.0, *(p[4] for p in parts))
        if lowest < 0.0:
            lane.pit(start, stop, -lowest)
        for i0, i1, j0, j1, top in parts:
            if top <= lowest:
                continue  # the ground itself
            y0, y1 = j0 * cell_m - width / 2, j1 * cell_m - width / 2
            x0, x1 = start + i0 * cell_m, start + i1 * cell_m
            bottom = lowest - _FOUNDATION_M
            lane.boxes.append(level_box("rock", (x0, x1), (y0, y1), (bottom, top)))
        lane.half_width = math.ceil(width / 2 / _CELL_M - 1e-9) * _CELL_M
        lane.lane_half_width = width / 2
        lane.has_edges = False  # every step between boxes would be one
        lane.length = stop + 2.0 * _BEYOND_M
        lane.goals_to(stop + _BEYOND_M, _WAYPOINTS)

    summary = f"the terrain of {path.name}, in steps of {100 * step_m:g} cm"
    return Recipe(summary=summary, lay=lay, family="file", trained_to=MAX_DIFFICULTY, passable=True)


def _height_field(path: Path) -> tuple[NDArray[np.float64], float]:
    try:
        with np.load(path, allow_pickle=False) as values:
            heights = np.asarray(values["heights"], np.float64)
            cell_m = float(values["cell_m"])
    except OSError as error:
        raise _unreadable(path, error) from error
    except (KeyError, ValueError, TypeError, EOFError) as error:
        problem = " ".join(str(error).split())
        raise CourseError(
            f"{path} is no height field: {problem}; give an .npz of heights (nx, ny) and cell_m"
        ) from error
    if heights.ndim != 2 or not 0.02 <= cell_m <= 0.5:
        raise CourseError(
            f"{path} has heights of shape {heights.shape} and cell_m = {cell_m:g}; give two axes "
            "and 0.02 to 0.5 m"
        )
    return heights, cell_m


def _from_mesh(path: Path) -> tuple[NDArray[np.float64], float]:
    """Highest surface over the middle of every cell, NaN where there is none."""
    try:
        import trimesh
    except ImportError as error:
        raise CourseError(
            f"reading {path} needs trimesh; install it with: pip install krabby[course]"
        ) from error
    try:
        with path.open("rb") as file:
            mesh: Any = trimesh.load(file, file_type=path.suffix.lower()[1:], force="mesh")
    except OSError as error:
        raise _unreadable(path, error) from error
    except Exception as error:  # every format's reader has its own
        problem = " ".join(str(error).split())[:120]
        raise CourseError(f"{path} is no mesh: {problem}; export it again") from error
    triangles = np.array(mesh.triangles, np.float64)
    if len(triangles) == 0 or not np.isfinite(triangles).all():
        raise CourseError(f"{path} has no triangles with finite corners; export it again")
    if path.suffix.lower() == ".glb":
        triangles = np.stack([triangles[..., 0], -triangles[..., 2], triangles[..., 1]], axis=-1)
    low = triangles[..., :2].min(axis=(0, 1))
    size = triangles[..., :2].max(axis=(0, 1)) - low
    if (size > (_LONGEST_M, _WIDEST_M)).any():
        return np.zeros(np.ceil(size / _CELL_M).astype(int)), _CELL_M  # refused for its size
    triangles[..., :2] -= low
    return _rasterised(triangles, np.maximum(np.round(size / _CELL_M), 1).astype(int)), _CELL_M


def _rasterised(triangles: NDArray[np.float64], cells: NDArray[np.int64]) -> NDArray[np.float64]:
    heights = np.full(tuple(cells), -np.inf)
    first = np.ceil(triangles[..., :2].min(axis=1) / _CELL_M - 0.5 - 1e-9).astype(int).clip(0)
    last = np.floor(triangles[..., :2].max(axis=1) / _CELL_M - 0.5 + 1e-9).astype(int) + 1
    last = np.minimum(last, cells)
    a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    upright = np.abs(area) < 1e-12
    for k in np.flatnonzero(~upright & (first < last).all(axis=1)):
        rows, columns = slice(first[k, 0], last[k, 0]), slice(first[k, 1], last[k, 1])
        x = (np.arange(rows.start, rows.stop)[:, None] + 0.5) * _CELL_M
        y = (np.arange(columns.start, columns.stop)[None] + 0.5) * _CELL_M
        u = ((x - a[k, 0]) * (c[k, 1] - a[k, 1]) - (y - a[k, 1]) * (c[k, 0] - a[k, 0])) / area[k]
        v = ((b[k, 0] - a[k, 0]) * (y - a[k, 1]) - (b[k, 1] - a[k, 1]) * (x - a[k, 0])) / area[k]
        z = a[k, 2] + u * (b[k, 2] - a[k, 2]) + v * (c[k, 2] - a[k, 2])
        inside = (u >= -1e-9) & (v >= -1e-9) & (u + v <= 1.0 + 1e-9)
        part = heights[rows, columns]
        np.maximum(part, z, out=part, where=inside)
    return np.where(np.isfinite(heights), heights, np.nan)


Part = tuple[int, int, int, int, float]
"""Cells from i0 to i1 along x and from j0 to j1 along y, and their height [m]."""


def _merged(heights: NDArray[np.float64], path: Path) -> tuple[float, list[Part]]:
    """Step [m], and rectangles of cells of equal rounded height; cells without are left out."""
    parts: list[Part] = []
    for step_m in _STEPS_M:
        levels = np.where(np.isnan(heights), np.iinfo(np.int32).min, np.round(heights / step_m))
        parts = _rectangles(levels.astype(np.int32), step_m)
        if len(parts) <= MAX_BOXES:
            return step_m, parts
    raise CourseError(
        f"{path} takes {len(parts)} boxes in steps of {100 * _STEPS_M[-1]:g} cm, at most "
        f"{MAX_BOXES} are simulated in real time; give a smaller or smoother surface"
    )


def _rectangles(levels: NDArray[np.int32], step_m: float) -> list[Part]:
    """Greedy: as wide as the height is equal, then as long."""
    hole = np.iinfo(np.int32).min
    free = levels != hole
    parts: list[Part] = []
    rows, columns = levels.shape
    for i in range(rows):
        j = 0
        while j < columns:
            if not free[i, j]:
                j += 1
                continue
            level = levels[i, j]
            same = (levels[i, j:] == level) & free[i, j:]
            stop = columns if same.all() else j + int(np.argmin(same))
            end = i + 1
            while end < rows and ((levels[end, j:stop] == level) & free[end, j:stop]).all():
                end += 1
            free[i:end, j:stop] = False
            parts.append((i, end, j, stop, round(float(level) * step_m, 6)))
            j = stop
    return parts


def _unreadable(path: Path, error: OSError) -> CourseError:
    return CourseError(f"cannot read {path}: {error.strerror or error}; give another file")
