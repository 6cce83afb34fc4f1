"""What sim-hal measures beyond what every service does; see `krabby_service.metrics`."""

from typing import TYPE_CHECKING

from krabby_proto import SAFETY_STATES, CommandStatus
from krabby_robot.gate import Fault
from krabby_service.metrics import LOOP_WORK, OBSERVATION_AGE, children
from prometheus_client import Counter, Gauge

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "CAMERA_DROPPED",
    "COMMANDS",
    "DISTANCE",
    "EFFORT_BUDGET",
    "FALLS",
    "FAULTS",
    "OBSERVATION",
    "REAL_TIME_FACTOR",
    "SAFETY_STATE",
    "WORK",
    "JointMetrics",
]

WORK = children(LOOP_WORK, ("physics", "publish", "render"))
OBSERVATION = OBSERVATION_AGE.labels("state")
COMMANDS = children(
    Counter("krabby_commands_total", "Commands by what became of them", ["status"]),
    [status.name.lower() for status in CommandStatus],
)
SAFETY_STATE = children(
    Gauge("krabby_safety_state", "1 for the state the safety gate is in", ["state"]), SAFETY_STATES
)
FAULTS = children(
    Gauge("krabby_fault_active", "1 while the safety gate reports the fault", ["fault"]),
    [str(fault.name).lower() for fault in Fault],
)
EFFORT_BUDGET = Gauge(
    "krabby_effort_budget_ratio", "RMS torque over rated torque, of the joint that works hardest"
)
FALLS = Counter("krabby_falls_total", "Falls since the start")
DISTANCE = Gauge("krabby_course_distance_meters", "Walked forward along the course")
CAMERA_DROPPED = Counter(
    "krabby_camera_frames_dropped_total", "Depth frames lost by the sensor model"
)
REAL_TIME_FACTOR = Gauge(
    "krabby_real_time_factor", "Simulated over real time, since the loop started"
)

_CLAMPED = Counter(
    "krabby_command_clamped_total", "Targets cut by the safety gate", ["joint", "kind"]
)
_EFFORT_RMS = Gauge(
    "krabby_joint_effort_rms_newton_meters", "Filtered RMS torque of a drive", ["joint"]
)


class JointMetrics:
    """What is counted per joint; the children exist from the start."""

    def __init__(self, joint_names: "Sequence[str]") -> None:
        self.position_clamped = [_CLAMPED.labels(name, "position") for name in joint_names]
        self.rate_clamped = [_CLAMPED.labels(name, "rate") for name in joint_names]
        self.effort_rms = [_EFFORT_RMS.labels(name) for name in joint_names]
