"""`krabby export-lerobot`: a recording as a LeRobotDataset, written by LeRobot's own library.

Frames at a fixed rate while the robot followed commands: the measured state, the joint targets that
answered it, the walking command and the depth image in mm. Each stretch without a gap or respawn is
an episode; its task names course and difficulty.
"""

from __future__ import annotations

import argparse
import bisect
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from krabby_proto import CAMERA, FLAG_RESET, STATE, TICKS, TRACE, FrameError, TickReader
from krabby_proto.exchanges import AskedTarget, Exchange
from krabby_proto.recording import Recording

from krabby_cli.errors import CliError, UsageError
from krabby_cli.options import add_command, option, print_line

if TYPE_CHECKING:
    from krabby_proto import Message
    from krabby_proto.recording import RunFacts
    from numpy.typing import NDArray

__all__ = ["Frame", "add_parser", "episodes_of", "features_of"]

_NS: Final = 1_000_000_000
_OLDEST_NS: Final = 100_000_000
"""Age of a state, or wait for the command that answers it, that ends an episode."""
_OLDEST_IMAGE_NS: Final = 300_000_000
_LEAST_S: Final = 0.5
"""Shorter episodes are left out."""
_MOST: Final = 1_000_000
"""Messages of a kind that are held, over an hour of them."""
_MM: Final = 1000.0

_EPILOG: Final = """\
LeRobot needs Python 3.12 and pins NumPy and torch, so it has its own environment; in a checkout:
  python3.12 -m venv .venv-lerobot
  .venv-lerobot/bin/pip install "lerobot[dataset]>=0.6,<0.7" ./proto ./libs/krabby ./cli

examples:
  .venv-lerobot/bin/krabby export-lerobot run.mcap datasets/run
  .venv-lerobot/bin/krabby export-lerobot run.mcap datasets/run --fps 10 --task "climb the steps"
"""


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands, "export-lerobot", run, "a recording as a LeRobotDataset", __doc__, _EPILOG
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="MCAP file of `krabby record`")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="new folder of the data set")
    option(parser, "--fps", "N", 30, "frames per second")
    option(parser, "--task", "TEXT", None, "task of all episodes; else course and difficulty")
    option(parser, "--repo-id", "NAME", "krabby/recording", "name of the data set")


def run(args: argparse.Namespace) -> int:
    if not 1 <= args.fps <= 100:
        raise UsageError(f"--fps {args.fps}: give 1 to 100")
    if args.folder.exists():
        raise UsageError(f"{args.folder} exists already; remove it or give another name")
    library = _library()
    recording = Recording(args.file)
    facts = recording.run
    episodes = list(episodes_of(recording, args.fps))
    if recording.damage:
        sys.stderr.write(f"krabby export-lerobot: {args.file}: {recording.damage}\n")
    if not episodes:
        raise CliError(
            f"{args.file} has no half second in which commands were applied; record `state` and "
            "`trace` of a robot that is armed and walks"
        )
    data: Any = library.create(
        args.repo_id,
        args.fps,
        features_of(episodes[0][0], _joints(facts)),
        root=args.folder,
        robot_type=facts.robot or "unknown",
        use_videos=False,
    )
    task = args.task or _task(facts)
    for number, episode in enumerate(episodes, 1):
        for frame in episode:
            data.add_frame(frame.values() | {"task": task})
        data.save_episode()
        sys.stderr.write(f"krabby export-lerobot: {number} of {len(episodes)} episodes\n")
    data.finalize()
    count = sum(len(episode) for episode in episodes)
    print_line(f"{args.folder}: {len(episodes)} episodes, {count} frames at {args.fps} Hz")
    return 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """One frame of an episode."""

    state: NDArray[np.float32]
    """Payload of the stream `state`, shape (70,)."""
    action: NDArray[np.float32]
    """Joint targets of the command that answered it [rad], shape (18,)."""
    command: NDArray[np.float32]
    """Walking command: vx, vy [m/s], yaw rate [rad/s], shape (3,)."""
    depth_mm: NDArray[np.uint16] | None
    """Shape (height, width, 1), 0 where there is no reading; None where none was recorded."""

    def values(self) -> dict[str, Any]:
        """By the names of the features."""
        found: dict[str, Any] = {
            "observation.state": self.state,
            "observation.command": self.command,
            "action": self.action,
        }
        if self.depth_mm is not None:
            found["observation.images.depth"] = self.depth_mm
        return found


def features_of(frame: Frame, joints: tuple[str, ...]) -> dict[str, Any]:
    """The features of a data set with such frames, as LeRobot wants them."""
    names = [
        f"{each.name}_{joints[i] if each.size == len(joints) else i}"
        for each in STATE.fields
        for i in range(each.size)
    ]
    features: dict[str, Any] = {
        "observation.state": {"dtype": "float32", "shape": (STATE.size,), "names": names},
        "observation.command": {"dtype": "float32", "shape": (3,), "names": ["vx", "vy", "yaw"]},
        "action": {"dtype": "float32", "shape": (len(joints),), "names": list(joints)},
    }
    if frame.depth_mm is not None:
        features["observation.images.depth"] = {
            "dtype": "image",
            "shape": frame.depth_mm.shape,
            "names": ["height", "width", "channels"],
            "info": {"is_depth_map": True, "depth_unit": "mm"},
        }
    return features


def episodes_of(recording: Recording, fps: int) -> Iterator[list[Frame]]:
    """Stretches in which commands were applied, in frames of a fixed rate.

    Raises:
        CliError: it has more messages than are held.
        RecordingError: the file cannot be read.
    """
    log = _Log()
    for message in recording.messages(STATE, CAMERA, TRACE, TICKS):
        log.take(message)
    if not log.states.times or not log.commands.times:
        return
    period_ns = round(_NS / fps)
    shape = _image_shape(recording)
    episode: list[Frame] = []
    at_ns = log.states.times[0]
    while at_ns <= log.states.times[-1]:
        frame = log.frame(at_ns, period_ns, shape)
        if frame is not None:
            episode.append(frame)
        if frame is None or at_ns + period_ns > log.states.times[-1]:
            if len(episode) >= _LEAST_S * fps:
                yield episode
            episode = []
        at_ns += period_ns


@dataclass(eq=False)
class _Timed:
    """Values in order of time."""

    times: list[int] = field(default_factory=list[int])
    values: list[Any] = field(default_factory=list[Any])

    def add(self, time_ns: int, value: Any) -> None:
        if len(self.times) >= _MOST:
            raise CliError(f"the recording has more than {_MOST} messages of a kind; record less")
        place = bisect.bisect_right(self.times, time_ns)
        self.times.insert(place, time_ns)
        self.values.insert(place, value)

    def newest(self, time_ns: int, oldest_ns: int) -> Any:
        """Not after `time_ns` and no older than so; None for none."""
        place = bisect.bisect_right(self.times, time_ns) - 1
        if place < 0 or time_ns - self.times[place] > oldest_ns:
            return None
        return self.values[place]

    def next(self, time_ns: int, latest_ns: int) -> Any:
        """Not before `time_ns` and no later than so behind it; None for none."""
        place = bisect.bisect_left(self.times, time_ns)
        if place == len(self.times) or self.times[place] - time_ns > latest_ns:
            return None
        return self.values[place]


class _Log:
    """Messages by kind."""

    def __init__(self) -> None:
        self.states, self.commands = _Timed(), _Timed()
        self._images, self._navs, self._resets = _Timed(), _Timed(), _Timed()
        self._asked = AskedTarget()
        self._ticks = TickReader()

    def take(self, message: Message) -> None:
        if message.stream is STATE:
            self.states.add(message.capture_ns, message.payload)
            if message.flags & FLAG_RESET:
                self._resets.add(message.capture_ns, True)
        elif message.stream is CAMERA:
            depth = np.nan_to_num(message.payload * _MM, nan=0.0, posinf=0.0, neginf=0.0)
            self._images.add(message.capture_ns, np.clip(depth, 0.0, 65535.0).astype(np.uint16))
        elif message.stream is TRACE:
            self._take_exchange(message.payload.tobytes())
        else:
            self._take_tick(message)

    def _take_exchange(self, record: bytes) -> None:
        try:
            exchange = Exchange.unpack(record)
            command, reply = exchange.command, exchange.reply
        except FrameError:
            return
        if command is not None and reply is not None:
            target = self._asked.take(command, reply)
            self.commands.add(exchange.handled_ns, target if reply.applied else None)

    def _take_tick(self, message: Message) -> None:
        try:
            tick = self._ticks.read(message)
        except FrameError:
            return
        nav: Any = tick.nav_command
        self._navs.add(tick.now_ns, np.zeros(3) if nav is None else np.asarray(nav))

    def frame(self, at_ns: int, period_ns: int, shape: tuple[int, int] | None) -> Frame | None:
        """The frame of a moment; None where the robot followed no command, or was put down."""
        state = self.states.newest(at_ns, _OLDEST_NS)
        action = self.commands.next(at_ns, _OLDEST_NS)
        if state is None or action is None or self._resets.newest(at_ns, period_ns):
            return None
        command = self._navs.newest(at_ns, _OLDEST_NS)
        depth = None
        if shape is not None:
            image = self._images.newest(at_ns, _OLDEST_IMAGE_NS)
            if image is None or image.size != shape[0] * shape[1]:
                return None
            depth = image.reshape(*shape, 1)
        return Frame(
            state=np.asarray(state, np.float32),
            action=np.asarray(action, np.float32),
            command=np.asarray(np.zeros(3) if command is None else command, np.float32),
            depth_mm=depth,
        )


def _image_shape(recording: Recording) -> tuple[int, int] | None:
    """Height and width of the depth images; None where there are none."""
    if not recording.overview().messages.get(CAMERA.name):
        return None
    camera: Any = recording.run.hellos.get("hal", {}).get("camera") or {}
    height, width = camera.get("height"), camera.get("width")
    if not isinstance(height, int) or not isinstance(width, int):
        return None
    return height, width


def _joints(facts: RunFacts) -> tuple[str, ...]:
    robot: Any = facts.hellos.get("hal", {}).get("robot") or {}
    names = robot.get("joint_names")
    size = STATE.slices["joint_pos"].stop - STATE.slices["joint_pos"].start
    if isinstance(names, list) and len(names) == size:
        return tuple(str(name) for name in names)
    return tuple(f"joint_{i}" for i in range(size))


def _task(facts: RunFacts) -> str:
    if facts.course is None:
        return "walk"
    difficulty = "" if facts.difficulty is None else f" at difficulty {facts.difficulty:g}"
    return f"walk the course {facts.course}{difficulty}"


def _library() -> Any:
    try:
        from lerobot.datasets.lerobot_dataset import (  # pyright: ignore[reportMissingImports]
            LeRobotDataset,
        )
    except ImportError as error:
        raise UsageError(
            f"LeRobot cannot be imported here ({error}); it needs its own environment with Python "
            "3.12: see krabby export-lerobot --help"
        ) from error
    return LeRobotDataset
