"""Cameras of this machine, over faithful fakes of their libraries and real sockets."""

import contextlib
import math
import shutil
import sys
import tempfile
import time

import numpy as np
import pytest
from krabby.config import ConfigError, parse
from krabby.drivers.imu.serial_imu import SerialImu
from krabby.hal.jpeg import from_jpeg
from krabby.policy.depth_image import DepthPreprocessor
from krabby.robot import rotations
from krabby.robot.description import RobotDescription
from krabby.runtime.testing import captured_logs, free_port, running, until
from krabby_camera import metrics, zed, zed_errors
from krabby_camera.config import (
    CameraCfg,
    ColourCfg,
    EndpointsCfg,
    RealSenseCfg,
    SelfCheckCfg,
    ZedCfg,
)
from krabby_camera.devices import DeviceSource
from krabby_camera.errors import CameraError, DeviceUnavailable
from krabby_camera.realsense import RealSenseCamera
from krabby_camera.service import CameraService
from krabby_camera.usb import link_mbps
from krabby_camera.zed import ZedCamera, camera_mount, imu_sample
from krabby_proto import CAMERA, COLOUR, FEATURES, LatestSubscriber

MODEL = RobotDescription.load().camera


@pytest.fixture
def folder():
    path = tempfile.mkdtemp(prefix="cam")  # short: a Unix socket's path has 107 characters
    yield path
    shutil.rmtree(path)


@contextlib.contextmanager
def service(folder, **options):
    """The service on a camera of this machine, and who reads its two streams."""
    endpoints = EndpointsCfg(
        raw=f"ipc://{folder}/raw",
        features=f"ipc://{folder}/feat",
        state=f"ipc://{folder}/state",
        colour=f"ipc://{folder}/colour",
    )
    made = CameraService(CameraCfg(metrics_port=0, endpoints=endpoints, **options))
    with (
        LatestSubscriber(endpoints.raw, CAMERA) as raw,
        LatestSubscriber(endpoints.features, FEATURES) as features,
        running(made) as runtime,
    ):
        made.runtime = runtime
        yield made, raw, features


def sdk_depth(recorded):
    """A recorded picture as the SDK tells it: +inf for what is out of range."""
    return np.where(recorded.zed > 0, recorded.zed, np.inf).astype(np.float32)


# --- ZED


def test_the_sdk_is_told_what_a_policy_needs(sl):
    camera = ZedCamera(ZedCfg(serial=42), MODEL)
    camera.open()
    (init,) = sl.world.opened
    assert init.coordinate_units is sl.UNIT.METER
    assert init.coordinate_system is sl.COORDINATE_SYSTEM.RIGHT_HANDED_Z_UP_X_FWD
    assert init.depth_stabilization == 0
    assert init.depth_mode is sl.DEPTH_MODE.NEURAL_LIGHT
    assert (init.camera_resolution, init.camera_fps) == (sl.RESOLUTION.VGA, 60)
    assert init.grab_compute_capping_fps == 30.0
    assert init.depth_minimum_distance == pytest.approx(0.1)
    assert init.async_grab_camera_recovery is True
    assert init.serial_number == 42
    camera.close()


def test_depth_of_the_zed_reaches_the_hal_and_its_image_the_policy(sl, folder, scene):
    recorded = scene("post")
    sl.world.depth = sdk_depth(recorded)
    with service(folder, source="zed") as (_, raw, features):
        frame, seen = same_frame(raw, features)
        depth = frame.payload.reshape(60, 106)
        near = (recorded.robot > 0) & (recorded.robot < 4.0)
        error = np.abs(depth - recorded.robot)[near] / recorded.robot[near]
        assert np.median(error) < 0.003
        assert np.isfinite(depth).all()
        assert np.array_equal(seen.payload.reshape(58, 87), DepthPreprocessor(MODEL)(depth))
        assert seen.flags == frame.flags == 0


def same_frame(raw, features):
    """Depth and features of the same exposure."""
    frames_, seen = {}, {}

    def both():
        frames_.update((message.capture_ns, message) for message in raw.drain())
        seen.update((message.capture_ns, message) for message in features.drain())
        return frames_.keys() & seen.keys()

    until(both)
    stamp = both().pop()
    return frames_[stamp], seen[stamp]


def test_colour_of_the_zed_lies_on_its_depth_and_is_made_while_it_is_read(sl, folder):
    """A red thing, near, before a blue wall: the same pixels in both images."""
    sl.world.depth[:] = 3.0
    sl.world.depth[60:130, 100:180] = 1.0
    sl.world.image[:] = (200, 30, 30, 255)  # blue, green, red, opacity
    sl.world.image[120:260, 200:360] = (30, 30, 200, 255)
    with service(folder, source="zed", colour=ColourCfg(enabled=True)) as (made, raw, _):
        until(lambda: made.frames >= 5)
        assert sl.world.images == 0, "copied before it was read"
        with LatestSubscriber(f"ipc://{folder}/colour", COLOUR) as colour:
            message = colour.wait(20.0)
            until(lambda: colour.wait(0.01))
        picture = from_jpeg(message.payload.tobytes())
        assert picture.shape == (240, 424, 3)
        depth = raw.latest().payload.reshape(60, 106)
        middle = picture[2::4, 2::4].astype(int)
        red = middle[:, :, 0] > middle[:, :, 2]
        assert np.mean(red == (depth < 2.0)) > 0.99
        assert 0.05 < red.mean() < 0.2
        age_s = (time.monotonic_ns() - message.capture_ns) * 1e-9
        assert age_s >= 0.0373, "the time of the exposure, as depth has it"
        until(lambda: made._source.colour_hz == 0.0)


def test_no_more_colour_images_are_taken_than_asked_for(sl):
    sl.world.frame_s = 0.001
    clock_ns = [0]
    device = ZedCamera(ZedCfg(), MODEL, colour_scale=2)
    source = DeviceSource(device, rate_hz=30.0, clock=lambda: clock_ns[0])
    try:
        assert source.wait(20.0) is not None
        assert source.take_colour() is None
        source.colour_hz = 5.0
        images = []
        until(lambda: images.append(source.take_colour()) or images[-1])
        assert images[-1].picture.shape == (120, 212, 3)
        count = source.received
        until(lambda: source.received > count + 20)
        assert sl.world.images == 1, "the clock stands still"
        clock_ns[0] += 200_000_000
        until(source.take_colour)
        assert sl.world.images == 2
    finally:
        source.close()


def grabbed(camera):
    """The next exposure that is used, and how many before it a stall of this machine made old."""
    old = 0
    while (shot := camera.grab()) is None:
        old += 1
    return shot, old


def test_capture_times_are_those_of_the_exposure_on_the_monotonic_clock(sl):
    # arrived 4 ms before depth was ready, and two frames of 60 Hz before that: 37.3 ms
    camera = ZedCamera(ZedCfg(), MODEL)
    camera.open()
    shot, _ = grabbed(camera)
    age_s = (time.monotonic_ns() - shot.capture_ns) * 1e-9
    assert 0.0373 <= age_s < 0.2
    camera.close()


def test_no_more_frames_are_used_than_the_robot_s_camera_has(sl):
    sl.world.frame_s = 0.001
    source = DeviceSource(ZedCamera(ZedCfg(), MODEL), rate_hz=30.0)
    try:
        stamps = []
        while len(stamps) < 4:
            frame = source.wait(1.0)
            stamps.append(frame.capture_ns)
        assert min(np.diff(stamps)) >= 25_000_000  # three quarters of a period
        assert source.received > 20
    finally:
        source.close()


def test_an_unplugged_zed_is_opened_again_and_the_picture_goes_on(sl, folder, scene):
    sl.world.depth = sdk_depth(scene("flat"))
    with (
        captured_logs() as events,
        service(folder, source="zed", self_check=SelfCheckCfg(when="off")) as (made, raw, _),
    ):
        made._source._backoff_s = (0.02, 0.05)
        until(lambda: raw.wait(0.1))
        sl.world.open_results = [sl.ERROR_CODE.CAMERA_NOT_DETECTED] * 2
        sl.world.unplugged.set()
        until(lambda: sum(event["event"] == "no camera" for event in events) >= 2)
        until(lambda: "CAMERA_NOT_DETECTED" in made.runtime.heartbeat.doing)
        sl.world.unplugged.clear()
        until(lambda: made._source.reconnects == 1)
        raw.latest()
        until(lambda: raw.wait(0.1))
        until(lambda: made.runtime.heartbeat.doing == "")
    reasons = [event["reason"] for event in events if event["event"] == "no camera"]
    assert reasons[0].startswith(
        "the ZED camera stopped: CAMERA_NOT_DETECTED; plug it into a USB 3"
    )
    assert sl.world.closed == len(sl.world.opened)


def test_a_damaged_exposure_is_counted_and_skipped(sl):
    camera = ZedCamera(ZedCfg(), MODEL)
    camera.open()
    sl.world.grab_results = [sl.ERROR_CODE.CORRUPTED_FRAME]
    sl.world.dropped = 3
    assert camera.grab() is None
    _, old = grabbed(camera)
    assert (camera.invalid, camera.gaps) == (1, 3 + old)
    camera.close()


def test_a_link_that_recovers_by_itself_is_waited_for_but_not_for_ever(sl):
    now = [0]
    camera = ZedCamera(ZedCfg(), MODEL, clock=lambda: now[0])
    camera.open()
    sl.world.grab_results = [sl.ERROR_CODE.CAMERA_REBOOTING] * 4
    now[0] = 1_000_000_000
    assert camera.grab() is None
    now[0] += 5_000_000_000
    assert camera.grab() is None
    now[0] += 1
    with pytest.raises(DeviceUnavailable, match="did not come back by itself in 5 s"):
        camera.grab()
    camera.close()


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        ("CAMERA_NOT_DETECTED", DeviceUnavailable, "plug it into a USB 3 port"),
        ("LOW_USB_BANDWIDTH", DeviceUnavailable, "no hub"),
        ("CANNOT_START_CAMERA_STREAM", DeviceUnavailable, "close the other process"),
        ("NO_GPU_DETECTED", CameraError, "runtime: nvidia"),
        ("NO_GPU_COMPATIBLE", CameraError, "NVIDIA GPU"),
        ("NVIDIA_DRIVER_OUT_OF_DATE", CameraError, "update the driver"),
        ("CALIBRATION_FILE_NOT_AVAILABLE", CameraError, "/usr/local/zed/settings"),
        ("FAILURE", DeviceUnavailable, "run ZED_Diagnostic"),
        ("MODULE_NOT_COMPATIBLE_WITH_CUDA_VERSION", CameraError, "this image's CUDA"),
    ],
)
def test_every_refusal_of_the_sdk_says_what_to_do(sl, code, kind, words):
    sl.world.open_results = [sl.ERROR_CODE[code]]
    with pytest.raises(kind, match=f"{code}; .*{words}"):
        ZedCamera(ZedCfg(), MODEL).open()


def test_every_result_of_the_sdk_has_a_remedy_and_is_final_or_passing(sl):
    failures = {code.name for code in sl.ERROR_CODE if code > sl.ERROR_CODE.SUCCESS}
    assert failures <= zed_errors.FINAL.keys() | zed_errors.PASSING.keys()
    assert not zed_errors.FINAL.keys() & zed_errors.PASSING.keys()


@pytest.mark.parametrize("code", ["CUDA_ERROR", "MODULE_NOT_COMPATIBLE_WITH_CUDA_VERSION"])
def test_a_process_that_lost_cuda_while_it_ran_ends(sl, folder, code):
    """It would fail for ever: the context is gone; a new process has another one."""
    sl.world.grab_results = [sl.ERROR_CODE[code]]
    with (
        pytest.raises(CameraError, match=f"{code}; ") as raised,
        service(folder, source="zed") as (made, *_),
    ):
        until(lambda: made._source._failure)
    assert not isinstance(raised.value, DeviceUnavailable)
    assert len(sl.world.opened) == 1


def test_exposures_that_wait_in_a_queue_are_passed_over_for_a_newer_one(sl):
    camera = ZedCamera(ZedCfg(), MODEL)
    camera.open()
    with captured_logs() as events:
        sl.world.arrived_before_s = 3.0
        assert [camera.grab() for _ in range(3)] == [None] * 3
        sl.world.arrived_before_s = 0.0
        _, old = grabbed(camera)
    assert camera.gaps == 3 + old
    assert sum("queue of the SDK" in event["event"] for event in events) >= 1
    camera.close()


def test_a_gpu_that_is_slow_for_good_gives_old_exposures_rather_than_none(sl):
    camera = ZedCamera(ZedCfg(), MODEL)
    camera.open()
    sl.world.arrived_before_s = 3.0
    shots = [camera.grab() for _ in range(9)]
    assert shots[:8] == [None] * 8
    assert (time.monotonic_ns() - shots[8].capture_ns) * 1e-9 > 3.0  # and its age is told
    camera.close()


def test_low_light_is_told_once_and_over_when_it_is(sl):
    camera = ZedCamera(ZedCfg(), MODEL)
    camera.open()
    with captured_logs() as events:
        sl.world.doubts = {"low_lighting"}
        for _ in range(61):
            grabbed(camera)
        assert metrics.LOW_LIGHT._value.get() == 1.0
        sl.world.doubts = set()
        for _ in range(31):
            grabbed(camera)
    assert metrics.LOW_LIGHT._value.get() == 0.0
    told = [event["event"] for event in events if event["event"].startswith("the SDK")]
    assert told == ["the SDK doubts the picture", "the SDK trusts the picture again"]
    assert "more light" in next(e["remedy"] for e in events if "doubts" in e)
    camera.close()


def test_a_zed_on_usb_2_is_told_with_its_speed(sl, monkeypatch, tmp_path):
    for name, vendor, speed in (
        ("1-1", "2b03", "12"),
        ("2-1", "2b03", "480"),
        ("3", "8086", "5000"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "idVendor").write_text(f"{vendor}\n")
        (tmp_path / name / "speed").write_text(f"{speed}\n")
    monkeypatch.setattr(zed, "link_mbps", lambda vendor: link_mbps(vendor, tmp_path))
    camera = ZedCamera(ZedCfg(), MODEL)
    with captured_logs() as events:
        assert camera.open()["usb_mbps"] == 480.0
        camera.close()
        (tmp_path / "2-1" / "speed").write_text("5000\n")
        assert camera.open()["usb_mbps"] == 5000.0
    camera.close()
    (told,) = (event for event in events if event["event"] == "the ZED camera is not on USB 3")
    assert (told["mbps"], "USB 3 port" in told["remedy"]) == (480.0, True)


def test_a_camera_that_another_process_holds_is_opened_once_that_lets_go(sl, folder, scene):
    sl.world.depth = sdk_depth(scene("flat"))
    sl.world.open_results = [sl.ERROR_CODE.CANNOT_START_CAMERA_STREAM]
    with (
        captured_logs() as events,
        service(folder, source="zed", self_check=SelfCheckCfg(when="off")) as (_, raw, _),
    ):
        until(lambda: raw.wait(0.1))
    reasons = [event["reason"] for event in events if event["event"] == "no camera"]
    assert "sudo fuser -v /dev/video*" in reasons[0]


def test_a_fallback_of_the_sdk_is_a_warning(sl):
    sl.world.open_results = [sl.ERROR_CODE.CONFIGURATION_FALLBACK]
    camera = ZedCamera(ZedCfg(), MODEL)
    assert camera.open()["warning"] == "Configuration fallback"
    camera.close()


def test_without_a_gpu_the_service_ends_with_the_reason(sl, folder):
    sl.world.open_results = [sl.ERROR_CODE.NO_GPU_DETECTED]
    with (
        pytest.raises(CameraError, match="NO_GPU_DETECTED; give the container the GPU"),
        service(folder, source="zed") as (made, *_),
    ):
        until(lambda: made._source._failure)


def test_a_zed_whose_view_is_too_narrow_ends_the_service(sl, folder):
    sl.world.f = 450.0
    with (
        pytest.raises(CameraError, match="ZED Mini: vga"),
        service(folder, source="zed") as (made, *_),
    ):
        until(lambda: made._source._failure)


def test_the_package_of_pypi_or_no_sdk_is_told_how_to_get_the_right_one(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyzed.sl", None)
    with pytest.raises(CameraError, match=r"get_python_api.py.*PyPI is another project"):
        CameraService(CameraCfg(source="zed"))


def test_an_sdk_of_another_generation_is_refused(sl):
    sl.world.sdk_version = "3.8.2"
    with pytest.raises(CameraError, match=r"ZED SDK 3.8.2 is not supported; install version 5"):
        ZedCamera(ZedCfg(), MODEL)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fps": 50}, "fps is 50; expected"),
        ({"fps": 100, "resolution": "hd720"}, "since resolution is hd720"),
        ({"measure_width": 80}, "measure_width is 80"),
    ],
)
def test_modes_that_the_camera_does_not_have_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        parse(ZedCfg, options, source="test")


# --- the ZED's inertial sensor


def test_degrees_per_second_and_the_camera_s_tilt_become_radians_in_the_base_frame(sl):
    # the camera looks 30 deg down; the robot stands level and turns left at 90 deg/s.
    # Camera axes, x along the view: up is (-sin 30, 0, cos 30), so 90 deg/s is (-45, 0, 77.94);
    # gravity's reaction likewise, 9.81 * (-0.5, 0, 0.866)
    half = math.radians(15.0)
    imu = sl.IMUData(
        (0.0, math.sin(half), 0.0, math.cos(half)), (-45.0, 0.0, 77.9423), (-4.905, 0.0, 8.49571)
    )
    sample = imu_sample(imu, camera_mount(MODEL), 5, 41.0)
    assert np.abs(sample.quat_wb) == pytest.approx([0, 0, 0, 1], abs=1e-9)
    assert sample.ang_vel_b == pytest.approx([0, 0, math.pi / 2], abs=1e-5)
    assert sample.lin_acc_b == pytest.approx([0, 0, 9.81], abs=1e-4)
    assert (sample.stamp_ns, sample.temperature_c) == (5, 41.0)


def test_the_hal_s_own_driver_reads_the_zed_s_imu_through_this_process(sl, folder, scene):
    sl.world.depth = sdk_depth(scene("flat"))
    half = math.radians(15.0)
    quat = (0.0, math.sin(half), 0.0, math.cos(half))
    readings = iter(range(10**9))

    class Live:
        """A new reading each time it is looked at."""

        def __iter__(self):
            next(readings)
            return iter((quat, (-45.0, 0.0, 77.9423), (-4.905, 0.0, 8.49571), time.time_ns()))

    sl.world.imu = Live()
    port = free_port()
    with service(folder, source="zed", zed=ZedCfg(imu_listen=f"tcp://127.0.0.1:{port}")) as (
        made,
        *_,
    ):
        until(lambda: made._device._imu is not None)
        imu = SerialImu(f"socket://127.0.0.1:{port}", mount_quat=(1, 0, 0, 0), rate_hz=200)
        try:
            until(lambda: opened(imu))
            until(lambda: imu.counters.received > 10)
            sample = imu.latest()
            assert sample.ang_vel_b == pytest.approx([0, 0, math.pi / 2], abs=1e-5)
            assert sample.lin_acc_b == pytest.approx([0, 0, 9.81], abs=1e-4)
            assert rotations.tilt(sample.quat_wb) == pytest.approx(0.0, abs=1e-3)
            assert 0 <= time.monotonic_ns() - sample.stamp_ns < 1_000_000_000
        finally:
            imu.close()


def opened(imu):
    imu.open()
    return True


# --- self-check


def test_the_view_is_checked_at_the_start_and_the_picture_goes_on(sl, folder, scene):
    sl.world.depth = sdk_depth(scene("flat"))
    with (
        captured_logs() as events,
        service(folder, source="zed", self_check=SelfCheckCfg(frames=2, state_wait_s=0.0)) as (
            made,
            _,
            features,
        ),
    ):
        until(lambda: any(event["event"] == "camera self-check" for event in events))
        assert made._self_check is None
        until(lambda: features.wait(0.1))
    (verdict,) = [event for event in events if event["event"] == "camera self-check"]
    assert verdict["problems"] == []
    assert verdict["pitch_error_deg"] == pytest.approx(0.0, abs=0.1)


def test_bring_up_ends_with_what_is_wrong(sl, folder, scene):
    # recorded on a leaning robot, unknown to the service: 25.4 deg in place of 30
    sl.world.depth = sdk_depth(scene("leaning"))
    check = SelfCheckCfg(when="only", frames=2, state_wait_s=0.0, max_roll_deg=9.0)
    with (
        pytest.raises(CameraError, match=r"looks 4\.6 deg too far up"),
        service(folder, source="zed", self_check=check) as (made, *_),
    ):
        until(lambda: made.runtime.stopping)


# --- RealSense


def realsense(**options):
    return RealSenseCamera(RealSenseCfg(**options), MODEL)


def test_depth_of_a_realsense_comes_out_in_metres(rs):
    rs.world.depth[:, 240:] = 0
    camera = realsense(serial="1234", emitter=False)
    facts = camera.open()
    assert rs.world.requested == [("1234", (rs.stream.depth, 480, 270, rs.format.z16, 60))]
    assert rs.world.options == {rs.option.emitter_enabled: 0.0}
    assert facts["fov_deg"] == [90.0, 58.7]
    shot = camera.grab()
    assert shot.depth.dtype == np.float32
    assert np.allclose(shot.depth[:, :52], 1.0, atol=0.0011)
    assert np.all(shot.depth[:, 54:] == 0.0)
    camera.close()


def test_colour_of_a_realsense_is_black_where_its_sensor_does_not_reach(rs):
    # robot: 4 x 55.85 = 223.4 px; colour: f 308.4, 424 wide. Half of it is 212 / 308.4 * 223.4 =
    # 153.6 px to either side of 211.5: columns 58 to 365
    rs.world.image[:] = (10, 200, 30)
    camera = RealSenseCamera(RealSenseCfg(), MODEL, colour_scale=4)
    facts = camera.open()
    assert rs.world.requested[0][2] == (rs.stream.color, 424, 240, rs.format.rgb8, 60)
    assert facts["colour"] == "424 x 240"
    assert camera.grab().picture is None, "not asked for"
    picture = camera.grab(colour=True).picture
    covered = picture.any(axis=2)
    columns = np.flatnonzero(covered[120])
    assert (columns[0], columns[-1]) == (58, 365)
    assert np.all(picture[covered] == (10, 200, 30))
    assert facts["colour_covered"] == pytest.approx(covered.mean(), abs=0.005)
    rs.world.image = None
    assert camera.grab(colour=True).picture is None, "a set of frames without one"
    camera.close()


def test_a_realsense_without_colour_is_asked_for_depth_alone(rs):
    camera = realsense()
    camera.open()
    assert len(rs.world.requested[0]) == 2
    assert camera.grab(colour=True).picture is None
    camera.close()


@pytest.mark.parametrize("source", ["hal", "replay"])
def test_colour_without_a_camera_of_this_machine_is_refused(source):
    table = {"source": source, "replay": {"path": "x.mcap"}, "colour": {"enabled": True}}
    with pytest.raises(ConfigError, match=rf"colour.enabled.*since source is {source}"):
        parse(CameraCfg, table, source="test")


@pytest.mark.parametrize("domain", ["global_time", "system_time", "hardware_clock"])
def test_whatever_clock_a_realsense_stamps_with_capture_is_on_ours(rs, domain):
    rs.world.domain = rs.timestamp_domain[domain]
    camera = realsense()
    camera.open()
    shot, _ = grabbed(camera)
    age_s = (time.monotonic_ns() - shot.capture_ns) * 1e-9
    # exposed 12 ms before; a hardware clock's first frame cannot tell, so its arrival counts
    assert (0.0 if domain == "hardware_clock" else 0.0119) <= age_s < 0.2
    camera.close()


def test_lost_exposures_of_a_realsense_are_counted(rs):
    camera = realsense()
    camera.open()
    camera.grab()
    rs.world.skip = 2
    camera.grab()
    assert camera.gaps == 2
    camera.close()


def test_an_unplugged_realsense_is_opened_again(rs, folder):
    rs.world.depth[:] = np.linspace(500, 3000, 480, dtype=np.uint16)
    with (
        captured_logs() as events,
        service(folder, source="realsense", self_check=SelfCheckCfg(when="off")) as (made, raw, _),
    ):
        made._source._backoff_s = (0.02, 0.05)
        until(lambda: raw.wait(0.1))
        rs.world.start_errors = ["No device connected"]
        rs.world.unplugged.set()
        until(lambda: sum(event["event"] == "no camera" for event in events) >= 2)
        rs.world.unplugged.clear()
        until(lambda: made._source.reconnects == 1)
        raw.latest()
        until(lambda: raw.wait(0.1))
    reasons = [event["reason"] for event in events if event["event"] == "no camera"]
    assert "Device disconnected" in reasons[0]
    assert "cannot be opened: No device connected; plug it into a USB 3 port" in reasons[1]


def test_a_realsense_on_usb_2_is_a_warning(rs):
    rs.world.usb = "2.1"
    camera = realsense()
    assert camera.open()["warning"] == "connected over USB 2.1: use a USB 3 port"
    camera.close()


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyrealsense2", None)
    with pytest.raises(CameraError, match=r"krabby-camera\[realsense\].*libusb-1.0-0"):
        realsense()


def test_the_fake_has_the_names_of_the_real_library(rs):
    fake = rs
    sys.modules.pop("pyrealsense2")
    try:
        real = pytest.importorskip("pyrealsense2", exc_type=ImportError)
    finally:
        sys.modules["pyrealsense2"] = fake
    for name in ("stream", "format", "option", "timestamp_domain", "camera_info"):
        for member in getattr(fake, name):
            assert hasattr(getattr(real, name), member.name), f"{name}.{member.name}"
    for name in (
        "pipeline", "config", "pipeline_profile", "stream_profile", "video_stream_profile",
        "device", "depth_sensor", "depth_frame", "composite_frame",
    ):  # fmt: skip
        for method in vars(getattr(fake, name)):
            assert method.startswith("__") or hasattr(getattr(real, name), method), (name, method)
