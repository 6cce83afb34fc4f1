"""What stands in two packages because neither may import the other says the same in both."""

import re
from pathlib import Path

import pytest
from krabby.control.config import FreshnessCfg
from krabby.policy.depth_image import IMAGE_SHAPE
from krabby.robot.description import RobotDescription
from krabby.safety.gate import GateCfg, SafetyGate
from krabby_proto import (
    COMMAND,
    FEATURES,
    NAV,
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


def test_the_contract_page_has_the_gates_times(desc):
    page = (Path(__file__).parents[1] / "proto" / "README.md").read_text()
    rows = re.findall(r"^\| [^|]+ \| (\d+) \| `(\w+_s)` \|", page, re.MULTILINE)
    cfg = GateCfg.from_description(desc)
    assert len(rows) == 6
    for milliseconds, name in rows:
        assert getattr(cfg, name) == pytest.approx(int(milliseconds) * 1e-3), name


def test_a_walking_command_has_one_limit():
    assert NAV.max_age_s == FreshnessCfg().nav_s == 0.3


def test_the_streams_have_room_for_this_robot(desc):
    assert len(desc.joint_names) == NUM_JOINTS
    assert len(desc.leg_names) == NUM_FEET
    assert COMMAND.size == NUM_JOINTS
    # 4 + 3 + 3 + 3 * 18 + 6
    assert STATE.size == 70
    assert IMAGE_SHAPE[0] * IMAGE_SHAPE[1] <= FEATURES.max_elements
