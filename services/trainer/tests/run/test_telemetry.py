"""What is measured is right, and what is told fits where it is told."""

from __future__ import annotations

import errno
import io
import json
import math

import pytest
import torch
from krabby_trainer.run.telemetry import (
    Iteration,
    JsonLines,
    Meter,
    Progress,
    TensorBoard,
    duration,
)


def iteration(number=1, total=10, **scalars):
    named = {key.replace("__", "/"): value for key, value in scalars.items()}
    return Iteration(
        number=number, total=total, env_steps=96 * number, wall_s=2.0, eta_s=75.4, scalars=named
    )


def step(meter, rewards, dones, **log):
    obs = {"proprio": torch.zeros(len(rewards), 3)}
    meter.step(obs, torch.tensor(rewards), torch.tensor(dones), log or None)


def test_episodes_are_summed_by_robot():
    meter = Meter(2, "cpu")
    step(meter, [1.0, 10.0], [0, 0])
    step(meter, [2.0, 20.0], [1, 0])  # 3 over two steps
    step(meter, [4.0, 30.0], [0, 1])  # 60 over three
    taken = meter.take()
    assert taken["Train/mean_reward"] == pytest.approx((3 + 60) / 2)
    assert taken["Train/mean_episode_steps"] == pytest.approx(2.5)
    step(meter, [5.0, 0.0], [1, 0])  # 4 + 5 over two: the sum continues between calls
    assert meter.take()["Train/mean_reward"] == pytest.approx((3 + 60 + 9) / 3)


def test_means_leave_out_what_did_not_happen():
    meter = Meter(1, "cpu")
    step(meter, [0.0], [0], a=torch.tensor(1.0), b=torch.tensor(math.nan))
    step(meter, [0.0], [0], a=torch.tensor(3.0), b=torch.tensor(math.nan))
    step(meter, [0.0], [0])
    taken = meter.take()
    assert taken["Episode/a"] == 2.0
    assert "Episode/b" not in taken
    assert meter.take() == {}


def test_old_episodes_leave_the_mean():
    meter = Meter(50, "cpu")
    for value in (100.0, 1.0, 1.0):
        step(meter, [value] * 50, [1] * 50)
        taken = meter.take()
    assert taken["Train/mean_reward"] == 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_named(value):
    meter = Meter(2, "cpu")
    obs = {"scan": torch.zeros(2, 4), "proprio": torch.zeros(2, 3)}
    obs["scan"][1, 2] = value
    meter.step(obs, torch.zeros(2), torch.zeros(2), None)
    meter.step({name: torch.zeros(2, 4) for name in obs}, torch.zeros(2), torch.zeros(2), None)
    assert meter.not_finite() == ["scan"]
    assert meter.not_finite() == []


def test_terminal_sees_one_line_rewritten():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    progress = Progress(period_s=5, stream=out)
    progress.write(iteration(1, Perf__env_steps_per_s=318_000.0, Episode__mxd=0.5))
    progress.write(iteration(2, Perf__env_steps_per_s=318_000.0))
    progress.close()
    text = out.getvalue()
    assert text.count("\n") == 1
    assert "\r\x1b[K1/10  318.0k steps/s  MXD 0.50  ETA 0:01:15" in text


def test_a_file_sees_a_plain_line_now_and_then():
    now = [0.0]
    out = io.StringIO()
    progress = Progress(period_s=5, stream=out, clock=lambda: now[0])
    for number in range(1, 13):
        progress.write(iteration(number))
        now[0] += 1.0
    assert [line.split("/")[0] for line in out.getvalue().splitlines()] == ["1", "6", "11"]
    assert "\x1b" not in out.getvalue()


def test_a_reader_that_went_away_does_not_stop_the_run():
    out = io.StringIO()
    progress = Progress(period_s=0, stream=out)
    out.close()
    progress.write(iteration())


def test_log_of_a_resumed_run_has_every_iteration_once(tmp_path):
    path = tmp_path / "log.jsonl"
    log = JsonLines(path, every=1)
    for number in (1, 2, 3, 4):
        log.write(iteration(number, a=1.0))
    log.close()
    with path.open("a") as file:
        file.write('{"iteration": 5, "env_st')  # killed here
    log = JsonLines(path, every=1, iteration=2)
    log.write(iteration(3, a=2.0, b=math.nan))
    log.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2, 3]
    assert lines[-1]["a"] == 2.0
    assert lines[-1]["b"] is None


def test_log_every_so_many_iterations_and_the_last(tmp_path):
    log = JsonLines(tmp_path / "log.jsonl", every=4)
    for number in range(1, 11):
        log.write(iteration(number))
    log.close()
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [4, 8, 10]


def test_tensorboard_can_be_read_back(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard(tmp_path)
    for number in (1, 2, 3):
        board.write(iteration(number, Loss__value=float(number)))
    board.close()
    board = TensorBoard(tmp_path, iteration=2)
    board.write(iteration(3, Loss__value=30.0))
    board.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(each.step, each.value) for each in events.Scalars("Loss/value")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 30.0),
    ]


def test_durations():
    assert duration(3725) == "1:02:05"
    assert duration(math.inf) == "?"
    assert duration(-3) == "0:00:00"


def full(monkeypatch, path):
    """A file on a disk that has room for 10 bytes more."""
    real = type(path).open

    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            return self.file.write(bytes(data)[:10])

        def __getattr__(self, name):
            return getattr(self.file, name)

    monkeypatch.setattr(
        type(path), "open", lambda self, mode="r", **how: Full(real(self, mode, **how))
    )


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    path = tmp_path / "log.jsonl"
    with monkeypatch.context() as patched:
        full(patched, path)
        log = JsonLines(path, every=1)
    with pytest.raises(OSError, match="No space left"):
        log.write(iteration(1))
    log._file = log._file.file  # space again
    log.write(iteration(2))
    log.close()
    assert [json.loads(line)["iteration"] for line in path.read_text().splitlines()] == [2]


def test_tensorboard_begins_a_new_file_after_a_failure(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.directory_watcher import DirectoryWatcher
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    board = TensorBoard(tmp_path)
    board.write(iteration(1, Loss__value=1.0))
    file = board._writer._writer
    monkeypatch.setattr(board._writer, "write", lambda _: file.write(b"half") and _no_space())
    with pytest.raises(OSError, match="No space left"):
        board.write(iteration(2, Loss__value=2.0))
    board.write(iteration(3, Loss__value=3.0))
    board.close()
    events = DirectoryWatcher(str(tmp_path), EventFileLoader).Load()
    assert [each.step for each in events if each.summary.value] == [1, 3]


def test_a_full_disk_gets_no_event_file_in_each_iteration(tmp_path, monkeypatch):
    from tensorboard.summary.writer.record_writer import RecordWriter

    board = TensorBoard(tmp_path)
    board.write(iteration(1, Loss__value=1.0))
    first = list(tmp_path.iterdir())
    with monkeypatch.context() as patched:
        patched.setattr(RecordWriter, "write", lambda self, data: _no_space())
        for number in range(2, 5):
            with pytest.raises(OSError, match="No space left"):
                board.write(iteration(number, Loss__value=2.0))
    assert list(tmp_path.iterdir()) == first
    board.write(iteration(5, Loss__value=5.0))
    board.close()
    assert len(list(tmp_path.iterdir())) == 2


def _no_space():
    raise OSError(errno.ENOSPC, "No space left on device")
