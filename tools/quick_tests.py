"""Pytest plugin of `make test-fast`: leaves out the tests that took long when last measured.

    PYTHONPATH=tools python -m pytest -p quick_tests            measures
    PYTHONPATH=tools python -m pytest -p quick_tests --quick    measures and selects

The durations are in pytest's cache. Tests that were never measured run last, and no test starts
later than `TOTAL_S` after the begin; what was left out is reported.
"""

from __future__ import annotations

import time

import pytest

LIMIT_S = 0.25
"""A test that took longer is left out [s]."""
TOTAL_S = 45.0
"""No test starts later after the begin of the session, collection included [s]."""
KEY = "krabby/seconds"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option that selects."""
    parser.addoption("--quick", action="store_true", help=f"only tests under {LIMIT_S:g} s")


def pytest_configure(config: pytest.Config) -> None:
    """Measure, and select if asked to."""
    config.pluginmanager.register(_Measure(config))
    if config.getoption("--quick"):
        config.pluginmanager.register(_Select(config))


class _Measure:
    def __init__(self, config: pytest.Config) -> None:
        self._cache = config.cache
        self._seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.skipped:
            before = self._seconds.get(report.nodeid, 0.0) if report.when != "setup" else 0.0
            self._seconds[report.nodeid] = before + report.duration

    def pytest_sessionfinish(self) -> None:
        if self._cache is not None:
            known = self._cache.get(KEY, {}) | self._seconds
            self._cache.set(KEY, {name: round(value, 3) for name, value in known.items()})


class _Select:
    def __init__(self, config: pytest.Config) -> None:
        self._end_s = time.monotonic() + TOTAL_S
        self._seconds = config.cache.get(KEY, {}) if config.cache is not None else {}
        self._slow = self._late = 0

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        slow = [item for item in items if self._seconds.get(item.nodeid, 0.0) > LIMIT_S]
        self._slow = len(slow)
        config.hook.pytest_deselected(items=slow)
        quick = [item for item in items if self._seconds.get(item.nodeid, 0.0) <= LIMIT_S]
        items[:] = sorted(quick, key=lambda item: item.nodeid not in self._seconds)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        if time.monotonic() > self._end_s:
            self._late += 1
            pytest.skip(f"not begun within {TOTAL_S:g} s")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.write_line(
            f"left out: {self._slow} over {LIMIT_S:g} s, {self._late} after {TOTAL_S:g} s; "
            "make test runs all"
        )
