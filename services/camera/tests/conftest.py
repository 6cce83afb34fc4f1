"""Fakes of the cameras' libraries, and what a real one would see."""

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import pytest

_HERE = Path(__file__).parent


def _load(name):
    spec = importlib.util.spec_from_file_location(f"fake_{name}", _HERE / "fakes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def sl(monkeypatch):
    """A fake `pyzed.sl`, importable, with a fresh `world`."""
    module = _load("pyzed_sl")
    package = types.ModuleType("pyzed")
    package.sl = module
    monkeypatch.setitem(sys.modules, "pyzed", package)
    monkeypatch.setitem(sys.modules, "pyzed.sl", module)
    return module


@pytest.fixture
def rs(monkeypatch):
    """A fake `pyrealsense2`, importable, with a fresh `world`."""
    module = _load("pyrealsense2")
    monkeypatch.setitem(sys.modules, "pyrealsense2", module)
    return module


class Scene:
    """One scene of `recorded/record.py`."""

    def __init__(self, recorded, name):
        self.zed = recorded[f"{name}.zed"].astype(np.float32)
        """What a ZED Mini gives at half VGA (188, 336) [m], 0 for nothing there."""
        self.robot = recorded[f"{name}.robot"].astype(np.float32)
        """What the simulator's camera gives (60, 106) [m]."""
        self.base_quat = recorded[f"{name}.base_quat"]


@pytest.fixture(scope="session")
def scene():
    recorded = np.load(_HERE / "recorded" / "zed_mini_vga.npz")
    return lambda name: Scene(recorded, name)
