"""The simulated robots: reads their state from Isaac Lab, and writes bodies and poses into it.

Isaac Lab's derived properties are computed when Python asks for them, which a CUDA graph never
does. So `Robots` reads and writes the arrays of the simulation itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self

import torch

from krabby.isaac import scene as adapter
from krabby.isaac.rotations import rotate, rotate_inverse
from krabby.robot.description import NUM_JOINTS, RobotDescription
from krabby.robot.errors import ModelError

__all__ = ["Bodies", "Robots"]

Tensor = torch.Tensor

_GRAVITY_M_S2: Final = 9.81


@dataclass
class Bodies:
    """Differences of each of N robots from `robot.toml`; a tensor each, one robot per row."""

    friction: Tensor
    """(N, 1)."""
    added_mass_kg: Tensor
    """(N, 1), on the base."""
    com_offset_m: Tensor
    """(N, 3)."""
    kp_factor: Tensor
    """(N, 18)."""
    kd_factor: Tensor
    """(N, 18)."""
    command_delay: Tensor
    """(N, 1), control steps."""
    motor_strength: Tensor
    """(N, 1), share of the torque-speed envelope."""
    mass_factor: Tensor
    """(N, 1), on mass and inertia of every body."""

    @classmethod
    def of(cls, desc: RobotDescription, actual: RobotDescription, n: int, device: str) -> Self:
        """N robots that are as `actual` says, where the model was made from `desc`."""

        def full(value: float, size: int = 1) -> Tensor:
            return torch.full((n, size), value, device=device)

        factor = actual.masses.hip / desc.masses.hip
        return cls(
            friction=full(actual.contact.foot_friction),
            added_mass_kg=full(actual.masses.body - factor * desc.masses.body),
            com_offset_m=full(0.0, 3),
            kp_factor=full(1.0, NUM_JOINTS),
            kd_factor=full(1.0, NUM_JOINTS),
            command_delay=full(0.0),
            motor_strength=full(float(actual.peak_torque[0] / desc.peak_torque[0])),
            mass_factor=full(factor),
        )


class Broken(Protocol):
    """Finds robots whose state is not finite."""

    mask: Tensor
    """Which robots are broken in this step, (N,)."""

    def step(self, values: dict[str, Tensor]) -> None:
        """Take in the state of a step, (N, ...) by name."""


class Robots:
    """N robots of a scene, which has the entities `robot` and `contact_forces`.

    Attributes are views of the simulator's arrays, or follow from them in `read`. `read`, `place`,
    `push` and `drive` can be recorded. N robots, SI units, `_w` world, `_b` base frame; joints in
    the order of `robot.toml`.
    """

    def __init__(
        self,
        scene: Any,
        desc: RobotDescription,
        bodies: Bodies,
        device: str,
        *,
        simulation: Callable[[Any, Any], Any] = adapter.Simulation,
    ) -> None:
        self.bodies, self.device = bodies, device
        self.articulation = scene["robot"]
        contacts = scene["contact_forces"]
        feet = [f"{leg}_foot" for leg in desc.leg_names]
        names = list(self.articulation.body_names)
        missing = [name for name in ["base", *feet] if name not in names]
        if missing:
            raise ModelError(
                f"the robot's USD has no bodies {missing}, only {names}; run `make assets`"
            )
        view: adapter.Simulation = simulation(self.articulation, contacts)
        sensed = view.sensed
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
        self._written: dict[tuple[str, str], Tensor] = {}
        data = self.articulation.data
        self._view_simulation(view)
        # As described: what `write_bodies` starts from, however often it is called.
        self._nominal_friction = view.shape_friction()
        self._nominal_mass = adapter.tensor(data.body_mass).clone()
        self._nominal_inertia = adapter.tensor(data.body_inertia).clone()
        self._nominal_com_b = adapter.tensor(data.body_com_pos_b)[:, [self._base]].clone()

    def write_bodies(self) -> None:
        """Give every simulated robot the friction, mass, centre of mass and gains of `bodies`."""
        bodies, robot, nominal = self.bodies, self.articulation, self._nominal_friction
        ratio = bodies.friction.to(nominal.device) / nominal.amax(dim=1, keepdim=True)
        self._simulation.set_shape_friction(nominal * ratio)

        mass = self._nominal_mass * bodies.mass_factor
        mass[:, self._base] += bodies.added_mass_kg[:, 0]
        robot.set_masses_index(masses=mass)
        ratio = mass / self._nominal_mass
        robot.set_inertias_index(inertias=self._nominal_inertia * ratio[..., None])
        com = self._nominal_com_b + bodies.com_offset_m[:, None]
        self._simulation.set_base_com(com)
        self.weight_n.copy_(_GRAVITY_M_S2 * mass.sum(-1))

        kp, kd = self._gains
        torque = self.peak_torque * bodies.motor_strength
        for group, key, values in (
            ("controller", "kp", kp * bodies.kp_factor),
            ("controller", "kd", kd * bodies.kd_factor),
            ("clamping", "saturation_effort", torque),
            ("clamping", "max_motor_effort", torque),
        ):
            self._write_drives(group, key, values)

    def _view_simulation(self, simulation: adapter.Simulation) -> None:
        self._simulation = s = simulation
        self.base_pos_w, self.base_quat_w = s.coords[:, :3], s.coords[:, 3:7]
        """(N, 3) and (N, 4), xyzw."""
        self.joint_pos, self.joint_vel = s.coords[:, 7:], s.speeds[:, 6:]
        self.torque = s.torque
        self._body_pos_w = s.body_pose_w[..., :3]
        self.base_lin_vel_w, self.base_lin_vel_b, self.base_ang_vel_b = (
            torch.zeros_like(self.base_pos_w) for _ in range(3)
        )
        self.force_w = torch.zeros_like(s.force_w)
        """Contact force on every sensed body, without friction, (N, B, 3)."""

    def mend(self, broken: Broken, action: Tensor) -> None:
        """Put robots whose state is not finite at rest at the origin; `broken` keeps their state.

        So it does with those whose `action` (N, 18) is not, which becomes 0. They have to be reset
        in the same step.
        """
        s = self._simulation
        state = {"joint_q": s.coords, "joint_qd": s.speeds, "force_w": s.force_w}
        broken.step(state | {"action": action})
        for values in (
            *(s.coords, s.speeds, s.force_w, s.friction_w, s.body_pose_w, s.torque, action),
        ):
            values.masked_fill_(broken.mask.view(-1, *(1,) * (values.dim() - 1)), 0.0)
        s.coords[:, 6].masked_fill_(broken.mask, 1.0)

    def simulation_state(self) -> dict[str, Tensor]:
        """All that the simulator's next step depends on, in its memory."""
        return self._simulation.state()

    def read(self) -> None:
        """Derive what is not in the simulator's arrays."""
        self._simulation.refresh()
        s, quat = self._simulation, self.base_quat_w
        angular = s.speeds[:, 3:6]
        # The simulator has the velocity of the base's centre of mass.
        arm = rotate(quat, s.com_b)
        self.base_lin_vel_w.copy_(s.speeds[:, :3] - torch.linalg.cross(angular, arm))
        self.base_lin_vel_b.copy_(rotate_inverse(quat, self.base_lin_vel_w))
        self.base_ang_vel_b.copy_(rotate_inverse(quat, angular))
        torch.sub(s.force_w, s.friction_w, out=self.force_w)

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

    def place(self, which: Tensor, pose: Tensor, joint_pos: Tensor) -> None:
        """Put the robots in `which` (N,), bool, down at rest.

        Args:
            which: Whom.
            pose: Of the bases, (N, 7) xyz, xyzw.
            joint_pos: (N, 18) [rad].
        """
        s, chosen = self._simulation, which[:, None]
        s.coords.copy_(torch.where(chosen, torch.cat((pose, joint_pos), dim=-1), s.coords))
        s.speeds.masked_fill_(chosen, 0.0)
        s.settle(which)

    def push(self, which: Tensor, change: Tensor) -> None:
        """Add (N, 2) [m/s] to the velocities along x and y of the bases of robots in `which`."""
        self._simulation.speeds[:, :2] += torch.where(which[:, None], change, 0.0)
        self._simulation.settle(which)

    def before_step(self) -> None:
        """To be called before the simulator's step, where Isaac Lab's managers do not run it."""
        self._simulation.before_step()

    def drive(self, target: Tensor) -> None:
        """Give the drives their targets, (N, 18) [rad]."""
        self._simulation.drive(target)

    def drive_law(self, kp: Tensor, kd: Tensor) -> None:
        """Give the drives other gains, (N, 18) [N·m/rad], [N·m·s/rad]."""
        self._write_drives("controller", "kp", kp)
        self._write_drives("controller", "kd", kd)

    def limit_effort(self, largest: Tensor) -> None:
        """Cut the drives' torque, (N, 18) [N·m], within the torque-speed envelope."""
        self._write_drives("clamping", "max_motor_effort", largest)

    def _write_drives(self, component: str, attribute: str, values: Tensor) -> None:
        """Write a parameter of all drives, (N, 18), unless it is what was written last."""
        from isaaclab.actuators.newton import write_group_parameter

        key, last = (component, attribute), self._written.get((component, attribute))
        if last is not None and torch.equal(last, values):
            return
        self._written[key] = values.clone()
        write_group_parameter(
            self.articulation.actuators, "drives", component, attribute, values=values
        )
