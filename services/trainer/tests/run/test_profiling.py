"""The profiler's bill adds up, and the device's busy time counts overlapping kernels once."""

from types import SimpleNamespace

import pytest
from krabby_trainer.run import profiling
from krabby_trainer.run.profiling import Marks, busy_s


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
    marks = Marks("cpu")
    marks.around(work, "inner", "inside")
    marks.around(work, "outer", "outside")
    marks.start()
    assert work.outer() == 11
    work.now_s += 0.5
    work.inner(1)
    assert marks.stop() == {"outside": 1.0, "inside": 6.0, "other": 0.5}
    assert work.now_s == 107.5


def test_nothing_is_counted_before_the_start(work):
    marks = Marks("cpu")
    marks.around(work, "outer", "outside")
    assert work.outer() == 11
    marks.start()
    assert marks.stop() == {"other": 0.0}


def test_overlapping_kernels_count_once():
    # 0 to 5 with a kernel inside, a pause, 8 to 12 in two parts that overlap.
    assert busy_s([(8, 10), (0, 5), (1, 3), (9, 12)]) == pytest.approx(9e-9)
    assert busy_s([]) == 0.0
