"""Intel RealSense stereo cameras (D435, D455 and similar), over pyrealsense2.

Stereo runs on the camera, so it needs no GPU. Written against pyrealsense2 2.59 (librealsense's own
wheel), whose names a test compares with the fake's.
"""

import contextlib
import importlib
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from krabby.drivers.clock import ClockMap
from krabby.robot.description import CameraModel
from numpy.typing import NDArray

from krabby_camera.config import RealSenseCfg
from krabby_camera.devices import DepthDevice, Shot
from krabby_camera.errors import CameraError, DeviceUnavailable
from krabby_camera.resample import ColourResampler, Intrinsics, Resampler

__all__ = ["RealSenseCamera"]

_WAIT_MS: Final = 200
_SILENT_S: Final = 2.0
"""Without a frame for this long the camera is opened again."""


class RealSenseCamera(DepthDevice):
    """A RealSense as a `DepthDevice`; gives images of the robot's `camera`.

    `colour_scale` 0 is without colour. Its colour sensor stands beside the left imager, whose view
    depth has: 15 mm in a D435, so near things are shifted, and it sees less.
    """

    name = "RealSense camera"

    def __init__(
        self,
        cfg: RealSenseCfg,
        camera: CameraModel,
        *,
        colour_scale: int = 0,
        clock: Callable[[], int] = time.monotonic_ns,
        wall_clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._rs = _load_library()
        self._cfg, self._camera = cfg, camera
        self._clock, self._wall_clock = clock, wall_clock
        self._clock_map = ClockMap()
        self._pipeline: Any = None
        self._scale = np.float32(0.0)
        self._resample: Resampler | None = None
        self._colour_scale = colour_scale
        self._colour: ColourResampler | None = None
        self._heard_ns = 0
        self._number: int | None = None

    def open(self) -> Mapping[str, object]:
        rs, cfg = self._rs, self._cfg
        config = rs.config()
        if cfg.serial:
            config.enable_device(cfg.serial)
        config.enable_stream(rs.stream.depth, cfg.width, cfg.height, rs.format.z16, cfg.fps)
        if self._colour_scale:
            size = cfg.colour_width, cfg.colour_height
            config.enable_stream(rs.stream.color, *size, rs.format.rgb8, cfg.fps)
        pipeline = rs.pipeline()
        try:
            profile = pipeline.start(config)
        except RuntimeError as error:
            raise DeviceUnavailable(
                f"the RealSense camera cannot be opened: {error}; plug it into a USB 3 port and "
                "check that `rs-enumerate-devices` lists realsense.width x height at its fps"
                + (", and colour_width x colour_height" if self._colour_scale else "")
            ) from error
        self._pipeline = pipeline
        device = profile.get_device()
        sensor = device.first_depth_sensor()
        if sensor.supports(rs.option.emitter_enabled):
            sensor.set_option(rs.option.emitter_enabled, float(cfg.emitter))
        self._scale = np.float32(sensor.get_depth_scale())
        source = _intrinsics(profile, rs.stream.depth)
        self._resample = Resampler(source, self._camera)
        facts: dict[str, object] = {}
        if self._colour_scale:
            found = _intrinsics(profile, rs.stream.color)
            self._colour = ColourResampler(found, self._camera, self._colour_scale)
            facts = {"colour": f"{found.width} x {found.height}"}
            facts |= {"colour_covered": round(self._colour.covered, 2)}
        self._clock_map.reset()
        self._heard_ns, self._number = self._clock(), None
        usb = device.get_info(rs.camera_info.usb_type_descriptor)
        return {
            "model": device.get_info(rs.camera_info.name),
            "serial": device.get_info(rs.camera_info.serial_number),
            "firmware": device.get_info(rs.camera_info.firmware_version),
            "fps": cfg.fps,
            "fov_deg": [round(angle, 1) for angle in source.fov_deg],
            **facts,
            "warning": "" if usb.startswith("3") else f"connected over USB {usb}: use a USB 3 port",
        }

    def grab(self, *, colour: bool = False) -> Shot | None:
        try:
            arrived, frameset = self._pipeline.try_wait_for_frames(_WAIT_MS)
        except RuntimeError as error:
            raise DeviceUnavailable(f"the RealSense camera stopped: {error}") from error
        now_ns = self._clock()
        depth = frameset.get_depth_frame() if arrived else None
        if not depth:  # an empty frame is false
            if now_ns - self._heard_ns > _SILENT_S * 1e9:
                raise DeviceUnavailable(
                    f"the RealSense camera gave no frame for {_SILENT_S:g} s; check its cable"
                )
            return None
        self._heard_ns = now_ns
        self._count(depth.get_frame_number())
        metres = np.asanyarray(depth.get_data()) * self._scale
        assert self._resample is not None
        picture = self._picture(frameset) if colour else None
        return Shot(self._resample(metres), self._capture_ns(depth, now_ns), picture)

    def close(self) -> None:
        if self._pipeline is not None:
            pipeline, self._pipeline = self._pipeline, None
            with contextlib.suppress(RuntimeError):  # it stopped when it was unplugged
                pipeline.stop()

    def _picture(self, frameset: Any) -> NDArray[np.uint8] | None:
        frame = frameset.get_color_frame()
        if self._colour is None or not frame:  # the pipeline gives sets without one, too
            return None
        return self._colour(np.asanyarray(frame.get_data()))

    def _count(self, number: int) -> None:
        if self._number is not None:
            self.gaps += max(0, number - self._number - 1)
        self._number = number

    def _capture_ns(self, frame: Any, now_ns: int) -> int:
        """The middle of the exposure, from whichever clock the frame was stamped with."""
        stamp_ns = round(frame.get_timestamp() * 1e6)
        if frame.get_frame_timestamp_domain() == self._rs.timestamp_domain.hardware_clock:
            return self._clock_map(stamp_ns, now_ns)
        age_ns = self._wall_clock() - stamp_ns
        return now_ns - max(0, age_ns)


def _intrinsics(profile: Any, stream: Any) -> Intrinsics:
    found = profile.get_stream(stream).as_video_stream_profile().get_intrinsics()
    return Intrinsics(found.width, found.height, found.fx, found.fy, found.ppx, found.ppy)


def _load_library() -> Any:
    try:
        return importlib.import_module("pyrealsense2")
    except ImportError as error:
        raise CameraError(
            f"pyrealsense2 cannot be imported ({error}); install the extra "
            "krabby-camera[realsense] and the system package libusb-1.0-0"
        ) from error
