"""PhysX in Newton's place, under the same robots, through Isaac Lab's public articulations.

It comes as the library `ovphysx`, which needs no Isaac Sim, or inside Isaac Sim; Isaac Lab's
articulations and sensors are the same in both, but for how the friction of shapes is written.
"""

from __future__ import annotations

from typing import Any

import torch

from krabby.isaac.scene import tensor

__all__ = ["PhysxSimulation"]


class PhysxSimulation:
    """What `scene.Simulation` is for Newton: tensors of N robots, here copied after each step.

    Args:
        articulation: The robots.
        contacts: The contact sensor of all their bodies.
    """

    def __init__(self, articulation: Any, contacts: Any) -> None:
        self._robot, self._contacts = articulation, contacts
        self.sensed = list(contacts.body_names)
        data, sensor = articulation.data, contacts.data
        robots, joints = tensor(data.joint_pos).shape
        new = tensor(data.joint_pos).new_zeros
        self.coords = new((robots, 7 + joints))
        """Base position [m] and orientation (xyzw), then joints [rad]."""
        self.speeds = new((robots, 6 + joints))
        """Of the base's centre of mass, linear and angular, world frame, then of joints."""
        self.body_pose_w = torch.zeros_like(tensor(data.body_link_pose_w))
        self.com_b = new((robots, 3))
        self.torque = tensor(articulation.actuators.applied_effort)
        self.force_w = torch.zeros_like(tensor(sensor.net_normal_forces_w))
        """Normal contact forces on the sensed bodies, (N, B, 3) [N]."""
        self.friction_w = torch.zeros_like(self.force_w)
        """0: PhysX tells normal forces apart."""
        self.refresh()

    def refresh(self) -> None:
        """Copy the state after a step."""
        data = self._robot.data
        self.coords.copy_(torch.cat((tensor(data.root_link_pose_w), tensor(data.joint_pos)), -1))
        self.speeds.copy_(torch.cat((tensor(data.root_com_vel_w), tensor(data.joint_vel)), -1))
        self.body_pose_w.copy_(tensor(data.body_link_pose_w))
        self.com_b.copy_(tensor(data.body_com_pos_b)[:, 0])
        self.force_w.copy_(tensor(self._contacts.data.net_normal_forces_w))

    def set_base_com(self, com_b: torch.Tensor) -> None:
        """Centre of mass of the bases, (N, 1, 3) [m]."""
        axes = tensor(self._robot.data.body_com_quat_b)[:, :1]
        self._robot.set_coms_index(coms=torch.cat((com_b, axes), -1), body_ids=[0])

    def drive(self, target: torch.Tensor) -> None:
        """Give the drives their targets, (N, 18) [rad]."""
        self._robot.actuators.target_command.set_position_index(value=target.contiguous())

    def before_step(self) -> None:
        """Have the drives compute their torques and PhysX take them."""
        self._robot.write_data_to_sim()

    def settle(self, which: torch.Tensor) -> None:
        """Robots in `which` (N,), bool, take over `coords` and `speeds`."""
        rows = which.nonzero().flatten().to(torch.int32)
        coords, speeds = self.coords[which], self.speeds[which]
        robot = self._robot
        robot.write_root_link_pose_to_sim_index(root_pose=coords[:, :7].clone(), env_ids=rows)
        robot.write_root_com_velocity_to_sim_index(
            root_velocity=speeds[:, :6].clone(), env_ids=rows
        )
        robot.write_joint_position_to_sim_index(position=coords[:, 7:].clone(), env_ids=rows)
        robot.write_joint_velocity_to_sim_index(velocity=speeds[:, 6:].clone(), env_ids=rows)

    def shape_friction(self) -> torch.Tensor:
        """Of every shape, (N, S)."""
        return self._materials()[..., 1].clone()

    def set_shape_friction(self, friction: torch.Tensor) -> None:
        """Static and dynamic, (N, S)."""
        import warp

        materials, view = self._materials().clone(), self._robot.root_view
        materials[..., :2] = friction[..., None]
        written = warp.from_torch(materials)
        which = warp.from_torch(torch.arange(len(materials), dtype=torch.int32))
        if hasattr(view, "set_material_properties"):  # Isaac Sim's
            view.set_material_properties(written, which)
        else:
            view.set_attribute(_library_materials(), written, indices=which)

    def _materials(self) -> torch.Tensor:
        """Static and dynamic friction and restitution of every shape, (N, S, 3), on the CPU."""
        import warp

        view = self._robot.root_view
        if hasattr(view, "get_material_properties"):  # Isaac Sim's
            return warp.to_torch(view.get_material_properties())
        return warp.to_torch(view.get_attribute(_library_materials()))


def _library_materials() -> Any:
    """By which the library tells what of its shapes is read and written."""
    from isaaclab_ov import tensor_types

    return tensor_types.SHAPE_FRICTION_AND_RESTITUTION
