"""Draws and publishes colour images: the child of `krabby.mujoco.colour`.

It subscribes to `truth` and `state` as any reader does, and only while `colour` itself is read, so
the loop that moves the robot does nothing for it. Joint angles are the measured ones.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from krabby_proto import (
    COLOUR,
    FLAG_LOCKSTEP,
    STATE,
    TRUTH,
    LatestSubscriber,
    Message,
    WatchedPublisher,
    unpack,
)
from numpy.typing import NDArray

from krabby.course.courses import make_course
from krabby.hal.jpeg import to_jpeg
from krabby.mujoco.colour import ColourJob
from krabby.mujoco.colour_camera import ColourCamera
from krabby.mujoco.degrade import degraded
from krabby.robot.description import RobotDescription
from krabby.runtime.child import become_child

_NICE: Final = 10
_WAIT_S: Final = 1.0


def main() -> None:
    """Work until killed; the `ColourJob` is the first argument, as JSON."""
    become_child(nice=_NICE)
    job = msgspec.json.decode(sys.argv[1], type=ColourJob)
    desc = RobotDescription.load(Path(job.robot) if job.robot else None)
    course = make_course(job.course.name, job.course.difficulty, job.course.seed)
    actual = degraded(desc, job.degrade).camera
    camera = ColourCamera(desc, course, camera=actual, scale=job.colour.scale)
    with WatchedPublisher(job.place, COLOUR) as publisher:
        while True:
            if publisher.wait_for_reader(_WAIT_S):
                _show(job, camera, publisher)


def _show(job: ColourJob, camera: ColourCamera, publisher: WatchedPublisher) -> None:
    """Publish pictures for as long as they are read."""
    period_ns = round(1e9 / job.colour.rate_hz)
    due_ns = 0
    with (
        LatestSubscriber(job.truth, TRUTH) as truths,
        LatestSubscriber(job.state, STATE) as states,
    ):
        while publisher.is_read():
            truth, state = truths.wait(_WAIT_S), states.latest()
            if truth is None or state is None or truth.capture_ns < due_ns:
                continue
            due_ns = (truth.capture_ns // period_ns + 1) * period_ns
            picture = _drawn(camera, truth, state)
            publisher.publish(
                to_jpeg(picture),
                capture_ns=truth.capture_ns,
                publish_ns=truth.capture_ns if job.lockstep else time.monotonic_ns(),
                flags=FLAG_LOCKSTEP if job.lockstep else 0,
            )


def _drawn(camera: ColourCamera, truth: Message, state: Message) -> NDArray[np.uint8]:
    pose = unpack(TRUTH, truth.payload)
    joint_pos = unpack(STATE, state.payload)["joint_pos"]
    return camera.draw(pose["base_pos_w"], pose["base_quat_w"], joint_pos)


if __name__ == "__main__":
    main()
