"""earshot gives any open text LLM ears."""

import importlib
from typing import TYPE_CHECKING, Any

from earshot.errors import (
    AudioError,
    CacheError,
    CheckpointError,
    ConfigError,
    DataError,
    EarshotError,
    RequestError,
)
from earshot.version import __version__

if TYPE_CHECKING:
    from earshot.checkpoint import load, save
    from earshot.model import Ear, EarSettings

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

_FROM = {
    "Ear": "earshot.model",
    "EarSettings": "earshot.model",
    "load": "earshot.checkpoint",
    "save": "earshot.checkpoint",
}


def __dir__() -> list[str]:
    """The public names, those that are not imported yet included."""
    return __all__


def __getattr__(name: str) -> Any:
    """The names that need torch and transformers: their import takes seconds, `earshot --help` must not."""
    if name not in _FROM:
        raise AttributeError(f"module 'earshot' has no attribute {name!r}")
    return getattr(importlib.import_module(_FROM[name]), name)
