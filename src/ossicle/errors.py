"""Every error a user of ossicle can meet, as one tree; it knows nothing about what raises them.

    OssicleError               exit code 1
    ├── ConfigError            exit code 2   a setting, flag or recipe that cannot be used
    ├── AudioError             sound that cannot be heard: not audio, cut short, silent, too long
    ├── DataError              a data set, suite or transcript that is not what it should be
    ├── CheckpointError        an ear or a base model that cannot be loaded, saved or combined
    ├── CacheError             stored teacher states that are incomplete or belong to something else
    └── RequestError           a conversation or request that cannot be answered as it stands

A message is one line and says what was given, what was expected and what to do about it.
"""

from typing import ClassVar


class OssicleError(Exception):
    """Base of all errors that are about the user's input or surroundings, never about a bug of ours."""

    exit_code: ClassVar[int] = 1
    """What the command line exits with when this error ends a command."""


class ConfigError(OssicleError):
    """A setting that cannot be used; the message names the dotted field and the value it was given."""

    exit_code: ClassVar[int] = 2


class AudioError(OssicleError):
    """Sound that cannot be heard: missing, not audio, truncated, empty, silent, not finite or too long."""


class DataError(OssicleError):
    """Data that cannot be learned or evaluated from; the message names the file and the line."""


class CheckpointError(OssicleError):
    """An ear or base model that cannot be loaded, saved or joined with the other parts."""


class CacheError(OssicleError):
    """Stored teacher states that are incomplete, damaged or made by another model."""


class RequestError(OssicleError):
    """A conversation that cannot be answered as it was sent."""
