"""Prometheus metrics of a run."""

from __future__ import annotations

import math
import time
from typing import Final

from krabby.runtime.metrics import MetricsServer
from prometheus_client import CollectorRegistry, Counter, Gauge

from krabby_trainer.run.telemetry import Iteration

__all__ = ["STALL_S", "Exposition"]

STALL_S: Final = 120.0
"""/healthz fails after this long without an iteration."""
_ONE_VALUE: Final = {
    "Perf/env_steps_per_s": ("env_steps_per_second", "Robot-steps per second, all processes"),
    "Perf/collect_s": ("collect_seconds", "Rollout of the last iteration"),
    "Perf/learn_s": ("learn_seconds", "Update of the last iteration"),
    "Train/mean_reward": ("reward", "Mean sum of rewards of an episode"),
    "Train/mean_episode_steps": ("episode_steps", "Mean length of an episode"),
    "Episode/mxd": ("mxd_ratio", "Mean share of waypoints reached (MXD)"),
    "Episode/mev": ("mev", "Mean feet on an edge (MEV)"),
    "Episode/fall_rate": ("fall_ratio", "Share of episodes that ended in a fall"),
    "Episode/completed": ("completed_ratio", "Share of episodes that reached the end"),
    "Torque/rms_nm": ("torque_rms_newton_meters", "RMS torque over joints and robots"),
    "Torque/saturation": ("torque_saturation_ratio", "Share of joint-steps at the drive's limit"),
    "Policy/learning_rate": ("learning_rate", "Of the policy's optimiser"),
    "Policy/action_std": ("action_std", "Mean standard deviation of the actions"),
    "Policy/kl": ("kl", "Mean KL divergence of an update"),
}
"""Scalar to the rest of the metric's name, and its meaning."""
_BY_LABEL: Final = {
    "Level": ("level", "type", "Mean level of the curriculum"),
    "Loss": ("loss", "term", "Mean loss of an update"),
    "Reward": ("reward_term", "term", "Mean reward, by term"),
}


class Exposition:
    """A sink with a Prometheus endpoint.

    Args:
        port: TCP port; 0 takes a free one.
        address: Interface to bind.
    """

    def __init__(self, port: int, address: str = "127.0.0.1") -> None:
        registry = CollectorRegistry()

        def gauge(name: str, meaning: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(f"krabby_training_{name}", meaning, labels, registry=registry)

        self._iteration = gauge("iteration", "Iterations done")
        self._iterations = gauge("iterations", "Iterations of the whole run")
        self._eta = gauge("eta_seconds", "Time to the end at the present pace")
        self._told = gauge("last_iteration_timestamp_seconds", "When the last iteration ended")
        self._broken = gauge("not_finite", "1 once a value was not finite and the run stopped")
        self._steps = Counter(
            "krabby_training_env_steps_total", "Robot-steps of this process", registry=registry
        )
        self._gauges = {key: gauge(*spec) for key, spec in _ONE_VALUE.items()}
        self._families = {
            group: gauge(name, meaning, (label,))
            for group, (name, label, meaning) in _BY_LABEL.items()
        }
        self._counted = -1
        self._told.set_to_current_time()
        self._told_at = time.monotonic()
        self._server = MetricsServer(port, address, healthy=self._healthy, registry=registry)
        self.port = self._server.port

    def write(self, iteration: Iteration) -> None:
        self._iteration.set(iteration.number)
        self._iterations.set(iteration.total)
        self._eta.set(iteration.eta_s)
        self._told.set_to_current_time()
        self._told_at = time.monotonic()
        if self._counted >= 0:
            self._steps.inc(iteration.env_steps - self._counted)
        self._counted = iteration.env_steps
        for key, value in iteration.scalars.items():
            if key in self._gauges:
                self._gauges[key].set(value)
                continue
            group, _, name = key.partition("/")
            if group in self._families:
                self._families[group].labels(name).set(value)
        if not all(map(math.isfinite, iteration.scalars.values())):
            self._broken.set(1)

    def fail(self, linger_s: float) -> None:
        """Report a value that is not finite for long enough to be scraped."""
        self._broken.set(1)
        time.sleep(linger_s)

    def close(self) -> None:
        self._server.close()

    def _healthy(self) -> bool:
        return time.monotonic() - self._told_at < STALL_S
