"""Drives a simulated robot through a manoeuvre by the `nav` stream, as a person would.

krabby up --course field --difficulty 0 --policy gait &   # or --course stairs --difficulty 0.5
python examples/scripted_drive.py figure-eight   # slalom, reverse-parking or stop-on-stairs

The script sees the robot from outside (stream `truth`), steers to a point ahead on the path and
reports the error to the path as one JSON object. Exit status 1: the manoeuvre was not completed.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from krabby.course.mission import wrap_angle
from krabby.robot import rotations
from krabby_cli.endpoints import add_endpoint_options, endpoints_of
from krabby_proto import (
    FLAG_OPERATOR,
    NAV,
    TRUTH,
    ControlClient,
    LatestSubscriber,
    Publisher,
    unpack,
)
from numpy.typing import NDArray

PERIOD_S = 0.05
STEP_M = 0.02
AHEAD_M = 0.6
"""How far ahead on the path the point lies that is steered to."""
MAX_YAW_RATE = 0.5
FALLEN_RAD = math.radians(60.0)


@dataclass
class Leg:
    """A path that is walked forward (gear 1) or backward (-1)."""

    points: NDArray[np.float64]
    """(n, 2), `STEP_M` apart, relative to the start: x ahead, y to the left [m]."""
    gear: int = 1
    stops_m: tuple[float, ...] = ()
    """Where along the path the stick is released for `STOP_S`."""


STOP_S = 5.0


def _curve(x: Callable, y: Callable, end: float) -> NDArray[np.float64]:
    """Points of a curve over 0 to `end`, evenly spaced."""
    s = np.linspace(0.0, end, 4000)
    dense = np.stack([x(s), y(s)], axis=1)
    along = np.concatenate([[0.0], np.linalg.norm(np.diff(dense, axis=0), axis=1).cumsum()])
    even = np.arange(0.0, along[-1] + STEP_M, STEP_M)
    return np.stack([np.interp(even, along, dense[:, i]) for i in (0, 1)], axis=1)


def _line(start: tuple[float, float], end: tuple[float, float]) -> NDArray[np.float64]:
    (ax, ay), (bx, by) = start, end
    return _curve(lambda s: ax + s * (bx - ax), lambda s: ay + s * (by - ay), 1.0)


def figure_eight(radius: float = 2.0) -> list[Leg]:
    """A circle to the left, then one to the right."""
    left = _curve(lambda a: radius * np.sin(a), lambda a: radius * (1 - np.cos(a)), math.tau)
    return [Leg(np.concatenate([left, left[1:] * (1.0, -1.0)]))]


def slalom(width: float = 1.0, pylons_m: float = 2.2, pylons: int = 5) -> list[Leg]:
    """Round pylons in a row, `width` from side to side [m]."""

    def y(x: NDArray) -> NDArray:
        return 0.5 * width * (1.0 - np.cos(math.pi * x / pylons_m))

    return [Leg(_curve(lambda x: x, y, pylons * pylons_m))]


def reverse_parking(radius: float = 1.5) -> list[Leg]:
    """3 m ahead, back through a quarter circle, back into the gap: it ends turned by 90 degrees."""
    back = _curve(
        lambda a: 3.0 - radius * np.sin(a), lambda a: radius * (np.cos(a) - 1.0), math.pi / 2
    )
    into = _line((3.0 - radius, -radius), (3.0 - radius, -radius - 1.0))
    return [Leg(_line((0.0, 0.0), (3.0, 0.0))), Leg(np.concatenate([back, into[1:]]), -1)]


def stop_on_stairs() -> list[Leg]:
    """Ahead over a flight of stairs, with two stops on it."""
    return [Leg(_line((0.0, 0.0), (7.0, 0.0)), stops_m=(3.5, 4.5))]


MANOEUVRES = {
    "figure-eight": figure_eight,
    "slalom": slalom,
    "reverse-parking": reverse_parking,
    "stop-on-stairs": stop_on_stairs,
}


@dataclass
class Driver:
    """Steers along legs; a pure function of time and pose, which are relative to the start."""

    legs: list[Leg]
    speed: float = 0.3
    """[m/s]"""
    errors_m: list[float] = field(default_factory=list)
    """Distance to the path while it walks."""
    drifts_m_s: list[float] = field(default_factory=list)
    """Mean speed in each stop, from its second second on."""
    done: bool = False
    _leg: int = 0
    _index: int = 0
    _stops: int = 0
    _until_s: float | None = None
    _stood: tuple[float, NDArray[np.float64]] | None = None

    def command(self, time_s: float, xy: NDArray[np.float64], yaw: float) -> tuple[float, float]:
        """Forward speed [m/s] and yaw rate [rad/s] now; zero when all is done."""
        if self._until_s is not None and self._stands(time_s, xy):
            return 0.0, 0.0
        leg = self.legs[self._leg]
        near = leg.points[self._index : self._index + round(2 * AHEAD_M / STEP_M)]
        away = np.linalg.norm(near - xy, axis=1)
        self._index += int(away.argmin())
        self.errors_m.append(float(away.min()))
        if self._index >= len(leg.points) - 1:
            self._leg, self._index, self._stops = self._leg + 1, 0, 0
            self.done = self._leg == len(self.legs)
            return 0.0, 0.0
        if self._stops < len(leg.stops_m) and self._index * STEP_M >= leg.stops_m[self._stops]:
            self._stops += 1
            self._until_s, self._stood = time_s + STOP_S, None
            return 0.0, 0.0
        return self._steer(leg, xy, yaw)

    def _steer(self, leg: Leg, xy: NDArray[np.float64], yaw: float) -> tuple[float, float]:
        """Along the circle that leaves the robot straight and meets the path ahead."""
        ahead = self._index + round(AHEAD_M / STEP_M)
        beyond = max(0, ahead - len(leg.points) + 1) * STEP_M
        target = leg.points[min(ahead, len(leg.points) - 1)]
        target = target + beyond * (leg.points[-1] - leg.points[-2]) / STEP_M
        dx, dy = target - xy
        x, y = math.cos(yaw) * dx + math.sin(yaw) * dy, math.cos(yaw) * dy - math.sin(yaw) * dx
        curvature = 2.0 * y / (x * x + y * y)
        speed = min(self.speed, MAX_YAW_RATE / max(abs(curvature), 1e-6))
        return leg.gear * speed, leg.gear * speed * curvature

    def _stands(self, time_s: float, xy: NDArray[np.float64]) -> bool:
        assert self._until_s is not None
        if self._stood is None and time_s >= self._until_s - STOP_S + 1.0:
            self._stood = time_s, xy
        if time_s < self._until_s:
            return True
        if self._stood is not None:
            since_s, stood = self._stood
            self.drifts_m_s.append(float(np.linalg.norm(xy - stood)) / (time_s - since_s))
        self._until_s = None
        return False

    def report(self, xy: NDArray[np.float64], yaw: float) -> dict[str, object]:
        """Errors to the path, and at its end for a robot at `xy` [m] and `yaw` [rad]."""
        last = self.legs[-1]
        end, along = last.points[-1], last.points[-1] - last.points[-2]
        heading = math.atan2(*reversed((last.gear * along).tolist()))
        errors = np.array(self.errors_m or [math.nan])
        return {
            "completed": self.done,
            "path_error_rms_m": round(float(np.sqrt(np.mean(errors**2))), 3),
            "path_error_max_m": round(float(errors.max()), 3),
            "end_error_m": round(float(np.linalg.norm(xy - end)), 3),
            "end_heading_error_rad": round(float(wrap_angle(yaw - heading)), 3),
            "drift_m_s": [round(drift, 4) for drift in self.drifts_m_s],
        }


class Watcher:
    """The robot's pose as seen from outside, relative to where it was at first."""

    def __init__(self, truth: LatestSubscriber) -> None:
        self._truth = truth
        self._origin: tuple[NDArray[np.float64], float] | None = None
        self.tilt_rad = 0.0

    def pose(self) -> tuple[NDArray[np.float64], float] | None:
        """x, y [m] and yaw [rad] now; None before the first message."""
        message = self._truth.latest()
        if message is None:
            return None
        values = unpack(TRUTH, message.payload)
        quat = values["base_quat_w"].astype(np.float64)
        xy, yaw = values["base_pos_w"][:2].astype(np.float64), float(rotations.yaw(quat))
        self.tilt_rad = float(rotations.tilt(quat))
        if self._origin is None:
            self._origin = xy, yaw
        start, heading = self._origin
        dx, dy = xy - start
        cos, sin = math.cos(heading), math.sin(heading)
        return np.array([cos * dx + sin * dy, cos * dy - sin * dx]), wrap_angle(yaw - heading)


def drive(
    endpoints: Mapping[str, str], legs: list[Leg], speed: float, limit_s: float
) -> dict[str, object]:
    """Wait until the robot walks, then drive it; the report."""
    driver = Driver(legs, speed)
    clamped: set[str] = set()
    with (
        LatestSubscriber(endpoints["truth"], TRUTH) as truth,
        Publisher(endpoints["nav"], NAV, bind=False) as nav,
        ControlClient(endpoints["control"]) as loop,
    ):

        def say(vx: float, yaw_rate: float) -> None:
            nav.publish((vx, 0.0, yaw_rate), capture_ns=time.monotonic_ns(), flags=FLAG_OPERATOR)
            time.sleep(PERIOD_S)

        while (status := loop.request("status", timeout_s=60.0))["mode"] != "policy":
            say(0.0, 0.0)
        watcher, began_s, asked_s = Watcher(truth), time.monotonic(), 0.0
        while (pose := watcher.pose()) is None:
            say(0.0, 0.0)
        while not driver.done and (elapsed_s := time.monotonic() - began_s) < limit_s:
            pose = watcher.pose() or pose
            if watcher.tilt_rad > FALLEN_RAD:
                break
            say(*driver.command(elapsed_s, *pose))
            if elapsed_s - asked_s > 1.0:
                asked_s = elapsed_s
                clamped |= set(loop.request("status", timeout_s=5.0)["nav_clamped"])
        for _ in range(20):  # it slows down
            say(0.0, 0.0)
        pose = watcher.pose() or pose
    return {
        "policy": status["policy"],
        "seconds": round(time.monotonic() - began_s, 1),
        "fell": watcher.tilt_rad > FALLEN_RAD,
        "clamped": sorted(clamped),
        **driver.report(*pose),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("manoeuvre", choices=MANOEUVRES)
    parser.add_argument("--speed", type=float, default=0.3, help="[m/s]")
    parser.add_argument("--limit", type=float, default=180.0, help="longest time [s]")
    add_endpoint_options(parser)
    args = parser.parse_args()
    report = drive(endpoints_of(args), MANOEUVRES[args.manoeuvre](), args.speed, args.limit)
    sys.stdout.write(f"{json.dumps({'manoeuvre': args.manoeuvre, **report})}\n")
    sys.exit(0 if report["completed"] else 1)
