"""Cost and looks of depth images: `python -m krabby_trainer.run.depth_bench [--robots N]`.

Times the stream's step as training replays it, and its parts by themselves; one JSON line at the
end. `--picture FILE.png` shows courses as robots on them see them: the depth, the policy image, and
the policy images of three cameras with the errors of training.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from krabby.robot import rotations
from krabby.robot.description import RobotDescription

from krabby_trainer.graphs import Replayed
from krabby_trainer.task.config import TerrainCfg
from krabby_trainer.task.terrain import Terrain
from krabby_trainer.vision.config import DepthErrorsCfg
from krabby_trainer.vision.depth import DepthCamera
from krabby_trainer.vision.stream import DepthErrors, DepthPreprocessor, DepthStream

__all__ = ["draw", "measure", "random_poses"]


def random_poses(
    terrain: Terrain, count: int, device: str | torch.device, *, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tiles (N,) and poses (N, 3), (N, 4) of robots that stand somewhere along their lanes."""
    rng = np.random.default_rng(seed)
    tile = rng.integers(0, terrain.tiles, count)
    pos, quat = np.zeros((count, 3)), np.zeros((count, 4))
    for i, (level, column) in enumerate(zip(*divmod(tile, terrain.columns), strict=True)):
        course = terrain.courses[level][column]
        x, y = rng.uniform(0.5, course.length_m - 2.0), rng.uniform(-0.8, 0.8)
        ground = max(0.0, float(course.height_at(x, y)))
        pos[i] = x, y, ground + rng.uniform(0.35, 0.5)
        pos[i] += terrain.corner(level, column)
        roll, pitch, yaw = rng.uniform((-0.15, -0.15, -0.5), (0.15, 0.15, 0.5))
        quat[i] = rotations.from_euler(roll, pitch, yaw)
    return (
        torch.as_tensor(tile, device=device),
        torch.as_tensor(pos, dtype=torch.float32, device=device),
        torch.as_tensor(quat, dtype=torch.float32, device=device),
    )


def measure(robots: int, steps: int, device: str) -> dict[str, Any]:
    """Milliseconds a control step and images a second, for this many robots."""
    torch.manual_seed(0)
    desc, terrain = RobotDescription.load(), Terrain(TerrainCfg())
    camera = DepthCamera(desc, terrain, device)
    stream = DepthStream(camera, DepthErrorsCfg(), robots)
    tile, pos, quat = random_poses(terrain, robots, device)
    exposed = stream.capacity or robots
    some = slice(0, exposed)
    ids = torch.arange(exposed, device=device)
    inverse = camera.inverse(tile[some], pos[some], quat[some])
    depth = stream.errors(inverse, ids)
    parts: dict[str, Callable[[], object]] = {
        "render": lambda: camera.inverse(tile[some], pos[some], quat[some]),
        "errors": lambda: stream.errors(inverse, ids),
        "preprocess": lambda: stream.preprocess(depth),
    }
    part_ms = {}
    for name, part in parts.items():

        def call(part: Callable[[], object] = part) -> None:
            part()

        part_ms[name] = _milliseconds(Replayed(call, device), steps, device)
    before = int(stream.exposures.sum())
    step_ms = _milliseconds(
        Replayed(lambda: stream.step(tile, pos, quat), device), steps, device, warm_up=_WARM_UP
    )
    images = (int(stream.exposures.sum()) - before) / (steps + _WARM_UP)
    report = {
        "robots": robots,
        "boxes": camera.boxes,
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "step_ms": round(step_ms, 3),
        "images_per_step": round(images, 1),
        "images_per_s": round(1e3 * images / step_ms),
        "images_in_a_part": exposed,
        "part_ms": {name: round(ms, 3) for name, ms in part_ms.items()},
    }
    if device.startswith("cuda"):
        report["memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return report


_WARM_UP = 20
_MAX_FAR_M = 6.0


def _milliseconds(
    call: Callable[[], None], steps: int, device: str, *, warm_up: int = _WARM_UP
) -> float:
    def synchronise() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    for _ in range(warm_up):
        call()
    synchronise()
    begin = time.perf_counter()
    for _ in range(steps):
        call()
    synchronise()
    return 1e3 * (time.perf_counter() - begin) / steps


def draw(path: Path, device: str = "cpu") -> None:
    """A picture of what robots see, one course type a row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    torch.manual_seed(0)
    desc = RobotDescription.load()
    types = ["steps", "gap", "hurdle", "ramps", "mixed", "flat"]
    terrain = Terrain(
        TerrainCfg(types=types, shares=[1.0] * 6, levels=1, columns=6, difficulty_high=0.8)
    )
    camera = DepthCamera(desc, terrain, device)
    tile = torch.arange(6, device=device)
    pos = np.zeros((6, 3))
    for i, course in enumerate(terrain.courses[0]):
        x, y, _ = course.waypoints[2]
        x -= 1.2
        pos[i] = x, y, 0.45 + max(0.0, float(course.height_at(x, y)))
        pos[i] += terrain.corner(0, i)
    base = torch.as_tensor(pos, dtype=torch.float32, device=device)
    level = torch.tensor([[0.0, 0.0, 0.0, 1.0]], device=device).expand(6, 4)
    preprocess = DepthPreprocessor(desc.camera, device)
    depth = camera.render(tile, base, level)
    columns = [("depth [m]", depth.clamp(max=_MAX_FAR_M)), ("policy image", preprocess(depth))]
    errors = DepthErrors(DepthErrorsCfg(), desc.camera, 18, device)
    for i in range(3):
        ids = tile + 6 * i
        seen = errors(camera.inverse(tile, base, level, errors.mount_error[ids]), ids)
        columns.append((f"with errors, camera {i + 1}", preprocess(seen)))
    figure, axes = pyplot.subplots(6, len(columns), figsize=(3.0 * len(columns), 11.0))
    for row in range(6):
        for column, (title, images) in enumerate(columns):
            axis = axes[row, column]
            axis.imshow(images[row].cpu().numpy(), cmap="viridis_r", interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                axis.set_title(title, fontsize=9)
        axes[row, 0].set_ylabel(types[row])
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m krabby_trainer.run.depth_bench", description=__doc__
    )
    parser.add_argument("--robots", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--picture", type=Path, help="file to draw, .png")
    args = parser.parse_args(arguments)
    if args.picture is not None:
        draw(args.picture, args.device)
    sys.stdout.write(json.dumps(measure(args.robots, args.steps, args.device)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
