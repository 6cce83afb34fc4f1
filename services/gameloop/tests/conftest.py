"""Tiny policies whose targets are known, and messages with the times that a test wants."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from krabby.policy.bundle import POLICY_FILE, write_bundle
from krabby.policy.depth_image import IMAGE_SHAPE
from krabby.policy.observation import ObservationLayout, standard_term
from krabby.robot.description import RobotDescription
from krabby_gameloop.config import FreshnessCfg, GameloopCfg
from krabby_proto import FEATURES, NAV, STATE, decode, encode, pack
from onnx import TensorProto, helper, numpy_helper

MS = 1_000_000
IMAGE_SIZE = IMAGE_SHAPE[0] * IMAGE_SHAPE[1]


@pytest.fixture(scope="session")
def desc():
    return RobotDescription.load()


@pytest.fixture(scope="session")
def policies(tmp_path_factory, desc):
    """Folder of bundles; each holds the default pose plus a constant on every joint [rad].

    blind: +0.1, sees nothing. other: -0.1, likewise. seeing: +0.2, reads the depth image.
    broken: NaN. teacher: +0.3, reads the height scan. restless: +0.2, sees nothing and never stands
    still. numb: +0.1, made for a robot with joints in
    another order.
    """
    root = tmp_path_factory.mktemp("policies")
    nothing = (standard_term("nav_command"), standard_term("joint_pos_rel"))
    image = (*nothing, standard_term("features", size=IMAGE_SIZE))
    for name, value, terms in (
        ("blind", 0.1, nothing),
        ("other", -0.1, nothing),
        ("seeing", 0.2, image),
        ("broken", np.nan, nothing),
        ("teacher", 0.3, (*nothing, standard_term("height_scan"))),
        ("restless", 0.2, nothing),
    ):
        layout = ObservationLayout(terms)
        manifest = {
            "name": name,
            "observation": layout.to_manifest(),
            "action": {
                "scale": 1.0,
                "offset": desc.default_joint_pos.tolist(),
                "clip": 10.0,
            },
            "needs_features": "image" if terms is image else "none",
            "stands": name != "restless",
        }
        write_bundle(root / name, manifest, {POLICY_FILE: _constant(layout.size, value)}, desc)
    return root


def _constant(size, value) -> bytes:
    """actions = 0 * the first 18 numbers of the observation + value."""
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
        [helper.make_tensor_value_info("obs", TensorProto.FLOAT, [1, size])],
        [helper.make_tensor_value_info("actions", TensorProto.FLOAT, [1, 18])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=9).SerializeToString()


@pytest.fixture
def endless(tmp_path, policies):
    """A bundle whose network runs for 2^62 steps."""
    folder = tmp_path / "endless"
    shutil.copytree(policies / "blind", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    size = sum(term["size"] * term["history"] for term in manifest["observation"])
    tensor = helper.make_tensor_value_info
    turn = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["sum", "sum"], ["more"]),
        ],
        "turn",
        [
            tensor("turn", TensorProto.INT64, []),
            tensor("go", TensorProto.BOOL, []),
            tensor("sum", TensorProto.FLOAT, [1, 18]),
        ],
        [tensor("go_on", TensorProto.BOOL, []), tensor("more", TensorProto.FLOAT, [1, 18])],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["obs", "first"], ["some"], axis=1),
            helper.make_node("Loop", ["turns", "yes", "some"], ["actions"], body=turn),
        ],
        "endless",
        [tensor("obs", TensorProto.FLOAT, [1, size])],
        [tensor("actions", TensorProto.FLOAT, [1, 18])],
        [
            numpy_helper.from_array(np.arange(18), "first"),
            numpy_helper.from_array(np.array(2**62), "turns"),
            numpy_helper.from_array(np.array(True), "yes"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    content = model.SerializeToString()
    (folder / POLICY_FILE).write_bytes(content)
    manifest["files"] = {POLICY_FILE: hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def cfg(policies):
    """Walks with `blind` and blends over 0.3 s."""
    return GameloopCfg(policy=str(policies / "blind"), blind_policy=str(policies / "blind"))


@pytest.fixture(scope="session")
def limits():
    return FreshnessCfg()


@pytest.fixture(scope="session")
def message(desc):
    """Makes a message of a stream as it comes off the wire."""

    def make(stream, payload, capture_ns, *, sequence=1, instance_id=7, flags=0):
        frames = encode(
            stream,
            payload,
            instance_id=instance_id,
            sequence=sequence,
            capture_ns=capture_ns,
            publish_ns=capture_ns,
            flags=flags,
        )
        return decode(frames, stream)

    return make


@pytest.fixture(scope="session")
def state(message, desc):
    """Makes a state of a robot in a pose, level and at rest."""

    def make(capture_ns, joint_pos=None, **header):
        payload = pack(
            STATE,
            base_quat_w=(0.0, 0.0, 0.0, 1.0),
            base_ang_vel_b=np.zeros(3),
            base_lin_acc_b=(0.0, 0.0, 9.81),
            joint_pos=desc.default_joint_pos if joint_pos is None else joint_pos,
            joint_vel=np.zeros(18),
            joint_effort=np.zeros(18),
            foot_contact=np.ones(6),
        )
        return message(STATE, payload, capture_ns, **header)

    return make


@pytest.fixture(scope="session")
def features(message):
    def make(capture_ns, size=IMAGE_SIZE, **header):
        return message(FEATURES, np.zeros(size, np.float32), capture_ns, **header)

    return make


@pytest.fixture(scope="session")
def nav(message):
    def make(capture_ns, command=(0.4, 0.0, 0.0), **header):
        return message(NAV, np.array(command, np.float32), capture_ns, **header)

    return make
