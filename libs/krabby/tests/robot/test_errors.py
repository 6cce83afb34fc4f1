"""The tree in the docstring is the tree."""

import importlib
import pkgutil

import krabby.robot
from krabby.robot import errors


def test_every_error_is_defined_in_one_place_and_drawn_in_its_tree():
    for module in pkgutil.iter_modules(krabby.robot.__path__):
        importlib.import_module(f"krabby.robot.{module.name}")
    below = errors.RobotError.__subclasses__()
    for error in below:
        below += error.__subclasses__()
    ours = [error for error in below if error.__module__.startswith("krabby.robot")]
    assert {error.__module__ for error in ours} == {"krabby.robot.errors"}
    assert {error.__name__ for error in ours} == set(errors.__all__) - {"RobotError"}
    assert all(f"── {error.__name__} " in errors.__doc__ for error in ours)
