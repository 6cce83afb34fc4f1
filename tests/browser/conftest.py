"""A browser, a robot's processes, and `krabby view` between them."""

import pytest
from krabby_browser import Page, View, chromium
from krabby_faults.stack import Stack
from krabby_proto import STREAMS


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Chromium without a display."""
    with chromium(tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.fixture(scope="session")
def robot():
    """A simulated robot on flat ground on which a mission waits to walk on."""
    stack = Stack("simulated", "gait", camera=True)
    stack.start()
    yield stack
    stack.close()


@pytest.fixture(scope="session")
def view(robot, tmp_path_factory):
    """`krabby view` of that robot."""
    places = [f"--endpoint={name}={robot.endpoints[name]}" for name in STREAMS]
    shown = View(tmp_path_factory.mktemp("view"), *places)
    yield shown
    shown.close()


@pytest.fixture
def cockpit(browser, view):
    """A page with the operator's secret."""
    page = Page(browser, view.address)
    page.until(lambda facts: facts.get("gate") and facts.get("loop"), "an answer of gate and loop")
    yield page
    page.close()
