"""What the kernel can do for a loop: FIFO scheduling, own cores, memory that is never paged out.

Where FIFO is refused, a loop asks for the shortest time slice instead, which takes no permission:
one that wakes up then takes the processor from others at once, not after their milliseconds.

The grid of `rate` fixes the frequency, FIFO fixes the tail. Each feature needs a permission that a
laptop or a container may not have; what is asked for and not granted becomes a warning with its
remedy and a gauge at 0, never a silent difference and never a reason not to run.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import os
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import structlog

from krabby.runtime.config import RealtimeCfg
from krabby.runtime.metrics import REALTIME_ENABLED, REALTIME_REQUESTED, children

__all__ = [
    "FEATURES", "IdleCollector", "apply_realtime", "freeze_garbage", "set_slices", "yield_to_loop",
]  # fmt: skip

log = structlog.get_logger(__name__)

Feature = Literal["fifo", "slice", "affinity", "mlockall", "gc"]
FEATURES: tuple[Feature, ...] = ("fifo", "slice", "affinity", "mlockall", "gc")
"""`slice` is asked for where `fifo` was and is not granted."""
_ENABLED = children(REALTIME_ENABLED, FEATURES)
_REQUESTED = children(REALTIME_REQUESTED, FEATURES)

_MCL_CURRENT, _MCL_FUTURE = 1, 2
_CAP_IPC_LOCK = 14
_SLICE_NS = 100_000
"""The shortest that Linux takes; 6.12 is the first that listens."""
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
"""Number of the system call; that of sched_getattr is one more. libc knows neither."""


class FeatureResult(NamedTuple):
    """What became of one feature."""

    feature: Feature
    requested: bool
    enabled: bool
    detail: str
    """What is in effect, or why it is not and what to do."""

    @property
    def missing(self) -> bool:
        """Whether it was requested and is not in effect."""
        return self.requested and not self.enabled


def apply_realtime(cfg: RealtimeCfg) -> tuple[FeatureResult, ...]:
    """Ask the kernel for what `cfg` requests, in the order of `FEATURES`; never raises.

    Every thread there is gets the priority, the one that serves metrics too, and those that are
    started later inherit it, ZeroMQ's own among them.
    """
    fifo = _attempt("fifo", cfg.fifo_priority > 0, lambda: _fifo(cfg.fifo_priority))
    results = (
        fifo,
        _attempt("slice", fifo.missing, _short_slice),
        _attempt("affinity", bool(cfg.cpus), lambda: _affinity(cfg.cpus)),
        _attempt("mlockall", cfg.lock_memory, _lock_memory),
        _attempt("gc", cfg.collect_when_idle, _disable_collection),
    )
    for each in results:
        if each.missing:
            log.warning("real-time feature not in effect", feature=each.feature, reason=each.detail)
    if in_effect := [each.detail for each in results if each.enabled]:
        log.info("real-time features in effect", features=in_effect)
    return results


def freeze_garbage() -> None:
    """Move what start-up built out of the collector's sight; later collections stay short."""
    gc.collect()
    gc.freeze()


def yield_to_loop() -> None:
    """Let the loop's thread preempt the calling one, which does long work beside it.

    Threads of one FIFO priority do not preempt each other: the work would run to its end on the
    processor that the loop wakes up on. One step lower, it still runs before processes without
    such a priority, so that it is not kept waiting while it holds the interpreter's lock.
    Without FIFO scheduling nothing changes.
    """
    if os.sched_getscheduler(0) == os.SCHED_FIFO:
        priority = max(os.sched_getparam(0).sched_priority - 1, 1)
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))


class IdleCollector:
    """Collects garbage where the loop has nothing to do.

    With automatic collection off, cyclic garbage is collected here about once a second, and only
    when the slack is several times what the last collection took.
    """

    def __init__(
        self,
        *,
        every_s: float = 1.0,
        margin: float = 3.0,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._every_ns = round(every_s * 1e9)
        self._margin = margin
        self._clock = clock
        self._last_ns = clock()
        self._cost_ns = 1_000_000
        self.collections = 0

    def offer(self, deadline_ns: int) -> bool:
        """Collect if it is due and fits before `deadline_ns`; says whether it did."""
        now = self._clock()
        if now - self._last_ns < self._every_ns:
            return False
        if deadline_ns - now < self._cost_ns * self._margin:
            return False
        gc.collect()
        self._last_ns = self._clock()
        self._cost_ns = max(self._last_ns - now, self._cost_ns // 2)
        self.collections += 1
        return True


def _attempt(feature: Feature, requested: bool, action: Callable[[], str]) -> FeatureResult:
    if not requested:
        result = FeatureResult(feature, False, False, "not requested")
    else:
        try:
            result = FeatureResult(feature, True, True, action())
        except _NotGrantedError as refusal:
            result = FeatureResult(feature, True, False, str(refusal))
    _ENABLED[feature].set(result.enabled)
    _REQUESTED[feature].set(requested)
    return result


class _NotGrantedError(Exception):
    """The kernel said no; the message says what would change its mind."""


def _fifo(priority: int) -> str:
    # All of them: a thread that other loops keep from running while it holds the interpreter's
    # lock keeps this loop from running (README, real time).
    try:
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                os.sched_setscheduler(int(thread), os.SCHED_FIFO, os.sched_param(priority))
    except OSError as error:
        raise _NotGrantedError(
            f"SCHED_FIFO priority {priority} refused ({error.strerror}); grant cap_add: [SYS_NICE] "
            f"or ulimits.rtprio >= {priority}"
        ) from error
    return f"SCHED_FIFO priority {priority}"


class _SchedAttr(ctypes.Structure):
    """The kernel's struct sched_attr, first version."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime_ns", ctypes.c_uint64),
        ("deadline_ns", ctypes.c_uint64),
        ("period_ns", ctypes.c_uint64),
    )


def _short_slice() -> str:
    try:
        granted_ns = set_slices(_SLICE_NS)
    except OSError as error:
        raise _NotGrantedError(f"a short time slice was refused ({error.strerror})") from error
    if granted_ns != _SLICE_NS:
        raise _NotGrantedError("this kernel gives every task the same slice; Linux 6.12 does not")
    return f"time slice of {_SLICE_NS * 1e-6:g} ms"


def set_slices(slice_ns: int) -> int:
    """Ask for a time slice for every thread of this process; 0 for the kernel's own.

    All of them: one that is put aside while it holds the interpreter's lock stops the loop too.
    Those that are started later inherit it.

    Returns:
        What the calling thread has now, 0 from a kernel that knows no such thing [ns].

    Raises:
        OSError: the kernel refused.
    """
    number = _SCHED_SETATTR.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"not known how on {platform.machine()}")
    attr = _SchedAttr(size=ctypes.sizeof(_SchedAttr), runtime_ns=slice_ns)
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
            attr.nice = os.getpriority(os.PRIO_PROCESS, int(thread))
            _system_call(number, int(thread), ctypes.byref(attr), 0)
    _system_call(number + 1, 0, ctypes.byref(attr), attr.size, 0)
    return int(attr.runtime_ns)


def _system_call(number: int, *args: object) -> None:
    if ctypes.CDLL(None, use_errno=True).syscall(number, *args) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _affinity(cpus: tuple[int, ...]) -> str:
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        raise _NotGrantedError(
            f"CPUs {list(cpus)} refused ({error.strerror}); this process may use "
            f"{sorted(os.sched_getaffinity(0))}, see cpuset"
        ) from error
    return f"CPUs {sorted(os.sched_getaffinity(0))}"


def _lock_memory() -> str:
    # With a finite limit mlockall may succeed now and make an allocation fail later, in the loop.
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft != resource.RLIM_INFINITY and not _may_lock_anything():
        raise _NotGrantedError(
            f"the locked-memory limit is {soft} bytes; set ulimits.memlock to -1 or grant "
            "cap_add: [IPC_LOCK]"
        )
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE) != 0:
        raise _NotGrantedError(
            f"mlockall refused ({os.strerror(ctypes.get_errno())}); set ulimits.memlock to -1"
        )
    return "all pages locked"


def _may_lock_anything() -> bool:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_IPC_LOCK & 1)
    return False


def _disable_collection() -> str:
    gc.disable()
    return "automatic collection off"
