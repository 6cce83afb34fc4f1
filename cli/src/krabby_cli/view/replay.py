"""A recording as the page sees it: the same frames as of a running robot, with a time line."""

from __future__ import annotations

import contextlib
import math
import sys
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from krabby.course.courses import Course
from krabby.robot.description import RobotDescription
from krabby_proto import (
    CAMERA,
    COLOUR,
    FEATURES,
    FLAG_LOCKSTEP,
    STATE,
    TICKS,
    TRUTH,
    FrameError,
    Message,
    TickReader,
    unpack,
)
from krabby_proto.recording import Recording

from krabby_cli.errors import CliError
from krabby_cli.film_poses import Scene, scene_of
from krabby_cli.view.frames import Poser, colour_frame, depth_frame
from krabby_cli.view.live import image_shape
from krabby_cli.view.scene import course_message, robot_message

__all__ = ["SPEEDS", "Player", "ReplaySource"]

SPEEDS: Final = (0.25, 0.5, 1.0, 2.0, 4.0)
_STATE_S: Final = 0.03
_DEPTH_S: Final = 0.095
"""Least time between two frames that are kept [s]."""
_COLOUR_S: Final = 0.18
_COLOUR_BYTES: Final = 256 << 20
"""Most that is kept of colour images: an hour at 5 Hz."""
_MOST_S: Final = 3600.0
_OLD_S: Final = 0.5


class ReplaySource:
    """All frames of a recording that the page can show, in memory.

    Some 100 MB for an hour, at most 256 MB more with colour images.

    Raises:
        RecordingError: The file cannot be read.
        CliError: It has no states.
    """

    recorded = True

    def __init__(self, path: Path, course: Course | None, desc: RobotDescription) -> None:
        self.path = path
        self.states: list[bytes] = []
        self.state_times: list[float] = []
        self.scenes: list[Scene | None] = []
        """What the loop did at each state; None where the file does not tell."""
        self.depths: list[bytes] = []
        self.depth_times: list[float] = []
        self.colours: list[bytes] = []
        self.colour_times: list[float] = []
        self.marks: list[tuple[float, str]] = []
        """Time [s] and what happened."""
        self.problem = ""
        self.loop: Mapping[str, Any] = {}
        self._read(desc)
        self.scene = [robot_message(desc), course_message(course), self._line()]

    @property
    def length_s(self) -> float:
        """Time of the last state [s]."""
        return self.state_times[-1]

    def _line(self) -> dict[str, Any]:
        return {
            "t": "line",
            "length_s": round(self.length_s, 3),
            "marks": self.marks,
            "speeds": SPEEDS,
            "file": self.path.name,
            "problem": self.problem,
        }

    def _read(self, desc: RobotDescription) -> None:
        recording, poser, ticks = Recording(self.path), Poser(desc), TickReader()
        scene: Scene | None = None
        colour_bytes = 0
        newest: dict[str, Message] = {}
        first_ns: int | None = None
        counts: tuple[float, float] | None = None
        for message in recording.messages(STATE, TRUTH, CAMERA, COLOUR, FEATURES, TICKS):
            name = message.stream.name
            if message.stream is TICKS:
                with contextlib.suppress(FrameError):
                    scene = scene_of(ticks.read(message))
                continue
            newest[name] = message
            if first_ns is None:
                if message.stream is not STATE:
                    continue
                first_ns = message.header.publish_ns
            time_s = (message.header.publish_ns - first_ns) * 1e-9
            if time_s > _MOST_S:
                self.problem = f"only the first {_MOST_S / 60:.0f} minutes are shown"
                break
            if message.stream is STATE and _due(self.state_times, time_s, _STATE_S):
                truth = newest.get(TRUTH.name)
                self.states.append(_state_frame(poser, time_s, message, newest))
                self.state_times.append(time_s)
                self.scenes.append(scene)
                counts = self._mark(time_s, truth, counts)
            elif message.stream is CAMERA and _due(self.depth_times, time_s, _DEPTH_S):
                width, height = image_shape(message.payload.size, {}, desc)
                if width:
                    self.depths.append(depth_frame(time_s, message.payload, width, height))
                    self.depth_times.append(time_s)
            elif message.stream is COLOUR and _due(self.colour_times, time_s, _COLOUR_S):
                colour_bytes += message.payload.nbytes
                if colour_bytes < _COLOUR_BYTES:
                    self.colours.append(colour_frame(time_s, message.payload.tobytes()))
                    self.colour_times.append(time_s)
                elif not self.problem:
                    last_s = self.colour_times[-1] if self.colour_times else 0.0
                    self.problem = f"colour images after {last_s:.1f} s are not shown: too many"
        if recording.damage:
            self.problem = f"the file is not complete: {recording.damage}"
            sys.stderr.write(f"krabby view: {self.path}: {self.problem}\n")
        if not self.states:
            raise CliError(f"{self.path} has no stream 'state': there is no robot to show")

    def _mark(
        self, time_s: float, truth: Message | None, before: tuple[float, float] | None
    ) -> tuple[float, float] | None:
        """Note falls and put-backs; returns their counts."""
        if truth is None:
            return before
        fields = unpack(TRUTH, truth.payload)
        counts = float(fields["falls"][0]), float(fields["reset_count"][0])
        if before is not None:
            for was, now, text in zip(before, counts, ("fell", "put back"), strict=True):
                if now > was:
                    self.marks.append((round(time_s, 2), text))
        return counts


def _due(times: list[float], time_s: float, period_s: float) -> bool:
    return not times or time_s - times[-1] >= period_s


def _state_frame(
    poser: Poser, time_s: float, state: Message, newest: Mapping[str, Message]
) -> bytes:
    """With the ages at the moment when the state was published."""
    truth = newest.get(TRUTH.name)
    if truth is not None and abs(state.capture_ns - truth.capture_ns) > _OLD_S * 1e9:
        truth = None
    lockstep = bool(state.flags & FLAG_LOCKSTEP)
    now_ns = state.header.publish_ns
    others = (newest.get(CAMERA.name), newest.get(FEATURES.name))
    ages = [math.nan if m is None or lockstep else 1e3 * m.age_s(now_ns) for m in (state, *others)]
    return poser.frame(time_s, state, truth, tuple(ages), lockstep)


@dataclass
class Player:
    """One page's place in a recording."""

    source: ReplaySource
    playing: bool = True
    speed: float = 1.0
    at_s: float = 0.0
    _shown: dict[str, int] = field(default_factory=dict)

    def control(self, playing: bool | None, speed: float | None, at_s: float | None) -> None:
        """Play, pause, change speed or go to a time; None leaves each as it is."""
        if at_s is not None and math.isfinite(at_s):
            self.at_s = min(max(at_s, 0.0), self.source.length_s)
        if speed is not None:
            self.speed = min(max(speed, SPEEDS[0]), SPEEDS[-1])
        if playing is not None:
            if playing and self.at_s >= self.source.length_s:
                self.at_s = 0.0  # from the end it begins again
            self.playing = playing

    def advance(self, elapsed_s: float) -> list[bytes]:
        """Let time pass; the frames that are to be shown now and were not yet."""
        source = self.source
        if self.playing:
            self.at_s += elapsed_s * self.speed
            if self.at_s >= source.length_s:
                self.at_s, self.playing = source.length_s, False
        frames = []
        for name, times, held in (
            ("state", source.state_times, source.states),
            ("depth", source.depth_times, source.depths),
            ("colour", source.colour_times, source.colours),
        ):
            index = bisect_right(times, self.at_s) - 1
            if index >= 0 and self._shown.get(name) != index:
                self._shown[name] = index
                frames.append(held[index])
        return frames

    def facts(self) -> dict[str, Any]:
        """For the page."""
        index = max(0, bisect_right(self.source.state_times, self.at_s) - 1)
        scene = self.source.scenes[index]
        loop: dict[str, Any] = {}
        if scene is not None:
            loop = {"mode": scene.mode, "walking": scene.policy, "nav": scene.command}
        return {"gate": "" if scene is None else scene.gate, "loop": loop, "play": self._place()}

    def _place(self) -> dict[str, Any]:
        return {"playing": self.playing, "speed": self.speed, "at_s": round(self.at_s, 2)}
