"""The command line: a frozen dataclass for each subcommand, errors as one line and an exit code.

What a command needs is imported when it runs: torch and transformers take seconds, `ossicle --help` must not.
"""

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
from ossicle.cli.new import New
from ossicle.cli.plan import Plan
from ossicle.cli.serve import Serve
from ossicle.cli.teacher import Teacher
from ossicle.cli.terminal import EXIT_INTERRUPTED, print_message
from ossicle.cli.train import Train
from ossicle.cli.verify import Verify
from ossicle.config import load_recipe
from ossicle.errors import ConfigError, OssicleError
from ossicle.version import __version__

_RECIPE_COMMANDS = {"train": Train, "teacher": Teacher, "plan": Plan}
"""Commands whose first argument is a recipe; all of its settings can be overridden behind it."""
_OTHER_COMMANDS = {
    "demo": Demo,
    "new": New,
    "chat": Chat,
    "serve": Serve,
    "eval": Eval,
    "compare": Compare,
    "verify": Verify,
    "data": Data,
}


def _parse(argv: Sequence[str]) -> Any:
    """The subcommand that is asked for.

    Raises:
        ConfigError: a recipe that cannot be used, or settings that cannot be
        SystemExit: help, or flags that cannot be understood (code 2)
    """
    subcommands = {name: tyro.conf.subcommand(name) for name in (*_RECIPE_COMMANDS, *_OTHER_COMMANDS)}
    if argv[0] in _RECIPE_COMMANDS and argv[1:2] not in ([], ["-h"], ["--help"]):
        if argv[1].startswith("-"):
            raise ConfigError(f"the recipe comes first: ossicle {argv[0]} RECIPE.toml {argv[1]} ...")
        recipe = Path(argv[1])
        default = _RECIPE_COMMANDS[argv[0]](recipe=recipe, settings=load_recipe(recipe))
        subcommands[argv[0]] = tyro.conf.subcommand(argv[0], default=default)
    command_types: dict[str, Any] = {**_RECIPE_COMMANDS, **_OTHER_COMMANDS}
    annotated = tuple(Annotated[kind, subcommands[name]] for name, kind in command_types.items())
    command_type: Any = Union[annotated]  # noqa: UP007
    return tyro.cli(
        command_type,
        args=argv,
        prog="ossicle",
        description=f"Gives any open text LLM ears. Version {__version__} (ossicle --version).",
        config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand and gives its exit code: 0, 1 (failure), 2 (usage), 130 (Ctrl-C)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv == ["--version"]:
        sys.stdout.write(f"ossicle {__version__}\n")
        return 0
    # What transformers says of its own while it loads; the bars of downloads are huggingface_hub's, and stay.
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
    except BrokenPipeError:  # elsewhere rich meets it, and exits with 1 as well
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains while it exits
        return 1
