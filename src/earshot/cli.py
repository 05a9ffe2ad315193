"""The command line: a frozen dataclass for each subcommand, errors as one line and an exit code.

What a command needs is imported when it runs: torch and transformers take seconds, `earshot --help` must not.
"""

import math
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from tyro.conf import Positional, arg

from earshot.config import Recipe, load_recipe
from earshot.errors import ConfigError, EarshotError
from earshot.version import __version__

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""

EarName = Annotated[str, arg(metavar="EAR")]
SoundFile = Annotated[Path | None, arg(metavar="[AUDIO]")]
Text = Annotated[str | None, arg(metavar="TEXT")]
Number = Annotated[float | None, arg(metavar="NUMBER")]


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Distil the embedded LLM in a few minutes on this computer, evaluate it, and ask it something aloud."""

    minutes: float = 6.0
    """How long to distil."""
    out: Path = Path("runs/pocket")
    """Folder of the run; an unfinished run in it goes on."""
    mic: bool = False
    """Ask the question at the end through the microphone."""

    def run(self, typed: str) -> int:
        """Goes through the demo, or says how to go on with it."""
        from earshot.demo import run_demo
        from earshot.training.loop import Stopped

        console = Console()
        try:
            run_demo(
                self.out,
                self.minutes,
                console,
                program=_program(),
                command=typed,
                through_microphone=self.mic,
            )
        except Stopped as stop:
            return _say_how_to_go_on(stop, typed)
        return 0


@dataclass(frozen=True, kw_only=True)
class Train:
    """Distil an ear; the same command goes on where it was stopped."""

    recipe: Positional[Annotated[Path, arg(metavar="RECIPE.toml")]]
    """What to distil. Any of its settings can be overridden behind it, such as --train.n-steps 100."""
    settings: Annotated[Recipe, arg(name="")] = field(default_factory=lambda: Recipe(out="runs/..."))

    def run(self, typed: str) -> int:
        """Trains to the last step, or says how to go on."""
        from earshot.training.loop import Stopped, train
        from earshot.training.progress import Progress

        console = Console()
        try:
            train(self.settings, Progress(console))
        except Stopped as stop:
            return _say_how_to_go_on(stop, typed)
        program, out = _program(), shlex.quote(self.settings.out)
        console.print(f"The ear is in {self.settings.out}. Next:", highlight=False, markup=False)
        console.out(
            f"  {program} eval {out} --suite FILE.jsonl\n  {program} chat {out} question.wav", highlight=False
        )
        return 0


@dataclass(frozen=True, kw_only=True)
class Chat:
    """Answer one spoken turn."""

    ear: Positional[EarName]
    """An ear's folder or a run's, or pocket/ear for the embedded one."""
    audio: Positional[SoundFile] = None
    """What is said: wav, flac, mp3, ogg, opus, webm or m4a."""
    mic: bool = False
    """Speak through the microphone in place of a file."""
    text: Text = None
    """Text beside the sound, such as "Answer in Spanish."."""
    system: Text = None
    """System prompt, in place of the ear's own."""
    max_new_tokens: Annotated[int | None, arg(metavar="N")] = None
    """Longest answer, in tokens."""
    temperature: Number = None
    """Sample the answer at this temperature; greedy without."""
    top_p: Number = None
    """Sample from the likeliest tokens that hold this share of the probability."""
    seed: int = 0
    """Of the sampling."""

    def run(self, typed: str) -> int:
        """Prints the answer while it is made."""
        if (self.audio is None) != self.mic:
            raise ConfigError("earshot chat takes one sound: name a file, or speak with --mic")
        from earshot import checkpoint
        from earshot.audio import load_audio
        from earshot.microphone import Microphone

        options = self.options()
        # Bad sound and a missing microphone are told before the models are loaded.
        sound = load_audio(self.audio) if self.audio else None
        microphone = Microphone() if self.mic else None
        ear = checkpoint.load(self.ear)
        if microphone:
            sound = microphone.listen(Console(stderr=True))
        console = Console()
        for piece in ear.stream(self.messages(sound), **options):
            console.out(piece, end="", highlight=False)
        console.out("")
        return 0

    def messages(self, sound: Any) -> list[dict[str, Any]]:
        """The conversation that is asked about a sound."""
        content: list[dict[str, Any]] = [{"type": "audio", "audio": sound}]
        if self.text is not None:
            content.append({"type": "text", "text": self.text})
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {"role": "user", "content": content}]

    def options(self) -> dict[str, Any]:
        """What `generate` is told."""
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ConfigError(f"--max-new-tokens is {self.max_new_tokens}, expected at least 1")
        if self.temperature is not None and not 0 <= self.temperature < math.inf:
            raise ConfigError(f"--temperature is {self.temperature:g}, expected 0 (greedy) or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"--top-p is {self.top_p:g}, expected more than 0 and at most 1")
        given = {name: getattr(self, name) for name in ("max_new_tokens", "temperature", "top_p")}
        options = {name: value for name, value in given.items() if value is not None}
        if {"temperature", "top_p"} & options.keys():
            import torch

            torch.manual_seed(self.seed)
        return options


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Measure an ear beside its text ceiling and the cascade; write a report with sound you can play."""

    ear: Positional[EarName]
    """An ear's folder or a run's, or pocket/ear for the embedded one."""
    suite: Annotated[str, arg(metavar="NAME|FILE")]
    """"pocket", or a JSONL or parquet file of audio, text and, optionally, instruction, answer, group, id."""
    out: Annotated[Path, arg(metavar="REPORT.json")] = Path("report.json")
    """Where the report goes; the page to look at goes beside it, as .html."""
    batch_size: int = 16
    """Items at a time."""

    def run(self, typed: str) -> int:
        """Prints the table and writes the report."""
        from earshot import checkpoint
        from earshot.evaluation import evaluate, load_suite, print_table, shown, write_report

        items = load_suite(self.suite)
        ear = checkpoint.load(self.ear)
        base = ear.settings.base
        about = {"ear": self.ear, "LLM": base.llm, "encoder": base.encoder}
        with shown(Console(stderr=True)) as progress:
            report = evaluate(
                ear,
                items,
                name=self.suite,
                batch_size=self.batch_size,
                progress=progress,
                about=about,
                command=typed,
            )
        console = Console()
        written = write_report(report, self.out)
        print_table(report, console)
        console.out(f"{written.json}\n{written.html}", highlight=False)
        return 0


def _say_how_to_go_on(stop: KeyboardInterrupt, typed: str) -> int:
    _say(f"{stop}: {typed.replace('earshot', _program(), 1)}")
    return INTERRUPTED


def _program() -> str:
    """How this program can be called again: by its name if the shell knows it, else by its path from here."""
    if shutil.which("earshot"):
        return "earshot"
    called = Path(sys.argv[0])
    return shlex.quote(os.path.relpath(called)) if called.name == "earshot" else "python -m earshot"


def _say(text: str) -> None:
    sys.stderr.write(f"earshot: {' '.join(text.split())}\n")


def _parse(argv: Sequence[str]) -> Demo | Train | Chat | Eval:
    """The subcommand that is asked for.

    Raises:
        ConfigError: a recipe that cannot be used, or settings that cannot be
        SystemExit: help, or flags that cannot be understood (code 2)
    """
    train = tyro.conf.subcommand("train")
    if argv[:1] == ["train"] and argv[1:2] not in ([], ["-h"], ["--help"]):
        if argv[1].startswith("-"):
            raise ConfigError(f"the recipe comes first: earshot train RECIPE.toml {argv[1]} ...")
        recipe = Path(argv[1])
        train = tyro.conf.subcommand("train", default=Train(recipe=recipe, settings=load_recipe(recipe)))
    return tyro.cli(
        Annotated[Demo, tyro.conf.subcommand("demo")]
        | Annotated[Train, train]
        | Annotated[Chat, tyro.conf.subcommand("chat")]
        | Annotated[Eval, tyro.conf.subcommand("eval")],
        args=argv,
        prog="earshot",
        description=f"Gives any open text LLM ears. Version {__version__} (earshot --version).",
        config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand and gives its exit code: 0, 1 (failure), 2 (usage), 130 (Ctrl-C)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv == ["--version"]:
        sys.stdout.write(f"earshot {__version__}\n")
        return 0
    # What transformers says of its own while it loads; the bars of downloads are huggingface_hub's, and stay.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        return _parse(argv or ["--help"]).run(shlex.join(["earshot", *argv]))
    except EarshotError as error:
        _say(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # elsewhere rich meets it, and exits with 1 as well
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains while it exits
        return 1
