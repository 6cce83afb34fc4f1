"""Whether an inertial sensor can be believed."""

import dataclasses
import math
from collections import deque
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from krabby.drivers.imu.gravity import GravityWatch
from krabby.drivers.imu.types import ImuSample

__all__ = ["ImuCheck", "ImuFault", "ImuLimits"]


class ImuFault(StrEnum):
    """Why a sensor cannot be believed."""

    SILENT = "silent"
    """No sample for too long; a robot that cannot feel which way is up must not walk."""
    NORM = "norm"
    """Not a number, or the orientation is no rotation."""
    RANGE = "range"
    """More than the sensor can measure, or a body of this kind can do."""
    JUMP = "jump"
    """The orientation changed by more than the angular rate allows."""
    STUCK = "stuck"
    """New stamps, but not a bit of the values changes: no real sensor is that quiet."""
    RATE = "rate"
    """Far fewer samples come than were asked for."""
    GRAVITY = "gravity"
    """Accelerometer and attitude do not agree on what is up; `ImuCheck.detail` has the cause."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImuLimits:
    """What is still believed."""

    silent_after_s: float = 0.05
    away_after_s: float = 0.5
    """After such a gap it may be another sensor, or set up anew: gravity is averaged from the
    begin. A shorter one is a busy host, and 0.2 s of a stride are no average."""
    norm_error: float = 0.02
    """Largest distance of the quaternion's length from one."""
    max_ang_vel: float = 34.0
    """[rad/s]; the VN-100's gyroscopes end at 2000 deg/s."""
    max_lin_acc: float = 156.0
    """[m/s^2]; its accelerometers end at 16 g."""
    jump_rad: float = 0.15
    """Change of orientation beyond what the angular rates explain."""
    stuck_after_s: float = 0.25
    min_rate: float = 0.5
    """Share of the nominal rate."""
    rate_window_s: float = 1.0


class ImuCheck:
    """Looks at every sample; the clock is passed in.

    `rate_hz` is the smaller of the sensor's rate and the rate of `observe`.
    """

    def __init__(self, rate_hz: float, limits: ImuLimits | None = None) -> None:
        self._rate_hz, self._limits = rate_hz, limits or ImuLimits()
        self._last: ImuSample | None = None
        self._started_ns: int | None = None
        self._content, self._content_since_ns = b"", 0
        self._arrived: deque[int] = deque()
        self._jumped = False
        self._gravity = GravityWatch()
        self.counts: dict[ImuFault, int] = dict.fromkeys(ImuFault, 0)
        """How often each fault began."""
        self.faults: tuple[ImuFault, ...] = ()
        """Those of the last call."""

    @property
    def detail(self) -> str:
        """What is wrong with gravity and the remedy; empty when nothing is."""
        return self._gravity.problem

    @property
    def moved(self) -> bool:
        """Whether the body moved while gravity was averaged: that average says little."""
        return self._gravity.moved

    def average_anew(self) -> None:
        """Judge gravity by what comes from now on: the robot was recovered, perhaps its sensor."""
        self._gravity.reset()

    def observe(self, sample: ImuSample | None, now_ns: int) -> tuple[ImuFault, ...]:
        """Faults of the source whose newest sample this is; each lasts as long as its cause.

        Seeing the same sample again is no fault until it is too old.
        """
        if self._started_ns is None:
            self._started_ns = now_ns
        if sample is not None and (self._last is None or sample.stamp_ns != self._last.stamp_ns):
            self._see(sample, now_ns)
        last, limits = self._last, self._limits
        heard_ns = self._started_ns if last is None else last.stamp_ns
        found = {ImuFault.SILENT: now_ns - heard_ns > limits.silent_after_s * 1e9}
        if last is not None:
            found |= self._value_faults(last)
            same_ns = last.stamp_ns - self._content_since_ns
            found[ImuFault.STUCK] = same_ns >= limits.stuck_after_s * 1e9
        found[ImuFault.RATE] = self._too_slow(now_ns)
        found[ImuFault.GRAVITY] = bool(self._gravity.problem)
        faults = tuple(fault for fault, is_found in found.items() if is_found)
        for fault in faults:
            self.counts[fault] += fault not in self.faults
        self.faults = faults
        return faults

    def _see(self, sample: ImuSample, now_ns: int) -> None:
        content = sample.ang_vel_b.tobytes() + sample.lin_acc_b.tobytes()
        if content != self._content:
            self._content, self._content_since_ns = content, sample.stamp_ns
        self._jumped = self._last is not None and self._is_jump(self._last, sample)
        gap_ns = 0 if self._last is None else sample.stamp_ns - self._last.stamp_ns
        if gap_ns > self._limits.away_after_s * 1e9:
            self._gravity.reset()
        self._gravity.see(sample)
        self._last = sample
        self._arrived.append(now_ns)

    def _value_faults(self, sample: ImuSample) -> dict[ImuFault, bool]:
        limits = self._limits
        error = abs(math.hypot(*sample.quat_wb.tolist()) - 1.0)
        ang_vel, lin_acc = _largest(sample.ang_vel_b), _largest(sample.lin_acc_b)
        is_rotation = error <= limits.norm_error and math.isfinite(ang_vel + lin_acc)
        return {
            ImuFault.NORM: not is_rotation,
            ImuFault.RANGE: ang_vel > limits.max_ang_vel or lin_acc > limits.max_lin_acc,
            ImuFault.JUMP: self._jumped,
        }

    def _is_jump(self, before: ImuSample, after: ImuSample) -> bool:
        half = abs(float(before.quat_wb @ after.quat_wb))
        angle = 2.0 * math.acos(min(half, 1.0))
        dt_s = abs(after.stamp_ns - before.stamp_ns) * 1e-9
        fastest = max(math.hypot(*before.ang_vel_b.tolist()), math.hypot(*after.ang_vel_b.tolist()))
        return angle > fastest * dt_s + self._limits.jump_rad

    def _too_slow(self, now_ns: int) -> bool:
        """Counts arrivals in a window; judges only once a whole window has gone by."""
        window_ns = round(self._limits.rate_window_s * 1e9)
        while self._arrived and self._arrived[0] <= now_ns - window_ns:
            self._arrived.popleft()
        assert self._started_ns is not None
        if self._last is None or now_ns - self._started_ns < window_ns:
            return False
        return len(self._arrived) < self._limits.min_rate * self._rate_hz * (
            self._limits.rate_window_s
        )


def _largest(vector: NDArray[np.float64]) -> float:
    """Largest magnitude; not a number where one of them is none."""
    x, y, z = vector.tolist()
    return max(abs(x), abs(y), abs(z)) if x + y + z == x + y + z else math.nan
