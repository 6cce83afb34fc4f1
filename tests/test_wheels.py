"""The wheels alone walk: installed into an empty environment, run outside the checkout."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[1]
FOREIGN = {"KRABBY_ASSETS", "KRABBY_ROBOT", "KRABBY_CONFIG", "PYTHONPATH", "VIRTUAL_ENV"}


def run(*command, cwd):
    """What the command wrote to stdout; its own words in the failure when it fails."""
    env = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    dist = tmp_path_factory.mktemp("dist")
    run("make", "--no-print-directory", "wheels", f"DIST={dist}", cwd=ROOT)
    return sorted(dist.glob("*.whl"))


@pytest.fixture(scope="module")
def home(wheels, tmp_path_factory):
    """A folder with a space in its name, and in it an environment with nothing but the wheels."""
    folder = tmp_path_factory.mktemp("far away") / "a new user"
    folder.mkdir()
    run(sys.executable, "-m", "venv", "env", cwd=folder)
    pip = ("env/bin/python", "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input")
    run(*pip, "install", "--no-compile", *map(str, wheels), cwd=folder)
    return folder


def walk(home, *options):
    lockstep = ("--speed", "0", "--base-port", "0")
    said = run("env/bin/python", "-m", "krabby_cli", "sim", *lockstep, *options, cwd=home)
    return json.loads(said.splitlines()[-1])


def test_the_wheel_carries_robots_and_policies_and_no_training(wheels):
    (wheel,) = (path for path in wheels if path.name.startswith("krabby-"))
    with zipfile.ZipFile(wheel) as archive:
        names = {
            name.removeprefix("krabby/_assets/") for name in archive.namelist() if "_assets" in name
        }
    assert {
        "crab_hex/robot.toml", "crab_hex/crab_hex.xml", "crab_hex_rs/robot.toml",
        "crab_hex_rs/policies/gait/manifest.json", "policies/gait/policy.onnx",
        "policies/parkour/policy.onnx", "policies/parkour/depth_encoder.onnx",
        "policies/parkour/manifest.json",
    } <= names  # fmt: skip
    assert not [name for name in names if "training" in name or "teacher" in name]
    left = [
        path
        for top in ("proto", "libs", "services", "cli")
        for path in ROOT.glob(f"{top}/**/build/lib")
    ]
    assert left == []  # the next wheel would have modules that were removed meanwhile
    assert wheel.stat().st_size < 5_000_000


def test_krabby_sim_walks_from_the_wheels_alone(home):
    installed = run("env/bin/python", "-m", "pip", "list", "--format=json", cwd=home)
    assert "torch" not in {package["name"] for package in json.loads(installed)}
    summary = walk(home, "--duration", "12", "--course", "flat")
    assert (summary["policy"], summary["exit"], summary["falls"]) == ("parkour", "finished", 0)
    assert summary["distance_m"] > 1.0  # 9 s of walking at 0.35 m/s and more
    assert Path(home, summary["logs"], "summary.json").is_file()


def test_another_robot_and_policy_walk_too(home):
    summary = walk(home, "--duration", "8", "--policy", "gait", "--robot", "crab_hex_rs")
    assert (summary["policy"], summary["course"], summary["falls"]) == ("gait", "flat", 0)
    assert summary["distance_m"] > 0.3
