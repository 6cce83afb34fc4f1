"""One tick after another, with a fake clock: what is sent, and when nothing is."""

import numpy as np
import pytest
from krabby.control.controller import LocomotionController
from krabby.control.modes import Mode
from krabby.control.policy_manager import PolicyManager
from krabby.safety.trajectories import rest_joint_pos
from krabby_proto import FLAG_RESET, CommandReply, CommandStatus, SafetyState

MS = 1_000_000


class Robot:
    """A robot that goes where it is told at once, controlled every 10 ms."""

    def __init__(self, cfg, desc, state):
        self.controller = LocomotionController(cfg, desc, PolicyManager(cfg, desc))
        self.controller.hal_checked = True
        self.make_state = state
        self.pos = rest_joint_pos(desc)
        self.safety = SafetyState.ACTIVE
        self.ms = 0
        self.sequence = 0
        self.state = None
        self.sent = []

    def fresh_state(self, **header):
        self.sequence += 1
        header = {"sequence": self.sequence} | header
        self.state = self.make_state(self.ms * MS, self.pos, **header)
        self.controller.handle_state(self.state)

    def tick(self, ms, *, fresh=True):
        for _ in range(ms // 10):
            self.ms += 10
            if fresh:
                self.fresh_state()
            sent = self.controller.tick(self.state, None, self.ms * MS)
            self.sent.append(sent)
            if sent is not None:
                self.answer(self.safety)
                if self.safety is SafetyState.ACTIVE:
                    self.pos = sent.joint_pos
        return self.controller.mode

    def answer(self, safety):
        packed = CommandReply.pack(
            CommandStatus.APPLIED,
            safety_state=int(safety),
            fault_bits=0,
            position_clamp_mask=0,
            rate_clamp_mask=0,
            request_sequence=1,
            applied_sequence=1,
            applied_ns=self.ms * MS,
            server_ns=self.ms * MS,
        )
        self.controller.handle_reply(CommandReply.unpack(packed))


@pytest.fixture
def robot(cfg, desc, state):
    return Robot(cfg, desc, state)


def largest_step(robot):
    targets = np.array([sent.joint_pos for sent in robot.sent if sent is not None])
    return np.abs(np.diff(targets, axis=0)).max()


def test_before_the_first_state_nothing_is_sent(robot):
    assert robot.tick(100, fresh=False) is Mode.SILENT
    assert robot.sent == [None] * 10


def test_while_not_armed_the_measured_pose_is_sent(robot):
    robot.safety = SafetyState.DISARMED
    assert robot.tick(50) is Mode.PASSIVE
    robot.pos = robot.pos + 0.3  # somebody moves a leg by hand
    robot.tick(10)
    np.testing.assert_allclose(robot.sent[-1].joint_pos, robot.pos, atol=1e-6)


def test_once_armed_it_stands_up_and_walks_without_a_jump(robot, desc):
    robot.safety = SafetyState.ARMING
    assert robot.tick(500) is Mode.PASSIVE
    robot.safety = SafetyState.ACTIVE
    assert robot.tick(20) is Mode.STAND_UP
    assert robot.tick(3000) is Mode.POLICY
    # the test policy asks for the default pose plus 0.1 rad
    np.testing.assert_allclose(robot.sent[-1].joint_pos, desc.default_joint_pos + 0.1, atol=1e-6)
    assert largest_step(robot) / 0.01 < desc.velocity_limit.min()


def test_stale_state_holds_from_30_ms_and_silences_from_100_ms(robot):
    robot.tick(3000)
    last = robot.sent[-1].joint_pos
    for age_ms, silent in ((10, False), (20, False), (30, False), (90, False), (100, True)):
        robot.tick(10 * ((robot.state.capture_ns // MS + age_ms - robot.ms) // 10), fresh=False)
        assert (robot.sent[-1] is None) is silent, age_ms
        if 30 <= age_ms < 100:
            np.testing.assert_array_equal(robot.sent[-1].joint_pos, last)
    assert robot.controller.holds == 7  # 30, 40 ... 90 ms


def test_standing_up_goes_on_where_it_was_after_a_hold(robot):
    robot.tick(800)
    assert robot.controller.mode is Mode.STAND_UP
    robot.tick(90, fresh=False)
    robot.sent.clear()
    robot.sent.append(robot.controller.tick(robot.state, None, robot.ms * MS))
    robot.tick(100)
    # 15 % of 12 rad/s is what a trajectory takes at most
    assert largest_step(robot) / 0.01 < 1.9


def test_fresh_state_after_a_silence_waits_for_the_gate_before_it_moves(robot):
    robot.tick(3000)
    robot.tick(200, fresh=False)
    robot.safety = SafetyState.DAMP
    assert robot.tick(50) is Mode.PASSIVE
    robot.safety = SafetyState.ACTIVE
    assert robot.tick(20) is Mode.STAND_UP


def test_a_reset_robot_stands_up_from_where_it_was_put(robot, desc):
    robot.tick(3000)
    robot.pos = rest_joint_pos(desc)
    robot.ms += 10
    robot.fresh_state(flags=FLAG_RESET)
    assert robot.controller.tick(robot.state, None, robot.ms * MS).joint_pos == pytest.approx(
        robot.pos, abs=1e-6
    )
    assert robot.controller.mode is Mode.PASSIVE


def test_a_reset_seen_twice_counts_once(robot, desc):
    robot.tick(3000)
    robot.ms += 10
    robot.fresh_state(flags=FLAG_RESET)
    robot.tick(10, fresh=False)
    robot.controller.handle_state(robot.state)
    assert robot.tick(20) is Mode.STAND_UP


def test_a_hal_that_restarted_must_be_greeted_before_anything_moves(robot):
    robot.tick(3000)
    robot.ms += 10
    robot.fresh_state(instance_id=8, sequence=1)
    assert not robot.controller.hal_checked
    robot.controller.tick(robot.state, None, robot.ms * MS)
    assert robot.controller.mode is Mode.PASSIVE


def test_asked_to_sit_it_lies_down_and_stays_there(robot, desc):
    robot.tick(3000)
    robot.controller.request("sit")
    assert robot.tick(20) is Mode.SIT_DOWN
    assert robot.tick(3000) is Mode.PASSIVE
    np.testing.assert_allclose(robot.sent[-1].joint_pos, rest_joint_pos(desc), atol=1e-4)
    assert largest_step(robot) / 0.01 < desc.velocity_limit.min()
    assert robot.controller.resting
    robot.controller.request("stand")
    assert robot.tick(20) is Mode.STAND_UP


def test_a_robot_that_is_asked_to_sit_while_it_walks_stands_first(robot, desc):
    robot.tick(3000)
    assert robot.controller.mode is Mode.POLICY
    assert np.abs(robot.sent[-1].joint_pos - desc.default_joint_pos).max() > 0.05
    robot.controller.request("sit")
    robot.tick(320)
    np.testing.assert_allclose(robot.sent[-1].joint_pos, desc.default_joint_pos, atol=1e-6)
    robot.tick(280)
    np.testing.assert_allclose(robot.sent[-1].joint_pos, desc.default_joint_pos, atol=1e-6)
    assert robot.tick(100) is Mode.SIT_DOWN
    assert np.abs(robot.sent[-1].joint_pos - desc.default_joint_pos).max() > 0.0


def test_a_safety_state_from_a_newer_hal_counts_as_not_armed(robot):
    robot.tick(3000)
    robot.answer(17)
    assert robot.controller.permission.safety is SafetyState.DISARMED


@pytest.mark.parametrize("safety", [SafetyState.DAMP, SafetyState.ESTOP])
def test_a_tripped_gate_ends_walking(robot, safety):
    robot.tick(3000)
    robot.safety = safety
    assert robot.tick(20) is Mode.PASSIVE
