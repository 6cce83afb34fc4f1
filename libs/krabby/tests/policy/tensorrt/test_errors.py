"""The tree in the docstring is the tree."""

import importlib
import pkgutil

import krabby.policy.tensorrt
from krabby.policy.tensorrt import errors


def test_every_error_is_defined_in_one_place_and_drawn_in_its_tree():
    for module in pkgutil.iter_modules(krabby.policy.tensorrt.__path__):
        if module.name != "__main__":
            importlib.import_module(f"krabby.policy.tensorrt.{module.name}")
    below = [errors.InferenceError]
    for error in below:
        below += error.__subclasses__()
    assert {error.__module__ for error in below} == {"krabby.policy.tensorrt.errors"}
    assert {error.__name__ for error in below} == set(errors.__all__)
    assert all(f"{error.__name__} " in errors.__doc__ for error in below)
