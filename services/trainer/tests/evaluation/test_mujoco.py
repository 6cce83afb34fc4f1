"""Robots walking, or standing, in MuJoCo for an evaluation."""

import hashlib

import numpy as np
import pytest
import torch
from krabby_trainer.errors import EvaluationError
from krabby_trainer.evaluation import evaluate
from krabby_trainer.evaluation.metrics import summarise
from krabby_trainer.evaluation.mujoco import evaluate_mujoco
from krabby_trainer.evaluation.suite import SUITES
from krabby_trainer.run.policies import load_subject
from krabby_trainer.task.observations import SCAN_POINTS_B

pytestmark = pytest.mark.slow


def stand(obs):
    return torch.zeros(obs.batch_size[0], 18)


def config(robots=4):
    return SUITES["smoke"].env_cfg(robots=robots, seed=1)


def test_a_policy_that_stands_gets_nowhere_and_does_not_fall():
    outcome = evaluate_mujoco(stand, config(), seconds=1.6, seed=1, processes=1)
    result = summarise(outcome.run)

    # Episodes of the smoke suite last 1.5 s: one time-out each, and 0.1 s of the next.
    assert (result["episodes"], result["episodes_cut_off"]) == (4, 4)
    assert result["time_out_rate"] == 1.0
    assert result["mxd"] == 0.0
    assert result["collision_share"] == 0.0
    assert 5.0 < result["torque_rms_nm"] < 25.0
    assert outcome.poses.base_pos_w.shape == (16, 4, 3)
    assert outcome.poses.base_pos_w[10, :, 2] == pytest.approx(np.full(4, 0.42), abs=0.03)
    assert outcome.poses.episode[-1].tolist() == [1, 1, 1, 1]


def test_results_do_not_depend_on_the_number_of_processes():
    def wriggle(obs):
        return torch.sin(7.0 * obs["history"][:, -18:] + obs["proprio"][:, 9:27])

    def digest(processes):
        outcome = evaluate_mujoco(wriggle, config(), seconds=0.5, seed=3, processes=processes)
        return hashlib.sha256(outcome.poses.joint_pos.tobytes()).hexdigest()

    assert digest(1) == digest(3)


def test_observations_are_those_of_the_training_environment():
    seen = []

    def watch(obs):
        seen.append(obs.clone())
        return stand(obs)

    evaluate_mujoco(watch, config(), seconds=0.3, seed=1, processes=1)

    first, last = seen[0], seen[-1]
    sizes = {name: first[name].shape[1] for name in first.keys()}  # noqa: SIM118
    assert sizes == {
        **{"proprio": 69, "scan": 325, "velocity": 3, "privileged": 42, "history": 690},
        "begins": 1,  # for policies with a memory; the training environment needs none
    }
    # After a reset every frame of the history is the first one; later the last one is new.
    assert torch.equal(
        first["history"].view(4, 10, 69), first["proprio"][:, None].expand(4, 10, 69)
    )
    assert torch.equal(last["history"][:, -69:], last["proprio"])
    assert torch.equal(last["history"][:, -138:-69], seen[-2]["proprio"])
    # Standing on the start platform: level ground at its usual place right below.
    middle = int(SCAN_POINTS_B.norm(dim=1).argmin())
    assert last["scan"][:, middle].abs().max() < 0.03
    # Standing still it is asked to walk on, towards the first goal.
    assert (last["proprio"][:, 6] > 0.25).all()


def test_actions_that_are_not_finite_end_the_evaluation():
    def broken(obs):
        return torch.full((obs.batch_size[0], 18), float("nan"))

    with pytest.raises(EvaluationError, match="not finite"):
        evaluate_mujoco(broken, config(), seconds=0.1, seed=1, processes=1)


def test_a_checkpoint_is_evaluated_from_file_to_report(tmp_path):
    from krabby_trainer.learn.networks import ACTOR_GROUPS, TeacherActor, example_observations
    from krabby_trainer.run import checkpoints

    actor = TeacherActor(example_observations(), {"actor": list(ACTOR_GROUPS)}, "actor", 18)
    algorithm = {
        "actor_architecture": actor.architecture,
        "actor_state_dict": actor.state_dict(),
    }
    checkpoint = tmp_path / checkpoints.checkpoint_name(1)
    empty = {key: {} for key in checkpoints.KEYS}
    given = {"iteration": 1, "format": 1, "algorithm": algorithm}
    checkpoints.save(checkpoint, empty | given)

    policy, about = load_subject(checkpoint, "mujoco", "cpu")
    report = evaluate(
        policy=policy, about=about, suite="smoke", backend="mujoco", robots=4, seconds=0.4,
        out=tmp_path / "smoke-mujoco", processes=1,
    )  # fmt: skip

    assert report["robots"] == 4
    assert report["iteration"] == 1
    files = {path.name for path in (tmp_path / "smoke-mujoco").iterdir()}
    assert files == {"report.json", "report.md", "difficulty.png", "pictures.webp"}


def test_a_policy_that_sees_gets_pictures_of_its_own_course():
    cfg, seen = config(), []
    cfg.camera.enabled = True

    def watch(obs):
        seen.append({name: obs[name].clone() for name in ("image", "arrived", "age", "eye")})
        return stand(obs)

    evaluate_mujoco(watch, cfg, seconds=0.4, seed=1, processes=1)

    assert seen[0]["image"].shape == (4, 58, 87)
    came = torch.stack([each["arrived"][:, 0] for each in seen])
    assert came.sum(0).min() >= 2
    newest = seen[-1]
    # The ground is in sight, and no picture is older than a frame and its latency.
    assert newest["image"].float().amin(dim=(1, 2)).max() < 0.0
    assert newest["age"].max() < 0.3
    assert newest["eye"][:, 5].tolist() == pytest.approx([-1.0] * 4, abs=0.02)  # upright
