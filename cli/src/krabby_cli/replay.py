"""`krabby replay`: compute every command of a recorded run again, and compare."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from krabby_proto.recording import Recording

from krabby_cli.endpoints import add_endpoint_options, endpoints_of
from krabby_cli.errors import CliError, UsageError, writing
from krabby_cli.options import POLICY_HELP, add_command, flag, option, print_json, print_line

if TYPE_CHECKING:
    from krabby.control.policy_manager import PolicyRunner
    from krabby.control.replay import Replayer
    from krabby.robot.description import RobotDescription

    from krabby_cli.replay_compare import Comparison

__all__ = ["add_parser"]

_PROGRESS_S: Final = 5.0
_SHOWN_JOINTS: Final = 6
_PLOT_SUFFIXES: Final = (".png", ".svg", ".pdf")

_DESCRIPTION: Final = """\
Give the inputs of a recorded run to the game loop's own controller, tick by tick, and compare its
joint targets with the recorded ones, byte by byte. On the processor and with the ONNX Runtime of
the run they are the same. A part of a run, such as a black box, is replayed from its first snapshot
of the controller, at most 100 ticks behind its beginning.
"""
_EPILOG: Final = """\
examples:
  krabby replay run.mcap
  krabby replay run.mcap --policy gait --plot gait.png      what another policy would have answered
  krabby replay run.mcap --publish                          the recorded streams, as if it ran now

With --policy or --backend the inputs stay the recorded ones: the robot of the recording does not
react to the other commands. `krabby incidents rerun` simulates it.
Exit status: 0 when every command is the same, byte for byte; 1 when one differs or ticks are
missing; 2 when nothing was replayed. With --policy or --backend 0 unless ticks are missing.
"""


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands, "replay", run, "compute a recorded run again", _DESCRIPTION, _EPILOG
    )
    parser.add_argument("recording", type=Path, metavar="FILE", help="MCAP file of a run")
    option(parser, "--policy", "NAME", "", f"walk with another {POLICY_HELP}")
    option(
        parser, "--backend", None, "", "run the networks on another back end",
        choices=("onnxruntime", "tensorrt"),
    )  # fmt: skip
    option(
        parser, "--plot", "FILE", None,
        "draw the difference, .png, .svg or .pdf (default: beside FILE when something differs)",
        type=Path,
    )  # fmt: skip
    option(parser, "--robot", "NAME", "", "robot in place of the recorded one")
    flag(parser, "--json", "print the comparison as one line of JSON")
    flag(
        parser, "--publish",
        "publish the recorded streams with their original timing instead; refused beside a HAL",
    )  # fmt: skip
    add_endpoint_options(parser)


def run(args: argparse.Namespace) -> int:
    recording = Recording(args.recording)
    if args.publish:
        from krabby_cli.replay_publish import publish

        return publish(recording, endpoints_of(args))
    if args.plot is not None and args.plot.suffix.lower() not in _PLOT_SUFFIXES:
        raise UsageError(f"{args.plot}: choose a name ending in {', '.join(_PLOT_SUFFIXES)}")
    other = args.policy or args.backend
    comparison = _compare(recording, args)
    if args.json:
        print_json(comparison.facts())
    else:
        _tell(args.recording, comparison)
    _draw(comparison, args)
    if comparison.gaps or recording.damage:
        return 1
    return 0 if other or comparison.exact else 1


def _compare(recording: Recording, args: argparse.Namespace) -> Comparison:
    # Replaying loads ONNX Runtime; the help does without.
    import logging

    import structlog
    from krabby.control.errors import ControlError
    from krabby.control.replay import Replayer
    from krabby.robot.assets import choose_robot
    from krabby.robot.description import RobotDescription

    from krabby_cli.replay_compare import Comparison

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    choose_robot(args.robot or recording.run.robot or "")
    desc = RobotDescription.load()
    replayer = Replayer(desc, load=_loader(args.backend), policy=args.policy)
    comparison = Comparison(desc.joint_names)
    try:
        _step_all(recording, replayer, comparison)
    except ControlError as error:
        raise CliError(f"{recording.path}: {error}") from error
    if not comparison.seen:
        raise CliError(
            f"{recording.path} has no stream 'ticks': it holds no inputs of the game loop; record "
            "the run again with all streams"
        )
    comparison.finish(replayer, recording.damage)
    return comparison


def _step_all(recording: Recording, replayer: Replayer, comparison: Comparison) -> None:
    shown_s = time.monotonic()
    for tick in recording.ticks():
        comparison.note(tick, replayer.step(tick))
        if time.monotonic() - shown_s > _PROGRESS_S:
            shown_s = time.monotonic()
            sys.stderr.write(f"krabby replay: {comparison.seen} ticks\n")


def _loader(backend: str) -> Any:
    """How policies are loaded: for a back end, if one is named."""
    from krabby.control.policy_manager import load_runner

    if backend != "tensorrt":
        return load_runner
    from krabby.policy.tensorrt.backend import Quiet, open_backend
    from krabby.policy.tensorrt.config import InferenceCfg

    engines = open_backend(InferenceCfg(backend="tensorrt", allow_fallback=False), Quiet())

    def load(name: str, desc: RobotDescription, rate_hz: float) -> PolicyRunner:
        return load_runner(name, desc, rate_hz, engines)

    return load


def _tell(path: Path, comparison: Comparison) -> None:
    for line in comparison.lost:
        print_line(f"{path}: {line}")
    if comparison.damage:
        print_line(f"{path} is not complete: {comparison.damage}")
    for line in comparison.differences:
        print_line(f"not as in the run: {line}")
    walked = ", ".join(
        f"{name} {seconds:.0f} s" for name, seconds in sorted(comparison.policy_s.items())
    )
    what = f"{path}: {comparison.replayed} ticks, {comparison.duration_s:.1f} s ({walked})"
    if comparison.exact:
        print_line(f"{what}: 0 differing bytes")
        return
    assert comparison.first is not None
    print_line(
        f"{what}: {comparison.differing_bytes} differing bytes in {comparison.differing_ticks} "
        f"ticks, the first at {comparison.first.time_s:.2f} s (tick {comparison.first.tick})"
    )
    if comparison.silent_ticks:
        print_line(f"{comparison.silent_ticks} ticks were silent on one side alone")
    for joint, largest_rad, time_s in comparison.largest()[:_SHOWN_JOINTS]:
        print_line(f"  {joint:<16} up to {largest_rad:.3g} rad, at {time_s:.2f} s")


def _draw(comparison: Comparison, args: argparse.Namespace) -> None:
    path = args.plot
    if path is None:
        if comparison.exact or not (args.policy or args.backend):
            return
        path = args.recording.with_suffix(".replay.png")
    try:
        from krabby_cli.replay_picture import plot_difference
    except ImportError as error:
        if args.plot is None:
            return
        raise UsageError(
            f"--plot {path} needs matplotlib; install it with: pip install matplotlib"
        ) from error
    with writing(path):
        plot_difference(comparison, args.policy or args.backend or "replay", path)
    sys.stderr.write(f"krabby replay: drawn to {path}\n")
