"""A robot that is worse than its description, unknown to policy and gate."""

import math

import numpy as np
import pytest
from krabby.config import ConfigError, parse
from krabby.course.progress import Pose2
from krabby.mujoco.config import DegradeCfg, StageCfg
from krabby.mujoco.degrade import degraded, differences
from krabby.mujoco.stage import Stage
from krabby.mujoco.world import World

ORIGIN = Pose2(1.0, 0.0, 0.0)


@pytest.fixture
def stage_of(desc, flat):
    """A standing robot on flat ground, degraded as the keywords say."""

    def make(**keys):
        cfg = StageCfg(spawn="standing", degrade=DegradeCfg(**keys))
        return Stage(cfg, desc, flat, tilt_limit_rad=1.0)

    return make


@pytest.fixture
def world_of(desc, flat):
    def make(**keys):
        world = World(desc, flat, actual=degraded(desc, DegradeCfg(**keys)))
        world.place(ORIGIN, desc.default_joint_pos)
        return world

    return make


def test_as_described_nothing_is_reported_and_nothing_changes(desc, flat, hold):
    assert differences(DegradeCfg()) == {}
    plain, same = World(desc, flat), World(desc, flat, actual=degraded(desc, DegradeCfg()))
    for world in (plain, same):
        world.place(ORIGIN, desc.default_joint_pos)
        for _ in range(200):
            world.substep(hold())
    assert plain.state_bytes() == same.state_bytes()


def test_only_what_differs_is_reported():
    cfg = DegradeCfg(frame_drop=0.3, friction=0.4, motor_strength=0.8)
    assert differences(cfg) == {"frame_drop": 0.3, "friction": 0.4, "motor_strength": 0.8}


def test_motors_of_80_percent_have_80_percent_of_the_torque_at_every_speed(world_of, hold, desc):
    world = world_of(motor_strength=0.8)
    joint = desc.joint_index("lm_hip_yaw")
    target = desc.default_joint_pos.copy()
    # From rest: 250 * 0.9 = 225 N·m is asked for, the peak of 120 is 96 now.
    target[joint] = 0.9
    world.data.qpos[2] += 2.0
    world.substep(hold(target))
    effort = world.data.actuator_force[world.index.actuator]
    assert effort[joint] == pytest.approx(96.0)
    # At half the no-load speed half of that is left; 250 * 0.8 - 10 * 10 = 100 is asked for.
    world.place(ORIGIN, desc.default_joint_pos)
    world.data.qpos[2] += 2.0
    target[joint] = 0.8
    world.data.qvel[world.index.joint_dof[joint]] = 10.0
    world.substep(hold(target))
    effort = world.data.actuator_force[world.index.actuator]
    assert effort[joint] == pytest.approx(48.0)
    # Gains stay: what is asked for within the envelope is given in full, 250 * 0.1 = 25.
    world.place(ORIGIN, desc.default_joint_pos)
    world.data.qpos[2] += 2.0
    target[joint] = 0.1
    world.substep(hold(target))
    effort = world.data.actuator_force[world.index.actuator]
    assert effort[joint] == pytest.approx(25.0, rel=0.02)


def test_a_payload_of_5_kg_is_carried_by_the_feet(world_of, hold, desc):
    weights = []
    for payload_kg in (0.0, 5.0):
        world = world_of(payload_kg=payload_kg)
        for _ in range(800):
            world.substep(hold())
        weights.append(world.data.sensordata[world.index.foot_touch].sum())
        assert world.model.body_subtreemass[world.index.base_body] == pytest.approx(
            desc.masses.total + payload_kg
        )
    assert weights[0] == pytest.approx(28.6 * 9.81, rel=0.02)
    assert weights[1] - weights[0] == pytest.approx(5.0 * 9.81, rel=0.1)


def test_a_payload_is_spread_like_the_body(world_of):
    bare, loaded = world_of(), world_of(payload_kg=5.0)
    base = bare.index.base_body
    # 10 kg become 15 kg, and so does what resists turning.
    np.testing.assert_allclose(loaded.model.body_inertia[base], 1.5 * bare.model.body_inertia[base])
    assert loaded.model.body_mass[base] == pytest.approx(15.0)


@pytest.mark.parametrize(("friction", "slides"), [(None, False), (0.4, True)])
def test_on_slippery_ground_a_slope_that_held_the_robot_does_not(world_of, hold, friction, slides):
    world = world_of(friction=friction)
    # Gravity leant by 30 degrees is a slope of tan 30° = 0.58: less than 0.9, more than 0.4.
    world.model.opt.gravity[:] = (9.81 * math.sin(math.pi / 6), 0.0, -9.81 * math.cos(math.pi / 6))
    start = world.base_pos_w[0]
    for _ in range(400):
        world.substep(hold())
    assert (world.base_pos_w[0] - start > 0.5) == slides


def test_friction_is_that_of_the_feet_and_at_most_that_of_the_body(world_of, desc):
    low, high = world_of(friction=0.4), world_of(friction=1.2)
    foot, base = low.index.foot_geom, low.model.geom("base_collision").id
    assert low.model.geom_friction[foot, 0] == pytest.approx(np.full(6, 0.4))
    assert low.model.geom_friction[base, 0] == pytest.approx(0.4)
    assert high.model.geom_friction[foot, 0] == pytest.approx(np.full(6, 1.2))
    assert high.model.geom_friction[base, 0] == pytest.approx(desc.contact.body_friction)


def test_the_camera_is_worse_than_described(desc):
    cfg = DegradeCfg(frame_drop=0.3, camera_latency_s=0.12, depth_noise=2.0)
    camera = degraded(desc, cfg).camera
    assert camera.drop_probability == 0.3
    assert camera.latency_s == 0.12
    assert camera.latency_jitter_s == desc.camera.latency_jitter_s
    assert camera.noise_rel == pytest.approx(2.0 * desc.camera.noise_rel)
    assert desc.camera.drop_probability == 0.01


def test_a_mount_that_is_3_degrees_off_sees_the_ground_nearer_and_says_nothing(stage_of):
    plain, tilted = stage_of(), stage_of(camera_tilt_deg=3.0)
    right = tilted.desc.camera.mount_pitch_rad
    assert right == plain.desc.camera.mount_pitch_rad == pytest.approx(math.radians(30.0))
    # The middle of the image looks 33 degrees down, from where the camera stands over the ground.
    height = plain.world.base_pos_w[2] + plain.desc.camera.mount_xyz[2]
    for sim, pitch_deg in ((plain, 30.0), (tilted, 33.0)):
        rows = sim.depth()[29:31, 53]
        assert rows.mean() == pytest.approx(height / math.sin(math.radians(pitch_deg)), rel=0.01)


def test_the_summary_says_what_was_changed(stage_of):
    assert stage_of(payload_kg=5.0).summary()["degrade"] == {"payload_kg": 5.0}
    assert stage_of().summary()["degrade"] == {}


@pytest.mark.parametrize(
    ("key", "value"),
    [("frame_drop", 1.5), ("motor_strength", 0.0), ("payload_kg", -1.0), ("friction", math.nan)],
)
def test_what_cannot_be_is_refused_with_its_key(key, value):
    with pytest.raises(ConfigError, match=key):
        parse(DegradeCfg, {key: value}, source="test")
