"""`pyzed.sl` as far as the camera service uses it: same names, arguments, units and types.

Taken from the published binding, src/pyzed/sl.pyx of stereolabs/zed-python-api (SDK 5): names and
order of arguments, enumerators with their order (what is below SUCCESS is a warning), NaN, -inf and
+inf for what has no depth, time stamps in nanoseconds of the system clock, gyroscopes in deg/s.
Unlike the SDK it refuses attributes that do not exist, so that a misspelt one is found.

`world` is what the tests set: pictures, faults, time.
"""

# ruff: noqa: N801 - the names are the library's
import enum
import threading
import time

import numpy as np


class _Ordered(enum.Enum):
    def __lt__(self, other):
        return self.value < other.value

    def __le__(self, other):
        return self.value <= other.value

    def __gt__(self, other):
        return self.value > other.value

    def __ge__(self, other):
        return self.value >= other.value


class ERROR_CODE(_Ordered):
    CONFIGURATION_FALLBACK = -4
    SENSORS_DATA_REQUIRED = -3
    CORRUPTED_FRAME = -2
    CAMERA_REBOOTING = -1
    SUCCESS = 0
    FAILURE = 1
    NO_GPU_COMPATIBLE = 2
    NOT_ENOUGH_GPU_MEMORY = 3
    CAMERA_NOT_DETECTED = 4
    SENSORS_NOT_INITIALIZED = 5
    SENSORS_NOT_AVAILABLE = 6
    INVALID_RESOLUTION = 7
    LOW_USB_BANDWIDTH = 8
    CALIBRATION_FILE_NOT_AVAILABLE = 9
    INVALID_CALIBRATION_FILE = 10
    INVALID_SVO_FILE = 11
    SVO_RECORDING_ERROR = 12
    END_OF_SVOFILE_REACHED = 13
    SVO_UNSUPPORTED_COMPRESSION = 14
    INVALID_COORDINATE_SYSTEM = 15
    INVALID_FIRMWARE = 16
    INVALID_FUNCTION_PARAMETERS = 17
    CUDA_ERROR = 18
    CAMERA_NOT_INITIALIZED = 19
    NVIDIA_DRIVER_OUT_OF_DATE = 20
    INVALID_FUNCTION_CALL = 21
    CORRUPTED_SDK_INSTALLATION = 22
    INCOMPATIBLE_SDK_VERSION = 23
    INVALID_AREA_FILE = 24
    INCOMPATIBLE_AREA_FILE = 25
    CAMERA_FAILED_TO_SETUP = 26
    CAMERA_DETECTION_ISSUE = 27
    CANNOT_START_CAMERA_STREAM = 28
    NO_GPU_DETECTED = 29
    PLANE_NOT_FOUND = 30
    MODULE_NOT_COMPATIBLE_WITH_CAMERA = 31
    MOTION_SENSORS_REQUIRED = 32
    MODULE_NOT_COMPATIBLE_WITH_CUDA_VERSION = 33

    def __str__(self):
        return self.name.replace("_", " ").capitalize()


RESOLUTION = enum.Enum("RESOLUTION", "HD2K HD1080 HD1200 HD1536 HD720 SVGA VGA AUTO")
DEPTH_MODE = enum.Enum(
    "DEPTH_MODE", "NONE PERFORMANCE QUALITY ULTRA NEURAL_LIGHT NEURAL NEURAL_PLUS CUSTOM"
)
UNIT = enum.Enum("UNIT", "MILLIMETER CENTIMETER METER INCH FOOT")
COORDINATE_SYSTEM = enum.Enum(
    "COORDINATE_SYSTEM",
    "IMAGE LEFT_HANDED_Y_UP RIGHT_HANDED_Y_UP RIGHT_HANDED_Z_UP LEFT_HANDED_Z_UP "
    "RIGHT_HANDED_Z_UP_X_FWD",
)
MEASURE = enum.Enum("MEASURE", "DISPARITY DEPTH CONFIDENCE XYZ DEPTH_U16_MM")
MEM = enum.Enum("MEM", "CPU GPU BOTH")
VIEW = enum.Enum("VIEW", "LEFT RIGHT LEFT_GRAY RIGHT_GRAY LEFT_UNRECTIFIED RIGHT_UNRECTIFIED")
TIME_REFERENCE = enum.Enum("TIME_REFERENCE", "IMAGE CURRENT")
SENSOR_LOCATION = enum.Enum("SENSOR_LOCATION", "IMU BAROMETER ONBOARD_LEFT ONBOARD_RIGHT")
MODEL = enum.Enum("MODEL", "ZED ZED_M ZED2 ZED2i")


class World:
    """What the fake camera lives in."""

    def __init__(self):
        self.sdk_version = "5.4.0"
        self.depth = np.ones((188, 336), np.float32)
        """Depth at half VGA [m], with the infinities of the SDK."""
        self.f, self.cx, self.cy = 350.0, 332.5, 189.5
        """Calibration at 672 x 376."""
        self.open_results = []
        """Results of the next calls of open; SUCCESS when empty."""
        self.grab_results = []
        self.frame_s = 0.01
        self.arrived_before_s = 0.004
        """Age of an image, since its arrival, when depth is ready."""
        self.opened = []
        """InitParameters of every call of open."""
        self.closed = 0
        self.dropped = 0
        self.doubts = set()
        """Attributes of HealthStatus that are True."""
        self.retrieved = 0
        self.image = np.zeros((376, 672, 4), np.uint8)
        """Of the left lens, rectified: blue, green, red, opacity."""
        self.images = 0
        """Times that the image was copied."""
        self.imu = None
        """(quaternion, deg/s, m/s^2, stamp_ns) or None."""
        self.unplugged = threading.Event()


world = World()


def reset():
    global world
    world = World()
    return world


class Timestamp:
    def __init__(self, ns=0):
        self._ns = ns

    def get_nanoseconds(self):
        return self._ns


class Resolution:
    def __init__(self, width=0, height=0):
        self.width, self.height = width, height


class InitParameters:
    __slots__ = (
        "async_grab_camera_recovery",
        "camera_disable_self_calib",
        "camera_fps",
        "camera_resolution",
        "coordinate_system",
        "coordinate_units",
        "depth_maximum_distance",
        "depth_minimum_distance",
        "depth_mode",
        "depth_stabilization",
        "enable_image_validity_check",
        "grab_compute_capping_fps",
        "open_timeout_sec",
        "sdk_gpu_id",
        "sdk_verbose",
        "sensors_required",
        "serial_number",
    )

    def __init__(self):
        self.camera_resolution = RESOLUTION.AUTO
        self.camera_fps = 0
        self.depth_mode = DEPTH_MODE.NEURAL
        self.coordinate_units = UNIT.MILLIMETER
        self.coordinate_system = COORDINATE_SYSTEM.IMAGE
        self.depth_minimum_distance = -1.0
        self.depth_maximum_distance = -1.0
        self.depth_stabilization = 30
        self.serial_number = None

    def set_from_serial_number(self, serial_number):
        self.serial_number = serial_number


class RuntimeParameters:
    def __init__(
        self,
        enable_depth=True,
        enable_fill_mode=False,
        confidence_threshold=95,
        texture_confidence_threshold=100,
    ):
        self.confidence_threshold = confidence_threshold
        self.texture_confidence_threshold = texture_confidence_threshold
        assert enable_depth
        assert not enable_fill_mode


class Mat:
    def __init__(self):
        self._data = np.zeros((0, 0), np.float32)

    def get_data(self, memory_type=MEM.CPU, deep_copy=False):
        assert memory_type is MEM.CPU
        return self._data.copy() if deep_copy else self._data


class _Attributes:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)


class Orientation:
    def __init__(self, quat):
        self._quat = quat

    def get(self):
        return np.array(self._quat)


class Transform:
    def __init__(self, quat):
        self._quat = quat

    def get_orientation(self):
        return Orientation(self._quat)


class IMUData:
    def __init__(self, quat=(0, 0, 0, 1), ang_vel_deg=(0, 0, 0), lin_acc=(0, 0, 9.81), stamp_ns=0):
        self._quat, self._ang_vel_deg, self._lin_acc = quat, ang_vel_deg, lin_acc
        self.timestamp = Timestamp(stamp_ns)

    def get_pose(self):
        return Transform(self._quat)

    def get_angular_velocity(self):
        return list(self._ang_vel_deg)

    def get_linear_acceleration(self):
        return list(self._lin_acc)


class TemperatureData:
    def get(self, location):
        assert location is SENSOR_LOCATION.IMU
        return 41.0


class SensorsData:
    def __init__(self):
        self._imu = IMUData()

    def get_imu_data(self):
        return self._imu

    def get_temperature_data(self):
        return TemperatureData()


class HealthStatus:
    def __init__(self, doubts):
        self.enabled = True
        for name in ("low_image_quality", "low_lighting", "low_depth_reliability"):
            setattr(self, name, name in doubts)


class Camera:
    def __init__(self):
        self._init = None
        self._image_ns = 0

    @staticmethod
    def get_sdk_version():
        return world.sdk_version

    def open(self, py_init=None):
        world.opened.append(py_init)
        result = world.open_results.pop(0) if world.open_results else ERROR_CODE.SUCCESS
        if result <= ERROR_CODE.SUCCESS:
            self._init = py_init
        return result

    def close(self):
        self._init = None
        world.closed += 1

    def grab(self, py_runtime=None):
        if self._init is None:
            return ERROR_CODE.CAMERA_NOT_INITIALIZED
        assert isinstance(py_runtime, RuntimeParameters)
        world.unplugged.wait(world.frame_s)
        if world.unplugged.is_set():
            return ERROR_CODE.CAMERA_NOT_DETECTED
        if world.grab_results:
            return world.grab_results.pop(0)
        self._image_ns = time.time_ns() - round(world.arrived_before_s * 1e9)
        return ERROR_CODE.SUCCESS

    def retrieve_measure(self, py_mat, measure=MEASURE.DEPTH, mem_type=MEM.CPU, resolution=None):
        assert measure is MEASURE.DEPTH
        assert mem_type is MEM.CPU
        assert (resolution.width, resolution.height) == world.depth.shape[::-1]
        unit = {UNIT.METER: 1.0, UNIT.MILLIMETER: 1000.0}[self._init.coordinate_units]
        world.retrieved += 1  # no two pictures of a real camera are the same
        py_mat._data = world.depth * np.float32(unit * (1.0 + 1e-5 * (world.retrieved % 7)))
        return ERROR_CODE.SUCCESS

    def retrieve_image(self, py_mat, view=VIEW.LEFT, mem_type=MEM.CPU, resolution=None):
        assert view is VIEW.LEFT
        assert mem_type is MEM.CPU
        assert resolution is None
        world.images += 1
        py_mat._data = world.image
        return ERROR_CODE.SUCCESS

    def get_timestamp(self, time_reference):
        now = time_reference is TIME_REFERENCE.CURRENT
        return Timestamp(time.time_ns() if now else self._image_ns)

    def get_health_status(self):
        assert self._init.enable_image_validity_check
        return HealthStatus(world.doubts)

    def get_frame_dropped_count(self):
        return world.dropped

    def get_sensors_data(self, py_sensors_data, time_reference=TIME_REFERENCE.CURRENT):
        assert time_reference is TIME_REFERENCE.CURRENT
        if world.imu is None:
            return ERROR_CODE.SENSORS_NOT_AVAILABLE
        py_sensors_data._imu = IMUData(*world.imu)
        return ERROR_CODE.SUCCESS

    def get_camera_information(self, resizer=None):
        width, height = (672, 376)
        if self._init.camera_resolution is RESOLUTION.HD720:
            width, height = (1280, 720)
        scale = 1.0 if resizer is None else resizer.width / width
        # pixel centres at whole numbers: the corner, half a pixel before the first, scales
        left = _Attributes(
            fx=world.f * scale,
            fy=world.f * scale,
            cx=(world.cx + 0.5) * scale - 0.5,
            cy=(world.cy + 0.5) * scale - 0.5,
            h_fov=87.0,
            v_fov=56.0,
            image_size=Resolution(round(width * scale), round(height * scale)),
        )
        configuration = _Attributes(
            calibration_parameters=_Attributes(left_cam=left, right_cam=left),
            resolution=Resolution(width, height),
            fps=float(self._init.camera_fps),
            firmware_version=1523,
        )
        return _Attributes(
            serial_number=10027654,
            camera_model=MODEL.ZED_M,
            camera_configuration=configuration,
        )
