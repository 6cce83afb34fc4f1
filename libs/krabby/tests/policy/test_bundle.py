"""Bundles that fit are run, and every way of not fitting has its own message."""

import builtins
import errno
import io
import json
import math
import os
import signal
import sys
import types
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from krabby.policy import _exchange
from krabby.policy.bundle import (
    ENCODER_FILE,
    MANIFEST_FILE,
    MAX_FILE_BYTES,
    POLICY_FILE,
    SAMPLE_FILES,
    Abilities,
    MissingRuntime,
    OnnxEncoder,
    OnnxPolicy,
    PolicyBundle,
    PolicyOutputError,
    bundle_dir,
    policy_network,
    robot_manifest,
    write_bundle,
)
from krabby.policy.depth_image import IMAGE_SHAPE
from krabby.policy.observation import (
    ObservationBuilder,
    ObservationError,
    ObservationInputs,
    ObservationLayout,
    standard_term,
)
from krabby.policy.onnx_runtime import OnnxRuntime
from krabby.robot.assets import assets_dir
from krabby.robot.description import RobotDescription
from krabby.robot.errors import BundleError, BundleMismatch
from onnx import TensorProto, helper, numpy_helper

DESC = RobotDescription.load()
LAYOUT = ObservationLayout((standard_term("nav_command"), standard_term("joint_vel")))
N = LAYOUT.size  # 21
IMAGE = (1, 1, *IMAGE_SHAPE)


def model(inputs, outputs, nodes, constants=()) -> bytes:
    def infos(tensors):
        return [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in tensors.items()
        ]

    graph = helper.make_graph(
        nodes,
        "test",
        infos(inputs),
        infos(outputs),
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants],
    )
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=9).SerializeToString()


def linear(size: int = N, *, batch: int | str = 1) -> bytes:
    """actions[j] = obs[j] for the 18 first numbers of the observation."""
    node = helper.make_node("Gather", ["obs", "first"], ["actions"], axis=1)
    first = np.arange(18)
    return model({"obs": [batch, size]}, {"actions": [batch, 18]}, [node], [("first", first)])


def counter(state_shape=(1, 18)) -> bytes:
    """Each step adds the observation's first 18 numbers to a state and gives the state."""
    nodes = [
        helper.make_node("MatMul", ["obs", "w"], ["first"]),
        helper.make_node("Add", ["first", "total"], ["total_out"]),
        helper.make_node("Identity", ["total_out"], ["actions"]),
    ]
    return model(
        {"obs": [1, N], "total": list(state_shape)},
        {"actions": [1, 18], "total_out": list(state_shape)},
        nodes,
        [("w", np.eye(N, 18, dtype=np.float32))],
    )


def encoder(*, proprio: bool = False, recurrent: bool = False) -> bytes:
    """Every number of the latent is the image's mean, plus the proprio's, plus the newest state."""
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "axis"], ["sum0"]),
    ]
    inputs, outputs, last = {"image": list(IMAGE)}, {"latent": [1, 32]}, "sum0"
    if proprio:
        inputs["proprio"] = [1, 3]
        nodes.append(helper.make_node("ReduceMean", ["proprio"], ["p"], axes=[1], keepdims=1))
        nodes.append(helper.make_node("Add", [last, "p"], ["sum1"]))
        last = "sum1"
    if recurrent:
        inputs["h"], outputs["h_out"] = [1, 1], [1, 1]
        nodes.append(helper.make_node("Add", [last, "h"], ["h_out"]))
        last = "h_out"
    nodes.append(helper.make_node("Mul", [last, "ones"], ["latent"]))
    constants = [("axis", np.array([1])), ("ones", np.ones((1, 32), np.float32))]
    return model(inputs, outputs, nodes, constants)


def manifest(**changes) -> dict:
    values = {
        "name": "test",
        "observation": LAYOUT.to_manifest(),
        "action": {"scale": 0.5, "offset": DESC.default_joint_pos.tolist(), "clip": 2.0},
    }
    return values | changes


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "policies" / "test"


def write(folder, files=None, **changes) -> PolicyBundle:
    return write_bundle(folder, manifest(**changes), files or {POLICY_FILE: linear()}, DESC)


def edit(folder: Path, change) -> None:
    """Changes a manifest on disk behind the writer's back."""
    path = folder / MANIFEST_FILE
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def obs(*first) -> np.ndarray:
    values = np.zeros((1, N), dtype=np.float32)
    values[0, : len(first)] = first
    return values


SEEING = {
    "observation": [*LAYOUT.to_manifest(), *ObservationLayout(
        (standard_term("features", size=32),)).to_manifest()],
    "needs_features": "latent",
    "encoder": {"rate_hz": 10.0},
}  # fmt: skip


def seeing_files(**kind) -> dict[str, bytes]:
    return {POLICY_FILE: linear(N + 32), ENCODER_FILE: encoder(**kind)}


# Running


def test_actions_are_clipped_scaled_and_added_to_the_offset(folder):
    policy = OnnxPolicy(write(folder))
    target = policy.step(obs(1.0, -1.0, 5.0))
    expected = DESC.default_joint_pos.copy()
    expected[:3] += [0.5 * 1.0, 0.5 * -1.0, 0.5 * 2.0]  # 5 is cut to 2
    assert target == pytest.approx(expected)
    assert policy.last_action[:3].tolist() == [1.0, -1.0, 5.0]  # as the network gave it


def test_every_joint_may_have_its_own_scale(folder):
    scale = [0.1 * (i + 1) for i in range(18)]
    bundle = write(folder, action=manifest()["action"] | {"scale": scale})
    target = OnnxPolicy(bundle).step(obs(*[1.0] * 18))
    assert target - DESC.default_joint_pos == pytest.approx(scale)


def test_recurrent_state_is_fed_back_and_reset(folder):
    state = [{"input": "total", "output": "total_out", "shape": [1, 18]}]
    policy = OnnxPolicy(write(folder, {POLICY_FILE: counter()}, state=state))
    for expected in (0.5, 1.0, 1.5):
        policy.step(obs(0.5))
        assert policy.last_action[0] == expected
    policy.reset()
    assert not policy.last_action.any()
    policy.step(obs(0.25))
    assert policy.last_action[0] == 0.25


def test_recurrent_state_may_start_elsewhere_than_at_zero(folder):
    state = [{"input": "total", "output": "total_out", "shape": [1, 18],
              "initial": [float(i) for i in range(18)]}]  # fmt: skip
    policy = OnnxPolicy(write(folder, {POLICY_FILE: counter()}, state=state))
    for _ in range(2):
        policy.step(obs(0.5))
        assert policy.last_action.tolist() == [0.5, *range(1, 18)]
        policy.reset()


def test_results_belong_to_the_caller(folder):
    policy = OnnxPolicy(write(folder))
    first, action = policy.step(obs(1.0)), policy.last_action
    policy.step(obs(-1.0))
    assert first[0] == pytest.approx(DESC.default_joint_pos[0] + 0.5)
    assert action[0] == 1.0


def test_a_symbolic_batch_size_is_one(folder):
    policy = OnnxPolicy(write(folder, {POLICY_FILE: linear(batch="batch")}))
    policy.step(obs(0.5))
    assert policy.last_action[0] == 0.5


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_action_names_the_joint_and_resets(folder, bad):
    policy = OnnxPolicy(write(folder))
    policy.step(obs(1.0))
    with pytest.raises(PolicyOutputError, match=f"'test' gave .* for {DESC.joint_names[1]}"):
        policy.step(np.where(np.arange(N) == 1, np.float32(bad), np.float32(0.0))[None])
    assert not policy.last_action.any()
    policy.step(obs(0.5))
    assert policy.last_action[0] == 0.5


def test_a_non_finite_state_is_not_fed_back(folder):
    state = [{"input": "total", "output": "total_out", "shape": [1, 18]}]
    policy = OnnxPolicy(write(folder, {POLICY_FILE: counter()}, state=state))
    policy.step(obs(1.0))
    with pytest.raises(PolicyOutputError, match="state 'total_out' that is not finite"):
        policy.step(obs(math.inf))
    policy.step(obs(0.5))
    assert policy.last_action[0] == 0.5


@pytest.mark.parametrize("shape", [(N,), (1, N + 1), (2, N)])
def test_an_observation_of_another_shape_is_refused(folder, shape):
    policy = OnnxPolicy(write(folder))
    with pytest.raises(ObservationError, match=r"'obs' of shape \(1, 21\), got shape"):
        policy.step(np.zeros(shape, np.float32))


def test_a_bundle_s_layout_builds_what_its_network_reads(folder):
    bundle = write(folder)
    builder = ObservationBuilder(bundle.observation, DESC)
    zeros = np.zeros(18)
    inputs = ObservationInputs(
        base_quat_w=np.array([0.0, 0.0, 0.0, 1.0]),
        base_ang_vel_b=np.zeros(3),
        base_lin_acc_b=np.zeros(3),
        joint_pos=zeros,
        joint_vel=zeros + 2.0,
        foot_contact=np.zeros(6),
        nav_command=np.array([0.4, 0.0, 0.0]),
        last_action=zeros,
    )
    policy = OnnxPolicy(bundle)
    policy.step(builder.build(inputs))
    assert policy.last_action[:4] == pytest.approx([0.4, 0.0, 0.0, 0.1])


# Backends


class Elsewhere:
    """ONNX Runtime under another name; remembers what it was asked for."""

    def __init__(self):
        self.opened = []

    def open(self, spec):
        network = OnnxRuntime().open(spec)
        network.backend = "elsewhere"
        self.opened.append(network)
        return network


def test_a_policy_goes_over_to_another_backend_with_a_fresh_state(folder):
    state = [{"input": "total", "output": "total_out", "shape": [1, 18]}]
    policy = OnnxPolicy(write(folder, {POLICY_FILE: counter()}, state=state))
    policy.step(obs(0.5))
    assert policy.network.backend == "onnxruntime"
    policy.use(Elsewhere())
    assert policy.network.backend == "elsewhere"
    assert not policy.last_action.any()
    policy.step(obs(0.25))
    assert policy.last_action[0] == 0.25


def test_a_policy_stays_where_it_is_when_another_backend_fails(folder):
    class Broken:
        def open(self, spec):
            raise BundleError("no")

    state = [{"input": "total", "output": "total_out", "shape": [1, 18]}]
    policy = OnnxPolicy(write(folder, {POLICY_FILE: counter()}, state=state))
    policy.step(obs(0.5))
    with pytest.raises(BundleError, match="no"):
        policy.use(Broken())
    policy.step(obs(0.5))
    assert policy.last_action[0] == 1.0


def samples_file(**arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def packed(content):
    """An archive with one compressed array file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("obs.npy", content)
    return buffer.getvalue()


def header(shape):
    """Of an array file that claims this shape."""
    text = repr({"descr": "<f4", "fortran_order": False, "shape": shape}).encode() + b"\n"
    return len(text).to_bytes(2, "little") + text


def damaged(content):
    """The compressed data changed."""
    return content.replace(b"obs.npy", b"obs.npy\xff\xff", 1)


def test_a_bundle_may_carry_recorded_inputs_of_its_network(folder):
    recorded = np.arange(2 * N, dtype=np.float32).reshape(2, 1, N)
    files = {POLICY_FILE: linear(), SAMPLE_FILES[POLICY_FILE]: samples_file(obs=recorded)}
    backend = Elsewhere()
    OnnxPolicy(write(folder, files), backend)
    assert backend.opened[0].spec.samples["obs"].tolist() == recorded.tolist()


@pytest.mark.parametrize(
    "content",
    [
        b"nothing",
        samples_file(obs=np.zeros((2, 1, N + 1), np.float32)),
        samples_file(obs=np.zeros((2, 1, N))),
        samples_file(obs=np.zeros((0, 1, N), np.float32)),
        samples_file(image=np.zeros((2, 1, N), np.float32)),
        b"",
        packed(np.lib.format.magic(1, 0) + header((10**13,))),
        packed(np.lib.format.magic(1, 0) + header((10**30,))),
        packed(bytes(MAX_FILE_BYTES + 1)),
        damaged(packed(bytes(1000))),
    ],
    ids=range(10),
)
def test_recorded_inputs_that_do_not_fit_are_refused(folder, content):
    bundle = write(folder, {POLICY_FILE: linear(), SAMPLE_FILES[POLICY_FILE]: content})
    with pytest.raises(BundleError, match=r"policy\.samples\.npz"):
        policy_network(bundle)


# Encoders


def test_an_encoder_gives_the_latent_of_an_image(folder):
    bundle = write(folder, seeing_files(), **SEEING)
    latent = OnnxEncoder(bundle).step(np.full(IMAGE_SHAPE, 0.25, np.float32))
    assert latent.shape == (32,)
    assert latent == pytest.approx(np.full(32, 0.25))
    assert bundle.encoder is not None
    assert bundle.encoder.rate_hz == 10.0


def test_an_encoder_may_see_proprio_and_remember(folder):
    proprio = ObservationLayout((standard_term("base_ang_vel"),))
    seeing = SEEING | {
        "encoder": {
            "rate_hz": 10.0,
            "proprio": proprio.to_manifest(),
            "state": [{"input": "h", "output": "h_out", "shape": [1, 1]}],
        }
    }
    eyes = OnnxEncoder(write(folder, seeing_files(proprio=True, recurrent=True), **seeing))
    image, body = np.full(IMAGE_SHAPE, 0.25, np.float32), np.full((1, 3), 0.5, np.float32)
    assert eyes.step(image, body)[0] == pytest.approx(0.75)
    assert eyes.step(image, body)[0] == pytest.approx(1.5)
    eyes.reset()
    assert eyes.step(image, body)[0] == pytest.approx(0.75)
    with pytest.raises(ObservationError, match=r"'proprio' of shape \(1, 3\), got nothing"):
        eyes.step(image)


def test_a_non_finite_latent_is_refused(folder):
    eyes = OnnxEncoder(write(folder, seeing_files(), **SEEING))
    with pytest.raises(PolicyOutputError, match="not finite"):
        eyes.step(np.full(IMAGE_SHAPE, math.nan, np.float32))


def test_an_encoder_refuses_images_of_another_size(folder):
    eyes = OnnxEncoder(write(folder, seeing_files(), **SEEING))
    with pytest.raises(ObservationError, match="'image' of shape"):
        eyes.step(np.zeros((60, 106), np.float32))


def test_a_blind_bundle_has_no_encoder(folder):
    with pytest.raises(BundleError, match=r"no depth_encoder\.onnx"):
        OnnxEncoder(write(folder))


# Writing


def test_what_was_written_is_read_back_at_full_precision(folder):
    offset = DESC.default_joint_pos + 1e-9 / 3
    bundle = write(
        folder,
        action={"scale": 1 / 3, "offset": offset.tolist(), "clip": 2.0},
        provenance={"seed": 7},
        evaluation={"falls": 0},
        kind="gait",
    )
    assert bundle.action.scale.tolist() == [1 / 3] * 18
    assert bundle.action.offset.tolist() == offset.tolist()
    assert bundle.observation == LAYOUT
    assert (bundle.name, bundle.kind, bundle.needs_features) == ("test", "gait", "none")
    assert (bundle.provenance, bundle.evaluation) == ({"seed": 7}, {"falls": 0})
    assert bundle.joint_names == DESC.joint_names
    assert sorted(p.name for p in folder.iterdir()) == [MANIFEST_FILE, POLICY_FILE]
    assert [p.name for p in folder.parent.iterdir()] == ["test"]  # nothing left beside it


def test_a_manifest_without_them_declares_no_range_and_the_default_age(folder):
    bundle = write(folder)
    assert (bundle.command_range, bundle.features_age_s, bundle.memory_s) == (None, 0.15, None)
    unknown = Abilities(stands=True, reverses=None, side_steps=None, turns_in_place=None)
    assert bundle.abilities == unknown


def test_range_abilities_and_ages_are_read(folder):
    bundle = write(
        folder,
        seeing_files(),
        **SEEING,
        command={"vx": [-0.5, 1.2], "vy": [-0.4, 0.4], "yaw_rate": [-0.8, 0.8]},
        **{"reverses": True, "side_steps": True, "turns_in_place": False},
        **{"features_age_s": 1.0, "memory_s": 3.0},
    )
    assert bundle.command_range.tolist() == [[-0.5, -0.4, -0.8], [1.2, 0.4, 0.8]]
    known = Abilities(stands=True, reverses=True, side_steps=True, turns_in_place=False)
    assert bundle.abilities == known
    assert (bundle.features_age_s, bundle.memory_s) == (1.0, 3.0)
    assert bundle.encoder.forget_after_s == 3.0


def test_writing_again_replaces_the_bundle(folder):
    write(folder, provenance={"run": 1})
    write(folder, provenance={"run": 2})
    assert PolicyBundle.load(folder, DESC).provenance == {"run": 2}
    assert [p.name for p in folder.parent.iterdir()] == ["test"]


def test_a_bundle_that_would_be_refused_is_not_written(folder):
    write(folder, provenance={"run": 1})
    with pytest.raises(BundleMismatch, match="robot"):
        write(folder, robot="spot", geometry="")
    assert PolicyBundle.load(folder, DESC).provenance == {"run": 1}
    assert [p.name for p in folder.parent.iterdir()] == ["test"]


def test_numbers_that_json_has_not_are_not_written(folder):
    with pytest.raises(BundleError, match="cannot be written"):
        write(folder, evaluation={"score": math.nan})
    with pytest.raises(BundleError, match="cannot be written"):
        write(folder, evaluation={"score": np.float32(1.0)})
    assert not folder.exists()


def _interrupted(action, at: int, how) -> bool:
    """Do `action`, and `how` at the line number `at` of what writes files for it."""
    left, writers = at, ["krabby/policy/bundle.py", "krabby/policy/_exchange.py"]
    if how is not _keyboard_interrupt:  # shutil's own clean-up fails on one
        writers.append("/shutil.py")

    def trace(frame, event, _):
        nonlocal left
        code = frame.f_code
        if not code.co_filename.endswith(tuple(writers)) or code.co_name == "__del__":
            return None  # Python ignores what a destructor raises
        if event == "line":
            left -= 1
            if left == 0:
                how()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return left <= 0


def _keyboard_interrupt():
    raise KeyboardInterrupt


def _old_or_new(folder: Path) -> str:
    """Name of the bundle in `folder`, whose notes have to be there whichever it is."""
    assert (folder / "training" / "checkpoint.pt").read_bytes() == b"the only one"
    assert (folder / "README.md").read_text() == "notes"
    return PolicyBundle.load(folder, DESC).name


def _with_notes(folder: Path) -> None:
    write(folder, name="old")
    (folder / "README.md").write_text("notes")
    (folder / "training").mkdir()
    (folder / "training" / "checkpoint.pt").write_bytes(b"the only one")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # files left open
def test_an_export_interrupted_at_any_line_leaves_the_old_bundle_or_the_new_one(folder):
    _with_notes(folder)
    found, at = set(), 1
    while _interrupted(partial(write, folder, name=f"new {at}"), at, _keyboard_interrupt):
        name = _old_or_new(folder)
        found.add(name == f"new {at}")
        at += 1
    assert at > 50
    assert found == {True, False}
    write(folder, name="last")
    assert [each.name for each in folder.parent.iterdir()] == [folder.name]


@pytest.mark.slow
def test_an_export_killed_at_any_line_leaves_the_old_bundle_or_the_new_one(folder):
    _with_notes(folder)
    found, at, reached = set(), 1, True
    while reached:
        child = os.fork()
        if not child:
            try:
                _interrupted(
                    partial(write, folder, name=f"new {at}"),
                    at,
                    lambda: os.kill(os.getpid(), signal.SIGKILL),
                )
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        reached = os.WIFSIGNALED(status)
        found.add(_old_or_new(folder) == f"new {at}")
        at += 1
    assert at > 50
    assert found == {True, False}
    write(folder, name="last")
    assert [each.name for each in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("how", ["interrupt", "kill"])
def test_where_names_cannot_be_exchanged_an_interrupt_loses_nothing(folder, monkeypatch, how):
    """The moment between two renames: an interrupt is undone at once, a kill by the next export."""
    _with_notes(folder)
    monkeypatch.setattr(_exchange.ctypes, "get_errno", lambda: errno.EINVAL)
    monkeypatch.setattr(
        _exchange.ctypes, "CDLL", lambda *_, **__: types.SimpleNamespace(renameat2=lambda *_: -1)
    )
    real = Path.rename

    def rename(self, target):
        if self.name == "new":
            raise KeyboardInterrupt
        if how == "kill" and self.name == "old":
            raise SystemExit  # the undoing does not happen either
        return real(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", rename)
        if how == "kill":
            patched.setattr(_exchange.shutil, "rmtree", lambda _: None)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            write(folder, name="new")
    if how == "interrupt":
        assert _old_or_new(folder) == "old"
    write(folder, name="newer")
    assert _old_or_new(folder) == "newer"


def test_two_writers_take_turns(folder):
    _with_notes(folder)

    def repeat(name):
        for _ in range(10):
            write(folder, name=name)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(repeat, name) for name in ("one", "other")]:
            done.result()
    assert _old_or_new(folder) in ("one", "other")


def test_a_folder_that_is_no_bundle_is_not_replaced(folder):
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("the only copy")
    with pytest.raises(BundleError, match="is not a policy bundle"):
        write(folder)
    assert (folder / "thesis.txt").exists()


def test_another_control_rate_is_written_and_asked_for(folder):
    write(folder, control_rate_hz=50.0)
    assert PolicyBundle.load(folder, DESC, control_rate_hz=50.0).control_rate_hz == 50.0
    with pytest.raises(BundleMismatch, match="control_rate_hz = 50, the loop runs at 100"):
        PolicyBundle.load(folder, DESC)


# Finding


def test_a_name_is_looked_up_among_the_policies_and_a_path_is_a_path(folder):
    assert bundle_dir("gait").name == "gait"
    assert bundle_dir("./gait") == Path("gait")
    assert bundle_dir(folder) == folder
    with pytest.raises(BundleError, match=r"no policy 'trot' in .*; there is: .*gait"):
        bundle_dir("trot")


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("runs/iteration_000100.pt", r"krabby_trainer export checkpoint=runs/iteration_000100.pt"),
        ("model.PTH", r"krabby_trainer export checkpoint=model.PTH"),
        ("./exported/policy.onnx", r"krabby import-policy exported/policy.onnx --out NAME"),
    ],
)
def test_checkpoints_and_networks_alone_are_told_how_to_become_bundles(file, command):
    with pytest.raises(
        BundleError, match=rf"is a file, a bundle is a folder; make one: .*{command}"
    ):
        bundle_dir(file)


# Refusing


def swap_joints(values):
    names = values["joint_names"]
    names[3], names[4] = names[4], names[3]


def put(*path):
    """A change that sets the value at a path: put("gains", "kp", 2, 200.0)."""
    *keys, last, value = path

    def change(values):
        for key in keys:
            values = values[key]
        values[last] = value

    return change


def other_robot(values):
    """A robot of another name and other lengths."""
    values |= {"robot": "spot", "geometry": "0" * 64}


def drop(*path):
    *keys, last = path

    def change(values):
        for key in keys:
            values = values[key]
        del values[last]

    return change


def test_a_bundle_of_a_robot_with_the_same_joints_and_lengths_fits(folder, monkeypatch):
    other = RobotDescription.load(assets_dir() / "crab_hex_rs" / "robot.toml")
    write(folder)
    bundle = PolicyBundle.load(folder, other)
    assert (bundle.robot, bundle.mass_kg) == ("crab_hex", 28.6)
    monkeypatch.setenv("KRABBY_ROBOT", "crab_hex_rs")
    assert bundle_dir("gait") == assets_dir() / "crab_hex_rs" / "policies" / "gait"
    assert bundle_dir("parkour") == assets_dir() / "policies" / "parkour"


def test_a_bundle_that_tells_no_geometry_fits_the_robot_of_its_name_alone(folder):
    write(folder)
    edit(folder, lambda values: [values.pop("geometry"), values.pop("mass_kg")])
    assert PolicyBundle.load(folder, DESC).mass_kg is None
    with pytest.raises(BundleMismatch, match="robot 'crab_hex', this one is 'crab_hex_rs'"):
        PolicyBundle.load(folder, replace(DESC, name="crab_hex_rs"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("format", 2), "format 2, this code reads 1"),
        (other_robot, "robot 'spot', this one is 'crab_hex'"),
        (swap_joints, "joint 3 = 'lm_hip_pitch', the robot 'lm_hip_yaw'"),
        (drop("joint_names", 17), "17 joints, the robot 18"),
        (put("default_joint_pos", 1, 0.46), "default_joint_pos = 0.46 for lf_hip_pitch, the robot"),
        (put("gains", "kp", 2, 200.0), "gains.kp = 200.0 for lf_knee, the robot 250.0"),
        (put("gains", "kd", 0, 9.0), "gains.kd = 9.0 for lf_hip_yaw"),
        (drop("gains", "kd", 0), "17 numbers in gains.kd"),
        (put("control_rate_hz", 50.0), "control_rate_hz = 50, the loop runs at 100"),
    ],
)
def test_a_bundle_for_another_robot_is_refused_with_the_first_difference(folder, change, message):
    write(folder)
    edit(folder, change)
    with pytest.raises(BundleMismatch, match=message) as error:
        PolicyBundle.load(folder, DESC)
    assert str(folder / MANIFEST_FILE) in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("camera", "width", 640), r"camera\.width = 640, the robot 106"),
        (put("camera", "mount_xyz", [0.3, 0.0, 0.08]), r"camera\.mount_xyz = \[0\.3"),
        (put("camera", "mount_pitch_rad", 0.4), r"camera\.mount_pitch_rad = 0\.4"),
        (put("camera", "far_m", 2.0), r"camera\.far_m = 2\.0, the robot 4\.0"),
    ],
)
def test_a_seeing_policy_wants_its_own_camera_and_a_blind_one_does_not_care(
    folder, change, message
):
    write(folder, seeing_files(), **SEEING)
    edit(folder, change)
    with pytest.raises(BundleMismatch, match=message):
        PolicyBundle.load(folder, DESC)
    write(folder)
    edit(folder, change)
    PolicyBundle.load(folder, DESC)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("colour", "red"), "unknown field `colour`"),
        (drop("name"), "missing required field `name`"),
        (put("kind", "magic"), "Invalid enum value 'magic'"),
        (put("gains", "kp", 3, "stiff"), r"Expected `float`, got `str` - at `\$\.gains\.kp"),
        (put("action", "clip", 0.0), r"> 0\.0 - at `\$\.action\.clip`"),
        (put("action", "scale", [0.5] * 17), r"action\.scale has 17 numbers; give one, or 18"),
        (put("action", "offset", [0.5]), r"action\.offset has 1 numbers; give 18"),
        (put("action", "offset", 2, 0.1), "for lf_knee is outside its range -2.6 to 0"),
        (put("observation", []), "no terms"),
        (put("observation", 0, "name", "nav_comand"), "did you mean 'nav_command'"),
        (put("observation", 1, "size", 12), "size 12; expected 18"),
        (put("observation", 1, "history", 0), "term 'joint_vel' has history 0; expected at"),
        (put("needs_features", "latent"), "must have size 32, not 0"),
        (put("needs_features", "image"), "must have size 5046, not 0"),
        (put("encoder", {"rate_hz": 10.0}), r"files does not name depth_encoder\.onnx"),
        (
            put("state", [{"input": "a", "output": "b", "shape": [2, 3], "initial": [0.0]}]),
            r"state\[0\]\.initial has 1 numbers, its shape \[2, 3\] needs 6",
        ),
        (
            put("command", {"vx": [0.1, 1.0], "vy": [0, 0], "yaw_rate": [0, 0]}),
            r"command\.vx is \[0\.1, 1\]; give \[low, high\] around 0",
        ),
        (put("command", {"vx": [0, 1.0], "vy": [0, 0]}), "missing required field `yaw_rate`"),
        (put("reverses", "yes"), r"at `\$\.reverses`"),
        (put("features_age_s", 0), r"at `\$\.features_age_s`"),
        (put("memory_s", 2.0), "memory_s without needs_features"),
        (put("files", {}), r"files does not name policy\.onnx"),
        (put("files", "../x", "0" * 64), "files names '../x'"),
        (put("files", "manifest.json", "0" * 64), r"files names 'manifest\.json'"),
        (put("files", "policy.onnx", "0"), r"at `\$\.files\[\.\.\.\]`"),
    ],
)
def test_a_malformed_manifest_is_refused_and_says_where(folder, change, message):
    write(folder)
    edit(folder, change)
    with pytest.raises(BundleError, match=message) as error:
        PolicyBundle.load(folder, DESC)
    assert str(folder / MANIFEST_FILE) in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("camera", None), "needs_features without a camera"),
        (put("memory_s", 0.1), r"memory_s is 0\.1, less than features_age_s = 0\.15"),
        (put("encoder", None), "comes without the key 'encoder'"),
        (
            put("encoder", "proprio", [{"name": "features", "size": 32, "scale": 1, "history": 1}]),
            "holds 'features'",
        ),
        (
            put(
                "encoder",
                "proprio",
                [{"name": "height_scan", "size": 325, "scale": 1, "history": 1}],
            ),
            "holds 'height_scan', which no robot knows",
        ),
        (
            put("encoder", "state", [{"input": "a", "output": "b", "shape": [2], "initial": []}]),
            r"encoder\.state\[0\]\.initial has 0 numbers",
        ),
        (put("encoder", "rate_hz", 0.0), r"\$\.encoder\.rate_hz"),
    ],
)
def test_a_malformed_encoder_is_refused(folder, change, message):
    write(folder, seeing_files(), **SEEING)
    edit(folder, change)
    with pytest.raises(BundleError, match=message):
        PolicyBundle.load(folder, DESC)


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "1e999", "-1e999"])
def test_numbers_that_are_not_finite_are_refused(folder, literal):
    write(folder)
    path = folder / MANIFEST_FILE
    path.write_text(path.read_text().replace('"scale": 0.5', f'"scale": {literal}'))
    with pytest.raises(BundleError):
        PolicyBundle.load(folder, DESC)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"gait"'])
def test_a_manifest_that_is_no_object_is_refused(folder, text):
    write(folder)
    (folder / MANIFEST_FILE).write_text(text)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        PolicyBundle.load(folder, DESC)


def test_missing_folders_and_files_are_named(folder):
    with pytest.raises(BundleError, match=r"cannot read .*manifest\.json: No such file"):
        PolicyBundle.load(folder, DESC)
    write(folder)
    (folder / POLICY_FILE).unlink()
    with pytest.raises(BundleError, match=r"cannot read .*policy\.onnx"):
        PolicyBundle.load(folder, DESC)


def test_a_network_from_another_export_is_refused(folder):
    write(folder)
    (folder / POLICY_FILE).write_bytes(counter())
    with pytest.raises(BundleMismatch, match=r"policy\.onnx has SHA-256 .*the manifest"):
        PolicyBundle.load(folder, DESC)


def test_a_network_with_its_weights_in_another_file_is_refused(folder, tmp_path):
    graph = onnx.load_from_string(linear())
    path = tmp_path / "external.onnx"
    onnx.save(graph, path, save_as_external_data=True, size_threshold=0, location="weights.bin")
    with pytest.raises(BundleError, match="keeps weights in another file; export it as a single"):
        write(folder, {POLICY_FILE: path.read_bytes()})


# Networks that are not what the manifest says


def test_a_file_that_is_no_network_is_refused(folder):
    bundle = write(folder, {POLICY_FILE: b"not a network"})
    with pytest.raises(BundleError, match=r"policy\.onnx cannot be loaded"):
        OnnxPolicy(bundle)


def test_a_network_for_another_observation_is_refused(folder):
    bundle = write(folder, {POLICY_FILE: linear(N + 1)})
    with pytest.raises(BundleMismatch, match=r"input 'obs' is tensor\(float\) of shape \[1, 22\]"):
        OnnxPolicy(bundle)


def test_a_network_with_tensors_of_other_names_is_refused(folder):
    node = helper.make_node("Identity", ["x"], ["y"])
    bundle = write(folder, {POLICY_FILE: model({"x": [1, 18]}, {"y": [1, 18]}, [node])})
    with pytest.raises(BundleMismatch, match="has no input 'obs', it has x"):
        OnnxPolicy(bundle)


def test_a_state_that_the_manifest_does_not_list_is_refused(folder):
    bundle = write(folder, {POLICY_FILE: counter()})
    with pytest.raises(BundleMismatch, match="input 'total' that the manifest does not describe"):
        OnnxPolicy(bundle)


def test_a_state_of_another_shape_is_refused(folder):
    state = [{"input": "total", "output": "total_out", "shape": [1, 64]}]
    bundle = write(folder, {POLICY_FILE: counter()}, state=state)
    with pytest.raises(BundleMismatch, match=r"'total' is .* \[1, 18\], the manifest .* 64\]"):
        OnnxPolicy(bundle)


def test_a_network_that_declares_one_shape_and_computes_another_is_refused(folder):
    # A shape that depends on values is symbolic and fits any manifest; the first run tells.
    nodes = [
        helper.make_node("NonZero", ["obs"], ["indices"]),
        helper.make_node("Cast", ["indices"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["floats", "row"], ["actions"]),
    ]
    row = np.array([1, -1])
    content = model({"obs": [1, N]}, {"actions": [1, "any"]}, nodes, [("row", row)])
    with pytest.raises(BundleError, match=r"policy\.onnx does not run"):
        OnnxPolicy(write(folder, {POLICY_FILE: content}))


def test_without_the_runtime_the_error_says_what_to_install(folder, monkeypatch):
    bundle = write(folder)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    real = builtins.__import__

    def blocked(name, *args, **kwargs):
        if name == "onnxruntime":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(MissingRuntime, match=r"pip install krabby\[policy\]"):
        OnnxPolicy(bundle)


def test_the_robot_s_own_keys_are_those_of_its_description():
    keys = robot_manifest(DESC, control_rate_hz=50.0)
    assert keys["joint_names"] == list(DESC.joint_names)
    assert keys["gains"]["kp"] == [250.0] * 18
    assert keys["control_rate_hz"] == 50.0
    assert keys["camera"]["hfov_rad"] == DESC.camera.hfov_rad


def test_a_new_bundle_keeps_what_lies_beside_the_old_one(folder):
    write(folder)
    (folder / "training").mkdir()
    (folder / "training" / "notes.md").write_text("twelve minutes")
    (folder / "depth_encoder.onnx").write_bytes(b"of an older bundle")
    write(folder, name="newer")
    assert (folder / "training" / "notes.md").read_text() == "twelve minutes"
    assert sorted(entry.name for entry in folder.iterdir()) == [
        "manifest.json",
        "policy.onnx",
        "training",
    ]


def test_a_manifest_that_is_not_text_is_refused(folder):
    bundle = write(folder, {POLICY_FILE: linear()})
    path = bundle.path / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"name": "', b'"name": "\xa7', 1))
    with pytest.raises(BundleError, match="is not JSON"):
        PolicyBundle.load(bundle.path, RobotDescription.load())
