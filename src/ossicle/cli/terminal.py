"""What the subcommands share: how this program is called, what it says when it ends, the kinds of its arguments."""

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""

EarName = Annotated[str, arg(metavar="EAR")]
RecipeFile = Annotated[Path, arg(metavar="RECIPE.toml")]
Number = Annotated[float | None, arg(metavar="NUMBER")]


def say_how_to_go_on(stop: KeyboardInterrupt, typed: str) -> int:
    """Ends a command that was stopped by hand; gives its exit code."""
    say(f"{stop}: {typed.replace('ossicle', program(), 1)}")
    return INTERRUPTED


def program() -> str:
    """How this program can be called again: by its name if the shell knows it, else by its path from here."""
    if shutil.which("ossicle"):
        return "ossicle"
    called = Path(sys.argv[0])
    return shlex.quote(os.path.relpath(called)) if called.name == "ossicle" else "python -m ossicle"


def say(text: str) -> None:
    """One line on stderr."""
    sys.stderr.write(f"ossicle: {' '.join(text.split())}\n")
