"""The tree in the docstring is the tree."""

import importlib
import pkgutil

import krabby_inference
from krabby_inference import errors


def test_every_error_is_defined_in_one_place_and_drawn_in_its_tree():
    for module in pkgutil.iter_modules(krabby_inference.__path__):
        if module.name != "__main__":
            importlib.import_module(f"krabby_inference.{module.name}")
    below = [errors.InferenceError]
    for error in below:
        below += error.__subclasses__()
    assert {error.__module__ for error in below} == {"krabby_inference.errors"}
    assert {error.__name__ for error in below} == set(errors.__all__)
    assert all(f"{error.__name__} " in errors.__doc__ for error in below)
