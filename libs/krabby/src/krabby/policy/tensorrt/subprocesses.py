"""What TensorRT may crash or hang in happens in another process: asking for it, and building.

A child is this module run as a program, `python -m krabby.policy.tensorrt.subprocesses WHAT`: its
job comes as JSON on stdin, its answers go as JSON lines to stdout, and what TensorRT writes lands
on stderr. It ends when its parent does, and a build has the lowest priority there is.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Protocol, cast

import msgspec

from krabby.policy.tensorrt.device import Device, DeviceApi, resolve
from krabby.policy.tensorrt.engine import BuildOptions, Shapes, Toolkit
from krabby.policy.tensorrt.errors import BuildFailed, InferenceError, Interrupted, NoDevice

__all__ = ["Built", "Platform", "Watch", "build_in_child", "main", "probe"]

_POLL_S = 0.1
_PROBE_TIMEOUT_S = 60.0
"""The first contact with a driver may take seconds: it creates its caches."""
_REPORT_EVERY_S = 0.25
_TAIL = 600
"""Characters of a child's stderr that an error repeats."""


class Watch(Protocol):
    """Who has to know that this takes a while; `krabby.runtime.app.Runtime` is one."""

    @property
    def stopping(self) -> bool:
        """Whether to give up."""
        ...

    def beat(self) -> None:
        """Called several times a second."""
        ...

    def doing(self, what: str) -> None:
        """What takes a while; "" when nothing does any more."""
        ...


class Platform(msgspec.Struct, frozen=True, kw_only=True):
    """What to build and run with, as references that a child process can resolve."""

    toolkit: str
    """`engine.Toolkit`."""
    device_api: str
    """`device.DeviceApi`."""


class Built(msgspec.Struct, frozen=True, kw_only=True):
    """What a build gave."""

    plan: bytes
    timings: bytes
    seconds: float


class _Job(msgspec.Struct, frozen=True, kw_only=True):
    platform: Platform
    model: str = ""
    """Paths of files."""
    timings: str = ""
    plan: str = ""
    options: BuildOptions = BuildOptions()
    shapes: Shapes = {}


class _Line(msgspec.Struct, omit_defaults=True):
    """What a child says."""

    doing: str = ""
    share: float = 0.0
    error: str = ""
    kind: str = ""
    device: Device | None = None
    toolkit_version: str = ""


def probe(platform: Platform, watch: Watch) -> tuple[Device, str]:
    """Asks whether there is a GPU and a TensorRT, in a way that cannot end this process.

    Returns:
        The device, and the toolkit's version.

    Raises:
        NoDevice: Something is missing; says what.
        Interrupted: `watch` said stop.
    """
    answer = _Line()

    def hear(line: _Line) -> None:
        nonlocal answer
        answer = line

    try:
        _run_child("probe", _Job(platform=platform), _PROBE_TIMEOUT_S, watch, hear)
    except (BuildFailed, OSError) as error:
        raise NoDevice(f"asking for a GPU failed: {error}") from error
    if answer.device is None:
        raise NoDevice("asking for a GPU gave no answer")
    return answer.device, answer.toolkit_version


def build_in_child(
    platform: Platform,
    model: bytes,
    options: BuildOptions,
    shapes: Shapes,
    *,
    timings: bytes,
    timeout_s: float,
    watch: Watch,
    report: Callable[[str, float], None],
) -> Built:
    """Builds an engine and loads it once, in a child process.

    Args:
        platform: What to build with.
        model: The ONNX file.
        options: How.
        shapes: Of the inputs.
        timings: Of an earlier build on this device.
        timeout_s: The child is killed after this long [s].
        watch: Beaten while it lasts; its `stopping` kills the child.
        report: Told what is being done and the share of it that is done.

    Raises:
        BuildFailed: TensorRT refused, crashed or took too long.
        Interrupted: `watch` said stop.
    """
    try:
        return _build_in(platform, model, options, shapes, timings, timeout_s, watch, report)
    except OSError as error:
        raise BuildFailed(
            f"cannot build ({error}); make room in {tempfile.gettempdir()}, or name another folder "
            "in TMPDIR"
        ) from error


def _build_in(
    platform: Platform,
    model: bytes,
    options: BuildOptions,
    shapes: Shapes,
    timings: bytes,
    timeout_s: float,
    watch: Watch,
    report: Callable[[str, float], None],
) -> Built:
    with tempfile.TemporaryDirectory(prefix="krabby-engine-") as name:
        folder = Path(name)
        (folder / "model.onnx").write_bytes(model)
        (folder / "timings").write_bytes(timings)
        job = _Job(
            platform=platform,
            model=str(folder / "model.onnx"),
            timings=str(folder / "timings"),
            plan=str(folder / "plan"),
            options=options,
            shapes=shapes,
        )
        began_s = time.monotonic()
        _run_child("build", job, timeout_s, watch, lambda line: report(line.doing, line.share))
        return Built(
            plan=(folder / "plan").read_bytes(),
            timings=(folder / "timings").read_bytes(),
            seconds=time.monotonic() - began_s,
        )


def _run_child(
    what: str, job: _Job, timeout_s: float, watch: Watch, hear: Callable[[_Line], None]
) -> None:
    """Runs a child to its end; raises what it says, or how it ended."""
    deadline_s = time.monotonic() + timeout_s
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            [sys.executable, "-m", "krabby.policy.tensorrt.subprocesses", what],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,  # Ctrl-C is for us to handle
        )
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            with contextlib.suppress(BrokenPipeError):  # it died at once: its status says why
                child.stdin.write(msgspec.json.encode(job) + b"\n")
                child.stdin.flush()
            problem = _listen(child.stdout, deadline_s, timeout_s, watch, hear)
            status = child.wait(timeout=10.0)
        except subprocess.TimeoutExpired:
            raise BuildFailed(f"the {what} process does not end; it was killed") from None
        finally:
            # Its whole group: whatever it started must not go on building.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            for pipe in (child.stdin, child.stdout):
                with contextlib.suppress(BrokenPipeError):
                    if pipe is not None:
                        pipe.close()
        if problem is not None:
            raise problem
        if status != 0:
            raise BuildFailed(f"the {what} process {_ending(status)}{_tail(errors)}")


def _listen(
    stdout: IO[bytes],
    deadline_s: float,
    timeout_s: float,
    watch: Watch,
    hear: Callable[[_Line], None],
) -> InferenceError | None:
    """Takes a child's lines until it closes stdout; returns the error it told of."""
    problem: InferenceError | None = None
    buffer = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        while True:
            watch.beat()
            if watch.stopping:
                raise Interrupted("told to stop while building an engine")
            if time.monotonic() > deadline_s:
                raise BuildFailed(
                    f"not done after {timeout_s:g} s, killed; raise inference.build_timeout_s or "
                    "lower inference.optimization_level"
                )
            if not selector.select(_POLL_S):
                continue
            chunk = os.read(stdout.fileno(), 65536)
            if not chunk:
                return problem
            *lines, buffer = (buffer + chunk).split(b"\n")
            for text in lines:
                line = msgspec.json.decode(text, type=_Line)
                if line.error:
                    problem = (NoDevice if line.kind == "NoDevice" else BuildFailed)(line.error)
                else:
                    hear(line)


def _ending(status: int) -> str:
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"


def _tail(errors: IO[bytes]) -> str:
    errors.seek(0)
    text = " ".join(errors.read().decode(errors="replace").split())
    return f": …{text[-_TAIL:]}" if text else ""


# --- in the child ------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """The child process."""
    what = (sys.argv[1:] if argv is None else argv)[0]
    _behave()
    say = _Speaker()
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=_Job)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        if what == "probe":
            _answer_probe(job, say)
        else:
            _build(job, say)
    except InferenceError as error:
        say(_Line(error=str(error), kind=type(error).__name__), force=True)
    return 0


def _answer_probe(job: _Job, say: _Speaker) -> None:
    # The driver first: without one, entering TensorRT ends the process.
    device = cast("DeviceApi", resolve(job.platform.device_api)()).describe()
    toolkit = cast("Toolkit", resolve(job.platform.toolkit)())
    say(_Line(device=device, toolkit_version=toolkit.version), force=True)


def _build(job: _Job, say: _Speaker) -> None:
    toolkit = cast("Toolkit", resolve(job.platform.toolkit)())
    plan, timings = toolkit.build(
        Path(job.model).read_bytes(),
        job.options,
        job.shapes,
        Path(job.timings).read_bytes(),
        lambda doing, share: say(_Line(doing=doing, share=share)),
    )
    # An engine that crashes when it is loaded shall do so here.
    toolkit.load(plan)
    Path(job.plan).write_bytes(plan)
    Path(job.timings).write_bytes(timings)


class _Speaker:
    """Writes lines to what was stdout, not too many a second."""

    def __init__(self) -> None:
        # TensorRT writes to stdout too; that goes to stderr, and the lines have a pipe alone.
        self._pipe = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)
        self._last_s = 0.0

    def __call__(self, line: _Line, *, force: bool = False) -> None:
        now_s = time.monotonic()
        if force or now_s - self._last_s >= _REPORT_EVERY_S:
            self._last_s = now_s
            self._pipe.write(msgspec.json.encode(line) + b"\n")
            self._pipe.flush()


def _behave() -> None:
    """Neither the loop's priority nor its core, whoever started this."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    with contextlib.suppress(OSError):
        os.nice(19)


def _end_with_parent() -> None:
    while os.read(0, 1):  # not sys.stdin: its lock would be held when the interpreter ends
        pass
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
