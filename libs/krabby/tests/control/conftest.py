"""Tiny policies whose targets are known, and messages with the times that a test wants."""

import numpy as np
import pytest
from krabby.control.config import ControlCfg, FreshnessCfg
from krabby.policy.depth_image import IMAGE_SHAPE
from krabby.policy.testing import write_constant_policies
from krabby.robot.description import RobotDescription
from krabby_proto import FEATURES, NAV, STATE, decode, encode, pack

IMAGE_SIZE = IMAGE_SHAPE[0] * IMAGE_SHAPE[1]


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
def cfg(policies):
    """Walks with `blind` and blends over 0.3 s."""
    return ControlCfg(policy=str(policies / "blind"), blind_policy=str(policies / "blind"))


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
