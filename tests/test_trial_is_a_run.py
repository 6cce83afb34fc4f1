"""A trial of the benchmark is a run of the services in lock-step, bit for bit."""

import argparse
import functools
import hashlib

import pytest
from krabby.benchmark import sight
from krabby.benchmark.published import published_scenario
from krabby.benchmark.scenario import Cell
from krabby.benchmark.trial import Policies, Trial, TrialCfg
from krabby.robot.description import RobotDescription
from krabby_camera import features
from krabby_camera.config import CameraCfg
from krabby_cli import up
from krabby_cli.in_process import run_services
from krabby_cli.plan import make_plan

SECONDS = 4.0


def of_services(policy, *settings):
    """What the simulator reports of a run on steps, difficulty 0.5, seed 1."""
    argv = [
        "up", "--speed", "0", "--duration", f"{SECONDS:g}", "--policy", policy, "--in-process",
        "--course", "steps", "--difficulty", "0.5", "--seed", "1",
        "--set", "sim-hal.spawn=standing", *settings,
    ]  # fmt: skip
    parser = argparse.ArgumentParser()
    up.add_parser(parser.add_subparsers())
    return run_services(make_plan(parser.parse_args(argv)).configuration)["sim-hal"]


def of_trial(policy):
    """Hash of the trajectory and metres walked of the same scenario."""
    desc = RobotDescription.load()
    make = functools.partial(published_scenario, course="steps", difficulty=0.5)
    cell = Cell(name="steps", family="steps", summary="", goal="waypoints", make=make)
    trial = Trial(cell, 1, Policies(desc, policy), desc, TrialCfg())
    digest = hashlib.sha256()
    while trial.sim_time_s < SECONDS - 1e-9:
        trial.period()
        digest.update(trial.robot.world.state_bytes())
    return digest.hexdigest(), round(trial.robot.progress.furthest_m, 3)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("policy", ["gait", "parkour"])
def test_the_trajectory_of_a_trial_is_that_of_the_services(policy):
    services = of_services(policy)
    assert (services["trajectory_hash"], services["furthest_m"]) == of_trial(policy)
    assert services["furthest_m"] > 0.2


def test_pictures_are_withheld_by_the_camera_services_own_limits():
    cfg = CameraCfg()
    assert cfg.min_valid_ratio == sight._MIN_SEEN
    assert round(cfg.frozen_after_s * 1e9) == sight._FROZEN_NS
    assert sight._AT_LENS == features._AT_LENS
