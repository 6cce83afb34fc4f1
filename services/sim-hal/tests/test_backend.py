import numpy as np
import pytest
from krabby.course.courses import make_course
from krabby.course.mission import pursue
from krabby.hal.backend import Slot
from krabby.hal.handler import GateHandler
from krabby.hal.measurement import StatePayload
from krabby.mujoco import own_legs
from krabby.mujoco.config import MissionCfg
from krabby.robot import rotations
from krabby.runtime.testing import captured_logs
from krabby.safety.trajectories import rest_joint_pos, stand_up
from krabby_proto import (
    COMMAND,
    STATE,
    TRUTH,
    CommandStatus,
    Fault,
    SafetyState,
    decode,
    encode,
    unpack,
)

SLOT_NS = 5_000_000


class Driver:
    """Runs a simulator as the loop does: a slot every 5 ms, a command in every other one."""

    def __init__(self, sim, clock):
        self.sim = sim
        self.handler = GateHandler(sim)
        self.clock = clock
        self.sequence = 0
        self.resets = 0

    def slot(self):
        self.clock.now_ns += SLOT_NS
        now_ns = self.clock.now_ns
        reading = self.handler.cycle(Slot(now_ns, now_ns, 1, now_ns + SLOT_NS))
        self.resets += reading.was_reset
        return reading

    def command(self, joint_pos):
        self.sequence += 1
        frames_ = encode(
            COMMAND,
            joint_pos,
            instance_id=1,
            sequence=self.sequence,
            capture_ns=self.clock.now_ns,
            publish_ns=self.clock.now_ns,
        )
        return self.handler.on_command(decode(frames_))

    def run(self, seconds, target=None):
        """Hold `target`, or send nothing; `target` may be a function of the time since now."""
        outcome = None
        for period in range(round(seconds / 0.01)):
            self.slot()
            self.slot()
            self.sim.control_tick(self.clock.now_ns)
            if target is not None:
                pose = target(period * 0.01) if callable(target) else target
                outcome = self.command(pose)
        return outcome

    def truth(self):
        return unpack(TRUTH, self.sim.control_tick(self.clock.now_ns).copy())


@pytest.fixture
def standing(simulator, clock, desc):
    """A robot that stands and follows commands."""
    driver = Driver(simulator(), clock)
    driver.run(1.0, desc.default_joint_pos)
    assert driver.handler.gate.state is SafetyState.ACTIVE
    driver.run(0.5, desc.default_joint_pos)
    return driver


def roll_over(driver, angle=1.2):
    driver.sim.world.data.qpos[3:7] = [np.cos(angle / 2), np.sin(angle / 2), 0, 0]
    driver.sim.world.data.qpos[2] += 0.6


def test_it_arms_by_itself_once_commands_come_steadily(simulator, clock, desc):
    driver = Driver(simulator(), clock)
    assert driver.command(desc.default_joint_pos).status is CommandStatus.NOT_ARMED
    # 0.2 s of steady commands, then 0.5 s of arming.
    driver.run(0.65, desc.default_joint_pos)
    assert driver.handler.gate.state is SafetyState.ARMING
    driver.run(0.1, desc.default_joint_pos)
    assert driver.handler.gate.state is SafetyState.ACTIVE


def test_without_auto_arm_it_waits_for_an_operator(simulator, clock, desc):
    driver = Driver(simulator(auto_arm=False), clock)
    driver.run(1.0, desc.default_joint_pos)
    assert driver.handler.gate.state is SafetyState.DISARMED
    assert driver.handler.on_safety("arm", "test").ok
    driver.run(0.6, desc.default_joint_pos)
    assert driver.handler.gate.state is SafetyState.ACTIVE


def test_it_spawns_lying_and_stands_up_without_a_fall(simulator, clock, desc):
    driver = Driver(simulator(spawn="lying"), clock)
    assert driver.sim.world.base_pos_w[2] == pytest.approx(0.0508, abs=0.03)
    rest = rest_joint_pos(desc)
    driver.run(1.0, rest)
    trajectory = stand_up(desc, rest)
    driver.run(trajectory.duration_s + 1.0, trajectory.at)
    assert driver.sim.world.base_pos_w[2] == pytest.approx(0.42, abs=0.01)
    assert driver.sim.falls == 0


def test_sitting_for_a_while_is_no_fall(standing, desc):
    trajectory = stand_up(desc, rest_joint_pos(desc))
    standing.run(2.0, lambda t: trajectory.at(trajectory.duration_s - t))
    standing.run(3.0, rest_joint_pos(desc))
    assert standing.sim.world.base_contact()
    assert standing.sim.falls == 0


def test_state_says_what_the_robot_measures(standing, desc):
    state = StatePayload().fill(standing.slot().measured)
    fields = unpack(STATE, state)
    assert state.shape == (70,)
    assert fields["base_quat_w"] == pytest.approx([0, 0, 0, 1], abs=0.01)
    assert fields["base_lin_acc_b"] == pytest.approx([0, 0, 9.81], abs=0.3)
    assert fields["joint_pos"] == pytest.approx(desc.default_joint_pos, abs=0.15)
    assert fields["foot_contact"] == pytest.approx(np.ones(6))


def test_truth_says_where_it_is(standing):
    truth = standing.truth()
    assert truth["base_pos_w"] == pytest.approx([1.0, 0.0, 0.42], abs=0.02)
    assert truth["waypoint_index"] == 0
    assert truth["waypoint_count"] == 8
    assert truth["sim_time"] == pytest.approx(1.5)
    assert truth["feet_on_edge"] == 0


def test_a_foot_within_5_cm_of_an_edge_counts(simulator, clock, desc):
    course = make_course("gap", difficulty=0.5)
    driver = Driver(simulator(course), clock)
    driver.run(1.5, desc.default_joint_pos)
    assert driver.truth()["feet_on_edge"] == 0
    feet = driver.sim.world.foot_soles_w()
    start = min(float(edge[0, 0]) for edge in course.edges)  # the near side of the first gap
    driver.sim.world.data.qpos[0] += start - 0.02 - feet[0, 0]
    driver.slot()
    assert driver.truth()["feet_on_edge"] >= 1


def test_commands_that_stop_make_it_hold_and_then_go_limp(standing, desc):
    standing.run(0.1)
    assert standing.handler.gate.state is SafetyState.HOLD
    standing.run(0.1)
    assert standing.handler.gate.state is SafetyState.DAMP
    assert Fault.COMMAND_TIMEOUT in standing.handler.gate.faults
    assert standing.command(desc.default_joint_pos).status is CommandStatus.REJECTED_SAFETY


def test_it_gets_up_again_by_itself_when_commands_come_back(standing, desc):
    standing.run(0.5)
    standing.run(1.5, desc.default_joint_pos)
    assert standing.handler.gate.state is SafetyState.ACTIVE


def test_each_fault_of_the_gate_is_counted_when_it_comes(standing, desc):
    assert standing.handler.summary()["gate_faults"] == {}
    standing.run(0.3)
    standing.run(1.5, desc.default_joint_pos)
    roll_over(standing)
    standing.run(0.1, desc.default_joint_pos)
    assert standing.handler.summary()["gate_faults"] == {"command_timeout": 1, "tilt": 1}


@pytest.mark.parametrize("ended_by", ["a slot", "a command"])
@pytest.mark.parametrize("ms", [100, 140, 5000])
def test_a_stall_of_100_ms_makes_it_go_limp(standing, desc, ms, ended_by):
    standing.clock.now_ns += ms * 1_000_000 - (SLOT_NS if ended_by == "a slot" else 0)
    if ended_by == "a slot":
        standing.slot()
    else:
        outcome = standing.command(desc.default_joint_pos)
        assert outcome.status is CommandStatus.REJECTED_SAFETY
    assert standing.handler.gate.faults == Fault.STATE_STALE
    assert standing.handler.gate.state is SafetyState.DAMP
    for _ in range(3):  # what the gate decides in a slot reaches the joints 5 ms later
        standing.slot()
    assert not standing.sim.drive.kp.any()


def test_a_stall_while_arming_starts_the_gains_from_zero(simulator, clock, desc):
    driver = Driver(simulator(auto_arm=False), clock)
    driver.run(0.1)
    assert driver.handler.on_safety("arm", "test").ok
    driver.run(0.4)
    assert driver.sim.drive.kp.max() == pytest.approx(195.0)  # 390 of 500 ms
    clock.now_ns += 40_000_000
    for _ in range(3):
        driver.slot()
    assert driver.handler.gate.state is SafetyState.ARMING
    assert driver.sim.drive.kp.max() == 0.0
    before = 0.0
    for _ in range(100):
        driver.slot()
        kp = driver.sim.drive.kp.max()
        assert kp - before == pytest.approx(2.5)
        before = kp
    assert driver.handler.gate.state is SafetyState.ACTIVE


def test_an_emergency_stop_stays_until_an_operator_arms(standing, desc):
    outcome = standing.handler.on_safety("estop", "test")
    assert (outcome.ok, outcome.state, outcome.faults) == (True, "estop", ("estop",))
    standing.run(1.0, desc.default_joint_pos)
    assert standing.handler.gate.state is SafetyState.ESTOP
    assert not standing.handler.on_safety("arm", "test").ok
    standing.handler.on_safety("reset", "test")
    standing.run(1.0, desc.default_joint_pos)
    assert standing.handler.gate.state is SafetyState.DISARMED
    standing.handler.on_safety("arm", "test")
    standing.run(1.0, desc.default_joint_pos)
    assert standing.handler.gate.state is SafetyState.ACTIVE


def test_asking_for_the_status_changes_nothing(standing):
    outcome = standing.handler.on_safety("status", "test")
    assert (outcome.ok, outcome.state, outcome.faults) == (True, "active", ())


def test_a_wild_command_is_cut_by_the_gate_and_counted(standing, desc):
    target = desc.default_joint_pos.copy()
    target[4] = 9.0
    outcome = standing.command(target)
    assert outcome.status is CommandStatus.APPLIED
    assert outcome.position_clamp_mask == 1 << 4
    assert outcome.rate_clamp_mask == 1 << 4
    assert standing.handler.position_clamps[4] == 1
    assert standing.handler.summary()["gate_clamps"] >= 2


def test_the_actuator_write_is_reported_with_its_command(standing, desc):
    seen = []
    standing.handler.on_actuated = lambda message, applied_ns: seen.append(
        (message.sequence, applied_ns)
    )
    outcome = standing.command(desc.default_joint_pos)
    assert seen == [(standing.sequence, outcome.applied_ns)]
    assert outcome.applied_ns == standing.clock.now_ns


def test_a_command_reaches_the_joints_5_ms_after_it_was_applied(standing, desc):
    sim = standing.sim
    joint = desc.joint_index("lm_hip_yaw")
    target = desc.default_joint_pos.copy()
    target[joint] += 0.1
    standing.run(0.01)
    ctrl = sim.world.index.actuator[joint]
    before = sim.world.data.ctrl[ctrl]
    standing.command(target)
    standing.slot()
    assert sim.world.data.ctrl[ctrl] == pytest.approx(before)
    standing.slot()
    assert sim.world.data.ctrl[ctrl] > before + 0.05


def test_a_fall_is_reported_and_put_right_after_two_seconds(standing, desc):
    before = standing.resets
    with captured_logs() as logs:
        roll_over(standing)
        standing.slot()
        assert standing.handler.gate.state is SafetyState.DISARMED
        assert standing.sim.falls == 1
        standing.run(1.98, desc.default_joint_pos)
        assert standing.resets == before
        standing.run(0.05, desc.default_joint_pos)
    assert standing.resets == before + 1
    fell = next(entry for entry in logs if entry["event"] == "fell")
    assert fell["reason"] == "tilt"
    assert fell["position"][0] == pytest.approx(1.0, abs=0.1)
    assert any(entry["event"] == "put back" for entry in logs)
    assert standing.sim.world.base_pos_w == pytest.approx([1.0, 0.0, 0.42], abs=0.1)
    # It arms and stands again as at the start.
    standing.run(1.5, desc.default_joint_pos)
    assert standing.handler.gate.state is SafetyState.ACTIVE
    assert standing.sim.falls == 1
    assert standing.truth()["reset_count"] == 1
    assert rotations.tilt(standing.sim.world.base_quat_w) < 0.05


def test_nothing_is_armed_while_it_lies_there(standing, desc):
    roll_over(standing)
    standing.run(1.9, desc.default_joint_pos)
    assert standing.handler.gate.state is SafetyState.DISARMED


def test_an_emergency_stop_survives_the_reset(standing, desc):
    roll_over(standing)
    standing.slot()
    standing.handler.on_safety("estop", "test")
    standing.run(3.0, desc.default_joint_pos)
    assert standing.sim.resets == 1
    assert standing.handler.gate.state is SafetyState.ESTOP


def test_falling_into_a_pit_is_noticed(simulator, clock, desc):
    course = make_course("gap", difficulty=1.0)
    driver = Driver(simulator(course), clock)
    first_gap = min(float(edge[0, 0]) for edge in course.edges)  # it is 0.8 m wide
    driver.sim.world.data.qpos[:3] = [first_gap + 0.4, 0.0, course.pit_entry_z - 0.1]
    with captured_logs() as logs:
        driver.slot()
    assert driver.sim.falls == 1
    assert next(entry for entry in logs if entry["event"] == "fell")["reason"] == "in a pit"


def test_the_robot_is_put_back_at_the_last_waypoint_facing_the_next(standing, desc):
    waypoints = standing.sim.course.waypoints
    standing.sim.world.data.qpos[:2] = waypoints[0, :2]
    standing.run(0.2, desc.default_joint_pos)
    assert standing.truth()["waypoint_index"] == 1
    distance = standing.sim.progress.distance_m
    roll_over(standing)
    standing.run(2.1, desc.default_joint_pos)
    assert standing.sim.resets == 1
    assert standing.sim.world.base_pos_w[:2] == pytest.approx(waypoints[0, :2], abs=0.05)
    away = waypoints[1] - waypoints[0]
    heading = rotations.yaw(standing.sim.world.base_quat_w)
    assert heading == pytest.approx(np.arctan2(away[1], away[0]), abs=0.05)
    assert standing.sim.progress.distance_m == pytest.approx(distance, abs=0.1)


def test_a_repeated_course_begins_again_two_seconds_after_its_end(simulator, clock, desc):
    driver = Driver(simulator(mission=MissionCfg(repeat=True)), clock)
    driver.run(1.0, desc.default_joint_pos)
    sim = driver.sim
    for waypoint in sim.course.waypoints:
        sim.world.data.qpos[:2] = waypoint[:2]
        driver.run(0.2, desc.default_joint_pos)
    assert sim.progress.completed
    walked_m = sim.progress.distance_m
    driver.run(1.7, desc.default_joint_pos)
    assert (sim.laps, driver.resets) == (0, 0)
    driver.run(0.3, desc.default_joint_pos)
    assert (sim.laps, driver.resets, sim.falls) == (1, 1, 0)
    assert driver.handler.gate.state is not SafetyState.ACTIVE
    assert sim.world.base_pos_w[:2] == pytest.approx(sim.course.spawn[:2], abs=0.05)
    assert sim.progress.distance_m == pytest.approx(walked_m, abs=0.05)
    driver.run(1.0, desc.default_joint_pos)
    assert driver.handler.gate.state is SafetyState.ACTIVE


def test_the_same_commands_give_the_same_trajectory(simulator, clock, desc):
    def hash_of(course_seed, amplitude):
        clock.now_ns = 1_000_000_000
        driver = Driver(simulator(make_course("mixed", seed=course_seed), spawn="lying"), clock)
        stand = stand_up(desc, rest_joint_pos(desc))
        driver.run(1.0, rest_joint_pos(desc))
        driver.run(
            3.0, lambda t: stand.at(t) + amplitude * np.sin(6.28 * t * np.arange(1, 19) / 6.0)
        )
        return driver.sim.summary()["trajectory_hash"]

    assert hash_of(0, 0.05) == hash_of(0, 0.05)
    assert hash_of(0, 0.05) != hash_of(0, 0.050001)


def test_exposures_follow_the_sensors_rate_and_show_the_course(standing):
    taken = []
    for _ in range(200):
        standing.slot()
        frame = standing.sim.expose(standing.clock.now_ns)
        if frame is not None:
            taken.append(frame)
    assert 28 <= len(taken) <= 30
    assert taken[0].image.shape == (60, 106)
    assert np.mean(taken[0].image > 0) > 0.7


def test_without_a_camera_nothing_is_exposed(simulator, clock):
    sim = simulator(camera={"enabled": False})
    assert sim.expose(clock.now_ns) is None


def test_its_own_legs_are_seen_only_when_asked_for(simulator, desc):
    def image(see_robot, swing):
        sim = simulator(camera={"see_robot": see_robot})
        pose = desc.default_joint_pos.copy()
        pose[desc.joint_index("lf_hip_yaw")] = -swing
        pose[desc.joint_index("rf_hip_yaw")] = swing
        sim.world.place(sim.progress.restart_pose(), pose)
        return sim.depth()

    # Front legs swung to the nose by 0.9 rad stand in view, left and right.
    bare, with_legs = image(False, 0.9), image(True, 0.9)
    legs = with_legs < bare
    assert legs[:, :53].sum() > 50
    assert legs[:, 53:].sum() > 50
    assert np.array_equal(bare[~legs], with_legs[~legs])
    assert 0.1 < with_legs[legs].min() < with_legs[legs].max() < 1.5
    # In the spider stance they are beside it.
    assert np.array_equal(image(False, 0.0), image(True, 0.0))


def test_every_pixel_with_a_leg_is_looked_at(simulator, desc, monkeypatch):
    sim = simulator(camera={"see_robot": True})
    rng = np.random.default_rng(4)
    for _ in range(10):
        pose = rng.uniform(desc.joint_lower, desc.joint_upper)
        sim.world.place(sim.progress.restart_pose(), pose)
        thrifty = sim.depth()
        with monkeypatch.context() as patch:
            patch.setattr(own_legs, "_may_show", lambda *_: np.ones((60, 106), bool))
            assert np.array_equal(sim.depth(), thrifty)


def test_the_mission_knows_the_way_of_every_course(simulator):
    for name in ("flat", "mixed", "demo"):
        sim = simulator(make_course(name))
        command = pursue(
            sim.world.base_pos_w[:2],
            float(rotations.yaw(sim.world.base_quat_w)),
            sim.progress.target_xy,
            0.35,
        )
        assert command.vx > 0.3
