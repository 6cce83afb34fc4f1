"""The depth encoder on another backend."""

import numpy as np
import pytest
from krabby.policy.bundle import write_bundle
from krabby.policy.depth_image import IMAGE_SHAPE
from krabby.policy.tensorrt import backend as inference
from krabby.policy.tensorrt.testing import FAKE, orders
from krabby.robot.description import RobotDescription
from krabby.runtime.app import Runtime
from krabby_camera.config import CameraCfg, EncoderInferenceCfg
from krabby_camera.service import CameraService
from onnx import TensorProto, helper, numpy_helper


def network(inputs, output, nodes, constants) -> bytes:
    def infos(tensors):
        return [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in tensors.items()
        ]

    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "test", infos(inputs), infos(output), stored)
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=9).SerializeToString()


@pytest.fixture
def student(tmp_path):
    """A bundle whose latent is the image's mean plus the sum of all means so far."""
    desc = RobotDescription.load()
    policy = network(
        {"obs": [1, 35]}, {"actions": [1, 18]},
        [helper.make_node("Gather", ["obs", "first"], ["actions"], axis=1)],
        {"first": np.arange(18)},
    )  # fmt: skip
    encoder = network(
        {"image": [1, 1, *IMAGE_SHAPE], "h": [1, 1]},
        {"latent": [1, 32], "h_out": [1, 1]},
        [
            helper.make_node("ReduceMean", ["image"], ["mean"], axes=[2, 3], keepdims=0),
            helper.make_node("Add", ["mean", "h"], ["h_out"]),
            helper.make_node("Mul", ["h_out", "ones"], ["latent"]),
        ],
        {"ones": np.ones((1, 32), np.float32)},
    )
    manifest = {
        "name": "student",
        "observation": [
            {"name": "nav_command", "size": 3, "scale": 1.0, "history": 1},
            {"name": "features", "size": 32, "scale": 1.0, "history": 1},
        ],
        "needs_features": "latent",
        "action": {"scale": 0.1, "offset": desc.default_joint_pos.tolist(), "clip": 1.0},
        "encoder": {
            "rate_hz": 10.0,
            "state": [{"input": "h", "output": "h_out", "shape": [1, 1]}],
        },
    }
    files = {"policy.onnx": policy, "depth_encoder.onnx": encoder}
    write_bundle(tmp_path / "student", manifest, files, desc)
    return tmp_path / "student"


def test_the_encoder_moves_to_the_gpu_with_a_fresh_memory(student, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "engine_platform", lambda cfg: FAKE)
    table = EncoderInferenceCfg(backend="auto", cache_dir=str(tmp_path / "engines"), budget_s=1.0)
    service = CameraService(CameraCfg(metrics_port=0, bundle=str(student), inference=table))
    encoder = service._encoder
    assert encoder is not None
    image = np.full(IMAGE_SHAPE, 0.25, np.float32)
    encoder.step(image)
    with orders(tmp_path / "orders.json"):
        service.prepare(Runtime("camera"))
    assert encoder.network.backend == "tensorrt"
    assert [encoder.step(image)[0] for _ in range(2)] == pytest.approx([0.25, 0.5])


def test_a_depth_encoder_has_more_time_than_a_policy():
    assert CameraCfg().inference.budget_s == 0.01
    assert CameraCfg().inference.backend == "onnxruntime"


def test_without_an_encoder_there_is_nothing_to_move(monkeypatch):
    monkeypatch.setattr(inference, "open_backend", lambda *_, **__: 1 / 0)
    CameraService(CameraCfg(metrics_port=0)).prepare(Runtime("camera"))
