"""`krabby up`, or `krabby sim`: run simulator, camera and game loop as three supervised processes.

A service that dies after its start is started again, three times a minute at most; the run then
counts as failed. In lock-step its death ends the run.

Course, policy, ports and recording are checked before anything starts. The last line on stdout is
one JSON object, however the run ended.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from krabby.control.config import DEFAULT_POLICY
from krabby.robot.assets import choose_robot, robot_name
from krabby.runtime.logging import configure_logging
from krabby.runtime.output import Output, descriptor

from krabby_cli.display import Echo, LiveDisplay, PlainDisplay, RunView
from krabby_cli.endpoints import BASE_PORT, RUN_FILE
from krabby_cli.errors import CliError, ServiceDied, StartTimeout, UsageError
from krabby_cli.options import (
    POLICY_HELP,
    add_command,
    add_course_options,
    flag,
    option,
)  # fmt: skip
from krabby_cli.outcome import outcome_lines, own_name
from krabby_cli.plan import Plan, check_settings, make_plan
from krabby_cli.progress import Progress
from krabby_cli.signals import Signals
from krabby_cli.summary import CpuMeter, ExitState, RunEnd, build_summary
from krabby_cli.supervise import Supervisor
from krabby_cli.view import DEFAULT_PORT
from krabby_cli.view.access import url

__all__ = ["add_parser", "carry_out", "run_plan"]

_STOP_ORDER: Final = ("view", "relay", "gameloop", "camera", "sim-hal", "recorder")
_TICK_S: Final = 0.1
_RESTARTS: Final = 3
"""How often in a minute a service that died is started again, in real time."""
_SAMPLE_TICKS: Final = 10
_TELL_S: Final = 1.0
"""Longest time for the summary to be printed; it is in the run's folder as well [s]."""

_EPILOG: Final = """\
examples:
  krabby up --duration 30 --course steps --difficulty 0.3
  krabby up --policy assets/policies/gait --record run.mcap
  krabby up --speed 0 --duration 60 --seed 4        lock-step: repeats exactly for a seed
  krabby up --backend isaaclab --course flat --policy gait     in the scene of training
  krabby up --set gameloop.phase_s=0.002 --set sim-hal.mission.speed=0.2

At the end the outcome is on stderr in words; the last line on stdout is one JSON object, also
after Ctrl-C. Logs are in runs/<time>-<run id>/.
Exit status: 0 after the duration or a signal, 1 when a process failed, also one that was restarted,
2 when nothing was started.
"""


def add_parser(commands: Any) -> None:
    text = "run simulator, camera and game loop"
    parser = add_command(commands, "up", run, text, __doc__, _EPILOG, aliases=("sim",))
    text = "length of the run from when all are ready, simulated time in lock-step; 0: until Ctrl-C"
    option(parser, "--duration", "S", 0.0, text)
    flag(parser, "--until-over", "end when the course is completed or the robot has fallen")
    add_course_options(parser, "seed of the course's layout and of the noise", of_policy=True)
    option(parser, "--policy", "NAME", DEFAULT_POLICY, POLICY_HELP)
    text = "whose physics; isaaclab needs the trainer's environment (make train-setup)"
    option(parser, "--backend", None, "mujoco", text, choices=("mujoco", "isaaclab"))
    option(parser, "--robot", "NAME", robot_name(), "folder of the assets folder")
    option(parser, "--speed", None, 1, "1: real time, 0: lock-step", choices=(0, 1))
    flag(
        parser,
        "--in-process",
        "run the services as threads of this process, for a debugger or a profiler; "
        "needs --speed 0, same trajectory",
    )
    flag(parser, "--no-camera", "run without a depth camera")
    parser.add_argument(
        "--view",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="show and drive the run in a browser, see `krabby view` (default: in real time)",
    )
    text = "port of that page; 0: a free one; if it is taken, a free one too"
    option(parser, "--view-port", "N", DEFAULT_PORT, text)
    option(parser, "--record", "FILE", None, "record all streams to this MCAP file", type=Path)
    flag(parser, "--no-black-box", "do not keep the last minute for incidents")
    text = (
        "Unix sockets of this user, plain TCP on the loopback interface for all users, or memory "
    )
    text += "of one process, which is --in-process"
    option(parser, "--transport", None, "ipc", text, choices=("ipc", "tcp", "inproc"))
    text = "first port, and one folder of sockets per number; 0: free ports, a new folder"
    option(parser, "--base-port", "N", BASE_PORT, text)
    text = "address for clients with keys, also of other hosts: see `krabby relay` (default: none)"
    option(parser, "--listen", "HOST", None, text)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="SERVICE.KEY=VALUE",
        help="set one key of a service's configuration; repeatable",
    )
    option(parser, "--runs-dir", "DIR", Path("runs"), "folder that gets the run's folder")
    text = "longest wait until all are ready (default 60, with isaaclab 600)"
    option(parser, "--start-timeout", "S", None, text, type=float)


def run(args: argparse.Namespace) -> int:
    args.in_process |= args.transport == "inproc"
    try:
        choose_robot(args.robot)
        plan = make_plan(args)
        check_settings(plan, args.settings)
    except KeyboardInterrupt:
        raise CliError("interrupted before anything was started") from None
    return run_plan(plan, in_process=args.in_process)


def run_plan(plan: Plan, *, in_process: bool = False) -> int:
    """Carry out a planned run; prints the summary and returns the exit status."""
    summary = _carry_out_in_process(plan) if in_process else carry_out(plan, _display)
    lines = outcome_lines(summary, plan.recording, lockstep=plan.lockstep)
    PlainDisplay().say("\n".join(lines))
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


def carry_out(plan: Plan, make_display: Callable[[Plan], PlainDisplay]) -> dict[str, Any]:
    """Start, watch and stop a planned run; returns its summary, which is also in its folder.

    SIGINT, SIGTERM and SIGHUP end it in order.
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
            specs=plan.children,
            folder=plan.folder,
            env=_environment(plan.run_id),
            stop_order=_STOP_ORDER,
            echo=Echo(display.say),
            # In lock-step a run repeats exactly or has failed.
            restarts=0 if plan.lockstep else _RESTARTS,
            is_impatient=lambda: signals.count > 1,
        )
        with supervisor:
            end = _Watch(plan, supervisor, progress, display, signals).run()
        reports = {name: child.summary for name, child in supervisor.children.items()}
        return _written(plan, build_summary(plan, end, reports, progress.figures))


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
    outcome = RunEnd(end, reason, time.monotonic() - began_s)
    return _written(plan, build_summary(plan, outcome, reports, {}))


@dataclass
class _Watch:
    """The time between start and stop of one run."""

    plan: Plan
    supervisor: Supervisor
    progress: Progress
    display: PlainDisplay
    signals: Signals
    _ready_s: float | None = None
    _walking: bool = False
    _meter: CpuMeter | None = None
    _told: int = 0
    _address: str = ""
    """Of the page that shows the run, as it was told."""

    def run(self) -> RunEnd:
        """Start, watch until the end and stop the processes."""
        end: ExitState = "failed"
        try:
            self.supervisor.start()
            end, reason = self._watch()
        except CliError as error:
            reason = str(error).partition("\n")[0]
            self.display.say(f"krabby up: {error}")
        else:
            self.display.say(f"{reason}: stopping; a standing robot sits down first")
        duration_s, cores, machine = 0.0, {}, None
        if self._ready_s is not None and self._meter is not None:
            duration_s = time.monotonic() - self._ready_s
            self._sample(self._meter)
            cores, machine = self._meter.cores(), self._meter.machine
        bad = [
            f"{name} ended with status {status} when it was stopped, log "
            f"{self.supervisor.children[name].log_path}"
            for name, status in self.supervisor.stop().items()
            if status != 0
        ]
        bad = [death.partition("\n")[0] for death in self.supervisor.deaths] + bad
        if bad and end != "failed":
            end, reason = "failed", "; ".join(bad)
            self.display.say(f"krabby up: {reason}")
        return RunEnd(end, reason, duration_s, cores, machine)

    def _watch(self) -> tuple[ExitState, str]:
        started = time.monotonic()
        for tick in itertools.count():
            ended = self.supervisor.poll()
            self._tell_deaths()
            self._tell_view()
            self.progress.poll()
            now = time.monotonic()
            if self.signals.count:
                return "interrupted", self.signals.name
            if ended is not None:
                return self._after_end_of(ended)
            if self._ready_s is None:
                self._while_starting(now - started)
            elif self._time_is_up(now):
                return "finished", "the time is up"
            elif self.plan.until_over and self.progress.is_over:
                return "finished", "the robot has fallen or completed the course"
            elif tick % _SAMPLE_TICKS == 0 and self._meter is not None:
                self._sample(self._meter)
            self._show(now)
            time.sleep(_TICK_S)
        raise AssertionError("ticks never end")

    def _tell_deaths(self) -> None:
        for death in self.supervisor.deaths[self._told :]:
            self.display.say(f"krabby up: {death}\n  started again")
        self._told = len(self.supervisor.deaths)

    def _tell_view(self) -> None:
        """Print the address of the page, once the process that serves it listens."""
        child, tokens = self.supervisor.children.get("view"), self.plan.view
        port = child.running.get("port") if child is not None else None
        if tokens is None or not isinstance(port, int):
            return
        address = url("127.0.0.1", port, tokens.operate)
        if address != self._address:
            self._address = address
            self.display.say(f"see and drive it: {address}")

    def _time_is_up(self, now: float) -> bool:
        """In lock-step the simulator counts its own time and ends by itself."""
        assert self._ready_s is not None
        duration_s = 0.0 if self.plan.lockstep else self.plan.duration_s
        return 0 < duration_s <= now - self._ready_s

    def _after_end_of(self, name: str) -> tuple[ExitState, str]:
        if self._ready_s is None and not self.supervisor.children[name].summary:
            raise ServiceDied(
                f"{name} ended before the others were ready, log "
                f"{self.supervisor.children[name].log_path}"
            )
        return "finished", f"{name} ended by itself"

    def _while_starting(self, elapsed_s: float) -> None:
        if self.supervisor.all_ready:
            self._ready_s = time.monotonic()
            name = own_name()
            self.display.say(
                f"running; in another terminal: {name} teleop drives, {name} estop stops"
            )
            pids = {name: child.pid for name, child in self.supervisor.children.items()}
            self._meter = CpuMeter(pids)
        elif elapsed_s > self.plan.start_timeout_s:
            waiting = self.supervisor.not_ready
            raise StartTimeout(
                f"{', '.join(waiting)} not ready after {self.plan.start_timeout_s:g} s; see the "
                f"logs in {self.plan.folder}, or give --start-timeout more"
            )

    def _sample(self, meter: CpuMeter) -> None:
        meter.sample()
        if not self._walking and self.progress.has_walked:
            self._walking = True
            meter.mark()

    def _show(self, now: float) -> None:
        children = self.supervisor.children.items()
        states = {name: "ready" if child.is_ready else "starting" for name, child in children}
        view = RunView(
            title=self.plan.title,
            elapsed_s=None if self._ready_s is None else now - self._ready_s,
            duration_s=0.0 if self.plan.lockstep else self.plan.duration_s,
            progress=self.progress.describe(),
            states=states,
            cores=self._meter.recent() if self._meter else {},
        )
        self.display.update(view)


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
    text = json.dumps(record, indent=2)
    try:
        plan.folder.mkdir(parents=True)
        (plan.folder / RUN_FILE).write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"cannot make {plan.folder} ({error.strerror}); give a writable --runs-dir"
        ) from error


def _display(plan: Plan) -> PlainDisplay:
    if sys.stdout.isatty():
        names = {child.name for child in plan.children}
        ports = {n: port for n, port in plan.wiring.metrics_ports.items() if n in names}
        return LiveDisplay(plan.wiring.endpoints, ports)
    display = PlainDisplay()
    display.say(plan.title)
    return display


def _written(plan: Plan, summary: dict[str, Any]) -> dict[str, Any]:
    """The summary, once it is in the run's folder; a full disk does not keep it from stdout."""
    path = plan.folder / "summary.json"
    try:
        path.write_text(f"{json.dumps(summary)}\n", encoding="utf-8")
    except OSError as error:
        sys.stderr.write(f"krabby up: cannot write {path}: {error.strerror}\n")
    return summary
