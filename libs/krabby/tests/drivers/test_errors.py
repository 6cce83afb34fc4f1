"""The tree in the docstring is the tree."""

import importlib
import pkgutil

import krabby.drivers
from krabby.drivers import errors


def test_every_error_is_defined_in_one_place_and_drawn_in_its_tree():
    for module in pkgutil.walk_packages(krabby.drivers.__path__, "krabby.drivers."):
        importlib.import_module(module.name)
    below = errors.DeviceError.__subclasses__()
    for error in below:
        below += error.__subclasses__()
    ours = [error for error in below if error.__module__.startswith("krabby.drivers")]
    assert {error.__module__ for error in ours} == {"krabby.drivers.errors"}
    assert {error.__name__ for error in ours} == set(errors.__all__) - {"DeviceError"}
    assert all(f"── {error.__name__} " in errors.__doc__ for error in ours)
