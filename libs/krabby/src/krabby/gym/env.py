"""`ParkourEnv`: one robot on one course, with the observation that policies get on the robot.

Time, physics, safety gate, drives and depth camera are those of the simulator (`krabby sim`), so a
policy trained here runs there: `ParkourEnv.manifest` has what its bundle must say.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, ClassVar, Final

import gymnasium
import numpy as np
import structlog
from gymnasium import spaces

from krabby.course.courses import make_course
from krabby.course.mission import MAX_YAW_RATE
from krabby.course.timing import CONTROL_HZ
from krabby.gym.rewards import Step, reward_terms
from krabby.gym.robot import GatedRobot
from krabby.gym.view import CourseView, Window
from krabby.policy.depth_image import IMAGE_SHAPE, DepthPreprocessor
from krabby.policy.observation import (
    ObservationBuilder,
    ObservationInputs,
    ObservationLayout,
    standard_term,
)
from krabby.robot import rotations
from krabby.robot.description import RobotDescription

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from krabby.mujoco.render import Picture

__all__ = ["PROPRIO", "ParkourEnv"]

PROPRIO: Final = ObservationLayout(
    tuple(
        standard_term(name)
        for name in (
            "base_ang_vel", "projected_gravity", "nav_command", "joint_pos_rel", "joint_vel",
            "last_action", "foot_contact",
        )
    )
)  # fmt: skip
"""Terms of the observation `proprio`, in order."""

_MOST_ANG_VEL: Final = 20.0
"""[rad/s]"""
_BEYOND_RAD: Final = 0.2
"""How far a joint may be measured beyond its range."""
_SHOW_EVERY: Final = 4
"""Control steps for a picture in the window: 25 a second of simulated time."""
_OPTIONS: Final = ("course", "difficulty", "layout")


class ParkourEnv(gymnasium.Env):
    """Walk along a course, waypoint by waypoint, within the safety gate's limits.

    **Action**, Box (18,) of -1..1, joints in the order of `robot.toml`: target of joint i is its
    default angle plus `action_scale` times the action [rad], for 10 ms; the gate cuts it to the
    joint's range and speed.

    **Observation**, Dict of float32, as a policy gets it on the robot:

    - `proprio` (69,): the terms of `PROPRIO`, scaled as `assets/policies/README.md` says: angular
      velocity, direction of gravity, commanded vx, vy and yaw rate, joint angles relative to the
      default pose, joint velocities, the action before, feet on the ground.
    - `depth` (58, 87): newest image of the depth camera, -0.5 at the lens to 0.5 at 3 m or beyond,
      with its noise, rate and latency. Left out with `camera=False`.

    **Reward**: sum of `krabby.gym.rewards.reward_terms`. **Terminated**: the robot fell, its gate
    gave up on it, or it reached the last waypoint. **Truncated**: after 20 s, by `gymnasium.make`.
    """

    metadata: ClassVar[dict[str, Any]] = {
        "render_modes": ["human", "rgb_array"],
        "render_fps": CONTROL_HZ,
    }

    def __init__(
        self,
        *,
        course: str = "mixed",
        difficulty: float = 0.5,
        layout: int | None = None,
        speed: float = 0.35,
        camera: bool = True,
        action_scale: float = 0.6,
        render_mode: str | None = None,
        width: int = 480,
        height: int = 270,
    ) -> None:
        """Prepare; `reset` puts the robot down.

        Args:
            course: Name of the course; `krabby course --help` lists them.
            difficulty: 0 to 2.5, where 1 is the hardest of the published suite.
            layout: Seed of the course; None: another one in every episode.
            speed: Commanded walking speed [m/s], up to 1.
            camera: Whether there are depth images; without them a step takes half the time.
            action_scale: Joint angle of action 1 [rad].
            render_mode: None, "rgb_array" or "human" (a window, every fourth step).
            width: Of pictures, even [px].
            height: Of pictures, even [px].

        Raises:
            CourseError: There is no such course.
            ValueError: A number is out of range.
        """
        _require(render_mode in (None, *self.metadata["render_modes"]), "render_mode", render_mode,
                 "None, 'human' or 'rgb_array'")  # fmt: skip
        _require(0.0 <= speed <= 1.0, "speed", speed, "0 to 1 m/s")
        _require(0.0 < action_scale <= math.pi, "action_scale", action_scale, "up to pi")
        _require(min(width, height) >= 32 and not (width % 2 or height % 2), "width, height",
                 (width, height), "even numbers from 32")  # fmt: skip
        make_course(course, difficulty, 0 if layout is None else layout)
        if not structlog.is_configured():  # a library does not print
            structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
        self.render_mode = render_mode
        self._desc = RobotDescription.load()
        self._course_args = {"course": course, "difficulty": difficulty, "layout": layout}
        self._speed, self._camera, self._scale = speed, camera, action_scale
        self._size = (width, height)
        self._builder = ObservationBuilder(PROPRIO, self._desc)
        self._preprocess = DepthPreprocessor(self._desc.camera)
        bound = _proprio_bound(self._desc)
        self._low, self._high = bound
        observed: dict[str, spaces.Space[Any]] = {"proprio": spaces.Box(*bound, dtype=np.float32)}
        if camera:
            observed["depth"] = spaces.Box(-0.5, 0.5, IMAGE_SHAPE, np.float32)
        self.observation_space = spaces.Dict(observed)
        self.action_space = spaces.Box(-1.0, 1.0, (len(self._desc.joint_names),), np.float32)
        self._robot: GatedRobot | None = None
        self._view: CourseView | None = None
        self._window: Window | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
        """Put the robot down where a course begins, standing and armed.

        Args:
            seed: Of all layouts and camera noise from now on.
            options: `course`, `difficulty` and `layout` for this episode.
        """
        super().reset(seed=seed)
        unknown = sorted(set(options or {}) - set(_OPTIONS))
        _require(not unknown, "options", unknown, f"keys among {', '.join(_OPTIONS)}")
        chosen = self._course_args | (options or {})
        drawn, noise = (int(number) for number in self.np_random.integers(2**31, size=2))
        layout = drawn if chosen["layout"] is None else chosen["layout"]
        course = make_course(chosen["course"], chosen["difficulty"], layout)
        self._robot = GatedRobot(
            self._desc, course, speed=self._speed, camera=self._camera, seed=noise
        )
        self._view = None
        self._builder.reset()
        self._action = np.zeros(len(self._desc.joint_names), np.float32)
        self._periods = 0
        if self._camera:
            picture = self._robot.backend.picture(self._robot.now_ns)
            assert picture is not None, "there is a camera"
            self._depth, self._depth_ns = self._preprocess(picture.image), picture.capture_ns
        observation = self._observe(self._robot)
        if self.render_mode == "human":
            self._show()
        return observation, self._info(self._robot)

    def step(
        self, action: NDArray[np.floating]
    ) -> tuple[dict[str, NDArray[np.float32]], float, bool, bool, dict[str, Any]]:
        """Let 10 ms pass.

        Args:
            action: Shape (18,); cut to -1..1.
        """
        robot = self.robot
        asked = np.asarray(action, np.float32)
        _require(asked.shape == self._action.shape, "action", asked.shape, "shape (18,)")
        _require(bool(np.isfinite(asked).all()), "action", asked, "finite numbers")
        asked = asked.clip(-1.0, 1.0)
        reached = robot.period(self._desc.default_joint_pos + self._scale * asked)
        change, self._action = asked - self._action, asked
        self._periods += 1
        terms = self._reward(robot, change, reached)
        terminated = robot.failed or robot.backend.progress.completed
        observation = self._observe(robot)
        if self.render_mode == "human" and self._periods % _SHOW_EVERY == 0:
            self._show()
        info = self._info(robot) | {"reward_terms": terms}
        return observation, sum(terms.values()), terminated, False, info

    def render(self) -> Picture | None:
        """The robot from the side, (height, width, 3) uint8; None unless mode is rgb_array."""
        if self.render_mode == "rgb_array":
            return self._draw()
        if self.render_mode == "human":
            self._show()
        return None

    def close(self) -> None:
        """Close the window, if there is one."""
        if self._window is not None:
            self._window.close()
        self._window = self._view = None

    def manifest(self, name: str) -> dict[str, Any]:
        """Manifest of a bundle for a policy trained here on `proprio` alone.

        Its network `policy.onnx` takes `obs` (1, 69) and gives `actions` (1, 18), as
        `krabby.policy.bundle.write_bundle` checks.
        """
        speed = self._speed
        return {
            "name": name,
            "kind": "policy",
            "control_rate_hz": CONTROL_HZ,
            "observation": PROPRIO.to_manifest(),
            "action": {
                "scale": self._scale,
                "offset": self._desc.default_joint_pos.tolist(),
                "clip": 1.0,
            },
            "command": {
                "vx": [0.0, speed], "vy": [0.0, 0.0], "yaw_rate": [-MAX_YAW_RATE, MAX_YAW_RATE],
            },
            "stands": False,
        }  # fmt: skip

    @property
    def robot(self) -> GatedRobot:
        """The robot of this episode, with all that only the simulation knows.

        Raises:
            gymnasium.error.ResetNeeded: There was no reset.
        """
        if self._robot is None:
            raise gymnasium.error.ResetNeeded("call reset first")
        return self._robot

    def _observe(self, robot: GatedRobot) -> dict[str, NDArray[np.float32]]:
        measured = robot.measured
        command = robot.backend.mission()
        proprio = self._builder.build(
            ObservationInputs(
                base_quat_w=measured.base_quat_w,
                base_ang_vel_b=measured.base_ang_vel_b,
                base_lin_acc_b=measured.base_lin_acc_b,
                joint_pos=measured.joint_pos,
                joint_vel=measured.joint_vel,
                foot_contact=measured.foot_contact,
                nav_command=command,
                last_action=self._action,
            )
        )
        bounded = np.nan_to_num(proprio[0], posinf=np.inf, neginf=-np.inf)
        observation = {"proprio": bounded.clip(self._low, self._high)}
        if self._camera:
            frame = robot.backend.frame(robot.now_ns)
            if frame is not None:
                self._depth, self._depth_ns = self._preprocess(frame.image), frame.capture_ns
            observation["depth"] = self._depth.copy()
        return observation

    def _reward(
        self, robot: GatedRobot, change: NDArray[np.floating], reached: int
    ) -> dict[str, float]:
        world, progress = robot.backend.world, robot.backend.progress
        target = progress.target_xy
        return reward_terms(
            Step(
                velocity_xy_w=world.base_lin_vel_w[:2],
                yaw=float(rotations.yaw(world.base_quat_w)),
                to_goal_w=None if target is None else target - world.base_pos_w[:2],
                speed=self._speed,
                torque=robot.measured.joint_effort,
                action_change=change,
                waypoints=reached,
                failed=robot.failed,
            )
        )

    def _info(self, robot: GatedRobot) -> dict[str, Any]:
        progress, course = robot.backend.progress, robot.backend.course
        info = {
            "course": course.name,
            "layout": course.seed,
            "waypoint": progress.index,
            "waypoints": progress.count,
            "progress_m": progress.furthest_m,
            "completed": progress.completed,
            "failed": robot.failed,
        }
        if self._camera:
            info["depth_age_s"] = (robot.now_ns - self._depth_ns) * 1e-9
        return info

    def _draw(self) -> Picture:
        robot = self.robot
        if self._view is None:
            self._view = CourseView(self._desc, robot.backend.course, *self._size)
        return self._view.draw(robot.backend.world)

    def _show(self) -> None:
        if self._window is None:
            self._window = Window(*self._size)
        self._window.show(self._draw())


def _proprio_bound(desc: RobotDescription) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Least and largest `proprio`, scaled as in `PROPRIO`, (69,) each."""
    joints = len(desc.joint_names)
    largest = {
        "base_ang_vel": np.full(3, _MOST_ANG_VEL),
        "projected_gravity": np.ones(3),
        "nav_command": np.array([1.0, 1.0, MAX_YAW_RATE]),
        "joint_pos_rel": desc.joint_upper - desc.default_joint_pos + _BEYOND_RAD,
        "joint_vel": 1.5 * desc.no_load_speed,
        "last_action": np.ones(joints),
        "foot_contact": np.full(len(desc.leg_names), 0.5),
    }
    least = {name: -value for name, value in largest.items()}
    least["joint_pos_rel"] = desc.joint_lower - desc.default_joint_pos - _BEYOND_RAD
    low, high = (
        np.concatenate([term.scale * bound[term.name] for term in PROPRIO.terms])
        for bound in (least, largest)
    )
    return low.astype(np.float32), high.astype(np.float32)


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"{name} is {value}; give {expected}")
