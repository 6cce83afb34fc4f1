"""The simulated robots: reads their state from Isaac Lab, and writes bodies and poses into it."""

from __future__ import annotations

from typing import Any, Final

import torch
from krabby.robot.description import RobotDescription

from krabby_trainer.errors import TrainerError
from krabby_trainer.task import adapter
from krabby_trainer.task.randomisation import Bodies

__all__ = ["Robots"]

Tensor = torch.Tensor

_GRAVITY_M_S2: Final = 9.81


class Robots:
    """N robots of a scene, which has the entities `robot` and `contact_forces`.

    `read` brings the attributes up to date; they are views of the simulator's arrays. N robots, SI
    units, `_w` world, `_b` base frame; joints in the order of `robot.toml`.
    """

    base_pos_w: Tensor
    base_quat_w: Tensor
    """(N, 4), xyzw."""
    base_lin_vel_w: Tensor
    base_lin_vel_b: Tensor
    base_ang_vel_b: Tensor
    joint_pos: Tensor
    joint_vel: Tensor
    torque: Tensor
    force_w: Tensor
    """Contact force on every sensed body, (N, B, 3)."""

    def __init__(self, scene: Any, desc: RobotDescription, bodies: Bodies, device: str) -> None:
        self.bodies, self.device = bodies, device
        self.articulation = scene["robot"]
        self._contacts = scene["contact_forces"]
        feet = [f"{leg}_foot" for leg in desc.leg_names]
        names = list(self.articulation.body_names)
        missing = [name for name in ["base", *feet] if name not in names]
        if missing:
            raise TrainerError(
                f"the robot's USD has no bodies {missing}, only {names}; run `make assets`"
            )
        sensed = [name.rsplit("/", 1)[-1] for name in self._contacts.sensor_names]
        legs = [name for name in sensed if name.endswith(("_hip", "_femur", "_tibia"))]

        def indices(wanted: list[str], among: list[str]) -> Tensor:
            return torch.tensor([among.index(name) for name in wanted], device=device)

        self._feet, self._base = indices(feet, names), names.index("base")
        self.feet_sensed, self._legs_sensed = indices(feet, sensed), indices(legs, sensed)
        self._base_sensed = sensed.index("base")
        self._sole_offset = torch.tensor([0.0, 0.0, desc.geometry.foot_radius], device=device)
        self.peak_torque, *self._gains = (
            torch.tensor(each, dtype=torch.float32, device=device)
            for each in (desc.peak_torque, desc.kp, desc.kd)
        )
        self.weight_n = torch.zeros(len(bodies.friction), device=device)
        # As described: what `write_bodies` starts from, however often it is called.
        data = self.articulation.data
        self._nominal_mass = adapter.tensor(data.body_mass).clone()
        self._nominal_inertia = adapter.tensor(data.body_inertia).clone()
        self._nominal_com_b = adapter.tensor(data.body_com_pos_b)[:, [self._base]].clone()

    def write_bodies(self) -> None:
        """Give every simulated robot the friction, mass, centre of mass and gains of `bodies`."""
        import warp
        from isaaclab.actuators.newton import write_group_parameter
        from isaaclab_newton.physics import NewtonManager
        from newton import ModelFlags

        bodies, robot = self.bodies, self.articulation
        model = NewtonManager.get_model()
        friction = warp.to_torch(robot.root_view.get_attribute("shape_material_mu", model)[:, 0])
        friction *= bodies.friction / friction.amax(dim=1, keepdim=True)
        NewtonManager.add_model_change(ModelFlags.SHAPE_PROPERTIES)

        mass = self._nominal_mass * bodies.mass_factor
        mass[:, self._base] += bodies.added_mass_kg[:, 0]
        robot.set_masses_index(masses=mass)
        ratio = mass / self._nominal_mass
        robot.set_inertias_index(inertias=self._nominal_inertia * ratio[..., None])
        com = self._nominal_com_b + bodies.com_offset_m[:, None]
        robot.set_coms_index(coms=com, body_ids=[self._base])
        self.weight_n.copy_(_GRAVITY_M_S2 * mass.sum(-1))

        kp, kd = self._gains
        torque = self.peak_torque * bodies.motor_strength
        for group, key, values in (
            ("controller", "kp", kp * bodies.kp_factor),
            ("controller", "kd", kd * bodies.kd_factor),
            ("clamping", "saturation_effort", torque),
            ("clamping", "max_motor_effort", torque),
        ):
            write_group_parameter(robot.actuators, "drives", group, key, values=values)

    def read(self) -> None:
        """Let the simulator update its derived quantities; the views stay the same."""
        data = self.articulation.data
        self.base_pos_w = adapter.tensor(data.root_link_pos_w)
        self.base_quat_w = adapter.tensor(data.root_link_quat_w)
        self.base_lin_vel_w = adapter.tensor(data.root_link_lin_vel_w)
        self.base_lin_vel_b = adapter.tensor(data.root_link_lin_vel_b)
        self.base_ang_vel_b = adapter.tensor(data.root_link_ang_vel_b)
        self.joint_pos = adapter.tensor(data.joint_pos)
        self.joint_vel = adapter.tensor(data.joint_vel)
        self._body_pos_w = adapter.tensor(data.body_link_pos_w)
        self.force_w = adapter.tensor(self._contacts.data.net_normal_forces_w)
        self.torque = adapter.tensor(self.articulation.actuators.applied_effort)

    @property
    def soles_w(self) -> Tensor:
        """Lowest points of the feet, (N, 6, 3) [m]."""
        return self._body_pos_w[:, self._feet] - self._sole_offset

    @property
    def foot_force_w(self) -> Tensor:
        """(N, 6, 3) [N]."""
        return self.force_w[:, self.feet_sensed]

    @property
    def leg_force_w(self) -> Tensor:
        """Of hips, femurs and tibias, (N, 18, 3) [N]."""
        return self.force_w[:, self._legs_sensed]

    @property
    def base_force_w(self) -> Tensor:
        """(N, 1, 3) [N]."""
        return self.force_w[:, self._base_sensed, None]

    def place(self, env_ids: Tensor, pose: Tensor, joint_pos: Tensor) -> None:
        """Put robots (n,) down at rest: base poses (n, 7) xyz, xyzw, and joints (n, 18) [rad]."""
        robot, at_rest = self.articulation, torch.zeros(len(env_ids), 6, device=self.device)
        robot.write_root_pose_to_sim_index(root_pose=pose, env_ids=env_ids)
        robot.write_root_velocity_to_sim_index(root_velocity=at_rest, env_ids=env_ids)
        robot.write_joint_state_to_sim_index(
            position=joint_pos, velocity=torch.zeros_like(joint_pos), env_ids=env_ids
        )

    def push(self, change: Tensor) -> None:
        """Add (N, 2) [m/s] to the bases' velocities along x and y.

        All robots are written, most with the velocity they have: selecting would wait for the
        device.
        """
        velocity = adapter.tensor(self.articulation.data.root_com_vel_w).clone()
        velocity[:, :2] += change
        self.articulation.write_root_velocity_to_sim_index(root_velocity=velocity)
