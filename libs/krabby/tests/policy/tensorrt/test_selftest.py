"""What an engine must do to be let near the robot."""

import itertools

import numpy as np
import pytest
from krabby.policy.onnx_runtime import OnnxRuntime
from krabby.policy.tensorrt.network import EngineNetwork
from krabby.policy.tensorrt.selftest import LAUNCHES, STEPS, run_selftest, samples_of
from krabby.policy.tensorrt.testing import FakeBuffers, FakeEngine


def selftest_of(spec, *, engine=None, tolerance=1e-3, budget_s=10.0, **kind):
    engine = engine or FakeEngine(spec.content, spec.input_shapes)
    network = EngineNetwork(spec, engine, FakeBuffers())
    return run_selftest(network, OnnxRuntime().open, tolerance=tolerance, budget_s=budget_s, **kind)


def test_the_same_network_passes(depth_encoder):
    verdict = selftest_of(depth_encoder)
    assert verdict.problem == ""
    assert (verdict.steps, verdict.recorded, verdict.error) == (STEPS, False, 0.0)
    assert verdict.cosine == pytest.approx(1.0)
    assert 0 < verdict.p50_s <= verdict.p99_s <= verdict.max_s
    assert verdict.text.startswith("good: 64 made-up steps, off by 0.0e+00; p50")


def test_an_output_that_is_off_is_refused_with_its_name_and_step(double):
    spec = double()
    engine = FakeEngine(spec.content, spec.input_shapes, offset=0.01)
    verdict = selftest_of(spec, engine=engine)
    # 2 x + 0.01: off by 0.01 where |2 x| < 1, by less where relative
    assert verdict.error == pytest.approx(0.01, rel=1e-3)
    assert "y at step" in verdict.problem
    assert "inference.tolerance is 0.001" in verdict.problem
    assert not selftest_of(spec, engine=engine, tolerance=0.02).problem


def test_a_state_that_drifts_apart_shows_after_some_steps(counter):
    spec = counter()
    engine = FakeEngine(spec.content, spec.input_shapes, offset=1e-4)
    # every step adds 1e-4 to the state: 1e-3 is passed around the tenth, where numbers are small
    verdict = selftest_of(spec, engine=engine)
    assert "total_out at step" in verdict.problem or "y at step" in verdict.problem
    step = int(verdict.problem.split("at step ")[1].split()[0])
    assert step >= 10


def test_a_jump_that_rounding_moves_is_no_error(clock_network):
    """The clock reaches 1.0 exactly: a rounding less, and it is 0.99999 in place of 0."""
    spec = clock_network

    class Rounded(FakeEngine):
        def enqueue(self, stream):
            super().enqueue(stream)
            buffers = FakeBuffers.streams[stream]
            pair = self._bound["t"], self._bound["t_out"], self._bound["y"], self._bound["x"]

            def round_down():
                t, t_out, y, x = pair
                total = t + x * np.float32(0.25 * (1 - 4e-7))
                np.copyto(t_out, total - np.floor(total))
                np.copyto(y, t_out)

            buffers.enqueue("round", round_down)

    verdict = selftest_of(spec, engine=Rounded(spec.content, spec.input_shapes))
    assert verdict.problem == ""
    assert verdict.recorded
    assert verdict.steps == 12


def test_numbers_that_are_not_finite_are_refused(double, counter):
    for spec in (double(), counter()):
        engine = FakeEngine(spec.content, spec.input_shapes, offset=float("nan"))
        assert "not finite" in selftest_of(spec, engine=engine).problem


def test_over_budget_is_refused(double):
    ticks = itertools.count()
    verdict = selftest_of(double(), budget_s=0.002, clock=lambda: next(ticks) * 0.003)
    assert verdict.problem == "a step takes 3.00 ms (p99), the budget is 2 ms"
    assert (verdict.p50_s, verdict.max_s) == pytest.approx((0.003, 0.003))
    assert LAUNCHES == 200


def test_two_slow_steps_in_two_hundred_are_within_a_budget_at_the_99th_percentile(double):
    durations = itertools.cycle([0.001] * 199 + [0.050])
    now = itertools.chain.from_iterable((0.0, each) for each in durations)
    verdict = selftest_of(double(), budget_s=0.002, clock=lambda: next(now))
    assert verdict.problem == ""
    assert verdict.max_s == 0.050


def test_made_up_inputs_are_the_same_each_time_and_stay_in_range(depth_encoder):
    first, recorded = samples_of(depth_encoder)
    again, _ = samples_of(depth_encoder)
    assert not recorded
    assert all((first[name] == again[name]).all() for name in first)
    assert first["image"].shape == (STEPS, 1, 1, 58, 87)
    assert np.abs(first["image"]).max() == 0.5
    assert np.abs(first["proprio"]).max() <= 3.0


def test_the_network_is_as_new_afterwards(counter):
    spec = counter(initial=7.0)
    network = EngineNetwork(spec, FakeEngine(spec.content, spec.input_shapes), FakeBuffers())
    run_selftest(network, OnnxRuntime().open, tolerance=1e-3, budget_s=10.0)
    assert network.state("total")[0].tolist() == [7, 7, 7]
