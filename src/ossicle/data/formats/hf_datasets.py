"""Hugging Face's `datasets`: imported with sound left to us, whatever it raises said in one line."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from ossicle.errors import DataError, OssicleError

_WITHOUT_TORCHCODEC = "HF_DATASETS_DISABLE_TORCHCODEC"


@contextmanager
def imported(missing: str) -> Generator[ModuleType]:
    """`datasets`, told to leave sound to us while the block runs.

    Args:
        missing: what is said where it is not installed

    Raises:
        DataError: it is not installed
    """
    before = os.environ.get(_WITHOUT_TORCHCODEC)
    os.environ[_WITHOUT_TORCHCODEC] = "1"
    try:
        import datasets
    except ImportError as error:
        raise DataError(missing) from error
    else:
        yield datasets
    finally:
        if before is None:
            del os.environ[_WITHOUT_TORCHCODEC]
        else:
            os.environ[_WITHOUT_TORCHCODEC] = before


@contextmanager
def explained(where: str, place: str, *, if_here: str = "", if_away: str = "") -> Generator[None]:
    """One line for whatever a data set's libraries raise.

    Args:
        where: what was being read
        place: hub id or folder
        if_here: what to do about a folder that cannot be read
        if_away: what to do about a data set that is not there

    Raises:
        DataError: in place of anything that is no error of ours
    """
    try:
        yield
    except OssicleError:
        raise
    except Exception as error:  # their own kinds, those of the network, of arrow and of the file's format
        trouble = (
            f"cannot be read as a data set{if_here}"
            if Path(place).exists()
            else f"cannot be had from the hub, nor is it a folder here{if_away}"
        )
        raise DataError(f"{where} {trouble}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """What went wrong in the first place, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
