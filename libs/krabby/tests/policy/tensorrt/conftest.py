"""Small networks with what policies have: states, convolutions, a jump."""

import numpy as np
import pytest
from krabby.policy.network import NetworkSpec, StateTensor
from onnx import TensorProto, checker, helper, numpy_helper


def onnx_file(inputs, outputs, nodes, constants) -> bytes:
    def infos(tensors):
        return [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in tensors.items()
        ]

    graph = helper.make_graph(
        nodes,
        "test",
        infos(inputs),
        infos(outputs),
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opset = helper.make_opsetid("", 18)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=9)
    checker.check_model(model, full_check=True)
    return model.SerializeToString()


def double_spec(name="double", gain=2.0, batch=1) -> NetworkSpec:
    """y = gain x, without memory."""
    content = onnx_file(
        {"x": [batch, 3]},
        {"y": [batch, 3]},
        [helper.make_node("Mul", ["x", "gain"], ["y"])],
        {"gain": np.float32(gain)},
    )
    return NetworkSpec(
        content=content, source=f"/bundles/{name}/policy.onnx", inputs={"x": (1, 3)},
        output=("y", (1, 3)),
    )  # fmt: skip


def counter_spec(initial=0.0) -> NetworkSpec:
    """The sum so far of what came in: y = total_out = total + x."""
    content = onnx_file(
        {"x": [1, 3], "total": [1, 3]},
        {"y": [1, 3], "total_out": [1, 3]},
        [
            helper.make_node("Add", ["total", "x"], ["total_out"]),
            helper.make_node("Identity", ["total_out"], ["y"]),
        ],
        {},
    )
    start = np.full((1, 3), initial, np.float32)
    return NetworkSpec(
        content=content,
        source="/bundles/counter/policy.onnx",
        inputs={"x": (1, 3)},
        output=("y", (1, 3)),
        state=(StateTensor(input="total", output="total_out", initial=start),),
    )


def clock_spec() -> NetworkSpec:
    """A clock that jumps from 1 to 0 like a gait's: its state steps by a quarter."""
    content = onnx_file(
        {"x": [1, 1], "t": [1, 1]},
        {"y": [1, 1], "t_out": [1, 1]},
        [
            helper.make_node("Mul", ["x", "rate"], ["step"]),
            helper.make_node("Add", ["t", "step"], ["sum"]),
            helper.make_node("Floor", ["sum"], ["whole"]),
            helper.make_node("Sub", ["sum", "whole"], ["t_out"]),
            helper.make_node("Identity", ["t_out"], ["y"]),
        ],
        {"rate": np.float32(0.25)},
    )
    zero = np.zeros((1, 1), np.float32)
    return NetworkSpec(
        content=content,
        source="/bundles/clock/policy.onnx",
        inputs={"x": (1, 1)},
        output=("y", (1, 1)),
        state=(StateTensor(input="t", output="t_out", initial=zero),),
        samples={"x": np.ones((12, 1, 1), np.float32)},
    )


def depth_encoder_spec(hidden=64, proprio=27) -> NetworkSpec:
    """Two convolutions, a GRU, a latent of 32: what a student's encoder is like."""
    rng = np.random.default_rng(1)

    def weights(*shape):
        fan_in = int(np.prod(shape[1:])) or 1
        return (rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)

    # 58 x 87, kernel 8, stride 4 -> 13 x 20; kernel 3, stride 2 -> 6 x 9; 32 channels: 1728
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], strides=[4, 4]),
        helper.make_node("Elu", ["c1"], ["e1"]),
        helper.make_node("Conv", ["e1", "w2", "b2"], ["c2"], strides=[2, 2]),
        helper.make_node("Elu", ["c2"], ["e2"]),
        helper.make_node("Flatten", ["e2"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["seen"]),
        helper.make_node("Concat", ["seen", "proprio"], ["both"], axis=1),
        helper.make_node("Unsqueeze", ["both", "front"], ["sequence"]),
        helper.make_node(
            "GRU", ["sequence", "wg", "rg", "bg", "", "h"], ["", "h_out"],
            hidden_size=hidden, linear_before_reset=1,
        ),
        helper.make_node("Squeeze", ["h_out", "front"], ["memory"]),
        helper.make_node("Gemm", ["memory", "w4", "b4"], ["latent"]),
    ]  # fmt: skip
    constants = {
        "w1": weights(16, 1, 8, 8), "b1": weights(16), "w2": weights(32, 16, 3, 3),
        "b2": weights(32), "w3": weights(1728, 64), "b3": weights(64), "front": np.array([0]),
        "wg": weights(1, 3 * hidden, 64 + proprio), "rg": weights(1, 3 * hidden, hidden),
        "bg": weights(1, 6 * hidden), "w4": weights(hidden, 32), "b4": weights(32),
    }  # fmt: skip
    shapes = {"image": (1, 1, 58, 87), "proprio": (1, proprio), "h": (1, 1, hidden)}
    content = onnx_file(
        {name: list(shape) for name, shape in shapes.items()},
        {"latent": [1, 32], "h_out": [1, 1, hidden]},
        nodes,
        constants,
    )
    start = np.zeros(shapes.pop("h"), np.float32)
    return NetworkSpec(
        content=content,
        source="/bundles/student/depth_encoder.onnx",
        inputs=shapes,
        output=("latent", (1, 32)),
        state=(StateTensor(input="h", output="h_out", initial=start),),
    )


@pytest.fixture
def double():
    return double_spec


@pytest.fixture
def counter():
    return counter_spec


@pytest.fixture
def clock_network():
    return clock_spec()


@pytest.fixture
def depth_encoder():
    return depth_encoder_spec()
