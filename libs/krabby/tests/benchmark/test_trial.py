"""Real trials of seconds: gate, controller, camera and events in one process."""

import hashlib
import math

import numpy as np
import pytest
from krabby.benchmark.figures import Figures
from krabby.benchmark.outcome import Judge
from krabby.benchmark.scenario import (
    Cell,
    CommandSegment,
    Event,
    Pictures,
    RobotVariation,
    Scenario,
)
from krabby.benchmark.trace import Trace
from krabby.benchmark.trial import Policies, Trial, TrialCfg
from krabby.control.modes import Mode
from krabby.course.courses import make_course
from krabby.robot.description import RobotDescription
from krabby_proto import SafetyState

FORWARD = (CommandSegment(start_s=0.0, vx=0.3),)
STILL = (CommandSegment(start_s=0.0),)


@pytest.fixture(scope="module")
def desc():
    return RobotDescription.load()


@pytest.fixture(scope="module")
def blind(desc):
    return Policies(desc, "gait")


@pytest.fixture(scope="module")
def seeing(desc):
    return Policies(desc, "parkour")


def trial(policies, desc, *, goal="track", cfg=None, seed=0, **scenario):
    scenario = {"course": make_course("flat"), "commands": FORWARD, "duration_s": 3.0} | scenario
    cell = Cell(name="it", family="f", summary="", goal=goal, make=lambda _: Scenario(**scenario))
    return Trial(cell, seed, policies, desc, cfg)


def walked(trial):
    trace = Trace()
    result = trial.run(Judge(trial.facts), None, [trace])
    return result, trace


def test_a_trial_stands_up_walks_and_measures_from_go(blind, desc):
    result, trace = walked(trial(blind, desc, duration_s=6.0))
    # Limp 0.2 s, arming 0.5 s, 0.3 s to the default pose, a tick to see each of them.
    assert (trace.time_s < 0.0).sum() == 101
    assert trace.time_s[-1] == pytest.approx(6.0)
    assert result.time_s == pytest.approx(6.0)
    assert set(trace.mode[trace.time_s >= 0.0]) == {Mode.POLICY}
    after = trace.time_s > 4.0
    assert trace.base_lin_vel_b[after, 0].mean() == pytest.approx(0.3, abs=0.02)
    assert trace.asked[-1] == pytest.approx([0.3, 0.0, 0.0])


def test_the_feet_carry_the_robot_in_every_physics_step(blind, desc):
    run = trial(blind, desc, commands=STILL, goal="stand", cfg=TrialCfg(substep_ns=1_000_000))
    _, trace = walked(run)
    # Ten steps of 1 ms in a tick; 28.6 kg are 280.6 N.
    assert trace.foot_force.shape[1:] == (10, 6)
    standing = trace.foot_force[trace.time_s > 1.0].sum(axis=-1)
    assert standing.mean() == pytest.approx(desc.masses.total * 9.81, rel=0.02)
    assert run.facts.substep_s == pytest.approx(0.001)


def test_the_same_trial_again_and_with_used_policies_is_the_same_trajectory(seeing, desc):
    def digest():
        run, state = trial(seeing, desc, duration_s=2.0, seed=3), hashlib.sha256()
        while run.sim_time_s < 4.5:
            run.period()
            state.update(run.robot.world.state_bytes())
        return state.hexdigest()

    first = digest()
    walked(trial(seeing, desc, course=make_course("steps", 0.8, 1), commands=(), duration_s=2.0))
    assert digest() == first


def test_pictures_have_their_true_age_when_they_are_used(seeing, desc):
    _, trace = walked(trial(seeing, desc, duration_s=2.0))
    ages = trace.feature_age_s[trace.time_s > 0.5]
    camera = desc.camera
    # Delivered after 40 ms and up to 15 ms of control period and slots; then used until the next
    # of 15 Hz comes, of which one in a hundred is lost.
    assert np.nanmin(ages) >= camera.latency_s - camera.latency_jitter_s
    assert np.nanmax(ages) > camera.latency_s + 0.05
    assert not trace.blind.any()


def test_pictures_that_are_too_late_leave_the_robot_to_the_blind_gait(seeing, desc):
    late = Pictures(latency_s=0.2, drop_share=0.0)
    _, trace = walked(trial(seeing, desc, duration_s=2.0, pictures=late))
    after = trace.time_s > 0.5
    # 0.2 s is more than the 0.15 s that the loop accepts.
    assert trace.blind[after].all()
    assert set(trace.policy[after]) == {"gait"}


@pytest.mark.parametrize(("fault", "age_s"), [("outage", 0.15), ("black", 0.15), ("frozen", 0.65)])
def test_broken_pictures_hand_over_when_their_features_are_too_old(seeing, desc, fault, age_s):
    broken = Event(action="pictures", name=fault, at_s=1.0)
    _, trace = walked(trial(seeing, desc, duration_s=2.5, events=(broken,)))
    begins_s = trace.time_s[trace.blind][0]
    # The newest good picture is at most 0.13 s old when it breaks; a frozen one is withheld 0.5 s
    # after the content it repeats.
    assert begins_s == pytest.approx(1.0 + age_s, abs=0.14)


def test_released_stick_sit_and_emergency_stop_end_and_the_robot_walks_again(blind, desc):
    events = (
        Event(action="release", at_s=1.0, duration_s=1.0),
        Event(action="sit", at_s=3.0, duration_s=3.0),
        Event(action="estop", at_s=10.0, duration_s=1.0),
    )
    _, trace = walked(trial(blind, desc, duration_s=18.0, events=events, goal="track"))

    def at(second):
        return int(np.searchsorted(trace.time_s, second))

    assert trace.walks[at(0.5)]
    assert not trace.walks[at(1.5)]
    assert trace.command[at(1.9)] == pytest.approx([0.0, 0.0, 0.0], abs=1e-9)
    assert trace.walks[at(2.5)]
    assert trace.mode[at(4.0)] is Mode.SIT_DOWN
    assert trace.walks[at(9.5)]
    assert trace.safety[at(10.5)] == SafetyState.ESTOP
    assert trace.safety[at(17.5)] == SafetyState.ACTIVE
    assert trace.walks[at(17.5)]


@pytest.mark.parametrize(("at_s", "disturbed"), [(0.1, 1.0), (5.0, 0.0)])
def test_a_trial_knows_whether_its_disturbance_came_in_time(blind, desc, at_s, disturbed):
    event = Event(action="release", at_s=at_s, duration_s=0.1)
    one = trial(blind, desc, duration_s=0.3, events=(event,))
    figures = one.run(Judge(one.facts), Figures(one.facts)).figures
    assert (figures["disturbed"], figures["fell_disturbed"]) == (disturbed, 0.0)


def test_a_push_changes_the_velocity_at_once_in_the_base_frame(blind, desc):
    push = Event(action="push", at_s=1.0, value=0.5, angle_rad=math.pi / 2)
    _, trace = walked(trial(blind, desc, duration_s=1.5, commands=STILL, events=(push,)))
    change = np.diff(trace.base_lin_vel_b[:, 1])
    index = int(change.argmax())
    assert trace.time_s[index + 1] == pytest.approx(1.0, abs=0.021)
    assert change[index] == pytest.approx(0.5, abs=0.15)


def test_a_limp_leg_gives_no_torque(blind, desc):
    limp = RobotVariation(limp_joints=("lf_knee",))
    later = Event(action="limp_leg", name="rr", at_s=0.5)
    run = trial(blind, desc, duration_s=1.5, robot=limp, events=(later,))
    trace = Trace()
    for _ in range(350):
        trace.tick(run.period())
    knee, rear = desc.joint_index("lf_knee"), desc.joint_index("rr_hip_pitch")
    assert np.abs(trace.joint_torque[:, :, knee]).max() == 0.0
    assert np.abs(trace.joint_torque[trace.time_s > 0.55][:, :, rear]).max() == 0.0
    assert np.abs(trace.joint_torque[trace.time_s < 0.4][:, :, rear]).max() > 1.0


def test_a_box_appears_ahead_for_physics_and_camera_and_goes_again(seeing, desc):
    box = Event(action="box", at_s=0.5, value=1.0, duration_s=0.5)
    run = trial(seeing, desc, duration_s=2.0, commands=STILL, events=(box,))
    middle = {}
    while run.period().time_s < 1.5:
        depth = run.robot.depth()
        middle[round(run.period().time_s, 1)] = float(depth[10, 53])
    # The camera sits 0.33 m ahead of the base; 0.67 m to the box, more along the tilted axis.
    assert 0.5 < middle[0.8] < 0.9
    assert middle[0.3] == middle[1.2] or middle[0.3] > 1.0
    assert middle[1.2] > 1.0


def test_a_swap_walks_with_the_other_policy_and_back(seeing, desc):
    swap = Event(action="swap", name="gait", at_s=1.0, duration_s=1.0)
    _, trace = walked(trial(seeing, desc, duration_s=3.0, events=(swap,)))

    def policy(second):
        return trace.policy[int(np.searchsorted(trace.time_s, second))]

    assert [policy(0.9), policy(1.5), policy(2.8)] == ["parkour", "gait", "parkour"]
    # Its pictures went on meanwhile: it sees from its first step on.
    assert not trace.blind.any()


def test_variations_reach_the_robot_and_are_not_told_to_the_gate(blind, desc):
    varied = RobotVariation(mass_factor=1.2, payload_kg=2.0, motor_strength=0.5, friction=0.4)
    run = trial(blind, desc, robot=varied)
    assert run.facts.mass_kg == pytest.approx(1.2 * desc.masses.total + 2.0)
    assert run.robot.world.model.body_mass.sum() == pytest.approx(run.facts.mass_kg)
    np.testing.assert_array_equal(run.handler.gate.cfg.peak_torque, desc.peak_torque * np.ones(18))


def test_the_start_is_drawn_from_the_seed(blind, desc):
    spread = RobotVariation(start_xy_m=0.2, start_yaw_rad=0.3)

    def start(seed):
        return trial(blind, desc, robot=spread, seed=seed).robot.world.base_pos_w[:2]

    np.testing.assert_array_equal(start(1), start(1))
    assert not np.array_equal(start(1), start(2))
    assert (np.abs(start(1) - make_course("flat").spawn[:2]) <= 0.2).all()


def test_a_robot_that_never_walks_is_given_up(blind, desc):
    run = trial(blind, desc)
    run.handler.on_safety("estop", "test")
    result, trace = walked(run)
    assert (result.outcome, result.time_s) == ("fell", 0.0)
    assert "did not stand up and walk within 12 s" in result.reason
    assert run.sim_time_s == pytest.approx(12.0, abs=0.02)
    assert (trace.time_s < 0.0).all()


def test_a_step_that_does_not_divide_a_slot_is_refused():
    with pytest.raises(ValueError, match="divisor of 5000000"):
        TrialCfg(substep_ns=2_000_000)


def test_a_teacher_is_told_the_ground_that_it_reads(desc):
    teacher = Policies(desc, "teacher")
    course = make_course("steps", 0.5, 2)
    result, trace = walked(
        trial(teacher, desc, goal="waypoints", course=course, commands=(), duration_s=6.0)
    )
    assert set(trace.policy[trace.time_s > 0.0]) == {"teacher"}
    assert result.progress_m > 2.0
