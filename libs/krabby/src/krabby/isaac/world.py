"""The robot on a course in Isaac Lab, as sim-hal knows it: `krabby.mujoco.world.World`.

Isaac Lab integrates; after each step MuJoCo's data take its state over. So everything that follows
from a pose is computed by the same code in both simulators: where the robot is put down, what its
sensors measure, what the camera sees, where its soles are.
"""

# mujoco is compiled and comes without type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Final, NoReturn

import mujoco
import numpy as np

from krabby.isaac.config import SolverCfg
from krabby.isaac.environment import DISTRIBUTIONS
from krabby.isaac.errors import IsaacUnavailable
from krabby.isaac.simulator import Drives, Simulator
from krabby.mujoco.model import to_mujoco_quat
from krabby.mujoco.world import SUBSTEP_NS, World
from krabby.robot import kinematics
from krabby.safety.gate import DriveMode

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from krabby.course.courses import Course
    from krabby.course.progress import Pose2
    from krabby.isaac.config import IsaacCfg
    from krabby.robot.description import RobotDescription
    from krabby.safety.gate import DriveCommand

__all__ = ["IsaacWorld"]

_CONTACT_N: Final = 1.0
"""Normal force from which the body counts as touching the course, as in training."""


class IsaacWorld(World):
    """Robot, course and physics; until `start` the robot stays where it was put."""

    def __init__(
        self,
        desc: RobotDescription,
        course: Course,
        *,
        cfg: IsaacCfg,
        actual: RobotDescription | None = None,
        substep_ns: int = SUBSTEP_NS,
        box_half_extents: tuple[float, float, float] | None = None,
    ) -> None:
        """Check what is needed; the scene is built by `start`.

        Args:
            desc: The robot as it is described.
            course: What it stands on.
            cfg: Device and number of robots.
            actual: The robot as it really is.
            substep_ns: How often the drives are asked what they do [ns].
            box_half_extents: None; there is no movable box here.

        Raises:
            IsaacUnavailable: There is no such device.
        """
        _require_device(cfg.device)
        self._cfg, self._solver = cfg, SolverCfg()
        self._simulator: Simulator | None = None
        step_ns = round(self._solver.step_s * 1e9)
        super().__init__(
            desc, course, actual=actual, substep_ns=step_ns, box_half_extents=box_half_extents
        )
        self._described = desc
        # What the drives are told changes within a step: it is taken with the mean of that.
        self.substep_ns = substep_ns
        self._asks = step_ns // substep_ns
        self._told: list[DriveCommand] = []
        self._drives: Drives | None = None
        self._base_force = 0.0

    @property
    def simulator(self) -> str:
        """Name and version of what integrates, and where."""
        engine = DISTRIBUTIONS[self._cfg.physics]
        versions = " ".join(f"{each} {version(each)}" for each in ("isaaclab", engine))
        return f"{versions} {self._cfg.device}"

    @property
    def has_to_be_built(self) -> bool:
        """Whether `start` comes before the first step."""
        return self._simulator is None

    def start(self) -> None:
        """Build the scene: 20 to 120 s, of which a second start saves the compilation."""
        self._simulator = Simulator(
            self._described,
            self._desc,
            self._course,
            self._solver,
            robots=self._cfg.robots,
            device=self._cfg.device,
            physics=self._cfg.physics,
        )
        self._hand_over()

    def close(self) -> None:
        """Let go of the simulation."""
        if self._simulator is not None:
            self._simulator.close()
            self._simulator = None

    def place(
        self, pose: Pose2, joint_pos: NDArray[np.float64], *, height_m: float | None = None
    ) -> None:
        """Put all robots down at rest, see `World.place`."""
        super().place(pose, joint_pos, height_m=height_m)
        self._told = []
        self._base_force = 0.0
        if self._simulator is not None:
            self._hand_over()

    def substep(self, drive: DriveCommand) -> None:
        """Say what the drives are told; as often as fills a step of physics, it is taken."""
        self._told.append(drive)
        if len(self._told) < self._asks:
            return
        told, self._told = self._told, []
        self._drives = drives = _mean(told)
        limit = drives.effort_limit
        low, high = kinematics.torque_speed_limit(self._desc, self.joint_vel)
        driven = told[-1].mode is DriveMode.POSITION
        self.step(np.maximum(low, -limit), np.minimum(high, limit), driven=driven)

    def push(self, change_w: ArrayLike) -> None:
        """Change the bases' velocities at once, world frame [m/s]; the part along z is left out."""
        if self._simulator is not None:
            self._simulator.push(np.asarray(change_w, dtype=float)[:2])

    def set_friction(self, coulomb: float, viscous: float) -> NoReturn:
        """There is no friction of joints here."""
        raise NotImplementedError("joint friction in Isaac Lab")

    def set_limp(self, joints: NDArray[np.bool_]) -> NoReturn:
        """There are no dead drives here."""
        raise NotImplementedError("dead drives in Isaac Lab")

    def base_contact(self) -> bool:
        """Whether the body, not a leg, touches the course."""
        return self._base_force > _CONTACT_N

    def _integrate(
        self, low: NDArray[np.float64], high: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Let Isaac Lab take a step; it cuts the torque itself, by the same envelope."""
        assert self._simulator is not None, "start comes first"
        assert self._drives is not None, "substep comes first"
        self._simulator.drive(self._drives)
        self._simulator.step()
        state = self._simulator.state(self._cfg.published)
        data, index = self.data, self.index
        base, dof = index.base_qpos, index.base_dof
        data.qpos[base : base + 3] = state.base_pos_w
        data.qpos[base + 3 : base + 7] = to_mujoco_quat(state.base_quat_w)
        data.qpos[index.joint_qpos] = state.joint_pos
        data.qvel[dof : dof + 3] = state.base_lin_vel_w
        data.qvel[dof + 3 : dof + 6] = state.base_ang_vel_b
        data.qvel[index.joint_dof] = state.joint_vel
        data.sensordata[index.foot_touch] = state.foot_force
        self._base_force = state.base_force
        mujoco.mj_kinematics(self.model, data)
        return state.torque

    def _hand_over(self) -> None:
        """Put Isaac Lab's robots where MuJoCo's is."""
        assert self._simulator is not None
        self._simulator.place(self.base_pos_w, self.base_quat_w, self.joint_pos)


def _mean(told: list[DriveCommand]) -> Drives:
    """The mean of what drives are told: of the torque, which is linear in angle and velocity."""
    kp = np.mean([each.kp for each in told], axis=0)
    pull = np.mean([each.kp * each.joint_pos for each in told], axis=0)
    target = np.divide(pull, kp, out=told[-1].joint_pos.copy(), where=kp > 0.0)
    return Drives(
        kp=kp,
        kd=np.mean([each.kd for each in told], axis=0),
        target=target,
        effort_limit=np.mean([each.effort_limit for each in told], axis=0),
    )


def _require_device(device: str) -> None:
    """Refuse a device that is not there."""
    import torch

    if device == "cpu" or (device.startswith("cuda") and torch.cuda.is_available()):
        return
    raise IsaacUnavailable(
        f"isaac.device={device}: torch finds no such device here; give isaac.device=cpu"
    )
