"""The one place that knows which Isaac Lab this is: 3.0. Newton's arrays; PhysX's are in `physx`.

Quaternions are xyzw, data properties are proxies with a `.torch` view, and the safety-relevant
numbers of `robot.toml` become actuators and materials here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch

from krabby.isaac.config import Physics, SolverCfg
from krabby.robot.assets import robot_file
from krabby.robot.description import RobotDescription
from krabby.robot.errors import ModelError

__all__ = [
    "TERRAIN_FRICTION",
    "Simulation",
    "articulation_cfg",
    "physics_cfg",
    "replay_on_processor",
    "scene_cfg",
    "silence_solver",
    "spread_terrain_queries",
    "tensor",
]

TERRAIN_FRICTION = 0.05
"""The solver takes the larger friction of two shapes: with next to none on the terrain, the robot's
own decides, as it does in the runtime's simulation."""
_QUERY_THREADS: Final = 32
_QUERIES_AT_A_TIME: Final = 24
"""Per multiprocessor."""


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


class _Ground:
    """A function in a configuration, which Isaac Lab neither walks through nor copies."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[], tuple[Any, Any]]) -> None:
        self.make = make


def scene_cfg(
    desc: RobotDescription,
    ground: Callable[[], tuple[Any, Any]],
    *,
    robots: int,
    base_height_m: float,
) -> Any:
    """Robots, the ground, and a sensor of the contacts of all bodies.

    Args:
        desc: The robot.
        ground: Called for a `trimesh.Trimesh` in the world frame [m], and for where robots may
            start on it, (levels, columns, 3) [m].
        robots: How many there are; they do not meet.
        base_height_m: Of the bases above their origins.
    """
    import isaaclab.sim as sim_utils
    from isaaclab.scene import InteractiveSceneCfg
    from isaaclab.sensors import ContactSensorCfg
    from isaaclab.terrains import TerrainGeneratorCfg, TerrainImporterCfg
    from isaaclab.utils import configclass

    class Generator:
        """What Isaac Lab's importer asks for mesh and origins."""

        def __init__(self, cfg: Any, device: str = "cpu") -> None:
            self.cfg = cfg
            self.terrain_mesh, self.terrain_origins = cfg.terrain.make()
            self.flat_patches: dict[str, torch.Tensor] = {}

    @configclass
    class GeneratorCfg(TerrainGeneratorCfg):
        class_type: Any = Generator
        terrain: Any = None
        size: tuple[float, float] = (1.0, 1.0)
        sub_terrains: dict = {}  # noqa: RUF012 - a configclass copies it

    @configclass
    class SceneCfg(InteractiveSceneCfg):
        terrain: Any = None
        robot: Any = None
        contact_forces: Any = ContactSensorCfg(
            prim_path="{ENV_REGEX_NS}/Robot/.*", history_length=0, track_air_time=False
        )

    scene = SceneCfg(num_envs=robots, env_spacing=2.5)
    scene.robot = articulation_cfg(desc, base_height_m=base_height_m)
    scene.terrain = TerrainImporterCfg(
        prim_path="/World/ground",
        terrain_type="generator",
        terrain_generator=GeneratorCfg(terrain=_Ground(ground)),
        max_init_terrain_level=0,
        physics_material=sim_utils.RigidBodyMaterialCfg(
            static_friction=TERRAIN_FRICTION,
            dynamic_friction=TERRAIN_FRICTION,
            friction_combine_mode="max",  # for PhysX, which else takes the mean
        ),
        visual_material=None,
        debug_vis=False,
    )
    return scene


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
        self._articulation = articulation
        data = articulation.data
        if data.has_joint_ordering or data.has_body_ordering:
            raise ModelError(
                "the robot's USD has its joints or bodies in another order than robot.toml; run "
                "`make assets`"
            )
        self.sensed = [name.rsplit("/", 1)[-1] for name in contacts.sensor_names]
        """Names of the bodies whose contacts are sensed."""
        model = NewtonManager.get_model()
        attribute: Any = articulation.root_view.get_attribute("shape_material_mu", model)
        self._shape_friction = view(attribute[:, 0])
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
        self._articulations: Any = self._worlds[:robots]
        self._which = view(self._articulations)
        self._clear_rows = _row_clearer()

    def refresh(self) -> None:
        """Nothing: the tensors are the simulator's own."""

    def before_step(self) -> None:
        """Nothing: Newton steps the drives."""

    def shape_friction(self) -> torch.Tensor:
        """Of every shape, (N, S)."""
        return self._shape_friction.clone()

    def set_shape_friction(self, friction: torch.Tensor) -> None:
        """Of every shape, (N, S)."""
        from newton import ModelFlags

        self._shape_friction.copy_(friction)
        self._manager.add_model_change(ModelFlags.SHAPE_PROPERTIES)

    def set_base_com(self, com_b: torch.Tensor) -> None:
        """Centre of mass of the bases, (N, 1, 3) [m]."""
        self._articulation.set_coms_index(coms=com_b, body_ids=[0])

    def drive(self, target: torch.Tensor) -> None:
        """Give the drives their targets, (N, 18) [rad]."""
        self._target.copy_(target)
        self._told.copy_(target)  # torques are reported from it

    def state(self) -> dict[str, torch.Tensor]:
        """All that the next step depends on, in the simulator's memory."""
        import warp

        state, control = self._manager.get_state_0(), self._manager.get_control()
        data: Any = self._manager._solver.mjw_data
        kept: dict[str, Any] = {
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
        robot, row = warp.tid()  # type: ignore[misc]
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


def replay_on_processor() -> Callable[[], None]:
    """Record the kernels of a step once and replay them, as is usual on a GPU.

    Started one by one from Python, the 140 kernels of a step take 8 ms of a core for one robot;
    replayed they take 0.6 ms and write the same numbers. To be called after a step and when nothing
    changes the solver's settings any more.

    Returns:
        Undoes it.
    """
    import warp
    from isaaclab_newton.physics import NewtonManager

    plain = vars(NewtonManager)["_simulate_full"]
    warp.capture_begin(device="cpu")
    try:
        NewtonManager._simulate_full()
    finally:
        graph = warp.capture_end(device="cpu")
    NewtonManager._simulate_full = staticmethod(lambda: warp.capture_launch(graph))

    def undo() -> None:
        NewtonManager._simulate_full = plain

    return undo


def physics_cfg(cfg: SolverCfg, physics: Physics = "newton") -> Any:
    """Newton with the MuJoCo-Warp solver and its own collision pipeline, or PhysX as it comes."""
    if physics == "isaacsim":
        from isaaclab_physx.physics import PhysxCfg

        return PhysxCfg()
    if physics == "physx":
        import warp
        from isaaclab_ov.physics import OvPhysxCfg

        # Its buffers are page-locked, on the processor too, which takes CUDA's driver.
        processor: Any = warp.get_device("cpu")
        if not warp.is_cuda_available():
            processor.pinned_allocator = processor.default_allocator
        return OvPhysxCfg()
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
