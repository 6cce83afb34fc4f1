"""Log lines: one JSON object each, for any values and exceptions."""

import io
import json
import logging
import warnings
from pathlib import Path

import numpy as np
import pytest
import structlog
from krabby.runtime.logging import configure_logging
from krabby.runtime.testing import FakeClock, captured_logs
from krabby.runtime.throttle import log_every


@pytest.fixture(autouse=True)
def _restored_logging():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


def configured(**options):
    out = io.StringIO()
    configure_logging("gameloop", "run1", stream=out, **options)
    return out, lambda: [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_line_carries_event_facts_service_run_and_both_clocks():
    _, lines = configured()
    structlog.get_logger("x").warning("state stale", age_s=0.31, limit_s=0.03)
    (line,) = lines()
    assert list(line)[:4] == ["time", "level", "service", "event"]
    assert (line["service"], line["run_id"], line["level"]) == ("gameloop", "run1", "warning")
    assert (line["event"], line["age_s"], line["limit_s"]) == ("state stale", 0.31, 0.03)
    assert line["mono_ns"] > 0
    assert line["time"].endswith("Z")


def test_standard_library_records_and_warnings_come_out_the_same_way():
    _, lines = configured()
    logging.getLogger("third.party").error("broken %d", 3)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old", stacklevel=1)
    first, second = lines()
    assert (first["event"], first["level"], first["service"]) == ("broken 3", "error", "gameloop")
    assert "UserWarning: old" in second["event"]


def test_numpy_paths_errors_and_strangers_are_written_as_something():
    _, lines = configured()
    structlog.get_logger().info(
        "facts",
        scalar=np.float32(1.5),
        array=np.arange(3),
        path=Path("a/b"),
        error=ValueError("bad"),
        nan=float("nan"),
        stranger=object,
    )
    (line,) = lines()
    assert (line["scalar"], line["array"], line["path"]) == (1.5, [0, 1, 2], "a/b")
    assert (line["error"], line["nan"]) == ("bad", None)
    assert "object" in line["stranger"]


def test_a_line_that_cannot_be_encoded_is_still_written():
    _, lines = configured()
    structlog.get_logger().info("odd", text="\ud800", big=2**80)
    (line,) = lines()
    assert line["event"] == "'odd'"


def test_an_exception_is_one_line_too():
    _, lines = configured()
    try:
        raise KeyError("joint")
    except KeyError:
        structlog.get_logger().exception("crashed")
    (line,) = lines()
    assert line["exception"].splitlines()[-1] == "KeyError: 'joint'"


def test_below_the_level_nothing_is_written():
    _, lines = configured(level="warning")
    structlog.get_logger().info("quiet")
    assert lines() == []


def test_the_console_format_is_for_people():
    out, _ = configured(fmt="console")
    structlog.get_logger().info("state stale", age_s=0.31)
    assert "state stale" in out.getvalue()
    assert "age_s=0.31" in out.getvalue()


def test_a_reader_that_went_away_does_not_stop_the_loop():
    out, _ = configured()
    out.close()
    structlog.get_logger().info("into the void")


def test_a_repeated_event_is_said_once_a_second_with_the_number_left_out():
    clock = FakeClock()
    limited = log_every(structlog.get_logger(), 1.0, clock=clock)
    with captured_logs() as events:
        for _ in range(250):  # 2.5 s at 100 Hz
            limited.warning("command stale", age_s=0.05)
            clock.advance(0.01)
        limited.error("another event")
        limited.info("a third")
    assert [e.get("suppressed") for e in events if e["event"] == "command stale"] == [None, 99, 99]
    assert [(e["event"], e["log_level"]) for e in events[3:]] == [
        ("another event", "error"),
        ("a third", "info"),
    ]
