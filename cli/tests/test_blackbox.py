"""The last minute in memory, and what has it written."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter

import numpy as np
import pytest
import zstandard
from krabby.runtime.testing import free_port, until
from krabby_cli.blackbox import BlackBox, Ring, Triggers
from krabby_cli.blackbox import Trigger as Why
from krabby_proto import (
    CAMERA,
    STATE,
    STREAMS,
    TICKS,
    TRACE,
    TRUTH,
    Exchange,
    ExchangeKind,
    RawMessage,
    RecordingError,
    TickRecord,
    encode,
)
from krabby_proto.recording import Recorder, Recording, verify
from krabby_proto.testing import FakeHal, resting_state


def raw(stream, payload, sequence=1, publish_ns=1_000):
    frames = encode(
        stream,
        payload,
        instance_id=5,
        sequence=sequence,
        capture_ns=publish_ns,
        publish_ns=publish_ns,
    )
    return RawMessage(stream, frames[1], frames[2])


def state(sequence):
    return raw(STATE, resting_state(), sequence, 10_000_000 * sequence)


def gate(safety_state, faults):
    return raw(TRACE, Exchange.of_gate(1, safety_state, faults).pack())


def tick(*, leaving=False, asked=None):
    record = TickRecord()
    if asked is not None:
        exchange = Exchange(ExchangeKind.CONTROL, 1, asked, b'{"ok": true}')
        record.add_exchange(exchange)
    content = record.finish(
        tick=1,
        now_ns=1,
        mode="policy",
        safety_state=2,
        sent=True,
        hal_checked=True,
        leaving=leaving,
        command_sequence=1,
        host_ns=(),
    )
    return raw(TICKS, content)


def truth(falls):
    payload = np.zeros(TRUTH.size)
    payload[TRUTH.slices["falls"]] = falls
    return raw(TRUTH, payload)


@pytest.mark.parametrize(
    ("messages", "kinds"),
    [
        ([gate(2, 0), gate(3, 0), gate(2, 0)], []),
        ([gate(2, 0), gate(4, 0b1)], ["fault"]),
        ([gate(4, 0b1), gate(4, 0b1), gate(4, 0b1001)], ["fault", "fault"]),
        ([gate(5, 1 << 6), gate(5, 1 << 6), gate(0, 0), gate(5, 1 << 6)], ["estop", "estop"]),
        ([truth(2), truth(2), truth(3), truth(0), truth(1)], ["fall", "fall"]),
        ([tick(leaving=True), gate(4, 0b1)], []),  # it ends: commands stop, as they should
        ([tick(leaving=True), gate(4, 0b1000)], ["fault"]),
        ([tick(leaving=True), tick(), gate(4, 0b1)], ["fault"]),
        ([tick(asked=b'{"op": "mark", "text": "it shook"}')], ["mark"]),
        ([tick(asked=b'{"op": "status", "text": "mark"}')], []),
        ([raw(TRACE, b"\\0damaged"), raw(TICKS, b"x")], []),
    ],
)  # fmt: skip
def test_what_is_a_reason_to_write_and_what_is_none(messages, kinds):
    triggers = Triggers()
    found = [trigger for message in messages for trigger in triggers.look([message])]
    assert [one.kind for one in found] == kinds


def test_the_ring_holds_a_minute_and_every_third_image():
    ring = Ring()
    for n in range(1, 9001):  # 90 s at 100 Hz
        ring.add([state(n)], 0.01 * n)
        if n % 10 == 0:
            ring.add([raw(CAMERA, np.full(100, n), n // 10)], 0.01 * n)
    kept = Counter(message.stream.name for message in ring.messages())
    sequences = [m.sequence for m in ring.messages() if m.stream is STATE]
    assert sequences == list(range(sequences[0], 9001))
    assert 6000 <= kept["state"] <= 6200  # pieces are of a second
    assert kept["camera"] == pytest.approx(kept["state"] / 30, abs=2)


def test_the_ring_holds_no_more_than_its_bytes():
    ring = Ring(kept_bytes=200_000)
    rng = np.random.default_rng(0)
    for n in range(1, 3001):
        ring.add([raw(STATE, rng.random(70), n)], 0.01 * n)
        assert ring.bytes <= 200_000
    assert [m.sequence for m in ring.messages()][-1] == 3000


def a_minute(streams):
    """What comes each fifth of a second for a minute: (stream, messages in it, payloads)."""
    rng = np.random.default_rng(0)
    for n in range(300):
        for stream, count, bytes_ in streams:
            header = raw(stream, bytes(bytes_), n).header
            half = bytes(bytes_ // 2)
            payloads = [rng.bytes(bytes_ // 2) + half for _ in range(count)]
            yield 0.2 * n, [RawMessage(stream, header, payload) for payload in payloads]


def processor_s(work, *arguments):
    """Processor time that a call takes, and what it returns."""
    began = time.process_time()
    result = work(*arguments)
    return time.process_time() - began, result


def kept(minute):
    ring = Ring()
    for now_s, messages in minute:
        ring.add(messages, now_s)
    return ring


def written(ring, path):
    with Recorder(path) as recorder:
        recorder.write_all(ring.messages())
        recorder.flush()


def test_a_minute_costs_a_few_times_what_its_compression_costs(tmp_path):
    """Of the same bytes, in turns, so that a busy machine slows both."""
    minute = list(a_minute([(TRACE, 40, 400), (TICKS, 20, 900), (TRACE, 6, 12_000)]))
    pieces = [b"".join(m.header + m.payload for m in messages) for _, messages in minute]
    floors, keeping, writing = [], [], []
    for _ in range(4):
        floors.append(processor_s(lambda: [zstandard.compress(piece) for piece in pieces])[0])
        took, ring = processor_s(kept, minute)
        keeping.append(took)
        writing.append(processor_s(written, ring, tmp_path / "box.mcap")[0])
    assert sum(1 for _ in ring.messages()) == 300 * 66
    # On a quiet machine 0.7 and 2.8 times.
    assert min(keeping) < 4 * min(floors)
    assert min(writing) < 12 * min(floors)


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def said():
    return []


@pytest.fixture
def box(tmp_path, clock, said):
    box = BlackBox(
        tmp_path / "box", lambda: {"run_id": "r"}, said.append, most_files=3, clock_s=clock
    )
    yield box
    box.finish()


def play(box, clock, first, last):
    for n in range(first, last):
        clock.now_s = 0.01 * n
        box.take([state(n)])
        if n % 10 == 0:
            box.work()


def test_a_trigger_writes_the_ring_at_once_and_the_time_after_it(box, clock, said, tmp_path):
    play(box, clock, 1, 3000)
    box.trigger(Why("fall", "the robot fell"))
    (path,) = (tmp_path / "box").glob("*-fall.mcap")
    readable = Recording(path)
    assert [m.sequence for m in readable] == list(range(1, 3000))  # before anything else happens
    assert said == [f"the robot fell: the last minute is in {path}"]
    play(box, clock, 3000, 4200)
    recording = Recording(path)
    sequences = [m.sequence for m in recording]
    assert sequences == list(range(1, sequences[-1] + 1))
    assert 3500 <= sequences[-1] <= 3700  # five seconds on, and a little
    assert recording.damage == ""
    assert verify(path).intact
    assert recording.metadata["krabby"]["trigger"] == "fall"
    assert recording.metadata["krabby.triggers"] == {"0": "fall: the robot fell"}


def test_triggers_during_a_file_prolong_it_up_to_half_a_minute(box, clock, tmp_path):
    play(box, clock, 1, 100)
    for n in range(100, 6000, 300):
        box.trigger(Why("fault", f"number {n}"))
        play(box, clock, n, n + 300)
    first, *others = sorted((tmp_path / "box").glob("*.mcap"))
    assert others
    assert len(list(Recording(first))) == pytest.approx(3100, abs=150)


def test_the_oldest_files_make_room_and_strangers_stay(box, clock, tmp_path):
    folder = tmp_path / "box"
    folder.mkdir()
    (folder / "notes.mcap").write_text("mine")
    for n in range(5):
        box.trigger(Why("mark", str(n)))
        box.finish()
    reasons = [
        Recording(path).metadata["krabby"]["reason"] for path in sorted(folder.glob("black*"))
    ]
    assert reasons == ["2", "3", "4"]
    assert (folder / "notes.mcap").exists()


def test_a_full_disk_is_said_and_ends_nothing(box, said, monkeypatch, clock):
    monkeypatch.setattr("krabby_cli.blackbox._FREE_BYTES", 1 << 60)
    box.trigger(Why("mark", "now"))
    assert "MB are free" in said[0]
    play(box, clock, 1, 20)
    assert box.files == 0


def test_a_folder_that_cannot_be_made_is_said(tmp_path, said, clock):
    (tmp_path / "file").write_text("")
    box = BlackBox(tmp_path / "file", dict, said.append, clock_s=clock)
    box.trigger(Why("mark", "now"))
    assert said[0].startswith("no black box of now: ")


def exposed(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        return answer.read().decode()


def test_an_estop_at_a_live_hal_is_in_a_file(tmp_path):
    """A real process beside a HAL on sockets."""
    place = {name: f"ipc://{tmp_path}/{name}" for name in STREAMS}
    hal_streams = ("state", "camera", "command", "safety", "trace", "truth")
    with FakeHal({name: place[name] for name in hal_streams}, armed=True) as hal:
        folder = tmp_path / "box"
        port = free_port()
        argv = [sys.executable, "-m", "krabby_cli", "record", f"--ring={folder}"]
        argv += [f"--endpoint={name}={endpoint}" for name, endpoint in place.items()]
        began_s = time.time()
        argv.append(f"--metrics-port={port}")
        with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
            try:
                deadline = time.monotonic() + 60
                while not list(folder.glob("*-estop.mcap")) and time.monotonic() < deadline:
                    # Again and again: the recorder may not have heard of the ones before.
                    hal.submit(lambda server: server.follow_gate(2, 0))
                    hal.submit(lambda server: server.follow_gate(5, 1 << 6))
                    time.sleep(0.2)
                assert "emergency stop: the last minute is in" in process.stderr.readline()
                until(lambda: "incident_timestamp_seconds{" in exposed(port))
                told = exposed(port)
                process.send_signal(signal.SIGTERM)
                assert process.wait(60) == 0
            finally:
                process.kill()
        (path,) = folder.glob("*-estop.mcap")
        mark = f'krabby_recorder_incident_timestamp_seconds{{kind="estop",path="{path}"}} '
        assert began_s <= float(told.partition(mark)[2].split()[0]) <= time.time()
        recording = Recording(path)
        stops = [each.gate for each in recording.exchanges() if each.gate == (5, 64)]
        assert stops[0].faults == ("estop",)
        assert "trace" in {message.stream.name for message in recording}
        assert verify(path).intact


def test_a_recorder_that_is_killed_leaves_all_but_the_last_second(tmp_path):
    path = tmp_path / "run.mcap"
    place = {name: f"ipc://{tmp_path}/{name}" for name in STREAMS}
    hal_streams = ("state", "camera", "command", "safety", "trace", "truth")
    with FakeHal({name: place[name] for name in hal_streams}) as hal:
        argv = [sys.executable, "-m", "krabby_cli", "record", str(path)]
        argv += [f"--endpoint={name}={endpoint}" for name, endpoint in place.items()]
        with subprocess.Popen(argv) as process:
            try:
                holds_enough(path)
                os.kill(process.pid, signal.SIGKILL)
                process.wait(60)
                newest = hal.server._publishers["state"].sequence
            finally:
                process.kill()
    recording = Recording(path)
    sequences = [message.sequence for message in recording if message.stream is STATE]
    assert sequences == sorted(sequences)
    assert 100 < len(sequences) <= newest
    assert recording.damage in ("", "it ends in the middle; was the recorder stopped cleanly?")
    assert "intact up to byte" in verify(path).text
    assert recording.run.hellos["hal"]["service"] == "fake-hal"


def holds_enough(path):
    """Until a file that is being written has some states and the HAL's hello."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(RecordingError):
            recording = Recording(path)
            states = sum(message.stream is STATE for message in recording)
            if "hal" in recording.run.hellos and states > 100:
                return
        time.sleep(0.1)
    raise AssertionError(f"{path} never held enough")
