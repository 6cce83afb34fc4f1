"""Policy bundles under evaluation see what the gameloop would show them."""

import numpy as np
import pytest
import torch
from krabby.policy.bundle import OnnxPolicy, PolicyBundle, bundle_dir
from krabby.policy.observation import ObservationBuilder, ObservationInputs
from krabby.robot.description import RobotDescription
from krabby_trainer.errors import EvaluationError
from krabby_trainer.evaluation.bundle import BundlePolicy
from krabby_trainer.run.policies import load_subject
from krabby_trainer.task.observations import ACTION_SCALE, proprio
from tensordict import TensorDict


@pytest.fixture(scope="module")
def desc():
    return RobotDescription.load()


def inputs(desc, rng):
    quat = rng.normal(size=4)
    return ObservationInputs(
        base_quat_w=quat / np.linalg.norm(quat),
        base_ang_vel_b=rng.normal(size=3),
        base_lin_acc_b=np.zeros(3),
        joint_pos=desc.default_joint_pos + rng.uniform(-0.1, 0.1, 18),
        joint_vel=rng.normal(size=18),
        foot_contact=np.ones(6),
        nav_command=np.array([0.3, 0.0, 0.1]),
        last_action=np.zeros(18),
    )


def groups(desc, robots, *, begins):
    """As the evaluation gives them; frames before the newest are the same."""

    def stack(name):
        return torch.tensor(np.stack([getattr(r, name) for r in robots]), dtype=torch.float32)

    names = ("base_quat_w", "base_ang_vel_b", "joint_pos", "joint_vel", "foot_contact",
             "nav_command", "last_action")  # fmt: skip
    frame = proprio(
        **{name: stack(name) for name in names},
        default_joint_pos=torch.tensor(desc.default_joint_pos, dtype=torch.float32),
    )
    count = len(robots)
    return TensorDict(
        {
            "history": frame.repeat(1, 10),
            "scan": torch.zeros(count, 325),
            "begins": torch.full((count, 1), begins),
        },
        batch_size=[count],
    )


def test_a_bundle_acts_as_in_the_gameloop_and_each_robot_keeps_its_own_state(desc):
    policy = BundlePolicy(bundle_dir("gait"))
    bundle = PolicyBundle.load(bundle_dir("gait"), desc)
    references = [
        (OnnxPolicy(bundle), ObservationBuilder(bundle.observation, desc)) for _ in range(2)
    ]
    rng = np.random.default_rng(0)
    for step in range(20):
        robots = [inputs(desc, rng) for _ in references]
        targets = [
            one.step(builder.build(r)) for (one, builder), r in zip(references, robots, strict=True)
        ]
        actions = policy(groups(desc, robots, begins=step == 0))

        assert actions.numpy() * ACTION_SCALE + desc.default_joint_pos == pytest.approx(
            np.stack(targets), abs=1e-4
        )


def test_an_episode_that_begins_resets_the_state(desc):
    policy, rng = BundlePolicy(bundle_dir("gait")), np.random.default_rng(1)
    robot = [inputs(desc, rng)]
    first = policy(groups(desc, robot, begins=True))
    for _ in range(30):
        policy(groups(desc, robot, begins=False))

    assert not torch.allclose(policy(groups(desc, robot, begins=False)), first)
    assert torch.equal(policy(groups(desc, robot, begins=True)), first)


def test_isaac_lab_is_no_place_for_a_bundle():
    with pytest.raises(EvaluationError, match="backend=mujoco"):
        load_subject(bundle_dir("gait"), "isaac", "cpu")
