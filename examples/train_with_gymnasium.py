"""Train a policy with a public library on one processor: Stable-Baselines3, which you install.

    pip install stable-baselines3 onnx && python examples/train_with_gymnasium.py --steps 500000

It trains on `proprio` alone, on level ground, writes the bundle `policies/mine` and says how to run
it. How many steps a gait takes was not measured: the example shows the interfaces.
"""

# pyright: reportMissingImports=false
import argparse
import io
import sys
from pathlib import Path

import gymnasium
import krabby.gym
import torch
from gymnasium.wrappers import FilterObservation, FlattenObservation
from krabby.gym.env import ParkourEnv
from krabby.policy.bundle import POLICY_FILE, write_bundle
from krabby.robot.description import RobotDescription
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv

parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
parser.add_argument("--steps", type=int, default=100_000, help="control steps of all robots")
parser.add_argument("--out", type=Path, default=Path("policies/mine"), help="folder to write")
options = parser.parse_args()


def make() -> gymnasium.Env:
    """A robot on level ground, its observation as one vector."""
    env = gymnasium.make(krabby.gym.ENV_ID, course="flat", camera=False)
    return FlattenObservation(FilterObservation(env, ["proprio"]))


if __name__ == "__main__":
    robots = make_vec_env(make, n_envs=2, vec_env_cls=SubprocVecEnv)
    model = PPO("MlpPolicy", robots, n_steps=1024, batch_size=256, device="cpu", verbose=1)
    model.learn(options.steps)
    policy, file = model.policy, io.BytesIO()
    actor = torch.nn.Sequential(policy.mlp_extractor.policy_net, policy.action_net)
    torch.onnx.export(actor, (torch.zeros(1, 69),), file, input_names=["obs"],
                      output_names=["actions"], dynamo=False)  # fmt: skip
    manifest = ParkourEnv(course="flat", camera=False).manifest(options.out.name)
    bundle = {POLICY_FILE: file.getvalue()}
    write_bundle(options.out, manifest, bundle, RobotDescription.load())
    robots.close()
    sys.stdout.write(f"wrote {options.out}: krabby sim --policy ./{options.out} --course flat\n")
