"""Real-time features: in effect where granted, a warning and a gauge where not."""

import contextlib
import ctypes
import gc
import os
import platform
import re
import resource
import threading
from pathlib import Path

import pytest
from krabby.config import ConfigError, parse
from krabby.runtime import realtime
from krabby.runtime.config import RealtimeCfg
from krabby.runtime.metrics import REALTIME_ENABLED, REALTIME_REQUESTED
from krabby.runtime.realtime import (
    FEATURES,
    IdleCollector,
    apply_realtime,
    freeze_garbage,
    set_slices,
    yield_to_loop,
)
from krabby.runtime.testing import FakeClock, captured_logs, may_go_first


@pytest.fixture(autouse=True)
def _ordinary_process_afterwards():
    policy, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    cpus = os.sched_getaffinity(0)
    yield
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
            os.sched_setscheduler(int(thread), policy, parameter)
    set_slices(0)  # the kernel's own
    os.sched_setaffinity(0, cpus)
    ctypes.CDLL(None).munlockall()
    gc.enable()
    gc.unfreeze()


def gauges(metric=REALTIME_ENABLED):
    return {sample.labels["feature"]: sample.value for sample in metric.collect()[0].samples}


def refused(*_):
    raise PermissionError(1, "Operation not permitted")


def locked_kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmLck"))


def missing_of(results):
    return [result for result in results if result.missing]


def test_nothing_is_asked_for_by_default():
    before = os.sched_getscheduler(0), os.sched_getaffinity(0)
    with captured_logs() as events:
        report = apply_realtime(RealtimeCfg())
    assert [result.requested for result in report] == [False] * 5
    assert missing_of(report) == []
    assert gauges() == dict.fromkeys(FEATURES, 0.0)
    assert events == []
    assert (os.sched_getscheduler(0), os.sched_getaffinity(0)) == before
    assert gc.isenabled()


@pytest.mark.skipif(not may_go_first(), reason="this machine grants no SCHED_FIFO")
def test_fifo_is_in_effect_where_granted():
    report = apply_realtime(RealtimeCfg(fifo_priority=10))
    assert os.sched_getscheduler(0) == os.SCHED_FIFO
    assert os.sched_getparam(0).sched_priority == 10
    assert missing_of(report) == []
    assert gauges()["fifo"] == 1.0


@pytest.mark.skipif(not may_go_first(), reason="this machine grants no SCHED_FIFO")
def test_a_thread_that_was_there_before_goes_first_too():
    """The one that serves metrics: while it holds the interpreter's lock the loop waits for it."""
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    apply_realtime(RealtimeCfg(fifo_priority=10))
    during = os.sched_getscheduler(other.native_id), os.sched_getparam(other.native_id)
    done.set()
    other.join()
    assert during == (os.SCHED_FIFO, os.sched_param(10))


def scheduling_of_a_thread_that_yields():
    seen = []

    def work():
        yield_to_loop()
        seen.append((os.sched_getscheduler(0), os.sched_getparam(0).sched_priority))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return seen


@pytest.mark.skipif(not may_go_first(), reason="this machine grants no SCHED_FIFO")
@pytest.mark.parametrize(("loop", "worker"), [(10, 9), (1, 1)])
def test_long_work_beside_a_loop_runs_one_priority_below_it(loop, worker):
    apply_realtime(RealtimeCfg(fifo_priority=loop))
    assert scheduling_of_a_thread_that_yields() == [(os.SCHED_FIFO, worker)]
    assert os.sched_getparam(0).sched_priority == loop


def test_long_work_beside_a_loop_without_a_priority_has_none_either():
    assert scheduling_of_a_thread_that_yields() == [(os.SCHED_OTHER, 0)]


def test_whether_anybody_may_go_first_is_asked_without_a_trace(monkeypatch):
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    may_go_first()
    assert (os.sched_getscheduler(0), os.sched_getparam(0)) == before
    monkeypatch.setattr(os, "sched_setscheduler", refused)
    assert not may_go_first()
    monkeypatch.undo()


def test_fifo_that_is_refused_is_a_warning_with_its_remedy(monkeypatch):
    monkeypatch.setattr(os, "sched_setscheduler", refused)
    with captured_logs() as events:
        report = apply_realtime(RealtimeCfg(fifo_priority=60))
    monkeypatch.undo()
    event = events[0]
    assert event["log_level"] == "warning"
    assert event["feature"] == "fifo"
    assert "rtprio >= 60" in event["reason"]
    assert missing_of(report)[0].feature == "fifo"
    assert gauges()["fifo"] == 0.0


def slices():
    """Slices of this process's threads [ns], as far as the kernel tells."""
    texts = [path.read_text() for path in Path("/proc/self/task").glob("*/sched")]
    return {int(each) for text in texts for each in re.findall(r"se\.slice +: +(\d+)", text)}


def test_where_fifo_is_refused_every_thread_gets_a_short_slice(monkeypatch):
    monkeypatch.setattr(os, "sched_setscheduler", refused)
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    with captured_logs() as events:
        report = apply_realtime(RealtimeCfg(fifo_priority=60))
    during = slices()
    done.set()
    other.join()
    if "slice" in [result.feature for result in missing_of(report)]:
        pytest.skip("this kernel knows no slices")
    assert during <= {100_000}
    assert gauges()["slice"] == 1.0
    assert events[-1]["features"] == ["time slice of 0.1 ms"]


def test_a_kernel_that_ignores_slices_is_told_from_one_that_does_not(monkeypatch):
    monkeypatch.setattr(os, "sched_setscheduler", refused)
    monkeypatch.setattr(realtime, "_SLICE_NS", 99_999)  # less than Linux takes
    missing = missing_of(apply_realtime(RealtimeCfg(fifo_priority=60)))
    assert [result.feature for result in missing] == ["fifo", "slice"]
    assert "Linux 6.12" in missing[1].detail
    assert gauges()["slice"] == 0.0


def test_a_slice_that_is_refused_says_why(monkeypatch):
    monkeypatch.setattr(os, "sched_setscheduler", refused)
    with monkeypatch.context() as patched:
        patched.setattr(realtime, "_SCHED_SETATTR", {platform.machine(): 100_000})
        missing = missing_of(apply_realtime(RealtimeCfg(fifo_priority=60)))
    assert "Function not implemented" in missing[1].detail


def test_an_unknown_processor_has_no_slices(monkeypatch):
    monkeypatch.setattr(os, "sched_setscheduler", refused)
    with monkeypatch.context() as patched:
        patched.setattr(realtime, "_SCHED_SETATTR", {})
        missing = missing_of(apply_realtime(RealtimeCfg(fifo_priority=60)))
    assert platform.machine() in missing[1].detail


@pytest.mark.skipif(not may_go_first(), reason="this machine grants no SCHED_FIFO")
def test_with_fifo_no_slice_is_asked_for():
    apply_realtime(RealtimeCfg(fifo_priority=10))
    assert gauges(REALTIME_REQUESTED)["slice"] == 0.0


def test_affinity_is_in_effect_where_possible():
    cpu = min(os.sched_getaffinity(0))
    apply_realtime(RealtimeCfg(cpus=(cpu,)))
    assert os.sched_getaffinity(0) == {cpu}
    assert gauges()["affinity"] == 1.0


def test_affinity_to_a_cpu_that_is_not_there_names_those_that_are():
    (missing,) = missing_of(apply_realtime(RealtimeCfg(cpus=(1023,))))
    assert "[1023]" in missing.detail
    assert str(sorted(os.sched_getaffinity(0))) in missing.detail
    assert gauges()["affinity"] == 0.0


def test_memory_is_locked_where_granted():
    if missing_of(apply_realtime(RealtimeCfg(lock_memory=True))):
        pytest.skip("this machine does not let memory be locked")
    assert locked_kib() > 1000
    assert gauges()["mlockall"] == 1.0


def test_memory_is_not_locked_under_a_finite_limit(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (65536, 65536))
    monkeypatch.setattr(realtime, "_may_lock_anything", lambda: False)
    (missing,) = missing_of(apply_realtime(RealtimeCfg(lock_memory=True)))
    assert "65536 bytes; set ulimits.memlock to -1" in missing.detail
    assert locked_kib() == 0
    assert gauges()["mlockall"] == 0.0


def test_mlockall_that_fails_says_why(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    monkeypatch.setattr(realtime, "_MCL_CURRENT", 1 << 20)  # a flag the kernel does not know
    (missing,) = missing_of(apply_realtime(RealtimeCfg(lock_memory=True)))
    assert "Invalid argument" in missing.detail


def test_collection_moves_to_the_idle_part_of_a_slot():
    apply_realtime(RealtimeCfg(collect_when_idle=True))
    assert not gc.isenabled()
    assert gauges()["gc"] == 1.0


def test_idle_collector_waits_for_its_time_and_for_enough_slack():
    clock = FakeClock(0)
    collector = IdleCollector(every_s=1.0, margin=3.0, clock=clock)
    clock.advance(0.5)
    assert not collector.offer(clock() + 10_000_000)  # not due
    clock.advance(0.6)
    assert not collector.offer(clock() + 2_999_999)  # due, 3 ms of slack wanted
    assert collector.offer(clock() + 3_000_000)
    assert not collector.offer(clock() + 10_000_000)
    assert collector.collections == 1


def test_start_up_garbage_is_frozen():
    before = gc.get_freeze_count()
    freeze_garbage()
    assert gc.get_freeze_count() > before


@pytest.mark.parametrize(
    ("options", "key"), [({"fifo_priority": 100}, "fifo_priority"), ({"cpus": [-1]}, "cpus")]
)
def test_values_the_kernel_cannot_know_are_refused(options, key):
    with pytest.raises(ConfigError, match=key):
        parse(RealtimeCfg, options, source="test")


def test_what_was_asked_for_can_be_told_from_what_is_in_effect(monkeypatch):
    monkeypatch.setattr(os, "sched_setscheduler", refused)
    with captured_logs():
        apply_realtime(RealtimeCfg(fifo_priority=50))
    assert gauges(REALTIME_REQUESTED) == dict.fromkeys(FEATURES, 0) | {"fifo": 1, "slice": 1}
    assert gauges()["fifo"] == 0
