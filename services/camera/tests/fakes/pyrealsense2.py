"""`pyrealsense2` as far as the camera service uses it: same names, arguments, units and types.

Taken from librealsense's wheel 2.59.1; `test_realsense.py` compares the names with the real module
where that is installed. `world` is what the tests set.
"""

# ruff: noqa: N801 - the names are the library's
import enum
import threading
import time
from types import SimpleNamespace

import numpy as np

stream = enum.Enum("stream", "any depth color infrared fisheye gyro accel gpio pose")
format = enum.Enum("format", "any z16 disparity16 xyz32f yuyv rgb8")
option = enum.Enum("option", "emitter_enabled laser_power global_time_enabled visual_preset")
timestamp_domain = enum.Enum("timestamp_domain", "hardware_clock system_time global_time")
camera_info = enum.Enum(
    "camera_info", "name serial_number firmware_version usb_type_descriptor product_line"
)


class World:
    def __init__(self):
        self.depth = np.full((270, 480), 1000, np.uint16)
        self.scale = 0.001
        self.f, self.ppx, self.ppy = 240.0, 239.5, 134.5
        self.image = np.zeros((240, 424, 3), np.uint8)
        """In colour; None for sets of frames without one."""
        self.image_f = 308.4  # 69 degrees
        self.start_errors = []
        self.unplugged = threading.Event()
        self.frame_s = 0.01
        self.domain = timestamp_domain.global_time
        self.exposed_before_s = 0.012
        self.options = {}
        self.requested = []
        self.number = 0
        self.skip = 0
        """Exposures lost before the next frame."""
        self.usb = "3.2"


world = World()


class depth_frame:
    def __init__(self, data, number, stamp_ms, domain):
        self._data, self._number, self._stamp_ms, self._domain = data, number, stamp_ms, domain

    def __bool__(self):
        return self._data is not None

    def get_data(self):
        return self._data

    def get_frame_number(self):
        return self._number

    def get_timestamp(self):
        return self._stamp_ms

    def get_frame_timestamp_domain(self):
        return self._domain


class composite_frame:
    def __init__(self, depth, image):
        self._depth, self._image = depth, image

    def get_depth_frame(self):
        return self._depth

    def get_color_frame(self):
        return self._image


class video_frame:
    def __init__(self, data):
        self._data = data

    def __bool__(self):
        return self._data is not None

    def get_data(self):
        return self._data


class config:
    def __init__(self):
        self._streams, self._serial = [], None

    def enable_device(self, serial):
        self._serial = serial

    def enable_stream(self, stream_type, width, height, format, framerate):
        self._streams.append((stream_type, width, height, format, framerate))


class depth_sensor:
    def supports(self, wanted):
        return wanted is option.emitter_enabled

    def set_option(self, wanted, value):
        assert isinstance(value, float)
        world.options[wanted] = value

    def get_depth_scale(self):
        return world.scale


class device:
    def first_depth_sensor(self):
        return depth_sensor()

    def get_info(self, info):
        return {"usb_type_descriptor": world.usb}.get(info.name, f"a {info.name}")


class video_stream_profile:
    def __init__(self, kind):
        self._kind = kind

    def get_intrinsics(self):
        height, width = world.depth.shape
        f, ppx, ppy = world.f, world.ppx, world.ppy
        if self._kind is stream.color:
            height, width = world.image.shape[:2]
            f, ppx, ppy = world.image_f, (width - 1) / 2, (height - 1) / 2
        return SimpleNamespace(
            width=width, height=height, fx=f, fy=f, ppx=ppx, ppy=ppy, coeffs=[0.0] * 5
        )


class stream_profile:
    def __init__(self, kind):
        self._kind = kind

    def as_video_stream_profile(self):
        return video_stream_profile(self._kind)


class pipeline_profile:
    def __init__(self, kinds):
        self._kinds = kinds

    def get_device(self):
        return device()

    def get_stream(self, stream_type, stream_index=-1):
        if stream_type not in self._kinds:
            raise RuntimeError("Profile does not contain the requested stream")
        return stream_profile(stream_type)


class pipeline:
    def __init__(self):
        self._started = False

    def start(self, config):
        world.requested.append((config._serial, *config._streams))
        if world.start_errors:
            raise RuntimeError(world.start_errors.pop(0))
        self._started = True
        self._kinds = {kind for kind, *_ in config._streams}
        return pipeline_profile(self._kinds)

    def stop(self):
        if not self._started or world.unplugged.is_set():
            raise RuntimeError("stop() cannot be called before start()")
        self._started = False

    def try_wait_for_frames(self, timeout_ms=5000):
        if world.unplugged.wait(world.frame_s):
            raise RuntimeError("Device disconnected. Failed to recconect: No device connected")
        world.number += 1 + world.skip
        world.skip = 0
        now_s = {
            timestamp_domain.global_time: time.time,
            timestamp_domain.system_time: time.time,
            timestamp_domain.hardware_clock: lambda: time.monotonic() - 1000.0,
        }[world.domain]()
        picture = world.depth + np.uint16(world.number % 2) * (world.depth > 0)
        stamp_ms = (now_s - world.exposed_before_s) * 1e3
        return True, composite_frame(
            depth_frame(picture.astype(np.uint16), world.number, stamp_ms, world.domain),
            video_frame(world.image if stream.color in self._kinds else None),
        )
