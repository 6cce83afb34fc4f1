"""What the tests of running processes and those of running containers share."""

import json

import numpy as np
import onnx
import pytest
from krabby_robot.depth import IMAGE_SHAPE
from krabby_robot.description import RobotDescription
from krabby_robot.observation import ObservationLayout, standard_term
from krabby_robot.policy import MANIFEST_FILE, POLICY_FILE, bundle_dir, write_bundle
from onnx import helper, numpy_helper

IMAGE_SIZE = IMAGE_SHAPE[0] * IMAGE_SHAPE[1]


@pytest.fixture(scope="session")
def seeing_gait(tmp_path_factory):
    """Folder of a bundle that walks like `gait` and will not do so without a depth image.

    It is `gait` with the image behind its observation: so a robot that changes from one to the
    other in mid-walk has no reason to fall.
    """
    gait = bundle_dir("gait")
    manifest = json.loads((gait / MANIFEST_FILE).read_text())
    size = sum(term["size"] for term in manifest["observation"])
    image = ObservationLayout((standard_term("features", size=IMAGE_SIZE),)).to_manifest()
    manifest |= {
        "name": "seeing",
        "needs_features": "image",
        "observation": [*manifest["observation"], *image],
    }
    path = tmp_path_factory.mktemp("policies") / "seeing"
    model = _widened(onnx.load(gait / POLICY_FILE), size, size + IMAGE_SIZE)
    write_bundle(path, manifest, {POLICY_FILE: model}, RobotDescription.load())
    return path


def _widened(model, size, wider):
    """The model with `wider` numbers in its observation, of which it reads the first `size`."""
    graph = model.graph
    for node in graph.node:
        node.input[:] = ["narrow" if name == "obs" else name for name in node.input]
    graph.node.insert(0, helper.make_node("Slice", ["obs", "from", "to", "axis"], ["narrow"]))
    for name, value in (("from", 0), ("to", size), ("axis", 1)):
        graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    (obs,) = (each for each in graph.input if each.name == "obs")
    obs.type.tensor_type.shape.dim[1].dim_value = wider
    return model.SerializeToString()
