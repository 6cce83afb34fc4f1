"""What the tests of running processes and those of running containers share."""

import pytest
from krabby_robot.description import RobotDescription
from krabby_robot.testing import write_seeing_gait


def pytest_addoption(parser):
    parser.addoption(
        "--write-faults", action="store_true", help="write docs/faults.md from test_emulated_robot"
    )


@pytest.fixture(scope="session")
def seeing_gait(tmp_path_factory):
    """Folder of a bundle that walks like `gait` and will not do so without a depth image.

    So a robot that changes from one to the other in mid-walk has no reason to fall.
    """
    path = tmp_path_factory.mktemp("policies") / "seeing"
    return write_seeing_gait(path, RobotDescription.load(), features="image").path


@pytest.fixture(scope="session")
def student(tmp_path_factory):
    """Folder of the same with a depth encoder, whose latent it reads: the shape of a student."""
    path = tmp_path_factory.mktemp("policies") / "seeing"
    return write_seeing_gait(path, RobotDescription.load(), features="latent").path
