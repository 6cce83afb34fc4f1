"""What a film shows of a recording: poses of the robot, and what the game loop did."""

from __future__ import annotations

import math
import sys
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from krabby_proto import SAFETY_STATES, STATE, TICKS, TRUTH, FrameError, TickReader, unpack
from krabby_proto.recording import Recording
from numpy.typing import NDArray

from krabby_cli.errors import CliError

if TYPE_CHECKING:
    from krabby_proto import Message, Tick

__all__ = ["Pose", "Scene", "along", "every", "read_poses", "scene_of"]

_MOST_POSES: Final = 1_000_000
"""States and poses that are held, over an hour of them; some 300 MB."""
_BEFORE_S: Final = 1.0
"""States of that long before the first pose are kept: one of them belongs to it."""


class Scene(NamedTuple):
    """What the game loop did at a moment."""

    mode: str
    """One of `krabby_proto.LOOP_MODES`."""
    gate: str
    """One of `krabby_proto.SAFETY_STATES`."""
    policy: str
    """Name of the one that walks; empty where the recording does not tell."""
    command: tuple[float, float, float]
    """Walking command: vx, vy [m/s], yaw rate [rad/s]."""


class Pose(NamedTuple):
    time_s: float
    """Since the first pose of the recording."""
    base_pos_w: NDArray[np.float64]
    base_quat_w: NDArray[np.float64]
    joint_pos: NDArray[np.float64]
    base_lin_vel_w: NDArray[np.float64] = np.zeros(3)
    yaw_rate: float = 0.0
    """[rad/s]"""
    scene: Scene | None = None
    """None where the recording has no ticks of the game loop."""

    @property
    def captions(self) -> list[str]:
        """Lines to write into a picture: time, velocities, state of the loop."""
        forward, left = _walked(self)
        lines = [f"{self.time_s:6.2f} s", f"walked  {_velocity(forward, left, self.yaw_rate)}"]
        if self.scene is not None:
            scene = self.scene
            lines.insert(1, f"command {_velocity(*scene.command)}")
            lines.append(f"{scene.policy} · {scene.mode} · gate {scene.gate}")
        return lines


def _velocity(vx: float, vy: float, yaw_rate: float) -> str:
    vx, vy, yaw_rate = (round(value, 2) + 0.0 for value in (vx, vy, yaw_rate))  # no -0.00
    return f"{vx:+.2f} {vy:+.2f} m/s {yaw_rate:+.2f} rad/s"


def _walked(pose: Pose) -> tuple[float, float]:
    """Velocity along and across the robot's heading [m/s]."""
    x, y, z, w = pose.base_quat_w
    heading = math.atan2(2.0 * (w * z + x * y), 1.0 - 2.0 * (y * y + z * z))
    vx, vy, _ = pose.base_lin_vel_w
    cos, sin = math.cos(heading), math.sin(heading)
    return cos * vx + sin * vy, cos * vy - sin * vx


class _Reader:
    """Sorts the messages of a recording into joints, bases and scenes."""

    def __init__(self, path: Path, begin_s: float, end_s: float) -> None:
        self._path = path
        self._begin_s, self._end_s = begin_s, end_s
        self._ticks = TickReader()
        self.seen: set[str] = set()
        self.first_ns: int | None = None
        self.joints: list[tuple[int, NDArray[np.float64]]] = []
        self.bases: list[tuple[int, dict[str, NDArray[np.float64]]]] = []
        self.scenes: list[tuple[int, Scene]] = []

    def take(self, message: Message) -> None:
        stream, stamp_ns = message.stream, message.capture_ns
        self.seen.add(stream.name)
        if stream is TRUTH and self.first_ns is None:
            self.first_ns = stamp_ns
        time_s = 0.0 if self.first_ns is None else (stamp_ns - self.first_ns) * 1e-9
        if stream is TICKS:
            self._take_tick(message, self._wanted(time_s))
            return
        if not self._wanted(time_s):
            return
        if len(self.joints) + len(self.bases) >= _MOST_POSES:
            raise CliError(
                f"{self._path} has more than {_MOST_POSES} states and poses in that time; give a "
                "shorter one with --begin and --end"
            )
        values = unpack(stream, message.payload)
        if stream is STATE:
            self.joints.append((stamp_ns, values["joint_pos"].astype(np.float64)))
        else:
            fields = {name: value.astype(np.float64) for name, value in values.items()}
            self.bases.append((stamp_ns, fields))

    def _wanted(self, time_s: float) -> bool:
        return self._begin_s - _BEFORE_S <= time_s <= self._end_s

    def _take_tick(self, message: Message, wanted: bool) -> None:
        try:
            tick = self._ticks.read(message)  # all of them: a status holds until the next one
        except FrameError:
            return
        if wanted:
            self.scenes.append((tick.now_ns, scene_of(tick)))

    def poses(self) -> list[Pose]:
        first_ns = self.first_ns
        if first_ns is None or not self.joints:
            return []
        for each in (self.joints, self.bases, self.scenes):
            each.sort(key=lambda timed: timed[0])
        joint_times = [stamp for stamp, _ in self.joints]
        scene_times = [stamp for stamp, _ in self.scenes]
        poses = (
            Pose(
                (stamp - first_ns) * 1e-9,
                base["base_pos_w"],
                base["base_quat_w"],
                self.joints[_newest(joint_times, stamp)][1],
                base["base_lin_vel_w"],
                float(base["base_ang_vel_b"][2]),
                self.scenes[_newest(scene_times, stamp)][1] if scene_times else None,
            )
            for stamp, base in self.bases
        )
        return [pose for pose in poses if self._begin_s <= pose.time_s <= self._end_s]


def scene_of(tick: Tick) -> Scene:
    """What a tick says of the loop."""
    command: Any = tick.nav_command
    vx, vy, yaw_rate = (0.0, 0.0, 0.0) if command is None else command.tolist()
    known = tick.safety_state < len(SAFETY_STATES)
    return Scene(
        mode=tick.mode,
        gate=SAFETY_STATES[tick.safety_state] if known else f"state_{tick.safety_state}",
        policy=str(tick.status.get("walking", "")),
        command=(vx, vy, yaw_rate),
    )


def read_poses(path: Path, begin_s: float = 0.0, end_s: float = math.inf) -> list[Pose]:
    """Of a robot in simulation, in order of time: joints as measured, the base as it really was.

    A file that is damaged or cut short gives what is readable, with a line on stderr.

    Raises:
        RecordingError: The file cannot be read.
        CliError: It has no ground truth, as on a robot, or more poses than are held.
    """
    recording = Recording(path)
    reader = _Reader(path, begin_s, end_s)
    for message in recording.messages(STATE, TRUTH, TICKS):
        reader.take(message)
    if recording.damage:
        sys.stderr.write(f"krabby film: {path} is not complete: {recording.damage}\n")
    for stream in (STATE, TRUTH):
        if stream.name not in reader.seen:
            raise CliError(
                f"{path} has no stream {stream.name!r}: only a run in simulation, with every "
                "stream recorded, can be drawn"
            )
    return reader.poses()


def along(poses: Sequence[Pose], count: int) -> list[Pose]:
    """So many poses, spread evenly over the way that the robot made along the course."""
    furthest = np.maximum.accumulate([pose.base_pos_w[0] for pose in poses])
    shares = (np.arange(count) + 0.5) / count
    wanted = furthest[0] + shares * (furthest[-1] - furthest[0])
    return [poses[i] for i in np.searchsorted(furthest, wanted)]


def every(poses: Sequence[Pose], period_s: float) -> list[Pose]:
    """The poses at every so many seconds."""
    times = [pose.time_s for pose in poses]
    count = int((times[-1] - times[0]) / period_s + 1e-9) + 1
    return [poses[_newest(times, times[0] + i * period_s)] for i in range(count)]


def _newest(times: Sequence[float], time: float) -> int:
    """Index of the last one not after `time`, or of the first."""
    return max(bisect_right(times, time) - 1, 0)
