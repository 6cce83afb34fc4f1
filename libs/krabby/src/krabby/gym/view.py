"""What `ParkourEnv.render` shows: the robot from the side, ray-traced, and a window for it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import gymnasium

from krabby.mujoco.film import FilmCamera, beside
from krabby.mujoco.model import PosedRobot

if TYPE_CHECKING:
    from krabby.course.courses import Course
    from krabby.mujoco.render import Picture
    from krabby.mujoco.world import World
    from krabby.robot.description import RobotDescription

__all__ = ["CourseView", "Window"]


class CourseView:
    """Draws a robot on a course; needs no display and no OpenGL.

    Args:
        desc: The robot.
        course: What it walks on.
        width: Of the pictures, even [px].
        height: Of the pictures, even [px].
    """

    def __init__(self, desc: RobotDescription, course: Course, width: int, height: int) -> None:
        # The physics' own model has no visuals.
        self._robot = PosedRobot(desc, course)
        self._camera = FilmCamera(self._robot.model, width, height)

    def draw(self, world: World) -> Picture:
        """Picture (height, width, 3), uint8, of the robot as it is now."""
        self._robot.put(world.base_pos_w, world.base_quat_w, world.joint_pos)
        return self._camera.draw(self._robot.data, beside(world.base_pos_w))


class Window:
    """A window for pictures of one size, through pygame.

    Raises:
        gymnasium.error.DependencyNotInstalled: pygame is missing, or there is no display.
    """

    def __init__(self, width: int, height: int) -> None:
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        try:
            import pygame
        except ImportError as error:
            raise gymnasium.error.DependencyNotInstalled(
                "render_mode 'human' needs pygame; install it with: pip install krabby[gym]"
            ) from error
        self._pygame: Any = pygame
        try:
            pygame.display.init()
            self._screen = pygame.display.set_mode((width, height))
        except pygame.error as error:
            raise gymnasium.error.DependencyNotInstalled(
                f"render_mode 'human' needs a display ({error}); use render_mode='rgb_array'"
            ) from error
        pygame.display.set_caption("Krabby")

    def show(self, picture: Picture) -> None:
        """Show a picture (height, width, 3), uint8."""
        pygame = self._pygame
        surface = pygame.surfarray.make_surface(picture.swapaxes(0, 1))
        self._screen.blit(surface, (0, 0))
        pygame.event.pump()
        pygame.display.flip()

    def close(self) -> None:
        """Close the window; harmless when it is closed."""
        self._pygame.display.quit()
