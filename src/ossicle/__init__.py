"""ossicle gives any open text LLM ears."""

import importlib
from typing import TYPE_CHECKING, Any

from ossicle.errors import (
    AudioError,
    CacheError,
    CheckpointError,
    ConfigError,
    DataError,
    OssicleError,
    RequestError,
)
from ossicle.version import __version__

if TYPE_CHECKING:
    from ossicle.checkpoint import load, save
    from ossicle.ear import Ear, EarSettings
    from ossicle.hub_upload import push_to_hub

__all__ = [
    "AudioError",
    "CacheError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Ear",
    "EarSettings",
    "OssicleError",
    "RequestError",
    "__version__",
    "load",
    "push_to_hub",
    "save",
]

_LAZY_MODULES = {
    "Ear": "ossicle.ear",
    "EarSettings": "ossicle.ear",
    "load": "ossicle.checkpoint",
    "push_to_hub": "ossicle.hub_upload",
    "save": "ossicle.checkpoint",
}


def __dir__() -> list[str]:
    """Returns the public names, including those that are not imported yet."""
    return __all__


def __getattr__(name: str) -> Any:
    """Imports a public name at its first use: torch and transformers take seconds, which `ossicle --help` must not."""
    if name not in _LAZY_MODULES:
        raise AttributeError(f"module 'ossicle' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY_MODULES[name]), name)
