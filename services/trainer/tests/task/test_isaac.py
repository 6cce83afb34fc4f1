"""The environment in Isaac Lab on the processor: what is computed elsewhere reaches the simulator.

One environment of eight randomised robots serves most tests; each puts its robots where it needs
them.
"""

from __future__ import annotations

import copy
import dataclasses

import gymnasium
import numpy as np
import pytest
import torch
from krabby.course.lanes import TILE_HALF_WIDTH_M
from krabby.robot.description import RobotDescription
from krabby_trainer.learn.networks import GROUP_SIZES
from krabby_trainer.task import rewards
from krabby_trainer.task.config import EnvCfg, TerrainCfg
from krabby_trainer.task.observations import HISTORY, NUM_JOINTS, PROPRIO, PROPRIO_SIZE

pytestmark = pytest.mark.isaac

N = 8
ROBOT = RobotDescription.load()
STILL = torch.zeros(N, NUM_JOINTS)
ALL = torch.ones(N, dtype=torch.bool)


def configuration():
    cfg = EnvCfg(num_envs=N)
    # Even columns, so robots 0 to 3, on gaps; odd ones, robots 4 to 7, on level ground.
    cfg.randomisation.mass_factor = [0.9, 1.6]
    cfg.terrain = TerrainCfg(types=["gap", "flat"], shares=[1.0, 1.0], levels=3, columns=2)
    return cfg


def make(cfg, **options):
    from krabby_trainer.task.isaac import ENV_IDS

    return gymnasium.make(ENV_IDS["teacher"], env_cfg=cfg, device="cpu", **options)


@pytest.fixture(scope="module")
def randomised():
    env = make(configuration(), seed=3)
    yield env.unwrapped
    env.close()


@pytest.fixture
def env(randomised):
    """All robots at the start of their tiles, nothing pressing; levels 0, 1, 2, 0, 1, ..."""
    parkour = randomised.parkour
    parkour.level.copy_(torch.arange(N) % 3)
    parkour.tile_level.copy_(parkour.level)
    parkour.cfg.curriculum.revisit = 0.0
    parkour.push_in_s.fill_(100.0)
    randomised.episode_length_buf.zero_()
    randomised.reset()
    return randomised


@pytest.fixture
def parkour(env):
    return env.parkour


def solver_model():
    from isaaclab_newton.physics import NewtonManager

    return NewtonManager._solver.mjw_model


def test_terrain_is_looked_for_with_the_settings_newton_has(env):
    """Set on an object of another name they would do nothing, and cost a third of the speed."""
    from isaaclab_newton.physics import NewtonManager

    narrow_phase = NewtonManager._collision_pipeline.narrow_phase
    assert narrow_phase.tile_size_mesh_convex == 1  # a processor's, which stays
    assert narrow_phase.num_tile_blocks >= 1


def base_of(values):
    """The base's row of every robot in one of the solver's arrays: the first after the world's."""
    return torch.tensor(values.numpy())[:, 1]


def put(parkour, robot, position):
    """Place one robot in the world, upright and at rest."""
    ids = torch.tensor([robot])
    pose = torch.tensor([[*position, 0.0, 0.0, 0.0, 1.0]], dtype=torch.float32)
    parkour.robots.articulation.write_root_pose_to_sim_index(root_pose=pose, env_ids=ids)
    parkour.robots.articulation.write_root_velocity_to_sim_index(
        root_velocity=torch.zeros(1, 6), env_ids=ids
    )


def send(parkour, *, level, tile_level):
    """Put all robots on tiles of `tile_level`."""
    parkour.level[:], parkour.tile_level[:] = level, tile_level
    parkour.reset(ALL)


def assert_close(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# The simulated robot is the described one.


def test_joints_are_in_the_order_of_the_robot_description(parkour):
    assert tuple(parkour.robots.articulation.joint_names) == ROBOT.joint_names
    assert tuple(ROBOT.joint_names)[:4] == ("lf_hip_yaw", "lf_hip_pitch", "lf_knee", "lm_hip_yaw")


def test_an_action_moves_the_joint_of_its_place(env, parkour):
    action = STILL.clone()
    joints = torch.arange(N) * 2 + 1
    action[torch.arange(N), joints] = 1.0
    for _ in range(40):
        env.step(action)
    moved = parkour.robots.joint_pos - parkour.default_joint_pos
    assert moved.abs().argmax(dim=1).tolist() == joints.tolist()
    assert (moved[torch.arange(N), joints] > 0.15).all()


def test_randomised_masses_reach_the_solver(env, parkour):
    env.step(STILL)
    bodies, model = parkour.bodies, solver_model()
    added, factor = bodies.added_mass_kg[:, 0], bodies.mass_factor[:, 0]
    assert added.unique().numel() == factor.unique().numel() == N
    base = 10.0 * factor + added
    assert_close(base_of(model.body_mass), base)
    assert_close(torch.tensor(model.body_mass.numpy()).sum(dim=1), 28.6 * factor + added)
    assert_close(base_of(model.body_ipos), bodies.com_offset_m)
    # A box of 0.6096 m by 0.6096 m by 0.1016 m, heavier and lighter by the same share.
    about_z = base * (0.6096**2 + 0.6096**2) / 12.0
    inertia = base_of(model.body_inertia).sort(dim=1).values
    assert_close(inertia[:, 2], about_z, 1e-3)


def test_the_ground_carries_each_robots_own_weight(env, parkour):
    loads = []
    for _ in range(150):
        env.step(STILL)
        loads.append(parkour.robots.force_w[..., 2].sum(dim=1).clone())
    bodies = parkour.bodies
    weight = 9.81 * (28.6 * bodies.mass_factor + bodies.added_mass_kg)[:, 0]
    assert_close(parkour.robots.weight_n, weight)
    # Those on level ground, over the last second: a foot that slips makes it swing.
    load = torch.stack(loads[50:]).mean(dim=0)
    assert_close((load / weight)[4:], torch.ones(4), 0.03)


def test_motion_is_judged_by_what_the_joints_do(env, parkour):
    env.step(STILL)
    before = parkour.robots.joint_vel.clone()
    env.step(0.5 * torch.randn(N, NUM_JOINTS))
    # No episode ended: the simulator's present state is what was judged.
    terms, speed = parkour.judge.reward_terms, parkour.robots.joint_vel
    assert_close(terms["power"], (parkour.robots.torque * speed).abs().sum(dim=1))
    assert_close(terms["joint_acceleration"], ((speed - before) / 0.01).square().sum(dim=1))
    env.reset()
    env.step(STILL)
    # At rest after a reset, however fast it was before.
    assert_close(terms["joint_acceleration"], (parkour.robots.joint_vel / 0.01).square().sum(dim=1))


def test_randomised_friction_reaches_the_solver_feet_first(env, parkour):
    env.step(STILL)
    sliding = torch.tensor(solver_model().geom_friction.numpy())[..., 0]
    assert_close(sliding.amax(dim=1), parkour.bodies.friction[:, 0])
    # The legs keep their ratio to the feet, 0.5 to 0.9; the ground decides nothing.
    assert_close(sliding[:, 1], parkour.bodies.friction[:, 0] * 0.5 / 0.9)
    assert_close(sliding.amin(dim=1), torch.full((N,), 0.05))


def test_randomised_gains_reach_the_drives(parkour):
    from isaaclab.actuators.newton import read_group_parameter

    bodies, drives = parkour.bodies, parkour.robots.articulation.actuators
    kp = read_group_parameter(drives, "drives", "controller", "kp")
    kd = read_group_parameter(drives, "drives", "controller", "kd")
    assert_close(kp, 250.0 * bodies.kp_factor)
    assert_close(kd, 10.0 * bodies.kd_factor)
    assert bodies.kp_factor.unique().numel() > 100


def test_bodies_drawn_again_replace_those_before(env, parkour):
    from krabby_trainer.task.randomisation import Bodies

    drawn = Bodies.draw(parkour.cfg.randomisation, N, "cpu", friction=0.9)
    parkour.bodies.copy_(drawn)
    parkour.robots.write_bodies()
    env.step(STILL)
    model = solver_model()
    heavy = 10.0 * drawn.mass_factor + drawn.added_mass_kg
    assert_close(base_of(model.body_mass), heavy[:, 0])
    assert_close(base_of(model.body_ipos), drawn.com_offset_m)
    sliding = torch.tensor(model.geom_friction.numpy())[..., 0]
    assert_close(sliding.amax(dim=1), drawn.friction[:, 0])


def test_the_solver_prints_nothing(parkour):
    assert not solver_model().opt.warn_overflow


# How an episode ends.


def over_pit_of_robot_2(parkour):
    """The middle of the first gap on the hardest tile, in the world."""
    assert int(parkour.tile[2]) == 2 * 2 + 0
    course, corner = parkour.terrain.courses[2][0], parkour.terrain.corner(2, 0)
    along = np.arange(2.0, 18.0, 0.01)
    deep = along[course.height_at(along, 0.0) < -1.0]
    first = deep[deep < deep[0] + 0.5]
    x, y = corner[0] + float(first.mean()), corner[1]
    assert float(parkour.ground.height_at(torch.tensor([x, y]))) == pytest.approx(-1.8)
    return x, y


def test_a_robot_in_a_pit_has_failed_and_one_on_the_ground_has_not(env, parkour):
    x, y = over_pit_of_robot_2(parkour)
    put(parkour, 2, (x, y, -0.6))

    _, _, terminated, timed_out, _ = env.step(STILL)

    assert terminated.tolist() == [robot == 2 for robot in range(N)]
    assert not timed_out.any()
    assert parkour.judge.sunk.tolist() == terminated.tolist()
    assert parkour.judge.reward_terms["fall"].tolist() == [float(robot == 2) for robot in range(N)]


def test_a_robot_over_a_pit_that_has_not_sunk_goes_on(env, parkour):
    x, y = over_pit_of_robot_2(parkour)
    put(parkour, 2, (x, y, 0.4))
    _, _, terminated, timed_out, _ = env.step(STILL)
    assert not terminated.any()
    assert not timed_out.any()


def test_a_robot_on_its_back_or_out_of_its_lane_has_failed(env, parkour):
    x, y, _ = parkour.robots.base_pos_w[5].tolist()
    over = torch.tensor([[x, y, 1.5, 1.0, 0.0, 0.0, 0.0]])
    parkour.robots.articulation.write_root_pose_to_sim_index(
        root_pose=over, env_ids=torch.tensor([5])
    )
    put(parkour, 6, (x, float(parkour.ground.lane_y[parkour.tile[6]]) + 3.05, 1.0))
    assert TILE_HALF_WIDTH_M == 3.0

    _, _, terminated, timed_out, _ = env.step(STILL)

    assert torch.nonzero(terminated).flatten().tolist() == [5, 6]
    assert torch.nonzero(parkour.judge.fallen).flatten().tolist() == [5]
    assert torch.nonzero(parkour.judge.left_lane).flatten().tolist() == [6]
    assert not timed_out.any()


@pytest.fixture
def barred(parkour):
    """Robot 4 at the end of the way that it can go."""
    goals = parkour.ground.goals
    tile = int(parkour.tile[4])
    goals[tile], parkour.progress.index[4] = 4, 4
    parkour.cfg.command.stand_off_s = 0.025
    yield
    goals[tile], parkour.cfg.command.stand_off_s = 8, 10.0


def test_before_something_impassable_standing_earns_though_walking_is_commanded(
    env, parkour, barred
):
    ended = []
    for _ in range(3):
        observed, _, terminated, timed_out, _ = env.step(STILL)
        ended.append(bool(timed_out[4]))
        assert not terminated.any()
        if not ended[-1]:
            assert float(parkour.commanded_speed[4]) > 0.0
            assert parkour.sensible_speed[3:5].tolist() == [float(parkour.commanded_speed[3]), 0.0]
            earned = rewards.goal_velocity(
                parkour.robots.base_lin_vel_w, torch.ones(N, 2), torch.zeros(N)
            )
            assert parkour.judge.reward_terms["goal_velocity"][4] == earned[4]
            command = observed["proprio"][4, PROPRIO.slices["nav_command"]]
            assert float(command.abs().sum()) > 0.0
    assert ended == [False, False, True]


def test_far_from_something_impassable_walking_on_earns_too(parkour, barred, monkeypatch):
    tile, barrier_x = int(parkour.tile[4]), parkour.ground.barrier_x
    barrier_x[tile] = parkour.robots.base_pos_w[4, 0] + 0.7
    assert not parkour.approaches.any()  # by default standing alone earns
    for near_m, approaches in ((0.6, True), (0.8, False)):
        monkeypatch.setattr(parkour.cfg.command, "stand_off_m", near_m)
        assert torch.nonzero(parkour.approaches).flatten().tolist() == [4] * approaches
    barrier_x[tile] = torch.inf


def test_a_robot_that_crosses_something_impassable_has_failed(env, parkour, barred):
    parkour.progress.index[4] = 5
    _, _, terminated, timed_out, _ = env.step(STILL)
    assert torch.nonzero(terminated).flatten().tolist() == [4]
    assert torch.nonzero(parkour.judge.crossed).flatten().tolist() == [4]
    assert not timed_out.any()


def test_a_base_that_rests_on_the_ground_has_failed_after_a_while(env, parkour, monkeypatch):
    force = torch.zeros(N, 1, 3)
    force[4, 0, 2] = 50.0
    monkeypatch.setattr(type(parkour.robots), "base_force_w", property(lambda _: force))
    monkeypatch.setattr(parkour.cfg, "grounded_s", 0.025)
    failed = []
    for _ in range(3):
        _, _, terminated, _, _ = env.step(STILL)
        failed.append(torch.nonzero(terminated).flatten().tolist())
    assert failed == [[], [], [4]]
    monkeypatch.setattr(parkour.cfg, "grounded_s", 0.0)
    assert not any(env.step(STILL)[2].any() for _ in range(4))


def test_a_finished_course_and_the_clock_are_time_outs(env, parkour):
    assert env.max_episode_length == 3000
    last = parkour.ground.waypoints[parkour.tile[4], -1]
    parkour.progress.index[4] = 7
    put(parkour, 4, (float(last[0]) + 0.02, float(last[1]), float(last[2]) + 0.44))
    env.episode_length_buf[1] = 2998

    _, _, terminated, timed_out, _ = env.step(STILL)
    assert torch.nonzero(timed_out).flatten().tolist() == [4]
    assert torch.nonzero(parkour.judge.completed).flatten().tolist() == [4]
    assert not terminated.any()

    _, _, terminated, timed_out, _ = env.step(STILL)
    assert torch.nonzero(timed_out).flatten().tolist() == [1]
    assert torch.nonzero(parkour.judge.time_out).flatten().tolist() == [1]
    assert not terminated.any()


def test_a_robot_that_finished_starts_over_on_a_harder_tile(env, parkour):
    send(parkour, level=0, tile_level=0)
    parkour.progress.index[4] = 8
    for _ in range(3):
        env.step(STILL)
    assert parkour.level.tolist() == [0, 0, 0, 0, 2, 0, 0, 0]
    assert parkour.progress.index.tolist() == [0] * N
    start = parkour.ground.spawn[parkour.tile[4]]
    assert float((parkour.robots.base_pos_w[4, :2] - start).norm()) < 0.5


def test_behind_the_last_waypoint_a_robot_is_asked_to_rest_before_its_episode_ends(env, parkour):
    last = parkour.ground.waypoints[parkour.tile[4], -1]
    put(parkour, 4, (float(last[0]) + 0.02, float(last[1]), float(last[2]) + 0.35))
    parkour.progress.index[4] = 7
    parkour.cfg.command.rest_s = 0.025
    ended, asked = [], []
    for _ in range(3):
        _, _, _, timed_out, _ = env.step(STILL)
        ended.append(bool(timed_out[4]))
        asked.append(float(parkour.commanded_speed[4]))
    parkour.cfg.command.rest_s = 0.0
    # It arrives in the first step and has been there for 30 ms after the third.
    assert ended == [False, False, True]
    assert asked[:2] == [0.0, 0.0]
    assert asked[2] > 0.0  # of the next episode


def test_a_robot_that_is_stopped_goes_to_the_default_pose_whatever_it_wants(env, parkour):
    """As the runtime stops it: by a minimum jerk within 0.3 s."""
    default = parkour.default_joint_pos
    parkour.cfg.command.halt_every_s = 1e9
    parkour.target[4] = default + 0.2
    parkour.stops.halt_s[4], parkour.stops.halted_s[4] = 0.5, 0.0
    away = []
    for _ in range(60):
        env.step(STILL + 0.5)
        away.append(parkour.target[4] - default)
    parkour.cfg.command.halt_every_s = 0.0
    # Half of the way after half of the time: then the whole, until it is let go.
    assert_close(away[14], torch.full((NUM_JOINTS,), 0.1), 1e-4)
    for step in (29, 40, 49):
        assert_close(away[step], torch.zeros(NUM_JOINTS), 1e-4)
    assert float(away[59].min()) > 0.05
    assert float((parkour.target[5] - default).min()) > 0.05  # its neighbour was not stopped


@pytest.fixture
def set_free(parkour):
    """Everyone follows commands from the next reset on."""
    from krabby_trainer.task.free import FreeRobots

    command, before = parkour.cfg.command, parkour.free
    changed = dataclasses.replace(command, free_flat=True, free_share=1.0)
    parkour.free = FreeRobots(changed, parkour.terrain, parkour.ground, parkour.column, "cpu")
    yield lambda: parkour.reset(ALL)
    parkour.free = before


def test_free_robots_are_asked_for_their_command_and_judged_by_it(env, parkour, set_free):
    set_free()
    assert parkour.free.mask.all()
    parkour.free.commands.value[:] = torch.tensor([0.4, -0.2, 0.3])
    parkour.free.commands.left_s[:] = 9.0
    observed = env.step(STILL)[0]
    scales = torch.tensor([0.4, -0.2, 0.3]) / observed["proprio"][0, 6:9]
    assert_close(observed["proprio"][:, 6:9] * scales, torch.tensor([[0.4, -0.2, 0.3]] * N))
    terms = parkour.judge.reward_terms
    for name in ("goal_velocity", "goal_heading", "overspeed"):
        assert terms[name].abs().max() == 0.0
    assert float(terms["track_velocity"].abs().min()) > 0.0
    assert float(terms["track_yaw"].abs().min()) > 0.0
    parkour.stops.pause_s[:] = 1.0
    observed = env.step(STILL)[0]
    assert observed["proprio"][:, 6:9].abs().max() == 0.0
    assert terms["rest_pose"].max() > 0.0
    assert (observed["critic"][:, :5] == 0.0).all()


def test_robots_that_are_not_free_earn_nothing_by_tracking(env, parkour):
    env.step(STILL)
    assert not parkour.free.mask.any()
    assert parkour.judge.reward_terms["track_velocity"].abs().max() == 0.0
    assert float(parkour.judge.reward_terms["goal_heading"].min()) > 0.0


def test_free_robots_stand_where_they_begin_on_obstacles_too(env, parkour, set_free):
    parkour.level[:] = 2
    set_free()
    assert parkour.tile_level.max() <= 2
    parkour.free.commands.left_s[:] = 9.0
    # On level ground within the field, elsewhere at a waypoint of their tile.
    x0, x1, y0, y1 = parkour.free.field
    assert (x0, y0) == (1.5, 6.0 + 1.5)
    parkour.robots.read()
    x, y = parkour.robots.base_pos_w[4:, 0], parkour.robots.base_pos_w[4:, 1]
    assert ((x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)).all()
    points = parkour.ground.waypoints[parkour.tile[:4], :, :2]
    away = (points - parkour.robots.base_pos_w[:4, None, :2]).norm(dim=-1).amin(dim=1)
    assert_close(away, torch.zeros(4), 1e-4)
    for _ in range(80):
        _, _, terminated, timed_out, _ = env.step(STILL)
        assert not (terminated | timed_out).any()


def test_a_free_robot_that_leaves_its_place_has_not_failed(env, parkour, set_free):
    set_free()
    corner = parkour.terrain.corner(int(parkour.tile_level[1]), int(parkour.column[1]))
    put(parkour, 1, (corner[0] + 1.0, corner[1] + 3.05, 0.5))
    put(parkour, 2, (corner[0] - 0.05, corner[1], 0.5))
    parkour.tile_level[2] = parkour.tile_level[1]
    put(parkour, 5, (parkour.free.field[1] + 0.05, parkour.free.field[2] + 1.0, 0.5))
    level = parkour.level.clone()
    _, _, terminated, timed_out, _ = env.step(STILL)
    assert not terminated.any()
    assert torch.nonzero(timed_out).flatten().tolist() == [1, 2, 5]
    assert torch.equal(parkour.level, level)  # courses alone move robots up and down


def test_a_revisit_leaves_the_level_as_it_is(env, parkour):
    send(parkour, level=2, tile_level=0)
    parkour.progress.index[4] = 8
    env.step(STILL)
    assert parkour.level.tolist() == [2] * N
    assert int(parkour.tile_level[4]) == 2


# What is observed.


def test_groups_have_the_sizes_that_networks_expect(env):
    observed, _ = env.reset()
    assert {name: group.shape[1] for name, group in observed.items()} == GROUP_SIZES
    assert all(torch.isfinite(group).all() for group in observed.values())


def test_a_history_begins_with_its_first_frame_and_ends_with_the_newest(env):
    observed, _ = env.reset()
    frames = [observed["proprio"].clone()]
    history = observed["history"].reshape(N, HISTORY, PROPRIO_SIZE)
    assert torch.equal(history, frames[0][:, None].expand(-1, HISTORY, -1))
    for _ in range(3):
        observed = env.step(0.3 * torch.randn(N, NUM_JOINTS))[0]
        frames.append(observed["proprio"].clone())
    history = observed["history"].reshape(N, HISTORY, PROPRIO_SIZE)
    assert torch.equal(history[:, -4:], torch.stack(frames, dim=1))
    assert torch.equal(history[:, -5], frames[0])


def test_a_robot_put_back_forgets_its_history_and_the_others_do_not(env):
    env.step(STILL)
    before = env.step(STILL)[0]
    env.episode_length_buf[3] = 2999
    observed = env.step(STILL)[0]
    history = observed["history"].reshape(N, HISTORY, PROPRIO_SIZE)
    assert torch.equal(history[3], observed["proprio"][3].expand(HISTORY, -1))
    assert torch.equal(history[0, -2], before["proprio"][0])


def test_what_is_done_to_an_observation_does_not_reach_the_next(env, parkour):
    observed = env.step(STILL)[0]
    kept = {name: group.clone() for name, group in parkour.observer.groups.items()}
    for group in observed.values():
        group.fill_(1e6)
    for name, group in parkour.observer.groups.items():
        assert torch.equal(group, kept[name])
    observed = env.step(STILL)[0]
    assert all(float(group.abs().max()) < 1e3 for group in observed.values())


def test_an_observation_stays_what_it_was_when_the_next_one_comes(env):
    observed = env.step(STILL)[0]
    kept = {name: group.clone() for name, group in observed.items()}
    env.step(torch.ones(N, NUM_JOINTS))
    assert all(torch.equal(observed[name], kept[name]) for name in kept)


def test_the_last_action_and_the_speed_asked_for_are_seen(env, parkour):
    action = 0.1 * torch.randn(N, NUM_JOINTS)
    frame = env.step(action)[0]["proprio"]
    # Gyro, gravity and command come first, nine numbers; then angles, speeds and the action.
    assert_close(frame[:, 45:63], action)
    assert (frame[:, 6] <= parkour.speed + 1e-6).all()
    assert (frame[:, 6] > 0.8 * parkour.speed).all()


# Robots that break.


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["velocity", "joint", "action"])
def test_a_robot_whose_state_is_not_finite_begins_anew_and_the_others_go_on(
    env, parkour, place, value
):
    for _ in range(3):
        env.step(STILL)
    assert env.take_broken() is None
    before, action = parkour.episode_steps.clone(), STILL.clone()
    simulation = parkour.robots._simulation
    if place == "velocity":
        simulation.speeds[3, 0] = value
    elif place == "joint":
        simulation.coords[3, 9] = value
    else:
        action[3, 2] = value
    ended = torch.zeros(N, dtype=torch.bool)
    for _ in range(3):
        obs, rewards, terminated, truncated, _ = env.step(action)
        action = STILL
        assert all(group.isfinite().all() for group in obs.values())
        assert rewards.isfinite().all()
        ended |= terminated | truncated
    others = torch.arange(N) != 3
    assert ended[3]
    assert parkour.episode_steps[3] < 3
    assert (parkour.episode_steps == before + 3)[others & ~ended].all()
    assert simulation.coords.isfinite().all()
    broken = env.take_broken()
    assert broken["robot"].tolist() == [3]
    found = torch.cat([broken[f"broken.{key}"] for key in ("joint_q", "joint_qd", "action")], dim=1)
    assert not found.isfinite().all()
    assert broken["before.joint_q"].isfinite().all()
    for _ in range(20):  # nothing of it is left in the solver
        env.step(STILL)
    assert env.take_broken() is None


# Resuming.


def test_a_checkpoint_brings_back_levels_and_bodies(env, parkour):
    from krabby_trainer.task.randomisation import Bodies

    parkour.level.copy_(torch.tensor([2, 1, 0, 2, 1, 0, 2, 1]))
    env.common_step_counter = 12345
    state = copy.deepcopy(env.checkpoint_state())
    parkour.level.zero_()
    env.common_step_counter = 7
    parkour.bodies.copy_(Bodies.draw(parkour.cfg.randomisation, N, "cpu", friction=0.9))
    parkour.robots.write_bodies()
    for _ in range(5):
        env.step(STILL)

    env.load_checkpoint_state(state)
    env.step(STILL)

    assert parkour.level.tolist() == [2, 1, 0, 2, 1, 0, 2, 1]
    assert env.common_step_counter == 12346
    restored = env.checkpoint_state()
    assert restored["types"] == state["types"]
    for name in set(state) - {"steps", "types"}:
        assert torch.equal(restored[name], state[name])
    assert torch.equal(parkour.observer.groups["privileged"], parkour.bodies.privileged(28.6))
    heavy = 10.0 * state["body.mass_factor"] + state["body.added_mass_kg"]
    assert_close(base_of(solver_model().body_mass), heavy[:, 0])


def test_levels_of_fewer_robots_are_repeated_and_cut_to_the_hardest_there_is(env, parkour):
    bodies = {name: value.clone() for name, value in vars(parkour.bodies).items()}
    state = {"level": torch.tensor([0, 1, 9]), "types": ["gap", "flat"], "steps": torch.tensor(5)}
    env.load_checkpoint_state(state)
    assert parkour.level.tolist() == [0, 0, 1, 1, 2, 2, 2, 2]
    for name, value in vars(parkour.bodies).items():
        assert torch.equal(value, bodies[name])


# What can be made.


def test_environments_are_registered_under_their_names(parkour):
    from krabby_trainer.task.isaac import ENV_IDS

    assert set(ENV_IDS) == {"teacher", "student", "play"}
    assert set(ENV_IDS.values()) <= set(gymnasium.registry)


# The last tests take the simulator from the environment above: there is one per process.


@pytest.fixture(scope="module")
def nominal(randomised):
    cfg = configuration()
    cfg.randomisation.enabled = False
    randomised.close()
    env = make(cfg, seed=3)
    yield env.unwrapped
    env.close()


def test_described_robots_stand_for_a_second_at_their_height(nominal):
    parkour = nominal.parkour
    nominal.reset()
    for _ in range(100):
        _, _, terminated, timed_out, _ = nominal.step(STILL)
        assert not (terminated | timed_out).any()
    height = parkour.robots.base_pos_w[:, 2] - parkour.ground.height_at(
        parkour.robots.base_pos_w[:, :2]
    )
    assert float(height.min()) > 0.40
    assert float(height.max()) < 0.44
    assert parkour.judge.foot_contact.all()
    # The legs carry 28.6 kg: 281 N on six feet.
    load = parkour.robots.force_w[:, parkour.robots.feet_sensed, 2].sum(dim=1)
    assert_close(load, torch.full((N,), 28.6 * 9.81), 0.05)


def test_described_robots_see_the_ground_where_they_stand(nominal):
    observed = nominal.step(STILL)[0]
    scan = observed["scan"].reshape(N, 25, 13)
    # Level under all of them, and for the last four everywhere: off by how much they sag.
    assert float(scan[:, 6:11].abs().max()) < 0.02
    assert float(scan[4:].abs().max()) < 0.02
    assert float(observed["privileged"][:, 1:41].abs().max()) == 0.0
