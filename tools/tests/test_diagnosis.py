"""Recorded runs in MuJoCo with a fault between robot and HAL, and what is found in them."""

import dataclasses

import numpy as np
import pytest
from krabby.benchmark.trial import Policies
from krabby.diagnosis.diagnose import diagnose
from krabby.diagnosis.identify import identify
from krabby.diagnosis.log import RunLog
from krabby.mujoco.config import PlantedCfg
from krabby.robot.description import RobotDescription
from krabby_diagnosis.runs import FAULTS, Run, faulty_runs, record, sound_runs

pytestmark = pytest.mark.timeout(600)

DESC = RobotDescription.load()
RUN = Run(name="sound", policy="gait", course="mixed", difficulty=0.5, seed=301)


@pytest.fixture(scope="module")
def gait():
    return Policies(DESC, "gait")


def found(run, policies, seconds=7.0):
    messages, _ = record(run, policies, DESC, seconds)
    return diagnose(RunLog.read(messages), DESC)


def test_a_sound_run_gives_no_finding_and_the_gains_of_robot_toml(gait):
    diagnosis = found(RUN, gait)
    assert diagnosis.findings == ()
    assert np.nanmedian(diagnosis.law.kp) == pytest.approx(250.0, rel=0.03)
    assert np.nanmedian(diagnosis.law.kd) == pytest.approx(10.0, rel=0.05)
    # lock-step answers 2.5 ms after the state, the bus takes 5 ms
    assert diagnosis.law.delay_s == pytest.approx(0.0075)


def test_two_faults_are_both_found(gait):
    planted = PlantedCfg(kind="gain")
    run = dataclasses.replace(RUN, planted=planted, tilt_deg=5.0)
    kinds = {finding.kind for finding in found(run, gait).findings}
    assert kinds == {"gain", "camera-pitch"}


@pytest.mark.slow
def test_drives_that_give_a_third_of_their_torque_are_named(gait):
    (finding,) = found(dataclasses.replace(RUN, motor_strength=0.3), gait, 10.0).findings
    assert finding.kind == "saturation"
    # 120 N·m of the description, 0.3 of it
    assert "gives 36 N·m, described are 120" in finding.evidence


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_each_planted_fault_is_ranked_first(gait, name):
    run = next(
        r for r in faulty_runs(DESC, range(300, 301)) if (r.name, r.policy) == (name, "gait")
    )
    first = found(run, gait, 13.0).findings[0]
    assert first.kind == run.kind
    assert not run.where or set(first.where) == set(run.where)


@pytest.mark.slow
def test_sound_runs_of_both_policies_give_no_alarm(gait):
    policies = {"gait": gait, "parkour": Policies(DESC, "parkour")}
    for run in sound_runs(DESC, 6, 4000):
        assert found(run, policies[run.policy]).findings == (), run.key


@pytest.mark.slow
def test_friction_of_a_knee_is_identified(gait, monkeypatch):
    from krabby_diagnosis import runs

    begin = runs._RecordedTrial.__init__

    def stiff(self, *args):
        begin(self, *args)
        world = self.robot.world
        world.model.dof_frictionloss[world.index.joint_dof[DESC.joint_names.index("lm_knee")]] = 4.0

    monkeypatch.setattr(runs._RecordedTrial, "__init__", stiff)
    flat = dataclasses.replace(RUN, course="flat")
    messages, _ = record(flat, gait, DESC, 13.0)
    friction = dict(
        zip(DESC.joint_names, identify(RunLog.read(messages), DESC).friction, strict=True)
    )
    assert friction["lm_knee"] == pytest.approx(4.0, abs=1.0)
    assert abs(friction["rm_knee"]) < 1.0
