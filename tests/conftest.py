"""What the tests of running processes and those of running containers share."""

import pytest
from krabby.policy.testing import write_seeing_gait
from krabby.robot.description import RobotDescription


def pytest_addoption(parser):
    parser.addoption(
        "--write-faults", action="store_true", help="write the drives into docs/faults.md, .json"
    )


_FIGURES: dict[str, str] = {}


@pytest.fixture(scope="session")
def figures() -> dict[str, str]:
    """What was measured, for the end of the report: how fast depends on the machine."""
    return _FIGURES


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _FIGURES:
        terminalreporter.section("measured")
        for name, figure in _FIGURES.items():
            terminalreporter.write_line(f"{name}: {figure}")


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
