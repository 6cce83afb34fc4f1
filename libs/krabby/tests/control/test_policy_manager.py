"""Who walks, and how one hands over to another."""

import dataclasses

import msgspec
import numpy as np
import pytest
from krabby.control.policy_manager import PolicyManager, load_runner
from krabby.policy._manifest import FEATURES_AGE_S
from krabby.policy.observation import ObservationInputs
from krabby.robot.errors import BundleError
from krabby.runtime.testing import captured_logs
from krabby_proto import FEATURES, FLAG_LATENT

MS = 1_000_000


@pytest.fixture
def inputs(desc):
    def make(command=None):
        return ObservationInputs(
            base_quat_w=np.array([0.0, 0.0, 0.0, 1.0]),
            base_ang_vel_b=np.zeros(3),
            base_lin_acc_b=np.zeros(3),
            joint_pos=desc.default_joint_pos,
            joint_vel=np.zeros(18),
            foot_contact=np.ones(6),
            nav_command=np.zeros(3) if command is None else np.array(command),
            last_action=np.zeros(18),
        )

    return make


class Walk:
    """Steps a manager every 10 ms and keeps the last target."""

    def __init__(self, policies, inputs, desc):
        self.policies, self.inputs, self.desc = policies, inputs, desc
        self.target = desc.default_joint_pos
        self.largest_step = 0.0
        policies.start(self.target, 0)

    def until(self, start_ms, end_ms, seen=lambda now_ns: None, command=None):
        for ms in range(start_ms, end_ms, 10):
            inputs = self.inputs(command)
            target = self.policies.step(inputs, seen(ms * MS), self.target, ms * MS)
            self.largest_step = max(self.largest_step, np.abs(target - self.target).max())
            self.target = target
        return self.offset

    @property
    def offset(self):
        """How far the target is from the default pose, by the first joint [rad]."""
        return float((self.target - self.desc.default_joint_pos)[0])


@pytest.fixture
def seeing(cfg, policies, desc, inputs):
    cfg = msgspec.structs.replace(cfg, policy=str(policies / "seeing"))
    return Walk(PolicyManager(cfg, desc, clock=lambda: 0), inputs, desc)


def test_a_policy_takes_over_from_the_last_target_in_300_ms(cfg, desc, inputs):
    walk = Walk(PolicyManager(cfg, desc), inputs, desc)
    assert walk.until(0, 10) == 0.0
    # half-way through a smooth step: half of 0.1 rad
    assert walk.until(10, 160) == pytest.approx(0.5 * 0.1, abs=0.006)
    assert walk.until(160, 310) == pytest.approx(0.1)


def test_a_swap_while_walking_moves_no_joint_faster_than_walking_does(cfg, desc, inputs, policies):
    walk = Walk(PolicyManager(cfg, desc), inputs, desc)
    walk.until(0, 400)
    walk.largest_step = 0.0
    walk.policies.choose(load_runner(str(policies / "other"), desc, 100.0), walk.target, 400 * MS)
    assert walk.until(400, 800) == pytest.approx(-0.1)
    # 0.2 rad over 0.3 s peaks at 1.5 times the mean speed: 0.01 rad in 10 ms
    assert walk.largest_step == pytest.approx(0.01, rel=0.05)
    assert walk.largest_step / 0.01 < desc.velocity_limit.min()


def test_a_swap_is_no_return_of_sight(cfg, desc, inputs, policies):
    walk = Walk(PolicyManager(cfg, desc), inputs, desc)
    walk.until(0, 400)
    with captured_logs() as logs:
        walk.policies.choose(
            load_runner(str(policies / "other"), desc, 100.0), walk.target, 400 * MS
        )
    assert [each["event"] for each in logs] == ["policy swapped"]


def test_features_older_than_150_ms_are_walked_without(seeing, features):
    assert seeing.until(0, 1500, features) == pytest.approx(0.2)
    assert not seeing.policies.blind
    seeing.until(1500, 1650, lambda now_ns: features(1490 * MS))
    assert seeing.until(1650, 2050, lambda now_ns: features(1490 * MS)) == pytest.approx(0.1)
    assert seeing.policies.blind
    assert seeing.policies.blind_switches == 1


@pytest.mark.parametrize(
    ("ahead_ms", "said"), [(100, "from the future"), (5_000_000, "clocks differ by 5000 s")]
)
def test_features_from_the_future_are_not_fresh_for_ever(seeing, features, ahead_ms, said):
    seeing.until(0, 1000, features)
    with captured_logs() as logs:
        seeing.until(1000, 1500, lambda now_ns: features(now_ns + ahead_ms * MS))
    assert seeing.policies.blind
    assert any(said in each["event"] for each in logs)


def test_a_policy_sees_again_after_half_a_second_of_fresh_features(seeing, features):
    seeing.until(0, 400)
    assert seeing.policies.blind
    seeing.until(400, 890, features)
    assert seeing.policies.blind
    seeing.until(890, 910, features)
    assert not seeing.policies.blind
    assert seeing.until(910, 1300, features) == pytest.approx(0.2)
    assert seeing.largest_step < 0.011


def test_one_lost_image_starts_the_half_second_anew(seeing, features):
    seeing.until(0, 400)
    seeing.until(400, 800, features)
    seeing.until(800, 810)
    seeing.until(810, 1300, features)
    assert seeing.policies.blind
    seeing.until(1300, 1320, features)
    assert not seeing.policies.blind


@pytest.mark.parametrize("header", [{"size": 32}, {"flags": FLAG_LATENT}])
def test_features_that_the_policy_does_not_read_count_as_none(seeing, features, header):
    seeing.until(0, 500, lambda now_ns: features(now_ns, **header))
    assert seeing.policies.blind


def test_without_a_blind_policy_it_stands_still(cfg, policies, desc, inputs, features):
    cfg = msgspec.structs.replace(cfg, policy=str(policies / "seeing"), blind_policy="")
    walk = Walk(PolicyManager(cfg, desc, clock=lambda: 0), inputs, desc)
    walk.until(0, 500, features)
    before = walk.target
    walk.until(500, 900)
    np.testing.assert_array_equal(walk.target, before)


def test_standing_still_for_want_of_sight_is_told_and_ends_after_half_a_second(
    cfg, policies, desc, inputs, features
):
    cfg = msgspec.structs.replace(cfg, policy=str(policies / "seeing"), blind_policy="")
    walk = Walk(PolicyManager(cfg, desc, clock=lambda: 0), inputs, desc)
    with captured_logs() as logs:
        walk.until(0, 500, features)
        walk.until(500, 900)
        assert walk.policies.blind
        assert walk.policies.blind_switches == 1
        held = walk.target
        walk.until(900, 1390, features)
        np.testing.assert_array_equal(walk.target, held)
        walk.until(1390, 1420, features)
        assert not walk.policies.blind
    assert [each["event"] for each in logs] == ["standing still", "seeing again"]
    # 500 to 1390 ms: 90 steps of 142
    assert (walk.policies.ticks, walk.policies.blind_ticks) == (142, 90)


def test_it_takes_over_again_from_where_it_stood_still(cfg, policies, desc, inputs, features):
    cfg = msgspec.structs.replace(cfg, policy=str(policies / "seeing"), blind_policy="")
    walk = Walk(PolicyManager(cfg, desc, clock=lambda: 0), inputs, desc)
    walk.until(0, 50)  # stood still at once, in the default pose
    assert walk.offset == 0.0
    assert walk.until(50, 900, features) == pytest.approx(0.2)
    assert walk.largest_step < 0.011


def test_features_that_are_not_finite_count_as_none_and_not_against_the_policy(seeing, features):
    def nan(now_ns):
        message = features(now_ns)
        return message._replace(payload=np.full_like(message.payload, np.nan))

    seeing.until(0, 500, features)
    seeing.until(500, 1000, nan)
    assert seeing.policies.blind
    assert seeing.policies.bad_outputs == 0
    seeing.until(1000, 1510, features)
    assert not seeing.policies.blind


def test_starting_anew_while_blind_is_no_return_of_sight(seeing):
    seeing.until(0, 100)
    with captured_logs() as logs:
        seeing.policies.start(seeing.target, 100 * MS)
    assert logs == []


def test_outputs_that_are_not_finite_hold_and_the_third_hands_over(
    cfg, policies, desc, inputs, monkeypatch
):
    monkeypatch.setattr("krabby.control.policy_manager._WARM_UP_STEPS", 0)
    cfg = msgspec.structs.replace(cfg, policy=str(policies / "broken"))
    walk = Walk(PolicyManager(cfg, desc, clock=lambda: 0), inputs, desc)
    assert walk.until(0, 30) == 0.0
    assert not walk.policies.blind
    assert walk.until(30, 400) == pytest.approx(0.1)
    assert walk.policies.blind


def test_a_blind_policy_that_needs_to_see_is_refused(cfg, policies, desc):
    cfg = msgspec.structs.replace(cfg, blind_policy=str(policies / "seeing"))
    with pytest.raises(BundleError, match="name a policy that walks without seeing"):
        PolicyManager(cfg, desc)


def test_a_teacher_is_refused_in_one_line(cfg, policies, desc):
    with pytest.raises(BundleError) as error:
        load_runner(str(policies / "teacher"), desc, 100.0)
    assert str(error.value) == (
        "policy 'teacher' is a teacher: it reads ground truth that no robot has (height_scan); "
        "evaluate it with `python -m krabby_trainer eval`, or name a policy that walks on what "
        "the robot measures"
    )
    with pytest.raises(BundleError, match="is a teacher"):
        PolicyManager(msgspec.structs.replace(cfg, blind_policy=str(policies / "teacher")), desc)


def test_a_policy_is_told_how_old_what_it_sees_is(seeing, inputs, features):
    seen = inputs()
    seeing.policies.step(seen, features(0), seeing.target, 40 * MS)
    assert seen.features_age == pytest.approx([0.04])
    seeing.policies.step(seen, None, seeing.target, 50 * MS)
    assert seen.features_age is None


@pytest.fixture
def restless(cfg, policies, desc, inputs):
    cfg = msgspec.structs.replace(cfg, policy=str(policies / "restless"))
    return Walk(PolicyManager(cfg, desc, clock=lambda: 0), inputs, desc)


def test_a_policy_that_never_stands_is_relieved_while_no_motion_is_asked_for(restless):
    assert restless.until(0, 400, command=(0.4, 0.0, 0.0)) == pytest.approx(0.2)
    with captured_logs() as logs:
        assert restless.until(400, 800, command=(0.0, 0.0, 0.0)) == pytest.approx(0.1)
        # Nothing is wrong: no warning that it walks blind.
        assert not restless.policies.blind
        assert restless.until(800, 1200, command=(0.0, 0.0, -0.2)) == pytest.approx(0.2)
    assert logs == []
    assert (restless.policies.blind_switches, restless.policies.blind_ticks) == (0, 0)
    # 0.1 rad over 0.3 s peaks at 1.5 times the mean speed.
    assert restless.largest_step < 0.011


def test_a_command_at_the_border_does_not_make_it_hand_over_to_and_fro(restless):
    restless.until(0, 400, command=(0.4, 0.0, 0.0))
    assert restless.until(400, 800, command=(0.06, 0.0, 0.0)) == pytest.approx(0.2)
    restless.until(800, 1200, command=(0.04, 0.0, 0.0))
    assert restless.until(1200, 1600, command=(0.06, 0.0, 0.0)) == pytest.approx(0.1)


def test_who_stands_by_itself_is_left_alone(cfg, policies, desc, inputs):
    cfg = msgspec.structs.replace(cfg, policy=str(policies / "other"))
    walk = Walk(PolicyManager(cfg, desc, clock=lambda: 0), inputs, desc)
    assert walk.until(0, 400, command=(0.0, 0.0, 0.0)) == pytest.approx(-0.1)


def test_without_a_blind_policy_no_other_relieves_it(cfg, policies, desc, inputs):
    cfg = msgspec.structs.replace(cfg, policy=str(policies / "restless"), blind_policy="")
    walk = Walk(PolicyManager(cfg, desc, clock=lambda: 0), inputs, desc)
    assert walk.until(0, 400, command=(0.0, 0.0, 0.0)) == pytest.approx(0.2)


def test_running_in_counts_as_no_step(policies, desc):
    runner = load_runner(str(policies / "blind"), desc, 100.0)
    assert (runner.observe_s, runner.infer_s) == (0.0, 0.0)


def test_a_policy_for_a_robot_of_another_mass_is_loaded_with_a_warning(desc):
    heavier = dataclasses.replace(desc, masses=dataclasses.replace(desc.masses, body=30.0))
    with captured_logs() as events:
        load_runner("gait", desc, 100.0)
        load_runner("gait", heavier, 100.0)
    # 28.6 kg + 20
    assert [(e["log_level"], e["mass_kg"], e["this_robot_kg"]) for e in events] == [
        ("warning", 28.6, 48.6)
    ]


@pytest.fixture
def remembering(cfg, policies, desc, inputs):
    cfg = msgspec.structs.replace(cfg, policy=str(policies / "remembering"))
    return Walk(PolicyManager(cfg, desc, clock=lambda: 0), inputs, desc)


def test_a_policy_that_remembers_walks_on_old_features_then_on_the_token_then_stands(
    remembering, inputs, features
):
    """0.5 s of features, 2 s in all, as its manifest says; the blind policy never takes over."""
    policies = remembering.policies
    remembering.until(0, 400, features)
    for age_ms, sight, told_s, halts in (
        (10, "fresh", 0.01, False),
        (500, "fresh", 0.5, False),
        (510, "memory", 0.5, False),
        (2000, "memory", 0.5, False),
        (2010, "lost", 0.5, True),
        (9000, "lost", 0.5, True),
        (20, "fresh", 0.02, False),
    ):
        seen = inputs((0.4, 0.0, 0.0))
        now_ns = (10_000 + age_ms) * MS
        image = features(10_000 * MS)._replace(payload=np.full(5046, 0.25, np.float32))
        policies.step(seen, image, remembering.target, now_ns)
        assert (policies.sight, policies.halts, policies.blind) == (sight, halts, False)
        assert seen.features_age == pytest.approx([told_s])
        np.testing.assert_array_equal(seen.features, 0.25 if sight == "fresh" else 0.0)
    assert policies.blind_switches == 0
    assert policies.memory_ticks == 4


def test_a_policy_that_remembers_stands_on_the_token_before_the_first_picture(
    remembering, features
):
    with captured_logs() as logs:
        assert remembering.until(0, 400) == pytest.approx(0.2)
        assert remembering.policies.halts
        remembering.until(400, 420, features)
        assert not remembering.policies.halts
    (warning,) = (each for each in logs if each["log_level"] == "warning")
    assert warning["event"] == "no picture for longer than the policy remembers"


def test_a_policy_that_remembers_but_does_not_stand_is_handed_over_when_memory_ends(
    cfg, policies, desc, inputs, features
):
    cfg = msgspec.structs.replace(cfg, policy=str(policies / "forgetful"))
    walk = Walk(PolicyManager(cfg, desc, clock=lambda: 0), inputs, desc)
    ahead = (0.4, 0.0, 0.0)
    assert walk.until(0, 400, features, ahead) == pytest.approx(0.2)
    walk.until(400, 2400, lambda now_ns: features(390 * MS), ahead)  # 2.0 s old at the end
    assert (walk.policies.blind, walk.policies.sight) == (False, "memory")
    assert walk.until(2400, 2800, lambda now_ns: features(390 * MS), ahead) == pytest.approx(0.1)
    assert (walk.policies.blind, walk.policies.halts) == (True, False)


def test_the_range_of_commands_is_that_of_the_policy_that_walks(
    cfg, policies, desc, inputs, features
):
    cfg = msgspec.structs.replace(cfg, policy=str(policies / "forgetful"))
    walk = Walk(PolicyManager(cfg, desc, clock=lambda: 0), inputs, desc)
    walk.until(0, 400, features, (0.4, 0.0, 0.0))
    assert walk.policies.command_range.tolist() == [[-0.2, 0.0, -0.5], [0.6, 0.0, 0.5]]
    assert walk.policies.abilities is walk.policies.chosen.bundle.abilities
    walk.until(400, 800, command=(0.4, 0.0, 0.0))
    assert walk.policies.blind
    assert walk.policies.command_range is None
    assert walk.policies.abilities is walk.policies.active.bundle.abilities


def test_a_bundle_that_declares_no_age_takes_features_as_long_as_the_wire_does():
    assert FEATURES.max_age_s == FEATURES_AGE_S
