"""What Isaac Lab is told of the robot, and what is said where it cannot run."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch
from krabby.config import load
from krabby.isaac import environment, scene
from krabby.isaac.environment import require_isaaclab
from krabby.isaac.errors import IsaacUnavailable
from krabby.robot.assets import robot_dir
from krabby.robot.description import RobotDescription
from krabby_sim_hal.config import SimHalCfg
from krabby_sim_hal.service import SimHal
from krabby_trainer.errors import MissingDependency
from krabby_trainer.task.config import PhysicsCfg

ROBOT = RobotDescription.load()


def test_another_python_is_refused_with_the_way_to_the_right_one(monkeypatch):
    other = SimpleNamespace(version_info=(3, 11, 9), version="3.11.9 (main, Apr 2 2024)")
    monkeypatch.setattr(environment, "sys", other)
    with pytest.raises(MissingDependency, match=r"needs Python 3\.12 and this is 3\.11\.9.*make"):
        require_isaaclab("training", MissingDependency)


def test_a_missing_simulator_is_refused_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        MissingDependency, match=r"Isaac Lab 3\.0\.0, which is not installed.*train-s"
    ):
        require_isaaclab("training", MissingDependency)


@pytest.mark.parametrize(("physics", "remedy"), [("physx", "--extra physx"), ("isaacsim", "6.2")])
def test_physics_that_is_not_installed_is_refused_with_the_way_to_get_it(
    physics, remedy, monkeypatch
):
    package = environment.DISTRIBUTIONS[physics]
    found = importlib.util.find_spec
    monkeypatch.setattr(
        environment.importlib.util,
        "find_spec",
        lambda name: None if name == package else found(name),
    )
    cfg = load(SimHalCfg, None, ["backend=isaaclab", f"isaac.physics={physics}"])
    with pytest.raises(IsaacUnavailable, match=f"isaac.physics={physics} needs {package}") as said:
        SimHal(cfg)
    assert remedy in str(said.value)


def test_arrays_are_seen_through_their_torch_view():
    values = torch.arange(3.0)
    assert scene.tensor(SimpleNamespace(torch=values)) is values
    assert scene.tensor(values) is values


@pytest.mark.isaac
def test_the_articulation_is_the_robot_described():
    cfg = scene.articulation_cfg(ROBOT, base_height_m=0.46)
    assert cfg.spawn.usd_path == str(robot_dir() / "crab_hex.usda")
    assert cfg.joint_ordering == list(ROBOT.joint_names)
    assert cfg.init_state.pos == (0.0, 0.0, 0.46)
    assert cfg.init_state.joint_pos["rr_knee"] == -1.95
    drives = cfg.actuators["drives"]
    assert drives.saturation_effort == drives.actuator_effort_limit
    assert drives.actuator_effort_limit == dict.fromkeys(ROBOT.joint_names, 120.0)
    assert drives.actuator_velocity_limit == dict.fromkeys(ROBOT.joint_names, 20.0)
    assert drives.armature == dict.fromkeys(ROBOT.joint_names, 0.05)
    assert set(drives.stiffness) == set(drives.damping) == set(ROBOT.joint_names)
    assert (drives.stiffness["lf_knee"], drives.damping["lf_knee"]) == (250.0, 10.0)


@pytest.mark.isaac
@pytest.mark.parametrize(("physics", "of"), [("physx", "OvPhysx"), ("isaacsim", "Physx")])
def test_physx_is_configured_as_the_library_or_as_isaac_sims(physics, of):
    assert type(scene.physics_cfg(PhysicsCfg(), physics)).__name__ == f"{of}Cfg"


@pytest.mark.isaac
def test_the_solver_is_given_the_configured_bounds():
    cfg = scene.physics_cfg(
        PhysicsCfg(iterations=7, ls_iterations=9, max_constraints=300, max_contacts=80)
    )
    solver = cfg.solver_cfg
    assert (solver.iterations, solver.ls_iterations) == (7, 9)
    assert (solver.njmax, solver.nconmax) == (300, 80)
    assert not solver.use_mujoco_contacts
