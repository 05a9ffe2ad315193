"""What the subcommands share: types of arguments, messages on stderr, the program's name, sizes in bytes."""

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from ossicle.errors import ConfigError

EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C, by the convention of shells: 128 + SIGINT."""

EarName = Annotated[str, arg(metavar="EAR")]
BaseName = Annotated[str | None, arg(metavar="MODEL")]
DeviceName = Annotated[str | None, arg(metavar="NAME")]
DtypeName = Annotated[str | None, arg(metavar="NAME")]
BitCount = Annotated[Literal[16, 8, 4], arg(metavar="16|8|4")]
RecipeFile = Annotated[Path, arg(metavar="RECIPE.toml")]
NumberOption = Annotated[float | None, arg(metavar="NUMBER")]


def print_resume_command(stop: KeyboardInterrupt, command_line: str) -> int:
    """Prints why a command was stopped and how to resume it. Returns the exit code."""
    print_message(f"{stop}: {command_line.replace('ossicle', program_name(), 1)}")
    return EXIT_INTERRUPTED


def program_name() -> str:
    """Returns how to call this program again: its name if it is on the PATH, else its relative path."""
    if shutil.which("ossicle"):
        return "ossicle"
    path = Path(sys.argv[0])
    return shlex.quote(os.path.relpath(path)) if path.name == "ossicle" else "python -m ossicle"


def print_message(text: str) -> None:
    """Prints one line on stderr."""
    sys.stderr.write(f"ossicle: {' '.join(text.split())}\n")


def check_is_new(folder: Path) -> None:
    """Refuses to write into a folder that has other files.

    Raises:
        ConfigError: a file, or a folder that is not empty
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"{folder} exists already: give an empty or a new folder")


def format_bytes(n_bytes: int) -> str:
    """Returns a size in GB or, below 0.1 GB, in MB."""
    return f"{n_bytes / 1e9:,.2f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:,.1f} MB"
