"""Child processes for what TensorRT may crash or hang in: asking for a GPU, and building.

A child is this module run as a program (`krabby.runtime.child`), with the lowest priority there is.
Job and answers are JSON.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, cast

import msgspec

from krabby.policy.tensorrt.device import Device, DeviceApi, resolve
from krabby.policy.tensorrt.engine import BuildOptions, Shapes, Toolkit
from krabby.policy.tensorrt.errors import BuildFailed, InferenceError, Interrupted, NoDevice
from krabby.runtime.child import become_child, run_child

__all__ = ["Built", "Platform", "Watch", "build_in_child", "main", "probe"]

_PROBE_TIMEOUT_S = 60.0
"""The first contact with a driver may take seconds: it creates its caches."""
_REPORT_EVERY_S = 0.25
_NICE = 19


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
        _run("probe", _Job(platform=platform), _PROBE_TIMEOUT_S, watch, hear)
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
            _run("build", job, timeout_s, watch, lambda line: report(line.doing, line.share))
            return Built(
                plan=(folder / "plan").read_bytes(),
                timings=(folder / "timings").read_bytes(),
                seconds=time.monotonic() - began_s,
            )
    except OSError as error:
        raise BuildFailed(
            f"cannot build ({error}); make room in {tempfile.gettempdir()}, or name another folder "
            "in TMPDIR"
        ) from error


def _run(
    what: str, job: _Job, timeout_s: float, watch: Watch, hear: Callable[[_Line], None]
) -> None:
    """Run a child to its end; raise the error it reports, or how it ended."""
    problem: InferenceError | None = None

    def look() -> None:
        watch.beat()
        if watch.stopping:
            raise Interrupted("told to stop while building an engine")

    def take(text: bytes) -> None:
        nonlocal problem
        line = msgspec.json.decode(text, type=_Line)
        if line.error:
            problem = (NoDevice if line.kind == "NoDevice" else BuildFailed)(line.error)
        else:
            hear(line)

    job_text = msgspec.json.encode(job)
    module = "krabby.policy.tensorrt.subprocesses"
    try:
        ended = run_child(module, what, job=job_text, limit_s=timeout_s, watch=look, hear=take)
    except TimeoutError:
        raise BuildFailed(
            f"not done after {timeout_s:g} s, killed; raise inference.build_timeout_s or "
            "lower inference.optimization_level"
        ) from None
    if problem is not None:
        raise problem
    if ended.status != 0:
        tail = f": …{ended.tail}" if ended.tail else ""
        raise BuildFailed(f"the {what} process {ended.how}{tail}")


# --- in the child ------------------------------------------------------------------------------


def main() -> int:
    """The child process."""
    send = become_child(nice=_NICE)
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=_Job)
    try:
        if sys.argv[1] == "probe":
            # The driver first: without one, entering TensorRT ends the process.
            device = cast("DeviceApi", resolve(job.platform.device_api)()).describe()
            version = cast("Toolkit", resolve(job.platform.toolkit)()).version
            send(msgspec.json.encode(_Line(device=device, toolkit_version=version)))
        else:
            _build(job, send)
    except InferenceError as error:
        send(msgspec.json.encode(_Line(error=str(error), kind=type(error).__name__)))
    return 0


def _build(job: _Job, send: Callable[[bytes], None]) -> None:
    reported_s = 0.0

    def report(doing: str, share: float) -> None:
        nonlocal reported_s
        if time.monotonic() - reported_s >= _REPORT_EVERY_S:
            reported_s = time.monotonic()
            send(msgspec.json.encode(_Line(doing=doing, share=share)))

    toolkit = cast("Toolkit", resolve(job.platform.toolkit)())
    plan, timings = toolkit.build(
        Path(job.model).read_bytes(),
        job.options,
        job.shapes,
        Path(job.timings).read_bytes(),
        report,
    )
    # An engine that crashes when it is loaded shall do so here.
    toolkit.load(plan)
    Path(job.plan).write_bytes(plan)
    Path(job.timings).write_bytes(timings)


if __name__ == "__main__":
    sys.exit(main())
