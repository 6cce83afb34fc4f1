"""A control step: what a reset changes, and that nothing in it waits for the device."""

from __future__ import annotations

import pytest
import torch
from krabby_trainer.host_reads import HostReads
from krabby_trainer.task.config import CommandCfg, EnvCfg, TerrainCfg

pytestmark = pytest.mark.isaac

N = 16
GPU = pytest.param(
    "cuda:0",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ],
)


@pytest.fixture(scope="module", params=["cpu", GPU])
def env(request):
    """Everything that draws is on; episodes of half a second, pushes every 0.1 to 0.3 s."""
    from krabby_trainer.task.isaac import make_env

    command = CommandCfg(free_flat=True, free_share=0.3, halt_every_s=1.0, pause_share=0.2)
    cfg = EnvCfg(num_envs=N, episode_s=0.5, command=command)
    cfg.terrain = TerrainCfg(types=["gap", "flat"], shares=[1.0, 1.0], levels=3, columns=4)
    cfg.randomisation.push_interval_s = [0.1, 0.3]
    wrapped = make_env(cfg, device=request.param, seed=3)
    yield wrapped
    wrapped.close()


@pytest.fixture
def parkour(env):
    return env.unwrapped.parkour


def chosen(parkour, *robots):
    mask = torch.zeros(N, dtype=torch.bool, device=parkour.device)
    mask[list(robots)] = True
    return mask


def kept(parkour):
    """All state of an episode by name, (N, ...)."""
    state = {
        name: v.clone() for name, v in vars(parkour).items() if torch.is_tensor(v) and len(v) == N
    }
    for part in (parkour.progress, parkour.stops, parkour.free, parkour.free.commands):
        state |= {
            f"{type(part).__name__}.{name}": value.clone()
            for name, value in vars(part).items()
            if torch.is_tensor(value) and value.shape[:1] == (N,)
        }
    robots = parkour.robots
    for name in ("base_pos_w", "base_quat_w", "joint_pos", "joint_vel", "soles_w"):
        state[name] = getattr(robots, name).clone()
    state["body_velocity"] = simulated("body_qd").clone()
    return state


def simulated(name):
    """One of Newton's arrays, by robot."""
    import warp
    from isaaclab_newton.physics import NewtonManager

    values = warp.to_torch(getattr(NewtonManager.get_state_0(), name))
    return values.view(N, -1)


def walk(env, steps):
    """Random actions; how many episodes ended."""
    ended = torch.zeros((), device=env.device)
    for _ in range(steps):
        ended += env.step(0.5 * torch.randn(N, 18, device=env.device))[2].sum()
    return int(ended)


def test_a_step_reads_nothing_from_the_device(env):
    walk(env, 8)  # the first calls make what the others rewrite
    cuda = env.device.startswith("cuda")
    with HostReads() as reads:
        if cuda:
            torch.cuda.set_sync_debug_mode("error")
        try:
            actions = [0.5 * torch.randn(N, 18, device=env.device) for _ in range(60)]
            ended = torch.stack([env.step(action)[2] for action in actions])
        finally:
            if cuda:
                torch.cuda.set_sync_debug_mode("default")
    assert not reads.places
    assert int(ended.sum()) >= N  # episodes, pushes and logs were among them


def test_a_reset_leaves_the_other_robots_as_they_are(env, parkour):
    walk(env, 30)
    before = kept(parkour)
    parkour.advance_curriculum(chosen(parkour, 1, 4, 15))
    parkour.reset(chosen(parkour, 1, 4, 15))
    others = ~chosen(parkour, 1, 4, 15)
    for name, value in kept(parkour).items():
        assert torch.equal(value[others], before[name][others]), name


def test_a_reset_puts_the_robots_that_it_names_on_their_start(env, parkour):
    walk(env, 30)
    which = chosen(parkour, 0, 6, 7)
    parkour.free.mask.zero_()
    some, parkour.free.some = parkour.free.some, False
    parkour.reset(which)
    parkour.free.some = some
    robots = parkour.robots
    away = robots.base_pos_w[which, :2] - parkour.ground.spawn[parkour.tile[which]]
    assert float(away.abs().max()) <= 0.3
    assert float(away.abs().max()) > 0.0
    height = robots.base_pos_w[which, 2] - parkour.ground.height_at(robots.base_pos_w[which, :2])
    torch.testing.assert_close(height, torch.full_like(height, 0.46))
    # Heads within 0.3 rad of straight on, joints within 0.1 rad of the default pose, all at rest.
    assert float(2.0 * torch.asin(robots.base_quat_w[which, 2]).abs().max()) <= 0.3 + 1e-6
    bent = robots.joint_pos[which] - parkour.default_joint_pos
    assert float(bent.abs().max()) <= 0.1 + 1e-6
    assert torch.equal(parkour.target[which], robots.joint_pos[which])
    assert float(robots.joint_vel[which].abs().max()) == 0.0
    assert float(simulated("body_qd")[which].abs().max()) == 0.0
    for zeroed in ("action", "previous_action", "mean_square", "episode_steps"):
        assert float(getattr(parkour, zeroed)[which].abs().max()) == 0.0
    assert bool(parkour.fresh[which].all())
    # Bodies follow: the soles are under the base, not where the robots were.
    middle = robots.soles_w[which, :, :2].mean(dim=1) - robots.base_pos_w[which, :2]
    assert float(middle.norm(dim=-1).max()) < 0.2


def test_a_push_changes_the_velocity_of_those_whose_push_is_due(env, parkour):
    walk(env, 3)
    parkour.push_in_s.fill_(10.0)
    parkour.push_in_s[[2, 9]] = 0.05
    before = simulated("joint_qd").clone()
    parkour.push()
    change = simulated("joint_qd") - before
    assert change[:, :2].any(dim=1).nonzero()[:, 0].tolist() == [2, 9]
    assert float(change[:, :2].abs().max()) <= 0.5 + 1e-6
    assert float(change[:, 2:].abs().max()) == 0.0
    assert float(parkour.push_in_s[2]) <= 0.3


def test_velocities_are_those_that_isaac_lab_derives(env, parkour):
    walk(env, 5)
    parkour.robots.read()
    data, robots = parkour.robots.articulation.data, parkour.robots
    env.unwrapped.scene.update(dt=0.01)
    for ours, theirs in (
        (robots.base_lin_vel_w, data.root_link_lin_vel_w),
        (robots.base_lin_vel_b, data.root_link_lin_vel_b),
        (robots.base_ang_vel_b, data.root_link_ang_vel_b),
        (robots.base_pos_w, data.root_link_pos_w),
        (robots.base_quat_w, data.root_link_quat_w),
        (robots.joint_pos, data.joint_pos),
        (robots.joint_vel, data.joint_vel),
        (robots.soles_w[..., :2], data.body_link_pos_w.torch[:, robots._feet, :2]),
        (robots.torque, robots.articulation.actuators.applied_effort),
    ):
        theirs = theirs if torch.is_tensor(theirs) else theirs.torch
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_reward_is_the_weighted_sum_of_the_terms(env, parkour):
    reward = env.step(torch.randn(N, 18, device=env.device))[1]
    weights = vars(parkour.cfg.reward)
    terms = parkour.judge.reward_terms
    wanted = sum(0.01 * weights[name] * value for name, value in terms.items())
    torch.testing.assert_close(reward, wanted, rtol=1e-5, atol=1e-6)


def test_observations_are_views_of_nothing_that_the_next_step_writes(env):
    observed = env.step(torch.zeros(N, 18, device=env.device))[0]
    before = {name: value.clone() for name, value in observed.items()}
    walk(env, 2)
    assert all(torch.equal(observed[name], value) for name, value in before.items())


def test_episode_lengths_set_from_outside_are_those_that_count(env, parkour):
    env.episode_length_buf = torch.full((N,), 49, device=env.device)
    assert parkour.episode_steps.tolist() == [49] * N
    truncated = env.step(torch.zeros(N, 18, device=env.device))[3]["time_outs"]
    assert bool(truncated.all())
    assert parkour.episode_steps.tolist() == [0] * N


def test_a_robot_whose_state_is_not_finite_begins_again_and_is_kept(env, parkour):
    walk(env, 3)
    parkour.broken.take()
    parkour.push_in_s.fill_(100.0)
    level = parkour.level.clone()
    simulated("joint_qd")[5, 7] = torch.nan
    observed, reward, ended, _ = env.step(torch.zeros(N, 18, device=env.device))
    assert parkour.judge.terminated.nonzero()[:, 0].tolist() == [5]
    assert bool(ended[5])
    assert all(bool(group.isfinite().all()) for group in observed.values())
    assert bool(reward.isfinite().all())
    assert float(parkour.judge.reward_terms["fall"][5]) == 1.0
    found = env.unwrapped.take_broken()
    assert found is not None
    assert found["robot"].tolist() == [5]
    assert bool(found["before.joint_q"].isfinite().all())
    assert not bool(found["broken.joint_q"].isfinite().all())
    assert env.unwrapped.take_broken() is None
    # What the solver keeps from step to step is clean too.
    for _ in range(5):
        observed = env.step(torch.zeros(N, 18, device=env.device))[0]
    assert all(bool(group.isfinite().all()) for group in observed.values())
    assert env.unwrapped.take_broken() is None
    assert torch.equal(parkour.level[:5], level[:5])
