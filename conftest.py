"""What all tests share: no time limits of Hypothesis, which a busy machine would exceed."""

from collections.abc import Iterator

import pytest
import structlog
from hypothesis import HealthCheck, settings

settings.register_profile("krabby", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("krabby")


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A command that is run in this process sets up logging, `krabby replay` for silence."""
    configured, before = structlog.is_configured(), structlog.get_config()
    yield
    if configured:
        structlog.configure(**before)
    else:
        structlog.reset_defaults()
