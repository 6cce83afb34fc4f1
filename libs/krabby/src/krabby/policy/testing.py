"""Policies for tests and measurements of what is around one: the gait with eyes, and constants.

The gait with eyes walks as the shipped gait does and reads the depth image or the latent of an
encoder as a trained student would: what it reads changes nothing while it is finite, and spoils
every action when not. Its encoder has the size and the parts of a real one, with untrained weights.
Needs the extra `assets`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from krabby.policy.bundle import (
    ENCODER_FILE,
    LATENT_SIZE,
    MANIFEST_FILE,
    POLICY_FILE,
    PolicyBundle,
    bundle_dir,
    write_bundle,
)
from krabby.policy.depth_image import IMAGE_SHAPE
from krabby.policy.observation import ObservationLayout, standard_term
from krabby.robot.description import RobotDescription

__all__ = ["write_constant_policies", "write_seeing_gait"]

_IMAGE_SIZE: Final = IMAGE_SHAPE[0] * IMAGE_SHAPE[1]
_EYE: Final = ObservationLayout(
    tuple(
        standard_term(name)
        for name in (
            "base_ang_vel", "projected_gravity", "joint_pos_rel", "joint_vel", "foot_contact",
        )
    )
)  # fmt: skip
"""What the encoder knows of the robot."""
_CONVOLUTIONS: Final = ((16, 5), (32, 3), (32, 3))
"""Channels and width of each, all with stride 2."""
_PICTURE: Final = 128
_MEMORY: Final = 128


def write_seeing_gait(
    path: Path, desc: RobotDescription, *, features: Literal["image", "latent"]
) -> PolicyBundle:
    """Write the bundle `seeing` that reads the depth image, or a latent and its age."""
    gait = bundle_dir("gait")
    manifest = json.loads((gait / MANIFEST_FILE).read_text())
    size = sum(term["size"] * term["history"] for term in manifest["observation"])
    terms = [standard_term("features", size=_IMAGE_SIZE)]
    files: dict[str, bytes] = {}
    if features == "latent":
        terms = [standard_term("features", size=LATENT_SIZE), standard_term("features_age")]
        state = {"input": "memory", "output": "memory_next", "shape": [1, 1, _MEMORY]}
        encoder = {"rate_hz": desc.camera.rate_hz, "proprio": _EYE.to_manifest(), "state": [state]}
        manifest["encoder"] = encoder
        files[ENCODER_FILE] = _encoder().SerializeToString()
    seen = ObservationLayout(tuple(terms))
    manifest["name"] = "seeing"
    manifest["needs_features"] = features
    manifest["observation"] += seen.to_manifest()
    model = onnx.load_from_string((gait / POLICY_FILE).read_bytes())
    files[POLICY_FILE] = _with_eyes(model, size, size + seen.size).SerializeToString()
    return write_bundle(path, manifest, files, desc)


def _with_eyes(model: onnx.ModelProto, size: int, wider: int) -> onnx.ModelProto:
    """The policy with `wider` numbers in its observation: it acts on the first `size` of them."""
    graph = model.graph
    for node in graph.node:
        node.input[:] = ["acted_on" if name == "obs" else name for name in node.input]
        node.output[:] = ["walk" if name == "actions" else name for name in node.output]
    ends = {"first": 0, "from": size, "to": wider, "axis": 1}
    for name, value in ends.items():
        graph.initializer.append(numpy_helper.from_array(np.array([value]), f"eyes_{name}"))
    graph.initializer.append(numpy_helper.from_array(np.zeros((1, 1), np.float32), "eyes_none"))
    graph.node.insert(
        0,
        helper.make_node("Slice", ["obs", "eyes_first", "eyes_from", "eyes_axis"], ["acted_on"]),
    )
    graph.node.extend(
        [
            helper.make_node("Slice", ["obs", "eyes_from", "eyes_to", "eyes_axis"], ["seen"]),
            helper.make_node("Mul", ["seen", "eyes_none"], ["nothing"]),  # or NaN
            helper.make_node("ReduceSum", ["nothing", "eyes_axis"], ["change"], keepdims=1),
            helper.make_node("Add", ["walk", "change"], ["actions"]),
        ]
    )
    (obs,) = (each for each in graph.input if each.name == "obs")
    obs.type.tensor_type.shape.dim[1].dim_value = wider
    onnx.checker.check_model(model, full_check=True)
    return model


def _encoder() -> onnx.ModelProto:
    """Convolutions, a recurrent memory, a latent in [-1, 1]; a quarter of a million weights."""
    rng = np.random.default_rng(0)
    weights: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def weight(name: str, *shape: int) -> str:
        scale = 1.0 / np.sqrt(np.prod(shape[1:]))
        values: NDArray[Any] = (scale * rng.standard_normal(shape)).astype(np.float32)
        weights.append(numpy_helper.from_array(values, name))
        return name

    def node(operator: str, inputs: list[str], *outputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, list(outputs), **attributes))
        return outputs[-1]

    last, channels, (rows, columns) = "image", 1, IMAGE_SHAPE
    for index, (wider, width) in enumerate(_CONVOLUTIONS):
        kernel = weight(f"kernel{index}", wider, channels, width, width)
        last = node("Conv", [last, kernel], f"conv{index}", strides=[2, 2])
        last = node("Elu", [last], f"elu{index}")
        rows, columns = (rows - width) // 2 + 1, (columns - width) // 2 + 1
        channels = wider
    last = node("Flatten", [last], "flat")
    dense = weight("dense", _PICTURE, channels * rows * columns)
    last = node("Gemm", [last, dense], "picture", transB=1)
    last = node("Concat", [node("Elu", [last], "picture_elu"), "proprio"], "together", axis=1)
    weights.append(numpy_helper.from_array(np.array([0]), "first_axis"))
    last = node("Unsqueeze", [last, "first_axis"], "sequence")
    inputs = [last, weight("gru_w", 1, 3 * _MEMORY, _PICTURE + _EYE.size)]
    inputs += [weight("gru_r", 1, 3 * _MEMORY, _MEMORY), "", "", "memory"]
    last = node("GRU", inputs, "", "memory_next", hidden_size=_MEMORY)
    last = node("Squeeze", [last, "first_axis"], "remembered")
    last = node("Gemm", [last, weight("head", LATENT_SIZE, _MEMORY)], "head_out", transB=1)
    node("Tanh", [last], "latent")
    graph = helper.make_graph(
        nodes,
        "depth_encoder",
        [
            _tensor("image", 1, 1, *IMAGE_SHAPE),
            _tensor("proprio", 1, _EYE.size),
            _tensor("memory", 1, 1, _MEMORY),
        ],
        [_tensor("latent", 1, LATENT_SIZE), _tensor("memory_next", 1, 1, _MEMORY)],
        weights,
    )
    opset = helper.make_opsetid("", 18)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def _tensor(name: str, *shape: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


def write_constant_policies(root: Path, desc: RobotDescription) -> None:
    """Write bundles into a folder; each holds the default pose plus a constant [rad].

    blind: +0.1, sees nothing. other: -0.1, likewise. seeing: +0.2, reads the depth image.
    broken: NaN. teacher: +0.3, reads the height scan. restless: +0.2, sees nothing and does not
    stand still on a zero command. remembering: +0.2, reads the depth image and its age up to 0.5 s,
    walks on without for 2 s; vx -0.2 to 0.6 m/s, vy 0, yaw rate +-0.5 rad/s. forgetful: likewise,
    but it does not stand.
    """
    nothing = (standard_term("nav_command"), standard_term("joint_pos_rel"))
    image = (*nothing, standard_term("features", size=_IMAGE_SIZE))
    aged = (*image, standard_term("features_age"))
    memory = {
        "command": {"vx": [-0.2, 0.6], "vy": [0.0, 0.0], "yaw_rate": [-0.5, 0.5]},
        "reverses": True,
        "side_steps": False,
        "turns_in_place": True,
        "features_age_s": 0.5,
        "memory_s": 2.0,
    }
    for name, value, terms, extra in (
        ("blind", 0.1, nothing, {}),
        ("other", -0.1, nothing, {}),
        ("seeing", 0.2, image, {}),
        ("broken", np.nan, nothing, {}),
        ("teacher", 0.3, (*nothing, standard_term("height_scan")), {}),
        ("restless", 0.2, nothing, {"stands": False}),
        ("remembering", 0.2, aged, memory),
        ("forgetful", 0.2, aged, {**memory, "stands": False}),
    ):
        layout = ObservationLayout(terms)
        manifest = {
            "name": name,
            "observation": layout.to_manifest(),
            "action": {"scale": 1.0, "offset": desc.default_joint_pos.tolist(), "clip": 10.0},
            "needs_features": "image" if terms in (image, aged) else "none",
            **extra,
        }
        write_bundle(root / name, manifest, {POLICY_FILE: _constant(layout.size, value)}, desc)


def _constant(size: int, value: float) -> bytes:
    """Actions = 0 * the first 18 numbers of the observation + value."""
    nodes = [
        helper.make_node("Gather", ["obs", "first"], ["some"], axis=1),
        helper.make_node("Mul", ["some", "zero"], ["none"]),
        helper.make_node("Add", ["none", "value"], ["actions"]),
    ]
    constants = {
        "first": np.arange(18),
        "zero": np.zeros((1, 18), np.float32),
        "value": np.full((1, 18), value, np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "constant",
        [helper.make_tensor_value_info("obs", onnx.TensorProto.FLOAT, [1, size])],
        [helper.make_tensor_value_info("actions", onnx.TensorProto.FLOAT, [1, 18])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=9).SerializeToString()
