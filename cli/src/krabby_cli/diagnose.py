"""`krabby diagnose`: what a recorded run says about wiring, mounting and timing of the robot.

Looks for joints of the wrong sign or exchanged, wrong units, a turned IMU, flipped gravity, delay,
gains, a tilted or mirrored camera, stale contacts, and for observations that the policy was not
trained on. Ten seconds of walking are enough; a robot that cannot walk is judged by how it lies and
stands.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from krabby.robot.description import RobotDescription
from krabby_proto import ProtoError

from krabby_cli.errors import UsageError
from krabby_cli.options import POLICY_HELP, add_command, flag, option, print_json, print_line

if TYPE_CHECKING:
    from krabby.diagnosis.diagnose import Diagnosis
    from krabby.policy.observation import ObservationLayout
    from krabby.policy.statistics import ObservationStatistics
    from krabby_proto.recording import Recording

__all__ = ["add_parser", "policy_of"]

_EPILOG: Final = """\
examples:
  make sim DURATION=15 RECORD=run.mcap
  krabby diagnose run.mcap
  krabby diagnose run.mcap --json

Exit status: 0 when nothing is wrong, 1 when something is, 2 when the file cannot be diagnosed.
"""


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands, "diagnose", run, "find what is wired or mounted wrongly, from a recording",
        __doc__, _EPILOG,
    )  # fmt: skip
    parser.add_argument("file", type=Path, metavar="FILE", help="MCAP file of `krabby record`")
    option(parser, "--policy", "NAME", "", f"{POLICY_HELP}; default: the one that was recorded")
    flag(parser, "--json", "one JSON object in place of text")


def run(args: argparse.Namespace) -> int:
    # NumPy's linear algebra and the checks load when they are needed.
    from krabby.diagnosis.diagnose import diagnose
    from krabby.diagnosis.log import RunLog
    from krabby_proto.recording import Recording

    desc = RobotDescription.load()
    if sys.stderr.isatty():
        sys.stderr.write(f"reading {args.file} ...\n")
    try:
        recording = Recording(args.file)
        log = RunLog.of_recording(recording)
        layout, statistics = policy_of(recording, args.policy, desc)
    except ProtoError as error:
        raise UsageError(str(error)) from error
    diagnosis = diagnose(log, desc, layout=layout, statistics=statistics)
    if args.json:
        print_json(diagnosis.to_dict())
    else:
        print_line(_text(args.file, diagnosis, log.duration_s))
    return 1 if diagnosis.findings else 0


def policy_of(
    recording: Recording, name: str, desc: RobotDescription
) -> tuple[ObservationLayout | None, ObservationStatistics | None]:
    """What the policy observes, and what it observed where it was evaluated.

    Args:
        recording: names the policy that was chosen at the start.
        name: of another one; empty for that one, which may be missing here.
        desc: the robot.

    Raises:
        BundleError: the policy that was asked for cannot be used.
    """
    from krabby.policy.bundle import PolicyBundle, bundle_dir
    from krabby.policy.statistics import load_statistics
    from krabby.robot.errors import BundleError

    recorded = recording.run.policies
    wanted = name or (str(recorded[0].get("name", "")) if recorded else "")
    if not wanted:
        return None, None
    try:
        bundle = PolicyBundle.load(bundle_dir(wanted), desc)
        return bundle.observation, load_statistics(bundle)
    except BundleError:
        if name:
            raise
        return None, None


def _text(path: Path, diagnosis: Diagnosis, duration_s: float) -> str:
    lines = []
    if not diagnosis.findings:
        lines.append(f"{path}: nothing wrong in {duration_s:.1f} s")
    for rank, finding in enumerate(diagnosis.findings, 1):
        where = f" {', '.join(finding.where)}" if finding.where else ""
        term = f" ({finding.term})" if finding.term else ""
        lines.append(f"{rank}. {finding.kind}{where}{term}, {finding.score:.1f} times the limit")
        lines.append(f"   {finding.evidence}")
        lines.append(f"   remedy: {finding.remedy}")
    lines += [f"note: {note}" for note in diagnosis.notes]
    return "\n".join(lines)
