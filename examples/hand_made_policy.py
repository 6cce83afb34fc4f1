"""A policy bundle without training: the robot stands and twists its body with the yaw command.

python examples/hand_made_policy.py runs/twist
krabby up --policy runs/twist        # in another terminal: krabby teleop, turn left and right

Needs onnx: the development environment (`make test-fast` installs it), or the extra krabby[assets].
"""

import sys
from pathlib import Path

import numpy as np
from krabby.policy.bundle import POLICY_FILE, PolicyBundle, write_bundle
from krabby.policy.observation import ObservationLayout, standard_term
from krabby.robot.description import RobotDescription
from onnx import TensorProto, helper, numpy_helper

GAIN = 0.5
"""Hip yaw per commanded yaw rate [s]; negative in `weights`: the feet stay and the body turns."""
OBSERVATION = ObservationLayout((standard_term("nav_command"),))
"""vx, vy [m/s], yaw rate [rad/s]: all that this policy reads."""


def write(folder: Path, desc: RobotDescription) -> PolicyBundle:
    """Write and check the bundle."""
    weights = np.zeros((OBSERVATION.size, len(desc.joint_names)), np.float32)
    hip_yaws = [name.endswith("hip_yaw") for name in desc.joint_names]
    weights[2, hip_yaws] = -GAIN
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["obs", "weights"], ["actions"])],
        "twist",
        [helper.make_tensor_value_info("obs", TensorProto.FLOAT, [1, OBSERVATION.size])],
        [helper.make_tensor_value_info("actions", TensorProto.FLOAT, [1, len(desc.joint_names)])],
        [numpy_helper.from_array(weights, "weights")],
    )
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=9)
    manifest = {
        "name": "twist",
        "control_rate_hz": 100.0,
        "observation": OBSERVATION.to_manifest(),
        "action": {"scale": 1.0, "offset": desc.default_joint_pos.tolist(), "clip": 0.3},
    }
    return write_bundle(folder, manifest, {POLICY_FILE: model.SerializeToString()}, desc)


if __name__ == "__main__":
    write(Path(sys.argv[1]), RobotDescription.load())
    sys.stdout.write(f"wrote {sys.argv[1]}\n")
