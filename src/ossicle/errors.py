"""All errors that a user of ossicle can meet, as one tree. This file does not know what raises them.

    OssicleError               exit code 1
    ├── ConfigError            exit code 2   a setting, flag or recipe is invalid
    ├── AudioError             audio cannot be used: not audio, truncated, silent, too long
    │   └── NoSpeechError      nobody can be heard in it
    ├── DataError              a dataset, suite or transcript is invalid
    ├── CheckpointError        an ear or a base model cannot be loaded, saved or combined with the others
    │   └── ModelNotFoundError a base model is not there
    ├── CacheError             stored teacher states are incomplete or belong to another model
    └── RequestError           a conversation or request cannot be answered
        └── ContextLengthError it is longer than the LLM's context

A message is one line. It says what was given, what was expected and what to do.
"""

from typing import ClassVar


class OssicleError(Exception):
    """Base of all errors that are about the user's input or environment, never about a bug in ossicle."""

    exit_code: ClassVar[int] = 1
    """Exit code of the command line when a command ends with this error."""


class ConfigError(OssicleError):
    """A setting is invalid. The message has its dotted name and the value that was given."""

    exit_code: ClassVar[int] = 2


class AudioError(OssicleError):
    """Audio cannot be used: missing, not audio, truncated, empty, silent, not finite or too long."""


class NoSpeechError(AudioError):
    """Nobody can be heard in a sound, by the judgment of a model."""


class DataError(OssicleError):
    """Data cannot be used for training or evaluation. The message has the file and the line."""


class CheckpointError(OssicleError):
    """An ear or a base model cannot be loaded, saved or combined with the other parts."""


class ModelNotFoundError(CheckpointError):
    """There is no model of that name on this computer or on the hub."""


class CacheError(OssicleError):
    """Stored teacher states are incomplete, damaged or from another model."""


class RequestError(OssicleError):
    """A conversation cannot be answered as it was sent."""


class ContextLengthError(RequestError):
    """A conversation leaves no room for an answer in the LLM's context."""
