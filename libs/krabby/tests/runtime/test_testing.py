"""What tests of processes lean on."""

import threading

from krabby.runtime.testing import kept_rate, log_events, slowdown, until


def test_a_line_that_is_being_written_and_words_that_are_no_event_are_left_out(tmp_path):
    log = tmp_path / "service.log"
    log.write_text('{"event": "running"}\nTraceback\n{"event": "summary", "falls": {"a": 1}')
    assert log_events(log) == [{"event": "running"}]
    with log.open("a") as file:
        file.write("}\n")
    assert [each["event"] for each in log_events(log)] == ["running", "summary"]


def test_work_takes_at_least_its_processor_time():
    assert slowdown(0.05) >= 0.99  # two clocks


def test_a_thread_keeps_no_more_than_its_rate():
    with kept_rate(0.01) as kept_hz:
        threading.Event().wait(0.3)
        until(lambda: kept_hz() > 0.0)
    assert 0.0 < kept_hz() < 105.0
