"""What all tests share: no time limits of Hypothesis, which a busy machine would exceed."""

from collections.abc import Iterator

import pytest
import structlog
from hypothesis import HealthCheck, settings

settings.register_profile(
    "krabby", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("krabby")


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A command that is run in this process sets up logging, `krabby replay` for silence."""
    yield from _logging_as_before()


@pytest.fixture(autouse=True, scope="module")
def logging_as_before_the_module() -> Iterator[None]:
    """What the fixtures of a module set up ends with it."""
    yield from _logging_as_before()


def _logging_as_before() -> Iterator[None]:
    configured, before = structlog.is_configured(), structlog.get_config()
    yield
    if configured:
        structlog.configure(**before)
    else:
        structlog.reset_defaults()
