"""sim-hal on Isaac Lab: physics against numbers worked by hand, the wire, and a whole run.

One simulation of two robots on flat ground serves all tests but the last; the second is published.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from krabby.config import load
from krabby.course.courses import make_course
from krabby.course.progress import Pose2
from krabby.hal.measurement import Measurement
from krabby.isaac import simulator as simulator_module
from krabby.isaac import world as world_module
from krabby.isaac.config import IsaacCfg, SolverCfg
from krabby.isaac.world import IsaacWorld
from krabby.mujoco.config import DegradeCfg
from krabby.mujoco.degrade import degraded
from krabby.robot.description import RobotDescription
from krabby.runtime.testing import free_ports, running
from krabby.safety.gate import DriveCommand, DriveMode, SafetyState
from krabby_proto.conformance import check_hal
from krabby_sim_hal.config import SimHalCfg
from krabby_sim_hal.service import SimHal

pytestmark = pytest.mark.isaac

ROOT = Path(__file__).resolve().parents[4]
DESC = RobotDescription.load()
HALF = 0.0025
G = 9.81


@pytest.fixture(scope="module")
def simulator():
    built = simulator_module.Simulator(
        DESC, DESC, make_course("flat"), SolverCfg(), robots=2, device="cpu"
    )
    yield built
    built.close()


@pytest.fixture
def shared(simulator, monkeypatch):
    """Worlds that are built in this test take over the one simulation there is."""
    monkeypatch.setattr(world_module, "Simulator", lambda *args, **keys: simulator)
    monkeypatch.setattr(simulator, "close", lambda: None)


@pytest.fixture
def world(shared):
    world = IsaacWorld(DESC, make_course("flat"), cfg=IsaacCfg(robots=2, published=1))
    world.place(Pose2(*make_course("flat").spawn), DESC.default_joint_pos)
    world.start()
    return world


def drive(target=DESC.default_joint_pos, *, stiff=1.0, limit=DESC.peak_torque):
    return DriveCommand(
        DriveMode.POSITION if stiff else DriveMode.DAMP,
        np.array(target, dtype=float),
        stiff * DESC.kp * np.ones(18),
        DESC.kd * np.ones(18),
        np.broadcast_to(limit, 18).astype(float),
    )


def pass_time(world, seconds, *commands):
    """Take the same commands, one after the other, for the halves of every step."""
    for i in range(round(seconds / HALF)):
        world.substep(commands[i % len(commands)])


def measured(world):
    into = Measurement(18, 6)
    world.measure(into)
    return into


# --- physics ---------------------------------------------------------------------------------


def test_the_feet_of_a_standing_robot_carry_its_weight(world):
    pass_time(world, 1.0, drive())
    carried = []
    for _ in range(20):
        pass_time(world, 0.01, drive())
        carried.append(world.data.sensordata[world.index.foot_touch].sum())
    assert np.mean(carried) == pytest.approx(28.6 * G, rel=0.01)
    into = measured(world)
    assert into.foot_contact.tolist() == [1.0] * 6
    assert into.base_quat_w == pytest.approx([0.0, 0.0, 0.0, 1.0], abs=0.02)
    assert world.sim_time_s == pytest.approx(1.2)


def test_at_rest_the_accelerometer_shows_gravity(world):
    pass_time(world, 1.0, drive())
    measured(world)
    pass_time(world, 0.5, drive())
    assert measured(world).base_lin_acc_b == pytest.approx([0.0, 0.0, G], abs=0.1)


def test_torque_is_what_the_law_says_of_the_state_before_the_step(world):
    rng = np.random.default_rng(1)
    target = DESC.default_joint_pos + rng.uniform(-0.1, 0.1, 18)
    pass_time(world, 0.05, drive(target))
    angle, speed = world.joint_pos, world.joint_vel
    measured(world)
    pass_time(world, 2 * HALF, drive(target))
    # 250 N·m/rad and 10 N·m·s/rad, within 120 N·m.
    law = np.clip(250.0 * (target - angle) - 10.0 * speed, -120.0, 120.0)
    assert np.abs(law).max() < 100.0
    assert measured(world).joint_effort == pytest.approx(law, abs=0.01)


def test_a_command_that_changes_within_a_step_acts_for_its_share(world):
    pass_time(world, 0.2, drive())
    angle, speed = world.joint_pos, world.joint_vel
    measured(world)
    lifted = DESC.default_joint_pos + 0.04
    pass_time(world, 2 * HALF, drive(), drive(lifted))
    law = 250.0 * (DESC.default_joint_pos + 0.02 - angle) - 10.0 * speed
    assert measured(world).joint_effort == pytest.approx(law, abs=0.01)


def test_limp_drives_damp_and_the_effort_limit_holds(world):
    pass_time(world, 0.1, drive(stiff=0.0))
    speed = world.joint_vel
    assert np.abs(speed).max() > 0.5  # it falls
    measured(world)
    pass_time(world, 2 * HALF, drive(stiff=0.0))
    assert measured(world).joint_effort == pytest.approx(-10.0 * speed, abs=0.01)
    pass_time(world, 2 * HALF, drive(DESC.default_joint_pos + 1.0, limit=5.0))
    assert measured(world).joint_effort == pytest.approx(np.full(18, 5.0), abs=1e-4)
    # Two of four substeps held a position, and all 18 drives gave all they had.
    assert world.saturated.min() >= 1


def test_the_body_touches_the_ground_when_the_legs_give_way(world):
    assert not world.base_contact()
    pass_time(world, 1.5, drive(stiff=0.0))
    assert world.base_contact()
    assert world.base_pos_w[2] < 0.25
    world.place(Pose2(2.0, 0.5, 1.0), DESC.default_joint_pos)
    assert not world.base_contact()
    pass_time(world, 0.01, drive())
    assert world.base_pos_w[:2] == pytest.approx([2.0, 0.5], abs=0.01)
    assert world.base_quat_w[2:] == pytest.approx([np.sin(0.5), np.cos(0.5)], abs=0.01)


def test_robots_that_are_told_the_same_do_the_same(world, simulator):
    target = DESC.default_joint_pos + np.random.default_rng(2).uniform(-0.2, 0.2, 18)
    pass_time(world, 0.5, drive(target))
    one, two = simulator.state(0), simulator.state(1)
    assert one.joint_pos == pytest.approx(two.joint_pos, abs=1e-4)
    assert world.joint_pos == pytest.approx(two.joint_pos, abs=1e-12)


def test_a_step_that_is_replayed_writes_the_same_numbers(world, simulator):
    from isaaclab_newton.physics import NewtonManager

    target = DESC.default_joint_pos + np.random.default_rng(3).uniform(-0.2, 0.2, 18)
    replayed = vars(NewtonManager)["_simulate_full"]
    assert isinstance(replayed, staticmethod)
    trajectories = []
    for plain in (False, True):
        world.place(Pose2(1.0, 0.0, 0.0), DESC.default_joint_pos)
        if plain:
            simulator._undo.close()
            function = vars(NewtonManager)["_simulate_full"]
            simulator._undo.callback(setattr, NewtonManager, "_simulate_full", function)
        try:
            pass_time(world, 0.1, drive(target))
        finally:
            NewtonManager._simulate_full = replayed
        trajectories.append(world.state_bytes())
    assert trajectories[0] == trajectories[1]


def test_what_was_degraded_reaches_physics(shared, simulator):
    from krabby.isaac.robots import Bodies

    actual = degraded(DESC, DegradeCfg(mass_factor=1.2, payload_kg=3.0, motor_strength=0.5))
    bodies = Bodies.of(DESC, actual, 2, "cpu")
    described = Bodies.of(DESC, DESC, 2, "cpu")
    for given in (bodies, described):
        simulator.robots.bodies = given
        simulator.robots.write_bodies()
        if given is bodies:
            assert simulator.robots.weight_n[1] / G == pytest.approx(1.2 * 28.6 + 3.0, rel=1e-4)
    assert simulator.robots.weight_n[1] / G == pytest.approx(28.6, rel=1e-4)


# --- the wire --------------------------------------------------------------------------------


def service_of(*texts):
    """sim-hal on the simulation of these tests, and its endpoints."""
    names = ("state", "camera", "command", "safety", "truth", "nav")
    ports = free_ports(len(names))
    endpoints = {name: f"tcp://127.0.0.1:{port}" for name, port in zip(names, ports, strict=True)}
    keys = [f'endpoints.{name}="{place}"' for name, place in endpoints.items()]
    keys += ["backend=isaaclab", "isaac.robots=2", "isaac.published=1", *texts]
    return SimHal(load(SimHalCfg, None, keys)), endpoints


def test_it_passes_the_conformance_check_and_stays_disarmed(shared):
    service, endpoints = service_of("mission.enabled=false")
    with running(service):
        results = check_hal(endpoints)
    # How regular the state is, and how old a command, depends on what else this machine does.
    failed = {each.name: each.detail for each in results if not each.passed}
    if "rejected_stale" in failed.get("repeated sequence", ""):
        del failed["repeated sequence"]
    assert failed.keys() <= {"state rate", "state age"}, failed
    assert service.handler.gate.state is SafetyState.DISARMED


def test_the_camera_sees_what_it_sees_in_mujoco_from_the_same_pose(shared):
    service, _ = service_of("course.name=flat", "spawn=standing")
    twin = SimHal(load(SimHalCfg, None, ["spawn=standing"]))
    service.sim.world.start()
    pass_time(service.sim.world, 0.5, drive())
    theirs = twin.sim.world
    theirs.data.qpos[:] = service.sim.world.data.qpos
    image = service.sim.depth()
    assert image.shape == (60, 106)
    assert (image > 0.0).mean() > 0.5
    assert np.array_equal(image, twin.sim.depth())


# --- a whole run -----------------------------------------------------------------------------


def test_make_sim_walks_in_the_scene_of_training(tmp_path):
    """`make sim BACKEND=isaaclab`: the gait in lock-step, in three processes."""
    command = [
        str(ROOT / ".venv/bin/krabby"), "up", "--backend", "isaaclab", "--speed", "0",
        "--duration", "8", "--policy", "gait", "--course", "flat", "--base-port", "0",
        "--runs-dir", str(tmp_path),
    ]  # fmt: skip
    env = os.environ | {"KRABBY_ISAAC_PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=280)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["exit"] == "finished"
    assert summary["falls"] == 0
    # It stands up for some 3 s, then walks at 0.35 m/s.
    assert 0.7 < summary["distance_m"] < 3.0
