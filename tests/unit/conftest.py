"""Settings of all unit tests."""

from hypothesis import HealthCheck, settings

# How long an example takes says something of the machine, not of the code: a busy one must not turn a test red.
settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-machine")
