"""The camera process over real sockets: what comes in, what goes out, what is said about it."""

import contextlib
import shutil
import tempfile
import time

import numpy as np
import pytest
from krabby.config import ConfigError, parse
from krabby.policy.depth_image import DepthPreprocessor
from krabby.robot.description import RobotDescription
from krabby.runtime.testing import FakeClock, captured_logs, running, until
from krabby_camera import metrics
from krabby_camera.config import CameraCfg, EndpointsCfg
from krabby_camera.features import Eye
from krabby_camera.service import CameraService
from krabby_proto import (
    CAMERA,
    FEATURES,
    FLAG_LATENT,
    FLAG_LOCKSTEP,
    EndpointInUse,
    LatestSubscriber,
    Publisher,
    encode,
)

MS = 1_000_000


@pytest.fixture
def folder():
    path = tempfile.mkdtemp(prefix="cam")  # short: a Unix socket's path has 107 characters
    yield path
    shutil.rmtree(path)


@pytest.fixture
def endpoints(folder):
    return EndpointsCfg(
        camera=f"ipc://{folder}/camera",
        state=f"ipc://{folder}/state",
        features=f"ipc://{folder}/features",
    )


def depth(seed=0, far=3.0):
    return np.random.default_rng(seed).uniform(0.5, far, (60, 106)).astype(np.float32)


class Rig:
    """A HAL's camera, the service in a thread, and somebody who reads its features."""

    def __init__(self, endpoints, **options):
        self.service = CameraService(CameraCfg(metrics_port=0, endpoints=endpoints, **options))
        self.endpoints = endpoints
        self.stack = contextlib.ExitStack()

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            self.camera = stack.enter_context(Publisher(self.endpoints.camera, CAMERA))
            self.features = stack.enter_context(LatestSubscriber(self.endpoints.features, FEATURES))
            self.runtime = stack.enter_context(running(self.service))
            # who joins late misses what was said before: repeat until all have joined
            capture_ns = time.monotonic_ns()
            image = depth(seed=99)
            until(lambda: self.publish(image, capture_ns) and self.features.wait(0.05))
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *details):
        self.stack.close()

    def publish(self, image, capture_ns=None, flags=0):
        capture_ns = time.monotonic_ns() if capture_ns is None else capture_ns
        return self.camera.publish(image, capture_ns=capture_ns, flags=flags)

    def see(self, image, capture_ns=None, flags=0):
        """Publish a frame and wait for its features."""
        capture_ns = time.monotonic_ns() if capture_ns is None else capture_ns
        seen = []

        def answered():
            # again if need be: a publisher whose queue is full drops what is new
            self.publish(image, capture_ns, flags)
            seen.append(self.features.wait(0.2))
            if seen[-1] is None:
                return False
            header = seen[-1].header  # in lock-step old features may answer a newer frame
            return capture_ns == (header.publish_ns if flags & FLAG_LOCKSTEP else header.capture_ns)

        until(answered)
        return seen[-1]

    def lose(self, image, reason, **options):
        """Publish a frame and wait until it was dropped."""
        before = self.service.dropped[reason]

        def dropped():
            self.publish(image, **options)
            with contextlib.suppress(TimeoutError):
                until(lambda: self.service.dropped[reason] > before, timeout_s=0.2)
            return self.service.dropped[reason] > before

        until(dropped)


def test_a_frame_becomes_the_policy_image_and_keeps_its_capture_time(endpoints):
    image = depth()
    expected = DepthPreprocessor(RobotDescription.load().camera)(image)
    with Rig(endpoints) as rig:
        captured = time.monotonic_ns() - 40 * MS
        message = rig.see(image, captured)
    assert message.payload.size == 58 * 87
    np.testing.assert_array_equal(message.payload.reshape(58, 87), expected)
    assert message.capture_ns == captured
    assert message.header.publish_ns > captured + 40 * MS
    assert message.flags == 0
    assert rig.runtime.summary["age_max_ms"] >= 40
    assert rig.runtime.summary["frames"] == rig.service.frames >= 2
    assert rig.runtime.summary["valid_ratio_mean"] == 1.0


def test_a_frame_of_another_size_is_dropped_with_its_size_and_hurts_no_other(endpoints):
    with captured_logs() as events, Rig(endpoints) as rig:
        rig.lose(np.ones((48, 64), np.float32), "size")
        assert rig.see(depth(1)).payload.size == 58 * 87
    (event,) = [e for e in events if e["event"] == "frame dropped: size"]
    assert (event["pixels"], event["expected"]) == (3072, "60 x 106 from robot.toml")
    assert rig.runtime.summary["dropped"]["size"] >= 1


def test_a_bundle_without_an_encoder_gets_images(endpoints):
    with Rig(endpoints, bundle="gait") as rig:
        message = rig.see(depth())
    assert message.payload.size == 58 * 87
    assert not message.flags & FLAG_LATENT


@pytest.mark.parametrize("value", [0.0, np.nan, -np.inf])
def test_a_frame_without_a_single_reading_is_withheld(endpoints, value):
    with Rig(endpoints) as rig:
        rig.lose(np.full((60, 106), value, np.float32), "dark")
        assert metrics.VALID_RATIO._value.get() == 0.0
        rig.see(depth(1))


def test_a_covered_lens_that_reports_its_nearest_distance_everywhere_is_dark(endpoints):
    noisy = np.random.default_rng(0).uniform(0.1, 0.109, (60, 106)).astype(np.float32)
    with captured_logs() as events, Rig(endpoints) as rig:
        rig.lose(np.full((60, 106), 0.1, np.float32), "dark")
        rig.lose(noisy, "dark")
        # a fortieth of the picture, 3 columns of 98, is more than the 2 % that are asked for
        noisy[:, 50:53] = 1.0
        rig.see(noisy)
    (event,) = [e for e in events if e["event"] == "frame dropped: dark"][:1]
    assert (event["valid_ratio"], event["seen_ratio"]) == (1.0, 0.0)


def test_holes_and_nan_inside_a_frame_leave_finite_features_and_a_ratio(endpoints):
    image = depth()
    image[:, :70] = np.nan
    image[:10] = 0.0
    with captured_logs() as events, Rig(endpoints) as rig:
        message = rig.see(image)
        assert metrics.VALID_RATIO._value.get() == pytest.approx(48 * 32 / (58 * 98))
    assert np.isfinite(message.payload).all()
    assert np.abs(message.payload).max() <= 0.5
    assert [e["valid_ratio"] for e in events if e["event"] == "few valid depth pixels"] == [0.27]


def test_a_frozen_camera_with_fresh_stamps_is_withheld_until_it_moves_again(endpoints):
    with captured_logs() as events, Rig(endpoints) as rig:
        start = time.monotonic_ns()
        rig.see(depth(1), start)
        rig.see(depth(1), start + 400 * MS)
        rig.lose(depth(1), "frozen", capture_ns=start + 500 * MS)
        assert metrics.FROZEN._value.get() == 1.0
        rig.see(depth(2), start + 566 * MS)
        assert metrics.FROZEN._value.get() == 0.0
    frozen = [e for e in events if e["event"] == "frame dropped: frozen"]
    assert [e["same_content_s"] for e in frozen] == [0.5]


def test_corrupt_frames_are_counted_and_do_not_disturb(endpoints):
    before = metrics.INVALID._value.get()
    with Rig(endpoints) as rig:
        frames = encode(CAMERA, depth(), instance_id=7, sequence=1, capture_ns=1, publish_ns=1)
        rig.camera.socket.send_multipart([frames[0], frames[1], frames[2][:-4]])
        until(lambda: rig.service._source.invalid == 1)
        rig.camera.socket.send_multipart([frames[0], b"short", frames[2]])
        until(lambda: rig.service._source.invalid == 2)
        rig.see(depth(1))
    assert rig.runtime.summary["stream"]["invalid"] == 2
    assert metrics.INVALID._value.get() - before == 2


def test_lock_step_times_and_flag_are_passed_on_and_no_age_is_made_up(endpoints):
    with Rig(endpoints) as rig:
        rig.see(depth(0), capture_ns=1 * MS, flags=FLAG_LOCKSTEP)  # what came before is dealt with
        before = metrics.PUBLISH_AGE._sum.get(), rig.service._publish_age.count
        message = rig.see(depth(1), capture_ns=33 * MS, flags=FLAG_LOCKSTEP)
        assert message.header.publish_ns == message.capture_ns == 33 * MS
        assert message.flags == FLAG_LOCKSTEP
        assert np.isnan(rig.service._watch.age_s())
    assert (metrics.PUBLISH_AGE._sum.get(), rig.service._publish_age.count) == before


def test_lock_step_answers_a_black_first_frame_with_nothing_that_counts(endpoints):
    black = np.zeros((60, 106), np.float32)
    with Rig(endpoints) as rig:
        answer = rig.see(black, capture_ns=33 * MS, flags=FLAG_LOCKSTEP)
    assert np.isnan(answer.payload).all()
    assert answer.header.publish_ns == 33 * MS


@pytest.mark.parametrize("picture", ["black", "frozen"])
def test_lock_step_answers_withheld_frames_with_old_features_and_their_own_stamp(
    endpoints, picture
):
    first = depth(1)
    with Rig(endpoints) as rig:
        seen = rig.see(first, capture_ns=400 * MS, flags=FLAG_LOCKSTEP)
        later = np.zeros((60, 106), np.float32) if picture == "black" else first
        answer = rig.see(later, capture_ns=1000 * MS, flags=FLAG_LOCKSTEP)
    # The picture is 600 ms old by then, as the message states.
    assert answer.capture_ns == 400 * MS
    assert answer.header.publish_ns == 1000 * MS
    np.testing.assert_array_equal(answer.payload, seen.payload)


def test_a_lock_step_frame_said_again_gets_the_same_answer_and_no_second_look(endpoints):
    with Rig(endpoints) as rig:
        first = rig.see(depth(1), capture_ns=33 * MS, flags=FLAG_LOCKSTEP)
        with LatestSubscriber(endpoints.features, FEATURES) as late:
            said = []

            def answered():
                rig.publish(depth(2), 33 * MS, FLAG_LOCKSTEP)  # a second look would show
                said.append(late.wait(0.2))
                return said[-1] is not None

            until(answered)
    assert said[-1].capture_ns == 33 * MS
    np.testing.assert_array_equal(said[-1].payload, first.payload)


def test_only_the_newest_of_many_waiting_frames_is_used(endpoints):
    with Rig(endpoints) as rig:
        seen = rig.service.frames
        for k in range(200):
            rig.publish(depth(k))
        rig.see(depth(1000))
        assert rig.service.frames - seen < 201
    stream = rig.runtime.summary["stream"]
    assert stream["discarded"] + stream["gaps"] + rig.service.frames >= 201


def test_a_busy_features_endpoint_is_named_and_its_owner_unharmed(endpoints):
    with Publisher(endpoints.features, FEATURES) as owner:
        with pytest.raises(EndpointInUse, match=r"features.*endpoints\.features"), Rig(endpoints):
            pass
        owner.publish(np.zeros(32), capture_ns=1)


def watched(**options):
    clock = FakeClock()
    service = CameraService(CameraCfg(metrics_port=0, **options), clock=clock)
    return clock, service


class Frame:
    """What the watch looks at."""

    def __init__(self, capture_ns, crc32):
        self.capture_ns, self.flags = capture_ns, 0
        self.header = type("Header", (), {"crc32": crc32, "num_elements": 6360})


def test_a_silent_camera_is_complained_about_once_a_second_and_its_age_grows():
    clock, service = watched()
    with captured_logs() as events:
        service._watch.see(Frame(clock(), crc32=1), clock())
        for _ in range(25):
            clock.advance(0.1)
            service._watch.silence(service._warn)
        assert metrics.FRAME_AGE._value.get is not None
        assert service._watch.age_s() == pytest.approx(2.5)
    assert [e["for_s"] for e in events] == [0.2, 1.2, 2.2]
    assert all(e["event"] == "no camera frames" and e["ever"] for e in events)


def test_before_the_first_frame_silence_is_tolerated_for_three_seconds():
    clock, service = watched()
    with captured_logs() as events:
        clock.advance(2.9)
        service._watch.silence(service._warn)
        assert events == []
        clock.advance(0.1)
        service._watch.silence(service._warn)
    assert [(e["for_s"], e["ever"]) for e in events] == [(3.0, False)]
    assert np.isnan(service._watch.age_s())


def test_the_age_of_unchanging_content_grows_although_frames_come():
    clock, service = watched(frozen_after_s=0)  # let through, but told
    for _ in range(10):
        service._watch.see(Frame(clock(), crc32=5), clock())
        clock.advance(0.1)
    assert service._watch.age_s() == pytest.approx(1.0)
    service._watch.see(Frame(clock(), crc32=6), clock())
    assert service._watch.age_s() == 0.0


def test_a_camera_that_is_not_the_one_of_the_robot_is_refused_at_the_start():
    camera = RobotDescription.load().camera
    eye = Eye(camera, min_valid_ratio=0.0)
    assert eye.valid_ratio == 0.0


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"source": "replay"}, "replay.path"),
        ({"silent_after_s": 0.0}, "silent_after_s"),
        ({"min_valid_ratio": 1.5}, "min_valid_ratio"),
    ],
)
def test_values_out_of_range_name_their_key(options, key):
    with pytest.raises(ConfigError, match=key):
        parse(CameraCfg, options, source="test")
