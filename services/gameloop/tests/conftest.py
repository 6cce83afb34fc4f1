"""Tiny policies whose targets are known, and one that does not end."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from krabby.policy.bundle import POLICY_FILE
from krabby.policy.testing import write_constant_policies
from krabby.robot.description import RobotDescription
from krabby_gameloop.config import GameloopCfg
from krabby_proto import STATE, decode, encode
from krabby_proto.testing import resting_state
from onnx import TensorProto, helper, numpy_helper


@pytest.fixture(scope="session")
def desc():
    return RobotDescription.load()


@pytest.fixture(scope="session")
def policies(tmp_path_factory, desc):
    """Folder of the bundles of `write_constant_policies`."""
    root = tmp_path_factory.mktemp("policies")
    write_constant_policies(root, desc)
    return root


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
def state():
    """Makes a state of a robot at rest, as it comes off the wire."""

    def make(capture_ns):
        stamps = {"sequence": 1, "capture_ns": capture_ns, "publish_ns": capture_ns}
        return decode(encode(STATE, resting_state(), instance_id=7, **stamps), STATE)

    return make
