"""The gait as a policy bundle: the graph is the generator, and the files are what it gives."""

import numpy as np
import onnxruntime as ort
from krabby.policy.bundle import POLICY_FILE, OnnxPolicy, PolicyBundle, bundle_dir
from krabby.policy.gait import OBSERVATION, STATE_SHAPES, Gait
from krabby.robot.assets import assets_dir
from krabby.robot.description import RobotDescription
from krabby_assets.gait_bundle import BUNDLE_NAME, first_difference, main, write

DESC = RobotDescription.load()


def _session(bundle):
    return ort.InferenceSession(bundle.files[POLICY_FILE], providers=["CPUExecutionProvider"])


def _observations(steps):
    rng = np.random.default_rng(7)
    obs = np.zeros((1, OBSERVATION.size), np.float32)
    obs[0, 3:] = rng.normal(scale=0.03, size=18)
    for step in range(steps):
        if step % 150 == 0:
            obs[0, :3] = rng.uniform((-0.4, -0.3, -0.6), (0.8, 0.3, 0.6))
        if step >= steps - 300:
            obs[0, :3] = 0.0
        yield obs


def test_the_graph_computes_what_the_arrays_compute():
    # Accelerations are second differences over 10 ms: one unit in the last place of a position
    # becomes 5e-4 m/s² of a link and up to 1.3e-5 rad of a target, so everything but the targets
    # is compared at 1e-5.
    session, gait = _session(PolicyBundle.load(bundle_dir(BUNDLE_NAME), DESC)), Gait(DESC)
    names = [output.name for output in session.get_outputs()]
    state = {name: np.zeros(shape, np.float32) for name, shape in STATE_SHAPES.items()}
    exact = ("clock_out", "twist_out", "legs_out", "feet_out", "joint_pos_out", "link_pos_out")
    for obs in _observations(800):
        arrays = gait.step(obs, **state)
        graph = dict(zip(names, session.run(None, {"obs": obs, **state}), strict=True))
        assert set(graph) == set(arrays)
        for name in exact:
            assert np.abs(graph[name] - arrays[name]).max() < 1e-5, name
        assert np.abs(graph["actions"] - arrays["actions"]).max() < 3e-5
        state = {name: arrays[f"{name}_out"] for name in STATE_SHAPES}


def test_the_two_stay_together_over_twenty_seconds_of_their_own_states():
    policy, gait = OnnxPolicy(PolicyBundle.load(bundle_dir(BUNDLE_NAME), DESC)), Gait(DESC)
    state = {name: np.zeros(shape, np.float32) for name, shape in STATE_SHAPES.items()}
    for obs in _observations(2000):
        target = policy.step(obs)
        out = gait.step(obs, **state)
        state = {name: out[f"{name}_out"] for name in STATE_SHAPES}
        assert np.abs(target - DESC.default_joint_pos - out["actions"][0]).max() < 1e-3


def test_a_reset_starts_from_the_measured_pose_again():
    policy = OnnxPolicy(PolicyBundle.load(bundle_dir(BUNDLE_NAME), DESC))
    obs = np.zeros((1, OBSERVATION.size), np.float32)
    first = policy.step(obs)
    obs[0, 0] = 0.3
    for _ in range(200):
        policy.step(obs)
    policy.reset()
    obs[0, 0] = 0.0
    assert np.array_equal(policy.step(obs), first)


def test_the_bundle_in_the_tree_is_what_its_sources_give():
    assert first_difference(assets_dir() / "policies" / BUNDLE_NAME, DESC) is None


def test_a_stale_bundle_is_named(tmp_path):
    write(tmp_path / BUNDLE_NAME, DESC)
    assert first_difference(tmp_path / BUNDLE_NAME, DESC) is None
    manifest = tmp_path / BUNDLE_NAME / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"lift_m": 0.1', '"lift_m": 0.2'))
    assert "manifest.json is not what" in first_difference(tmp_path / BUNDLE_NAME, DESC)


def test_check_says_what_to_do(tmp_path, monkeypatch, capsys):
    (tmp_path / "crab_hex").mkdir()
    source = assets_dir() / "crab_hex" / "robot.toml"
    (tmp_path / "crab_hex" / "robot.toml").write_bytes(source.read_bytes())
    monkeypatch.setenv("KRABBY_ASSETS", str(tmp_path))
    assert main(["--check"]) == 1
    assert "manifest.json is missing; run `make assets`" in capsys.readouterr().err
    assert main([]) == 0
    assert main(["--check"]) == 0
