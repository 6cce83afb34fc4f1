"""The ZED Mini, over Stereolabs' own API (`import pyzed.sl`).

Written from the published binding, `src/pyzed/sl.pyx` of stereolabs/zed-python-api for SDK 5, and
the SDK's documentation pages on depth settings, sensors and calibration. The wheel comes with the
SDK; the package called pyzed on PyPI is somebody else's and has no `pyzed.sl`.

Depth is in metres, without temporal smoothing (a policy trained on single exposures must not get
trails), scaled down on the GPU, and stamped with the time of the exposure.

Only the process that opened the camera can read its inertial sensor, so this process serves the
readings as a VN-100 (`krabby.drivers.imu.server`); jetson-hal reads them with `imu.port =
socket://<this host>:<port>`. They include the centripetal acceleration of the camera on a turning
robot.
"""

import importlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import structlog
from krabby.drivers.errors import ImuError
from krabby.drivers.imu import ImuMount, ImuSample
from krabby.drivers.imu.server import ImuServer
from krabby.drivers.imu.vectornav import QUAT_WN
from krabby.robot import rotations
from krabby.robot.description import CameraModel
from numpy.typing import NDArray

from krabby_camera.config import ZedCfg
from krabby_camera.devices import DepthDevice, Shot
from krabby_camera.errors import CameraError, DeviceUnavailable
from krabby_camera.metrics import LOW_LIGHT
from krabby_camera.resample import FAR_READING_M, ColourResampler, Intrinsics, Resampler
from krabby_camera.usb import link_mbps
from krabby_camera.zed_errors import cannot_open, stopped

__all__ = ["ZedCamera", "camera_mount", "imu_sample"]

log = structlog.get_logger(__name__)

_MAJOR: Final = 5
_REBOOT_S: Final = 5.0
"""How long the SDK may try to recover the link by itself before the camera is opened anew."""
_IMU_POLL_S: Final = 0.001
AS_PRINTED: Final = (1.0, 0.0, 0.0, 0.0)
"""Mount under which readings are handed on: x forward, y right, z down."""

_QUEUED_S: Final = 0.25
"""Since its arrival; an exposure that waited for so long lay in a queue of the SDK."""
_MOST_QUEUED: Final = 8
"""Such exposures that are passed over in a row; after them the GPU is that slow."""
_HEALTH_EVERY: Final = 30
"""Used exposures between two looks at what the SDK says of the picture."""
_DOUBTS: Final = {
    "low_lighting": "more light: passive stereo needs some 20 lux; the game loop walks blind where "
    "depth is missing",
    "low_image_quality": "clean the lenses; look for a covered or blinded camera",
    "low_depth_reliability": "compare the two lenses; calibrate with ZED Calibration if this stays",
}
"""What `Camera.get_health_status` may find, with the remedy; the first one found is told."""
_ZED_VENDOR: Final = "2b03"
_USB3_MBPS: Final = 5000.0


class ZedCamera(DepthDevice):
    """A ZED Mini as a `DepthDevice`; gives images of the robot's `camera`.

    `colour_scale` 0 is without colour. Colour is that of the left lens, whose view depth has.
    """

    name = "ZED camera"

    def __init__(
        self,
        cfg: ZedCfg,
        camera: CameraModel,
        *,
        colour_scale: int = 0,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._sl = _load_sdk()
        self._cfg, self._camera, self._clock = cfg, camera, clock
        self._zed: Any = None
        self._runtime: Any = None
        self._measure: Any = None
        self._size: Any = None
        self._resample: Resampler | None = None
        self._colour_scale = colour_scale
        self._colour: ColourResampler | None = None
        self._image: Any = None
        self._delay_ns = 0
        self._lost_before = self._passed_over = self._queued = self._until_health = 0
        self._in_doubt: tuple[str, ...] = ()
        self._rebooting_ns: int | None = None
        self._imu: _ImuRelay | None = None

    def open(self) -> Mapping[str, object]:
        sl, cfg = self._sl, self._cfg
        self._zed = sl.Camera()
        code = self._zed.open(self._init_parameters())
        if code > sl.ERROR_CODE.SUCCESS:  # what is less is a warning
            raise cannot_open(code)
        self._runtime = sl.RuntimeParameters(
            confidence_threshold=cfg.confidence, texture_confidence_threshold=cfg.texture_confidence
        )
        self._measure = sl.Mat()
        info = self._zed.get_camera_information()
        full = info.camera_configuration.resolution
        width = min(cfg.measure_width, full.width)
        self._size = sl.Resolution(width, round(width * full.height / full.width))
        source = self._intrinsics(self._size)
        self._resample = Resampler(source, self._camera)
        if self._colour_scale:
            self._image = sl.Mat()
            full_size = sl.Resolution(full.width, full.height)
            seen = self._intrinsics(full_size)
            self._colour = ColourResampler(seen, self._camera, self._colour_scale)
        fps = float(info.camera_configuration.fps)
        self._delay_ns = round(1e9 * cfg.frames_before_stamp / fps)
        self._lost_before, self._rebooting_ns = self.gaps, None
        self._passed_over = self._queued = self._until_health = 0
        _warn_of_usb2(speed := link_mbps(_ZED_VENDOR))
        if self._imu is None:
            self._imu = _open_imu(cfg, self._sl, self._camera, self._clock)
        if self._imu is not None:
            self._imu.start(self._zed)
        return {
            "model": str(info.camera_model),
            "serial": info.serial_number,
            "firmware": info.camera_configuration.firmware_version,
            "sdk": sl.Camera.get_sdk_version(),
            "fps": fps,
            "usb_mbps": speed,
            "measure": f"{source.width} x {source.height}",
            "fov_deg": [round(angle, 1) for angle in source.fov_deg],
            "warning": "" if code == sl.ERROR_CODE.SUCCESS else str(code),
        }

    def grab(self, *, colour: bool = False) -> Shot | None:
        sl, zed = self._sl, self._zed
        code = zed.grab(self._runtime)
        if code == sl.ERROR_CODE.CORRUPTED_FRAME:
            self.invalid += 1
            return None
        if code == sl.ERROR_CODE.CAMERA_REBOOTING:
            return self._wait_for_reboot()
        if code > sl.ERROR_CODE.SUCCESS:
            raise stopped(code)
        self._rebooting_ns = None
        self.gaps = self._lost_before + self._passed_over + zed.get_frame_dropped_count()
        capture_ns = self._capture_ns()
        if self._is_queued(capture_ns):
            return None
        code = zed.retrieve_measure(self._measure, sl.MEASURE.DEPTH, sl.MEM.CPU, self._size)
        if code > sl.ERROR_CODE.SUCCESS:
            raise stopped(code)
        assert self._resample is not None
        depth = self._resample(self._measure.get_data())
        picture = self._picture() if colour else None
        self._look_at_health()
        return Shot(depth, capture_ns, picture)

    def _picture(self) -> NDArray[np.uint8] | None:
        """The left lens's image, rectified as depth is."""
        sl = self._sl
        if self._colour is None:
            return None
        code = self._zed.retrieve_image(self._image, sl.VIEW.LEFT, sl.MEM.CPU)
        if code > sl.ERROR_CODE.SUCCESS:
            raise stopped(code)
        bgra = self._image.get_data()
        return self._colour(bgra[:, :, 2::-1])

    def _is_queued(self, capture_ns: int) -> bool:
        """Whether an exposure is so old that newer ones wait behind it: the next one is taken."""
        if (self._clock() - self._delay_ns - capture_ns) * 1e-9 <= _QUEUED_S:
            self._queued = 0
            return False
        self._queued += 1
        if self._queued > _MOST_QUEUED:
            return False  # an old picture, whose age is known, is more than none
        if self._queued == 1:
            log.warning(
                "exposures wait in a queue of the SDK and are passed over",
                remedy="if this stays: zed.depth_mode=neural_light, or a lower zed.fps",
            )
        self._passed_over += 1
        return True

    def _look_at_health(self) -> None:
        """Tell, when it changes, what the SDK doubts of the picture: light, quality, depth."""
        self._until_health -= 1
        ask = getattr(self._zed, "get_health_status", None)
        if self._until_health > 0 or ask is None:
            return
        self._until_health = _HEALTH_EVERY
        status = ask()
        doubts = tuple(name for name in _DOUBTS if getattr(status, name, False))
        LOW_LIGHT.set("low_lighting" in doubts)
        if doubts != self._in_doubt and doubts:
            log.warning("the SDK doubts the picture", doubts=doubts, remedy=_DOUBTS[doubts[0]])
        elif doubts != self._in_doubt:
            log.info("the SDK trusts the picture again")
        self._in_doubt = doubts

    def close(self) -> None:
        if self._imu is not None:
            self._imu.stop()
        if self._zed is not None:
            self._zed.close()
            self._zed = None

    def release(self) -> None:
        """Close what outlives a lost camera."""
        if self._imu is not None:
            self._imu.close()

    def _init_parameters(self) -> Any:
        sl, cfg = self._sl, self._cfg
        init = sl.InitParameters()
        init.camera_resolution = getattr(sl.RESOLUTION, cfg.resolution.upper())
        init.camera_fps = cfg.fps
        init.depth_mode = getattr(sl.DEPTH_MODE, cfg.depth_mode.upper())
        init.coordinate_units = sl.UNIT.METER
        init.coordinate_system = sl.COORDINATE_SYSTEM.RIGHT_HANDED_Z_UP_X_FWD
        init.depth_minimum_distance = self._camera.near_m
        init.depth_maximum_distance = FAR_READING_M
        init.depth_stabilization = 0
        # depth is computed only as often as it is used
        init.grab_compute_capping_fps = self._camera.rate_hz
        # a grab that waits for a lost camera would hold this thread for seconds
        init.async_grab_camera_recovery = True
        init.sensors_required = bool(cfg.imu_listen)
        # what `get_health_status` goes by, and CORRUPTED_FRAME
        init.enable_image_validity_check = True
        init.sdk_verbose = 0
        if cfg.serial:
            init.set_from_serial_number(cfg.serial)
        return init

    def _intrinsics(self, size: Any) -> Intrinsics:
        info = self._zed.get_camera_information(size)
        left = info.camera_configuration.calibration_parameters.left_cam
        return Intrinsics(size.width, size.height, left.fx, left.fy, left.cx, left.cy)

    def _capture_ns(self) -> int:
        """The SDK stamps the arrival of the whole image with its own clock, whichever that is.

        Its documentation puts the exposure two or three frames before; configured.
        """
        reference, zed = self._sl.TIME_REFERENCE, self._zed
        arrived = zed.get_timestamp(reference.IMAGE).get_nanoseconds()
        age_ns = zed.get_timestamp(reference.CURRENT).get_nanoseconds() - arrived
        return self._clock() - age_ns - self._delay_ns

    def _wait_for_reboot(self) -> None:
        now_ns = self._clock()
        self._rebooting_ns = self._rebooting_ns or now_ns
        if now_ns - self._rebooting_ns > _REBOOT_S * 1e9:
            raise DeviceUnavailable(
                f"the ZED camera did not come back by itself in {_REBOOT_S:g} s; it is opened again"
            )
        time.sleep(0.05)


class _ImuRelay:
    """Hands the camera's inertial readings on, as soon as there are new ones."""

    def __init__(
        self, sl: Any, server: ImuServer, mount: ImuMount, clock: Callable[[], int]
    ) -> None:
        self._sl, self._server, self._mount, self._clock = sl, server, mount, clock
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, zed: Any) -> None:
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, args=(zed,), name="zed-imu", daemon=True)
        self._thread.start()
        log.info("handing on the camera's IMU", address=self._server.address)

    def stop(self) -> None:
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        self.stop()
        self._server.close()

    def _run(self, zed: Any) -> None:
        sl, data = self._sl, self._sl.SensorsData()
        last_ns = 0
        while not self._stop.wait(_IMU_POLL_S):
            code = zed.get_sensors_data(data, sl.TIME_REFERENCE.CURRENT)
            imu = data.get_imu_data()
            measured_ns = imu.timestamp.get_nanoseconds()
            # the same reading comes back until there is a new one
            if code != sl.ERROR_CODE.SUCCESS or measured_ns == last_ns:
                self._server.poll()
                continue
            last_ns = measured_ns
            current = zed.get_timestamp(sl.TIME_REFERENCE.CURRENT).get_nanoseconds()
            stamp_ns = self._clock() - (current - measured_ns)
            temperature = data.get_temperature_data().get(sl.SENSOR_LOCATION.IMU)
            self._server.publish(imu_sample(imu, self._mount, stamp_ns, float(temperature)))


def camera_mount(camera: CameraModel) -> ImuMount:
    """How the SDK's camera frame (x forward, y left, z up, as we ask for) sits on the robot."""
    return ImuMount(rotations.from_euler(0.0, camera.mount_pitch_rad, 0.0))


def imu_sample(imu: Any, mount: ImuMount, stamp_ns: int, temperature_c: float) -> ImuSample:
    """Our sample of an `sl.IMUData`: its gyroscopes speak degrees per second."""
    return ImuSample(
        *mount.to_base(
            imu.get_pose().get_orientation().get(),
            np.radians(imu.get_angular_velocity()),
            imu.get_linear_acceleration(),
        ),
        stamp_ns,
        temperature_c,
    )


def _load_sdk() -> Any:
    try:
        sl = importlib.import_module("pyzed.sl")
    except ImportError as error:
        raise CameraError(
            f"pyzed.sl cannot be imported ({error}); install the ZED SDK {_MAJOR}, then run "
            "/usr/local/zed/get_python_api.py with this Python. The package pyzed of PyPI is "
            "another project: uninstall it if it is there"
        ) from error
    version = str(sl.Camera.get_sdk_version())
    if version.split(".")[0] != str(_MAJOR):
        raise CameraError(
            f"ZED SDK {version} is not supported; install version {_MAJOR} and its Python API"
        )
    return sl


def _open_imu(
    cfg: ZedCfg, sl: Any, camera: CameraModel, clock: Callable[[], int]
) -> _ImuRelay | None:
    if not cfg.imu_listen:
        return None
    try:
        server = ImuServer(cfg.imu_listen, ImuMount(AS_PRINTED, QUAT_WN))
    except ImuError as error:
        raise CameraError(f"zed.imu_listen: {error}") from error
    return _ImuRelay(sl, server, camera_mount(camera), clock)


def _warn_of_usb2(speed_mbps: float | None) -> None:
    """A ZED works on USB 2 for a while, at fewer exposures than it is told."""
    if speed_mbps is not None and speed_mbps < _USB3_MBPS:
        log.warning(
            "the ZED camera is not on USB 3",
            mbps=speed_mbps,
            remedy="plug it straight into a USB 3 port; turn the USB-C plug over",
        )
