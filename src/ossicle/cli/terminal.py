"""What the subcommands share: how this program is called, what it says when it ends, the kinds of its arguments."""

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""

EarName = Annotated[str, arg(metavar="EAR")]
RecipeFile = Annotated[Path, arg(metavar="RECIPE.toml")]
NumberOption = Annotated[float | None, arg(metavar="NUMBER")]


def print_resume_command(stop: KeyboardInterrupt, command_line: str) -> int:
    """Ends a command that was stopped by hand; gives its exit code."""
    print_message(f"{stop}: {command_line.replace('ossicle', program_name(), 1)}")
    return EXIT_INTERRUPTED


def program_name() -> str:
    """How this program can be called again: by its name if the shell knows it, else by its path from here."""
    if shutil.which("ossicle"):
        return "ossicle"
    path = Path(sys.argv[0])
    return shlex.quote(os.path.relpath(path)) if path.name == "ossicle" else "python -m ossicle"


def print_message(text: str) -> None:
    """One line on stderr."""
    sys.stderr.write(f"ossicle: {' '.join(text.split())}\n")
