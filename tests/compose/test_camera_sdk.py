"""The camera's image from the vendor's installer alone, against a stand-in of it.

The stand-in (`services/camera/tests/fakes/zed_installer.py`) refuses what the real installer
refuses. The base stands for NVIDIA's: Ubuntu's packages have the same names in Debian.
"""

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
compose = pytest.mark.compose
IMAGE = "krabby/camera:sdk-stand-in"
CONTEXT = ("proto", "libs", "services", "assets", "cli", "pyproject.toml", "uv.lock", "Dockerfile",
           ".dockerignore")  # fmt: skip


def load(path):
    """A module that is not on the path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


STAND_IN = load(ROOT / "services/camera/tests/fakes/zed_installer.py")
NAME, make_installer = STAND_IN.NAME, STAND_IN.make_installer


def test_the_stand_in_refuses_a_machine_that_is_no_jetson(tmp_path):
    ended = subprocess.run(
        ["bash", make_installer(tmp_path), "--quiet", "--", "silent"],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert re.search("is missing|no Jetson", ended.stderr)


def test_two_installers_are_refused_by_name(tmp_path):
    shutil.copy(ROOT / "services/camera/sdk/install", tmp_path)
    for name in (NAME, "ZED_SDK_Tegra_L4T36.4_v5.4.0.zstd.run"):
        (tmp_path / name).touch()
    ended = subprocess.run(
        ["bash", tmp_path / "install"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr.endswith(f"{NAME}: leave the one for this robot's JetPack\n")


@compose
@pytest.mark.timeout(900)
def test_the_camera_s_image_is_built_from_the_installer_alone(tmp_path):
    base = base_image()
    context = tmp_path / "context"
    context.mkdir()
    for name in CONTEXT:
        copy(ROOT / name, context / name)
    (context / "tools").mkdir()
    shutil.copy(ROOT / "tools/install.py", context / "tools")
    make_installer(context / "services/camera/sdk")
    try:
        built = build(context, base)
        assert built.returncode == 0, built.stderr[-4000:]
        version = "import pyzed.sl as sl; print(sl.Camera.get_sdk_version())"
        assert in_image("python", "-c", version) == "5.4.0\n"
        assert in_image("cat", "/etc/nv_tegra_release") == "# R39 (release), REVISION: 2.0\n"
        # Depth networks and calibration are written by the service's user.
        folders = ("/usr/local/zed/resources", "/usr/local/zed/settings")
        owner = in_image("stat", "--format=%u", *folders)
        assert owner == "10001\n10001\n"
    finally:
        docker("image", "rm", "--force", IMAGE)


def base_image():
    """The Python image, which Debian's packages are in; skips without an engine or the image."""
    if not shutil.which("docker") or docker("info").returncode:
        pytest.skip("no Docker engine answers; on Debian: .ci/engine")
    (base,) = re.findall(r"(?m)^PYTHON_IMAGE=(.+)$", (ROOT / ".env").read_text())
    if docker("image", "inspect", base).returncode:
        pytest.skip(f"no image {base}: pull it, or .ci/stand-in-images")
    return base


def copy(source: Path, to: Path):
    """A file or folder of the checkout, without what no build wants."""
    if source.is_file():
        shutil.copy(source, to)
        return
    unwanted = shutil.ignore_patterns("__pycache__", "tests", "training", "*.run", "pyzed-*.whl")
    shutil.copytree(source, to, ignore=unwanted)


def build(context, base):
    """As `docker compose build camera` on JetPack 6.2's base, with Debian in place of Ubuntu."""
    arguments = {
        "BASE": "jetpack6", "SERVICE": "services/camera", "JETPACK_IMAGE": base,
        "PYTHON_IMAGE": base,
    }  # fmt: skip
    project = context.parent / "project.json"  # YAML too
    service = {"image": IMAGE, "build": {"context": str(context), "args": arguments}}
    project.write_text(json.dumps({"services": {"camera": service}}))
    return subprocess.run(
        ["docker", "compose", "--progress=plain", f"--file={project}", "build", "camera"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def in_image(program, *args):
    """What a program of the image prints."""
    ended = docker("run", "--rm", f"--entrypoint={program}", IMAGE, *args)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def docker(*args):
    """Run `docker`; what came of it."""
    return subprocess.run(["docker", *args], capture_output=True, text=True, check=False)
