"""`krabby report`: one HTML page of a recorded run, without other files and hosts.

Summary, diagnosis, film, path on the course, gate and faults over time, commanded and walked
velocity, gait diagram, torques against the drives' limits, ages, depth pictures. It opens in any
browser, also on a phone, and can be attached to a mail or an issue.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from krabby.course.courses import make_course
from krabby.robot.description import RobotDescription
from krabby.robot.errors import RobotError
from krabby_proto import ProtoError

from krabby_cli.errors import UsageError, writing
from krabby_cli.options import add_command, flag, option, print_line

if TYPE_CHECKING:
    from krabby.course.courses import Course
    from krabby_proto.recording import RunFacts

__all__ = ["add_parser"]

_FILM_LIMIT: Final = 4_000_000
_FILM_S: Final = 600.0
_TOO_LATE: Final = -1000
_FILM_WIDTH: Final = 320
_FILM_FPS: Final = 5.0
_EPILOG: Final = """\
examples:
  make sim DURATION=25 COURSE=steps RECORD=run.mcap
  krabby report run.mcap                    writes run.html
  krabby report run.mcap --no-film --out /tmp/page.html
"""


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands, "report", run, "one HTML page of a recorded run", __doc__, _EPILOG
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="MCAP file of `krabby record`")
    option(parser, "--out", "PAGE", "", "page to write; default: FILE with .html")
    flag(parser, "--no-film", "leave out the film, which takes most of the time")


def run(args: argparse.Namespace) -> int:
    # The diagnosis and the drawing load when they are needed.
    from krabby.diagnosis.diagnose import diagnose
    from krabby_proto.recording import Recording

    from krabby_cli.diagnose import policy_of
    from krabby_cli.report_data import gather
    from krabby_cli.report_page import page

    out = Path(args.out) if args.out else args.file.with_suffix(".html")
    if out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--out {out}: a page's name ends in .html")
    desc = RobotDescription.load()
    notes: list[str] = []
    try:
        _say(f"reading {args.file}")
        recording = Recording(args.file)
        data = gather(recording)
        facts = recording.run
    except ProtoError as error:
        raise UsageError(str(error)) from error
    layout, statistics = policy_of(recording, "", desc)
    _say("diagnosing")
    diagnosis = diagnose(data.log, desc, layout=layout, statistics=statistics)
    course = _course(facts, notes)
    film = None
    if args.no_film:
        notes.append("film: --no-film was given")
    elif course is None or not data.base_pos_w:
        notes.append("film: only a run in simulation, with course and ground truth, can be drawn")
    else:
        _say("drawing the film")
        film = _film(args.file, notes)
    text = page(args.file.name, data, facts, desc, diagnosis, course=course, film=film, notes=notes)
    with writing(out):
        out.write_text(text, encoding="utf-8")
    print_line(f"wrote {out}: {len(text) / 1e6:.1f} MB")
    return 0


def _say(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"{text} ...\n")


def _course(facts: RunFacts, notes: list[str]) -> Course | None:
    if facts.course is None:
        return None
    try:
        course = make_course(facts.course, facts.difficulty or 0.0, facts.seed or 0)
    except RobotError as error:
        notes.append(f"course: {error}")
        return None
    if facts.course_hash and course.content_hash != facts.course_hash:
        notes.append("course: this version builds another course of that name")
        return None
    return course


def _film(path: Path, notes: list[str]) -> bytes | None:
    """An animation by `krabby film`, if it is small."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "film.webp"
        command = (
            sys.executable, "-m", "krabby_cli", "film", str(path), str(out),
            "--width", str(_FILM_WIDTH), "--fps", str(_FILM_FPS),
        )  # fmt: skip
        status, reason = _run_film(command)
        if status == _TOO_LATE:
            notes.append(f"film: not drawn within {_FILM_S:g} s; use `krabby film`")
            return None
        if status or not out.is_file():
            notes.append(f"film: {reason}")
            return None
        if out.stat().st_size > _FILM_LIMIT:
            size = out.stat().st_size / 1e6
            notes.append(f"film: it has {size:.1f} MB, more than a page should; use `krabby film`")
            return None
        return out.read_bytes()


def _run_film(command: Sequence[str]) -> tuple[int, str]:
    """Exit status, `_TOO_LATE` if it was killed for that, and the last line on its stderr.

    Its progress is shown on a terminal.
    """
    late = threading.Event()
    last = "no reason"
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:

        def give_up() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(_FILM_S, give_up)
        timer.start()
        try:
            assert process.stderr is not None
            for line in process.stderr:
                last = line.strip() or last
                if sys.stderr.isatty():
                    sys.stderr.write(f"  {last}\n")
            status = process.wait()
        finally:
            timer.cancel()
            process.kill()
    return _TOO_LATE if late.is_set() else status, last
