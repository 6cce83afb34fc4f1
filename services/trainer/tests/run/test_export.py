"""A checkpoint becomes a bundle that the runtime runs and that acts as torch does."""

import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from krabby.policy.bundle import MANIFEST_FILE, POLICY_FILE, OnnxPolicy, PolicyBundle
from krabby.policy.observation import HEIGHT_SCAN_SHAPE, ObservationBuilder, ObservationInputs
from krabby.robot.description import RobotDescription
from krabby_trainer.errors import CheckpointDamaged, CheckpointError, ExportError
from krabby_trainer.learn.networks import (
    BUNDLE_OBSERVATION,
    OBS_GROUPS,
    TeacherActor,
    bundle_observation,
    example_observations,
)
from krabby_trainer.run import checkpoints
from krabby_trainer.run import export as export_module
from krabby_trainer.run.export import export_bundle
from krabby_trainer.run.policies import load_policy
from krabby_trainer.task import observations
from tensordict import TensorDict

ROBOT = RobotDescription.load()


def random_groups(rows):
    groups = {"history": torch.randn(rows, 690), "scan": torch.randn(rows, 325)}
    return groups | {"proprio": groups["history"][:, -69:]}


def write_checkpoint(path):
    torch.manual_seed(0)
    actor = TeacherActor(example_observations(), OBS_GROUPS, "actor", 18)
    seen = {name: 0.3 + torch.randn(200, size) for name, size in (("proprio", 69), ("scan", 325))}
    seen["privileged"] = torch.randn(200, 42)
    actor.train().update_normalization(TensorDict(seen, batch_size=[200]))
    with torch.no_grad():
        actor.mlp[-1].weight.mul_(60.0)  # acts as a trained one does, up to a few units
    payload = {
        "iteration": 3,
        "env_steps": 4096,
        "wall_s": 12.5,
        "algorithm": {
            "actor_architecture": actor.architecture,
            "actor_state_dict": actor.state_dict(),
        },
        "environment": {},
        "random": {},
        "config": {"run": {"dir": "/home/somebody"}, "seed": 7},
        "provenance": {"revision": "abc"},
    }
    checkpoints.save(path, payload)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A checkpoint and its bundle's folder."""
    root = tmp_path_factory.mktemp("export")
    checkpoint = write_checkpoint(root / "iteration_000003.pt")
    export_bundle(checkpoint, root / "teacher", name="teacher", evaluation={"mxd": 0.5})
    return checkpoint, root / "teacher"


@pytest.fixture(scope="module")
def onnx_file(exported):
    return (exported[1] / POLICY_FILE).read_bytes()


@pytest.fixture
def no_tracing(monkeypatch, onnx_file):
    """Tracing takes seconds; the network is the same each time."""
    monkeypatch.setattr(export_module, "to_onnx", lambda actor: onnx_file)


def test_it_acts_as_torch_does_to_1e_5(exported):
    checkpoint, folder = exported
    policy, groups = OnnxPolicy(PolicyBundle.load(folder, ROBOT)), random_groups(50)
    wanted = load_policy(checkpoint)(TensorDict(groups, batch_size=[50])).numpy()
    assert np.abs(wanted).max() > 1.0
    for row, obs in enumerate(bundle_observation(groups["history"], groups["scan"]).numpy()):
        target = policy.step(obs[None])
        np.testing.assert_allclose(policy.last_action, wanted[row], rtol=0.0, atol=1e-5)
        expected = ROBOT.default_joint_pos + 0.4 * np.clip(wanted[row], -6.0, 6.0)
        np.testing.assert_allclose(target, expected, rtol=0.0, atol=1e-5)


def test_the_runtimes_observations_make_it_act_as_in_training(exported):
    """Twelve steps of a robot: the runtime's builder here, the trainer's groups there."""
    checkpoint, folder = exported
    act, bundle = load_policy(checkpoint), PolicyBundle.load(folder, ROBOT)
    policy, builder = OnnxPolicy(bundle), ObservationBuilder(bundle.observation, ROBOT)
    rng, frames = np.random.default_rng(0), []
    for _ in range(12):
        quat = rng.normal(size=4)
        seen = {
            "base_quat_w": quat / np.linalg.norm(quat),
            "base_ang_vel_b": rng.normal(size=3),
            "joint_pos": rng.normal(size=18),
            "joint_vel": rng.normal(size=18),
            "foot_contact": rng.integers(0, 2, 6).astype(float),
            "nav_command": rng.normal(size=3),
            "last_action": policy.last_action,
        }
        scan = rng.uniform(-1.5, 1.5, 325)
        inputs = ObservationInputs(**seen, base_lin_acc_b=np.zeros(3), height_scan=scan)
        batch = {name: torch.tensor(value)[None].float() for name, value in seen.items()}
        default = torch.tensor(ROBOT.default_joint_pos).float()
        frames.append(observations.proprio(**batch, default_joint_pos=default))
        newest = ([frames[0]] * 10 + frames)[-10:]
        groups = {
            "proprio": newest[-1],
            "history": torch.cat(newest, dim=1),
            "scan": torch.tensor(scan)[None].float(),
        }
        policy.step(builder.build(inputs))
        wanted = act(TensorDict(groups, batch_size=[1])).numpy()[0]
        np.testing.assert_allclose(policy.last_action, wanted, rtol=0.0, atol=2e-5)


def test_a_bundle_sorts_the_history_by_term():
    # frame f of the first term, base_ang_vel, holds 10 f + axis
    history = torch.zeros(1, 10, 69)
    history[0, :, :3] = 10.0 * torch.arange(10)[:, None] + torch.arange(3)
    history[0, :, 68] = -torch.arange(10)  # the last foot
    obs = bundle_observation(history.flatten(1), torch.full((1, 325), 9.0))
    assert obs.shape == (1, 1015) == (1, BUNDLE_OBSERVATION.size)
    assert obs[0, :6].tolist() == [0.0, 1.0, 2.0, 10.0, 11.0, 12.0]
    assert obs[0, 689] == -9.0
    assert obs[0, 690:].tolist() == [9.0] * 325


def test_the_height_scan_is_the_grid_of_the_environment():
    assert (len(observations.SCAN_X), len(observations.SCAN_Y)) == HEIGHT_SCAN_SHAPE
    assert BUNDLE_OBSERVATION.term("height_scan").size == observations.SCAN_SIZE


def test_it_is_one_file_for_one_robot_that_tells_of_no_machine(onnx_file):
    model = onnx.load_from_string(onnx_file)
    onnx.checker.check_model(model)
    shapes = [
        [each.dim_value for each in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    ]
    assert shapes == [[1, 1015], [1, 18]]
    assert not any(each.data_location for each in model.graph.initializer)
    assert b".py" not in onnx_file


def test_the_manifest_says_where_it_comes_from(exported):
    manifest = json.loads((exported[1] / MANIFEST_FILE).read_text())
    assert manifest["name"] == "teacher"
    assert [(term["name"], term["history"]) for term in manifest["observation"]] == [
        ("base_ang_vel", 10),
        ("projected_gravity", 10),
        ("nav_command", 10),
        ("joint_pos_rel", 10),
        ("joint_vel", 10),
        ("last_action", 10),
        ("foot_contact", 10),
        ("height_scan", 1),
    ]
    assert manifest["action"]["offset"] == ROBOT.default_joint_pos.tolist()
    assert manifest["evaluation"] == {"mxd": 0.5}
    provenance = manifest["provenance"]
    assert provenance["config"] == {"seed": 7}
    assert (provenance["iteration"], provenance["env_steps"]) == (3, 4096)
    assert len(provenance["checkpoint_sha256"]) == 64
    assert provenance["parity"]["observations"] == "made up"
    assert provenance["parity"]["largest_difference"] <= 1e-5


def test_recorded_observations_are_compared_when_given(exported, no_tracing, tmp_path):
    recorded = tmp_path / "walk.npz"
    groups = random_groups(5)
    np.savez(recorded, history=groups["history"], scan=groups["scan"])
    out = tmp_path / "teacher"
    for _ in range(2):  # the second replaces the first
        bundle = export_bundle(exported[0], out, name="walker", observations=recorded)
    assert bundle.name == "walker"
    assert bundle.provenance["parity"]["observations"] == "recorded"
    assert bundle.provenance["parity"]["rows"] == 5


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"history": np.zeros((2, 690))}, "scan"),
        ({"history": np.zeros((2, 69)), "scan": np.zeros((2, 325))}, r"shape \(2, 69\)"),
        ({"history": np.zeros((2, 690)), "scan": np.zeros((3, 325))}, "as many rows"),
        ({"history": np.zeros((0, 690)), "scan": np.zeros((0, 325))}, "as many rows"),
        ({"history": np.zeros(690), "scan": np.zeros(325)}, "as many rows"),
        ({"history": np.full((2, 690), np.nan), "scan": np.zeros((2, 325))}, "not finite"),
        (None, "give an npz file"),
    ],
)
def test_recordings_that_cannot_be_used_are_refused(exported, tmp_path, arrays, message):
    recorded = tmp_path / "walk.npz"
    if arrays is None:
        recorded.write_bytes(b"no archive")
    else:
        np.savez(recorded, **arrays)
    with pytest.raises(ExportError, match=message):
        export_bundle(exported[0], tmp_path / "teacher", name="teacher", observations=recorded)
    assert not (tmp_path / "teacher").exists()


def test_a_policy_that_acts_otherwise_is_not_written(exported, monkeypatch, tmp_path):
    model = onnx.load_from_string((exported[1] / POLICY_FILE).read_bytes())
    for tensor in model.graph.initializer:
        if tensor.name.endswith("mlp.6.weight"):
            weight = onnx.numpy_helper.to_array(tensor) * np.float32(1.001)
            tensor.CopyFrom(onnx.numpy_helper.from_array(weight, tensor.name))
    monkeypatch.setattr(export_module, "to_onnx", lambda actor: model.SerializeToString())
    with pytest.raises(ExportError, match=r"acts 0\.000\d+ away.*1e-05 is allowed"):
        export_bundle(exported[0], tmp_path / "teacher", name="teacher")
    assert not (tmp_path / "teacher").exists()


def test_a_folder_that_is_no_bundle_is_left_alone(exported, no_tracing, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ExportError, match="is not a policy bundle"):
        export_bundle(exported[0], tmp_path, name="teacher")
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_checkpoints_that_cannot_be_read_are_refused(exported, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        export_bundle(tmp_path / "none.pt", tmp_path / "teacher", name="teacher")
    damaged = tmp_path / "iteration_000009.pt"
    shutil.copy(exported[0], damaged)
    damaged.write_bytes(damaged.read_bytes()[:5000])
    with pytest.raises(CheckpointDamaged, match="iteration_000009"):
        export_bundle(damaged, tmp_path / "teacher", name="teacher")
