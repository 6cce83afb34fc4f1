"""The profiler's bill adds up."""

from types import SimpleNamespace

import pytest
from krabby_trainer.run import profiling
from krabby_trainer.run.profiling import _Clock


class Work:
    """Spends time on a fake clock: 1 s itself, and two calls of 2 s."""

    def __init__(self):
        self.now_s = 100.0

    def outer(self):
        self.now_s += 0.25
        found = self.inner(5) + self.inner(x=6)
        self.now_s += 0.75
        return found

    def inner(self, x):
        self.now_s += 2.0
        return x


@pytest.fixture
def work(monkeypatch):
    work = Work()
    monkeypatch.setattr(profiling, "time", SimpleNamespace(perf_counter=lambda: work.now_s))
    return work


def test_nested_parts_count_for_themselves_alone(work):
    clock = _Clock("cpu")
    clock.around(work, "inner", "inside")
    clock.around(work, "outer", "outside")
    clock.on = True

    assert work.outer() == 11
    assert clock.seconds == {"inside": 4.0, "outside": 1.0}
    work.outer()
    work.inner(1)
    assert clock.seconds == {"inside": 10.0, "outside": 2.0}
    assert sum(clock.seconds.values()) == work.now_s - 100.0


def test_nothing_is_counted_while_the_clock_is_off(work):
    clock = _Clock("cpu")
    clock.around(work, "outer", "outside")
    assert work.outer() == 11
    assert not clock.seconds
