"""What a trial is reduced to: amounts, and what they are counted over.

`krabby.benchmark.aggregate` makes figures of them; docs/benchmark.md defines these. Ticks before go
count for nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from krabby.benchmark.trace import CONTROL_S
from krabby.control.modes import Mode
from krabby.course.mission import MAX_YAW_RATE, TURN_IN_PLACE_RAD

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from krabby.benchmark.scenario import Scenario
    from krabby.benchmark.trace import Tick, TrialFacts

__all__ = [
    "Contacts",
    "Figures",
    "Standing",
    "Tracking",
    "contacts",
    "debounce",
    "needed_s",
    "swing_heights",
]

CONTACT_N: Final = 5.0
"""A foot that carries more than this is in contact [N]."""
DEBOUNCE_S: Final = 0.02
"""Contact and its absence count when they last this long [s]."""
LOW_PASS_S: Final = 0.5
"""Time constant of the first-order low-pass on velocities and commands [s]."""
SETTLE_S: Final = 1.0
"""After go, and after the robot is asked to stand, nothing is measured for this long [s]."""
TURNING_M_S: Final = 0.02
"""A slower command is one to turn on the spot [m/s]."""
GRAVITY: Final = 9.81

_AXES: Final = ("vx", "vy", "yaw")
_ALLOWED: Final = (0.05, 0.05, 0.08)
"""Tracking error that is allowed besides a tenth of the command [m/s, m/s, rad/s]."""
_PEAK_BIN: Final = 0.1
"""Width of the bins that contact peaks are counted in [body weights]."""
_CHUNK: Final = 64
"""Ticks whose joint samples are reduced at once."""


def needed_s(scenario: Scenario) -> float:
    """Time that the commanded speed needs for the course [s].

    Its length over the speed, plus the time in which the mission turns on the spot at corners.
    """
    spawn = np.asarray(scenario.spawn or scenario.course.spawn)
    points = np.vstack([spawn[:2], scenario.course.waypoints[:, :2]])
    legs = np.diff(points, axis=0)
    legs = legs[np.linalg.norm(legs, axis=1) > 1e-6]
    headings = np.concatenate([spawn[2:3], np.arctan2(legs[:, 1], legs[:, 0])])
    corners = np.abs((np.diff(headings) + math.pi) % math.tau - math.pi)
    turning_s = np.maximum(corners - TURN_IN_PLACE_RAD, 0.0).sum() / MAX_YAW_RATE
    length_m = np.linalg.norm(legs, axis=1).sum()
    return float(length_m / max(scenario.speed, 1e-6) + turning_s)


def _travels(tick: Tick) -> bool:
    """Whether the robot is asked to go somewhere, not only to turn."""
    return tick.walks and math.hypot(tick.asked[0], tick.asked[1]) > TURNING_M_S


class Tracking:
    """Error of the velocity in the base frame against the scenario's command, both low-passed."""

    def __init__(self) -> None:
        self._error = np.zeros(3)
        self._velocity = np.zeros(3)
        self._error_sum = np.zeros(3)
        self._asked_sum = np.zeros(3)
        self._asked_size = np.zeros(3)
        self._velocity_sum = np.zeros(3)
        self.walked_m = 0.0
        """Path of the low-passed velocity while asked to move [m]."""
        self.travelled_m = 0.0
        """The same without turns on the spot [m]."""
        self.walk_s = 0.0
        """Time in which the robot was asked to move [s]."""
        self.tracked_s = 0.0
        """The same without the first second after go [s]."""

    def add(self, tick: Tick) -> None:
        """Take in a control period."""
        now = np.array([*tick.base_lin_vel_b[:2], tick.base_ang_vel_b[2]])
        gain = CONTROL_S / LOW_PASS_S
        self._error += (now - tick.asked - self._error) * gain
        self._velocity += (now - self._velocity) * gain
        if not tick.walks:
            return
        self.walk_s += CONTROL_S
        step_m = CONTROL_S * math.hypot(self._velocity[0], self._velocity[1])
        self.walked_m += step_m
        if _travels(tick):
            self.travelled_m += step_m
        if tick.time_s < SETTLE_S:
            return
        self.tracked_s += CONTROL_S
        self._error_sum += np.abs(self._error) * CONTROL_S
        self._asked_sum += tick.asked * CONTROL_S
        self._asked_size += np.abs(tick.asked) * CONTROL_S
        self._velocity_sum += self._velocity * CONTROL_S

    def axes(self) -> Iterator[tuple[str, float, float]]:
        """Axis, mean error and its bound, [m/s] or [rad/s]; NaN when nothing was tracked."""
        time_s = self.tracked_s or math.nan
        for axis, error, asked, allowed in zip(
            _AXES, self._error_sum, self._asked_size, _ALLOWED, strict=True
        ):
            yield axis, float(error / time_s), float(allowed + 0.1 * asked / time_s)

    def figures(self) -> dict[str, float]:
        """Sums for `krabby.benchmark.aggregate`."""
        if not self.tracked_s:
            return {"walk_s": self.walk_s, "walked_m": self.walked_m}
        found = {
            "walk_s": self.walk_s,
            "walked_m": self.walked_m,
            "tracked_s": self.tracked_s,
            "obeys": float(all(error <= bound for _, error, bound in self.axes())),
        }
        for i, axis in enumerate(_AXES):
            found[f"error_{axis}"] = float(self._error_sum[i])
            found[f"asked_{axis}"] = float(self._asked_sum[i])
            found[f"walked_{axis}"] = float(self._velocity_sum[i])
        return found


class Standing:
    """How far a robot moves that is asked to stand, from one second after it was asked to."""

    def __init__(self) -> None:
        self._asked_s = 0.0
        self._begin: tuple[NDArray[np.float64], float] | None = None
        self._moved_m = self._spread_m = 0.0
        self._open: tuple[float, float] = (0.0, 0.0)
        self.stand_s = 0.0
        """Time measured [s]."""

    def add(self, tick: Tick) -> None:
        """Take in a control period."""
        if tick.walks or tick.mode is not Mode.POLICY or np.any(tick.asked):
            self._close()
            return
        self._asked_s += CONTROL_S
        if self._asked_s <= SETTLE_S:
            return
        spread = float(
            np.linalg.norm(tick.foot_soles_w[:, :2] - tick.base_pos_w[:2], axis=1).mean()
        )
        if self._begin is None:
            self._begin = (tick.base_pos_w[:2].copy(), spread)
            return
        self.stand_s += CONTROL_S
        at, before = self._begin
        self._open = (float(np.linalg.norm(tick.base_pos_w[:2] - at)), abs(spread - before))

    @property
    def drift_m_s(self) -> float:
        """Distance between beginning and end over the time, [m/s]; NaN when it never stood."""
        return (self._moved_m + self._open[0]) / self.stand_s if self.stand_s else math.nan

    def figures(self) -> dict[str, float]:
        """Sums for `krabby.benchmark.aggregate`."""
        if not self.stand_s:
            return {}
        return {
            "stand_s": self.stand_s,
            "drift": self._moved_m + self._open[0],
            "creep": self._spread_m + self._open[1],
        }

    def _close(self) -> None:
        self._moved_m += self._open[0]
        self._spread_m += self._open[1]
        self._open, self._begin, self._asked_s = (0.0, 0.0), None, 0.0


@dataclass(frozen=True, kw_only=True)
class Contacts:
    """Debounced contacts of one foot, in samples."""

    touchdowns: NDArray[np.int64]
    """First sample of each contact that follows the air."""
    swings: NDArray[np.int64]
    """First sample in the air and touchdown, of each whole swing, shape (n, 2)."""
    peaks: NDArray[np.float64]
    """Largest force of everything between two times in the air [N]; short blows count too."""
    down: NDArray[np.bool_]
    """Whether the foot is down, each sample."""


def debounce(raw: NDArray[np.bool_], samples: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Starts and states of the runs that last at least `samples`, equal neighbours merged.

    Before the first of them the state is the first one's; without any, it is the first sample's.
    """
    starts = np.concatenate([[0], np.flatnonzero(np.diff(raw)) + 1])
    lengths = np.diff(np.append(starts, len(raw)))
    lasting = lengths >= samples
    if not lasting.any():
        return np.zeros(1, np.int64), raw[:1]
    starts = starts[lasting]
    states = raw[starts]
    fresh = np.append(True, states[1:] != states[:-1])
    starts, states = starts[fresh], states[fresh]
    starts[0] = 0
    return starts, states


def contacts(force: NDArray[np.floating], samples: int) -> Contacts:
    """Contacts of one foot from its normal force (T,) [N], debounced over `samples`."""
    raw = force > CONTACT_N
    starts, states = debounce(raw, samples)
    touchdowns = starts[1:][states[1:]]
    lifted = starts[:-1][~states[:-1]]
    swings = np.stack([lifted, touchdowns], axis=1)
    if len(swings) and swings[0, 0] == 0:
        swings = swings[1:]  # its beginning was not seen
    down = np.repeat(states, np.diff(np.append(starts, len(raw))))
    return Contacts(
        touchdowns=touchdowns, swings=swings, peaks=_peaks(force, raw, samples), down=down
    )


def _peaks(
    force: NDArray[np.floating], raw: NDArray[np.bool_], samples: int
) -> NDArray[np.float64]:
    """Largest force between one time in the air of at least `samples` and the next."""
    edges = np.flatnonzero(np.diff(np.concatenate([[True], raw, [True]]).astype(np.int8)))
    air = edges.reshape(-1, 2)  # first sample in the air, first of the next contact
    air = air[np.diff(air, axis=1)[:, 0] >= samples]
    begins, ends = np.append(0, air[:, 1]), np.append(air[:, 0], len(raw))
    some = ends > begins
    return np.array([force[a:b].max() for a, b in zip(begins[some], ends[some], strict=True)])


def swing_heights(sole_z: NDArray[np.floating], swings: NDArray[np.int64]) -> NDArray[np.float64]:
    """Rise of the sole above the higher end of each swing [m]; `sole_z` (T,), swings in its T."""
    return np.array(
        [sole_z[a : b + 1].max() - max(sole_z[a], sole_z[b]) for a, b in swings], dtype=float
    )


class Joints:
    """Power, torque and overload of the drives, reduced chunk by chunk."""

    def __init__(self, rated_torque: NDArray[np.float64], names: Sequence[str]) -> None:
        self._rated, self._names = rated_torque, names
        self._velocity: NDArray[np.float64] = np.zeros((_CHUNK, 0, len(names)))
        self._torque = self._velocity
        self._asks = np.zeros((_CHUNK, 2), bool)
        self._filled = 0
        self._square = np.zeros(len(names))
        self._above = self._samples = 0
        self._energy_j = np.zeros(2)

    def add(self, tick: Tick) -> None:
        """Take in a control period."""
        if self._velocity.shape[1] == 0:
            self._velocity = np.empty((_CHUNK, *tick.joint_vel.shape))
            self._torque = np.empty_like(self._velocity)
        self._velocity[self._filled] = tick.joint_vel
        self._torque[self._filled] = tick.joint_torque
        self._asks[self._filled] = tick.walks, _travels(tick)
        self._filled += 1
        if self._filled == _CHUNK:
            self._reduce()

    def figures(self) -> dict[str, float]:
        """Sums for `krabby.benchmark.aggregate`."""
        self._reduce()
        found = {
            "energy": float(self._energy_j[0]),
            "travel_energy": float(self._energy_j[1]),
            "above_rated": float(self._above),
            "joint_samples": float(self._samples * len(self._names)),
        }
        mean_square = self._square / max(self._samples, 1)
        return found | {
            f"torque_square.{name}": float(square)
            for name, square in zip(self._names, mean_square, strict=True)
        }

    def _reduce(self) -> None:
        n, self._filled = self._filled, 0
        torque, velocity = self._torque[:n], self._velocity[:n]
        power = np.abs(torque * velocity).sum(axis=2).mean(axis=1) if n else np.zeros(0)
        self._energy_j += power @ self._asks[:n] * CONTROL_S
        self._square += np.square(torque).sum(axis=(0, 1))
        self._above += int((np.abs(torque) > self._rated).sum())
        self._samples += n * torque.shape[1]


class Feet:
    """Contacts, peaks, clearance and height of the feet; keeps forces and soles of the trial."""

    def __init__(self, substep_s: float, weight_n: float) -> None:
        self._debounce = max(1, math.ceil(DEBOUNCE_S / substep_s - 1e-9))
        self._weight_n = weight_n
        self._force: list[NDArray[np.float32]] = []
        self._sole_z: list[NDArray[np.float64]] = []
        self._walks: list[bool] = []
        self._highest = -math.inf

    def add(self, tick: Tick) -> None:
        """Take in a control period."""
        soles = tick.foot_soles_w[:, 2].copy()
        self._force.append(tick.foot_force.astype(np.float32))
        self._sole_z.append(soles)
        self._walks.append(bool(tick.walks))
        self._highest = max(self._highest, float(soles.max() - tick.base_pos_w[2]))

    def figures(self) -> dict[str, float]:
        """Sums for `krabby.benchmark.aggregate`; touchdowns and swings while asked to move."""
        if not self._walks:
            return {}
        per_tick, walks = len(self._force[0]), np.array(self._walks)
        force, sole_z = np.concatenate(self._force), np.stack(self._sole_z)
        feet = [contacts(column, self._debounce) for column in force.T]
        peaks = np.concatenate([foot.peaks for foot in feet]) / self._weight_n
        down = np.stack([foot.down for foot in feet], axis=1).sum(axis=1)
        three = (down >= 3).reshape(-1, per_tick).mean(axis=1)
        heights: list[float] = []
        for i, foot in enumerate(feet):
            swings = foot.swings // per_tick
            heights += swing_heights(sole_z[:, i], swings[walks[swings[:, 1]]]).tolist()
        found = {
            "touchdowns": float(sum(walks[f.touchdowns // per_tick].sum() for f in feet)),
            "foot_s": CONTROL_S * len(feet) * float(walks.sum()),
            "swings": float(len(heights)),
            "clearance": math.fsum(heights),
            "three_feet_s": CONTROL_S * float(three[walks].sum()),
            "foot_above_base": self._highest,
        }
        if len(peaks):
            found["contact_peak"] = float(peaks.max())
            found["peaks"] = float(len(peaks))
        bins, counts = np.unique(np.ceil(peaks / _PEAK_BIN - 1e-6), return_counts=True)
        return found | {
            f"peaks.{number * _PEAK_BIN:.1f}": float(count)
            for number, count in zip(bins, counts, strict=True)
        }


class Figures:
    """Reduces one trial to sums. Memory: about 0.2 kB per tick and 0.024 kB per physics step."""

    def __init__(self, facts: TrialFacts) -> None:
        self._weight_n = facts.mass_kg * GRAVITY
        self._joint_count = len(facts.joint_names)
        self._tracking, self._standing = Tracking(), Standing()
        self._joints = Joints(facts.rated_torque, facts.joint_names)
        self._feet = Feet(facts.substep_s, self._weight_n)
        self._parts = (self._tracking, self._standing, self._joints, self._feet)
        self._sums: dict[str, float] = dict.fromkeys(
            ("time_s", "blind_s", "position_clamps", "rate_clamps", "joint_ticks"), 0.0
        )
        self._sums["needed_s"] = needed_s(facts.scenario)
        self._oldest_s = 0.0

    def tick(self, tick: Tick) -> None:
        """Take in a control period."""
        if tick.time_s < 0.0 or tick.diverged:
            return
        for part in self._parts:
            part.add(tick)
        sums = self._sums
        sums["time_s"] += CONTROL_S
        sums["blind_s"] += CONTROL_S * tick.blind
        if tick.mode is Mode.POLICY:
            sums["joint_ticks"] += self._joint_count
            sums["position_clamps"] += tick.position_clamps
            sums["rate_clamps"] += tick.rate_clamps
        if tick.feature_age_s > self._oldest_s:
            self._oldest_s = tick.feature_age_s

    def figures(self) -> dict[str, float]:
        """Sums and maxima of the trial by name, six digits."""
        found = dict(self._sums)
        for part in self._parts:
            found |= part.figures()
        found["weight_m"] = self._weight_n * self._tracking.travelled_m
        if self._oldest_s > 0.0:
            found["feature_age"] = self._oldest_s
        return {name: float(f"{value:.6g}") for name, value in found.items()}
