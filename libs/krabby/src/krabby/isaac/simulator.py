"""N robots on one course in Isaac Lab's scene, stepped without Isaac Lab's managers."""

from __future__ import annotations

import contextlib
import io
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from krabby.isaac import scene as shared
from krabby.isaac.physx import PhysxSimulation
from krabby.isaac.robots import Bodies, Robots

if TYPE_CHECKING:
    from collections.abc import Generator

    from numpy.typing import NDArray

    from krabby.course.courses import Course
    from krabby.isaac.config import Physics, SolverCfg
    from krabby.robot.description import RobotDescription

__all__ = ["Drives", "RobotState", "Simulator"]

_START_HEIGHT_M = 0.46
"""Of the base above the ground, until the robot is put somewhere."""
_WARM_UP_STEPS = 2
"""The first ones compile kernels."""


class Drives(NamedTuple):
    """What all drives do in a step: torque is kp (target - angle) - kd velocity; (18,) each."""

    kp: NDArray[np.float64]
    kd: NDArray[np.float64]
    target: NDArray[np.float64]
    """[rad]"""
    effort_limit: NDArray[np.float64]
    """[N·m]"""


class RobotState(NamedTuple):
    """One robot after a step; float64, SI units."""

    base_pos_w: NDArray[np.float64]
    """(3,)"""
    base_quat_w: NDArray[np.float64]
    """(4,), xyzw."""
    base_lin_vel_w: NDArray[np.float64]
    """(3,)"""
    base_ang_vel_b: NDArray[np.float64]
    """(3,)"""
    joint_pos: NDArray[np.float64]
    """(18,)"""
    joint_vel: NDArray[np.float64]
    """(18,)"""
    torque: NDArray[np.float64]
    """(18,)"""
    foot_force: NDArray[np.float64]
    """Normal forces on the feet, (6,)."""
    base_force: float
    """Normal force on the body."""


class Simulator:
    """The scene of training with one course for ground; one step at a time.

    Isaac Lab has one simulation in a process. N robots, all told the same.
    """

    def __init__(
        self,
        desc: RobotDescription,
        actual: RobotDescription,
        course: Course,
        solver: SolverCfg,
        *,
        robots: int,
        device: str,
        physics: Physics = "newton",
    ) -> None:
        """Build the scene, and compile what a step needs: 20 to 120 s.

        Args:
            desc: The robot its USD was generated from.
            actual: The robot as it really is: masses, friction and strength.
            course: What it stands on.
            solver: Step, and Newton's limits.
            robots: N.
            device: cpu, or cuda:0.
            physics: Newton, the library ovphysx, or Isaac Sim's PhysX.
        """
        newton = physics == "newton"
        with _quiet():  # Warp prints when it is first used
            cfg = shared.physics_cfg(solver, physics)
        self._undo, self._runtime = contextlib.ExitStack(), contextlib.ExitStack()
        if physics == "isaacsim":  # its application comes before all that needs it
            from isaaclab.app import launch_simulation

            options = {"headless": True, "device": device}
            self._runtime.enter_context(launch_simulation(cfg, options))
        from isaaclab.scene import InteractiveScene
        from isaaclab.sim import SimulationCfg, SimulationContext
        from isaaclab.sim.utils.stage import use_stage

        self._n, self._device, self._step_s = robots, device, solver.step_s
        x, y, _ = course.spawn
        origin = np.array([x, y, float(course.height_at(x, y))])
        with _quiet():
            self._sim: Any = SimulationContext(
                SimulationCfg(device=device, dt=solver.step_s, physics=cfg)
            )
            with use_stage(self._sim.stage):
                self._scene: Any = InteractiveScene(
                    shared.scene_cfg(
                        desc,
                        lambda: (course.to_trimesh(), origin[None, None]),
                        robots=robots,
                        base_height_m=_START_HEIGHT_M,
                    )
                )
                self._sim.register_interactive_scene(self._scene)
                self._sim.reset()
            self._scene.update(dt=solver.step_s)
            self._sim.physics_manager.set_decimation(1)
            if newton and not solver.warn:
                shared.silence_solver()
            if newton:
                shared.spread_terrain_queries()
            self._bodies = Bodies.of(desc, actual, robots, device)
            simulation = shared.Simulation if newton else PhysxSimulation
            self.robots = Robots(self._scene, desc, self._bodies, device, simulation=simulation)
            self.robots.write_bodies()
            for _ in range(_WARM_UP_STEPS):
                self.step()
            if newton and device == "cpu":
                self._undo.callback(shared.replay_on_processor())

    def place(
        self,
        pos_w: NDArray[np.float64],
        quat_w: NDArray[np.float64],
        joint_pos: NDArray[np.float64],
    ) -> None:
        """Put all robots there at rest: base (3,) [m], (4,) xyzw, joints (18,) [rad]."""
        pose = self._rows(np.concatenate([pos_w, quat_w]))
        self.robots.place(self._all(), pose, self._rows(joint_pos))

    def push(self, change_w: NDArray[np.float64]) -> None:
        """Change the bases' velocities at once along x and y, (2,) [m/s]."""
        self.robots.push(self._all(), self._rows(change_w))

    def drive(self, drives: Drives) -> None:
        """Tell all drives what to do from now on."""
        self.robots.drive(self._rows(drives.target))
        self.robots.drive_law(*(self._rows(each) for each in (drives.kp, drives.kd)))
        self.robots.limit_effort(self._rows(drives.effort_limit))

    def step(self) -> None:
        """Let one step of time pass."""
        self.robots.before_step()
        self._sim.step(render=False)
        self._scene.update(dt=self._step_s)

    def state(self, robot: int) -> RobotState:
        """How a robot is now."""
        robots = self.robots
        robots.read()
        feet = torch.linalg.vector_norm(robots.foot_force_w[robot], dim=-1)
        base = torch.linalg.vector_norm(robots.base_force_w[robot, 0])
        parts = (
            robots.base_pos_w[robot],
            robots.base_quat_w[robot],
            robots.base_lin_vel_w[robot],
            robots.base_ang_vel_b[robot],
            robots.joint_pos[robot],
            robots.joint_vel[robot],
            robots.torque[robot],
            feet,
            base[None],
        )
        values = torch.cat(parts).cpu().numpy().astype(np.float64)
        *arrays, last = np.split(values, np.cumsum([len(part) for part in parts])[:-1])
        return RobotState._make((*arrays, float(last[0])))

    def close(self) -> None:
        """Let go of the simulation, so that another can be built."""
        self._undo.close()
        with _quiet():
            self._sim.clear_instance()
        self._runtime.close()

    def _rows(self, values: NDArray[np.float64]) -> torch.Tensor:
        row = torch.as_tensor(values, dtype=torch.float32, device=self._device)
        return row.expand(self._n, -1)

    def _all(self) -> torch.Tensor:
        return torch.ones(self._n, dtype=torch.bool, device=self._device)


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Isaac Lab and Warp print what they load and build; a service's stdout has log lines alone."""
    for name in ("isaaclab", "isaaclab_newton", "isaaclab_ov", "isaaclab_physx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        yield
