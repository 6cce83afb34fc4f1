"""Whether an engine computes what ONNX Runtime does, and how long it takes.

The two run the same consecutive steps, each with its own recurrent state, so that a state that
drifts apart shows. Rounding alone moves a network's answer little, except where it jumps, such as a
gait at the end of its cycle: ONNX Runtime is therefore run on inputs a millionth larger and smaller
too, and where its own answer moves, the engine's may move as far.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from krabby.policy.network import Network, NetworkSpec
from krabby.robot.errors import PolicyOutputError

__all__ = ["LAUNCHES", "STEPS", "Verdict", "run_selftest", "samples_of"]

STEPS: Final = 64
"""Compared at most."""
LAUNCHES: Final = 200
"""Timed."""
_WARM_UP: Final = 20
_SHAKE: Final = np.float32(1e-6)
_MIN_COSINE: Final = 0.9999


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a self-test found."""

    problem: str = ""
    """Why the engine is refused; empty when it passes."""
    steps: int = 0
    """Compared."""
    recorded: bool = False
    """Whether on inputs that the bundle carries, or on made-up ones."""
    error: float = 0.0
    """Largest difference to ONNX Runtime beyond what rounding explains; relative above 1."""
    cosine: float = 1.0
    """Between all outputs and ONNX Runtime's, jumps left out."""
    p50_s: float = 0.0
    p99_s: float = 0.0
    max_s: float = 0.0
    """Time of one step, copies included [s]."""

    @property
    def text(self) -> str:
        """In one line."""
        inputs = "recorded" if self.recorded else "made-up"
        times = ", ".join(
            f"{name} {1e3 * value:.3f} ms"
            for name, value in (("p50", self.p50_s), ("p99", self.p99_s), ("max", self.max_s))
        )
        facts = f"{self.steps} {inputs} steps, off by {self.error:.1e}; {times}"
        return f"refused: {self.problem} ({facts})" if self.problem else f"good: {facts}"


def run_selftest(
    network: Network,
    open_reference: Callable[[NetworkSpec], Network],
    *,
    tolerance: float,
    budget_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Verdict:
    """Compares and times a network; it is reset before and after.

    Args:
        network: To be tested.
        open_reference: Makes ONNX Runtime's version of the same spec.
        tolerance: Largest difference, for numbers up to 1 absolute, above relative.
        budget_s: Longest step at the 99th percentile [s].
        clock: Seconds.
    """
    spec = network.spec
    samples, recorded = samples_of(spec)
    network.reset()
    try:
        verdict = _compare(network, [open_reference(spec) for _ in range(3)], samples, tolerance)
    except PolicyOutputError as error:
        verdict = Verdict(problem=f"not finite where ONNX Runtime is: {error}")
    verdict = msgspec.structs.replace(verdict, recorded=recorded)
    if not verdict.problem:
        verdict = _time(network, samples, verdict, budget_s, clock)
    network.reset()
    return verdict


def samples_of(spec: NetworkSpec) -> tuple[dict[str, NDArray[np.float32]], bool]:
    """Inputs of consecutive steps by name, shape (steps, *shape), and whether they were recorded.

    Made-up ones are the same each time: numbers that wander between about -1 and 1, images between
    -0.5 and 0.5, as the depth preprocessing gives them.
    """
    if spec.samples:
        return {name: values[:STEPS] for name, values in spec.samples.items()}, True
    rng = np.random.default_rng(0)
    samples: dict[str, NDArray[np.float32]] = {}
    for name, shape in spec.inputs.items():
        values = rng.standard_normal((STEPS, *shape))
        for step in range(1, STEPS):
            values[step] = 0.9 * values[step - 1] + 0.4 * values[step]
        limit = 0.5 if len(shape) == 4 else 3.0
        samples[name] = np.clip(values, -limit, limit).astype(np.float32)
    return samples, False


def _compare(
    network: Network,
    references: list[Network],
    samples: Mapping[str, NDArray[np.float32]],
    tolerance: float,
) -> Verdict:
    reference, *shaken = references
    steps = len(next(iter(samples.values())))
    worst, where = 0.0, ""
    outputs: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
    for step in range(steps):
        inputs = {name: values[step] for name, values in samples.items()}
        found = _step(network, inputs, 0.0)
        wanted = _step(reference, inputs, 0.0)
        moved = [
            _step(other, inputs, sign) for other, sign in zip(shaken, (1.0, -1.0), strict=True)
        ]
        for name, truth in wanted.items():
            if not np.isfinite(found[name]).all():
                return Verdict(problem=f"{name} is not finite at step {step}", steps=step + 1)
            allowed = np.max([np.abs(other[name] - truth) for other in moved], axis=0)
            off = np.maximum(np.abs(found[name] - truth) - allowed, 0.0)
            error = float((off / np.maximum(np.abs(truth), 1.0)).max(initial=0.0))
            if error > worst:
                worst, where = error, f"{name} at step {step}"
            if name == network.spec.output[0]:
                steady = allowed <= tolerance
                outputs.append((found[name][steady], truth[steady]))
    cosine = _cosine(outputs)
    verdict = Verdict(steps=steps, error=worst, cosine=cosine)
    if worst > tolerance:
        problem = f"{where} is off by {worst:.2e}, inference.tolerance is {tolerance:g}"
        return msgspec.structs.replace(verdict, problem=problem)
    if cosine < _MIN_COSINE:
        problem = f"its outputs point elsewhere than ONNX Runtime's, cosine {cosine:.5f}"
        return msgspec.structs.replace(verdict, problem=problem)
    return verdict


def _step(
    network: Network, inputs: Mapping[str, NDArray[np.float32]], shake: float
) -> dict[str, NDArray[np.float32]]:
    """One step; the output and the new states by name."""
    for name, value in inputs.items():
        network.set_input(name, value * (np.float32(1.0) + np.float32(shake) * _SHAKE))
    output = network.run().copy()
    spec = network.spec
    return {
        spec.output[0]: output,
        **{each.output: network.state(each.input) for each in spec.state},
    }


def _cosine(pairs: list[tuple[NDArray[np.float32], NDArray[np.float32]]]) -> float:
    ours, theirs = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in (0, 1))
    product = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
    return float(ours @ theirs) / product if product > 1e-6 else 1.0


def _time(
    network: Network,
    samples: Mapping[str, NDArray[np.float32]],
    verdict: Verdict,
    budget_s: float,
    clock: Callable[[], float],
) -> Verdict:
    steps = len(next(iter(samples.values())))
    network.reset()
    times_s: list[float] = []
    for launch in range(_WARM_UP + LAUNCHES):
        for name, values in samples.items():
            network.set_input(name, values[launch % steps])
        began_s = clock()
        network.run()
        if launch >= _WARM_UP:
            times_s.append(clock() - began_s)
    p50_s, p99_s = (float(value) for value in np.quantile(times_s, [0.5, 0.99]))
    problem = ""
    if p99_s > budget_s:
        problem = f"a step takes {1e3 * p99_s:.2f} ms (p99), the budget is {1e3 * budget_s:g} ms"
    changes = {"p50_s": p50_s, "p99_s": p99_s, "max_s": max(times_s), "problem": problem}
    return msgspec.structs.replace(verdict, **changes)
