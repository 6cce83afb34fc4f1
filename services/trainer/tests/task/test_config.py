"""The environments that are published and looked at."""

import pytest
from krabby_trainer.task.config import RewardCfg, TerrainCfg, evaluation_env, play_env, teacher_env

TRUE_RANGES = {
    "added_mass_kg": [0.0, 0.0],
    "mass_factor": [1.0, 1.0],
    "com_offset_m": [0.0, 0.0],
    "gain_factor": [1.0, 1.0],
    "command_delay": [0.8, 0.8],
}
NOISES = [
    *("joint_pos_bias", "gyro_bias", "scan_bias_m"),
    *("joint_pos_noise", "joint_vel_noise", "gyro_noise", "gravity_noise", "scan_noise_m"),
]


def test_evaluation_varies_friction_pushes_and_speed_alone():
    cfg = evaluation_env()
    randomisation = cfg.randomisation
    assert randomisation.enabled
    assert randomisation.friction == [0.6, 1.2]
    assert randomisation.push_speed > 0.0
    for name, bounds in TRUE_RANGES.items():
        assert getattr(randomisation, name) == bounds
    assert [getattr(randomisation, name) for name in NOISES] == [0.0] * len(NOISES)


def test_evaluation_follows_the_published_rule():
    cfg = evaluation_env(difficulty=(0.2, 0.9), seed=5)
    assert (cfg.command.reach_m, cfg.command.dwell_s, cfg.command.pass_width_m) == (0.2, 0.1, 0.0)
    assert not cfg.curriculum.enabled
    assert cfg.terrain.random_difficulty
    assert (cfg.terrain.difficulty_low, cfg.terrain.difficulty_high) == (0.2, 0.9)
    assert cfg.terrain.seed == 5


@pytest.mark.parametrize(
    ("num_envs", "types", "levels", "columns"),
    [
        (256, None, 8, 32),  # 64 tiles for each of 4 types
        (64, None, 8, 8),
        (1024, None, 8, 32),
        (8, ["flat"], 8, 1),
        (4, None, 1, 4),
        (2, ["steps", "gap", "hurdle"], 1, 3),
    ],
)
def test_evaluated_robots_have_a_tile_of_their_own_up_to_64_a_type(
    num_envs, types, levels, columns
):
    terrain = evaluation_env(num_envs=num_envs, types=types).terrain
    assert (terrain.levels, terrain.columns) == (levels, columns)
    assert sum(terrain.shares) == pytest.approx(1.0)
    assert len(terrain.types) == len(terrain.shares) == len(types or [1] * 4)


def test_play_disturbs_nothing():
    assert play_env().num_envs == 16
    assert not play_env().randomisation.enabled


def test_environments_share_no_lists():
    one, other = teacher_env(), teacher_env()
    one.terrain.types.append("stairs")
    one.randomisation.friction[0] = 9.0
    assert other.terrain == TerrainCfg()
    assert other.randomisation.friction == [0.5, 1.25]


def test_penalties_have_negative_weights():
    earned = {name for name, weight in vars(RewardCfg()).items() if weight > 0.0}
    assert earned == {"goal_velocity", "goal_heading"}
    costs = {name for name, weight in vars(RewardCfg()).items() if weight < 0.0}
    assert costs.isdisjoint({"track_velocity", "track_yaw"})
