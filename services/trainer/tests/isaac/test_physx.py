"""sim-hal on PhysX: the same numbers as on Newton, worked by hand; `pytest -m physx`.

One simulation of two robots on flat ground serves all tests; the second is published.
"""

import numpy as np
import pytest
from krabby.course.courses import make_course
from krabby.course.progress import Pose2
from krabby.isaac.config import IsaacCfg
from krabby.isaac.robots import Bodies
from krabby.isaac.world import IsaacWorld
from krabby.mujoco.config import DegradeCfg
from krabby.mujoco.degrade import degraded
from krabby.robot.description import RobotDescription
from krabby.safety.gate import DriveCommand, DriveMode

pytestmark = pytest.mark.physx

DESC = RobotDescription.load()
HALF = 0.0025
G = 9.81


@pytest.fixture(scope="module")
def built():
    course = make_course("flat")
    world = IsaacWorld(DESC, course, cfg=IsaacCfg(physics="physx", robots=2, published=1))
    world.place(Pose2(*course.spawn), DESC.default_joint_pos)
    world.start()
    yield world
    world.close()


@pytest.fixture
def world(built):
    built.place(Pose2(*make_course("flat").spawn), DESC.default_joint_pos)
    return built


def pass_time(world, seconds, target=DESC.default_joint_pos, *, stiff=1.0, limit=DESC.peak_torque):
    command = DriveCommand(
        DriveMode.POSITION if stiff else DriveMode.DAMP,
        np.array(target, dtype=float),
        stiff * DESC.kp * np.ones(18),
        DESC.kd * np.ones(18),
        np.broadcast_to(limit, 18).astype(float),
    )
    for _ in range(round(seconds / HALF)):
        world.substep(command)


def weight_n(world):
    carried = []
    for _ in range(20):
        pass_time(world, 0.01)
        carried.append(world.data.sensordata[world.index.foot_touch].sum())
    return np.mean(carried)


def test_the_feet_of_a_standing_robot_carry_its_weight(world):
    pass_time(world, 1.0)
    assert weight_n(world) == pytest.approx(28.6 * G, rel=0.01)
    assert world.base_quat_w == pytest.approx([0.0, 0.0, 0.0, 1.0], abs=0.02)


def test_torque_is_what_the_law_says_of_the_state_before_the_step(world):
    target = DESC.default_joint_pos + np.random.default_rng(1).uniform(-0.1, 0.1, 18)
    pass_time(world, 0.05, target)
    # 250 N·m/rad and 10 N·m·s/rad, within 120 N·m.
    law = np.clip(250.0 * (target - world.joint_pos) - 10.0 * world.joint_vel, -120.0, 120.0)
    pass_time(world, 2 * HALF, target)
    assert world._simulator.state(1).torque == pytest.approx(law, abs=0.01)


def test_limp_drives_damp_and_the_effort_limit_holds(world):
    pass_time(world, 0.1, stiff=0.0)
    speed = world.joint_vel
    assert np.abs(speed).max() > 0.5  # it falls
    pass_time(world, 2 * HALF, stiff=0.0)
    assert world._simulator.state(1).torque == pytest.approx(-10.0 * speed, abs=0.01)
    pass_time(world, 2 * HALF, DESC.default_joint_pos + 1.0, limit=5.0)
    assert world._simulator.state(1).torque == pytest.approx(np.full(18, 5.0), abs=1e-4)


def test_the_body_touches_the_ground_when_the_legs_give_way(world):
    pass_time(world, 1.5, stiff=0.0)
    assert world.base_contact()
    world.place(Pose2(2.0, 0.5, 1.0), DESC.default_joint_pos)
    assert not world.base_contact()
    pass_time(world, 0.01)
    assert world.base_pos_w[:2] == pytest.approx([2.0, 0.5], abs=0.01)
    assert world.base_quat_w[2:] == pytest.approx([np.sin(0.5), np.cos(0.5)], abs=0.01)


def test_a_push_changes_the_velocity(world):
    world.push([0.3, -0.1])
    pass_time(world, 2 * HALF)
    assert world._simulator.state(1).base_lin_vel_w[:2] == pytest.approx([0.3, -0.1], abs=0.01)


def test_what_was_degraded_reaches_physics(world):
    robots = world._simulator.robots
    actual = degraded(DESC, DegradeCfg(mass_factor=1.2, payload_kg=3.0, friction=0.5))
    robots.bodies = Bodies.of(DESC, actual, 2, "cpu")
    robots.write_bodies()
    try:
        assert robots._simulation.shape_friction().max() == pytest.approx(0.5)
        pass_time(world, 1.0)
        assert weight_n(world) == pytest.approx((1.2 * 28.6 + 3.0) * G, rel=0.01)
    finally:
        robots.bodies = Bodies.of(DESC, DESC, 2, "cpu")
        robots.write_bodies()
