"""Requests to stand and walk end with the gate's permission; a fake clock and the real gate."""

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from krabby.control.config import ControlCfg
from krabby.control.controller import LocomotionController
from krabby.control.modes import Mode
from krabby.control.nav import NavFilter
from krabby.control.policy_manager import PolicyManager
from krabby.safety.gate import GateCfg, SafetyGate
from krabby.safety.trajectories import rest_joint_pos
from krabby_proto import FLAG_OPERATOR, FLAG_RESET, CommandReply, CommandStatus, Fault, SafetyState

MS = 1_000_000
LEVEL = np.array([0.0, 0.0, 0.0, 1.0])
LEASE_MS = 500
SAG_RAD_PER_S = 0.02
"""How fast the joints of a limp robot give way."""


class Robot:
    """A controller in front of the real gate; joints follow the gate's target at once, or sag."""

    def __init__(self, cfg, desc, state, policies=None):
        self.desc = desc
        self.make_state = state
        self.controller = LocomotionController(cfg, desc, policies or PolicyManager(cfg, desc))
        self.controller.nav = NavFilter(cfg.nav, cfg.freshness, host_clock=lambda: self.ms * MS)
        self.controller.hal_checked = True
        self.pos = rest_joint_pos(desc)
        self.ms = 1000
        self.instance = 7
        self.sequence = 0
        self.command_sequence = 0
        self.flags = 0
        self.state = None
        self.gate = self.new_gate()
        self.reply_lost = self.command_lost = self.state_lost = False
        self.measurements_lost = False
        self.forced_status = None
        """What the HAL answers before a command gets to the gate."""
        self.intruder_ms = None
        """Time of the last command of another writer."""
        self.intruding = False
        self.sent = []
        self.applied = []
        """Time [ms] and target of each command of the controller that the gate applied."""
        self.auto_stand = self.asked = cfg.auto_stand
        """Whether `stand` was accepted since the gate was armed."""
        self.arm_count = self.gate.arm_count
        self.was = SafetyState.DISARMED

    def new_gate(self):
        return SafetyGate(GateCfg.from_description(self.desc), arm_count=1000 * self.instance)

    def hear(self, message):
        """A walking command arrives."""
        return self.controller.nav.receive(message, self.ms * MS)

    # --- the HAL's side ----------------------------------------------------------------------

    def note_gate(self):
        """Follow the gate's state; called after each call of the gate."""
        now = self.gate.state
        if not now.live or self.gate.arm_count != self.arm_count:
            self.asked = self.auto_stand
        self.was, self.arm_count = now, self.gate.arm_count

    def operate(self, *ops):
        """An operator's requests, all between two ticks; whether the last one was granted."""
        answer = self.gate.request("status", self.ms * MS)
        for op in ops:
            answer = self.gate.request(op, self.ms * MS)
            self.note_gate()
        return answer.ok

    def fault(self):
        self.gate.raise_fault(Fault.DRIVE, self.ms * MS)
        self.note_gate()

    def restart_hal(self):
        self.instance += 1
        self.gate = self.new_gate()
        self.sequence = 0
        self.note_gate()
        self.observe()

    def put_back(self):
        self.operate("disarm")
        self.pos = rest_joint_pos(self.desc)
        self.flags = FLAG_RESET
        self.observe()

    def observe(self):
        zero = np.zeros(18)
        if not self.measurements_lost:
            self.gate.observe(self.pos, zero, zero, LEVEL, self.ms * MS)
            self.note_gate()

    def pass_5_ms(self):
        self.ms += 5
        if self.gate.state.live:
            self.pos = self.gate.target
        else:
            self.pos = self.pos + SAG_RAD_PER_S * 0.005 * (self.desc.default_joint_pos > 0)
        self.observe()
        if self.intruding and self.ms % 10 == 0:
            self.intruder_ms = self.ms
            self.gate.command(self.desc.default_joint_pos + 0.3, self.ms * MS)
            self.note_gate()
        self.gate.step(self.ms * MS)
        self.note_gate()

    def serve(self, target, hold=False):
        """The HAL's reply to a command of the controller."""
        taken_over = self.intruder_ms is not None and self.ms - self.intruder_ms < LEASE_MS
        self.command_sequence += 1
        if self.forced_status is not None:
            status = self.forced_status
        elif taken_over:
            status = CommandStatus.REJECTED_LEASE
        else:
            before = self.gate.target
            status = self.gate.command(target, self.ms * MS, hold=hold).status
            self.note_gate()
            if status is CommandStatus.APPLIED:
                self.applied.append((self.ms, self.gate.target))
                if not self.asked:
                    away = np.abs(self.gate.target - before).max()
                    assert away == 0.0, f"moved {away:.3f} rad without a request"
        packed = CommandReply.pack(
            status,
            safety_state=int(self.gate.state),
            fault_bits=int(self.gate.faults),
            position_clamp_mask=0,
            rate_clamp_mask=0,
            arm_count=self.gate.arm_count,
            request_sequence=self.command_sequence,
            applied_sequence=self.command_sequence,
            applied_ns=self.ms * MS,
            server_ns=self.ms * MS,
        )
        return CommandReply.unpack(packed)

    # --- the loop's side ---------------------------------------------------------------------

    def tick(self, ms=10):
        """Ticks of 10 ms."""
        for _ in range(ms // 10):
            self.pass_5_ms()
            self.pass_5_ms()
            if not self.state_lost:
                self.sequence += 1
                self.state = self.make_state(
                    self.ms * MS,
                    self.pos,
                    sequence=self.sequence,
                    instance_id=self.instance,
                    flags=self.flags,
                )
                self.flags = 0
            if self.state is not None:
                self.controller.handle_state(self.state)
            sent = self.controller.tick(self.state, None, self.ms * MS)
            self.controller.hal_checked = True
            self.sent.append(sent)
            if sent is not None and not self.command_lost:
                reply = self.serve(sent.joint_pos, sent.hold)
                if not self.reply_lost:
                    self.controller.handle_reply(reply)
        return self.controller.mode

    def stall(self, ms):
        """The loop does nothing while the HAL continues."""
        for _ in range(ms // 5):
            self.pass_5_ms()

    def stand(self):
        """Ask for it; whether it was accepted."""
        accepted = self.controller.request("stand") is None
        if accepted and self.gate.state.live:
            self.asked = True
        return accepted

    def stood_up(self):
        """Armed, asked to stand, and walking."""
        self.tick(50)
        assert self.operate("arm")
        self.tick(600)
        assert self.stand()
        assert self.tick(3000) is Mode.POLICY
        return self


@pytest.fixture
def patient(cfg):
    """Configured as on the robot: it stands up on request only."""
    return msgspec.structs.replace(cfg, auto_stand=False)


@pytest.fixture
def robot(patient, desc, state):
    return Robot(patient, desc, state)


def lose_replies(robot):
    """Commands arrive, answers do not, while an operator stops and arms."""
    robot.reply_lost = True
    robot.tick(30)
    robot.operate("estop", "reset", "arm")
    robot.tick(520)
    robot.reply_lost = False


def stall_the_loop(robot):
    robot.stall(20)
    robot.operate("disarm", "arm")
    robot.stall(510)


WAYS_OUT = {
    "e-stop": lambda robot: (robot.operate("estop"), robot.tick(50), robot.operate("reset")),
    "e-stop, reset and arm at once": lambda robot: robot.operate("estop", "reset", "arm"),
    "disarm": lambda robot: (robot.operate("disarm"), robot.tick(50)),
    "disarm and arm at once": lambda robot: robot.operate("disarm", "arm"),
    "fault": lambda robot: (robot.fault(), robot.tick(50)),
    "fault and arm at once": lambda robot: (robot.fault(), robot.operate("arm")),
    "HAL restart": lambda robot: (robot.restart_hal(), robot.tick(50)),
    "HAL restart and arm at once": lambda robot: (robot.restart_hal(), robot.operate("arm")),
    "put back": lambda robot: (robot.put_back(), robot.tick(50)),
    "put back and arm at once": lambda robot: (robot.put_back(), robot.operate("arm")),
    "another writer": lambda robot: intrude(robot, 200),
    "replies lost during a stop and an arming": lose_replies,
    "a loop that stalled during a stop and an arming": stall_the_loop,
    "no command for 150 ms": lambda robot: (robot.stall(150), robot.tick(20)),
}


def intrude(robot, ms):
    """Another writer moves the robot for some time, as after a lease that ran out."""
    robot.intruding = True
    robot.tick(ms)
    robot.intruding = False
    robot.tick(LEASE_MS + 50)


@pytest.mark.parametrize("way_out", WAYS_OUT)
def test_after_every_way_out_of_active_arm_alone_moves_nothing(robot, way_out):
    robot.stood_up()
    WAYS_OUT[way_out](robot)
    robot.operate("arm")
    assert robot.tick(1500) is Mode.PASSIVE
    assert robot.gate.state is SafetyState.ACTIVE
    assert robot.applied[-1][0] == robot.ms  # the gate followed all along: nothing to follow
    assert robot.stand()
    assert robot.tick(20) is Mode.STAND_UP


def test_a_hold_that_recovers_by_itself_keeps_the_request(robot):
    robot.stood_up()
    robot.command_lost = True
    robot.tick(80)
    assert robot.gate.state is SafetyState.HOLD
    robot.command_lost = False
    assert robot.tick(50) is Mode.POLICY
    assert robot.gate.state is SafetyState.ACTIVE


def test_replies_lost_for_140_ms_change_nothing_and_for_150_ms_end_the_request(robot):
    robot.stood_up()
    robot.reply_lost = True
    robot.tick(140)
    robot.reply_lost = False
    assert robot.tick(10) is Mode.PASSIVE  # the tick comes before its reply: 150 ms
    robot.tick(50)
    assert robot.stand()
    robot.tick(3000)
    robot.reply_lost = True
    robot.tick(130)
    robot.reply_lost = False
    assert robot.tick(50) is Mode.POLICY


def test_while_no_reply_comes_it_does_not_walk_on(robot):
    robot.stood_up()
    steps = robot.controller.policies.ticks
    robot.reply_lost = True
    robot.tick(1000)
    assert robot.controller.policies.ticks - steps == 14
    assert robot.controller.mode is Mode.PASSIVE


def test_asked_while_arming_it_stands_up_as_soon_as_it_is_armed(robot):
    robot.tick(50)
    robot.operate("arm")
    robot.tick(20)
    assert robot.gate.state is SafetyState.ARMING
    assert robot.stand()
    assert robot.tick(400) is Mode.PASSIVE
    assert robot.tick(100) is Mode.STAND_UP


@pytest.mark.parametrize("ops", [("disarm",), ("estop",), ("estop", "reset")])
def test_asked_while_arming_and_stopped_before_it_was_armed(robot, ops):
    robot.tick(50)
    robot.operate("arm")
    robot.tick(20)
    assert robot.stand()
    robot.operate(*ops)
    robot.tick(20)
    robot.operate("reset", "arm")
    assert robot.tick(1000) is Mode.PASSIVE


@pytest.mark.parametrize("ops", [("disarm", "arm"), ("estop", "reset", "arm")])
def test_asked_while_arming_and_armed_again_between_two_ticks(robot, ops):
    robot.tick(50)
    robot.operate("arm")
    robot.tick(20)
    assert robot.stand()
    robot.tick(100)
    robot.operate(*ops)
    assert robot.tick(1000) is Mode.PASSIVE


def test_asked_while_arming_for_the_second_time_and_stopped_at_once(robot):
    robot.stood_up()
    robot.operate("disarm", "arm")
    robot.tick(10)  # its reply shows ARMING after ACTIVE
    assert robot.stand()
    robot.operate("estop")
    robot.tick(20)
    robot.operate("reset", "arm")
    assert robot.tick(1000) is Mode.PASSIVE


@pytest.mark.parametrize("lost", ["command_lost", "reply_lost"])
def test_asked_before_an_arm_that_the_loop_hears_of_later_it_does_not_stand(robot, lost):
    """A stop goes unheard, `stand` is asked for on what was heard before it, then comes an arm."""
    robot.tick(50)
    robot.operate("arm")
    robot.tick(10)
    robot.operate("disarm")
    setattr(robot, lost, True)
    robot.tick(20)
    setattr(robot, lost, False)
    assert robot.stand()
    robot.operate("arm")
    assert robot.tick(1000) is Mode.PASSIVE
    assert robot.gate.state is SafetyState.ACTIVE
    assert robot.stand()
    assert robot.tick(20) is Mode.STAND_UP


def test_asked_50_ms_after_an_arm_that_followed_a_stop_at_once_it_stands(robot):
    robot.stood_up()
    robot.operate("disarm", "arm")
    robot.tick(50)
    assert robot.stand()
    assert robot.tick(600) is Mode.STAND_UP


def test_an_arming_that_begins_again_ends_what_was_asked_for(robot):
    robot.tick(50)
    robot.operate("arm")
    robot.tick(50)
    assert robot.stand()
    robot.measurements_lost = True
    robot.tick(30)
    robot.measurements_lost = False
    assert robot.tick(1000) is Mode.PASSIVE
    assert robot.gate.state is SafetyState.ACTIVE


def test_the_gate_keeps_its_own_pose_when_the_loops_is_from_before_the_arm(robot):
    robot.tick(50)
    robot.state_lost = True
    robot.pos = robot.pos + 0.2  # a joint gives way unseen
    robot.tick(20)
    assert robot.operate("arm")
    robot.tick(20)
    robot.state_lost = False
    armed = robot.gate.target
    robot.tick(1000)
    assert robot.gate.state is SafetyState.ACTIVE
    np.testing.assert_array_equal(robot.gate.target, armed)


def test_a_request_of_the_moment_before_a_stop_does_not_count_after_it(robot):
    robot.tick(50)
    robot.operate("arm")
    robot.tick(600)
    robot.pass_5_ms()
    assert robot.stand()  # the loop has not taken it yet
    robot.command_lost = True
    robot.stall(10)
    robot.command_lost = False
    robot.controller.handle_reply(robot.serve(robot.pos))
    robot.operate("disarm", "arm")
    robot.controller.handle_reply(robot.serve(robot.pos))
    assert robot.tick(1000) is Mode.PASSIVE


def test_a_storm_of_reset_and_arm_undoes_an_estop_and_moves_nothing(robot):
    robot.stood_up()
    for number in range(100):
        if number == 10:
            robot.operate("estop")
            assert robot.gate.state is SafetyState.ESTOP
        robot.operate("reset", "arm")
        robot.tick(10)
    assert robot.gate.state is SafetyState.ACTIVE
    assert robot.controller.mode is Mode.PASSIVE
    robot.operate("estop")
    assert robot.gate.state is SafetyState.ESTOP  # a second one counts like the first
    robot.tick(10)
    robot.operate("reset", "arm")
    assert robot.tick(1000) is Mode.PASSIVE


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda robot: None, "no fresh state"),
        (lambda robot: robot.tick(50), "the gate is in DISARMED; arm, then ask again"),
        (lambda robot: (robot.operate("estop"), robot.tick(50)), "reset, arm, then ask again"),
        (lambda robot: (robot.stood_up(), robot.fault(), robot.tick(10)), "the gate is in DAMP"),
        (lambda robot: (robot.stood_up(), setattr(robot, "intruding", True), robot.tick(100)),
         "another writer holds the command lease; stop it"),
        (lambda robot: (robot.stood_up(), robot.controller.permission.sit_for_good()),
         "the game loop is ending"),
    ],
)  # fmt: skip
def test_a_request_to_stand_that_cannot_be_met_is_refused_with_what_to_do(robot, prepare, reason):
    prepare(robot)
    assert reason in robot.controller.request("stand")


def test_a_persons_walking_command_does_not_survive_an_estop(robot, nav):
    robot.stood_up()
    robot.hear(nav(robot.ms * MS, (0.4, 0.0, 0.0), flags=FLAG_OPERATOR))
    robot.tick(200)
    assert robot.controller.nav.command[0] == pytest.approx(0.2)
    late = nav((robot.ms + 5) * MS, (0.4, 0.0, 0.0), flags=FLAG_OPERATOR)
    robot.operate("estop", "reset", "arm")
    robot.tick(20)
    robot.hear(late)  # sent before the loop knew, and on its way since
    robot.tick(50)
    assert not robot.controller.nav.command.any()
    robot.hear(nav(robot.ms * MS, (0.4, 0.0, 0.0), flags=FLAG_OPERATOR))
    robot.tick(20)
    assert robot.controller.nav.command.any()  # what is asked for afterwards counts


def test_configured_to_stand_by_itself_it_does_so_after_every_arm(cfg, desc, state):
    robot = Robot(cfg, desc, state)
    robot.asked = True
    robot.tick(50)
    robot.operate("arm")
    assert robot.tick(600) is Mode.STAND_UP
    robot.operate("estop", "reset", "arm")
    robot.asked = True
    assert robot.tick(600) is Mode.STAND_UP


def test_asked_to_sit_it_does_not_stand_by_itself_after_an_arm(cfg, desc, state):
    robot = Robot(cfg, desc, state)
    robot.asked = True
    robot.tick(50)
    robot.operate("arm")
    robot.tick(600)
    robot.controller.request("sit")
    robot.tick(3000)
    robot.operate("disarm")
    robot.tick(50)
    robot.operate("arm")
    assert robot.tick(1000) is Mode.PASSIVE
    robot.stand()
    assert robot.tick(20) is Mode.STAND_UP


# --- another writer ------------------------------------------------------------------------


def test_a_lost_lease_shows_within_one_tick_and_nothing_of_the_loop_moves_on(robot):
    robot.stood_up()
    robot.intruding = True
    robot.tick(10)  # its reply tells
    steps, command = robot.controller.policies.ticks, robot.controller.nav.command.copy()
    assert robot.tick(10) is Mode.NO_LEASE
    robot.tick(500)
    assert (
        robot.gate.state is robot.controller.permission.safety is SafetyState.ACTIVE
    )  # of the other one
    assert robot.controller.permission.lease_losses == 1
    assert robot.controller.policies.ticks == steps
    np.testing.assert_array_equal(robot.controller.nav.command, command)
    # What it offers is where the robot is, so nothing jumps when the lease comes back.
    np.testing.assert_allclose(robot.sent[-1].joint_pos, robot.pos, atol=1e-6)
    assert not robot.controller.permission.stand_requested
    assert robot.controller.resting


def test_standing_up_does_not_go_on_behind_another_writers_back(robot):
    robot.tick(50)
    robot.operate("arm")
    robot.tick(600)
    robot.stand()
    robot.tick(200)
    intrude(robot, 3000)
    assert robot.controller.mode is Mode.PASSIVE
    robot.operate("arm")
    assert robot.tick(1000) is Mode.PASSIVE
    assert robot.controller.permission.lease_losses == 1


# --- commands that the gate did not make its own --------------------------------------------


REFUSED = [
    CommandStatus.HELD,
    CommandStatus.REJECTED_STALE,
    CommandStatus.REJECTED_FUTURE,
    CommandStatus.REJECTED_ORDER,
    CommandStatus.REJECTED_CORRUPT,
]


@pytest.mark.parametrize("status", REFUSED)
def test_what_was_not_applied_is_sent_again_and_the_policy_waits(robot, status):
    robot.stood_up()
    steps = robot.controller.policies.ticks
    robot.forced_status = status
    robot.tick(100)
    assert robot.controller.policies.ticks == steps + 1
    targets = [sent.joint_pos for sent in robot.sent[-10:]]
    np.testing.assert_array_equal(targets, [targets[0]] * 10)
    robot.forced_status = None
    robot.tick(20)
    assert robot.controller.policies.ticks == steps + 2


@pytest.mark.parametrize("status", REFUSED)
def test_standing_up_waits_for_the_gate_and_goes_on_where_it_was(robot, status):
    robot.tick(50)
    robot.operate("arm")
    robot.tick(600)
    robot.stand()
    robot.tick(800)
    before = robot.applied[-1][1]
    robot.forced_status = status
    robot.tick(120)
    robot.forced_status = None
    assert robot.tick(50) is Mode.STAND_UP
    (after,) = [target for ms, target in robot.applied if ms == robot.ms - 40]
    # Two ticks further, at 15 % of 12 rad/s at most; 140 ms would be 0.14 rad.
    assert 0.0 < np.abs(after - before).max() < 2 * 0.018


def test_the_hand_over_to_a_policy_waits_too(robot):
    robot.stood_up()
    robot.controller.policies.start(robot.desc.default_joint_pos, robot.ms * MS)
    robot.tick(100)
    robot.forced_status = CommandStatus.REJECTED_STALE
    robot.tick(130)
    robot.forced_status = None
    robot.tick(30)
    targets = np.array([sent.joint_pos for sent in robot.sent[-20:]])
    # 0.1 rad in 0.3 s, at most 1.5 times as fast in the middle: 5 mrad a tick
    assert np.abs(np.diff(targets, axis=0)).max() < 0.0051


def test_refused_for_150_ms_while_the_gate_stays_active_it_is_not_this_loop_that_drives(robot):
    robot.stood_up()
    robot.forced_status = CommandStatus.REJECTED_STALE
    for _ in range(14):
        robot.tick(10)
        robot.gate.command(robot.pos, robot.ms * MS)  # of another writer
    assert robot.tick(10) is Mode.PASSIVE
    assert not robot.controller.permission.stand_requested


# --- random sequences ----------------------------------------------------------------------


OPS = st.sampled_from(
    [(), ("arm",), ("disarm", "arm"), ("estop", "reset", "arm"), ("disarm",), ("estop",)]
)
LOSSES = ("reply_lost", "command_lost", "state_lost", "measurements_lost")
SPANS_MS = st.sampled_from([10, 20, 50, 140, 150, 490, 520])
EVENTS = st.one_of(
    st.tuples(st.just("nothing")),
    st.tuples(st.just("stand")),
    st.tuples(st.just("arm and stand")),
    st.tuples(st.sampled_from(["fault", "restart_hal", "put_back"])),
    st.tuples(st.just("intrude"), SPANS_MS),
    st.tuples(st.just("stall"), SPANS_MS, OPS, SPANS_MS),
    st.tuples(
        st.just("lose"), st.sets(st.sampled_from(LOSSES), min_size=1), SPANS_MS, OPS, SPANS_MS
    ),
)
SCRIPT = st.lists(st.tuples(EVENTS, OPS, st.sampled_from([0, 10, 30, 100, 520])), max_size=6)
"""What happens, what operators do at the same moment, and the time [ms] until the next."""


@pytest.fixture(scope="module")
def shared_manager(policies, desc):
    blind = str(policies / "blind")
    cfg = ControlCfg(policy=blind, blind_policy=blind, auto_stand=False)
    return cfg, PolicyManager(cfg, desc)


@settings(max_examples=100, deadline=None)
@example(script=[(("lose", {"reply_lost"}, 20, ("disarm", "arm"), 520), (), 10)])
@example(script=[(("stall", 20, ("estop", "reset", "arm"), 520), (), 10)])
@example(script=[(("nothing",), ("disarm", "arm"), 520)])
@example(script=[(("intrude", 10), (), 0), (("lose", {"reply_lost"}, 10, (), 490), (), 0)])
@example(
    script=[
        (("nothing",), ("disarm",), 30),
        (("arm and stand",), (), 30),
        (("nothing",), ("disarm", "arm"), 520),
    ]
)
@given(script=SCRIPT)
def test_no_target_leaves_the_pose_after_a_way_out_until_the_next_request(
    shared_manager, desc, state, script
):
    """`Robot.serve` asserts it for every command that the gate applies."""
    cfg, manager = shared_manager
    robot = Robot(cfg, desc, state, manager)
    robot.tick(20)
    robot.operate("arm")
    robot.tick(520)
    assert robot.stand()
    robot.tick(300)
    for event, ops, span_ms in script:
        play(robot, *event)
        robot.operate(*ops)
        robot.tick(span_ms)
    robot.operate("reset", "arm")
    robot.tick(700)


def play(robot, what, *details):
    match what, details:
        case "nothing", ():
            pass
        case "stand", ():
            robot.stand()
        case "arm and stand", ():
            robot.operate("reset", "arm")
            robot.tick(20)
            play(robot, "stand")
        case "intrude", (ms,):
            robot.intruding = True
            robot.tick(ms)
            robot.intruding = False
        case "stall", (before_ms, ops, after_ms):
            robot.stall(before_ms)
            robot.operate(*ops)
            robot.stall(after_ms)
        case "lose", (names, before_ms, ops, after_ms):
            for name in names:
                setattr(robot, name, True)
            robot.tick(before_ms)
            robot.operate(*ops)
            robot.tick(after_ms)
            for name in names:
                setattr(robot, name, False)
        case way_out, ():
            getattr(robot, way_out)()
