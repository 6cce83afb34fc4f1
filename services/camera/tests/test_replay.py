"""A recording played at its own pace, as if it happened now."""

import numpy as np
import pytest
from krabby.runtime.testing import FakeClock
from krabby_camera.errors import CameraError
from krabby_camera.sources import ReplaySource
from krabby_proto import CAMERA, FLAG_LOCKSTEP, STATE, RecordingError, decode, encode
from krabby_proto.recording import Recorder

MS = 1_000_000
START_NS = 5_000_000 * MS


def message(stream, size, k, capture_ns, publish_ns, flags=0):
    return decode(
        encode(
            stream,
            np.full(size, k, np.float32),
            instance_id=1,
            sequence=k + 1,
            capture_ns=capture_ns,
            publish_ns=publish_ns,
            flags=flags,
        )
    )


@pytest.fixture
def recording(tmp_path):
    """Three frames 33 ms apart, each 40 ms old when it was published, among states."""
    path = tmp_path / "walk.mcap"
    with Recorder(path) as recorder:
        for k in range(3):
            capture_ns = (100 + 33 * k) * MS
            recorder.write(message(STATE, 70, k, capture_ns, capture_ns))
            recorder.write(
                message(CAMERA, 6360, k, capture_ns, capture_ns + 40 * MS, FLAG_LOCKSTEP)
            )
    return path


def play(path, clock, **options):
    def sleep(seconds):
        clock.advance(seconds)

    return ReplaySource(path, clock=clock, sleep=sleep, **options)


def test_frames_come_out_as_far_apart_and_as_old_as_they_were(recording):
    clock = FakeClock(START_NS)
    source = play(recording, clock)
    seen = []
    while not source.exhausted:
        frame = source.wait(1.0)
        seen.append((frame.payload[0], frame.capture_ns - START_NS, clock() - START_NS))
        assert frame.header.publish_ns == clock()
        assert frame.flags == 0  # simulated time became real time
    assert seen == [(0, 0, 40 * MS), (1, 33 * MS, 73 * MS), (2, 66 * MS, 106 * MS)]
    assert source.wait(1.0) is None
    assert (source.received, source.discarded, source.gaps, source.invalid) == (3, 0, 0, 0)


def test_waiting_gives_up_in_time(recording):
    clock = FakeClock(START_NS)
    source = play(recording, clock)
    assert source.wait(0.010) is None
    assert clock() - START_NS == 10 * MS
    assert source.wait(0.010) is None
    assert source.wait(0.100).payload[0] == 0


def test_a_reader_that_was_held_up_gets_the_newest_frame(recording):
    clock = FakeClock(START_NS)
    source = play(recording, clock)
    source.wait(1.0)
    clock.advance(0.050)  # both others are due by now or in a moment
    clock.advance(0.050)
    assert source.wait(1.0).payload[0] == 2
    assert source.discarded == 1


def test_a_loop_goes_on_with_the_recorded_spacing(recording):
    clock = FakeClock(START_NS)
    source = play(recording, clock, loop=True)
    captures = [source.wait(1.0).capture_ns - START_NS for _ in range(7)]
    assert captures == [33 * MS * k for k in range(7)]
    assert not source.exhausted


def test_closing_ends_a_replay(recording):
    source = play(recording, FakeClock(START_NS), loop=True)
    source.close()
    assert source.exhausted


def test_a_missing_recording_is_named(tmp_path):
    with pytest.raises(RecordingError, match=r"absent\.mcap"):
        ReplaySource(tmp_path / "absent.mcap")


def test_a_recording_without_a_camera_says_so(tmp_path):
    path = tmp_path / "blind.mcap"
    with Recorder(path) as recorder:
        recorder.write(message(STATE, 70, 0, 1, 1))
    with pytest.raises(CameraError, match=r"blind\.mcap.*no frames of the stream 'camera'"):
        ReplaySource(path)


def test_a_file_that_is_no_recording_is_refused(tmp_path):
    path = tmp_path / "noise.mcap"
    path.write_bytes(b"not an mcap file" * 10)
    with pytest.raises(RecordingError, match=r"noise\.mcap"):
        ReplaySource(path)
