"""What stands in two packages because neither may import the other says the same in both."""

import pytest
from krabby.policy.depth_image import IMAGE_SHAPE
from krabby.robot.description import RobotDescription
from krabby.safety.gate import GateCfg, SafetyGate
from krabby_proto import (
    COMMAND,
    FEATURES,
    NUM_FEET,
    NUM_JOINTS,
    SAFETY_OPS,
    STATE,
)


@pytest.fixture(scope="module")
def desc():
    return RobotDescription.load()


def test_every_operation_on_the_wire_is_known_to_the_gate(desc):
    gate = SafetyGate(GateCfg.from_description(desc))
    for op in SAFETY_OPS:
        assert "unknown" not in gate.request(op, 0).reason


def test_the_streams_have_room_for_this_robot(desc):
    assert len(desc.joint_names) == NUM_JOINTS
    assert len(desc.leg_names) == NUM_FEET
    assert COMMAND.size == NUM_JOINTS
    # 4 + 3 + 3 + 3 * 18 + 6
    assert STATE.size == 70
    assert IMAGE_SHAPE[0] * IMAGE_SHAPE[1] <= FEATURES.max_elements
