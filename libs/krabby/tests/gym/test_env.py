import itertools
import warnings

import gymnasium
import krabby.gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from krabby.gym import ENV_ID, MAX_EPISODE_STEPS
from krabby.gym.env import PROPRIO
from krabby.gym.rewards import Step, reward_terms
from krabby.policy.bundle import OnnxPolicy, write_bundle
from krabby.robot.description import RobotDescription

STILL = np.zeros(18, np.float32)


@pytest.fixture(autouse=True)
def headless(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")


@pytest.fixture
def make():
    made = []

    def _make(**kwargs):
        made.append(gymnasium.make(ENV_ID, **{"course": "flat", **kwargs}))
        return made[-1]

    yield _make
    for env in made:
        env.close()


@pytest.fixture(scope="module")
def walked():
    """Observation and info of the reset, then of 30 steps of standing, with a camera."""
    env = gymnasium.make(ENV_ID, course="steps", difficulty=0.2, layout=3)
    first = env.reset(seed=1)
    steps = [env.step(STILL) for _ in range(30)]
    yield env, first, steps
    env.close()


def test_gymnasium_s_checker_has_nothing_to_say(make):
    env = make(width=64, height=36)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)


def test_the_id_is_found_through_its_module_and_episodes_last_20_s():
    env = gymnasium.make(f"krabby.gym:{ENV_ID}", course="flat", camera=False)
    env.close()
    assert env.spec.max_episode_steps == MAX_EPISODE_STEPS == 2000
    krabby.gym.register()  # a second time changes nothing
    assert gymnasium.spec(ENV_ID).entry_point == "krabby.gym.env:ParkourEnv"


def test_spaces_are_bounded_and_hold_what_is_observed(walked):
    env, (observation, _), steps = walked
    space = env.observation_space
    assert space["proprio"].shape == (PROPRIO.size,) == (69,)
    assert space["depth"].shape == (58, 87)
    for box in (space["proprio"], space["depth"], env.action_space):
        assert box.is_bounded()
        assert (box.low < box.high).all()
    assert observation in space
    assert all(step[0] in space for step in steps)


def test_it_begins_standing_in_the_default_pose(walked):
    _, (observation, info), _ = walked
    at = PROPRIO.slices
    proprio = observation["proprio"]
    np.testing.assert_allclose(proprio[at["projected_gravity"]], [0, 0, -1], atol=0.05)
    np.testing.assert_allclose(proprio[at["joint_pos_rel"]], 0, atol=0.12)
    np.testing.assert_array_equal(proprio[at["foot_contact"]], 0.5)
    np.testing.assert_allclose(proprio[at["nav_command"]], [0.35, 0, 0], atol=0.02)
    assert (info["waypoint"], info["waypoints"], info["completed"]) == (0, 8, False)
    assert (info["course"], info["layout"]) == ("steps", 3)


def test_a_standing_robot_earns_its_heading_and_pays_for_torque(walked):
    _, _, steps = walked
    _, reward, terminated, truncated, info = steps[-1]
    terms = info["reward_terms"]
    assert not terminated
    assert not truncated
    assert reward == pytest.approx(sum(terms.values()))
    assert terms["goal_heading"] == pytest.approx(0.005, rel=0.02)  # 0.5 a second, nose ahead
    assert abs(terms["goal_velocity"]) < 0.002
    assert terms["torque"] < 0.0
    assert (terms["action_rate"], terms["waypoint"], terms["failed"]) == (0.0, 0.0, 0.0)


def test_depth_images_are_those_of_the_camera_and_get_older_between_two(walked):
    env, (observation, info), steps = walked
    ages = [info["depth_age_s"], *(step[4]["depth_age_s"] for step in steps)]
    camera = RobotDescription.load().camera
    assert min(ages) >= camera.latency_s - camera.latency_jitter_s
    assert max(ages) < 3.0 / camera.rate_hz + camera.latency_s + camera.latency_jitter_s
    assert any(later < earlier for earlier, later in itertools.pairwise(ages))
    # The lower rows see nearer ground than the upper ones.
    assert observation["depth"][-1].mean() < observation["depth"][0].mean()
    assert env.unwrapped.observation_space["depth"].dtype == np.float32


def test_a_seed_gives_the_same_episode_and_another_seed_another_course(make):
    env = make(course="steps", camera=False)
    actions = np.random.default_rng(5).uniform(-0.3, 0.3, (15, 18))

    def episode(seed):
        observation, info = env.reset(seed=seed)
        seen = [observation["proprio"], *(env.step(action)[0]["proprio"] for action in actions)]
        return info["layout"], np.stack(seen)

    (layout, first), (again, second), (other, _) = episode(7), episode(7), episode(8)
    assert layout == again != other
    np.testing.assert_array_equal(first, second)
    assert env.reset()[1]["layout"] != env.reset()[1]["layout"]


def test_actions_ask_for_the_default_pose_plus_their_scale(make):
    env = make(camera=False, action_scale=0.2)
    env.reset(seed=0)
    action = STILL.copy()
    action[0] = 0.5
    for _ in range(60):
        observation = env.step(action)[0]
    desc, robot = RobotDescription.load(), env.unwrapped.robot
    expected = desc.default_joint_pos + 0.1 * (np.arange(18) == 0)  # 0.5 of 0.2 rad
    np.testing.assert_allclose(robot.target, expected, atol=1e-6)
    assert observation["proprio"][PROPRIO.slices["joint_pos_rel"]][0] > 0.02
    assert observation["proprio"][PROPRIO.slices["last_action"]][0] == 0.5


def test_a_robot_that_turns_over_has_failed(make):
    env = make(camera=False)
    env.reset(seed=0)
    world = env.unwrapped.robot.backend.world
    world.push((0.0, 0.0, 4.0))
    world.data.qvel[world.index.base_dof + 3] = 8.0  # rolls by half a turn in the air
    for _ in range(100):
        _, _, terminated, _, info = env.step(STILL)
        if terminated:
            break
    assert terminated
    assert info["failed"]
    assert info["reward_terms"]["failed"] == -2.0
    assert info["reward_terms"]["goal_velocity"] == 0.0


def test_rewards_are_as_worked_by_hand():
    terms = reward_terms(
        Step(
            velocity_xy_w=np.array([0.2, 0.0]),
            yaw=0.0,
            to_goal_w=np.array([3.0, 4.0]),
            speed=0.4,
            torque=np.full(18, 10.0),
            action_change=np.full(18, 0.1),
            waypoints=1,
            failed=False,
        )
    )
    # Along 3/5 of 0.2 m/s: 0.12 of 0.4 is 0.3; 1.5 a second. cos of the bearing is 0.6.
    assert terms["goal_velocity"] == pytest.approx(0.3 * 1.5 * 0.01)
    assert terms["goal_heading"] == pytest.approx(0.6 * 0.5 * 0.01)
    assert terms["torque"] == pytest.approx(-1800 * 1e-5 * 0.01)
    assert terms["action_rate"] == pytest.approx(-0.18 * 0.02 * 0.01)
    assert (terms["waypoint"], terms["failed"]) == (1.0, 0.0)


def test_pictures_show_the_robot_move(make):
    env = make(camera=False, render_mode="rgb_array", width=96, height=54)
    env.reset(seed=0)
    before = env.render()
    assert before.shape == (54, 96, 3)
    assert before.dtype == np.uint8
    for _ in range(30):
        env.step(np.tile([0.0, 0.5, 0.5], 6).astype(np.float32))
    assert (env.render() != before).mean() > 0.01


def test_gymnasium_vectorises_it():
    envs = gymnasium.make_vec(
        ENV_ID, num_envs=2, vectorization_mode="sync", course="flat", camera=False
    )
    try:
        observation, _ = envs.reset(seed=[1, 2])
        assert observation["proprio"].shape == (2, 69)
        observation, rewards, terminated, truncated, _ = envs.step(np.stack([STILL, STILL]))
        assert rewards.shape == (2,)
        assert not (terminated | truncated).any()
    finally:
        envs.close()


def test_a_policy_trained_here_becomes_a_bundle_that_asks_for_the_same_targets(make, tmp_path):
    import onnx
    from onnx import helper, numpy_helper

    env = make(camera=False)
    weights = np.random.default_rng(3).normal(0, 0.1, (69, 18)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["obs", "w"], ["actions"])],
        "linear",
        [helper.make_tensor_value_info("obs", onnx.TensorProto.FLOAT, [1, 69])],
        [helper.make_tensor_value_info("actions", onnx.TensorProto.FLOAT, [1, 18])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    desc = RobotDescription.load()
    manifest = env.unwrapped.manifest("linear")
    bundle = write_bundle(
        tmp_path / "linear", manifest, {"policy.onnx": model.SerializeToString()}, desc
    )
    observation, _ = env.reset(seed=0)
    target = OnnxPolicy(bundle).step(observation["proprio"][None])
    action = (observation["proprio"] @ weights).clip(-1, 1)
    np.testing.assert_allclose(target, desc.default_joint_pos + 0.6 * action, atol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"course": "stpes"}, "did you mean 'steps'"),
        ({"difficulty": 9.0}, "outside 0 to 2.5"),
        ({"render_mode": "ansi"}, "None, 'human' or 'rgb_array'"),
        ({"speed": 2.0}, "0 to 1 m/s"),
        ({"width": 33}, "even numbers from 32"),
    ],
)
def test_wrong_arguments_are_named_with_a_remedy(kwargs, said):
    from krabby.gym.env import ParkourEnv

    with pytest.raises(Exception, match=said):
        ParkourEnv(**kwargs)


def test_a_step_before_the_reset_and_wrong_actions_are_refused(make):
    env = make(camera=False).unwrapped
    with pytest.raises(gymnasium.error.ResetNeeded, match="call reset first"):
        env.step(STILL)
    env.reset(seed=0, options={"course": "gap", "layout": 2})
    for action, said in ((np.zeros(3), r"shape \(18,\)"), (STILL * np.nan, "finite numbers")):
        with pytest.raises(ValueError, match=said):
            env.step(action)
    with pytest.raises(ValueError, match="keys among course, difficulty, layout"):
        env.reset(options={"seed": 1})
