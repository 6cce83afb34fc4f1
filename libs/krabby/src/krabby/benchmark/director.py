"""Carries out a scenario: what the robot is asked to do now, and what happens to it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from krabby.course.boxes import Box
from krabby.course.mission import STOP, NavCommand, pursue
from krabby.robot import rotations

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from krabby.benchmark.scenario import Action, Event, Scenario
    from krabby.control.controller import LocomotionController
    from krabby.hal.handler import GateHandler
    from krabby.mujoco.backend import MujocoBackend
    from krabby.mujoco.depth_camera import CameraFault

__all__ = ["Director"]

_FAULTS: Final[Mapping[str, CameraFault]] = {
    "black": "camera-black",
    "frozen": "camera-frozen",
    "mirrored": "camera-mirrored",
    "outage": "camera-stop",
}
_RETRY_S: Final = 0.5
"""Between two attempts to arm after an emergency stop."""


class _Stage(Protocol):
    """What a director acts on: the parts of a trial."""

    @property
    def robot(self) -> MujocoBackend: ...
    @property
    def handler(self) -> GateHandler: ...
    @property
    def controller(self) -> LocomotionController: ...

    def swap(self, name: str | None) -> None:
        """Walk with another policy; None: with the first one again."""
        ...


class Director:
    """The scenario's events and commands, in the time since go."""

    def __init__(self, scenario: Scenario, trial: _Stage) -> None:
        self._scenario = scenario
        self._trial = trial
        self._waiting = list(scenario.events)
        self._running: list[tuple[float, Event]] = []
        """End of each event that lasts [s], and the event."""
        self._holds = {"release": 0, "sit": 0, "estop": 0}
        self._arm_at_s: float | None = None
        desc = trial.robot.desc
        self._limp = np.zeros(len(desc.joint_names), bool)
        for joint in scenario.robot.limp_joints:
            self._limp[desc.joint_index(joint)] = True
        for leg in scenario.robot.limp_legs:
            self._limp |= _joints_of(leg, trial)
        trial.robot.world.set_limp(self._limp)
        self._pictures(scenario.pictures.fault)
        self._start: Mapping[Action, Callable[[Event], None]] = {
            "release": lambda event: self._hold(event, 1),
            "sit": self._sit,
            "estop": self._stop,
            "swap": lambda event: trial.swap(event.name),
            "push": self._push,
            "pictures": lambda event: self._pictures(event.name),
            "limp_joint": lambda event: self._go_limp(event, True),
            "limp_leg": lambda event: self._go_limp(event, True),
            "box": self._show_box,
        }
        self._end: Mapping[Action, Callable[[Event], None]] = {
            "release": lambda event: self._hold(event, -1),
            "sit": self._stand,
            "estop": self._recover,
            "swap": lambda event: trial.swap(None),
            "pictures": lambda event: self._pictures(scenario.pictures.fault),
            "limp_joint": lambda event: self._go_limp(event, False),
            "limp_leg": lambda event: self._go_limp(event, False),
            "box": lambda event: trial.robot.show_box(None),
        }

    def disturbance(self, outcome: str) -> dict[str, float]:
        """Figures: whether an event has begun, and whether the robot fell in that trial."""
        if not self._scenario.events:
            return {}
        disturbed = len(self._waiting) < len(self._scenario.events)
        fell = disturbed and outcome == "fell"
        return {"disturbed": float(disturbed), "fell_disturbed": float(fell)}

    def step(self, time_s: float) -> None:
        """End and begin what is due."""
        progress_m = self._trial.robot.progress.furthest_m
        for end_s, event in [each for each in self._running if each[0] <= time_s]:
            self._running.remove((end_s, event))
            self._end[event.action](event)
        for event in [each for each in self._waiting if _is_due(each, time_s, progress_m)]:
            self._waiting.remove(event)
            self._start[event.action](event)
            if event.duration_s > 0.0 and event.action in self._end:
                self._running.append((time_s + event.duration_s, event))
        if self._arm_at_s is not None and time_s >= self._arm_at_s:
            self._arm(time_s)

    def command(self, time_s: float) -> NavCommand:
        """The walking command now."""
        if any(self._holds.values()):
            return STOP
        scenario, robot = self._scenario, self._trial.robot
        if scenario.commands:
            now = [c for c in scenario.commands if c.start_s <= max(time_s, 0.0)][-1]
            return NavCommand(now.vx, now.vy, now.yaw_rate)
        target = robot.progress.target_xy
        if target is None:
            return STOP
        pos_xy = robot.world.base_pos_w[:2]
        yaw = float(rotations.yaw(robot.world.base_quat_w))
        return pursue(pos_xy, yaw, target, scenario.speed)

    # --- actions -----------------------------------------------------------------------------

    def _hold(self, event: Event, change: int) -> None:
        self._holds[event.action] += change

    def _sit(self, event: Event) -> None:
        self._hold(event, 1)
        self._trial.controller.request("sit")

    def _stand(self, event: Event) -> None:
        self._hold(event, -1)
        self._trial.controller.request("stand")

    def _stop(self, event: Event) -> None:
        self._hold(event, 1)
        self._trial.handler.on_safety("estop", "benchmark")

    def _recover(self, event: Event) -> None:
        self._trial.handler.on_safety("reset", "benchmark")
        self._arm_at_s = 0.0

    def _arm(self, time_s: float) -> None:
        """Arm after an emergency stop; the robot then stands up by itself."""
        if self._trial.handler.on_safety("arm", "benchmark").ok:
            self._arm_at_s = None
            self._holds["estop"] -= 1
        else:
            self._arm_at_s = time_s + _RETRY_S

    def _push(self, event: Event) -> None:
        world = self._trial.robot.world
        heading = float(rotations.yaw(world.base_quat_w)) + event.angle_rad
        world.push((event.value * math.cos(heading), event.value * math.sin(heading), 0.0))

    def _pictures(self, fault: str) -> None:
        camera = self._trial.robot.camera
        if camera is None:
            return
        if fault == "none":
            camera.mend()
        else:
            camera.break_down(_FAULTS[fault])

    def _go_limp(self, event: Event, limp: bool) -> None:
        if event.action == "limp_leg":
            self._limp[_joints_of(event.name, self._trial)] = limp
        else:
            self._limp[self._trial.robot.desc.joint_index(event.name)] = limp
        self._trial.robot.world.set_limp(self._limp)

    def _show_box(self, event: Event) -> None:
        robot = self._trial.robot
        x, y, _ = robot.world.base_pos_w
        yaw = float(rotations.yaw(robot.world.base_quat_w))
        ahead = event.value + event.half_extents[0]
        center_x, center_y = x + ahead * math.cos(yaw), y + ahead * math.sin(yaw)
        ground = float(robot.course.height_at(center_x, center_y))
        quat = rotations.from_yaw(yaw)
        robot.show_box(
            Box(
                kind="hurdle",
                center=(float(center_x), float(center_y), ground + event.half_extents[2]),
                half_extents=event.half_extents,
                quat=(float(quat[0]), float(quat[1]), float(quat[2]), float(quat[3])),
            )
        )


def _is_due(event: Event, time_s: float, progress_m: float) -> bool:
    if event.at_s is not None:
        return time_s >= event.at_s
    assert event.at_m is not None
    return progress_m >= event.at_m


def _joints_of(leg: str, trial: _Stage) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    desc = trial.robot.desc
    found = np.array([name.startswith(f"{leg}_") for name in desc.joint_names])
    if not found.any():
        raise ValueError(f"{desc.name} has no leg {leg!r}; it has {', '.join(desc.leg_names)}")
    return found
