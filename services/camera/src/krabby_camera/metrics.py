"""What the camera service measures, besides what every process does."""

from typing import Literal, get_args

from krabby.runtime.metrics import (
    AGE_BUCKETS,
    CAMERA_FRAMES_DROPPED,
    MESSAGE_AGE,
    STREAM_DISCARDED,
    STREAM_GAPS,
    STREAM_INVALID,
    STREAM_RECEIVED,
    WORK_BUCKETS,
    children,
)
from prometheus_client import Counter, Gauge, Histogram

DropReason = Literal["size", "dark", "frozen", "no_state", "encoder"]
DROP_REASONS: tuple[DropReason, ...] = get_args(DropReason)
"""size: not the robot's camera. dark: nothing seen, or the lens covered. frozen: the same content
again and again. no_state: the encoder wants the robot's state and there is none. encoder: it gave
NaN."""

FRAMES = Counter("krabby_camera_frames_total", "Frames whose features were published")
FRAME_AGE = Gauge(
    "krabby_camera_frame_age_seconds",
    "Time since the newest frame with new content was captured; NaN before the first",
)
FROZEN = Gauge("krabby_camera_frozen", "1 while frames arrive whose content does not change")
VALID_RATIO = Gauge(
    "krabby_camera_depth_valid_ratio", "Share of pixels with a reading, newest frame"
)
PUBLISH_AGE = Histogram(
    "krabby_camera_publish_age_seconds",
    "Age of a frame when its features were published, since capture",
    buckets=AGE_BUCKETS,
)
PROCESSING = Histogram(
    "krabby_camera_processing_seconds",
    "Frame received to features published",
    buckets=WORK_BUCKETS,
)

DEVICE_CONNECTED = Gauge(
    "krabby_camera_device_connected",
    "1 while a camera of this machine is open; sources zed, realsense",
)
LOW_LIGHT = Gauge(
    "krabby_camera_low_light", "1 while the camera's SDK finds too little light; source zed"
)
DEVICE_RECONNECTS = Counter(
    "krabby_camera_device_reconnects_total", "Times that a lost camera was opened again"
)
PITCH_ERROR = Gauge(
    "krabby_camera_pitch_error_radians",
    "How much farther down the camera looks than robot.toml says; NaN before the self-check",
)
PITCH_ERROR.set(float("nan"))

DROPPED = children(CAMERA_FRAMES_DROPPED, DROP_REASONS)
CAMERA_AGE = children(MESSAGE_AGE, ["camera"])["camera"]
RECEIVED = children(STREAM_RECEIVED, ["camera"])["camera"]
DISCARDED = children(STREAM_DISCARDED, ["camera"])["camera"]
GAPS = children(STREAM_GAPS, ["camera"])["camera"]
INVALID = children(STREAM_INVALID, ["camera"])["camera"]
