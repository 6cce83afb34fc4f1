"""`krabby up`: simulator, camera and game loop as three processes, from one command.

Everything that can be checked is checked before anything starts. The processes are supervised, and
the last line on stdout is one JSON object, however the run ended.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from krabby.course.courses import COURSES, MAX_DIFFICULTY
from krabby.runtime.logging import configure_logging
from krabby.runtime.output import Output, descriptor

from krabby_cli.display import Display, Echo, LiveDisplay, PlainDisplay, RunView
from krabby_cli.endpoints import BASE_PORT, RUN_FILE
from krabby_cli.errors import CliError, ServiceDied, StartTimeout, UsageError
from krabby_cli.plan import DEFAULT_COURSE, DEFAULT_POLICY, Plan, make_plan
from krabby_cli.progress import Progress
from krabby_cli.signals import Signals
from krabby_cli.summary import CpuMeter, ExitState, RunFacts, build_summary
from krabby_cli.supervise import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping


__all__ = ["add_parser", "carry_out", "run_plan"]

_STOP_ORDER: Final = ("gameloop", "camera", "sim-hal", "recorder")
_TICK_S: Final = 0.1
_SAMPLE_TICKS: Final = 10
_TELL_S: Final = 1.0
"""Longest time for the summary to be printed; it is in the run's folder as well [s]."""

_EPILOG: Final = """\
examples:
  krabby up --duration 30 --course steps --difficulty 0.3
  krabby up --policy assets/policies/gait --record run.mcap
  krabby up --speed 0 --duration 60 --seed 4        lock-step: repeats exactly for a seed
  krabby up --set gameloop.phase_s=0.002 --set sim-hal.mission.speed=0.2

The last line on stdout is one JSON object, also after Ctrl-C. Logs are in runs/<time>-<run id>/.
Exit status: 0 after the duration or a signal, 1 when a process failed, 2 when nothing was started.
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "up",
        help="start simulator, camera and game loop, watch them, sum up",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--duration",
        type=float,
        default=0.0,
        metavar="S",
        help="seconds from the moment all are ready (simulated seconds in lock-step); "
        "0 until Ctrl-C (default)",
    )
    parser.add_argument(
        "--until-over",
        action="store_true",
        help="end as soon as the course is completed or the robot has fallen",
    )
    parser.add_argument(
        "--course", default=DEFAULT_COURSE, help=f"one of {', '.join(COURSES)} (%(default)s)"
    )
    parser.add_argument(
        "--difficulty", type=float, default=0.5, metavar="D", help=f"0 to {MAX_DIFFICULTY} (0.5)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="layout and noise (0)")
    parser.add_argument(
        "--policy",
        default=DEFAULT_POLICY,
        help="name under assets/policies, or a folder (%(default)s)",
    )
    parser.add_argument(
        "--speed", type=int, choices=(0, 1), default=1, help="1 real time (default), 0 lock-step"
    )
    parser.add_argument(
        "--in-process",
        action="store_true",
        help="the services are threads of this process, for a debugger or a profiler; "
        "needs --speed 0, same trajectory",
    )
    parser.add_argument("--no-camera", action="store_true", help="run without depth camera")
    parser.add_argument("--record", type=Path, metavar="FILE", help="record all streams as MCAP")
    parser.add_argument(
        "--transport", choices=("tcp", "ipc"), default="tcp", help="loopback TCP or Unix sockets"
    )
    parser.add_argument(
        "--base-port",
        type=int,
        default=BASE_PORT,
        metavar="N",
        help=f"first port; 0 finds free ones (default {BASE_PORT})",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="SERVICE.KEY=VALUE",
        help="any key of a service's configuration; repeatable",
    )
    parser.add_argument(
        "--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="for logs (runs)"
    )
    parser.add_argument(
        "--start-timeout", type=float, default=60.0, metavar="S", help="default %(default)s s"
    )
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the subcommand; returns the exit status."""
    return run_plan(make_plan(args), in_process=args.in_process)


def run_plan(plan: Plan, *, in_process: bool = False) -> int:
    """Carry out a planned run; prints the summary and returns the exit status."""
    summary = _carry_out_in_process(plan) if in_process else carry_out(plan, _display)
    told = _tell(json.dumps(summary))
    return 1 if summary["exit"] == "failed" or not told else 0


def _tell(line: str) -> bool:
    """Print the summary; False when stdout is a pipe that is not read for `_TELL_S`."""
    fd = descriptor(sys.stdout)
    if fd is None:
        sys.stdout.write(f"{line}\n")
        return True
    sys.stdout.flush()
    out = Output(fd, lambda dropped: "")
    out.write(line)
    return out.flush(_TELL_S)


def carry_out(plan: Plan, make_display: Callable[[Plan], Display]) -> dict[str, Any]:
    """Start, watch and stop a planned run; returns its summary, which is also in its folder.

    SIGINT, SIGTERM and SIGHUP end it in order; the summary says so.
    """
    _make_folder(plan)
    signals = Signals()
    with contextlib.ExitStack() as stack:
        if plan.wiring.own_folder is not None:
            stack.callback(shutil.rmtree, plan.wiring.own_folder, ignore_errors=True)
        stack.enter_context(signals.caught())
        display = make_display(plan)
        stack.callback(display.close)
        progress = stack.enter_context(Progress(plan.wiring.endpoints["truth"]))
        supervisor = Supervisor(
            plan.children,
            plan.folder,
            env=_environment(plan.run_id),
            stop_order=_STOP_ORDER,
            echo=Echo(display.say),
            is_impatient=lambda: signals.count > 1,
        )
        watch = _Watch(plan, supervisor, progress, display, signals)
        with supervisor:
            watch.run()
    return _summary(plan, watch)


def _carry_out_in_process(plan: Plan) -> dict[str, Any]:
    """The same with threads in place of processes; their log is `services.log` in the folder."""
    # Loads every service; other commands, and images without them, do not need that.
    from krabby_cli.in_process import run_services

    _make_folder(plan)
    display, signals = PlainDisplay(), Signals()
    display.say(plan.title)
    reports: Mapping[str, Mapping[str, Any]] = {}
    began_s = time.monotonic()
    with (plan.folder / "services.log").open("w", encoding="utf-8") as log, signals.caught():
        configure_logging("krabby", plan.run_id, stream=log)
        try:
            reports = run_services(
                plan.configuration, run_id=plan.run_id, stopping=lambda: signals.count > 0
            )
            end: ExitState = "interrupted" if signals.count else "finished"
            reason = signals.name or "sim-hal ended by itself"
        except CliError as error:
            end, reason = "failed", str(error)
            display.say(f"krabby up: {error}")
    facts = _facts(plan, time.monotonic() - began_s, end, reason)
    return _written(plan, build_summary(facts, reports, {}))


class _Watch:
    """The time between start and stop of one run."""

    def __init__(
        self,
        plan: Plan,
        supervisor: Supervisor,
        progress: Progress,
        display: Display,
        signals: Signals,
    ) -> None:
        self._plan = plan
        self._supervisor = supervisor
        self._display = display
        self._signals = signals
        self._ready_s: float | None = None
        self._walking = False
        self._meter: CpuMeter | None = None
        self.progress = progress
        self.exit: ExitState = "failed"
        self.reason = ""
        self.duration_s = 0.0

    @property
    def reports(self) -> dict[str, dict[str, Any]]:
        """What each service said at its end."""
        return {name: child.summary for name, child in self._supervisor.children.items()}

    @property
    def cores(self) -> dict[str, float]:
        """Processor use while the robot walked, by service."""
        return self._meter.cores() if self._meter else {}

    @property
    def machine_cores(self) -> float | None:
        """Processor use of the whole machine in the same time."""
        return self._meter.machine if self._meter else None

    def run(self) -> None:
        """Until the end, for whatever reason; the processes are stopped then."""
        try:
            self._supervisor.start()
            self.exit, self.reason = self._watch()
        except CliError as error:
            self.reason = str(error).partition("\n")[0]
            self._display.say(f"krabby up: {error}")
        else:
            self._display.say(f"{self.reason}: stopping, a robot that stands sits down first")
        if self._ready_s is not None:
            self.duration_s = time.monotonic() - self._ready_s
            self._sample()
        statuses = self._supervisor.stop()
        bad = {name: status for name, status in statuses.items() if status != 0}
        if bad and self.exit != "failed":
            self.exit = "failed"
            self.reason = "; ".join(
                f"{name} ended with status {status} when it was stopped, log "
                f"{self._supervisor.children[name].log_path}"
                for name, status in bad.items()
            )
            self._display.say(f"krabby up: {self.reason}")

    def _watch(self) -> tuple[ExitState, str]:
        started = time.monotonic()
        for tick in _ticks():
            ended = self._supervisor.poll()
            self.progress.poll()
            now = time.monotonic()
            if self._signals.count:
                return "interrupted", self._signals.name
            if ended is not None:
                return self._after_end_of(ended)
            if self._ready_s is None:
                self._while_starting(now - started)
            elif self._time_is_up(now):
                return "finished", "the time is up"
            elif self._plan.until_over and self.progress.is_over:
                return "finished", "the robot has fallen or completed the course"
            elif tick % _SAMPLE_TICKS == 0:
                self._sample()
            self._show(now)
        raise AssertionError("ticks never end")

    def _time_is_up(self, now: float) -> bool:
        """In lock-step the simulator counts its own time and ends by itself."""
        assert self._ready_s is not None
        duration_s = 0.0 if self._plan.lockstep else self._plan.duration_s
        return 0 < duration_s <= now - self._ready_s

    def _after_end_of(self, name: str) -> tuple[ExitState, str]:
        if self._ready_s is None and not self._supervisor.children[name].summary:
            raise ServiceDied(
                f"{name} ended before the others were ready, log "
                f"{self._supervisor.children[name].log_path}"
            )
        return "finished", f"{name} ended by itself"

    def _while_starting(self, elapsed_s: float) -> None:
        if self._supervisor.all_ready:
            self._ready_s = time.monotonic()
            pids = {name: child.pid for name, child in self._supervisor.children.items()}
            self._meter = CpuMeter(pids)
        elif elapsed_s > self._plan.start_timeout_s:
            waiting = self._supervisor.not_ready
            raise StartTimeout(
                f"{', '.join(waiting)} not ready after {self._plan.start_timeout_s:g} s; see the "
                f"logs in {self._plan.folder}, or give --start-timeout more"
            )

    def _sample(self) -> None:
        assert self._meter is not None
        self._meter.sample()
        if not self._walking and self.progress.has_walked:
            self._walking = True
            self._meter.mark()

    def _show(self, now: float) -> None:
        states = {
            name: "ready" if child.is_ready else "starting"
            for name, child in self._supervisor.children.items()
        }
        view = RunView(
            title=self._plan.title,
            elapsed_s=None if self._ready_s is None else now - self._ready_s,
            duration_s=0.0 if self._plan.lockstep else self._plan.duration_s,
            progress=self.progress.describe(),
            states=states,
            cores=self._meter.recent() if self._meter else {},
        )
        self._display.update(view)


def _ticks() -> Generator[int, None, None]:
    tick = 0
    while True:
        yield tick
        tick += 1
        time.sleep(_TICK_S)


def _environment(run_id: str) -> dict[str, str]:
    """Of the children. One configuration file cannot fit three services, so none is passed on."""
    env = {key: value for key, value in os.environ.items() if key != "KRABBY_CONFIG"}
    env["KRABBY_RUN_ID"] = run_id
    # Idle helper threads of the linear algebra libraries only disturb a 100 Hz loop.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        env.setdefault(name, "1")
    return env


def _make_folder(plan: Plan) -> None:
    record = {
        "run_id": plan.run_id,
        "endpoints": dict(plan.wiring.endpoints),
        "metrics_ports": dict(plan.wiring.metrics_ports),
        "commands": {child.name: child.argv for child in plan.children},
    }
    try:
        plan.folder.mkdir(parents=True)
        text = json.dumps(record, indent=2)
        (plan.folder / RUN_FILE).write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"cannot make {plan.folder} ({error.strerror}); give a writable --runs-dir"
        ) from error


def _display(plan: Plan) -> Display:
    if sys.stdout.isatty():
        ports = {
            child.name: plan.wiring.metrics_ports[child.name]
            for child in plan.children
            if child.name in plan.wiring.metrics_ports
        }
        return LiveDisplay(plan.wiring.endpoints, ports)
    display = PlainDisplay()
    display.say(plan.title)
    return display


def _summary(plan: Plan, watch: _Watch) -> dict[str, Any]:
    facts = dataclasses.replace(
        _facts(plan, watch.duration_s, watch.exit, watch.reason),
        cpu_cores=watch.cores,
        machine_cores=watch.machine_cores,
    )
    return _written(plan, build_summary(facts, watch.reports, watch.progress.latest))


def _facts(plan: Plan, duration_s: float, end: ExitState, reason: str) -> RunFacts:
    return RunFacts(
        run_id=plan.run_id,
        policy=plan.policy,
        course=plan.course,
        difficulty=plan.difficulty,
        seed=plan.seed,
        duration_s=duration_s,
        cpu_cores={},
        exit=end,
        reason=reason,
        folder=str(plan.folder),
    )


def _written(plan: Plan, summary: dict[str, Any]) -> dict[str, Any]:
    """The summary, once it is in the run's folder."""
    (plan.folder / "summary.json").write_text(f"{json.dumps(summary)}\n", encoding="utf-8")
    return summary
