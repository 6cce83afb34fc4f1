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


_TENSOR = helper.make_tensor_value_info


def bundle_of(policies, folder, nodes, **constants):
    """The blind policy's bundle with another network, from `obs` to `actions`."""
    shutil.copytree(policies / "blind", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    size = sum(term["size"] * term["history"] for term in manifest["observation"])
    graph = helper.make_graph(
        nodes,
        folder.name,
        [_TENSOR("obs", TensorProto.FLOAT, [1, size])],
        [_TENSOR("actions", TensorProto.FLOAT, [1, 18])],
        [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    content = model.SerializeToString()
    (folder / POLICY_FILE).write_bytes(content)
    manifest["files"] = {POLICY_FILE: hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def endless(tmp_path, policies):
    """A bundle whose network runs for 2^62 steps."""
    turn = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["sum", "sum"], ["more"]),
        ],
        "turn",
        [
            _TENSOR("turn", TensorProto.INT64, []),
            _TENSOR("go", TensorProto.BOOL, []),
            _TENSOR("sum", TensorProto.FLOAT, [1, 18]),
        ],
        [_TENSOR("go_on", TensorProto.BOOL, []), _TENSOR("more", TensorProto.FLOAT, [1, 18])],
    )
    nodes = [
        helper.make_node("Gather", ["obs", "first"], ["some"], axis=1),
        helper.make_node("Loop", ["turns", "yes", "some"], ["actions"], body=turn),
    ]
    constants = {"first": np.arange(18), "turns": 2**62, "yes": True}
    return bundle_of(policies, tmp_path / "endless", nodes, **constants)


@pytest.fixture(params=[175_000_000, 10_000_000_000], ids=["700 MB", "40 GB"])
def hungry(request, tmp_path, policies):
    """A bundle of 1 kB whose network takes that many numbers of memory."""
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["big"]),
        helper.make_node("ReduceSum", ["big", "axes"], ["sum"], keepdims=0),
        helper.make_node("Expand", ["sum", "out"], ["actions"]),
    ]
    constants = {"shape": [request.param], "axes": [0], "out": [1, 18]}
    return bundle_of(policies, tmp_path / "hungry", nodes, **constants)


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
