import math

import numpy as np
import pytest
from krabby.course.courses import COURSES, make_course
from krabby.course.progress import Pose2
from krabby.hal.measurement import Measurement
from krabby.mujoco.errors import PhysicsDiverged
from krabby.mujoco.world import World
from krabby.robot import rotations

ORIGIN = Pose2(1.0, 0.0, 0.0)


@pytest.fixture
def world(desc, flat):
    world = World(desc, flat)
    world.place(ORIGIN, desc.default_joint_pos)
    return world


def measured(world):
    into = Measurement(18, 6)
    world.measure(into)
    return into


def run(world, drive, seconds):
    for _ in range(round(seconds / 0.0025)):
        world.substep(drive)


def test_a_limp_robot_in_the_air_falls_freely(world, limp):
    world.data.qpos[2] += 2.0
    before = world.base_pos_w[2]
    run(world, limp, 0.4)
    # Semi-implicit Euler: g dt² n (n + 1) / 2 with n = 160 steps of 2.5 ms, 0.7897 m.
    expected = 9.81 * 0.0025**2 * 160 * 161 / 2
    assert before - world.base_pos_w[2] == pytest.approx(expected, abs=1e-6)
    assert measured(world).base_lin_acc_b == pytest.approx([0, 0, 0], abs=1e-6)
    assert world.base_lin_vel_w[2] == pytest.approx(-9.81 * 0.4, abs=1e-6)


def test_the_spider_stance_stands_at_42_cm(world, hold):
    run(world, hold(), 1.5)
    now = measured(world)
    assert world.base_pos_w[2] == pytest.approx(0.42, abs=0.005)
    assert now.base_lin_acc_b == pytest.approx([0, 0, 9.81], abs=0.02)
    assert now.foot_contact == pytest.approx(np.ones(6))
    assert not world.base_contact()
    # What carries 28.6 kg on six legs is well within what a drive bears for ever.
    assert np.abs(now.joint_effort).max() < 25.0


def test_a_rolled_robot_at_rest_feels_gravity_in_its_own_frame(world):
    # On its left side, y down: the specific force, upwards, is along -y.
    world.data.qpos[3:7] = [math.cos(math.pi / 4), -math.sin(math.pi / 4), 0, 0]
    world.data.qpos[2] += 2.0
    world._averaged = 0
    assert measured(world).base_lin_acc_b == pytest.approx([0, -9.81, 0], abs=1e-6)


def test_torque_fades_with_speed_in_the_direction_of_motion_only(world, hold, desc):
    joint = desc.joint_index("lm_hip_yaw")
    target = desc.default_joint_pos.copy()
    world.data.qpos[2] += 2.0
    dof = world.index.joint_dof[joint]

    # Half the no-load speed of 20 rad/s leaves half the peak of 120 N·m; 250 * 0.8 - 10 * 10 = 100
    # is asked for.
    target[joint] = 0.8
    world.data.qvel[dof] = 10.0
    world.substep(hold(target))
    assert world.data.actuator_force[world.index.actuator[joint]] == pytest.approx(60.0)

    # Braking at the same speed, all of it is there: 250 * -0.8 - 10 * 10 = -300 is asked for.
    world.place(ORIGIN, desc.default_joint_pos)
    world.data.qpos[2] += 2.0
    target[joint] = -0.8
    world.data.qvel[dof] = 10.0
    world.substep(hold(target))
    assert world.data.actuator_force[world.index.actuator[joint]] == pytest.approx(-120.0)

    # Beyond the no-load speed nothing is left to accelerate with.
    world.place(ORIGIN, desc.default_joint_pos)
    world.data.qpos[2] += 2.0
    target[joint] = 0.8
    world.data.qvel[dof] = 25.0
    world.substep(hold(target, kp=2000.0))
    assert world.data.actuator_force[world.index.actuator[joint]] == pytest.approx(0.0)


def test_the_gates_effort_limit_holds_in_every_substep(world, hold):
    drive = hold(np.zeros(18), effort_limit=7.0)
    for _ in range(100):
        world.substep(drive)
        assert np.abs(world.data.actuator_force).max() <= 7.0 + 1e-9
    assert world.saturated.sum() > 0


def test_saturation_counts_drives_that_give_all_they_have(world, hold):
    run(world, hold(), 1.0)
    standing = world.saturated.sum()
    assert standing == 0
    assert world.driven == 400
    run(world, hold(effort_limit=2.0), 0.5)
    assert world.saturated.sum() > standing


def test_limp_drives_are_not_counted_as_driven(world, limp):
    run(world, limp, 0.1)
    assert world.driven == 0


def test_lying_on_the_belly_is_a_base_contact(world, limp):
    run(world, limp, 2.0)
    assert world.base_contact()
    assert world.base_pos_w[2] == pytest.approx(0.0508, abs=0.01)


@pytest.mark.parametrize("name", COURSES)
def test_the_robot_can_be_put_down_at_every_waypoint(desc, hold, name):
    course = make_course(name, difficulty=0.7)
    world = World(desc, course)
    for x, y, _ in course.waypoints:
        world.place(Pose2(x, y, 0.3), desc.default_joint_pos)
        assert rotations.yaw(world.base_quat_w) == pytest.approx(0.3)
        assert world.base_pos_w[:2] == pytest.approx([x, y])
        for _ in range(20):
            world.substep(hold())
            # Thrown by a deep overlap it would fly; set down, it only falls a little.
            assert np.linalg.norm(world.base_lin_vel_w) < 0.7


def test_a_diverged_simulation_is_an_error_with_the_time(world, hold):
    run(world, hold(), 0.1)
    world.data.qvel[3] = math.nan
    with pytest.raises(PhysicsDiverged, match=r"diverged 0\.1000 s after"):
        measured(world)


def test_divergence_is_not_papered_over_by_a_fresh_state(world, hold):
    world.data.qvel[3] = 1e30
    run(world, hold(), 0.05)
    with pytest.raises(PhysicsDiverged):
        measured(world)
