"""Physics behind the drives: standing, falling, being carried, limits, the IMU."""

import numpy as np
import pytest
from krabby.course.courses import make_course
from krabby.mujoco.config import CameraCfg
from krabby.robot import rotations
from krabby.safety.trajectories import rest_joint_pos, stand_up
from krabby_emulator.config import EmulatorCfg, ImuCfg
from krabby_emulator.robot import EmulatedRobot

SUBSTEP_NS = 2_500_000
QUIET_IMU = ImuCfg(gyro_noise=0.0, gyro_bias=0.0, accelerometer_noise=0.0, attitude_noise=0.0)


class Driver:
    """Runs the robot as the loop does, a command to all drives every 5 ms."""

    def __init__(self, desc, **keys):
        cfg = EmulatorCfg(camera=CameraCfg(enabled=False), imu=QUIET_IMU, **keys)
        self.desc = desc
        self.robot = EmulatedRobot(
            cfg, desc, make_course("flat"), buses=("can",), bus_of=[0] * len(desc.joint_names)
        )
        self.now_ns = 1_000_000_000
        self.sample = None

    def enable(self):
        for joint in range(18):
            assert self.robot.bank.enable(joint, self.now_ns)

    def run(self, seconds, target=None):
        for slot in range(round(seconds / 0.005)):
            if target is not None:
                pose = target(slot * 0.005) if callable(target) else target
                every = list(range(18))
                self.robot.bank.command(
                    every, pose, 0.0, self.desc.kp, self.desc.kd, 0.0, self.now_ns
                )
            for _ in range(2):
                self.now_ns += SUBSTEP_NS
                self.robot.substep(self.now_ns)
            self.sample = self.robot.sense(self.now_ns)

    @property
    def height(self):
        return self.robot.world.base_pos_w[2]


@pytest.fixture
def driver(desc):
    return Driver(desc)


@pytest.fixture
def standing(desc):
    driver = Driver(desc, spawn="standing")
    driver.enable()
    driver.run(0.5, desc.default_joint_pos)
    return driver


def test_it_lies_limp_until_it_is_switched_on_and_can_stand_up(driver, desc):
    driver.run(0.5, desc.default_joint_pos)
    assert driver.height == pytest.approx(0.051, abs=0.01)
    driver.enable()
    trajectory = stand_up(desc, driver.robot.world.joint_pos)
    driver.run(trajectory.duration_s + 0.5, trajectory.at)
    assert driver.height == pytest.approx(0.42, abs=0.01)
    assert driver.robot.falls == 0
    assert driver.robot.summary()["joint_limits_kept"]


def test_friction_holds_a_light_load_where_a_frictionless_joint_gives(desc, standing):
    # 0.5 N·m are less than the 0.6 N·m of dry friction: a yaw joint in the air stays where it is.
    world, bank = standing.robot.world, standing.robot.bank
    world.data.qpos[2] += 2.0
    before = world.joint_pos[0]
    bank.command(0, 0.0, 0.0, 0.0, 0.0, 0.5, standing.now_ns)
    standing.run(0.1)
    assert world.joint_pos[0] == pytest.approx(before, abs=0.01)


def test_switched_off_it_sinks_and_nothing_puts_it_back(standing):
    for joint in range(18):
        standing.robot.bank.disable(joint)
    standing.run(4.0)
    assert standing.height < 0.1
    assert standing.robot.resets == 0
    assert standing.robot.summary()["joint_limits_kept"]


def test_turned_over_it_has_fallen_once(standing, desc):
    standing.robot.world.data.qpos[3:7] = [0.0, 1.0, 0.0, 0.0]  # half a turn about x
    standing.robot.world.data.qpos[2] += 0.3
    standing.run(3.0, desc.default_joint_pos)
    assert standing.robot.falls == 1
    assert standing.robot.resets == 0


def test_with_auto_reset_it_is_put_back_after_two_seconds(desc):
    driver = Driver(desc, spawn="standing", auto_reset=True)
    driver.robot.world.data.qpos[3:7] = [0.0, 1.0, 0.0, 0.0]
    driver.robot.world.data.qpos[2] += 0.3
    driver.run(1.9)
    assert driver.robot.resets == 0
    driver.run(0.3)
    assert driver.robot.resets == 1
    assert float(rotations.tilt(driver.robot.world.base_quat_w)) < 0.1


def test_carried_while_it_stands_it_keeps_its_pose_and_its_law(standing, desc):
    pose = desc.default_joint_pos + 0.05
    standing.run(0.5, pose)
    held = standing.robot.world.joint_pos
    standing.robot.put_back(standing.now_ns)
    assert standing.robot.world.joint_pos == pytest.approx(held)
    standing.run(0.5, pose)
    assert standing.robot.world.joint_pos == pytest.approx(held, abs=0.03)


def test_carried_while_it_is_limp_it_is_laid_down(driver, desc):
    driver.run(0.1)
    driver.robot.put_back(driver.now_ns)
    assert driver.robot.world.joint_pos == pytest.approx(rest_joint_pos(desc))


def test_a_joint_beyond_its_limits_is_remembered_with_its_name(standing, desc):
    knee = desc.joint_index("rf_knee")
    world = standing.robot.world
    world.data.qpos[world.index.joint_qpos[knee]] = desc.joint_upper[knee] + 0.1
    standing.robot.substep(standing.now_ns)
    summary = standing.robot.summary()
    assert not summary["joint_limits_kept"]
    assert summary["joint_limit_excess_joint"] == "rf_knee"
    assert summary["joint_limit_excess_rad"] == pytest.approx(0.1, abs=0.02)


def test_the_imu_says_what_the_base_does_and_jumps_when_it_is_told_to(standing, desc):
    assert float(rotations.tilt(standing.sample.quat_wb)) < 0.02
    assert standing.sample.lin_acc_b == pytest.approx([0.0, 0.0, 9.81], abs=0.2)
    assert standing.sample.stamp_ns == standing.now_ns
    standing.robot.inject("imu-jump", standing.now_ns, value=0.5, for_s=0.1)
    standing.run(0.005, desc.default_joint_pos)
    assert float(rotations.tilt(standing.sample.quat_wb)) == pytest.approx(0.5, abs=0.02)
    standing.run(0.1, desc.default_joint_pos)
    assert float(rotations.tilt(standing.sample.quat_wb)) < 0.02
    standing.robot.inject("imu-silence", standing.now_ns)
    standing.run(0.005, desc.default_joint_pos)
    assert standing.sample is None


def test_a_reset_drive_lets_its_joint_go(standing, desc):
    knee = desc.joint_index("lf_knee")
    standing.robot.inject("reset", standing.now_ns, joint="lf_knee")
    standing.run(0.05, desc.default_joint_pos)
    assert not standing.robot.bank.on[knee]
    assert standing.robot.bank.running == 17
    assert standing.robot.bank.reported.effort[knee] == pytest.approx(0.0, abs=1.0)


def test_the_same_seed_and_commands_give_the_same_run(desc):
    ends = []
    for _ in range(2):
        driver = Driver(desc, seed=7)
        driver.enable()
        driver.run(0.5, desc.default_joint_pos)
        ends.append((driver.robot.world.state_bytes(), driver.robot.bank.reported.pos.tobytes()))
    assert ends[0] == ends[1]
    assert np.frombuffer(ends[0][1]).shape == (18,)
