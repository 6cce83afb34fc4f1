"""What is installed is locked: by version and hash, without addresses of the registries used."""

import importlib.util
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOCKS = {"workspace": ROOT / "uv.lock", "trainer": ROOT / "services/trainer/uv.lock"}


@pytest.fixture(scope="module")
def lock_tool(monkeypatch_module):
    monkeypatch_module.syspath_prepend(str(ROOT / "tools"))
    spec = importlib.util.spec_from_file_location("lock", ROOT / "tools/lock.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_pins_by_hash_and_names_no_host(name):
    text = LOCKS[name].read_text()
    assert "://" not in text
    packages = tomllib.loads(text)["package"]
    assert len(packages) > 50
    for package in packages:
        if "registry" in package["source"]:
            files = [
                *package.get("wheels", ()),
                *([package["sdist"]] if "sdist" in package else ()),
            ]
            assert files, package["name"]
            assert all(file["hash"].startswith("sha256:") for file in files), package["name"]


def test_addresses_become_names_and_nothing_else_changes(lock_tool):
    written = (
        'source = { registry = "https://packages.example/simple" }\n'
        'version = "1!2.0"\n'
        '{ url = "https://files.example/packages/ab/some_thing-1%212.0-py3-none-any.whl", '
        'hash = "sha256:00", size = 7 },\n'
    )
    assert lock_tool.without_addresses(written) == (
        'source = { registry = "simple" }\n'
        'version = "1!2.0"\n'
        '{ filename = "some_thing-1!2.0-py3-none-any.whl", hash = "sha256:00", size = 7 },\n'
    )


def test_tools_that_install_and_build_are_pinned():
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    assert all("==" in wanted for wanted in groups["build"])
    locked = {
        one["name"]: one.get("version")
        for one in tomllib.loads(LOCKS["workspace"].read_text())["package"]
    }
    assert {f"{name}=={locked[name]}" for name in ("setuptools", "uv")} == set(groups["build"])


def test_the_trainers_mujoco_is_its_solvers_and_older_than_the_runtimes():
    """Isaac Lab needs it so; docs/measurements.md has what both make of the same policies."""
    runtime, trainer = (
        {
            package["name"]: package.get("version")
            for package in tomllib.loads(path.read_text())["package"]
        }
        for path in LOCKS.values()
    )
    assert trainer["mujoco"] == trainer["mujoco-warp"] == "3.12.0"
    assert runtime["mujoco"] == "4.0.0"
