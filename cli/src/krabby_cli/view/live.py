"""A running robot as the page sees it: newest messages of the streams, status of gate and loop.

The course is what the simulator's hello says. An emulated robot's HAL does not know it, as a real
one does not: then it is what the command's options say.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

import structlog
from krabby.course.courses import Course, make_course
from krabby.course.timing import CONTROL_HZ
from krabby.robot.description import RobotDescription
from krabby.robot.errors import RobotError
from krabby_proto import (
    CAMERA,
    COLOUR,
    FEATURES,
    FLAG_LOCKSTEP,
    STATE,
    TRUTH,
    ControlClient,
    HalClient,
    LatestSubscriber,
    Message,
    PeerClock,
    ProtoError,
)

from krabby_cli.outcome import too_busy
from krabby_cli.status import fault_words, inability_words
from krabby_cli.view.frames import Poser, colour_frame, depth_frame
from krabby_cli.view.scene import CourseName, course_message, load_robot, robot_message

__all__ = ["LiveSource", "Ticks", "image_shape"]

log = structlog.get_logger(__name__)

_ASK_S: Final = 0.5
"""Between two questions to the gate, and to the loop: `krabby teleop` asks as often."""
_HELLO_S: Final = 5.0
_SILENT_S: Final = 1.0
"""Without a state for this long the link to the robot counts as lost."""
_OLD_TRUTH_S: Final = 0.5
_BUSY_S: Final = 5.0
"""Over this long the ticks are counted that tell a busy host."""


class Ticks:
    """Tells from the counts in a game loop's status whether its host is too busy."""

    def __init__(self) -> None:
        self._counts: deque[tuple[float, int, int]] = deque()

    def take(self, loop: Mapping[str, Any], now_s: float) -> str:
        """The next status, empty without an answer; words for a host that is too busy, or none."""
        counts = self._counts
        ticks, late = loop.get("ticks"), loop.get("late")
        if not isinstance(ticks, int) or not isinstance(late, int):
            counts.clear()
            return ""
        if counts and ticks < counts[-1][1]:  # another process
            counts.clear()
        counts.append((now_s, ticks, late))
        while counts[-1][0] - counts[0][0] > _BUSY_S and len(counts) > 2:
            counts.popleft()
        _, ticks_before, late_before = counts[0]
        due = ticks - ticks_before
        return too_busy(late - late_before, due) if due >= CONTROL_HZ else ""


class _Watch(threading.Thread):
    """Asks HAL and game loop what they are and how they are, in a thread with its own sockets."""

    def __init__(self, endpoints: Mapping[str, str]) -> None:
        super().__init__(name="watch", daemon=True)
        self.hello: Mapping[str, Any] = {}
        self.gate: Mapping[str, Any] = {}
        self.loop: Mapping[str, Any] = {}
        self.refusal = ""
        """Why the last question to the HAL was not answered."""
        self.busy = ""
        self._ticks = Ticks()
        self._endpoints = endpoints
        self._stopping = threading.Event()
        self.clock: PeerClock | None = None

    def run(self) -> None:
        with (
            HalClient({"safety": self._endpoints["safety"]}) as hal,
            ControlClient(self._endpoints["control"]) as loop,
        ):
            self.clock = hal.clock
            hello_s = -math.inf
            while not self._stopping.is_set():
                if time.monotonic() - hello_s > _HELLO_S:
                    try:
                        self.hello = hal.hello(_ASK_S)
                        hello_s = time.monotonic()
                    except ProtoError as error:
                        self.refusal = str(error)
                self.gate = _asked(lambda: hal.safety("status", "krabby view", timeout_s=_ASK_S))
                self._stopping.wait(0.5 * _ASK_S)
                self.loop = _asked(lambda: loop.request("status", timeout_s=_ASK_S))
                self.busy = self._ticks.take(self.loop, time.monotonic())
                self._stopping.wait(0.5 * _ASK_S)

    def stop(self) -> None:
        self._stopping.set()


def _asked(question: Any) -> Mapping[str, Any]:
    try:
        return question()
    except ProtoError:
        return {}


class LiveSource:
    """Frames and facts of a running robot. Sockets exist only between `open` and `close`."""

    recorded = False

    def __init__(self, endpoints: Mapping[str, str], course: CourseName | None) -> None:
        self._endpoints = endpoints
        self._given = course
        self._subscribers: dict[str, LatestSubscriber] = {}
        self._watch: _Watch | None = None
        self._desc: RobotDescription | None = None
        self._course_name: CourseName | None = None
        self._course: Course | None = None
        self._poser: Poser | None = None
        self._sent = {"state": -1, "camera": -1, "colour": -1}
        self._image: Message | None = None
        self._heard_s = -math.inf
        self._began_s = time.monotonic()
        self.problem = ""
        """Why the robot cannot be drawn, with the remedy."""
        self.scene: list[dict[str, Any]] = []
        """Robot and course; replaced when one changes."""

    def open(self) -> None:
        """Connect; no peer has to be there."""
        with contextlib.ExitStack() as opened:
            for stream in (STATE, CAMERA, COLOUR, FEATURES, TRUTH):
                subscriber = LatestSubscriber(self._endpoints[stream.name], stream)
                self._subscribers[stream.name] = opened.enter_context(subscriber)
            opened.pop_all()
        self._watch = _Watch(self._endpoints)
        self._watch.start()

    def close(self) -> None:
        """Disconnect."""
        for subscriber in self._subscribers.values():
            subscriber.close()
        self._subscribers.clear()
        if self._watch is not None:
            self._watch.stop()
            self._watch = None

    @property
    def loop(self) -> Mapping[str, Any]:
        """Newest status of the game loop; empty without an answer."""
        return self._watch.loop if self._watch is not None else {}

    def look(self) -> None:
        """Take in what HAL and streams said since the last call."""
        hello = self._watch.hello if self._watch is not None else {}
        if not hello:
            return
        name = hello.get("robot", {}).get("name")
        course = _course_of(hello) or self._given
        if self._desc is not None and (self._desc.name, self._course_name) == (name, course):
            return
        try:
            self._desc = load_robot(str(name))
            self._course = None if course is None else make_course(*course)
            self._course_name, self._poser, self.problem = course, Poser(self._desc), ""
            self.scene = [robot_message(self._desc), course_message(self._course)]
        except (RobotError, OSError) as error:
            if self.problem != str(error):
                log.warning("the robot cannot be drawn", reason=str(error))
            self.problem = str(error)

    def state_frame(self) -> bytes | None:
        """The newest state, if it was not given out yet."""
        newest = {
            name: each.latest() for name, each in self._subscribers.items() if name != COLOUR.name
        }
        now_ns = time.monotonic_ns()  # after they came: no age is negative
        state, truth, self._image = newest[STATE.name], newest[TRUTH.name], newest[CAMERA.name]
        if state is None or self._poser is None or state.sequence == self._sent["state"]:
            return None
        self._sent["state"] = state.sequence
        self._heard_s = time.monotonic()
        if truth is not None and abs(state.capture_ns - truth.capture_ns) > _OLD_TRUTH_S * 1e9:
            truth = None
        lockstep = bool(state.flags & FLAG_LOCKSTEP)
        time_s = now_ns * 1e-9 - self._began_s
        ages = self._ages_ms(now_ns, (state, self._image, newest[FEATURES.name]), lockstep)
        return self._poser.frame(time_s, state, truth, ages, lockstep)

    def _ages_ms(
        self, now_ns: int, messages: Sequence[Message | None], lockstep: bool
    ) -> tuple[float, ...]:
        """NaN where the clock is simulated or nothing came."""
        clock = self._watch.clock if self._watch is not None else None
        if lockstep or clock is None:
            return (math.nan,) * len(messages)
        hal_ns = clock.latest(now_ns)
        return tuple(math.nan if each is None else 1e3 * each.age_s(hal_ns) for each in messages)

    def depth_frame(self) -> bytes | None:
        """The newest depth image as of the last `state_frame`, if it was not given out yet."""
        image = self._image
        if image is None or image.sequence == self._sent["camera"]:
            return None
        self._sent["camera"] = image.sequence
        size = image.payload.size
        width, height = image_shape(
            size, self._watch.hello if self._watch is not None else {}, self._desc
        )
        if width * height != size:
            return None
        return depth_frame(time.monotonic() - self._began_s, image.payload, width, height)

    def colour_frame(self) -> bytes | None:
        """The newest colour image, if it was not given out yet."""
        image = self._subscribers[COLOUR.name].latest()
        if image is None or image.sequence == self._sent["colour"]:
            return None
        self._sent["colour"] = image.sequence
        return colour_frame(time.monotonic() - self._began_s, image.payload.tobytes())

    def facts(self) -> dict[str, Any]:
        """For the page: link, gate, loop."""
        watch = self._watch
        if watch is None:
            return {}
        gate, loop = watch.gate, watch.loop
        silent = time.monotonic() - self._heard_s > _SILENT_S
        return {
            "hal": str(watch.hello.get("service", "")),
            "arms_itself": _arms_itself(watch.hello),
            "busy": watch.busy,
            "cannot": inability_words(loop),
            "clock": str(watch.hello.get("clock", "")),
            "link": "lost" if silent else "ok",
            "problem": self.problem or (watch.refusal if silent and not gate else ""),
            "gate": str(gate.get("state", "")),
            "faults": fault_words(gate.get("faults", ())),
            "loop": {name: loop[name] for name in _SHOWN if name in loop},
        }


_SHOWN: Final = (
    *("mode", "safety", "policy", "walking", "blind", "sight", "command_range"),
    *("nav", "nav_asked", "nav_clamped", "nav_source"),
)


def _course_of(hello: Mapping[str, Any]) -> CourseName | None:
    """The course in a simulator's hello."""
    course = hello.get("extra", {}).get("course")
    try:
        return CourseName(str(course["name"]), float(course["difficulty"]), int(course["seed"]))
    except (KeyError, TypeError, ValueError):
        return None


def _arms_itself(hello: Mapping[str, Any]) -> bool:
    """Whether a simulator arms again by itself after a fault."""
    config = hello.get("extra", {}).get("config")
    return isinstance(config, Mapping) and config.get("auto_arm") is True


def image_shape(
    size: int, hello: Mapping[str, Any], desc: RobotDescription | None
) -> tuple[int, int]:
    """Width and height of a depth image; (0, 0) if none fits."""
    camera = hello.get("camera", {})
    known = [(camera.get("width"), camera.get("height"))]
    if desc is not None:
        known.append((desc.camera.width, desc.camera.height))
    for width, height in known:
        if isinstance(width, int) and isinstance(height, int) and width * height == size:
            return width, height
    for across, down in ((16, 9), (4, 3), (53, 30)):
        unit = math.isqrt(size // (across * down))
        if unit * unit * across * down == size:
            return unit * across, unit * down
    return 0, 0
