"""The command line: one frozen dataclass for each subcommand; an error is one line and an exit code.

Each command imports what it needs when it runs: torch and transformers take seconds, which `ossicle --help` must not.
"""

import io
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Union

import tyro

from ossicle.cli.chat import Chat
from ossicle.cli.compare import Compare
from ossicle.cli.data import Data
from ossicle.cli.demo import Demo
from ossicle.cli.eval import Eval
from ossicle.cli.exchange import Export, Import
from ossicle.cli.new import New
from ossicle.cli.plan import Plan
from ossicle.cli.push import Push
from ossicle.cli.report import Report
from ossicle.cli.serve import Serve
from ossicle.cli.teacher import Teacher
from ossicle.cli.terminal import EXIT_INTERRUPTED, print_message
from ossicle.cli.train import Train
from ossicle.cli.verify import Verify
from ossicle.config import load_recipe
from ossicle.errors import ConfigError, OssicleError
from ossicle.version import __version__

RECIPE_COMMANDS = {"train": Train, "teacher": Teacher, "plan": Plan}
"""Commands whose first argument is a recipe. Flags after it override the recipe's settings."""
OTHER_COMMANDS = {
    "demo": Demo,
    "new": New,
    "chat": Chat,
    "serve": Serve,
    "eval": Eval,
    "compare": Compare,
    "report": Report,
    "verify": Verify,
    "data": Data,
    "import": Import,
    "export": Export,
    "push": Push,
}
_COMPLETION, _SHELLS = "--tyro-print-completion", ("bash", "zsh", "fish")
_MAX_PATH = 300
"""Characters of a path that an error shows."""


def _parse(argv: Sequence[str]) -> Any:
    """Returns the subcommand of a command line, with its arguments.

    Raises:
        ConfigError: an invalid recipe or an invalid setting
        SystemExit: help was asked for (code 0), or flags cannot be parsed (code 2)
    """
    if argv[0] == _COMPLETION and argv[1:] and argv[1] not in _SHELLS:
        raise ConfigError(f"{_COMPLETION} is {argv[1]!r}, expected {', '.join(_SHELLS)}")
    subcommands = {name: tyro.conf.subcommand(name) for name in (*RECIPE_COMMANDS, *OTHER_COMMANDS)}
    if argv[0] in RECIPE_COMMANDS and argv[1:2] not in ([], ["-h"], ["--help"]):
        if argv[1].startswith("-"):
            raise ConfigError(f"the recipe comes first: ossicle {argv[0]} RECIPE.toml {argv[1]} ...")
        recipe = Path(argv[1])
        default = RECIPE_COMMANDS[argv[0]](recipe=recipe, settings=load_recipe(recipe))
        subcommands[argv[0]] = tyro.conf.subcommand(argv[0], default=default)
    command_types: dict[str, Any] = {**RECIPE_COMMANDS, **OTHER_COMMANDS}
    annotated = tuple(Annotated[kind, subcommands[name]] for name, kind in command_types.items())
    command_type: Any = Union[annotated]  # noqa: UP007
    return tyro.cli(
        command_type,
        args=argv,
        prog="ossicle",
        description=f"Gives any open text LLM ears. Version {__version__} (ossicle --version).",
        config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff),
    )


def _find_full_memory(error: Exception) -> str | None:
    """Returns whose memory ran out; None for another error."""
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
        return "the GPU"
    is_full = isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)
    return "this machine" if is_full else None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand. Returns its exit code: 0, 1 (failure), 2 (usage) or 130 (Ctrl-C)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console of Windows has few characters
    if argv == ["--version"]:
        sys.stdout.write(f"ossicle {__version__}\n")
        return 0
    # Silences what transformers prints while it loads. The progress bars of downloads are huggingface_hub's and stay.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        return _parse(argv or ["--help"]).run(shlex.join(["ossicle", *argv]))
    except OssicleError as error:
        print_message(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        print_message("interrupted")
        return EXIT_INTERRUPTED
    except (MemoryError, RuntimeError) as error:
        owner = _find_full_memory(error)
        if owner is None:
            raise
        reason = str(error).strip().split("\n", 1)[0] or "nothing more could be reserved"
        print_message(
            f"{owner}'s memory is full ({reason}); use smaller batches, --llm-bits 8 or 4 where the command has them,"
            " or another device"
        )
        return 1
    except BrokenPipeError:  # from our own writes; rich exits with 1 by itself
        # Without this, Python reports the broken pipe again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a path that may not be read, or that no file can have
        if error.filename is None:
            raise
        print_message(f"{str(error.filename)[:_MAX_PATH]!r}: {error.strerror}; check the path")
        return 1
