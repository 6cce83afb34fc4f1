"""What each result of the ZED SDK means for the camera service, and what to do about it.

Results are the enumerators of `sl.ERROR_CODE` by name, SDK 5. Those of `FINAL` end the process: it
would find the same again; the others are tried again. Each has a remedy, which a test compares with
the published list.
"""

from typing import Any, Final

from krabby_camera.errors import CameraError, DeviceUnavailable

__all__ = ["FINAL", "PASSING", "cannot_open", "stopped"]

_NOT_OURS: Final = "the SDK speaks of what this service does not use; report it with the SDK's log"

FINAL: Final = {
    "NO_GPU_COMPATIBLE": "the SDK needs an NVIDIA GPU of compute capability 5 or more",
    "NO_GPU_DETECTED": "give the container the GPU (runtime: nvidia), or reboot",
    "NVIDIA_DRIVER_OUT_OF_DATE": "update the driver, or use an SDK for this CUDA version",
    "MODULE_NOT_COMPATIBLE_WITH_CUDA_VERSION": "install the SDK made for this image's CUDA, or "
    "build the image on the CUDA of the SDK (KRABBY_JETPACK_IMAGE)",
    "CUDA_ERROR": "look at dmesg for GPU faults; a process that had one cannot use the GPU again "
    "and is started anew",
    "NOT_ENOUGH_GPU_MEMORY": "choose zed.depth_mode=neural_light, or free GPU memory",
    "CORRUPTED_SDK_INSTALLATION": "install the ZED SDK again; it misses cuDNN, TensorRT or a model",
    "INCOMPATIBLE_SDK_VERSION": "run /usr/local/zed/get_python_api.py again for this SDK",
    "INVALID_RESOLUTION": "choose another zed.resolution",
    "INVALID_FIRMWARE": "update the camera's firmware with ZED Explorer",
    "INVALID_CALIBRATION_FILE": "download the factory calibration again with ZED Explorer",
    "CALIBRATION_FILE_NOT_AVAILABLE": "connect to the internet once, or copy SN<serial>.conf to "
    "/usr/local/zed/settings",
    "INVALID_FUNCTION_PARAMETERS": "the configuration asks for what this camera cannot do; compare "
    "the keys zed.* with the SDK's documentation",
    "INVALID_COORDINATE_SYSTEM": "the SDK is older than this service; install version 5",
    "MODULE_NOT_COMPATIBLE_WITH_CAMERA": "this camera has no inertial sensor; unset zed.imu_listen",
    "MOTION_SENSORS_REQUIRED": "this camera's inertial sensor is missing or off; unset "
    "zed.imu_listen, or use a ZED Mini",
    "INVALID_SVO_FILE": _NOT_OURS,
    "SVO_RECORDING_ERROR": _NOT_OURS,
    "SVO_UNSUPPORTED_COMPRESSION": _NOT_OURS,
    "END_OF_SVOFILE_REACHED": _NOT_OURS,
    "INVALID_AREA_FILE": _NOT_OURS,
    "INCOMPATIBLE_AREA_FILE": _NOT_OURS,
    "PLANE_NOT_FOUND": _NOT_OURS,
}
"""Results that no patience heals."""
PASSING: Final = {
    "FAILURE": "run ZED_Diagnostic; replug the camera",
    "CAMERA_NOT_DETECTED": "plug it into a USB 3 port; check `lsusb -d 2b03:`",
    "CAMERA_DETECTION_ISSUE": "flip the USB-C plug or use another port",
    "CAMERA_FAILED_TO_SETUP": "choose another zed.resolution or zed.fps, or replug it",
    "CANNOT_START_CAMERA_STREAM": "close the other process that uses it; `sudo fuser -v "
    "/dev/video*` on the host names it",
    "LOW_USB_BANDWIDTH": "use a USB 3 port and cable, with no hub and no second camera on it",
    "SENSORS_NOT_AVAILABLE": "replug the camera; its sensors are a HID device, whose number is "
    "KRABBY_HIDRAW_MAJOR in a container",
    "SENSORS_NOT_INITIALIZED": "run `ZED_Diagnostic -r`",
    "CAMERA_NOT_INITIALIZED": "it is opened again",
    "INVALID_FUNCTION_CALL": "it is opened again",
    "CAMERA_REBOOTING": "wait: the SDK restarts it",
}
"""Results that may pass."""


def cannot_open(code: Any) -> CameraError:
    """The error of an `open` with this result; a `DeviceUnavailable` where a later try may do."""
    return _error(code, "the ZED camera cannot be opened")


def stopped(code: Any) -> CameraError:
    """The same of an exposure or a measure that did not come."""
    return _error(code, "the ZED camera stopped")


def _error(code: Any, what: str) -> CameraError:
    name = str(code.name)
    if name in FINAL:
        return CameraError(f"the ZED SDK cannot work here: {name}; {FINAL[name]}")
    return DeviceUnavailable(f"{what}: {name}; {PASSING.get(name, 'run ZED_Diagnostic')}")
