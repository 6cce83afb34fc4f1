"""ONNX files as the exporters of three training codes write them, made bundles and run."""

import dataclasses
import json

import numpy as np
import onnx
import pytest
import yaml
from krabby.control.config import ControlCfg
from krabby.control.policy_manager import PolicyManager
from krabby.policy.bundle import OnnxPolicy, PolicyBundle
from krabby.policy.observation import ObservationBuilder, ObservationInputs
from krabby.robot.description import RobotDescription
from krabby_cli.__main__ import main
from onnx import TensorProto, helper, numpy_helper

DESC = RobotDescription.load()
OURS = DESC.joint_names
# Isaac Lab orders joints breadth first: all hips, all femurs, all tibias.
THEIRS = tuple(OURS[3 * leg + part] for part in range(3) for leg in range(6))
TO_THEIRS = [OURS.index(name) for name in THEIRS]
DEFAULT = DESC.default_joint_pos[TO_THEIRS]
RNG = np.random.default_rng(11)
INPUTS = ObservationInputs(
    base_quat_w=np.array([0.1, -0.05, 0.2, 0.97]) / np.linalg.norm([0.1, -0.05, 0.2, 0.97]),
    base_ang_vel_b=np.array([0.3, -0.2, 0.1]),
    base_lin_acc_b=np.array([0.0, 0.0, 9.81]),
    joint_pos=DESC.default_joint_pos + RNG.uniform(-0.2, 0.2, 18),
    joint_vel=RNG.uniform(-2, 2, 18),
    foot_contact=np.ones(6),
    nav_command=np.array([0.3, 0.0, -0.1]),
    last_action=RNG.uniform(-1, 1, 18),
)
GRAVITY = -np.array(
    [2 * (x * z - w * y) for x, y, z, w in [INPUTS.base_quat_w]]
    + [2 * (y * z + w * x) for x, y, z, w in [INPUTS.base_quat_w]]
    + [1 - 2 * (x * x + y * y) for x, y, z, w in [INPUTS.base_quat_w]]
)


def write_network(path, size, *, metadata=None, recurrent=False, extra=None, actions=18):
    """A linear policy; its weights, shape (size, actions)."""
    weights = np.random.default_rng(size).normal(0, 0.05, (size, actions)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["obs", "w"], ["linear" if recurrent else "actions"])]
    inputs = [helper.make_tensor_value_info("obs", TensorProto.FLOAT, ["batch", size])]
    outputs = [helper.make_tensor_value_info("actions", TensorProto.FLOAT, ["batch", actions])]
    constants = [numpy_helper.from_array(weights, "w")]
    if recurrent:  # actions = linear + memory; the memory counts steps
        shape = [1, 1, actions]
        inputs.append(helper.make_tensor_value_info("h_in", TensorProto.FLOAT, shape))
        outputs.append(helper.make_tensor_value_info("h_out", TensorProto.FLOAT, shape))
        constants += [
            numpy_helper.from_array(np.float32([1.0]), "one"),
            numpy_helper.from_array(np.int64([1, actions]), "flat"),
        ]
        nodes += [
            helper.make_node("Reshape", ["h_in", "flat"], ["memory"]),
            helper.make_node("Add", ["linear", "memory"], ["actions"]),
            helper.make_node("Add", ["h_in", "one"], ["h_out"]),
        ]
    if extra:
        inputs.append(helper.make_tensor_value_info(extra, TensorProto.FLOAT, [1, 1]))
    graph = helper.make_graph(nodes, "policy", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)
    return weights


def csv(values):
    """As mjlab writes lists: numbers with three decimals."""
    return ",".join(each if isinstance(each, str) else f"{each:.3f}" for each in values)


def mjlab_metadata(**changes):
    return {
        "run_path": "crab/velocity/1",
        "joint_names": csv(THEIRS),
        "joint_stiffness": csv(DESC.kp[TO_THEIRS]),
        "joint_damping": csv(DESC.kd[TO_THEIRS]),
        "default_joint_pos": csv(DEFAULT),
        "command_names": "twist",
        "observation_names": csv(
            ["base_ang_vel", "projected_gravity", "joint_pos", "joint_vel", "actions", "command"]
        ),
        "action_scale": csv([0.25] * 18),
    } | changes


def isaaclab_yaml(**changes):
    def term(name, size, *, scale=None, history=0, **more):
        return {
            "name": name, "mdp_type": "Observation", "shape": [size], "dtype": "torch.float32",
            "full_path": f"isaaclab.envs.mdp.observations.{name}",
            "extras": {"description": "", "modifiers": None},
            "overloads": {
                "clip": more.pop("clip", None), "scale": scale, "history_length": history,
                "flatten_history_dim": True,
            },
            **more,
        }  # fmt: skip

    joints = list(THEIRS)
    return {
        "actions": [
            {
                "action_type": "JointAction", "clip": None, "dtype": "torch.float32", "extras": {},
                "full_path": "isaaclab.envs.mdp.actions.joint_actions.JointPositionAction",
                "joint_names": joints, "mdp_type": "Action", "name": "joint_position_action",
                "offset": DEFAULT.tolist(), "scale": 0.5, "shape": [18],
            }
        ],
        "articulations": {
            "robot": {
                "joint_names": joints,
                "default_joint_pos": DEFAULT.tolist(),
                "default_joint_stiffness": DESC.kp[TO_THEIRS].tolist(),
                "default_joint_damping": DESC.kd[TO_THEIRS].tolist(),
            }
        },
        "observations": {
            "policy": [
                term("base_ang_vel", 3, scale=0.2),
                term("generated_commands", 3),
                term("joint_pos", 18, joint_names=joints),
                term("joint_vel_rel", 18, history=2, clip=[-1.0, 1.5], joint_names=joints),
                term("last_action", 18),
            ]
        },
        "scene": {"decimation": 2, "dt": 0.01, "physics_dt": 0.005},
    } | changes  # fmt: skip


def deploy_yaml(**changes):
    """As unitree_rl_lab writes it: joint_ids_map counts the robot's joints, gains too."""

    def term(scale, size, history=1):
        return {"params": {}, "clip": None, "scale": [scale] * size, "history_length": history}

    rounded = [float(f"{value:.3g}") for value in DEFAULT]
    return {
        "joint_ids_map": TO_THEIRS,
        "step_dt": 0.01,
        "stiffness": DESC.kp.tolist(),
        "damping": DESC.kd.tolist(),
        "default_joint_pos": rounded,
        "commands": {
            "base_velocity": {
                "ranges": {
                    "lin_vel_x": [-0.2, 0.6], "lin_vel_y": [-0.1, 0.1], "ang_vel_z": [-0.5, 0.5],
                    "heading": None,
                }
            }
        },
        "actions": {
            "JointPositionAction": {
                "clip": None, "joint_names": [".*"], "scale": [0.25] * 18, "offset": rounded,
                "joint_ids": None,
            }
        },
        "observations": {
            "base_ang_vel": term(0.2, 3, history=3),
            "projected_gravity": term(1.0, 3),
            "velocity_commands": term(1.0, 3),
            "joint_pos_rel": term(1.0, 18),
            "joint_vel_rel": term(0.05, 18),
            "last_action": term(1.0, 18),
        },
    } | changes  # fmt: skip


def step(folder, *, rate_hz=100.0):
    """Targets of the bundle for INPUTS, by the runtime's own classes."""
    bundle = PolicyBundle.load(folder, DESC, control_rate_hz=rate_hz)
    policy, builder = OnnxPolicy(bundle), ObservationBuilder(bundle.observation, DESC)
    return policy.step(builder.build(INPUTS))


def in_ours(theirs):
    ours = np.empty(18)
    ours[TO_THEIRS] = theirs
    return ours


@pytest.fixture
def onnx_file(tmp_path):
    (tmp_path / "exported").mkdir()
    return tmp_path / "exported" / "policy.onnx"


def test_a_policy_of_mjlab_gets_its_observation_and_gives_its_targets(onnx_file, tmp_path, capsys):
    weights = write_network(onnx_file, 63, metadata=mjlab_metadata())
    out = tmp_path / "mine"
    assert main(["import-policy", str(onnx_file), "--rate", "100", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "exported by mjlab, 100 Hz" in said
    assert f"wrote {out}" in said
    theirs = np.concatenate(
        [
            INPUTS.base_ang_vel_b, GRAVITY, (INPUTS.joint_pos - DESC.default_joint_pos)[TO_THEIRS],
            INPUTS.joint_vel[TO_THEIRS], INPUTS.last_action[TO_THEIRS], INPUTS.nav_command,
        ]
    )  # fmt: skip
    expected = in_ours(DEFAULT + 0.25 * (theirs @ weights))
    np.testing.assert_allclose(step(out), expected, atol=1e-4)
    provenance = json.loads((out / "manifest.json").read_text())["provenance"]
    assert provenance["imported_from"] == "mjlab"
    assert provenance["run_path"] == "crab/velocity/1"


def test_a_policy_of_isaac_lab_with_absolute_angles_history_and_clip(onnx_file, tmp_path, capsys):
    weights = write_network(onnx_file, 78)
    folder = tmp_path / "io_descriptors"
    folder.mkdir()
    (folder / "IO_descriptors.yaml").write_text(yaml.safe_dump(isaaclab_yaml()))
    out = tmp_path / "mine"
    assert main(["import-policy", str(onnx_file), "--out", str(out)]) == 0
    assert "exported by isaaclab, 100 Hz" in capsys.readouterr().out
    velocity = INPUTS.joint_vel[TO_THEIRS].clip(-1.0, 1.5)
    assert (velocity != INPUTS.joint_vel[TO_THEIRS]).any()
    theirs = np.concatenate(
        [
            0.2 * INPUTS.base_ang_vel_b, INPUTS.nav_command, INPUTS.joint_pos[TO_THEIRS],
            velocity, velocity, INPUTS.last_action[TO_THEIRS],
        ]
    )  # fmt: skip
    np.testing.assert_allclose(step(out), in_ours(DEFAULT + 0.5 * (theirs @ weights)), atol=1e-4)


def test_a_policy_of_unitree_rl_lab_keeps_its_command_range_and_history(onnx_file, tmp_path):
    weights = write_network(onnx_file, 69)
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "deploy.yaml").write_text(yaml.dump(deploy_yaml(), sort_keys=False))
    out = tmp_path / "mine"
    assert main(["import-policy", str(onnx_file), "--out", str(out)]) == 0
    theirs = np.concatenate(
        [
            *[0.2 * INPUTS.base_ang_vel_b] * 3, GRAVITY, INPUTS.nav_command,
            (INPUTS.joint_pos - DESC.default_joint_pos)[TO_THEIRS],
            0.05 * INPUTS.joint_vel[TO_THEIRS], INPUTS.last_action[TO_THEIRS],
        ]
    )  # fmt: skip
    np.testing.assert_allclose(step(out), in_ours(DEFAULT + 0.25 * (theirs @ weights)), atol=1e-4)
    command = PolicyBundle.load(out, DESC).command_range
    np.testing.assert_array_equal(command, [[-0.2, -0.1, -0.5], [0.6, 0.1, 0.5]])


def test_the_game_loop_s_policy_manager_runs_an_imported_recurrent_policy(onnx_file, tmp_path):
    weights = write_network(onnx_file, 63, metadata=mjlab_metadata(), recurrent=True)
    out = tmp_path / "mine"
    assert main(["import-policy", str(onnx_file), "--rate", "100", "--out", str(out)]) == 0
    runner = PolicyManager(ControlCfg(policy=str(out)), DESC).chosen
    theirs = np.concatenate(
        [
            INPUTS.base_ang_vel_b, GRAVITY, (INPUTS.joint_pos - DESC.default_joint_pos)[TO_THEIRS],
            INPUTS.joint_vel[TO_THEIRS], np.zeros(18), INPUTS.nav_command,
        ]
    )  # fmt: skip
    for tick in range(5):
        # What it did last is seen, and the memory adds 1 in every step.
        action = theirs @ weights + tick
        theirs[42:60] = action
        target = runner.step(dataclasses.replace(INPUTS))
        np.testing.assert_allclose(target, in_ours(DEFAULT + 0.25 * action), atol=1e-4)


def test_a_default_pose_and_a_rate_of_their_own_are_kept(onnx_file, tmp_path, capsys):
    values = deploy_yaml(step_dt=0.02)
    values["default_joint_pos"] = [value + 0.1 for value in DEFAULT.tolist()]
    values["actions"]["JointPositionAction"]["offset"] = values["default_joint_pos"]
    weights = write_network(onnx_file, 69)
    (tmp_path / "exported" / "deploy.yaml").write_text(yaml.dump(values, sort_keys=False))
    out = tmp_path / "mine"
    assert main(["import-policy", str(onnx_file), "--out", str(out)]) == 0
    assert "start the game loop with rate_hz=50" in capsys.readouterr().out
    theirs = np.concatenate(
        [
            *[0.2 * INPUTS.base_ang_vel_b] * 3, GRAVITY, INPUTS.nav_command,
            (INPUTS.joint_pos - DESC.default_joint_pos)[TO_THEIRS] - 0.1,
            0.05 * INPUTS.joint_vel[TO_THEIRS], INPUTS.last_action[TO_THEIRS],
        ]
    )  # fmt: skip
    expected = in_ours(DEFAULT + 0.1 + 0.25 * (theirs @ weights))
    np.testing.assert_allclose(step(out, rate_hz=50.0), expected, atol=1e-4)


def changed(names, **changes):
    values = isaaclab_yaml()
    for name, entry in zip(names, values["observations"]["policy"], strict=False):
        entry["name"] = name
    return values | changes


def clipped():
    values = isaaclab_yaml()
    values["actions"][0]["clip"] = [[-0.1, 0.1]] * 18
    return values


def torques():
    values = isaaclab_yaml()
    values["actions"][0]["full_path"] = "isaaclab.envs.mdp.actions.JointEffortAction"
    return values


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (changed(["base_lin_vel"]), "'base_lin_vel' cannot be expressed: no sensor"),
        (changed(["height_scan"]), "'height_scan' cannot be expressed: a robot does not know"),
        (changed(["smell"]), "'smell' cannot be expressed: known are base_ang_vel"),
        (clipped(), "clipped to -0.1..0.1 for"),
        (torques(), "actions are JointEffortAction; JointPositionAction can"),
        (changed([], scene={}), "is incomplete: KeyError: 'dt'"),
        ({"robot": 1}, "neither 'articulations' (Isaac Lab) nor 'joint_ids_map'"),
        (deploy_yaml(joint_ids_map=[0, 1, 2]), "joint_ids_map has 3 joints"),
        (deploy_yaml(stiffness=[77.0] * 18), "was trained with kp = 77 for"),
    ],
)
def test_what_a_bundle_cannot_express_is_named_in_one_line(
    values, said, onnx_file, tmp_path, capsys
):
    write_network(onnx_file, 78)
    config = tmp_path / "description.yaml"
    config.write_text(yaml.safe_dump(values))
    out = tmp_path / "mine"
    argv = ["import-policy", str(onnx_file), "--config", str(config), "--out", str(out)]
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("network", "metadata", "argv", "said"),
    [
        ({}, {}, [], "control rate; give it with --rate"),
        ({}, {}, ["--rate", "0"], "give 1 to 1000 Hz"),
        ({}, {}, ["--rate", "100", "--history", "0"], "--history 0"),
        ({"size": 60}, {}, ["--rate", "100"], "takes 60 numbers, its terms"),
        ({"actions": 12}, {}, ["--rate", "100"], "gives 12 actions"),
        ({"extra": "time_step"}, {}, ["--rate", "100"], "has inputs obs, time_step"),
        ({}, {"joint_names": "a,b"}, ["--rate", "100"], "the robot has no a, b; it leaves out"),
        ({}, {"joint_stiffness": "x"}, ["--rate", "100"], "metadata joint_stiffness"),
        ({}, None, [], "has no metadata joint_names"),
    ],
)
def test_networks_and_metadata_that_do_not_fit_are_refused(
    network, metadata, argv, said, onnx_file, tmp_path, capsys
):
    described = None if metadata is None else mjlab_metadata(**metadata)
    write_network(onnx_file, **{"size": 63, **network}, metadata=described)
    assert main(["import-policy", str(onnx_file), "--out", str(tmp_path / "mine"), *argv]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_files_that_are_no_networks_are_refused(tmp_path, capsys):
    text = tmp_path / "policy.onnx"
    text.write_text("not a network")
    for path, said in ((text, "is not an ONNX network"), (tmp_path / "no.onnx", "cannot read")):
        assert main(["import-policy", str(path)]) == 2
        assert said in capsys.readouterr().err
