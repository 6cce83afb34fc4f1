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
    "Simulation",
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


class Simulation:
    """Newton's arrays of N robots as tensors that share their memory; written in place.

    Args:
        articulation: The robots.
        contacts: The contact sensor of all their bodies.
    """

    def __init__(self, articulation: Any, contacts: Any) -> None:
        import warp
        from isaaclab_newton.physics import NewtonManager

        view = warp.to_torch
        state: Any = NewtonManager.get_state_0()
        control: Any = NewtonManager.get_control()
        robots = articulation.num_instances
        self._manager: Any = NewtonManager
        self.coords = view(state.joint_q).view(robots, -1)
        """Base position [m] and orientation (xyzw), then joints [rad]; (N, 25)."""
        self.speeds = view(state.joint_qd).view(robots, -1)
        """Of the base's centre of mass, linear and angular, world frame, then of joints; (N, 24)
        [m/s, rad/s]."""
        self.body_pose_w = view(state.body_q).view(robots, -1, 7)
        self.com_b = tensor(articulation.data.body_com_pos_b)[:, 0]
        """Of the base, (N, 3) [m]."""
        self.torque = tensor(articulation.actuators.applied_effort)
        sensor = contacts.contact_view
        self.force_w, self.friction_w = (
            view(force).view(robots, -1, 3)
            for force in (sensor.total_force, sensor.total_force_friction)
        )
        """Contact forces on the sensed bodies, in all and by friction, (N, B, 3) [N]."""
        self._target = view(control.joint_target_q).view(robots, -1)[:, 7:]
        self._told = tensor(articulation.actuators.target_command.position)
        # One mask for worlds, of which the last is global, and articulations: one of each a robot.
        self._worlds = warp.zeros(robots + 1, dtype=warp.bool, device=str(state.joint_q.device))
        self._articulations = self._worlds[:robots]
        self._which = view(self._articulations)
        self._clear_rows = _row_clearer()

    def drive(self, target: torch.Tensor) -> None:
        """Give the drives their targets, (N, 18) [rad]."""
        self._target.copy_(target)
        self._told.copy_(target)  # torques are reported from it

    def state(self) -> dict[str, torch.Tensor]:
        """All that the next step depends on, in the simulator's memory."""
        import warp

        state, control = self._manager.get_state_0(), self._manager.get_control()
        data: Any = self._manager._solver.mjw_data
        kept = {
            **{name: getattr(state, name) for name in ("joint_q", "joint_qd", "body_q", "body_qd")},
            "joint_target_q": control.joint_target_q,
            "joint_f": control.joint_f,
            "qacc_warmstart": data.qacc_warmstart,
        }
        found = {name: warp.to_torch(value) for name, value in kept.items() if value is not None}
        own = {"torque": self.torque, "told": self._told}
        return found | own | {"force_w": self.force_w, "friction_w": self.friction_w}

    def settle(self, which: torch.Tensor) -> None:
        """Bodies of the robots in `which` (N,), bool, follow `coords` and `speeds`.

        What the solver keeps from step to step is forgotten.
        """
        import warp

        self._which.copy_(which)
        self._manager._reset_solver_internals_delegate(self._worlds)
        # The solver multiplies rows that are not in use by 0, which leaves a NaN in them a NaN.
        rows: Any = self._manager._solver.mjw_data.efc.J
        shape = rows.shape[:2]
        launched = [self._articulations, rows]
        warp.launch(self._clear_rows, dim=shape, inputs=launched, device=rows.device)
        self._manager._eval_fk(self._worlds, self._articulations)


def _row_clearer() -> Any:
    """Kernel that zeroes constraint Jacobians, (N, rows, 24), of some robots, (N,) bool."""
    import warp

    # Warp evaluates the annotations with what the body closes over: `warp` alone.
    @warp.kernel
    def clear_rows(
        which: warp.array(dtype=warp.bool),  # type: ignore[valid-type]
        rows: warp.array3d(dtype=warp.float32),  # type: ignore[valid-type]
    ) -> None:
        robot, row = warp.tid()
        if which[robot]:
            for column in range(rows.shape[2]):
                rows[robot, row, column] = 0.0

    return clear_rows


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
