"""What the robot's camera sees in colour: the view of the depth image in more pixels.

Drawn with MuJoCo's rays as films are (`krabby.mujoco.film`), so it needs no OpenGL and no display.
The body that carries the camera is left out, as a real camera does not see its housing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from krabby.mujoco.depth_camera import camera_pose
from krabby.mujoco.film import FilmCamera
from krabby.mujoco.model import PosedRobot
from krabby.mujoco.rays import View

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from krabby.course.courses import Course
    from krabby.mujoco.rays import Picture
    from krabby.robot.description import CameraModel, RobotDescription

__all__ = ["ColourCamera", "view_of"]


class ColourCamera:
    """Draws what a camera on the robot sees.

    Args:
        desc: The robot.
        course: What it walks on.
        camera: The camera where it really is; `desc.camera` if None.
        scale: Pixels for each pixel of the depth image along both sides; even.
    """

    def __init__(
        self,
        desc: RobotDescription,
        course: Course,
        *,
        camera: CameraModel | None = None,
        scale: int = 4,
    ) -> None:
        self._camera = desc.camera if camera is None else camera
        self._robot = robot = PosedRobot(desc, course)
        size = scale * self._camera.width, scale * self._camera.height
        self._film = FilmCamera(robot.model, *size, unseen_body=robot.index.base_body)

    def draw(
        self,
        base_pos_w: NDArray[np.floating],
        base_quat_w: NDArray[np.floating],
        joint_pos: NDArray[np.floating],
    ) -> Picture:
        """Picture (height, width, 3), sRGB.

        Args:
            base_pos_w: Position of the base in the world [m], shape (3,).
            base_quat_w: Base to world (x, y, z, w).
            joint_pos: Joint angles [rad], shape (18,).
        """
        self._robot.put(base_pos_w, base_quat_w, joint_pos)
        eye, axes_w = camera_pose(
            self._camera, base_pos_w.astype("float64"), base_quat_w.astype("float64")
        )
        return self._film.draw(self._robot.data, view_of(self._camera, eye, axes_w))


def view_of(camera: CameraModel, eye: NDArray[np.float64], axes_w: NDArray[np.float64]) -> View:
    """From the optical centre, with the columns right, down and ahead of `camera_pose`."""
    target, up = eye + axes_w[:, 2], -axes_w[:, 1]
    return View(
        eye=(float(eye[0]), float(eye[1]), float(eye[2])),
        target=(float(target[0]), float(target[1]), float(target[2])),
        up=(float(up[0]), float(up[1]), float(up[2])),
        fov_rad=camera.vfov_rad,
    )
