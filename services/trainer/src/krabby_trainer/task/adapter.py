"""The one place that knows which Isaac Lab this is: 3.0, kit-less, Newton physics.

Quaternions are xyzw, data properties are proxies with a `.torch` view, and the safety-relevant
numbers of `robot.toml` become actuators and materials here.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from typing import Any, Final

import torch
from krabby.robot.assets import robot_file
from krabby.robot.description import RobotDescription

from krabby_trainer.errors import MissingDependency
from krabby_trainer.task.config import PhysicsCfg

__all__ = [
    "ISAACLAB_VERSION",
    "TERRAIN_FRICTION",
    "articulation_cfg",
    "physics_cfg",
    "require_isaaclab",
    "silence_solver",
    "spread_terrain_queries",
    "tensor",
]

ISAACLAB_VERSION = "3.0.0"
TERRAIN_FRICTION = 0.05
"""The solver takes the larger friction of two shapes: with next to none on the terrain, the robot's
own decides, as it does in the runtime's simulation."""
_QUERY_THREADS: Final = 32
_QUERIES_AT_A_TIME: Final = 24
"""Per multiprocessor."""


def require_isaaclab() -> None:
    """Refuses to go on without the Python and the packages that training needs.

    Raises:
        MissingDependency: Says which, and how to get it.
    """
    if sys.version_info[:2] != (3, 12):
        raise MissingDependency(
            f"training needs Python 3.12 and this is {sys.version.split()[0]}: run "
            "`make train-setup`, then .venv-train/bin/python -m krabby_trainer"
        )
    if importlib.util.find_spec("isaaclab") is None:
        raise MissingDependency(
            f"Isaac Lab {ISAACLAB_VERSION} is not installed: run `make train-setup` (about 8 GB)"
        )
    warnings.filterwarnings("ignore", module=r"(isaaclab|warp|newton|pxr|mujoco).*")


def tensor(data: Any) -> torch.Tensor:
    """The torch view of one of Isaac Lab's arrays; shares its memory."""
    return data.torch if hasattr(data, "torch") else data


def articulation_cfg(desc: RobotDescription, *, base_height_m: float) -> Any:
    """The robot: generated USD, joints in our order, drives with the torque-speed envelope."""
    import isaaclab.sim as sim_utils
    from isaaclab.actuators import DCMotorCfg
    from isaaclab.assets import ArticulationCfg

    names = desc.joint_names

    def per_joint(values: Any) -> dict[str, float]:
        return {name: float(value) for name, value in zip(names, values, strict=True)}

    return ArticulationCfg(
        prim_path="{ENV_REGEX_NS}/Robot",
        spawn=sim_utils.UsdFileCfg(usd_path=str(robot_file("usda")), activate_contact_sensors=True),
        init_state=ArticulationCfg.InitialStateCfg(
            pos=(0.0, 0.0, base_height_m), joint_pos=per_joint(desc.default_joint_pos)
        ),
        joint_ordering=list(names),
        actuators={
            "drives": DCMotorCfg(
                joint_names_expr=list(names),
                actuator_effort_limit=per_joint(desc.peak_torque),
                saturation_effort=per_joint(desc.peak_torque),
                actuator_velocity_limit=per_joint(desc.no_load_speed),
                stiffness=per_joint(desc.kp),
                damping=per_joint(desc.kd),
                armature=per_joint(desc.armature),
            )
        },
    )


def silence_solver() -> None:
    """Keep the solver's kernels from printing; to be called before the first step.

    Every robot that needs one more iteration prints a line, which costs more than the iteration.
    """
    from isaaclab_newton.physics import NewtonManager

    solver: Any = NewtonManager._solver
    solver.mjw_model.opt.warn_overflow = False


def spread_terrain_queries() -> None:
    """Let many small blocks of threads look for terrain under the robots, not few large ones.

    Every shape of every robot asks the terrain's tree of triangles, and finds a handful. Newton
    gives each such question 256 threads and runs four of them at a time on a multiprocessor, which
    was two thirds of what the GPU did in a step. To be called before the first step.
    """
    import warp
    from isaaclab_newton.physics import NewtonManager

    pipeline: Any = NewtonManager._collision_pipeline
    narrow_phase = pipeline.narrow_phase
    device = warp.get_device(str(NewtonManager.get_model().device))
    if device.is_cuda:
        narrow_phase.tile_size_mesh_convex = _QUERY_THREADS
        narrow_phase.num_tile_blocks = _QUERIES_AT_A_TIME * device.sm_count


def physics_cfg(cfg: PhysicsCfg) -> Any:
    """Newton with the MuJoCo-Warp solver and Newton's own collision pipeline."""
    from isaaclab_newton.physics import (
        MJWarpSolverCfg,
        NewtonCfg,
        NewtonCollisionPipelineCfg,
        NewtonShapeCfg,
    )

    return NewtonCfg(
        solver_cfg=MJWarpSolverCfg(
            njmax=cfg.max_constraints,
            nconmax=cfg.max_contacts,
            iterations=cfg.iterations,
            ls_iterations=cfg.ls_iterations,
            cone="pyramidal",
            impratio=1.0,
            integrator="implicitfast",
            use_mujoco_contacts=False,
        ),
        collision_cfg=NewtonCollisionPipelineCfg(max_triangle_pairs=2_500_000),
        num_substeps=1,
        debug_mode=False,
        default_shape_cfg=NewtonShapeCfg(margin=0.0, ke=160000.0, kd=1100.0),
    )
