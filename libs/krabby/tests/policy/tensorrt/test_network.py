"""An engine behaves as ONNX Runtime does, also when the GPU fails."""

import gc
import math

import numpy as np
import pytest
from krabby.policy.onnx_runtime import OnnxRuntime
from krabby.policy.tensorrt.engine import EngineTensor
from krabby.policy.tensorrt.errors import DeviceError, EngineRefused
from krabby.policy.tensorrt.network import EngineNetwork
from krabby.policy.tensorrt.testing import FakeBuffers, FakeEngine
from krabby.robot.errors import ObservationError, PolicyOutputError
from krabby.runtime.testing import captured_logs


def engine_of(spec, **kind) -> FakeEngine:
    return FakeEngine(spec.content, spec.input_shapes, **kind)


def network_of(spec, buffers=None, **kind) -> EngineNetwork:
    return EngineNetwork(spec, engine_of(spec), buffers or FakeBuffers(), **kind)


def row(*values) -> np.ndarray:
    return np.array([values], np.float32)


def step(network, *values):
    network.set_input("x", row(*values))
    return network.run()[0].tolist()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("graphs", [False, True])
def test_a_step_reads_its_input_and_gives_the_output(double, shared, graphs):
    network = network_of(double(), FakeBuffers(shared=shared), graphs=graphs)
    assert step(network, 1, 2, 3) == [2, 4, 6]
    assert step(network, -1, 0, 5) == [-2, 0, 10]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("graphs", [False, True])
def test_states_are_fed_back_without_being_copied(counter, shared, graphs):
    buffers = FakeBuffers(shared=shared)
    network = network_of(counter(), buffers, graphs=graphs)
    buffers.calls.clear()
    assert [step(network, 1, 0, 0.5) for _ in range(3)] == [[1, 0, 0.5], [2, 0, 1], [3, 0, 1.5]]
    assert network.state("total")[0].tolist() == [3, 0, 1.5]
    # a step: the input goes up, and what came out comes down; no state goes up again
    assert buffers.calls.count("upload") == (0 if shared or graphs else 3)
    assert buffers.calls.count("launch") == (3 if graphs else 0)


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_a_reset_puts_states_back_in_either_phase(counter, steps):
    network = network_of(counter(initial=10.0))
    for _ in range(steps):
        step(network, 1, 1, 1)
    network.reset()
    assert step(network, 1, 2, 3) == [11, 12, 13]
    assert step(network, 1, 2, 3) == [12, 14, 16]


@pytest.mark.parametrize("steps", [1, 2])
def test_a_state_that_is_not_finite_is_not_fed_back(counter, steps):
    network = network_of(counter())
    for _ in range(steps - 1):
        step(network, 1, 1, 1)
    with pytest.raises(PolicyOutputError, match="state 'total_out' that is not finite"):
        step(network, math.inf, 0, 0)
    assert step(network, 0.5, 0, 0) == [0.5, 0, 0]


def test_it_agrees_with_onnx_runtime_bit_for_bit_over_many_steps(depth_encoder):
    rng = np.random.default_rng(3)
    ours, theirs = network_of(depth_encoder), OnnxRuntime().open(depth_encoder)
    for _ in range(10):
        for name, shape in depth_encoder.inputs.items():
            value = rng.standard_normal(shape).astype(np.float32)
            ours.set_input(name, value)
            theirs.set_input(name, value)
        assert ours.run().tolist() == theirs.run().tolist()
    assert ours.state("h").tolist() == theirs.state("h").tolist()


def test_steps_are_launched_one_by_one_where_no_graph_can_be_made(counter):
    buffers = FakeBuffers(capture_fails=True)
    with captured_logs() as logs:
        network = network_of(counter(), buffers)
    assert not network.graphed
    assert "no CUDA graph" in logs[0]["event"]
    assert [step(network, 1, 0, 0)[0] for _ in range(3)] == [1, 2, 3]
    assert "launch" not in buffers.calls


def test_a_network_with_states_has_two_graphs_and_one_without_has_one(double, counter):
    assert len(network_of(double())._graphs) == 1
    assert len(network_of(counter())._graphs) == 2


def test_an_open_batch_size_is_one(double):
    network = network_of(double(batch="batch"))
    assert step(network, 1, 2, 3) == [2, 4, 6]


def test_inputs_that_do_not_fit_are_refused_as_by_onnx_runtime(double):
    spec = double()
    messages = []
    for network in (network_of(spec), OnnxRuntime().open(spec)):
        with pytest.raises(ObservationError) as error:
            network.set_input("x", np.zeros((1, 4), np.float32))
        messages.append(str(error.value))
    assert messages[0] == messages[1]


# A GPU that fails


def test_the_processor_takes_over_with_the_state_there_is(counter):
    buffers, spec, failures = FakeBuffers(), counter(), []
    standby = OnnxRuntime().open(spec)
    network = network_of(spec, buffers, standby=standby, on_failure=failures.append)
    step(network, 1, 0, 0)
    step(network, 1, 0, 0)
    buffers.fails = True
    assert network.backend == "tensorrt"
    assert step(network, 1, 0, 0) == [3, 0, 0]
    assert step(network, 1, 0, 0) == [4, 0, 0]
    assert network.backend == "onnxruntime"
    assert network.state("total")[0, 0] == 4
    assert len(failures) == 1
    network.reset()
    assert step(network, 1, 0, 0) == [1, 0, 0]


def test_without_a_standby_a_failed_gpu_is_like_nan(counter):
    buffers = FakeBuffers()
    network = network_of(counter(), buffers)
    buffers.fails = True
    for _ in range(2):
        with pytest.raises(PolicyOutputError, match="the GPU failed"):
            step(network, 1, 0, 0)
        network.reset()


def test_a_gpu_that_fails_from_the_start_is_an_error(double):
    buffers = FakeBuffers()
    buffers.fails = True
    with pytest.raises(DeviceError, match="700"):
        network_of(double(), buffers)


# Signatures


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ((), "expected input 'x'"),
        ((EngineTensor("x", True, (1, 4), True),), r"expected input 'x' of shape \(1, 3\)"),
        ((EngineTensor("x", True, (1, 3), False),), "expected input 'x'"),
        ((EngineTensor("x", False, (1, 3), True),), "expected input 'x'"),
        ((EngineTensor("x", True, (-1, 3), True),), "expected output 'y'"),
    ],
)
def test_an_engine_of_other_tensors_is_refused(double, tensors, message):
    engine = engine_of(double())
    engine.tensors = lambda: tensors
    with pytest.raises(EngineRefused, match=message):
        EngineNetwork(double(), engine, FakeBuffers())


def test_an_engine_with_a_tensor_more_is_refused(double):
    engine = engine_of(double())
    engine.extra = (EngineTensor("debug", False, (1,), True),)
    with pytest.raises(EngineRefused, match="debug, which its manifest does not describe"):
        EngineNetwork(double(), engine, FakeBuffers())


# Memory


def test_closing_frees_the_gpu_s_memory_and_so_does_dropping(double):
    closed, dropped = FakeBuffers(), FakeBuffers()
    network = network_of(double(), closed)
    network.close()
    network.close()
    assert closed.closed
    network = network_of(double(), dropped)
    del network
    gc.collect()
    assert dropped.closed
