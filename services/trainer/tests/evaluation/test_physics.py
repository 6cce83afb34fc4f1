"""One robot in MuJoCo as the evaluation simulates it."""

import dataclasses

import numpy as np
import pytest
from krabby.course.courses import make_course
from krabby.course.ground import Ground
from krabby.robot import rotations
from krabby.robot.description import RobotDescription
from krabby_trainer.evaluation.physics import FIELDS, WIDTH, Conditions, Robot, RobotSpec

CALM = Conditions(
    friction=(0.9, 0.9),
    push_interval_s=(6.0, 6.0),
    push_speed=0.0,
    start_xy_m=0.0,
    start_yaw_rad=0.0,
    start_joint_rad=0.0,
)
POINTS = np.stack(
    np.meshgrid(np.arange(25) * 0.1 - 0.8, np.arange(13) * 0.2 - 1.2, indexing="ij"), axis=-1
).reshape(-1, 2)


@pytest.fixture(scope="module")
def desc():
    return RobotDescription.load()


def make(desc, course="flat", difficulty=0.5, conditions=CALM, seed=(0, 0)):
    spec = RobotSpec(course=course, difficulty=difficulty, course_seed=4, seed=seed)
    return Robot(desc, spec, conditions, POINTS)


def reported(robot):
    row = np.zeros(WIDTH, np.float32)
    robot.report(row)
    return {name: row[where] for name, where in FIELDS.items()}


@pytest.mark.parametrize("name", ["flat", "steps", "gap", "hurdle", "ramps", "mixed", "demo"])
def test_fast_heights_are_those_of_the_course(name):
    course = make_course(name, 1.3, 8, border_m=6.0)
    ground, rng = Ground(course), np.random.default_rng(0)

    for x, y in rng.uniform((-1.0, -3.0), (course.length_m, 3.0), (40, 2)):
        points = np.array([x, y]) + rng.uniform(-1.6, 1.6, (325, 2))
        expected = course.height_at(points[:, 0], points[:, 1])
        assert np.array_equal(ground.heights(points[:, 0], points[:, 1]), expected)


def test_a_robot_told_to_stand_stands(desc):
    robot = make(desc)
    for _ in range(100):
        robot.step(desc.default_joint_pos)
    facts = reported(robot)

    assert facts["base_pos_w"][2] == pytest.approx(0.42, abs=0.02)
    assert facts["base_pos_w"][:2] == pytest.approx([1.0, 0.0], abs=0.02)
    assert facts["foot_contact"].sum() == 6
    assert not facts["feet_on_edge"].any()
    assert not facts["base_contact"]
    assert facts["faults"] == 0
    assert 0.5 < np.sqrt((facts["torque"] ** 2).mean()) < 30.0
    assert facts["heights"] == pytest.approx(np.zeros(325))


def test_targets_move_no_faster_than_the_gate_allows(desc):
    robot = make(desc)
    target = desc.default_joint_pos.copy()
    target[2] += 1.0
    for _ in range(3):
        robot.step(target)

    # 12 rad/s for three steps of 10 ms, of which the newest is not in force yet.
    assert robot._gate.target[2] - desc.default_joint_pos[2] == pytest.approx(0.36 - 0.12, abs=0.13)
    assert robot._line.current.joint_pos[2] <= desc.default_joint_pos[2] + 0.36 + 1e-9


def test_a_command_reaches_the_drives_after_7_5_ms(desc):
    robot = make(desc)
    robot.step(desc.default_joint_pos)
    target = desc.default_joint_pos.copy()
    target[1] += 0.05
    seen, substep = [], robot.world.substep

    def watch(drive):
        substep(drive)
        seen.append(
            float(robot.world.data.ctrl[robot.world.index.actuator[1]] - desc.default_joint_pos[1])
        )

    robot.world.substep = watch
    robot.step(target)

    assert seen == pytest.approx([0.0, 0.0, 0.0, 0.05])


def test_a_push_comes_when_its_time_has_come(desc):
    pushed = Conditions(**(vars(CALM) | {"push_interval_s": (0.05, 0.05), "push_speed": 0.5}))
    robot = make(desc, conditions=pushed)
    speeds = []
    for _ in range(12):
        robot.step(desc.default_joint_pos)
        speeds.append(float(np.abs(reported(robot)["base_lin_vel_w"][:2]).max()))

    jumps = np.flatnonzero(np.diff(speeds) > 0.03) + 2  # counted from 1
    assert jumps.tolist()[:1] == [5]


def test_the_seed_alone_decides_about_the_draws(desc):
    varied = Conditions(
        friction=(0.6, 1.2), push_interval_s=(6.0, 6.0), push_speed=0.5,
        start_xy_m=0.3, start_yaw_rad=0.3, start_joint_rad=0.1,
    )  # fmt: skip
    first, again, other = (
        make(desc, conditions=varied, seed=seed) for seed in ((1, 5), (1, 5), (1, 6))
    )

    assert np.array_equal(reported(first)["joint_pos"], reported(again)["joint_pos"])
    assert first.friction == again.friction != other.friction
    assert not np.array_equal(reported(first)["joint_pos"], reported(other)["joint_pos"])
    assert abs(float(rotations.yaw(reported(first)["base_quat_w"]))) <= 0.3
    first.reset()
    assert not np.array_equal(reported(first)["joint_pos"], reported(again)["joint_pos"])


def test_friction_scales_feet_and_body_alike(desc):
    slippery = Conditions(**(vars(CALM) | {"friction": (0.45, 0.45)}))

    half, whole = (
        make(desc, conditions=c).world.model.geom_friction[:, 0] for c in (slippery, CALM)
    )

    assert set(np.round(whole, 6)) == {1.0, 0.9, 0.5}  # ground, feet, body
    assert set(np.round(half, 6)) == {1.0, 0.45, 0.25}


def test_a_state_that_diverged_is_reported_and_forgotten_by_a_reset(desc):
    robot = make(desc)
    robot.step(desc.default_joint_pos)
    robot.world.data.qvel[:] = np.inf
    robot.step(desc.default_joint_pos)

    facts = reported(robot)
    assert facts["diverged"]
    assert all(np.isfinite(value).all() for value in facts.values())
    robot.reset()
    robot.step(desc.default_joint_pos)
    assert not reported(robot)["diverged"]


def test_a_robot_in_a_pit_is_seen(desc):
    robot = make(desc, course="gap", difficulty=1.5)
    width = 0.1 + 0.7 * 1.5
    course = make_course("gap", 1.5, 4)
    first = min(b.center[0] - b.half_extents[0] for b in course.boxes if b.kind == "landing")
    robot.world.data.qpos[:3] = (first - width / 2, 0.0, -0.6)

    assert reported(robot)["in_pit"]
    robot.world.data.qpos[2] = 0.4
    assert not reported(robot)["in_pit"]


def test_a_payload_is_carried_by_the_feet(desc):
    robot = make(desc, conditions=dataclasses.replace(CALM, payload_kg=(5.0, 5.0)))
    assert robot.world.model.body_mass.sum() == pytest.approx(28.6 + 5.0)
    for _ in range(100):
        robot.step(desc.default_joint_pos)
    assert robot.world.data.sensordata[robot.world.index.foot_touch].sum() == pytest.approx(
        33.6 * 9.81, rel=0.02
    )


def test_every_part_of_a_heavy_robot_is_heavier_alike(desc):
    plain = make(desc)
    heavy = make(desc, conditions=dataclasses.replace(CALM, mass_factor=(1.5, 1.5)))
    loaded = make(
        desc,
        conditions=dataclasses.replace(CALM, mass_factor=(1.5, 1.5), payload_kg=(5.0, 5.0)),
    )
    for name in ("body_mass", "body_inertia"):
        ours, theirs = getattr(heavy.world.model, name), getattr(plain.world.model, name)
        np.testing.assert_allclose(ours, 1.5 * theirs, rtol=1e-12)
    # 1.5 times 28.6 kg are 14.3 kg more; 5 kg on the base, whose own 10 kg are 15 now.
    assert reported(plain)["added_mass_kg"] == pytest.approx(0.0, abs=1e-6)
    assert reported(heavy)["added_mass_kg"] == pytest.approx(14.3, abs=1e-5)
    assert reported(loaded)["added_mass_kg"] == pytest.approx(19.3, abs=1e-5)
    base = plain.world.index.base_body
    assert loaded.world.model.body_mass[base] == pytest.approx(20.0)
    np.testing.assert_allclose(
        loaded.world.model.body_inertia[base],
        2.0 * plain.world.model.body_inertia[base],
        rtol=1e-12,
    )
    for _ in range(100):
        heavy.step(desc.default_joint_pos)
    assert heavy.world.data.sensordata[heavy.world.index.foot_touch].sum() == pytest.approx(
        42.9 * 9.81, rel=0.02
    )


def test_weak_motors_give_that_share_of_their_torque(desc):
    for strength in (1.0, 0.2):
        robot = make(desc, conditions=dataclasses.replace(CALM, motor_strength=(strength,) * 2))
        robot.step(desc.default_joint_pos)
        limit = robot.world.model.actuator_forcerange[robot.world.index.actuator, 1].max()
        assert limit == pytest.approx(120.0 * strength, rel=0.15)


def test_what_is_not_varied_leaves_the_other_draws_as_they_are(desc):
    drawn = dataclasses.replace(CALM, friction=(0.5, 1.0), start_xy_m=0.3)
    loaded = dataclasses.replace(drawn, payload_kg=(1.0, 5.0), motor_strength=(0.8, 1.0))
    first, second = make(desc, conditions=drawn), make(desc, conditions=loaded)
    assert first.friction == second.friction
    assert reported(first)["base_pos_w"] == pytest.approx(reported(second)["base_pos_w"])
