"""Settings of all tests: examples are the same each time, and none is too slow on a busy machine."""

from hypothesis import settings

settings.register_profile("earshot", deadline=None, derandomize=True)
settings.load_profile("earshot")
