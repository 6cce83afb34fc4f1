"""A log call returns while stdout is not read; lost lines are counted and reported."""

import contextlib
import io
import json
import os
import subprocess
import sys
import threading

import krabby.runtime.logging
import pytest
import structlog
from krabby.runtime.logging import configure_logging, flush_logs, prints_queued
from krabby.runtime.metrics import LOG_LINES_DROPPED
from krabby.runtime.output import LineStream, Output, descriptor


def notice(count):
    return f"{count} lost"


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        with contextlib.suppress(OSError):
            os.close(fd)


def fill(writer):
    """Empty lines until no more fit into the pipe: from then on a write waits for the reader."""
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"\n" * 4096)
    os.set_blocking(writer, True)


def read_until(reader, ending):
    text = b""
    while not text.endswith(ending):
        text += os.read(reader, 1 << 16)
    return text.decode().splitlines()


def test_lines_come_out_in_order(pipe):
    reader, writer = pipe
    output = Output(writer, notice)
    for number in range(1000):
        output.write(f"line {number}")
    assert read_until(reader, b"line 999\n") == [f"line {number}" for number in range(1000)]
    assert output.flush(60.0)
    assert output.dropped == 0


def test_without_a_reader_no_call_waits_and_what_is_lost_is_told_once_where_the_gap_is(pipe):
    reader, writer = pipe
    before = LOG_LINES_DROPPED._value.get()
    fill(writer)
    # Of 2000 lines of 100 bytes the queue takes 100, one of which the thread holds already.
    output = Output(writer, notice, queue_bytes=10_000)
    for number in range(2000):
        output.write(f"{number:099}")
    assert output.dropped == 1900
    assert not output.flush(0.0)
    assert LOG_LINES_DROPPED._value.get() - before == 1900
    got = [line for line in read_until(reader, b"lost\n") if line]
    assert [int(line) for line in got[:-1]] == list(range(100))
    assert got[-1] == "1900 lost"
    output.write("and on")
    assert read_until(reader, b"and on\n") == ["and on"]
    assert output.dropped == 1900


def test_a_line_longer_than_the_queue_is_dropped_and_told(pipe):
    reader, writer = pipe
    Output(writer, notice, queue_bytes=1000).write("x" * 2000)
    assert read_until(reader, b"lost\n") == ["1 lost"]


def test_a_reader_that_is_gone_stops_nothing(pipe):
    reader, writer = pipe
    os.close(reader)
    output = Output(writer, notice)
    for _ in range(10):
        output.write("into the void")
    assert output.flush(60.0)
    assert output.dropped == 10


def test_a_descriptor_that_somebody_made_non_blocking_is_waited_for(pipe):
    reader, writer = pipe
    os.set_blocking(writer, False)
    output = Output(writer, notice)
    for number in range(900):
        output.write(f"{number:099}")
    assert [int(line) for line in read_until(reader, b"899\n")] == list(range(900))


def test_a_signal_handler_may_write_while_its_own_thread_writes(pipe):
    """The lock is reentrant: a handler runs between any two instructions of the main thread."""
    reader, writer = pipe
    output = Output(writer, notice)
    with output._lock:
        output.write("from the handler")
    assert read_until(reader, b"handler\n") == ["from the handler"]


def test_what_is_printed_comes_out_by_lines(pipe):
    reader, writer = pipe
    stream = LineStream(Output(writer, notice), writer)
    print("one\ntwo", "three", file=stream)
    stream.write("half ")
    stream.write("a line\n")
    assert read_until(reader, b"a line\n") == ["one", "two three", "half a line"]


def test_a_stream_in_memory_has_no_descriptor():
    assert descriptor(io.StringIO()) is None
    assert descriptor(None) is None
    assert descriptor(sys.__stdout__) in (None, sys.__stdout__.fileno())


CHATTER = """
import sys, time, structlog
from krabby.runtime.logging import configure_logging, prints_queued
configure_logging("chatter", "r")
log = structlog.get_logger()
worst = 0.0
with prints_queued():
    for number in range(int(sys.argv[1])):
        began = time.perf_counter()
        log.info("line", number=number, pad="x" * 200)
        worst = max(worst, time.perf_counter() - began)
    if sys.argv[2:] == ["raise"]:
        raise RuntimeError("the end")
open(sys.argv[-1], "w").write(str(worst))
"""


def test_a_process_that_ends_normally_loses_no_line():
    done = subprocess.run(
        [sys.executable, "-c", CHATTER, "3000", os.devnull], stdout=subprocess.PIPE, check=True
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["number"] for line in lines] == list(range(3000))


def test_a_traceback_of_a_crash_is_not_lost():
    done = subprocess.run(
        [sys.executable, "-c", CHATTER, "10", "raise"], capture_output=True, check=False
    )
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 10
    assert b"RuntimeError: the end" in done.stderr


def test_a_process_whose_stdout_is_never_read_ends_by_itself(tmp_path):
    """10 000 lines of 350 bytes: three times what the pipe and the queue hold."""
    told = tmp_path / "worst"
    process = subprocess.Popen(
        [sys.executable, "-c", CHATTER, "10000", str(told)], stdout=subprocess.PIPE
    )
    assert process.wait(60) == 0
    process.stdout.close()
    assert float(told.read_text()) < 1.0


def test_configuring_twice_keeps_what_was_said_before(pipe, monkeypatch):
    reader, writer = pipe
    monkeypatch.setattr(krabby.runtime.logging, "_outputs", {})
    with os.fdopen(os.dup(writer), "w") as out, os.fdopen(os.dup(writer), "w") as err:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        configure_logging("a", "r")
        structlog.get_logger().info("first")
        configure_logging("b", "r")
        structlog.get_logger().info("second")
        assert flush_logs(5.0)
        with prints_queued():
            sys.stderr.write("third\n")
            assert flush_logs(5.0)
        structlog.reset_defaults()
    first, second, third = read_until(reader, b"third\n")
    assert (json.loads(first)["event"], json.loads(second)["event"]) == ("first", "second")
    assert third == "third"


def test_each_thread_keeps_its_order(pipe):
    reader, writer = pipe
    output = Output(writer, notice)

    def work(name):
        for number in range(500):
            output.write(f"{name} {number}")

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    output.write("end")
    lines = read_until(reader, b"end\n")
    for name in "abcd":
        mine = [int(line.split()[1]) for line in lines if line.startswith(name)]
        assert mine == list(range(500))
