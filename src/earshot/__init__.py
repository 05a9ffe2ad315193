"""earshot gives any open text LLM ears."""

from earshot.checkpoint import load, save
from earshot.errors import (
    AudioError,
    CacheError,
    CheckpointError,
    ConfigError,
    DataError,
    EarshotError,
    RequestError,
)
from earshot.model import Ear, EarSettings
from earshot.version import __version__

__all__ = [
    "AudioError",
    "CacheError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Ear",
    "EarSettings",
    "EarshotError",
    "RequestError",
    "__version__",
    "load",
    "save",
]
