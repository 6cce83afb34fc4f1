"""What all tests share: no time limits of Hypothesis, which a busy machine would exceed."""

from hypothesis import HealthCheck, settings

settings.register_profile("krabby", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("krabby")
