"""Overrides: what is typed is taken, what is mistyped is refused by name."""

from __future__ import annotations

import pytest
from krabby.course.courses import COURSES
from krabby_trainer.errors import ConfigError
from krabby_trainer.learn.config import OBS_GROUPS
from krabby_trainer.run.config import (
    TrainCfg,
    choices,
    compose,
    continue_from,
    from_dict,
    read_config,
    rsl_rl_config,
    to_dict,
    to_yaml,
)
from krabby_trainer.task.config import EnvCfg
from krabby_trainer.task.terrain import Terrain


def test_defaults_are_those_of_the_dataclasses():
    assert compose() == TrainCfg()


def test_overrides_reach_every_depth():
    cfg = compose(
        [
            "env.num_envs=8192",
            "agent.algorithm.gamma=0.99",
            "seed=3",
            "device=cuda:1",
            "env.terrain.types=[gap,steps]",
            "env.randomisation.friction=[0.4,1]",
            "run.dir=/tmp/with space",
        ]
    )
    assert cfg.env.num_envs == 8192
    assert cfg.agent.algorithm.gamma == 0.99
    assert (cfg.seed, cfg.device) == (3, "cuda:1")
    assert cfg.env.terrain.types == ["gap", "steps"]
    assert cfg.env.randomisation.friction == [0.4, 1.0]
    assert cfg.run.dir == "/tmp/with space"
    assert isinstance(cfg.env, EnvCfg)


def test_what_is_typed_wins_over_a_preset_wherever_it_stands():
    assert compose(["env.num_envs=7", "size=small"]).env.num_envs == 7
    assert compose(["size=small"]).env.num_envs < 100


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("env.num_env=3", "did you mean env.num_envs?"),
        ("num_envs=3", "did you mean env.num_envs?"),
        ("agent.algorithm.gama=1", "did you mean agent.algorithm.gamma?"),
        ("max_iteration=1", "did you mean agent.max_iterations?"),
        ("env.num_envs.x=1", "env.num_envs is a value"),
        ("zzz=1", "valid are task, robot, seed"),
        ("env.num_envs=many", "env.num_envs=many: expected `int`, got `str`"),
        ("env.terrain.types=gap", "env.terrain.types"),
        ("seed=-1", "seed=-1"),
        ("env.command.pause_share=1", "env.command.pause_share=1: expected `float` < 1.0"),
        ("env.command.rest_s=-2", "env.command.rest_s=-2: expected `float` >= 0.0"),
        ("env.command.halt_every_s=-1", "env.command.halt_every_s=-1: expected"),
        ("env.command.halt_s=[2,1]", "[low, high], above 0"),
        ("env.randomisation.mass_factor=[0,1]", "mass_factor=[0.0, 1.0] is out of range"),
        ("env.command.free_share=2", "free_share=2: expected `float` <= 1.0"),
        ("env.command.free_vx=[1,0]", "env.command.free_vx=[1.0, 0.0]"),
        ("env.command.redraw_s=[0,1]", "at least a control step"),
        ("device=gpu", "cuda:<number>"),
        ("agent.algorithm.gamma=2", "agent.algorithm.gamma=2: expected `float` <= 1.0"),
        (
            "agent.algorithm.schedule=linear",
            "agent.algorithm.schedule=linear: expected adaptive, fixed",
        ),
        ("run.keep=0", "keep=0"),
        ("run.name=a/b", "run.name=a/b: expected `str` matching"),
        ("task=teachr", "did you mean teacher?"),
        ("size=huge", "there are full, small"),
        ("+env.x=1", "neither added nor removed"),
        ("~env.num_envs=1", "neither added nor removed"),
        ("seed=1,2", "`python -m krabby_trainer sweep seed=1,2` starts one run for each"),
        ("seed", "write dotted.key=value"),
        ("run.resume=a=b", "quote a value with"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(typed, says):
    with pytest.raises(ConfigError) as caught:
        compose([typed])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_stops_are_refused_where_no_robot_is_stopped():
    with pytest.raises(ConfigError, match=r"\['rest_s'\] and MuJoCo has neither stops"):
        compose(["task=distill", "env.physics.backend=mujoco", "env.command.rest_s=1"])


def test_free_robots_need_level_ground_and_isaac_lab():
    with pytest.raises(ConfigError, match=r"types=\['gap'\] has no flat"):
        compose(["commands=flat", "env.terrain.types=[gap]"])
    with pytest.raises(ConfigError, match=r"\['free_share'\] and MuJoCo has neither stops"):
        compose(["task=distill", "env.physics.backend=mujoco", "env.command.free_share=0.5"])


def test_commands_in_every_direction_come_in_two_steps_on_top_of_sparing_motion():
    first = compose(["motion=sparing", "commands=flat"]).env
    on = continue_from(to_dict(compose(["motion=sparing"])), ["commands=everywhere"]).env
    assert (first.command.free_flat, first.command.free_share) == (True, 0.0)
    assert (on.command.free_flat, on.command.free_share) == (True, 0.33)
    assert on.reward == first.reward
    assert (on.reward.track_velocity, on.reward.power) == (1.5, -1e-3)
    plain = compose().env
    assert not plain.command.free_flat
    assert (plain.reward.track_velocity, plain.reward.track_yaw) == (0.0, 0.0)


def test_stops_are_taught_to_a_new_run_and_to_one_that_goes_on():
    new = compose(["stops=taught", "env.command.rest_s=3"])
    on = continue_from(to_dict(compose()), ["stops=taught"])
    assert (new.env.command.halt_every_s, new.env.command.rest_s) == (10.0, 3.0)
    assert (on.env.command.halt_every_s, on.env.command.rest_s) == (10.0, 2.0)
    assert compose().env.command.halt_every_s == 0.0


def test_rough_pictures_are_a_preset_for_both_stages_of_a_student():
    for task in ("distill", "student"):
        usual = compose([f"task={task}"]).env.camera.errors
        assert (usual.outage_s, usual.oldest_s) == ([0.05, 0.3], 0.0)
        rough = compose([f"task={task}", "pictures=rough"]).env.camera.errors
        assert (rough.outage_s, rough.latency_s) == ([0.1, 2.0], [0.02, 0.5])
        assert rough.oldest_s == 1.0
        assert rough.noise_rel == usual.noise_rel


def test_sparing_motion_is_a_preset_and_changes_nothing_unasked():
    env, plain = compose(["motion=sparing"]).env, compose().env
    assert (env.num_envs, env.randomisation.mass_factor) == (16384, [0.9, 1.6])
    changed = {key for key, value in vars(env.reward).items() if value != vars(plain.reward)[key]}
    assert {key: vars(env.reward)[key] for key in changed} == {
        "feet_high": -0.6, "power": -1e-3, "action_rate": -0.02,
    }  # fmt: skip
    new = ("feet_high", "power", "joint_acceleration", "joint_limits", "contact_force")
    assert [vars(plain.reward)[key] for key in new] == [0.0] * 5
    assert compose(["motion=sparing", "size=small"]).env.num_envs == 32


def test_the_drivable_teacher_is_made_of_presets():
    cfg = compose(["terrain=wild", "motion=upright", "commands=drive"])
    env = cfg.env
    assert (env.num_envs, env.grounded_s, env.randomisation.mass_factor) == (16384, 0.5, [0.9, 1.2])
    assert (env.command.free_flat, env.command.free_share, env.command.pause_share) == (
        True, 0.25, 0.08,
    )  # fmt: skip
    assert (env.reward.crouch, env.reward.track_velocity) == (-4.0, 3.0)
    assert cfg.agent.algorithm.symmetry.mirror_loss_coeff == 1.0
    assert compose().env.grounded_s == 0.0


def test_the_wild_terrain_has_every_family_that_is_not_held_out():
    cfg = compose(["terrain=wild"]).env.terrain
    held_out = {"spiral", "gap-45"}
    left_out = {"demo", "field"}  # fixed; too large for a tile
    assert set(cfg.types) == set(COURSES) - held_out - left_out
    cfg.levels, cfg.columns = 2, len(cfg.types)
    assert len(Terrain(cfg).courses[0]) == len(cfg.types)
    assert compose(["terrain=wild", "commands=flat"]).env.terrain.shares == cfg.shares


def test_every_preset_composes():
    for group, names in choices().items():
        for name in names:
            assert isinstance(compose([f"{group}={name}"]), TrainCfg)


def test_nothing_is_written_and_nothing_changed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compose(["seed=4"])
    assert not any(tmp_path.iterdir())


def test_checkpoints_configuration_comes_back(tmp_path):
    cfg = compose(["size=small", "agent.actor.hidden_dims=[64,32]", "run.name=x"])
    assert from_dict(to_dict(cfg)) == cfg
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(cfg))
    assert from_dict(read_config(path)) == cfg


def test_resumed_run_takes_what_is_typed_on_top():
    saved = to_dict(compose(["size=small", "seed=9"]))
    cfg = continue_from(saved, ["agent.max_iterations=77", "run.keep=9"])
    assert (cfg.agent.max_iterations, cfg.run.keep, cfg.seed) == (77, 9, 9)
    assert cfg.env.num_envs == saved["env"]["num_envs"]


def test_a_key_outranks_a_preset_wherever_it_is_typed():
    key, preset = "env.command.free_share=0.5", "commands=everywhere"
    for typed in ([key, preset], [preset, key]):
        assert compose(typed).env.command.free_share == 0.5
        assert continue_from(to_dict(compose()), typed).env.command.free_share == 0.5


def test_configuration_of_an_older_version_loses_what_is_gone():
    saved = to_dict(compose())
    saved["gone"] = 1
    saved["env"]["terrain"]["gone"] = [1]
    del saved["agent"]["algorithm"]["gamma"]
    assert from_dict(saved) == TrainCfg()


def test_other_task_than_the_checkpoints_is_refused():
    saved = to_dict(compose()) | {"task": "student"}
    with pytest.raises(ConfigError, match="the checkpoint is of task=student"):
        continue_from(saved, ["task=teacher"])


def test_agent_as_rsl_rl_takes_it():
    made = rsl_rl_config(compose(["agent.actor.min_std=0.3", "agent.num_steps_per_env=48"]))
    assert made["num_steps_per_env"] == 48
    assert made["actor"]["distribution_cfg"]["std_range"] == (0.3, 1.2)
    assert made["obs_groups"] == OBS_GROUPS
    assert made["algorithm"]["symmetry_cfg"]["use_mirror_loss"] is True
    off = compose(["agent.algorithm.symmetry.use_mirror_loss=false"])
    assert rsl_rl_config(off)["algorithm"]["symmetry_cfg"] is None
