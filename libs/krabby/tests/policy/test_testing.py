"""The stand-in for a student is what the runtime would get from a trained one."""

import numpy as np
import onnx
import pytest
from krabby.policy.bundle import ENCODER_FILE, OnnxEncoder, OnnxPolicy, PolicyBundle, bundle_dir
from krabby.policy.testing import write_seeing_gait
from krabby.robot.description import RobotDescription
from krabby.robot.errors import PolicyOutputError


@pytest.fixture(scope="module")
def desc():
    return RobotDescription.load()


@pytest.fixture(scope="module")
def student(tmp_path_factory, desc):
    path = tmp_path_factory.mktemp("policies") / "seeing"
    return write_seeing_gait(path, desc, features="latent")


@pytest.mark.parametrize("features", ["image", "latent"])
def test_it_walks_as_the_gait_whatever_it_sees(tmp_path, desc, features):
    gait = PolicyBundle.load(bundle_dir("gait"), desc)
    seeing = write_seeing_gait(tmp_path / "seeing", desc, features=features)
    assert seeing.needs_features == features
    size = gait.observation.size
    rng = np.random.default_rng(0)
    ours, theirs = OnnxPolicy(gait), OnnxPolicy(seeing)
    for _ in range(5):
        obs = rng.normal(size=(1, seeing.observation.size)).astype(np.float32)
        np.testing.assert_array_equal(ours.step(obs[:, :size]), theirs.step(obs))


def test_a_latent_that_is_not_finite_spoils_its_actions(student):
    policy = OnnxPolicy(student)
    obs = np.zeros((1, student.observation.size), np.float32)
    policy.step(obs)
    obs[0, student.observation.slices["features"].start] = np.nan
    with pytest.raises(PolicyOutputError):
        policy.step(obs)


def test_its_encoder_has_a_real_ones_size_and_remembers(student):
    model = onnx.load_from_string(student.files[ENCODER_FILE])
    count = sum(int(np.prod(each.dims)) for each in model.graph.initializer)
    assert 200_000 < count < 500_000
    encoder = OnnxEncoder(student)
    image = np.random.default_rng(1).uniform(-0.5, 0.5, (58, 87)).astype(np.float32)
    proprio = np.zeros((1, encoder.spec.proprio.size), np.float32)
    first, second = encoder.step(image, proprio), encoder.step(image, proprio)
    assert np.abs(first).max() <= 1.0
    assert not np.array_equal(first, second)
    encoder.reset()
    np.testing.assert_array_equal(encoder.step(image, proprio), first)
